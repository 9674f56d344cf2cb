"""Inner tasks in progress: many networks that are trained by perturbed copies of one rule, some steps at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from neural_graphs.optim._baselines import Schedule, schedule_factor
from neural_graphs.optim._config import MetaConfig
from neural_graphs.optim._families import HELD_OUT, sample_task
from neural_graphs.optim._rule import UpdateRule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._train_many import window
from neural_graphs.optim._wiring import Wiring

_OWN_TASKS = ("paper-fashion", "paper-cifar10")
"""Groups of held-out tasks that rules may be trained on: the paper trains on one task alone."""

_VALIDATION = 1 << 30
"""Seeds of tasks from here on are those of validation."""


class Slot:
    """One inner task in progress; when it ends, another is drawn. Depends on (configuration, ``number``) alone.

    ``advance`` unrolls ``config.truncation`` steps and gives the slot's part of the meta-gradient.
    """

    def __init__(self, config: MetaConfig, rule: UpdateRule, number: int) -> None:
        self.config, self.rule, self.number = config, rule, number
        rule.figures = False
        self.shapes = {name: value.shape for name, value in rule.named_parameters()}
        self.count = 2 * config.pairs if config.method == "pes" else config.pairs
        self.drawn = 0
        self._start()

    def _start(self) -> None:
        """The next task, from its beginning."""
        self.task = task_of(self.config, self.number + self.config.slots * self.drawn)
        if self.drawn == 0:  # so that the slots do not all start anew together
            share = (self.number + 1) / self.config.slots
            self.task = self.task.with_steps(max(1, round(share * self.task.steps)))
        self.drawn += 1
        self.step = 0
        self.run = _mixed(self.config.seed, self.number, self.drawn)
        starts = [self.run + pair for pair in range(self.config.pairs)] * (self.count // self.config.pairs)
        self.params = self.task.new_params(starts)
        self.state = self.rule.new_state(self.params)
        self.wiring = Wiring.of(self.task.spec, set(self.params))
        size = sum(shape.numel() for shape in self.shapes.values())
        self.path = torch.zeros(self.config.pairs, size)

    def advance(self, theta: Tensor, number: int) -> tuple[Tensor, float]:
        """Gradient ``[D]`` of the objective at ``theta [D]`` in meta-step ``number``, and the mean inner loss in nats."""
        if self.config.method == "backprop":
            return self._backpropagate(theta)
        generator = torch.Generator().manual_seed(_mixed(self.config.seed, self.number, number, 1))
        noise = self.config.sigma * torch.randn(self.path.shape, generator=generator)
        weights = self._weights(torch.cat([theta + noise, theta - noise]))
        total, seen, count = torch.zeros(self.count), 0.0, 0
        while count < self.config.truncation and self.step < self.task.steps:
            losses = self._train(weights)
            total += self._weight() * self._cost(losses)
            seen += float(losses.mean())
            self.step, count = self.step + 1, count + 1
        self.path += noise
        plus, minus = (total / self.config.truncation).split(self.config.pairs)
        gradient = (plus - minus) @ self.path / (2 * self.config.sigma**2 * self.config.pairs)
        self._end()
        return gradient, seen / count

    def _train(self, weights: Mapping[str, Tensor]) -> Tensor:
        x, y = self.task.batch(self.run, self.step)
        losses, grads = self.task.losses_and_grads(self.params, x, y)
        steps = dict.fromkeys(self.params, self.step + 1)
        proposal = self.rule.propose(self.wiring, self.params, grads, self.state, steps, weights)
        rate = self._rate()
        for name, update in proposal.updates.items():
            self.params[name].sub_(update, alpha=rate)
        return losses

    def _rate(self) -> float:
        return inner_rate(self.config.lr, self.config.schedule, self.step, self.task.steps)

    def _weight(self) -> float:
        """Of the loss of this step; 1 on average over a horizon."""
        late = self.config.late
        return (1 + late * (self.step / self.task.steps) ** 2) / (1 + late / 3)

    def _cost(self, losses: Tensor) -> Tensor:
        """Relative improvements count alike whatever a task's loss is; nothing is gained below a twentieth of a nat."""
        return (losses.nan_to_num(nan=math.inf).clamp(max=self.config.loss_clip) + 0.05).log()

    def _end(self) -> None:
        if self.step >= self.task.steps or not all(bool(value.isfinite().all()) for value in self.params.values()):
            self._start()

    def _weights(self, theta: Tensor) -> dict[str, Tensor]:
        """``theta [P, D]`` by name."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()], 1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(len(theta), *shape).contiguous() for (name, shape), part in named}

    # -- through the updates ------------------------------------------------------------------------------------------

    def _backpropagate(self, theta: Tensor) -> tuple[Tensor, float]:
        """Losses of every step's own minibatch after its update, with inner gradients and the rule's inputs as constants."""
        gradient, seen, count = torch.zeros_like(theta), 0.0, 0
        for _ in range(self.config.accumulate):
            theta = theta.detach().requires_grad_()
            weights = self._weights(theta.expand(self.count, -1))
            total, moved = torch.zeros(()), dict.fromkeys(self.params, torch.zeros(()))
            for _ in range(self.config.truncation):
                if self.step >= self.task.steps:
                    break
                x, y = self.task.batch(self.run, self.step)
                losses, grads = self.task.losses_and_grads(self.params, x, y)
                steps = dict.fromkeys(self.params, self.step + 1)
                proposal = self.rule.propose(self.wiring, self.params, grads, self.state, steps, weights)
                rate = self._rate()
                for name, update in proposal.updates.items():
                    moved[name] = moved[name] - rate * update
                    self.params[name].sub_(update.detach(), alpha=rate)
                current = {name: self.params[name] + (moved[name] - moved[name].detach()) for name in self.params}
                after = torch.nn.functional.cross_entropy(
                    self.task.architecture.forward(current, x).flatten(0, 1), y.repeat(self.count), reduction="none"
                ).view(self.count, -1)
                total = total + self._weight() * self._cost(after.mean(1)).mean()
                seen, count, self.step = seen + float(losses.mean()), count + 1, self.step + 1
            if total.requires_grad:
                gradient += torch.autograd.grad(total / self.config.truncation, theta)[0].nan_to_num()
            self.state = {name: {k: v.detach() for k, v in held.items()} for name, held in self.state.items()}
            self._end()
        return gradient / self.config.accumulate, seen / max(1, count)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All that ``restore`` needs, by name."""
        found = {"path": self.path, "position": torch.tensor([self.drawn, self.step])}
        for name, value in self.params.items():
            found[f"params.{name}"] = value
            found |= {f"state.{name}.{key}": held for key, held in self.state[name].items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where ``tensors`` were taken."""
        self.drawn = int(tensors["position"][0]) - 1
        self._start()
        self.step = int(tensors["position"][1])
        self.path = tensors["path"].clone()
        for name in self.params:
            self.params[name] = tensors[f"params.{name}"].clone()
            for key in self.state[name]:
                self.state[name][key] = tensors[f"state.{name}.{key}"].clone()


def task_of(config: MetaConfig, number: int) -> InnerTask:
    """Training task ``number`` of a run."""
    generator = np.random.default_rng([config.seed, number, 17])
    if config.family in _OWN_TASKS:
        tasks = HELD_OUT[config.family]
        task = tasks[int(generator.integers(len(tasks)))]
    else:
        task = sample_task(config.family, _mixed(config.seed, number) % _VALIDATION, config.augment)
    if config.horizon:
        low, high = map(math.log, config.horizon)
        task = task.with_steps(round(math.exp(generator.uniform(low, high))))
    return task


def validation_tasks(config: MetaConfig) -> list[InnerTask]:
    """The fixed tasks that rules of a family are chosen on, none of which is trained on; the same for every seed."""
    if config.family in _OWN_TASKS:
        return [task_of(replace(config, seed=0), 0)]
    tasks = [sample_task(config.family, _VALIDATION + number) for number in range(config.eval_tasks)]
    if not config.horizon:
        return tasks
    return [task.with_steps(min(max(task.steps, config.horizon[0]), config.horizon[1])) for task in tasks]


@torch.no_grad()
def validate(rule: UpdateRule, tasks: list[InnerTask], lr: float, schedule: Schedule) -> dict[str, float]:
    """Mean training loss of the last twentieth of every task's steps, by its name, in nats, of two networks."""
    return {task.name: final_loss(rule, task, lr, schedule) for task in tasks}


def final_loss(
    rule: UpdateRule, task: InnerTask, lr: float, schedule: Schedule, seeds: tuple[int, ...] = (0, 1)
) -> float:
    params = task.new_params(seeds)
    state, wiring = rule.new_state(params), Wiring.of(task.spec, set(params))
    curve: list[Tensor] = []
    for step in range(task.steps):
        losses, grads = task.losses_and_grads(params, *task.batch(seeds[0], step))
        proposal = rule.propose(wiring, params, grads, state, dict.fromkeys(params, step + 1))
        rate = inner_rate(lr, schedule, step, task.steps)
        for name, update in proposal.updates.items():
            params[name].sub_(update, alpha=rate)
        curve.append(losses)
    return float(torch.stack(curve[-window(task.steps) :]).nan_to_num(nan=math.inf).clamp(max=100).mean())


def inner_rate(lr: float, schedule: Schedule, step: int, steps: int) -> float:
    return lr * schedule_factor(schedule, step, steps)


def _mixed(*numbers: int) -> int:
    """One seed of many numbers."""
    return int(np.random.SeedSequence([number % (1 << 63) for number in numbers]).generate_state(1)[0] >> 1)
