"""Ablations: encoders, and options of training, on the same zoo, trained alike, with equal budgets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from neural_graphs.bench._classification import Method, run_methods
from neural_graphs.bench._results import Row
from neural_graphs.errors import UserError
from neural_graphs.tasks import load_config

BASE = (
    "inr-cpu",
    "optimizer.epochs=3",
    "optimizer.warmup_steps=50",
    "limit_train=8000",
    "augment={}",
)
"""Preset and settings that all methods share."""

GNN: Mapping[str, Any] = {"name": "ng-gnn", "width": 32, "layers": 3, "sigma": 1.0, "fourier": 32}
TRANSFORMER: Mapping[str, Any] = {
    "name": "ng-t",
    "width": 32,
    "edge_width": 16,
    "attention_width": 32,
    "hidden": 64,
    "edge_hidden": 32,
    "layers": 3,
    "heads": 4,
    "sigma": 1.0,
    "fourier": 32,
}
SCALE: Mapping[str, Any] = {"name": "scale-gmn", "width": 32, "layers": 3}


@dataclass(frozen=True)
class Entry:
    """A line of an ablation: method and variant as the table shows them, the encoder, and settings of its own."""

    method: str
    variant: str
    encoder: Mapping[str, Any]
    settings: Sequence[str] = ()


_PROBING = {"name": "probing", "probes": 64}

ENCODERS: dict[str, Entry] = {
    "mlp": Entry("mlp", "", {"name": "mlp"}, ("optimizer.lr=1e-3",)),
    "ng-gnn": Entry("ng-gnn", "probes=0", {**GNN, "probes": 0}),
    "ng-gnn-64": Entry("ng-gnn", "probes=64", {**GNN, "probes": 64}),
    "ng-t-all": Entry("ng-t", "all pairs, probes=0", {**TRANSFORMER, "attention": "all", "probes": 0}),
    "ng-t-all-64": Entry("ng-t", "all pairs, probes=64", {**TRANSFORMER, "attention": "all", "probes": 64}),
    "ng-t-blocks": Entry("ng-t", "blocks, probes=0", {**TRANSFORMER, "attention": "blocks", "probes": 0}),
    "ng-t-blocks-64": Entry("ng-t", "blocks, probes=64", {**TRANSFORMER, "attention": "blocks", "probes": 64}),
    "scale-gmn": Entry("scale-gmn", "forward", dict(SCALE)),
    "scale-gmn-b": Entry("scale-gmn", "bidirectional", {**SCALE, "bidirectional": True}),
    "scale-gmn-b-64": Entry("scale-gmn", "bidirectional, probes=64", {**SCALE, "bidirectional": True, "probes": 64}),
    "probing": Entry("probing", "outputs, 64 probes", _PROBING),
    "probing-neurons": Entry("probing", "neurons, 64 probes", {**_PROBING, "probe_reads": "neurons"}),
    "combined": Entry(
        "combined", "scale-gmn bidirectional and probing", {
            "name": "combined", "parts": [{**SCALE, "bidirectional": True, "probes": 64}, _PROBING]
        },
    ),
}  # fmt: skip
"""The encoders' ablation by name."""

OPTIONS: dict[str, Sequence[str]] = {
    "none": (),
    "symmetry": ("augment.symmetry=true",),
    "mixup": ("augment.mixup=0.2",),
    "ema": ("optimizer.ema=0.99",),
    "pretrain": ("pretrain.epochs=4",),
    "reconstruction": ("reconstruction=0.3",),
    "image moves": (
        "augment.translation=0.1",
        "augment.rotation=15",
        "augment.scaling=0.1",
        "augment.exact_translation=true",
    ),
    "2 views": ("views=2", "optimizer.epochs=8"),
    "1 view": ("views=1", "optimizer.epochs=16"),
}
"""Options of training by name; all take the same number of steps on labelled networks."""

OPTIONS_BASE = ("optimizer.epochs=4",)
"""The options' ablation is on a zoo with four networks per image."""


def encoder_ablation(
    zoo: str | os.PathLike[str],
    methods: Sequence[str] = tuple(ENCODERS),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/encoders-mnist.json",
    runs: str | os.PathLike[str] = "runs/encoders-mnist",
    overrides: Sequence[str] = (),
    jobs: int = 1,
    command: str = "",
) -> list[Row]:
    """Train every encoder of ``methods`` (names of ``ENCODERS``) with every seed on ``zoo``; test accuracies go to ``out``.

    All have the same networks, epochs, batches, schedule and augmentation (``BASE``, then ``overrides``). ``jobs`` runs at a
    time, one thread each. Rows as those of ``inr_classification``, with ``seconds_per_epoch``. Raises ``UserError`` for an
    unknown method, and as that function.
    """
    chosen = select(methods, ENCODERS)
    plan = [
        configured(name, entry, seeds, runs, *_base(zoo, [*entry.settings, *overrides]))
        for name, entry in chosen.items()
    ]
    return run_methods(zoo, plan, out, Path(out).stem, command, jobs)


def option_ablation(
    zoo: str | os.PathLike[str],
    encoders: Sequence[str] = ("ng-gnn-64", "probing"),
    options: Sequence[str] = tuple(OPTIONS),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/options-mnist.json",
    runs: str | os.PathLike[str] = "runs/options-mnist",
    overrides: Sequence[str] = (),
    jobs: int = 1,
    command: str = "",
) -> list[Row]:
    """Train ``encoders`` (names of ``ENCODERS``) with every option of training (``OPTIONS``) on ``zoo``, otherwise alike.

    Rows, arguments and errors as those of ``encoder_ablation``; the variant is the option.
    """
    plan = []
    for encoder, entry in select(encoders, ENCODERS).items():
        for option, settings in select(options, OPTIONS).items():
            own = [*entry.settings, *OPTIONS_BASE, *settings, *overrides]
            method = configured(f"{encoder}-{option.replace(' ', '-')}", entry, seeds, runs, *_base(zoo, own))
            title = ", ".join(filter(None, (entry.variant, option)))
            plan.append(replace(method, variant=title))
    return run_methods(zoo, plan, out, Path(out).stem, command, jobs)


T = TypeVar("T")


def select(names: Sequence[str], table: Mapping[str, T]) -> dict[str, T]:
    if unknown := [name for name in names if name not in table]:
        raise UserError(f"unknown {unknown[0]!r}: choose among {', '.join(table)}")
    return {name: table[name] for name in names}


def _base(zoo: str | os.PathLike[str], settings: Sequence[str]) -> tuple[str, list[str]]:
    """Preset and settings of a run, from those of its own."""
    preset, *shared = BASE
    return preset, [*shared, "threads=1", *settings, f"zoo={os.fspath(zoo)}"]


def configured(
    name: str,
    entry: Entry,
    seeds: Sequence[int],
    runs: str | os.PathLike[str],
    preset: str,
    settings: Sequence[str],
    hold_out: Sequence[str] = (),
) -> Method:
    """A line of an ablation: ``entry``'s encoder with every seed, by ``settings`` on top of ``preset``, one thread each."""
    configs = []
    for seed in seeds:
        config = load_config(preset, [*settings, f"seed={seed}"])
        out = str(Path(runs) / f"{name}-seed{seed}")
        configs.append(replace(config, encoder=dict(entry.encoder), out=out, hold_out=list(hold_out)))
    return Method(entry.method, entry.variant, tuple(configs))
