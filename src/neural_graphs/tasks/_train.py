"""A training run from configuration to test figures, and the evaluation of a finished one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neural_graphs.errors import UserError
from neural_graphs.nn import Encoder, create_encoder
from neural_graphs.tasks._adapt_images import adapt_images, check_corruptions
from neural_graphs.tasks._adapter import Adapter
from neural_graphs.tasks._architecture import encoder_arguments
from neural_graphs.tasks._classifier import Classifier
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._data import having, training_networks
from neural_graphs.tasks._decoder import check_images
from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._evaluation import HEADLINE, report, summary
from neural_graphs.tasks._fit import fit
from neural_graphs.tasks._model import Model, load_model
from neural_graphs.tasks._regressor import Regressor
from neural_graphs.tasks._run import RunFolder, read_config
from neural_graphs.tasks._runtime import accelerator, threads
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo._store import Zoo, ZooSplit


@dataclass(frozen=True)
class TrainResult:
    """What a run found. Figures are of the model that was best on validation; those of the test split are None where the
    zoo has none, as are those of another task.

    ``metrics`` is what ``metrics.json`` holds; ``history`` has one entry per validation, as in ``log.jsonl``.
    """

    run_dir: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def best_epoch(self) -> float:
        return float(self.metrics["best_epoch"])

    @property
    def val_accuracy(self) -> float | None:
        return self.metrics.get("val_accuracy")

    @property
    def test_accuracy(self) -> float | None:
        return self.metrics.get("test_accuracy")

    @property
    def val_kendall_tau(self) -> float | None:
        return self.metrics.get("val_kendall_tau")

    @property
    def test_kendall_tau(self) -> float | None:
        return self.metrics.get("test_kendall_tau")

    @property
    def test_mse(self) -> float | None:
        return self.metrics.get("test_mse")

    @property
    def seconds(self) -> float:
        """The time spent training."""
        return float(self.metrics["seconds"])

    @property
    def parameters(self) -> int:
        return int(self.metrics["parameters"])

    @property
    def peak_memory_mb(self) -> float:
        return float(self.metrics["peak_memory_mb"])


def train(config: TrainConfig, resume: bool = False, quiet: bool = False) -> TrainResult:
    """Train by ``config`` in the run folder ``config.out``; with ``resume``, go on where a run was broken off.

    The test split is looked at once, at the end, with the best model.

    Raises:
        UserError: unusable configuration, zoo or run folder (see ``RunFolder``).
        RunError: the loss became NaN; the disk is full.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    if not config.zoo:
        raise UserError("no zoo given: set zoo=DIR (make one with `neural-graphs zoo make`)")
    if not config.out:
        raise UserError("no run folder given: set out=DIR")
    zoo = Zoo.load(config.zoo)
    chosen, val = training_networks(config, zoo)
    test = having(zoo.test, config.where)
    model = build(config, zoo, chosen)
    run = _open(config, resume)
    course = fit(model, chosen, val, config, run=run, quiet=quiet)
    assert course.best is not None
    headline = HEADLINE[config.task]
    metrics: dict[str, Any] = {"best_epoch": course.best_epoch, "best_step": course.best_step, "steps": course.step}
    with threads(config.threads):
        metrics |= summary(report(model, val, config), "val_")
        metrics |= {f"test_{headline}": None}
        if len(test):
            found = report(model, test, config)
            metrics |= summary(found, "test_")
            kept = ("confusion", "calibration", "per_architecture", "per_edit", "per_quarter")
            metrics |= {key: found[key] for key in kept if key in found}
    if course.earlier:
        metrics["pretraining"] = {key: course.earlier[-1][key] for key in ("epoch", "step", "train_error", "val_error")}
    metrics |= {
        "networks": {"train": len(chosen), "val": len(val), "test": len(test)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(course.seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
    }
    run.finish(metrics)
    return TrainResult(run.path, metrics, course.history)


def _open(config: TrainConfig, resume: bool) -> RunFolder:
    """The run's folder. The main process opens it and the others wait, or they would find it half made."""
    with accelerator(config.device) as device:
        run = RunFolder(config, resume, main=device.is_main_process)
        device.wait_for_everyone()
    return run


def build(config: TrainConfig, zoo: Zoo, chosen: ZooSplit) -> Model:
    """The untrained model of a run: initial weights by ``config.seed``, statistics of the training networks ``chosen``.

    The whole zoo only says how large its networks are: which kernels and how many inputs and outputs must be readable.
    """
    stacks = list(zoo.architectures.values())
    arguments = encoder_arguments(config.encoder, stacks, config.seed)
    outputs = {stack.num_outputs for stack in stacks}
    if len(outputs) != 1:
        raise UserError("the networks of this zoo have different numbers of outputs, so no one head reads them all")
    create = {"classify": _classifier, "regress": _regressor, "edit": _editor, "adapt": _adapter}[config.task]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        model = create(config, zoo, create_encoder(**arguments), outputs.pop())
    if config.pretrain.epochs or config.reconstruction:
        check_images(chosen.architectures.values())
    model.prepare(chosen, config.label)
    for split in (having(zoo.val, config.where), having(zoo.test, config.where)):
        # architectures and labels that are only tested are refused now, not after the training
        if isinstance(model, Regressor):
            split.targets(config.label, model.bounds)
        if isinstance(model, Editor) and not isinstance(model, Adapter) and len(split):
            edit_targets(split.select(slice(0, 1)), model.edits, config.targets)
        for name in split.architectures:
            model.check_readable(split.batch([int((split.column("architecture") == name).argmax())]).buckets[0])
    return model


def _classifier(config: TrainConfig, zoo: Zoo, encoder: Encoder, outputs: int) -> Model:
    classes = int(zoo.all.labels(config.label).max()) + 1
    names = (zoo.meta.get("source") or {}).get("classes") if config.label == "label" else None
    return Classifier(
        encoder,
        classes,
        outputs,
        class_names=names if names and len(names) == classes else None,
        head=config.head,
    )


def _regressor(config: TrainConfig, zoo: Zoo, encoder: Encoder, outputs: int) -> Model:
    return Regressor(encoder, outputs, bounds=config.bounds, loss=config.loss, head=config.head, target=config.label)


def _editor(config: TrainConfig, zoo: Zoo, encoder: Encoder, outputs: int) -> Model:
    source = zoo.meta.get("source") or {}
    low, high = (zoo.meta.get("recipe") or {}).get("pixel_range", (0.0, 1.0))
    if not source.get("height") or not source.get("width"):
        raise UserError(f"{zoo.path} does not say how large its networks' images are, so no editor can learn from it")
    return Editor(
        encoder,
        outputs,
        edits=config.edits,
        copies=config.copies,
        size=(source["height"], source["width"]),
        pixel_range=(low, high),
    )


def _adapter(config: TrainConfig, zoo: Zoo, encoder: Encoder, outputs: int) -> Model:
    check_corruptions(config.edits)
    adapt_images(zoo)  # refused before anything is trained
    return Adapter(encoder, outputs, edits=config.edits, copies=config.copies)


def evaluate(
    run_dir: str | os.PathLike[str],
    split: str = "test",
    zoo: str | os.PathLike[str] | None = None,
    where: Mapping[str, Any] | None = None,
    refit: bool = True,
) -> dict[str, Any]:
    """Score a run's best model on a split of its zoo, or of another one.

    ``where`` chooses networks by their columns, as in ``TrainConfig``; by default as the run did.

    Returns ``task``, ``n``, ``split``, ``zoo`` and, of a classifier, ``accuracy``, ``loss`` (cross-entropy), ``confusion``
    (``confusion[t][p]``: class t taken for p), ``class_names`` and ``per_architecture``: accuracy and n of each, and whether
    the model was trained on networks of it (``seen``). Of a regressor ``target``, ``bounds``, ``kendall_tau``, ``r2``,
    ``mae``, ``rmse``, ``interval_coverage``, ``interval_width``, ``calibration`` (bins of equal count: ``n``, mean
    ``predicted``, mean and ``std`` of ``true``), ``per_architecture``, and lists with an entry per network: ``network``,
    ``true``, ``predicted``, ``lower``, ``upper``, ``novelty``, ``architectures``. Of an editor what ``edit_report`` says,
    with ``refit`` beside fitting every network anew; ``edits``, ``copies``, ``targets``.

    Raises:
        UserError: no run, model or zoo there; networks that the model cannot read; labels that it cannot give.
    """
    folder = Path(run_dir)
    config = read_config(folder)
    model = load_model(folder)
    path = os.fspath(zoo) if zoo is not None else config.zoo
    chosen = having(Zoo.load(path).split(split), config.where if where is None else where)
    if not len(chosen):
        raise UserError(f"{path} has no {split} networks")
    with threads(config.threads):
        found = report(model, chosen, config, refit)
    about: dict[str, Any] = {}
    if isinstance(model, Classifier):
        about = {"class_names": list(model.class_names)}
    elif isinstance(model, Regressor):
        about = {"target": model.target, "bounds": list(model.bounds)}
    elif isinstance(model, Editor):
        about = {"edits": list(model.edits), "copies": model.copies, "targets": config.targets}
    return {**found, "task": model.task, "n": len(chosen), "split": split, "zoo": path, **about}


def peak_memory_mb() -> float:
    """The most memory this process has held (resident), or that was allocated on the GPU if one is used; else 0."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
    return 0.0
