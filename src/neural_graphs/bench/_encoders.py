"""The ablation of encoders: every one on the same zoo, trained alike, with equal budgets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neural_graphs.bench._classification import Method, run_methods
from neural_graphs.bench._results import Row
from neural_graphs.errors import UserError
from neural_graphs.tasks import TrainConfig, load_config

BASE = (
    "inr-cpu",
    "optimizer.epochs=2",
    "optimizer.batch_size=32",
    "optimizer.warmup_steps=50",
    "limit_train=8000",
    "augment={}",
)
"""Preset and settings that all methods share."""

_GNN: Mapping[str, Any] = {"name": "ng-gnn", "width": 32, "layers": 4, "sigma": 1.0, "fourier": 32}
_TRANSFORMER: Mapping[str, Any] = {
    "name": "ng-t",
    "width": 32,
    "edge_width": 16,
    "attention_width": 32,
    "hidden": 64,
    "edge_hidden": 32,
    "layers": 4,
    "heads": 4,
    "sigma": 1.0,
    "fourier": 32,
}
_SCALE: Mapping[str, Any] = {"name": "scale-gmn", "width": 32, "layers": 4}

ENCODERS: dict[str, tuple[str, str, Mapping[str, Any], Sequence[str]]] = {
    "mlp": ("mlp", "", {"name": "mlp"}, ("optimizer.lr=1e-3",)),
    "ng-gnn": ("ng-gnn", "probes=0", {**_GNN, "probes": 0}, ()),
    "ng-gnn-64": ("ng-gnn", "probes=64", {**_GNN, "probes": 64}, ()),
    "ng-t-all": ("ng-t", "all pairs, probes=0", {**_TRANSFORMER, "attention": "all", "probes": 0}, ()),
    "ng-t-all-64": ("ng-t", "all pairs, probes=64", {**_TRANSFORMER, "attention": "all", "probes": 64}, ()),
    "ng-t-blocks": ("ng-t", "blocks, probes=0", {**_TRANSFORMER, "attention": "blocks", "probes": 0}, ()),
    "ng-t-blocks-64": ("ng-t", "blocks, probes=64", {**_TRANSFORMER, "attention": "blocks", "probes": 64}, ()),
    "scale-gmn": ("scale-gmn", "forward", dict(_SCALE), ()),
    "scale-gmn-b": ("scale-gmn", "bidirectional", {**_SCALE, "bidirectional": True}, ()),
    "probing": ("probing", "outputs, 64 probes", {"name": "probing", "probes": 64}, ()),
}
"""Name -> method, variant, encoder, and settings of its own (learning rates were chosen on validation accuracy)."""


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
    if unknown := [name for name in methods if name not in ENCODERS]:
        raise UserError(f"unknown method {unknown[0]!r}: choose among {', '.join(ENCODERS)}")
    plan = []
    for name in methods:
        title, variant, encoder, own = ENCODERS[name]
        configs = tuple(_config(name, encoder, own, seed, zoo, runs, overrides) for seed in seeds)
        plan.append(Method(title, variant, configs))
    return run_methods(zoo, plan, out, Path(out).stem, command, jobs)


def _config(
    name: str,
    encoder: Mapping[str, Any],
    own: Sequence[str],
    seed: int,
    zoo: str | os.PathLike[str],
    runs: str | os.PathLike[str],
    overrides: Sequence[str],
) -> TrainConfig:
    preset, *shared = BASE
    settings = [*shared, *own, "threads=1", *overrides, f"seed={seed}", f"zoo={os.fspath(zoo)}"]
    config = load_config(preset, settings)
    return replace(config, encoder=dict(encoder), out=str(Path(runs) / f"{name}-seed{seed}"))
