"""Invariant forms of embeddings that multiply with a neuron's scale or sign."""

from __future__ import annotations

import torch
from torch import Tensor

from neural_graphs.graph._activation import Activation


def canonical(x: Tensor, activation: Activation) -> Tensor:
    """What of ``x`` ``[..., F]`` does not change when its neuron is rescaled (Kalogeropoulos et al. 2024, section 5.1).

    Positive scale: ``x`` over its root mean square; sign: ``|x|``; identity units, which have both: both; units with
    neither: ``x`` itself. Nothing is added to the norm, so that the form is the same for every scale; a vector of zeros
    stays zero, with a finite gradient.
    """
    if activation.scale:
        x = unit(x)
    return x.abs() if activation.sign else x


def unit(x: Tensor) -> Tensor:
    """``x`` ``[..., F]`` over its root mean square; zeros (in float32, below 1e-19) stay as they are."""
    square = x.square().mean(-1, keepdim=True)
    return x * torch.rsqrt(square.masked_fill(square < torch.finfo(square.dtype).tiny, 1))
