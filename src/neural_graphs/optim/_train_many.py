"""Training many networks of one inner task side by side, with any optimizer, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import BASELINES, Adam, FlatParameters, Schedule, Setting, schedule_factor
from neural_graphs.optim._data import Split
from neural_graphs.optim._rule import UpdateRule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._wiring import Wiring

WINDOW = 0.05
"""Share of the horizon (20 steps at least) over which minibatch losses are averaged."""

WORST_LOSS = 1e3
"""Stands for losses that are not finite, and for larger ones."""

_FEW = 8


class Stepper(Protocol):
    """An optimizer at work on P networks."""

    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Updates the parameters in place from gradients ``{name: [P, *shape]}``."""


Make = Callable[[InnerTask, FlatParameters], Stepper]


@dataclass(frozen=True, eq=False)
class Training:
    """What P runs came to; tensors are ``[P]`` float64 on the CPU unless said otherwise.

    ``losses`` ``[T, P]`` are those of the minibatches before each step, ``last_loss`` their means over the last ``WINDOW``;
    ``train_loss`` is on 5,000 fixed training images, ``scores`` (loss, accuracy) per further split. Where a loss was not
    finite (``diverged``), losses are ``WORST_LOSS`` and accuracies 0. ``gradient_seconds`` and ``step_seconds`` are the
    whole time that gradients and the optimizer took.
    """

    losses: Tensor
    last_loss: Tensor
    train_loss: Tensor
    scores: dict[Split, tuple[Tensor, Tensor]]
    diverged: Tensor
    gradient_seconds: float
    step_seconds: float

    @property
    def smoothed(self) -> Tensor:
        """``[T, P]``: means over the window that ends at each step."""
        return smoothed(self.losses)


def train_many(
    task: InnerTask, make: Make, seeds: Sequence[int], repeats: int = 1, splits: Sequence[Split] = ("val",)
) -> Training:
    """Trains ``repeats`` networks for each seed: particle ``s * repeats + r`` starts as the seed ``seeds[s]`` says, and sees
    its minibatches.

    So runs of equal seeds are paired, whatever the optimizer. Scored on the training images and on ``splits``.
    """
    if not seeds:
        raise UserError("training needs at least one seed")
    params = FlatParameters(task.new_params([seed for seed in seeds for _ in range(repeats)]))
    stepper = make(task, params)
    losses = torch.empty(task.steps, len(params.flat), device=params.flat.device)
    gradient_seconds = step_seconds = 0.0
    with torch.no_grad():
        for step in range(task.steps):
            start = time.perf_counter()
            losses[step], grads = _gradients(task, params, seeds, repeats, step)
            middle = time.perf_counter()
            stepper.step(grads)
            gradient_seconds += middle - start
            step_seconds += time.perf_counter() - middle
    train_loss, _ = task.score(params.views, "train")
    scores = {split: task.score(params.views, split) for split in splits}
    losses = losses.cpu()
    bad = ~(losses.isfinite().all(0) & params.flat.isfinite().all(1).cpu() & train_loss.isfinite())
    last = losses[-window(task.steps) :].double().mean(0)
    worst = torch.tensor(WORST_LOSS, dtype=torch.float64)

    def capped(values: Tensor) -> Tensor:
        return torch.where(bad, worst, values.nan_to_num(WORST_LOSS).clamp(max=WORST_LOSS))

    judged = {split: (capped(loss), accuracy.masked_fill(bad, 0)) for split, (loss, accuracy) in scores.items()}
    return Training(losses, capped(last), capped(train_loss), judged, bad, gradient_seconds, step_seconds)


def window(steps: int) -> int:
    """Number of minibatches over which losses are averaged."""
    return min(steps, max(20, round(WINDOW * steps)))


def smoothed(losses: Tensor) -> Tensor:
    """Means of ``[T, P]`` over the window that ends at each step (shorter at the start), float64, at most ``WORST_LOSS``."""
    size = window(len(losses))
    total = losses.double().nan_to_num(WORST_LOSS).clamp(max=WORST_LOSS).cumsum(0)
    total = torch.cat([torch.zeros_like(total[:1]), total])
    ends = torch.arange(1, len(losses) + 1)
    starts = (ends - size).clamp(min=0)
    return (total[ends] - total[starts]) / (ends - starts).unsqueeze(1)


def _gradients(
    task: InnerTask, params: FlatParameters, seeds: Sequence[int], repeats: int, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    if len(seeds) == 1:
        return task.losses_and_grads(params.views, *task.batch(seeds[0], step))
    batches = [task.batch(seed, step) for seed in seeds]
    if repeats < _FEW and task.takes_own_batches:
        x, y = (torch.stack(parts).repeat_interleave(repeats, 0) for parts in zip(*batches, strict=True))
        return task.losses_and_grads(params.views, x, y)
    found = []
    for number, batch in enumerate(batches):
        own = slice(number * repeats, (number + 1) * repeats)
        found.append(task.losses_and_grads({name: value[own] for name, value in params.views.items()}, *batch))
    losses, grads = zip(*found, strict=True)
    return torch.cat(losses), {name: torch.cat([part[name] for part in grads]) for name in params.names}


# -- steppers --------------------------------------------------------------------------------------------------------------


def with_settings(settings: Sequence[Setting]) -> Make:
    """A baseline with these settings, which are repeated for every seed."""
    kind = BASELINES[settings[0].optimizer]

    def make(task: InnerTask, parameters: FlatParameters) -> Stepper:
        return kind(parameters, list(settings) * (len(parameters.flat) // len(settings)), task.steps)

    return make


def with_rule(rule: UpdateRule, rates: Sequence[float], schedule: Schedule = "linear", every: int = 1) -> Make:
    """An update rule with these learning rates, which are repeated for every seed.

    ``every``: the rule's context is computed in every so many steps.
    """

    def make(task: InnerTask, parameters: FlatParameters) -> Stepper:
        return RuleStepper(rule, task, parameters, list(rates) * (len(parameters.flat) // len(rates)), schedule, every)

    return make


class RuleStepper:
    """Steps P networks by an update rule; what does not stand in the graph takes Adam steps of the same learning rate."""

    def __init__(
        self,
        rule: UpdateRule,
        task: InnerTask,
        parameters: FlatParameters,
        rates: Sequence[float],
        schedule: Schedule = "linear",
        every: int = 1,
    ) -> None:
        self.rule, self.parameters, self.schedule, self.every = rule, parameters, schedule, every
        self.count, self.steps = 0, task.steps
        self._rates = parameters.flat.new_tensor(rates).unsqueeze(1)
        self._wiring = Wiring.of(task.spec, parameters.names)
        inside = {name: parameters.views[name] for name in self._wiring.parameters}
        self._state = rule.new_state(inside)
        self._memory: dict[str, object] = {}
        self._rest: FlatParameters | None = None
        if outside := {name: value for name, value in parameters.views.items() if name not in inside}:
            self._rest = FlatParameters(outside)
            self._adam = Adam(self._rest, [Setting("adam", 1.0)] * len(rates), task.steps)

    def step(self, grads: Mapping[str, Tensor]) -> None:
        factor = schedule_factor(self.schedule, self.count, self.steps)
        self.count += 1
        if self.every > 1 and self.count % self.every == 1:
            self._memory.clear()
        names, views = self._wiring.parameters, self.parameters.views
        with torch.no_grad():
            proposal = self.rule.propose(
                self._wiring,
                {name: views[name] for name in names},
                {name: grads[name] for name in names},
                self._state,
                dict.fromkeys(names, self.count),
                memory=self._memory if self.every > 1 else None,
            )
            updates = dict(proposal.updates)
            if self._rest is not None:
                self._adam.count += 1
                updates |= self._rest.split(self._adam.direction(self._rest.join(grads)))
            self.parameters.flat.addcmul_(self.parameters.join(updates), self._rates, value=-factor)
