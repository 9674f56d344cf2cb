"""Tuning baselines on a task and comparing rules with them: paired seeds, records that are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from neural_graphs._io import read_json, write_json
from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import BASELINES, GRIDS, Schedule, Setting
from neural_graphs.optim._rule import UpdateRule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._train_many import Make, train_many, window, with_rule, with_settings

TUNING_SEEDS = (1001, 1002)
TEST_SEEDS = (1, 2, 3, 4, 5)
KNOB = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on a rule's learning rate where it is tuned."""

_POINTS, _DIGITS = 200, 5  # of the curves that records hold

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """An update rule as it is evaluated: with its own learning rate and a schedule, untuned."""

    rule: UpdateRule
    lr: float
    schedule: Schedule = "linear"

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule.digest(), "lr": self.lr, "schedule": self.schedule}


@dataclass(frozen=True)
class Tuned:
    """What tuning chose: the setting of the lowest training loss, and that of the best validation accuracy."""

    by_loss: Setting
    by_accuracy: Setting
    loss: float
    """Mean over the tuning seeds of the first one's loss on 5,000 training images."""
    accuracy: float
    """Mean over the tuning seeds of the second one's accuracy on the validation images."""


def tune(
    task: InnerTask,
    optimizer: str,
    folder: str | os.PathLike[str],
    grid: Sequence[Setting] | None = None,
    seeds: Sequence[int] = TUNING_SEEDS,
    schedules: Sequence[Schedule] | None = None,
) -> Tuned:
    """The best settings of a baseline (all of ``GRIDS`` by default), of those with one of ``schedules`` if given.

    All settings and seeds are trained at once and their scores kept in ``folder``. Raises ``UserError`` for an unknown
    baseline.
    """
    if optimizer not in BASELINES:
        raise UserError(f"unknown baseline {optimizer!r}: choose one of {', '.join(BASELINES)}")
    settings = tuple(grid or GRIDS[optimizer])
    about = {"settings": [setting.to_json() for setting in settings], "seeds": list(seeds)}
    record = _kept(
        folder, task, f"tune-{optimizer}", about, lambda: _record(task, with_settings(settings), seeds, len(settings))
    )
    loss, accuracy = (np.asarray(record[key]).reshape(len(seeds), -1).mean(0) for key in ("train_loss", "val_accuracy"))
    chosen = [number for number, s in enumerate(settings) if schedules is None or s.schedule in schedules]
    if not chosen:
        raise UserError(f"no setting of {optimizer} has a schedule among {', '.join(schedules or ())}")
    best, right = min(chosen, key=lambda n: loss[n]), max(chosen, key=lambda n: accuracy[n])
    return Tuned(settings[best], settings[right], float(loss[best]), float(accuracy[right]))


def run_settings(
    task: InnerTask, settings: Sequence[Setting], folder: str | os.PathLike[str], seeds: Sequence[int] = TEST_SEEDS
) -> list[Record]:
    """Records on test seeds, one per setting; kept, one by one."""
    found = []
    for setting in settings:
        about = {"settings": [setting.to_json()], "seeds": list(seeds)}
        work = _work(task, with_settings([setting]), seeds)
        found.append(_kept(folder, task, f"test-{setting.optimizer}", about, work))
    return found


def run_rule(
    task: InnerTask, learned: Learned, folder: str | os.PathLike[str], seeds: Sequence[int] = TEST_SEEDS
) -> Record:
    """Its record on test seeds, without tuning; kept."""
    about = {**learned.to_json(), "seeds": list(seeds)}
    make = with_rule(learned.rule, [learned.lr], learned.schedule)
    return _kept(folder, task, f"test-{learned.rule.config['name']}", about, _work(task, make, seeds))


def tune_rule(
    task: InnerTask, learned: Learned, folder: str | os.PathLike[str], seeds: Sequence[int] = TUNING_SEEDS
) -> tuple[Learned, Learned]:
    """The rule with its learning rate times the best of ``KNOB``: by training loss, and by validation accuracy."""
    rates = [factor * learned.lr for factor in KNOB]
    about = {**learned.to_json(), "rates": rates, "seeds": list(seeds)}
    make = with_rule(learned.rule, rates, learned.schedule)
    record = _kept(
        folder, task, f"tune-{learned.rule.config['name']}", about, lambda: _record(task, make, seeds, len(rates))
    )
    loss, accuracy = (np.asarray(record[key]).reshape(len(seeds), -1).mean(0) for key in ("train_loss", "val_accuracy"))
    best, right = int(loss.argmin()), int(accuracy.argmax())
    return (
        Learned(learned.rule, rates[best], learned.schedule),
        Learned(learned.rule, rates[right], learned.schedule),
    )


# -- records ---------------------------------------------------------------------------------------------------------------


def _work(task: InnerTask, make: Make, seeds: Sequence[int]) -> Callable[[], Record]:
    return lambda: _record(task, make, seeds, 1, test=True)


def _record(task: InnerTask, make: Make, seeds: Sequence[int], repeats: int, test: bool = False) -> Record:
    """Figures per particle (see ``train_many``); with ``test`` also those of the test split, and curves."""
    found = train_many(task, make, seeds, repeats, ("val", "test") if test else ("val",))
    record: Record = {"last_loss": found.last_loss.tolist(), "train_loss": found.train_loss.tolist()}
    for split, (loss, accuracy) in found.scores.items():
        record |= {f"{split}_loss": loss.tolist(), f"{split}_accuracy": accuracy.tolist()}
    particle_steps = task.steps * len(seeds) * repeats
    record |= {
        "diverged": found.diverged.tolist(),
        "gradient_seconds": found.gradient_seconds / particle_steps,
        "step_seconds": found.step_seconds / particle_steps,
    }
    if test:
        at = torch.linspace(0, task.steps - 1, min(_POINTS, task.steps)).round().long()
        curves = found.smoothed[at].t()
        record |= {
            "curve_steps": (at + 1).tolist(),
            "curves": [[round(v, _DIGITS) for v in c] for c in curves.tolist()],
        }
    return record


def _kept(
    folder: str | os.PathLike[str], task: InnerTask, what: str, about: Mapping[str, Any], work: Callable[[], Record]
) -> Record:
    """The record of this work on this task from ``folder``, after doing it where it is not there."""
    key = {"task": task.to_json(), "work": dict(about)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", task.name.lower()).strip("-")
    path = Path(folder) / slug / f"{what}-{digest}.json"
    if not path.is_file():
        write_json(path, {"key": key, "record": work()})
    return dict(read_json(path)["record"])


def steps_to_reach(record: Record, targets: Sequence[float]) -> list[float | None]:
    """Per seed: the first step at which the smoothed minibatch loss is at or below the target; None where it never is.

    Not before a whole window of losses has been averaged. Curves have 200 points, so steps are known to half a percent.
    """
    first = window(record["curve_steps"][-1])
    found: list[float | None] = []
    for curve, target in zip(record["curves"], targets, strict=True):
        pairs = zip(record["curve_steps"], curve, strict=True)
        found.append(
            next((float(step) for step, loss in pairs if step >= first and loss <= target + 10**-_DIGITS), None)
        )
    return found


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences ``values - others``, and half of its 95 % confidence interval by Student's t."""
    differences = np.asarray(values, float) - np.asarray(others, float)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(stats.t.ppf(0.975, len(differences) - 1) * error)
