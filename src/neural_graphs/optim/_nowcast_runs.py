"""Training runs of many networks at once by Adam: what nowcasters learn from, and what jumps are compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.optim._nowcast_history import Subject, Trajectory
from neural_graphs.optim._task import InnerTask

IMAGES = 256
"""In the minibatches on which nowcasters learn from losses."""

SCHEDULES = ("constant", "linear")
_BETAS, _EPS = (0.9, 0.999), 1e-8


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
        self, task: InnerTask, seeds: Sequence[int], lr: Sequence[float], schedules: Sequence[str], seed: int = 0
    ) -> None:
        if unknown := set(schedules) - set(SCHEDULES):
            raise UserError(f"unknown schedule {min(unknown)!r}: choose among {', '.join(SCHEDULES)}")
        if not len(seeds) == len(lr) == len(schedules):
            raise UserError(f"{len(seeds)} networks with {len(lr)} learning rates and {len(schedules)} schedules")
        self.task, self.seed, self.steps = task, seed, 0
        own = task.new_params(seeds)
        shapes = {name: value.shape for name, value in own.items()}
        sizes = [value[0].numel() for value in own.values()]
        self._flat = torch.cat([value.flatten(1) for value in own.values()], 1)  # one update for all tensors
        parts = self._flat.split(sizes, 1)
        self.params = {name: part.view(shapes[name]) for name, part in zip(own, parts, strict=True)}
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._lr = torch.tensor(lr, device=self._flat.device)[:, None]
        self._decays = torch.tensor([float(s == "linear") for s in schedules], device=self._flat.device)[:, None]

    def step(self) -> Tensor:
        """One step; the losses ``[P]`` on its minibatch."""
        losses, grads = self.task.losses_and_grads(self.params, *self.task.batch(self.seed, self.steps))
        lr = self._lr * (1 - self._decays * (self.steps / self.task.steps))
        self.steps += 1
        g = torch.cat([grads[name].flatten(1) for name in self.params], 1)
        self._first.lerp_(g, 1 - _BETAS[0])
        self._second.mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
        first, second = (1 - beta**self.steps for beta in _BETAS)
        root = self._second.sqrt().mul_(1 / math.sqrt(second)).add_(_EPS)
        self._flat.sub_((lr / first) * self._first / root)
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
