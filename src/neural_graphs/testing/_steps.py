"""What random modules are made of: a registry of small steps, each of which may refuse what it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Saved = list[Tensor]
Forward = Callable[[Any, Tensor, Saved], Tensor]


class Step(nn.Module):
    """One step of a random module: ``forward(own, x, saved)`` with this module's parameters, buffers and layers as ``own``
    and the values of all earlier steps as ``saved``.

    ``scale`` divides the result, so that values neither grow nor vanish over many steps.
    """

    def __init__(self, forward: Forward, **own: Any) -> None:
        super().__init__()
        self._forward, self.scale = forward, 1.0
        for name, value in own.items():
            if isinstance(value, Buffer):
                self.register_buffer(name, value.value, persistent=value.persistent)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor, saved: Saved) -> Tensor:
        found = self._forward(self, x, saved)
        return found if self.scale == 1.0 else found / self.scale


class Buffer:
    """A buffer of a step, to be told from its parameters."""

    def __init__(self, value: Tensor, persistent: bool = True) -> None:
        self.value, self.persistent = value, persistent


class Draw(random.Random):
    """What steps draw from: the same number and name give the same draws."""

    def width(self) -> int:
        return self.choice((2, 3, 4, 4, 6, 8))

    def maybe(self, probability: float = 0.5) -> bool:
        return self.random() < probability

    def dim(self, x: Tensor, first: int = 1) -> int:
        """An axis of ``x``, not the batch axis; often the last, sometimes counted from the end."""
        dim = x.ndim - 1 if self.maybe(0.4) else self.randrange(first, x.ndim)
        return dim - x.ndim if self.maybe(0.3) else dim

    def divisor(self, *numbers: int, least: int = 1) -> int:
        """A common divisor of these numbers. Raises ``IndexError`` when there is none from ``least`` on."""
        return self.choice([k for k in range(least, min(numbers) + 1) if all(n % k == 0 for n in numbers)])

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape))

    def constant(self, *shape: int) -> Tensor:
        """Random values that do not come from the shared generator."""
        values = [self.uniform(-1, 1) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)


Builder = Callable[[Draw, Tensor, Saved], Step]

STEPS: dict[str, Builder] = {}
"""Name -> what builds the step for a tensor. A builder, or the step itself when it first runs, raises ``IndexError``,
``ValueError`` or ``RuntimeError`` for a tensor that it does not fit."""

GROUPS: dict[str, list[str]] = {}


def step(group: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        name = builder.__name__.rstrip("_")
        assert name not in STEPS, name
        STEPS[name] = builder
        GROUPS.setdefault(group, []).append(name)
        return builder

    return register


def largest(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Where the largest entry stands. Equal entries, such as those of copies, would leave that to rounding: a small ramp
    tells them apart."""
    ramp = 0.0137 * torch.arange(x.shape[dim], dtype=x.dtype)
    return (x.movedim(dim, -1) + ramp).movedim(-1, dim).argmax(dim, keepdim=keepdim)


def fill(module: nn.Module, generator: torch.Generator) -> None:
    """Random weights that show: matrices of variance 1 / fan in, vectors and statistics away from 0 and 1."""

    def uniform(like: Tensor) -> Tensor:
        return (torch.rand(like.shape, generator=generator, dtype=torch.float64) * 2 - 1).to(like)

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(uniform(parameter) * (3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.7 * uniform(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.5 * uniform(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.6 * uniform(buffer))
