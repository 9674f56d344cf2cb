"""Nowcasting: the loss after a jump ahead in training, and the steps to a target loss with jumps, beside plain Adam."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neural_graphs._progress import progress
from neural_graphs.bench._machine import threads
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.optim._baselines import Schedule
from neural_graphs.optim._families import cnn, mlp
from neural_graphs.optim._nowcast import Nowcaster
from neural_graphs.optim._nowcast_history import Subject, Trajectory
from neural_graphs.optim._nowcast_jumper import SCHEDULE
from neural_graphs.optim._nowcast_runs import AdamRun, record
from neural_graphs.optim._task import InnerTask

INTERVAL, STEPS, IMAGES = 20, 1200, 2000
TRAINED_ON = ((16,), (32,), (24, 24), (32, 32), (16, 16, 16), (32, 32, 32))
IMAGE_SETS = ("fashion-mnist", "digits")
RATES = (1e-3, 3e-3, 1e-2)
NOW = (5, 10, 19)
"""Checkpoints (of the one before the first step, number 0) after which jumps are compared: 100, 200 and 380 steps."""

AHEAD = (10, 40)

RACED = ("unseen seeds", "width 64", "small CNN")

Params = dict[str, Tensor]

Found = dict[tuple[str, str, str], list[float]]
"""Values per seed, by method, metric and variant."""


def _tested_on() -> dict[str, InnerTask]:
    tasks = {
        "unseen seeds": InnerTask("32-32", mlp(8, (32, 32))),
        "width 64": InnerTask("64-64", mlp(8, (64, 64))),
        "5 hidden layers": InnerTask("32 x 5", mlp(8, (32,) * 5)),
        "small CNN": InnerTask("cnn 16-16", cnn((16, 16), padding=0)),
        "MNIST": InnerTask("mnist", mlp(8, (32, 32)), data="mnist"),
    }
    return {name: task.with_steps(STEPS) for name, task in tasks.items()}


def nowcasting(
    out: str | os.PathLike[str] | None = "results/optimiser-nowcast.json",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    runs: int = 8,
    networks: int = 3,
    loss_weight: float = 1.0,
    thread_count: int | None = 1,
    save: str | os.PathLike[str] | None = None,
    command: str = "neural-graphs bench nowcast",
) -> list[Row]:
    """Train a nowcaster per seed and use it on networks that it has not seen.

    Trained on ``runs`` runs of Adam each of six perceptrons on 8x8 Fashion-MNIST and on digits (learning rates from 1e-3 to
    1e-2, half of them decayed linearly), 1200 steps with a checkpoint every 20. Tested on ``networks`` networks per learning
    rate of unseen seeds, an unseen width, depth, data set, and a CNN.

    Rows, values per seed: ``loss_after_jump`` (variant ``<test>, <k> intervals``), the training loss of networks set k
    intervals ahead by ``nowcaster``, by ``linear extrapolation`` of the last two and of the first and last of five states,
    left as they are (``last state``), averaged (``mean of states``), and trained on (``Adam``), mean over learning rates and
    times; ``weight_error``, the nowcaster's ``score`` there; ``steps_to_target``, ``final_loss`` and ``mean_loss`` (variant
    ``<test>, <schedule> lr``) of Adam with and without jumps at NiNo's decaying lengths, the target being Adam's own final
    loss; ``train_seconds`` of the processor. Written to ``out`` unless it is None; the nowcasters to
    ``save``, a folder per seed.
    """
    found: Found = {}
    tests, trained = _tested_on(), []
    dataset = {
        "train": "8x8 fashion-mnist, digits",
        "runs": 12 * runs,
        "steps": steps,
        "networks": networks,
        "loss_weight": loss_weight,
    }
    rows: list[Row] = []
    with (
        threads(thread_count) as count,
        progress("bench nowcast", len(seeds) * (2 + len(tests) + 2 * len(RACED))) as bar,
    ):
        for seed in seeds:
            start = time.process_time()
            trajectories = _trajectories(seed, runs)
            bar.advance()
            torch.manual_seed(seed)
            nowcaster = Nowcaster(interval=INTERVAL).fit(
                trajectories, steps=steps, loss_weight=loss_weight, seed=seed, quiet=True
            )
            trained.append(time.process_time() - start)
            if save is not None:
                nowcaster.save(os.path.join(save, f"seed-{seed}"))
            bar.advance()
            for part, task in tests.items():
                _add(found, part, {**_jumps(nowcaster, task, seed, networks), **_error(nowcaster, task, seed)})
                bar.advance()
            for part in RACED:
                for schedule in ("constant", "linear"):
                    _add(found, part, _races(nowcaster, tests[part], schedule, seed, networks))
                    bar.advance()
            rows = _rows(found, trained, sum(value.numel() for value in nowcaster.parameters()))
            if out is not None:  # after every seed: a run that is stopped leaves what it has measured
                write_results(out, "optimiser-nowcast", command, dataset, rows, threads=count)
    return rows


def _add(found: Found, part: str, values: Mapping[tuple[str, str, str], float]) -> None:
    for (method, metric, variant), value in values.items():
        found.setdefault((method, metric, f"{part}, {variant}"), []).append(value)


def _rows(found: Found, trained: Sequence[float], parameters: int) -> list[Row]:
    rows = [
        row(method, metric, values, variant, **({"parameters": parameters} if method.startswith("nowcaster") else {}))
        for (method, metric, variant), values in found.items()
    ]
    return [*rows, row("nowcaster", "train_seconds", trained, "recording and fitting", parameters=parameters)]


def _trajectories(seed: int, runs: int) -> list[Trajectory]:
    generator = torch.Generator().manual_seed(seed)
    found: list[Trajectory] = []
    for number, hidden in enumerate(TRAINED_ON):
        for data in IMAGE_SETS:
            task = InnerTask("", mlp(8, hidden, ("relu", "tanh")[number % 2]), data=data).with_steps(STEPS)
            lr = (1e-3 * 10 ** torch.rand(runs, generator=generator)).tolist()
            schedules: list[Schedule] = ["constant", "linear"]
            first = 1_000_000 * (seed + 1) + 1000 * len(found)
            run = AdamRun(task, range(first, first + runs), lr, (schedules * runs)[:runs], seed=first)
            found.append(record(run, INTERVAL))
    return found


# -- one jump ----------------------------------------------------------------------------------------------------------


def _jumps(nowcaster: Nowcaster, task: InnerTask, seed: int, networks: int) -> dict[tuple[str, str, str], float]:
    lr = [rate for rate in RATES for _ in range(networks)]
    first = 500_000_000 + 1000 * seed
    run = AdamRun(task, range(first, first + len(lr)), lr, ["constant"] * len(lr), seed=first)
    states = [run.snapshot()]
    for step in range(1, (max(NOW) + max(AHEAD)) * INTERVAL + 1):
        run.step()
        if step % INTERVAL == 0:
            states.append(run.snapshot())
    totals: dict[tuple[str, str, str], list[float]] = {}
    subject = Subject(task.spec, tuple(run.params))
    for now in NOW:
        window = states[now - nowcaster.past + 1 : now + 1]
        with torch.no_grad():
            ahead = nowcaster(subject, _stacked(window), list(AHEAD))
        for number, k in enumerate(AHEAD):
            first_last = {n: w[-1] + k * (w[-1] - w[0]) / (len(window) - 1) for n, w in _stacked(window).items()}
            last_two = {n: w[-1] + k * (w[-1] - w[-2]) for n, w in _stacked(window).items()}
            made = {
                "last state": window[-1],
                "mean of states": {n: w.mean(0) for n, w in _stacked(window).items()},
                "linear extrapolation": first_last,
                "linear extrapolation (last two)": last_two,
                "nowcaster": {n: value[number] for n, value in ahead.items()},
                "Adam": states[now + k],
            }
            for method, params in made.items():
                key = (method, "loss_after_jump", f"{k} intervals")
                totals.setdefault(key, []).append(_loss(task, params))
    return {key: sum(values) / len(values) for key, values in totals.items()}


def _error(nowcaster: Nowcaster, task: InnerTask, seed: int) -> dict[tuple[str, str, str], float]:
    first = 600_000_000 + 1000 * seed
    rates = list(RATES)
    trajectory = record(AdamRun(task, range(first, first + 3), rates, ["constant"] * 3, seed=first), INTERVAL)
    return {("nowcaster", "weight_error", f"{k} intervals"): nowcaster.score([trajectory], k) for k in AHEAD}


def _stacked(states: Sequence[Params]) -> Params:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _loss(task: InnerTask, params: Mapping[str, Tensor]) -> float:
    """Mean over networks; a network that is no number, or worse than 1000, counts 1000."""
    losses = task.score(params, "train", IMAGES)[0].nan_to_num(1e3, 1e3, 1e3)
    return float(losses.clamp(max=1e3).mean())


# -- jumps in training -------------------------------------------------------------------------------------------------


def _races(
    nowcaster: Nowcaster, task: InnerTask, schedule: Schedule, seed: int, networks: int
) -> dict[tuple[str, str, str], float]:
    """Adam at the best of ``RATES`` for itself, alone and with one jump after every five intervals."""
    jumps: dict[str, Callable[[Sequence[Params], int], Params] | None] = {
        "Adam": None,
        "nowcaster jumps": lambda window, k: _forecast(nowcaster, task, window, k),
        "linear extrapolation jumps": lambda window, k: {
            n: w[-1] + k * (w[-1] - w[0]) / (len(window) - 1) for n, w in _stacked(window).items()
        },
    }
    plain = {rate: _curve(task, rate, schedule, seed, networks, None, nowcaster.past) for rate in RATES}
    best = min(RATES, key=lambda rate: plain[rate][-1])
    found: dict[tuple[str, str, str], float] = {}
    name = f"{schedule} lr"
    for method, jump in jumps.items():
        curve = plain[best] if jump is None else _curve(task, best, schedule, seed, networks, jump, nowcaster.past)
        target = plain[best][-1]
        reached = next((k for k, loss in enumerate(curve) if loss <= target), None)
        found[method, "final_loss", name] = curve[-1]
        found[method, "mean_loss", name] = sum(curve) / len(curve)
        found[method, "steps_to_target", name] = float(INTERVAL * (len(curve) if reached is None else reached))
    return found


def _forecast(nowcaster: Nowcaster, task: InnerTask, window: Sequence[Params], ahead: int) -> Params:
    with torch.no_grad():
        found = nowcaster(Subject(task.spec, tuple(window[0])), _stacked(window), [ahead])
    return {name: value[0] for name, value in found.items()}


def _curve(
    task: InnerTask,
    rate: float,
    schedule: Schedule,
    seed: int,
    networks: int,
    jump: Callable[[Sequence[Params], int], Params] | None,
    past: int,
) -> list[float]:
    """Training losses every ``INTERVAL`` steps, after the jump where one is made."""
    first = 700_000_000 + 1000 * seed
    task = replace(task, steps=past * INTERVAL * (len(SCHEDULE) + 2))
    run = AdamRun(task, range(first, first + networks), [rate] * networks, [schedule] * networks, seed=first)
    curve, window = [_loss(task, run.params)], []
    for interval in range(1, task.steps // INTERVAL + 1):
        for _ in range(INTERVAL):
            run.step()
        window.append(run.snapshot())
        number = interval // past - 1
        if jump is not None and interval % past == 0 and number < len(SCHEDULE):
            for name, value in jump(window[-past:], SCHEDULE[number]).items():
                run.params[name].copy_(value)
        curve.append(_loss(task, run.params))
    return curve
