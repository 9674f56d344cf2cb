"""Training runs of many networks at once by Adam: what nowcasters learn from, and what jumps are compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import Adam, FlatParameters, Schedule, Setting
from neural_graphs.optim._nowcast_history import Subject, Trajectory
from neural_graphs.optim._task import InnerTask

IMAGES = 256
"""In the minibatches on which nowcasters learn from losses."""

SCHEDULES: tuple[Schedule, ...] = ("constant", "linear")


class AdamRun:
    """P networks of one architecture in training by Adam (Kingma and Ba 2015), each with its own learning rate and schedule.

    Args:
        task: its minibatches; those of ``seed`` are shared by all networks.
        seeds: of the initial weights, one per network.
        lr: learning rates, one per network.
        schedules: ``"constant"``, or ``"linear"`` to 0 at the task's horizon, one per network.
        seed: of the order of the images.

    ``params`` are ``{name: [P, *shape]}``; they may be written to between steps, and Adam goes on with what it holds.
    """

    def __init__(
        self, task: InnerTask, seeds: Sequence[int], lr: Sequence[float], schedules: Sequence[Schedule], seed: int = 0
    ) -> None:
        if unknown := set(schedules) - set(SCHEDULES):
            raise UserError(f"unknown schedule {min(unknown)!r}: choose among {', '.join(SCHEDULES)}")
        if not len(seeds) == len(lr) == len(schedules):
            raise UserError(f"{len(seeds)} networks with {len(lr)} learning rates and {len(schedules)} schedules")
        self.task, self.seed = task, seed
        parameters = FlatParameters(task.new_params(seeds))
        self.params = parameters.views
        settings = [Setting("adam", *pair) for pair in zip(lr, schedules, strict=True)]
        self._adam = Adam(parameters, settings, task.steps)

    @property
    def steps(self) -> int:
        """Steps made."""
        return self._adam.count

    def step(self) -> Tensor:
        """One step; the losses ``[P]`` on its minibatch."""
        losses, grads = self.task.losses_and_grads(self.params, *self.task.batch(self.seed, self.steps))
        self._adam.step(grads)
        return losses

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of ``params``."""
        return {name: value.clone() for name, value in self.params.items()}


def record(run: AdamRun, interval: int, subject: Subject | None = None) -> Trajectory:
    """The states of a run from now to its task's horizon, before the first step and after every ``interval`` of them.

    Networks that diverge are left out; ``UserError`` when all do.
    """
    found = [run.snapshot()]
    while run.steps + interval <= run.task.steps:
        for _ in range(interval):
            run.step()
        found.append(run.snapshot())
    stacked = {name: torch.stack([state[name] for state in found]) for name in run.params}
    finite = torch.stack([value.isfinite().flatten(2).all(2).all(0) for value in stacked.values()]).all(0)
    if not bool(finite.any()):
        raise UserError("all networks diverged: choose smaller learning rates")
    subject = subject or Subject(run.task.spec, tuple(run.params))
    states = {name: value[:, finite].contiguous() for name, value in stacked.items()}
    return Trajectory(subject, states, functools.partial(_losses, run.task))


def _losses(task: InnerTask, params: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    x, y = replace(task, batch_size=IMAGES).batch(seed, 0)
    logits = task.logits(params, x)
    return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none").view(len(logits), -1).mean(1)
