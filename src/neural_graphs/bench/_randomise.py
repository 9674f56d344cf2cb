"""Random weights with which a network's function depends on every one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


def randomise(module: nn.Module, seed: int = 0, spread: float = 0.2) -> nn.Module:
    """Make ``module``, as its constructor left it, sensitive to all its weights, in place; returns it.

    A default start hides errors: affine parameters of 1 and 0, running statistics of 0 and 1 and matrices of zeros can be
    permuted wrongly without a change of the output, and matrices with a standard deviation of 0.02 leave every softmax
    flat. So parameters of up to one axis get uniform noise of size ``spread``; matrices are raised to a root mean
    square of at least 1 / sqrt(fan in), and get noise too; running means come from [-spread, spread], running variances from
    [0.5, 1.5]. Other buffers stay. The same ``seed`` gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return (torch.rand(like.shape, generator=generator) * 2 - 1).to(like)

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.add_(spread * noise(parameter))
                continue
            wanted = 1 / math.sqrt(parameter[0].numel())
            size = float(parameter.square().mean().sqrt())
            if 0 < size < wanted:
                parameter.mul_(wanted / size)
            parameter.add_((spread if size > 0 else 1.0) * max(size, wanted) * noise(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(spread * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.5 * noise(buffer))
    return module


def settle(module: nn.Module, example: Any, seed: int = 0) -> nn.Module:
    """Set the running statistics of all batch norms to those that ``example`` shows, times random factors.

    In a deep network with random weights signals else die out or blow up from layer to layer. In place; returns ``module``,
    in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, deviation = norm.get_buffer("running_mean"), x.std(axes, correction=0)
        mean.copy_(x.mean(axes) + 0.2 * deviation * torch.randn(mean.shape, generator=generator))
        norm.get_buffer("running_var").copy_(deviation**2 * (0.5 + torch.rand(mean.shape, generator=generator)) + 1e-3)

    module.eval()
    norms = [part for part in module.modules() if isinstance(part, BatchNorm) and part.track_running_stats]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with torch.no_grad():
            call(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return module


def call(module: nn.Module, example: Any) -> Any:
    """``module`` on an example input: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example, dict):
        return module(**example)
    return module(*example) if isinstance(example, tuple) else module(example)
