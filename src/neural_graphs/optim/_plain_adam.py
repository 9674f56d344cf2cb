"""Adam's step: that of parameters that stand in no graph, and the nominal one that update rules start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def new_state(parameter: Tensor) -> dict[str, Tensor]:
    """Zeros, in float32 at least."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return {name: torch.zeros_like(parameter, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}


def nominal_step(mean: Tensor, square: Tensor, step: int) -> Tensor:
    """The bias-corrected step (Kingma & Ba 2015) of moments of any shape, in step number ``step``, from 1."""
    return mean / (1 - BETA1**step) / ((square / (1 - BETA2**step)).sqrt() + EPSILON)


def advance(gradients: Sequence[Tensor], states: Sequence[dict[str, Any]], steps: Sequence[int]) -> list[Tensor]:
    """Bring the moments up to date; the bias-corrected step of each parameter (Kingma & Ba 2015)."""
    gradients = [gradient.to(held["exp_avg"].dtype) for gradient, held in zip(gradients, states, strict=True)]
    means, squares = [held["exp_avg"] for held in states], [held["exp_avg_sq"] for held in states]
    torch._foreach_lerp_(means, gradients, 1 - BETA1)
    torch._foreach_mul_(squares, BETA2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETA2)
    return nominal(states, steps)


def nominal(states: Sequence[dict[str, Any]], steps: Sequence[int]) -> list[Tensor]:
    """The bias-corrected step of each parameter, from its moments."""
    below = torch._foreach_sqrt([held["exp_avg_sq"] for held in states])
    torch._foreach_div_(below, [math.sqrt(1 - BETA2**step) for step in steps])
    torch._foreach_add_(below, EPSILON)
    torch._foreach_mul_(below, [1 - BETA1**step for step in steps])
    return list(torch._foreach_div([held["exp_avg"] for held in states], below))
