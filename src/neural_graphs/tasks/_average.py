"""The exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """``average <- d * average + (1 - d) * weights`` after every step, from the initial weights on.

    At step t (from 0), d is ``min(decay, (1 + t) / (10 + t))``: the average of a short run is one of its last steps, not of
    its initial weights. Buffers are not averaged, they stay those of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Count in the weights after step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            self.values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Give ``model`` the average for good."""
        for name, value in model.named_parameters():
            value.copy_(self.values[name])

    @contextlib.contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """In the block ``model`` has the average, behind it its own weights again, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.write(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(own[name])
