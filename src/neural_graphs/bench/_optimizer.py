"""Learned optimizers beside tuned ones, on inner tasks that no meta-training has seen."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from neural_graphs._memory import keep_buffers
from neural_graphs._progress import track
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import BASELINES, GRIDS
from neural_graphs.optim._compare import LOSSES, METRICS, Compared, compare
from neural_graphs.optim._evaluate import TEST_SEEDS, TUNING_SEEDS, Learned, paired
from neural_graphs.optim._families import HELD_OUT, held_out
from neural_graphs.optim._rule import UpdateRule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._weights import load_rule

ALL = "all tasks"
"""The part of the rows over all tasks of a group."""

GROUPS = tuple(group for group in HELD_OUT if not group.startswith("paper-"))
"""What is measured unless said otherwise: those that take minutes."""

Rule = str | os.PathLike[str] | UpdateRule | Learned
V = TypeVar("V")


def learned_optimizers(
    rules: Mapping[str, Sequence[Rule]],
    groups: Sequence[str] = GROUPS,
    seeds: Sequence[int] = TEST_SEEDS,
    out: str | os.PathLike[str] = "results",
    runs: str | os.PathLike[str] = "runs/optimiser",
    steps: int | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    knob: bool = True,
    timing: bool = True,
    device: str = "cpu",
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    tuning_steps: int | None = None,
    command: str = "",
) -> list[Row]:
    """Compare ``rules`` with tuned ``baselines`` on every task of ``groups`` (see ``HELD_OUT``), with every seed.

    ``rules`` maps a name to rules of several meta-seeds: names of shipped weights, files, folders of meta-trainings,
    or rules (with their learning rate as ``Learned``). Rules are run as their cards say, untuned; with ``knob`` also
    with a learning rate that is tuned over five factors. ``steps`` replaces the tasks' horizons, ``tuning_steps`` those
    that settings are tuned over.

    Rows of ``results/optimiser-<group>.json`` have a task as their ``part``: ``train_loss`` (on 5,000 training
    images), ``last_loss`` (of the last minibatches), ``test_accuracy``, each with the mean difference to tuned Adam
    (``minus_adam``) and to the baseline that was best in tuning (``minus_best``) and half its 95 % interval;
    ``steps_to_adam_share`` (steps to tuned Adam's last loss over all steps, 1 where it is not reached; ``reached``
    counts), ``time_over_adam`` (seconds per training step of one network) and ``optimizer_time_over_adam``. Part
    ``"all tasks"``: ``train_loss_minus_adam``, mean over tasks, a value per seed, and ``at_or_below_adam_share`` of
    the tasks. What was tuned and run already is taken from ``runs``.

    Raises ``UserError`` for unknown groups, baselines and weights.
    """
    keep_buffers()
    read = {name: [_learned(rule) for rule in found] for name, found in rules.items()}
    if empty := [name for name, found in read.items() if not found]:
        raise UserError(f"rule {empty[0]}: give at least one file of weights")
    planned = {group: held_out(group, steps, device) for group in groups}
    rows: list[Row] = []
    for group, tasks in planned.items():
        results = {
            task.name: compare(task, read, runs, seeds, baselines, knob, timing, tuning_seeds, tuning_steps)
            for task in track(tasks, f"optimiser-{group}")
        }
        own = [entry for task in tasks for entry in _task_rows(task, results[task.name], len(seeds))]
        own += _group_rows(list(results.values()), len(seeds))
        dataset = {
            "tasks": group,
            **({"steps": steps} if steps is not None else {}),
            "seeds": ",".join(map(str, seeds)),
            "tuning seeds": ",".join(map(str, tuning_seeds)),
            **({"tuning steps": tuning_steps} if tuning_steps is not None else {}),
        }
        path = Path(out) / f"optimiser-{group}.json"
        write_results(path, path.stem, command, dataset, own, replaces=("method", "variant", "metric", "part"))
        rows += [{**entry, "group": group} for entry in own]
    return rows


def _learned(rule: Rule) -> Learned:
    if isinstance(rule, Learned):
        return rule
    found, card = load_rule(rule)
    if "lr" not in card:
        raise UserError(f"the card of {rule} does not say its learning rate: give Learned(rule, lr)")
    learned = Learned(found, float(card["lr"]))
    return replace(learned, schedule=card["schedule"]) if "schedule" in card else learned


def _task_rows(task: InnerTask, found: Sequence[Compared], seeds: int) -> list[Row]:
    rows: list[Row] = []
    for entry in found:
        about: dict[str, Any] = {"part": task.name, "parameters": task.num_parameters, "steps": task.steps}
        if entry.method in GRIDS:
            about["tuned_over"] = len(GRIDS[entry.method])
        else:
            about["meta_seeds"] = len(entry.values["train_loss"]) // seeds
        for metric in METRICS:
            setting = entry.settings[metric not in LOSSES] if entry.settings else ""
            extra = {
                **about,
                "setting": setting,
                "minus_adam": _finite(entry.minus_adam[metric]),
                "minus_best": _finite(entry.minus_best[metric]),
                "best": entry.best[metric],
                "diverged": entry.diverged,
            }
            rows.append(row(entry.method, metric, entry.values[metric], entry.variant, **extra))
        shares = [(task.steps if s is None else s) / task.steps for s in entry.steps_to_adam]
        reached = sum(s is not None for s in entry.steps_to_adam)
        rows.append(row(entry.method, "steps_to_adam_share", shares, entry.variant, reached=reached, **about))
        if entry.time_over_adam is not None:
            for metric, value in zip(("time_over_adam", "optimizer_time_over_adam"), entry.time_over_adam, strict=True):
                rows.append(row(entry.method, metric, value, entry.variant, **about))
    return rows


def _finite(pair: tuple[float, float]) -> list[float | None]:
    """For JSON, which has no NaN: the interval of a single seed."""
    return [value if math.isfinite(value) else None for value in pair]


def _group_rows(results: Sequence[Sequence[Compared]], seeds: int) -> list[Row]:
    """Over all tasks: the mean difference to Adam per seed, and on how many tasks the loss is no higher."""
    adams = [next(c for c in found if (c.method, c.variant) == ("adam", "")) for found in results]
    best = [next(c for c in found if (c.method, c.variant) == (found[0].best["train_loss"], "")) for found in results]
    rows = []
    for number, first in enumerate(results[0]):
        own = [found[number] for found in results]
        name, variant, count = first.method, first.variant, len(results)
        for metric in METRICS:
            per_seed, interval = _over_tasks(own, adams, metric, seeds)
            _, to_best = _over_tasks(own, best, metric, seeds)
            about = {"part": ALL, "tasks": count, "interval": _finite(interval), "minus_best": _finite(to_best)}
            rows.append(row(name, f"{metric}_minus_adam", per_seed, variant, **about))
        losses = zip(own, adams, strict=True)
        at = sum(
            statistics.fmean(c.values["train_loss"]) <= statistics.fmean(a.values["train_loss"]) for c, a in losses
        )
        rows.append(row(name, "at_or_below_adam_share", at / count, variant, part=ALL, tasks=count))
    return rows


def _over_tasks(
    own: Sequence[Compared], others: Sequence[Compared], metric: str, seeds: int
) -> tuple[list[float], tuple[float, float]]:
    """Per seed the mean over tasks (and meta-seeds) of the differences; their mean and half its 95 % interval."""

    def per_seed(entry: Compared) -> list[float]:
        values = entry.values[metric]
        return [statistics.fmean(values[seed::seeds]) for seed in range(seeds)]

    differences = [
        [a - b for a, b in zip(per_seed(c), per_seed(o), strict=True)] for c, o in zip(own, others, strict=True)
    ]
    means = [statistics.fmean(values) for values in zip(*differences, strict=True)]
    return means, paired(means, [0.0] * seeds)
