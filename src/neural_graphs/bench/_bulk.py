"""Bulk training of classifiers against training them one by one, and against ``torch.func``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs._memory import keep_buffers
from neural_graphs._progress import progress
from neural_graphs.bench._machine import in_turn, matmul_rate, median_ratio, seconds, threads
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.graph._convolution import map_sizes
from neural_graphs.zoo._bulk import Course, Run, TrainingImages, batch_order, per_network, train_chunk
from neural_graphs.zoo._classifier_recipes import ClassifierRecipe, find_classifier_recipe

EPOCH = 50_000
"""Images of a network-epoch, as CIFAR-10 has them."""


def bulk(
    out: str | os.PathLike[str] | None = "results/bulk.json",
    *,
    recipe: str = "small-cnn-zoo",
    networks: int = 16,
    steps: int = 20,
    side: int = 32,
    rounds: int = 5,
    thread_count: int | None = 1,
    seed: int = 0,
    command: str = "neural-graphs bench bulk",
) -> list[Row]:
    """Time training ``networks`` networks of ``recipe`` for ``steps`` steps on images of ``side`` x ``side`` pixels, as
    `zoo make cnn` does it, one by one (a module and an optimiser of torch's each, as anyone would write it), and by
    ``torch.func.vmap`` over ``functional_call``, in turn.

    Rows: methods ``bulk training`` and ``torch.func``, metric ``speedup`` over one by one, which gets the number of threads,
    1 or ``thread_count``, at which it is faster, and bulk training as many workers; ``network_epochs_per_second`` (of 50,000
    images) of all three; ``matmul_share`` of bulk training: FLOP/s of the convolutions and linear layers over those of
    a large matrix product. Written to ``out`` unless it is None. Raises ``UserError`` for a recipe of other networks than
    stacks.
    """
    chosen = find_classifier_recipe(recipe)
    shape = (3 if chosen.images == "cifar10" else 1, side, side)
    chunks = bench_chunks(chosen, shape, networks, seed)
    runs = [run for chunk in chunks for run in chunk]
    stacks = [run.architecture for run in runs if isinstance(run.architecture, Stack)]
    if not stacks:
        raise UserError(f"recipe {recipe!r} is not measured: choose small-cnn-zoo or wild-park")
    count = chosen.batch_size * steps
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator).contiguous(memory_format=torch.channels_last)
    images = TrainingImages(
        x, torch.randint(0, 10, (count,), generator=generator), x[:1], torch.zeros(1, dtype=torch.int64)
    )
    course = Course(1, (), chosen.batch_size, seed)
    keep_buffers()
    with threads(thread_count) as workers, progress("bench bulk", 3) as bar:
        few = runs[: max(2, networks // 8)]
        loop_threads = _faster(workers, few[:1], images, course, chosen)

        def alone() -> None:
            with threads(loop_threads):
                train_one_by_one(few, images, course, chosen, seed)

        works: list[Callable[[], object]] = [
            lambda: train_in_bulk(chunks, images, course, chosen, seed, workers),
            alone,
            lambda: train_by_vmap(chunks[0], images, course, chosen, seed),
        ]
        bar.advance()
        times = in_turn(works, rounds)
        bar.advance()
        rate = matmul_rate()
    per_run = [
        [value / size for value in found]
        for found, size in zip(times, (len(runs), len(few), len(chunks[0])), strict=True)
    ]
    ours, slow, vmapped = per_run
    epochs = [[count / value / EPOCH for value in found] for found in per_run]
    flops = sum(step_flops(stack, shape) for stack in stacks) / len(stacks) * count
    variant = f"{networks} of {recipe}, {side}x{side}, batch {chosen.batch_size}, threads={workers}"
    rows = [
        row("bulk training", "speedup", [b / a for a, b in zip(ours, slow, strict=True)], variant),
        row("bulk training", "network_epochs_per_second", epochs[0], variant),
        row("bulk training", "matmul_share", [flops / a / rate for a in ours], variant, matmul_gflops=rate / 1e9),
        row("torch.func", "speedup", [b / a for a, b in zip(vmapped, slow, strict=True)], variant),
        row("torch.func", "network_epochs_per_second", epochs[2], variant),
        row("one by one", "network_epochs_per_second", epochs[1], f"{variant}, its own {loop_threads}"),
    ]
    rows[0]["median"], rows[3]["median"] = median_ratio(slow, ours), median_ratio(slow, vmapped)
    if out is not None:
        dataset = {"zoo": "random images", "steps": steps}
        write_results(out, "bulk", command, dataset, rows, threads=workers)
    return rows


def bench_chunks(recipe: ClassifierRecipe, shape: tuple[int, int, int], networks: int, seed: int) -> list[list[Run]]:
    """The first ``networks`` runs of a recipe that see all images, in the chunks in which they are trained."""
    drawn = (run for run in recipe.runs(seed, 64 * networks, shape, 10) if run.hyper.train_fraction == 1)
    chunks, left = [], networks
    for chunk in recipe.chunks(drawn):
        if left:
            chunks.append(chunk[:left])
            left -= len(chunks[-1])
    return chunks


def train_in_bulk(
    chunks: Sequence[Sequence[Run]],
    images: TrainingImages,
    course: Course,
    recipe: ClassifierRecipe,
    seed: int,
    workers: int,
) -> None:
    stop = threading.Event()

    def one(runs: Sequence[Run]) -> None:
        torch.set_num_threads(1)
        states = [recipe.initial(run, seed) for run in runs]
        start = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        for _ in train_chunk(runs, start, images, course, None, stop):
            pass

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, chunks))


def module_of(run: Run) -> nn.Module:
    """The network as a plain ``nn.Sequential`` with its dropout, where it has no residuals; else its stack's module."""
    stack = run.architecture
    if not isinstance(stack, Stack) or any(layer.residual >= 0 for layer in stack.layers):
        return run.architecture.module()
    parts: list[nn.Module] = []
    for number, layer in enumerate(stack.layers):
        if layer.kernel:
            kernel = (layer.kernel[0], layer.kernel[1])
            parts.append(nn.Conv2d(layer.inputs, layer.outputs, kernel, layer.stride, layer.padding))
        else:
            parts.append(nn.Linear(layer.inputs, layer.outputs))
        if number < len(stack.layers) - 1:
            parts.append(layer.activation.module())
            if number and run.hyper.dropout:
                parts.append(nn.Dropout(run.hyper.dropout))
        if layer.pool == "global":
            parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts)


def optimizer_of(run: Run, module: nn.Module) -> torch.optim.Optimizer:
    hyper = run.hyper
    options: dict[str, Any] = {"lr": hyper.learning_rate, "weight_decay": hyper.weight_decay}
    if hyper.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), momentum=0.9, **options)
    if hyper.optimizer == "rmsprop":
        return torch.optim.RMSprop(module.parameters(), alpha=0.9, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[hyper.optimizer](module.parameters(), **options)


def train_one_by_one(
    runs: Sequence[Run], images: TrainingImages, course: Course, recipe: ClassifierRecipe, seed: int
) -> list[nn.Module]:
    """The obvious way; the trained modules."""
    found = []
    for run in runs:
        module = module_of(run)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), recipe.initial(run, seed).values(), strict=True):
                parameter.copy_(value)
        optimizer = optimizer_of(run, module)
        for picked in batch_order(len(images.train), 1.0, course.seed, 0).split(course.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(module(images.train[picked]), images.train_labels[picked]).backward()
            optimizer.step()
        found.append(module)
    return found


def train_by_vmap(
    runs: Sequence[Run], images: TrainingImages, course: Course, recipe: ClassifierRecipe, seed: int
) -> dict[str, Tensor]:
    """``torch.func``'s way: one functional call mapped over stacked parameters, Adam on them; without dropout."""
    module = module_of(replace(runs[0], hyper=replace(runs[0].hyper, dropout=0.0)))
    states = [list(recipe.initial(run, seed).values()) for run in runs]
    names = [name for name, _ in module.named_parameters()]
    params = {
        name: torch.stack(values).requires_grad_()
        for name, values in zip(names, zip(*states, strict=True), strict=True)
    }
    rates = torch.tensor([run.hyper.learning_rate for run in runs])
    optimizer = torch.optim.Adam(list(params.values()), lr=float(rates.mean()))

    def logits(params: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, params, (x,))
        return found

    mapped = torch.func.vmap(logits, in_dims=(0, None))
    for picked in batch_order(len(images.train), 1.0, course.seed, 0).split(course.batch_size):
        optimizer.zero_grad()
        per_network(mapped(params, images.train[picked]), images.train_labels[picked]).sum().backward()
        optimizer.step()
    return params


def step_flops(stack: Stack, shape: tuple[int, int, int]) -> int:
    """FLOPs of convolutions and linear layers for one image of ``shape``: forward, gradient of the weights and, but for the
    first layer, of the inputs."""
    written = [*map_sizes(stack, shape), *(layer.outputs for layer in stack.layers if not layer.kernel)]
    products = [size * layer.fan_in for size, layer in zip(written, stack.layers, strict=True)]
    return 2 * (3 * sum(products) - products[0])


def _faster(count: int, runs: Sequence[Run], images: TrainingImages, course: Course, recipe: ClassifierRecipe) -> int:
    """The number of threads, 1 or ``count``, at which one by one is faster."""
    few = replace(
        images, train=images.train[: 8 * course.batch_size], train_labels=images.train_labels[: 8 * course.batch_size]
    )
    times = {}
    for candidate in {1, count}:
        with threads(candidate):
            train_one_by_one(runs, few, course, recipe, 0)
            times[candidate] = min(seconds(lambda: train_one_by_one(runs, few, course, recipe, 0)) for _ in range(3))
    return min(times, key=lambda candidate: times[candidate])
