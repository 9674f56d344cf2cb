"""Phases of sine units in one canonical form: sin(z + pi) = -sin(z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fold(bias: Tensor) -> tuple[Tensor, Tensor]:
    """Biases of ``sin(z + bias)`` in ``(-pi/2, pi/2]``, and ±1 for what their neurons hand on.

    ``bias`` is of any shape, in radians (frequencies absorbed). ``sin(z + bias) = flip * sin(z + folded)`` exactly, so
    outgoing weights are to be multiplied by ``flip``. Differentiable in ``bias`` (slope 1) everywhere but where it is
    folded: there a small change of the bias makes it jump by pi and the flip change sign, the price of any canonical form
    of a circle.
    """
    turns = torch.ceil(bias.detach() / math.pi - 0.5)
    return bias - turns * math.pi, 1 - 2 * turns.remainder(2)
