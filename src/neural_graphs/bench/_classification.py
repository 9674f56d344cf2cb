"""The INR classification experiment: methods by seeds on one zoo, resumable, one results file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from neural_graphs._io import read_json
from neural_graphs._progress import progress
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import RunError, UserError
from neural_graphs.tasks import TrainConfig, load_config, train
from neural_graphs.tasks._config import from_dict, to_dict
from neural_graphs.tasks._run import read_config
from neural_graphs.zoo import Zoo

METHODS = ("inr-mlp", "inr-cpu", "inr-cpu-probes")
"""Presets: the raw-weight MLP, NG-GNN without probes, NG-GNN with 64."""


def inr_classification(
    zoo: str | os.PathLike[str],
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/inr-mnist.json",
    runs: str | os.PathLike[str] = "runs/inr-mnist",
    overrides: Sequence[str] = (),
    experiment: str | None = None,
    command: str = "",
) -> list[Row]:
    """Train every method with every seed on ``zoo`` and write test accuracies to ``out``.

    ``methods`` are presets or YAML files of ``train``, ``overrides`` (``optimizer.epochs=20``) hold for all. Each run has a
    folder under ``runs`` and a process of its own, so that its memory is its own; finished runs are not repeated, a broken
    one goes on where it was. The model is chosen on validation and tested once. After every run the file is rewritten, a
    row per method: ``test_accuracy`` and ``val_accuracy`` (values by seed), ``parameters``, ``seconds`` (mean of the
    training times), ``peak_memory_mb`` (largest), ``epochs``. Raises ``UserError`` when a run folder holds another
    configuration, ``RunError`` when a run fails.
    """
    splits = Zoo.load(zoo)
    rows: list[Row] = []
    with progress("inr classification", len(methods) * len(seeds)) as bar:
        for method in methods:
            configs = [_config(method, seed, zoo, runs, overrides) for seed in seeds]
            found = [_metrics(config) for config in configs]
            bar.advance(sum(metrics is not None for metrics in found))
            missing = [k for k, metrics in enumerate(found) if metrics is None]
            for k in missing or [-1]:
                if k >= 0:
                    bar.describe(Path(configs[k].out).name)
                    found[k] = _train_apart(configs[k])
                    bar.advance()
                current = [*rows, *_rows(configs, found)]
                config = configs[0]
                write_results(
                    out,
                    experiment or Path(out).stem,
                    command,
                    _dataset(splits, config),
                    current,
                    threads=config.threads or None,
                    device="cuda" if torch.cuda.is_available() and config.device == "auto" else "cpu",
                )
            rows = current
    return rows


def _config(
    method: str, seed: int, zoo: str | os.PathLike[str], runs: str | os.PathLike[str], overrides: Sequence[str]
) -> TrainConfig:
    config = load_config(method, [*overrides, f"seed={seed}", f"zoo={os.fspath(zoo)}"])
    return replace(config, out=str(Path(runs) / f"{Path(method).stem}-seed{seed}"))


def _rows(configs: Sequence[TrainConfig], found: Sequence[dict[str, Any] | None]) -> list[Row]:
    """Rows of one method from the runs that are finished."""
    finished = [(config, metrics) for config, metrics in zip(configs, found, strict=True) if metrics is not None]
    metrics = [entry for _, entry in finished]
    config = configs[0]
    encoder = config.encoder
    about = {
        "parameters": metrics[0]["parameters"],
        "seconds": sum(m["seconds"] for m in metrics) / len(metrics),
        "peak_memory_mb": max(m["peak_memory_mb"] for m in metrics),
        "epochs": config.optimizer.epochs,
        "seeds": [config.seed for config, _ in finished],
        "encoder": dict(encoder),
    }
    variant = f"probes={encoder['probes']}" if "probes" in encoder else ""
    return [
        row(encoder["name"], metric, [m[metric] for m in metrics], variant, **about)
        for metric in ("test_accuracy", "val_accuracy")
        if all(m.get(metric) is not None for m in metrics)
    ]


def _dataset(zoo: Zoo, config: TrainConfig) -> dict[str, Any]:
    recipe = zoo.meta.get("recipe") or {}
    train_size = len(zoo.train) if config.limit_train is None else min(config.limit_train, len(zoo.train))
    return {
        "zoo": zoo.meta.get("name", zoo.path.name),
        "train": train_size,
        "val": len(zoo.val),
        "test": len(zoo.test),
        "recipe": recipe.get("name", "") if isinstance(recipe, dict) else str(recipe),
    }


def _metrics(config: TrainConfig) -> dict[str, Any] | None:
    """The result of a finished run, or None."""
    folder = Path(config.out)
    if not (folder / "metrics.json").is_file():
        return None
    before = read_config(folder)
    if replace(before, zoo=config.zoo, out=config.out, threads=config.threads, log=config.log) != config:
        raise UserError(f"{folder} holds a run of another configuration: give another folder for runs, or delete it")
    found = read_json(folder / "metrics.json")
    if not isinstance(found, dict):
        raise UserError(f"{folder / 'metrics.json'} is broken: delete {folder} to repeat that run")
    return found


def _train_apart(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training, in a fresh process; its progress shows on stderr."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", f"from {__name__} import _train_job; _train_job()"]
    found = subprocess.run(
        command, input=json.dumps(to_dict(config)), text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if found.returncode:
        raise RunError(f"training {config.out} failed (exit code {found.returncode}): its own message is above")
    metrics = _metrics(config)
    assert metrics is not None, "a finished run has its metrics"
    return metrics


def _train_job() -> None:
    try:
        train(from_dict(json.load(sys.stdin)), resume=True)
    except (UserError, RunError) as error:
        sys.exit(f"error: {error}")
