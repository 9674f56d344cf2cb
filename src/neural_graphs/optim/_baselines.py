"""Hand-designed optimizers for many networks at once, each with its own settings: what learned ones have to beat.

The parameters of P networks are one buffer ``[P, n]``, so that a step is a handful of calls whatever the architecture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from neural_graphs.errors import UserError

Schedule = Literal["constant", "linear", "cosine"]
WARM_UP = 0.05
"""Share of the horizon over which a cosine schedule warms up."""


@dataclass(frozen=True)
class Setting:
    """One optimizer with its hyper-parameters; ``weight_decay`` is decoupled but for SGD, as in ``torch.optim``."""

    optimizer: str
    lr: float
    schedule: Schedule = "constant"
    weight_decay: float = 0.0

    def __str__(self) -> str:
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return f"lr {self.lr:g}, {self.schedule}{decay}"

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def schedule_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor on the learning rate in step ``step`` (from 0) of ``steps``.

    ``"linear"`` falls from 1 to 1 / steps in the last step; ``"cosine"`` rises over the first 5 % of the steps and falls to
    0 after the last.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - step / steps
    if schedule == "cosine":
        warm = max(1, round(WARM_UP * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    raise UserError(f"unknown schedule {schedule!r}: choose constant, linear or cosine")


class FlatParameters:
    """``params`` ``{name: [P, *shape]}`` copied into one buffer ``flat`` ``[P, n]``, of which ``views`` are parts."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.names = tuple(params)
        self.shapes = {name: value.shape for name, value in params.items()}
        self.sizes = [value[0].numel() for value in params.values()]
        self.flat = torch.cat([value.flatten(1) for value in params.values()], 1)
        self.views = self.split(self.flat)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a buffer of the same shape by name."""
        parts = flat.split(self.sizes, 1)
        return {
            name: part.unflatten(1, shape[1:]) if len(shape) > 2 else part
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """A new buffer ``[P, n]`` from tensors by name."""
        return torch.cat([values[name].flatten(1) for name in self.names], 1)


class Baseline:
    """Steps P networks, whose ``settings`` may differ in everything but the optimizer, through ``steps`` minibatches."""

    name: ClassVar[str] = ""

    def __init__(self, parameters: FlatParameters, settings: Sequence[Setting], steps: int) -> None:
        if len(settings) != len(parameters.flat):
            raise UserError(f"{len(parameters.flat)} networks need as many settings, got {len(settings)}")
        self.parameters, self.count = parameters, 0
        flat = parameters.flat
        factors = [[schedule_factor(s.schedule, step, steps) for s in settings] for step in range(steps)]
        rates = flat.new_tensor([setting.lr for setting in settings], dtype=torch.float64)
        self._rates = (rates * flat.new_tensor(factors, dtype=torch.float64)).to(flat.dtype).unsqueeze(2)
        decays = flat.new_tensor([setting.weight_decay for setting in settings]).unsqueeze(1)
        self._decays = decays if bool(decays.any()) else None

    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Updates the parameters in place from gradients ``{name: [P, *shape]}``."""
        flat, lr = self.parameters.flat, self._rates[self.count]
        self.count += 1
        update = self.direction(self.parameters.join(grads))
        if self._decays is not None:
            self.decay(lr, update)
        flat.addcmul_(update, lr, value=-1)

    def decay(self, lr: Tensor, update: Tensor) -> None:
        """Decoupled weight decay (Loshchilov and Hutter 2019)."""
        assert self._decays is not None
        self.parameters.flat.mul_(1 - lr * self._decays)

    def direction(self, g: Tensor) -> Tensor:
        """What is subtracted for a learning rate of 1, ``[P, n]``, from the gradients; ``count`` is 1 in the first step."""
        raise NotImplementedError


class SGD(Baseline):
    """Nesterov momentum .9, as ``torch.optim.SGD(nesterov=True)``; weight decay is added to the gradient."""

    name = "sgd"
    momentum = 0.9

    def __init__(self, parameters: FlatParameters, settings: Sequence[Setting], steps: int) -> None:
        super().__init__(parameters, settings, steps)
        self._buffer = torch.zeros_like(parameters.flat)

    def direction(self, g: Tensor) -> Tensor:
        if self._decays is not None:
            g = torch.addcmul(g, self.parameters.flat, self._decays)
        self._buffer.mul_(self.momentum).add_(g)
        return g.add(self._buffer, alpha=self.momentum)

    def decay(self, lr: Tensor, update: Tensor) -> None:
        pass


class Adam(Baseline):
    """Kingma and Ba 2015, as ``torch.optim.Adam`` (β .9 and .999, ε 1e-8); with weight decay ``torch.optim.AdamW``."""

    name = "adam"
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, parameters: FlatParameters, settings: Sequence[Setting], steps: int) -> None:
        super().__init__(parameters, settings, steps)
        self._mean, self._square = torch.zeros_like(parameters.flat), torch.zeros_like(parameters.flat)

    def direction(self, g: Tensor) -> Tensor:
        denominator = self._update(g)
        return torch.div(self._mean, denominator).mul_(1 / (1 - self.beta1**self.count))

    def _update(self, g: Tensor) -> Tensor:
        """Brings both means up to date; returns the corrected root of the second, plus ε."""
        self._mean.lerp_(g, 1 - self.beta1)
        self._square.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        return self._square.sqrt().mul_((1 - self.beta2**self.count) ** -0.5).add_(self.epsilon)


class AdamW(Adam):
    name = "adamw"


class NAdamW(Adam):
    """Dozat 2016 with decoupled weight decay, as ``torch.optim.NAdam(decoupled_weight_decay=True)``."""

    name = "nadamw"
    momentum_decay = 4e-3

    def __init__(self, parameters: FlatParameters, settings: Sequence[Setting], steps: int) -> None:
        super().__init__(parameters, settings, steps)
        self._product = 1.0

    def direction(self, g: Tensor) -> Tensor:
        mu, ahead = (self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)) for t in (self.count, self.count + 1))
        self._product *= mu
        denominator = self._update(g)
        update = g.mul((1 - mu) / (1 - self._product))
        return update.add_(self._mean, alpha=ahead / (1 - self._product * ahead)).div_(denominator)


class Muon(Adam):
    """Orthogonalised momentum (Jordan et al. 2024, as ``torch.optim.Muon``) for weights, AdamW for all other tensors.

    Convolutions are flattened to ``[out, in * taps]``. The step is scaled to the root mean square of Adam's
    (``adjust_lr_fn="match_rms_adamw"``, Liu et al. 2025), so that one learning rate serves both.
    """

    name = "muon"
    momentum = 0.95
    coefficients, rounds = (3.4445, -4.7750, 2.0315), 5

    def __init__(self, parameters: FlatParameters, settings: Sequence[Setting], steps: int) -> None:
        super().__init__(parameters, settings, steps)
        self._buffer = torch.zeros_like(parameters.flat)
        self._weights = [name for name, shape in parameters.shapes.items() if len(shape) in (3, 5)]

    def direction(self, g: Tensor) -> Tensor:
        update = super().direction(g)
        self._buffer.lerp_(g, 1 - self.momentum)
        nesterov = self.parameters.split(g.lerp(self._buffer, self.momentum))
        views = self.parameters.split(update)
        for name in self._weights:
            matrices = nesterov[name].flatten(2)
            scale = 0.2 * math.sqrt(max(matrices.shape[1:]))
            views[name].copy_(orthogonalised(matrices, self.coefficients, self.rounds).view_as(views[name]).mul_(scale))
        return update


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], rounds: int) -> Tensor:
    """``[P, rows, columns]`` with singular values near 1, by the quintic Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.transpose(1, 2)).contiguous()


BASELINES: dict[str, type[Baseline]] = {kind.name: kind for kind in (SGD, Adam, AdamW, NAdamW, Muon)}

_SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine")


def _grid(optimizer: str, rates: Sequence[float], decays: Sequence[float] = (0.0,)) -> tuple[Setting, ...]:
    return tuple(Setting(optimizer, *entry) for entry in itertools.product(rates, _SCHEDULES, decays))


GRIDS: dict[str, tuple[Setting, ...]] = {
    "sgd": _grid("sgd", (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)),
    "adam": _grid("adam", (1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2, 2e-2, 3e-2, 5e-2, 8e-2)),
    "adamw": _grid("adamw", (5e-3, 1e-2, 2e-2, 4e-2, 8e-2), (1e-2, 1e-1)),
    "nadamw": _grid("nadamw", (5e-3, 1e-2, 2e-2, 4e-2, 8e-2), (0.0, 1e-1)),
    "muon": _grid("muon", (2e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.15, 0.3)),
}
"""What each baseline is tuned over: learning rates x schedules x weight decays, 24 to 30 settings."""
