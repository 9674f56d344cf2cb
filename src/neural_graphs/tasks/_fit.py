"""Fitting a model: pre-training, if asked for, and then the task."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from neural_graphs.tasks._adaptation import Adaptation
from neural_graphs.tasks._classification import Classification
from neural_graphs.tasks._decoder import create_decoder
from neural_graphs.tasks._editing import Editing
from neural_graphs.tasks._loop import Course, Learner
from neural_graphs.tasks._pretrain import Pretraining
from neural_graphs.tasks._regression import Regression
from neural_graphs.tasks._runtime import accelerator, threads
from neural_graphs.tasks._supervised import Supervised

if TYPE_CHECKING:
    from neural_graphs.tasks._config import TrainConfig
    from neural_graphs.tasks._model import Model
    from neural_graphs.tasks._run import RunFolder
    from neural_graphs.zoo._store import ZooSplit

TASKS: dict[str, type[Supervised]] = {kind.phase: kind for kind in (Classification, Regression, Editing, Adaptation)}


def fit(
    model: Model,
    train: ZooSplit,
    val: ZooSplit | None,
    config: TrainConfig,
    *,
    run: RunFolder | None = None,
    quiet: bool = False,
) -> Course:
    """Train ``model`` in place and leave it with the weights that were best on ``val`` (without ``val``, the last).

    With ``config.optimizer.ema`` it is the averaged weights that are validated, compared and kept. With ``config.pretrain``
    its encoder learns to reconstruct images first.

    With ``run``, the best model, the state and the log go to its folder, and a state found there is continued: on the CPU
    bit for bit, also after being killed. Ctrl-C saves the state and raises ``KeyboardInterrupt`` with what to do next.

    Raises:
        UserError: unusable labels or networks.
        RunError: the loss became NaN or infinite; the disk is full.
    """
    with threads(config.threads), _own_random_numbers(config), accelerator(config.device) as device:
        found = run.load_state() if run is not None else None
        pretrains = config.pretrain.epochs > 0 and (found is None or found[1].get("phase") == Pretraining.phase)
        learner = Learner(model, create_decoder(model, train, config) if pretrains or config.reconstruction else None)
        before = Course()
        if pretrains:
            pretraining = Pretraining(learner, train, val, config, run, device, found)
            pretraining.run_all(quiet)
            before, found = pretraining.course, None
            device.free_memory()
        if not config.reconstruction:
            learner.decoder = None
        loop = TASKS[model.task](learner, train, val, config, run, device, found)
        if found is None:
            loop.course.earlier, loop.course.seconds = before.history, before.seconds
        loop.run_all(quiet)
        loop.finish()
    return loop.course


def _own_random_numbers(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Training seeds torch's global generators at every step; the caller finds them as they were."""
    devices = range(torch.cuda.device_count()) if config.device == "auto" and torch.cuda.is_available() else ()
    return torch.random.fork_rng(devices=devices)
