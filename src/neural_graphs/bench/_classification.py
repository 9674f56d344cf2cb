"""Classification experiments: methods by seeds on one zoo, resumable, one results file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neural_graphs._io import read_json
from neural_graphs._progress import progress
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import RunError, UserError
from neural_graphs.tasks import TrainConfig, load_config, train
from neural_graphs.tasks._config import from_dict, to_dict
from neural_graphs.tasks._evaluation import HEADLINE
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
    plan = [Method.of_configs([_config(method, seed, zoo, runs, overrides) for seed in seeds]) for method in methods]
    return run_methods(zoo, plan, out, experiment or Path(out).stem, command)


@dataclass(frozen=True)
class Method:
    """One line of a results table: its name and variant there, and a configuration per seed."""

    name: str
    variant: str
    configs: tuple[TrainConfig, ...]

    @classmethod
    def of_configs(cls, configs: Sequence[TrainConfig]) -> Method:
        """Named by the encoder."""
        encoder = configs[0].encoder
        variant = f"probes={encoder['probes']}" if "probes" in encoder else ""
        return cls(encoder["name"], variant, tuple(configs))


def run_methods(
    zoo: str | os.PathLike[str],
    methods: Sequence[Method],
    out: str | os.PathLike[str],
    experiment: str,
    command: str,
    jobs: int = 1,
    rows_of: RowsOf | None = None,
    further: Sequence[Row] = (),
) -> list[Row]:
    """Train every configuration of every method, ``jobs`` at a time, and write the rows after each.

    A run has a process of its own; finished ones are not repeated, broken ones go on. ``rows_of`` makes the rows of a method
    from the metrics of its finished runs, by run folder; ``further`` rows are written with them. Raises as
    ``inr_classification``.
    """
    rows_of = rows_of or _rows
    splits = Zoo.load(zoo)
    configs = [config for method in methods for config in method.configs]
    found = {config.out: metrics for config in configs if (metrics := _metrics(config)) is not None}
    missing = [config for config in configs if config.out not in found]

    def write() -> list[Row]:
        rows = [entry for method in methods for entry in rows_of(method, found)] + list(further)
        rows = list(
            {(r["method"], r["variant"], r["metric"]): r for r in rows}.values()
        )  # references come with every method
        if rows:
            config = configs[0]
            write_results(
                out,
                experiment,
                command,
                _dataset(splits, config),
                rows,
                threads=config.threads or None,
                device="cuda" if torch.cuda.is_available() and config.device == "auto" else "cpu",
            )
        return rows

    rows = write()
    with progress(experiment, len(configs)) as bar, ThreadPoolExecutor(jobs) as pool:
        bar.advance(len(configs) - len(missing))
        waiting = {pool.submit(_train_apart, config, jobs > 1): config for config in missing}
        try:
            for done in as_completed(waiting):
                config = waiting[done]
                found[config.out] = done.result()
                bar.advance()
                headline = HEADLINE[config.task]
                bar.describe(
                    f"{Path(config.out).name}: {headline} {found[config.out].get(f'test_{headline}') or 0:.3f}"
                )
                rows = write()
        finally:  # after a failure or Ctrl-C: begin nothing more; what runs saves its state
            pool.shutdown(wait=False, cancel_futures=True)
    return rows


RowsOf = Callable[[Method, Mapping[str, dict[str, Any]]], list[Row]]


def _config(
    method: str, seed: int, zoo: str | os.PathLike[str], runs: str | os.PathLike[str], overrides: Sequence[str]
) -> TrainConfig:
    config = load_config(method, [*overrides, f"seed={seed}", f"zoo={os.fspath(zoo)}"])
    return replace(config, out=str(Path(runs) / f"{Path(method).stem}-seed{seed}"))


def _rows(method: Method, found: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Rows of one method from the runs that are finished."""
    finished = [config for config in method.configs if config.out in found]
    if not finished:
        return []
    metrics = [found[config.out] for config in finished]
    about = about_runs(finished, metrics)
    rows = [
        row(method.name, metric, [m[metric] for m in metrics], method.variant, **about)
        for metric in ("test_accuracy", "val_accuracy")
        if all(m.get(metric) is not None for m in metrics)
    ]
    return rows + _rows_by_architecture(method, metrics)


def about_runs(finished: Sequence[TrainConfig], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a row says of the runs behind it."""
    epochs = finished[0].optimizer.epochs
    seconds = sum(m["seconds"] for m in metrics) / len(metrics)
    return {
        "parameters": metrics[0]["parameters"],
        "seconds": seconds,
        "seconds_per_epoch": seconds / epochs,
        "peak_memory_mb": max(m["peak_memory_mb"] for m in metrics),
        "epochs": epochs,
        "seeds": [config.seed for config in finished],
        "encoder": dict(finished[0].encoder),
    }


def _rows_by_architecture(method: Method, metrics: Sequence[dict[str, Any]]) -> list[Row]:
    """Where the test split holds several architectures: accuracy on each, and on all that were and were not trained on."""
    tables = [m.get("per_architecture") or {} for m in metrics]
    if len(tables[0]) < 2:
        return []

    def entry(names: Sequence[str], where: str) -> Row:
        counts = [tables[0][name]["n"] for name in names]
        values = [
            sum(n * table[name]["accuracy"] for n, name in zip(counts, names, strict=True)) / sum(counts)
            for table in tables
        ]
        variant = ", ".join(filter(None, (method.variant, where)))
        return row(method.name, "test_accuracy", values, variant, networks=sum(counts))

    seen = [name for name, about in tables[0].items() if about["seen"]]
    unseen = [name for name in tables[0] if name not in seen]
    rows = [entry(seen, f"{len(seen)} architectures trained on")] if seen else []
    rows += [entry(unseen, f"{len(unseen)} architectures never seen")] if unseen else []
    rows += [entry([name], name) for name in seen]
    return rows + [entry([name], f"{name}, never seen") for name in unseen]


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


def _train_apart(config: TrainConfig, quiet: bool = False) -> dict[str, Any]:
    """Train, or go on training, in a fresh process; unless ``quiet``, its progress shows on stderr."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path} | ({"NEURAL_GRAPHS_NO_PROGRESS": "1"} if quiet else {})
    command = [sys.executable, "-c", f"from {__name__} import _train_job; _train_job()"]
    found = subprocess.run(command, input=json.dumps(to_dict(config)), text=True, env=environment)
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
    except KeyboardInterrupt as stop:  # its message says that nothing is lost
        sys.exit(str(stop))
