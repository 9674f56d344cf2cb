"""Bulk fitting of INRs against the obvious loop over networks: throughput, share of the matmul rate, memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs._progress import progress
from neural_graphs.bench._machine import MIB, alternate, matmul_rate, median_ratio, peak_memory, seconds, threads
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.graph import Stack
from neural_graphs.zoo import FitOptions, ImageSet, fit_networks, make_zoo
from neural_graphs.zoo._inr import initial_parameters, pixel_grid

STACK = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)


def fit(
    out: str | os.PathLike[str] | None = "results/fit.json",
    *,
    networks: int = 256,
    steps: int = 100,
    side: int = 28,
    rounds: int = 5,
    thread_count: int | None = 2,
    many: int = 10_000,
    few: int = 1_000,
    seed: int = 0,
    command: str = "neural-graphs bench fit",
) -> list[Row]:
    """Measure fitting ``networks`` SIRENs 2-32-32-1 to images of ``side`` x ``side`` pixels, in bulk and one by one in turn.

    Rows (method ``bulk fit``): ``speedup`` (the loop's seconds per network and step over ours; the loop gets the number of
    threads, 1 or ``thread_count``, at which it is faster), ``inr_steps_per_second``, ``matmul_share`` (our FLOP/s over those
    of a large matrix product on the same threads), ``gflops``, and ``memory_ratio``: peak memory, beyond the
    libraries', of making a zoo of ``many`` networks over that of one of ``few``, each in a fresh process, and
    ``memory_growth_mb``, their difference. Method ``loop``: ``inr_steps_per_second``.

    FLOPs are those of the matrix products alone: per network and step 2 K (3 Σ n_l n_{l+1} - n_0 n_1) for K pixels and
    layer widths n_l: forward, gradient of the weights and, but for the first layer, gradient of its inputs.
    Written to ``out`` unless it is None.
    """
    targets = torch.rand(networks, 1, side * side, generator=torch.Generator().manual_seed(seed))
    with threads(thread_count) as count, progress("bench fit", rounds + 4) as bar:
        bulk = bulk_work(targets, steps, count, seed)
        loop_threads = _faster_threads(count, targets[:1], steps, seed)
        sample = max(2, networks // 16)

        def loop() -> None:
            with threads(loop_threads):
                fit_one_by_one(targets[:sample], steps, seed)

        bar.advance()
        ours, twin, rates = [], [], [matmul_rate()]
        for _ in range(rounds):
            bulk_seconds, loop_seconds = alternate(bulk, loop, 1)
            ours += bulk_seconds
            twin += loop_seconds
            rates.append(matmul_rate(repeats=3))
            bar.advance()
        memory = {}
        for size in (few, many):
            memory[size] = peak_memory(f"{__name__}:zoo_work", count, networks=size, side=side, workers=count) / MIB
            bar.advance()
    variant, sizes = f"threads={count}", f"{many} networks against {few}"
    rate = max(rates)
    ours_rate = [networks * steps / s for s in ours]
    loop_rate = [sample * steps / s for s in twin]
    flops = step_flops(STACK, side * side)
    rows = [
        row("bulk fit", "speedup", [a / b for a, b in zip(ours_rate, loop_rate, strict=True)], variant),
        row("bulk fit", "inr_steps_per_second", ours_rate, variant),
        row("bulk fit", "matmul_share", [r * flops / rate for r in ours_rate], variant, matmul_gflops=rate / 1e9),
        row("bulk fit", "gflops", [r * flops / 1e9 for r in ours_rate], variant, flops=flops),
        row("bulk fit", "memory_ratio", memory[many] / memory[few], sizes, peak_memory_mb=memory[many]),
        row("bulk fit", "memory_growth_mb", memory[many] - memory[few], sizes),
        row("loop", "inr_steps_per_second", loop_rate, f"threads={loop_threads}"),
    ]
    rows[0]["median"] = median_ratio([s / sample for s in twin], [s / networks for s in ours])
    if out is not None:
        dataset = {"zoo": f"random {side}x{side} images", "networks": networks, "recipe": "dws"}
        write_results(out, "fit", command, dataset, rows, threads=count)
    return rows


def step_flops(stack: Stack, pixels: int) -> int:
    """FLOPs of the matrix products of one step of one network; see ``fit``."""
    products = [layer.inputs * layer.outputs for layer in stack.layers]
    return 2 * pixels * (3 * sum(products) - products[0])


def bulk_work(targets: Tensor, steps: int, workers: int, seed: int) -> Callable[[], object]:
    """The bulk fit of ``targets`` ``[n, 1, K]``, warmed up (compiled)."""
    side = round(targets.shape[-1] ** 0.5)
    params = initial_parameters(STACK, "dws", seed, range(len(targets)))

    def work(steps: int = steps) -> object:
        return fit_networks(
            STACK, params, pixel_grid(side, side), targets, FitOptions(steps=steps, threads=workers, compile=True)
        )

    work(1)
    return work


class Siren(nn.Module):
    """A SIREN as anyone would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.seq[:-1]:
            x = torch.sin(30 * layer(x))
        out: Tensor = self.seq[-1](x)
        return out + 0.5


def fit_one_by_one(targets: Tensor, steps: int, seed: int) -> dict[str, Tensor]:
    """The twin: a loop over networks, each a module with its own ``torch.optim.Adam``; weights stacked at the end."""
    side = round(targets.shape[-1] ** 0.5)
    coords = pixel_grid(side, side)
    params = initial_parameters(STACK, "dws", seed, range(len(targets)))
    fitted: dict[str, list[Tensor]] = {name: [] for name in params}
    for index, target in enumerate(targets):
        module = Siren()
        module.load_state_dict({name: value[index] for name, value in params.items()})
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(module(coords), target.T).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            fitted[name].append(value)
    return {name: torch.stack(values) for name, values in fitted.items()}


def _faster_threads(count: int, target: Tensor, steps: int, seed: int) -> int:
    """The number of threads, 1 or ``count``, at which the loop is faster."""
    times = {}
    for candidate in {1, count}:
        with threads(candidate):
            fit_one_by_one(target, 5, seed)
            times[candidate] = min(seconds(lambda: fit_one_by_one(target, steps, seed)) for _ in range(3))
    return min(times, key=lambda candidate: times[candidate])


def zoo_work(networks: int, side: int, workers: int) -> Callable[[], object]:
    """Making a zoo of ``networks`` INRs in few steps, for ``peak_memory``; the images stand before it begins."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (networks, side, side)).astype(np.uint8)
    images = ImageSet(pixels, np.arange(networks) % 10, "random", "all", tuple("0123456789"), "random")
    folder = tempfile.TemporaryDirectory()

    def work(count: int = networks, name: str = "zoo") -> object:
        part = ImageSet(images.images[:count], images.labels[:count], *("random", "all", images.class_names, "random"))
        return make_zoo(Path(folder.name) / name, part, steps=2, workers=workers)

    bulk_work(torch.rand(4, 1, side * side), 1, workers, 0)
    work(600, "warm-up")
    return work
