"""Rendering INRs in bulk against the obvious loop over networks: throughput, share of the matmul rate, memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from neural_graphs._progress import progress
from neural_graphs.bench._fit import STACK, Siren
from neural_graphs.bench._machine import MIB, in_turn, matmul_rate, median_ratio, peak_memory, seconds, threads
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.graph import NeuralGraph, pixel_grid, render
from neural_graphs.zoo._inr import initial_parameters

PASSES = {"forward": False, "forward+backward": True}
METHODS = ("render", "graph.run", "loop")


def rendering(
    out: str | os.PathLike[str] | None = "results/render.json",
    *,
    networks: int = 256,
    side: int = 28,
    rounds: int = 7,
    thread_count: int | None = 2,
    seed: int = 0,
    command: str = "neural-graphs bench render",
) -> list[Row]:
    """Measure drawing ``networks`` SIRENs 2-32-32-1 at ``side`` x ``side`` pixels: ``graph.render``, one batch of products
    for all at once (``NeuralGraph.run``), and a loop over modules, in turn; forward alone, and with the gradient of a mean
    squared error with respect to all parameters. The loop gets the number of threads, 1 or ``thread_count``, at which it is
    faster.

    Rows (variant ``forward threads=2`` and so on), method ``render``: ``speedup`` (the loop's seconds per network over
    ours), ``speedup_over_run`` (those of ``graph.run`` over ours), ``matmul_share`` (our FLOP/s over those of a large matrix
    product on the same threads), ``gflops``; ``networks_per_second`` and ``peak_memory_mb`` of ``render`` and ``graph.run``,
    ``networks_per_second`` of ``loop``. FLOPs are those of the matrix products of the task, without what is computed
    again: 2 K Σ n_l n_{l+1} forward, and 2 K (3 Σ n_l n_{l+1} - n_0 n_1) with the gradient. Written to ``out`` unless it
    is None.
    """
    sample = max(2, networks // 16)
    rows: list[Row] = []
    with threads(thread_count) as count, progress("bench render", len(PASSES) * (rounds + 3)) as bar:
        for name, learns in PASSES.items():
            variant = f"{name} threads={count}"
            works = {m: rendering_work(m, networks, side, learns, seed) for m in METHODS[:2]}
            loop, loop_threads = _faster_loop(rendering_work("loop", sample, side, learns, seed), count)
            times: dict[str, list[float]] = {method: [] for method in METHODS}
            rates = [matmul_rate()]
            bar.advance()
            for _ in range(rounds):
                for method, found in zip(METHODS, in_turn((*works.values(), loop), 1), strict=True):
                    times[method].append(found[0] / (sample if method == "loop" else networks))
                rates.append(matmul_rate(repeats=3))
                bar.advance()
            memory = {}
            for method in works:
                arguments = {"method": method, "networks": networks, "side": side, "learns": learns, "seed": seed}
                memory[method] = peak_memory(f"{__name__}:rendering_work", count, **arguments) / MIB
                bar.advance()
            flops = rendering_flops(side * side, learns)
            ours = times["render"]
            for metric, twin in (("speedup", "loop"), ("speedup_over_run", "graph.run")):
                ratios = [a / b for a, b in zip(times[twin], ours, strict=True)]
                rows.append(row("render", metric, ratios, variant, median=median_ratio(times[twin], ours)))
            share = [flops / s / max(rates) for s in ours]
            rows.append(row("render", "matmul_share", share, variant, matmul_gflops=max(rates) / 1e9))
            rows.append(row("render", "gflops", [flops / s / 1e9 for s in ours], variant, flops=flops))
            for method in METHODS:
                extra = {"loop_threads": loop_threads} if method == "loop" else {}
                rows.append(row(method, "networks_per_second", [1 / s for s in times[method]], variant, **extra))
            rows += [row(method, "peak_memory_mb", value, variant) for method, value in memory.items()]
    if out is not None:
        dataset = {"zoo": "SIREN 2-32-32-1, not fitted", "networks": networks, "pixels": f"{side}x{side}"}
        write_results(out, "render", command, dataset, rows, threads=count)
    return rows


def rendering_flops(pixels: int, learns: bool) -> int:
    """FLOPs of the matrix products of one network; see ``rendering``."""
    products = [layer.inputs * layer.outputs for layer in STACK.layers]
    return 2 * pixels * (3 * sum(products) - products[0] if learns else sum(products))


def rendering_work(method: str, networks: int, side: int, learns: bool, seed: int) -> Callable[[], list[Tensor]]:
    """What draws the networks by ``method``, warmed up (compiled).

    It returns the images ``[n, K, 1]``, or the gradients of all parameters ``[n, *shape]``, in state-dict order.
    """
    params = initial_parameters(STACK, "dws", seed, range(networks))
    grid = pixel_grid(side, side)
    targets = torch.rand(networks, side * side, 1, generator=torch.Generator().manual_seed(seed))
    if method == "loop":
        work = _loop(params, grid, targets, learns)
    else:
        values = {name: value.requires_grad_(learns) for name, value in params.items()}
        graph = STACK.graph(values)
        work = _together(method, graph, list(values.values()), grid, targets)
    work()
    return work


def _together(
    method: str, graph: NeuralGraph, parameters: list[Tensor], grid: Tensor, targets: Tensor
) -> Callable[[], list[Tensor]]:
    side = round(len(grid) ** 0.5)

    def work() -> list[Tensor]:
        images = render(graph, side, side).flatten(1, 2) if method == "render" else graph.run(grid)
        if not images.requires_grad:
            return [images]
        return list(torch.autograd.grad((images - targets).square().mean((1, 2)).sum(), parameters))

    return work


def _loop(params: dict[str, Tensor], grid: Tensor, targets: Tensor, learns: bool) -> Callable[[], list[Tensor]]:
    modules = []
    for index in range(len(targets)):
        module = Siren().requires_grad_(learns)
        module.load_state_dict({name: value[index] for name, value in params.items()})
        modules.append(module)

    def work() -> list[Tensor]:
        images = []
        for module, target in zip(modules, targets, strict=True):
            module.zero_grad()
            image = module(grid)
            if learns:
                (image - target).square().mean().backward()
            images.append(image)
        if not learns:
            return [torch.stack(images)]
        return [torch.stack([v.grad for v in own]) for own in zip(*(m.parameters() for m in modules), strict=True)]

    return work


def _faster_loop(loop: Callable[[], list[Tensor]], count: int) -> tuple[Callable[[], list[Tensor]], int]:
    """The loop on the number of threads, 1 or ``count``, at which it is faster, and that number."""

    def on(number: int) -> list[Tensor]:
        with threads(number):
            return loop()

    times = {number: min(seconds(partial(on, number)) for _ in range(3)) for number in {1, count}}
    best = min(times, key=lambda number: times[number])
    return partial(on, best), best
