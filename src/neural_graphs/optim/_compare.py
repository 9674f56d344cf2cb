"""Rules beside tuned baselines on one task: paired differences, steps to Adam's loss, time per step over Adam's."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import BASELINES, FlatParameters, Setting
from neural_graphs.optim._evaluate import (
    TEST_SEEDS,
    TUNING_SEEDS,
    Learned,
    Record,
    Tuned,
    paired,
    run_rule,
    run_settings,
    steps_to_reach,
    tune,
    tune_rule,
)
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._train_many import Make, with_rule, with_settings

LOSSES = ("train_loss", "last_loss")
METRICS = (*LOSSES, "test_accuracy")


@dataclass(frozen=True)
class Compared:
    """One method on one task.

    Attributes:
        method: name of the baseline or the rule.
        variant: ``""``, ``"constant lr"`` (Adam without a schedule) or ``"lr tuned"`` (a rule whose one knob was tuned).
        values: per metric one value per meta-seed and test seed, meta-seed by meta-seed. Losses are those of the setting
            tuned by training loss, accuracies those of the one tuned by validation accuracy.
        settings: what tuning chose, if anything: by loss, by accuracy.
        minus_adam: per metric the mean difference to tuned Adam and half its 95 % interval (over test seeds; those of
            several meta-seeds are averaged first).
        minus_best: the same to the baseline that was best in tuning, which ``best`` names per metric.
        steps_to_adam: steps to the smoothed training loss that tuned Adam ends with on the same seed; None: never.
        time_over_adam: seconds per step over those with Adam, gradients included, and without them (the optimizers alone).
        diverged: number of runs with losses that were not finite.
    """

    method: str
    variant: str
    values: dict[str, list[float]]
    settings: tuple[str, ...] = ()
    minus_adam: dict[str, tuple[float, float]] = field(default_factory=dict)
    minus_best: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    steps_to_adam: list[float | None] = field(default_factory=list)
    time_over_adam: tuple[float, float] | None = None
    diverged: int = 0


@dataclass(frozen=True, eq=False)
class _Found:
    method: str
    variant: str
    by_loss: list[Record]
    by_accuracy: list[Record]
    settings: tuple[str, ...]
    make: Make
    tuned: Tuned | None = None

    def values(self, metric: str) -> list[float]:
        records = self.by_loss if metric in LOSSES else self.by_accuracy
        return [float(value) for record in records for value in record[metric]]

    def per_seed(self, metric: str) -> list[float]:
        """Means over meta-seeds."""
        records = self.by_loss if metric in LOSSES else self.by_accuracy
        return [statistics.fmean(values) for values in zip(*(record[metric] for record in records), strict=True)]


def compare(
    task: InnerTask,
    rules: Mapping[str, Sequence[Learned]],
    folder: str | os.PathLike[str],
    seeds: Sequence[int] = TEST_SEEDS,
    baselines: Sequence[str] = tuple(BASELINES),
    knob: bool = True,
    timing: bool = True,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    tuning_steps: int | None = None,
) -> list[Compared]:
    """All ``baselines``, tuned on the task, and ``rules`` (name -> one per meta-seed), untuned.

    With ``knob`` rules are also run with their learning rate tuned. What is in ``folder`` already is not done again. Runs of
    one seed start from the same network and see the same minibatches. Adam must be among the baselines. What is tuned is
    tuned over the whole horizon, or over ``tuning_steps``, schedules with it.
    """
    if "adam" not in baselines:
        raise UserError("rules are compared with tuned Adam: it must be among the baselines")
    tuning = task if tuning_steps is None else task.with_steps(tuning_steps)
    found = [_baseline(task, tuning, name, folder, seeds, tuning_seeds) for name in baselines]
    adam = found[list(baselines).index("adam")]
    best_loss = min(found, key=lambda entry: entry.tuned.loss if entry.tuned else float("inf"))
    best_accuracy = max(found, key=lambda entry: entry.tuned.accuracy if entry.tuned else 0.0)
    found.append(_baseline(task, tuning, "adam", folder, seeds, tuning_seeds, constant=True))
    for name, learned in rules.items():
        found.append(_rule(task, name, learned, folder, seeds))
        if knob:
            found.append(_tuned_rule(task, tuning, name, learned, folder, seeds, tuning_seeds))
    times: dict[int, tuple[float, float]] = {}
    if timing:
        timed = [entry for entry in found if not entry.variant]
        ratios = time_over_adam(task, [entry.make for entry in timed])
        times = {id(entry): ratio for entry, ratio in zip(timed, ratios, strict=True)}
    best = {metric: best_loss if metric in LOSSES else best_accuracy for metric in METRICS}
    targets = adam.per_seed("last_loss")
    return [
        Compared(
            entry.method,
            entry.variant,
            {metric: entry.values(metric) for metric in METRICS},
            entry.settings,
            {metric: paired(entry.per_seed(metric), adam.per_seed(metric)) for metric in METRICS},
            {metric: paired(entry.per_seed(metric), best[metric].per_seed(metric)) for metric in METRICS},
            {metric: best[metric].method for metric in METRICS},
            [steps for record in entry.by_loss for steps in steps_to_reach(record, targets)],
            times.get(id(entry)),
            sum(map(sum, (record["diverged"] for record in entry.by_loss))),
        )
        for entry in found
    ]


def _baseline(
    task: InnerTask,
    tuning: InnerTask,
    name: str,
    folder: str | os.PathLike[str],
    seeds: Sequence[int],
    tuning_seeds: Sequence[int],
    constant: bool = False,
) -> _Found:
    tuned = tune(tuning, name, folder, seeds=tuning_seeds, schedules=("constant",) if constant else None)
    chosen = (tuned.by_loss, tuned.by_accuracy)
    records = dict(
        zip(dict.fromkeys(chosen), run_settings(task, list(dict.fromkeys(chosen)), folder, seeds), strict=True)
    )
    by_loss, by_accuracy = ([records[setting]] for setting in chosen)
    variant = "constant lr" if constant else ""
    return _Found(name, variant, by_loss, by_accuracy, tuple(map(str, chosen)), with_settings(chosen[:1]), tuned)


def _rule(
    task: InnerTask, name: str, learned: Sequence[Learned], folder: str | os.PathLike[str], seeds: Sequence[int]
) -> _Found:
    records = [run_rule(task, one, folder, seeds) for one in learned]
    make = with_rule(learned[0].rule, [learned[0].lr], learned[0].schedule)
    return _Found(name, "", records, records, (), make)


def _tuned_rule(
    task: InnerTask,
    tuning: InnerTask,
    name: str,
    learned: Sequence[Learned],
    folder: str | os.PathLike[str],
    seeds: Sequence[int],
    tuning_seeds: Sequence[int],
) -> _Found:
    chosen = [tune_rule(tuning, one, folder, tuning_seeds) for one in learned]
    by_loss, by_accuracy = ([run_rule(task, one, folder, seeds) for one in side] for side in zip(*chosen, strict=True))
    settings = tuple(f"lr {', '.join(f'{one.lr:g}' for one in side)}" for side in zip(*chosen, strict=True))
    best = chosen[0][0]
    return _Found(name, "lr tuned", by_loss, by_accuracy, settings, with_rule(best.rule, [best.lr], best.schedule))


def time_over_adam(
    task: InnerTask, makes: Sequence[Make], rounds: int = 7, block: int = 5, networks: int = 1
) -> list[tuple[float, float]]:
    """Seconds per training step over those with Adam, gradients included and without.

    Both are the shortest of ``rounds`` blocks, which all take in turn after one that warms up: other work on the machine
    makes some blocks longer. ``networks`` are trained at once; 1 is what a user's own training does.
    """
    adam = with_settings([Setting("adam", 1e-3)])
    task = task.with_steps(block * (rounds + 1))
    runs = []
    for make in (adam, *makes):
        params = FlatParameters(task.new_params(list(range(networks))))
        runs.append((params, make(task, params)))
    times: list[list[tuple[float, float]]] = [[] for _ in runs]
    with torch.no_grad():
        for number in range(rounds + 1):
            for place in [(number + shift) % len(runs) for shift in range(len(runs))]:
                params, stepper = runs[place]
                gradients = steps = 0.0
                for step in range(number * block, (number + 1) * block):
                    start = time.perf_counter()
                    _, grads = task.losses_and_grads(params.views, *task.batch(0, step))
                    middle = time.perf_counter()
                    stepper.step(grads)
                    steps += time.perf_counter() - middle
                    gradients += middle - start
                times[place].append((gradients + steps, steps))
    shortest = [tuple(min(own[1:], key=lambda pair: pair[part])[part] for part in (0, 1)) for own in times]
    return [(whole / shortest[0][0], alone / shortest[0][1]) for whole, alone in shortest[1:]]
