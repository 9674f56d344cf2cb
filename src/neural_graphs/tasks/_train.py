"""A training run from configuration to test accuracy, and the evaluation of a finished one."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neural_graphs.errors import UserError
from neural_graphs.nn import create_encoder
from neural_graphs.tasks._architecture import encoder_arguments
from neural_graphs.tasks._classifier import Classifier
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._data import by_architecture, training_networks
from neural_graphs.tasks._decoder import check_images
from neural_graphs.tasks._fit import fit
from neural_graphs.tasks._metrics import score
from neural_graphs.tasks._run import RunFolder, read_config
from neural_graphs.tasks._runtime import accelerator, threads
from neural_graphs.zoo._store import Zoo, ZooSplit


@dataclass(frozen=True)
class TrainResult:
    """Accuracies are of the model that was best on validation; ``test_accuracy`` is None where the zoo has no test split.

    ``history`` has one entry per validation, as in ``log.jsonl``; ``seconds`` is the time spent training.
    """

    run_dir: Path
    best_epoch: float
    val_accuracy: float
    test_accuracy: float | None
    seconds: float
    history: list[dict[str, Any]]
    parameters: int
    peak_memory_mb: float


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
    model = build(config, zoo, chosen)
    run = _open(config, resume)
    course = fit(model, chosen, val, config, run=run, quiet=quiet)
    assert course.best is not None
    metrics: dict[str, Any] = {
        "best_epoch": course.best_epoch,
        "best_step": course.best_step,
        "steps": course.step,
        "val_accuracy": course.best[0],
        "val_loss": -course.best[1],
        "test_accuracy": None,
        "test_loss": None,
    }
    if len(zoo.test):
        labels = zoo.test.labels(config.label)
        with threads(config.threads):
            logits = model.logits(zoo.test)
        scores = score(logits, labels)
        metrics |= {"test_accuracy": scores.accuracy, "test_loss": scores.loss, "confusion": scores.confusion}
        metrics["per_architecture"] = by_architecture(zoo.test, logits.argmax(1) == labels, model.architectures)
    if course.earlier:
        metrics["pretraining"] = {key: course.earlier[-1][key] for key in ("epoch", "step", "train_error", "val_error")}
    parameters = sum(p.numel() for p in model.parameters())
    metrics |= {
        "networks": {"train": len(chosen), "val": len(val), "test": len(zoo.test)},
        "parameters": parameters,
        "seconds": round(course.seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
    }
    run.finish(metrics)
    return TrainResult(
        run_dir=run.path,
        best_epoch=course.best_epoch,
        val_accuracy=course.best[0],
        test_accuracy=metrics["test_accuracy"],
        seconds=course.seconds,
        history=course.history,
        parameters=parameters,
        peak_memory_mb=metrics["peak_memory_mb"],
    )


def _open(config: TrainConfig, resume: bool) -> RunFolder:
    """The run's folder. The main process opens it and the others wait, or they would find it half made."""
    with accelerator(config.device) as device:
        run = RunFolder(config, resume, main=device.is_main_process)
        device.wait_for_everyone()
    return run


def build(config: TrainConfig, zoo: Zoo, chosen: ZooSplit) -> Classifier:
    """The untrained classifier of a run: initial weights by ``config.seed``, statistics of the training networks ``chosen``.

    The whole zoo only says how large its networks are: which kernels and how many inputs and outputs must be readable.
    """
    stacks = list(zoo.architectures.values())
    arguments = encoder_arguments(config.encoder, stacks, config.seed)
    outputs = {stack.layers[-1].outputs for stack in stacks}
    if len(outputs) != 1:
        raise UserError("the networks of this zoo have different numbers of outputs, so no one head reads them all")
    classes = int(zoo.all.labels(config.label).max()) + 1
    names = (zoo.meta.get("source") or {}).get("classes") if config.label == "label" else None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        encoder = create_encoder(**arguments)
        model = Classifier(
            encoder,
            classes,
            outputs.pop(),
            class_names=names if names and len(names) == classes else None,
            head=config.head,
        )
    if config.pretrain.epochs or config.reconstruction:
        check_images(chosen.architectures.values())
    model.prepare(chosen, config.label)
    for split in (zoo.val, zoo.test):  # architectures that are only tested are refused now, not after the training
        for name in split.architectures:
            model.check_readable(split.batch([int((split.column("architecture") == name).argmax())]).buckets[0])
    return model


def evaluate(
    run_dir: str | os.PathLike[str], split: str = "test", zoo: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Score a run's best model on a split of its zoo, or of another one.

    Returns ``accuracy``, ``loss`` (cross-entropy), ``confusion`` (``confusion[t][p]``: class t taken for p), ``n``,
    ``split``, ``zoo``, ``class_names`` and ``per_architecture``: accuracy and n of each, and whether the
    model was trained on networks of it (``seen``).

    Raises:
        UserError: no run, model or zoo there; networks that the model cannot read; labels beyond its classes.
    """
    folder = Path(run_dir)
    config = read_config(folder)
    model = Classifier.from_pretrained(folder)
    path = os.fspath(zoo) if zoo is not None else config.zoo
    chosen = Zoo.load(path).split(split)
    if not len(chosen):
        raise UserError(f"{path} has no {split} networks")
    labels = chosen.labels(config.label)
    if int(labels.max()) >= model.num_classes:
        raise UserError(
            f"{path} has labels up to {int(labels.max())}, this model knows classes 0..{model.num_classes - 1}"
        )
    with threads(config.threads):
        logits = model.logits(chosen)
    scores = score(logits, labels)
    return {
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "confusion": scores.confusion,
        "n": scores.n,
        "split": split,
        "zoo": path,
        "class_names": list(model.class_names),
        "per_architecture": by_architecture(chosen, logits.argmax(1) == labels, model.architectures),
    }


def peak_memory_mb() -> float:
    """The most memory this process has held (resident), or that was allocated on the GPU if one is used; else 0."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
    return 0.0
