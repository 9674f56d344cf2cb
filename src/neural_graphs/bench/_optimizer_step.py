"""What a step of the learned optimizer costs, beside ``torch.optim.Adam``'s on the same network."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs._progress import progress
from neural_graphs.bench._machine import in_turn, median_ratio, seconds, threads
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import UserError
from neural_graphs.optim import LearnedOptimizer, UpdateRule, create_rule, list_weights, load_rule

RULES = ("graph", "lstm", "ff")
"""Untrained rules, which cost what trained ones do."""

LONG = 0.1
"""Seconds of a measurement."""


def optimizer_steps(
    out: str | os.PathLike[str] | None = "results/optimiser-step.json",
    *,
    networks: Sequence[str] = ("mlp", "resnet18"),
    rules: Sequence[str] | None = None,
    every: Sequence[int] = (1, 2, 5, 10),
    rounds: int = 7,
    thread_counts: Sequence[int] = (1, 2),
    seed: int = 0,
    command: str = "neural-graphs bench optimiser-step",
) -> list[Row]:
    """Time ``LearnedOptimizer.step`` and ``torch.optim.Adam.step`` (both as they come) in turn, on equal gradients.

    Networks: ``mlp`` is 784-256-10, ``resnet18`` that of He et al. (2016) for images of 32 x 32 (a 3 x 3 stem, no pooling).
    ``rules`` are names of untrained rules or what ``load_rule`` takes; default: ``RULES`` and all shipped weights. The graph
    is asked every k-th step, k of ``every``; rules without a graph are measured once. A measurement is the mean of as many
    steps as take a tenth of a second, a multiple of k, so that what else the machine does hits short and long steps alike.

    Rows (method: the rule, variant: network, threads, k): ``cost_ratio`` (seconds over Adam's, round by round),
    ``step_seconds``, and ``training_ratio``: the same with forward and backward pass on a batch of 128 (``resnet18``: 16)
    added to both. Written to ``out`` unless it is None. A CPU benchmark; a busy machine moves both sides of the ratios.
    """
    if unknown := [name for name in networks if name not in NETWORKS]:
        raise UserError(f"no network {unknown[0]!r} to time: choose among {', '.join(NETWORKS)}")
    made = {name: _rule(name) for name in (rules or (*RULES, *list_weights()))}
    plans = [
        (name, rule, k) for name, rule in made.items() for k in (every if rule.config["name"] == "graph" else (1,))
    ]
    rows: list[Row] = []
    with progress("bench optimiser-step", len(networks) * len(thread_counts)) as bar:
        for network in networks:
            torch.manual_seed(seed)
            model, shape, batch = NETWORKS[network]()
            for count in thread_counts:
                with threads(count):
                    rows += _measure(network, model, shape, batch, plans, rounds, count)
                bar.advance()
    if out is not None:
        dataset = {"data": "random", "networks": ", ".join(networks)}
        write_results(out, "optimiser-step", command, dataset, rows, threads=max(thread_counts))
    return rows


def _measure(
    network: str,
    model: nn.Module,
    shape: tuple[int, ...],
    batch: int,
    plans: Sequence[tuple[str, UpdateRule, int]],
    rounds: int,
    count: int,
) -> list[Row]:
    """All rules on one network, on as many threads as are set."""
    x, labels = torch.randn(batch, *shape), torch.arange(batch) % 10

    def training() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        F.cross_entropy(model(x), labels).backward()

    training()
    works = [_repeated(training), _repeated(_adam(_copy(model)).step)]
    for _, rule, k in plans:
        twin = _copy(model)
        works.append(_repeated(LearnedOptimizer(twin, rule, x[:2], lr=1e-6, every=k).step, k))
    taken = in_turn([work for work, _ in works], rounds)
    passes, adam, *ours = ([value / often for value in own] for own, (_, often) in zip(taken, works, strict=True))
    rows = [row("adam", "step_seconds", adam, f"{network} threads={count}")]
    for (name, _, k), own in zip(plans, ours, strict=True):
        variant = f"{network} threads={count} k={k}"
        numel = sum(parameter.numel() for parameter in model.parameters())
        rows.append(row(name, "cost_ratio", [o / a for o, a in zip(own, adam, strict=True)], variant, parameters=numel))
        rows[-1]["median"] = median_ratio(own, adam)
        whole = [(p + o) / (p + a) for p, o, a in zip(passes, own, adam, strict=True)]
        rows.append(row(name, "training_ratio", whole, variant))
        rows.append(row(name, "step_seconds", own, variant))
    return rows


def _rule(name: str) -> UpdateRule:
    return create_rule(name) if name in RULES else load_rule(name)[0]


def _copy(model: nn.Module) -> nn.Module:
    """With gradients of its own."""
    twin = copy.deepcopy(model)
    for own, other in zip(twin.parameters(), model.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    return twin


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-6)


def _repeated(work: Callable[[], Any], multiple: int = 1) -> tuple[Callable[[], None], int]:
    """``work`` as many times as take a while, a multiple of ``multiple``; and how many times that is."""
    work()
    taken = seconds(work)
    count = multiple * math.ceil(LONG / taken / multiple)

    def run() -> None:
        for _ in range(count):
            work()

    return run, count


class ResNet18(nn.Module):
    """He et al. (2016) for small images: eight blocks of two 3 x 3 convolutions, 64 to 512 channels; 11.2 M parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.ModuleList(_Block(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inside + self.shortcut(x))


def _mlp() -> tuple[nn.Module, tuple[int, ...], int]:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), (784,), 128


def _resnet() -> tuple[nn.Module, tuple[int, ...], int]:
    return ResNet18(), (3, 32, 32), 16


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...], int]]] = {"mlp": _mlp, "resnet18": _resnet}
"""Makes a network; the shape of its inputs, and of how many a batch is."""
