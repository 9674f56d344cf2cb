"""Pointwise kernels of bulk fitting and rendering: activations with their derivatives, and Adam; fused by torch.compile."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from neural_graphs.graph._activation import KINDS, Activation, Kind

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


Kernel = Callable[..., None]


def _sine(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    h.copy_(torch.sin(z0))
    z.copy_(torch.cos(z0))


def _none(z: Tensor, bias: Tensor, h: Tensor) -> None:
    torch.add(z, bias, out=h)
    z.fill_(1)


def _relu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    h.copy_(torch.relu(z0))
    z.copy_((z0 > 0).to(z0.dtype))


def _leaky_relu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    slope = torch.where(z0 > 0, torch.ones_like(z0), torch.full_like(z0, 0.01))  # numbers would be of float32
    h.copy_(z0 * slope)
    z.copy_(slope)


def _tanh(z: Tensor, bias: Tensor, h: Tensor) -> None:
    value = torch.tanh(z + bias)
    h.copy_(value)
    z.copy_(1 - value * value)


def _sigmoid(z: Tensor, bias: Tensor, h: Tensor) -> None:
    value = torch.sigmoid(z + bias)
    h.copy_(value)
    z.copy_(value * (1 - value))


def _silu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    gate = torch.sigmoid(z0)
    h.copy_(z0 * gate)
    z.copy_(gate * (1 + z0 * (1 - gate)))


def _gelu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    phi = 0.5 * (1 + torch.erf(z0 * math.sqrt(0.5)))
    h.copy_(z0 * phi)
    z.copy_(phi + z0 * torch.exp(-0.5 * z0 * z0) * (1 / math.sqrt(2 * math.pi)))


def _value(kind: Kind) -> Kernel:
    """Overwrites z with f(z + bias)."""
    activation = Activation(kind)

    def value(z: Tensor, bias: Tensor) -> None:
        z.copy_(activation(z + bias))

    return value


def _sine_value_in_place(z: Tensor, bias: Tensor) -> None:
    """As ``_value``, without temporaries."""
    z.add_(bias).sin_()


def _grid(across: Tensor, down: Tensor, h: Tensor) -> None:
    """sin(a + d) for all columns a and rows d from (sine, cosine) ``[m, 2, Q]`` and ``[m, 2, R]``, into h ``[m, R, Q]``."""
    h.copy_(across[:, :1] * down[:, 1].unsqueeze(-1) + across[:, 1:] * down[:, 0].unsqueeze(-1))


def _grid_in_place(across: Tensor, down: Tensor, h: Tensor) -> None:
    """As ``_grid``, without temporaries."""
    torch.mul(across[:, :1], down[:, 1].unsqueeze(-1), out=h).addcmul_(across[:, 1:], down[:, 0].unsqueeze(-1))


def _adam(
    param: Tensor, effective: Tensor, grad: Tensor, m: Tensor, v: Tensor, scale: Tensor, size: Tensor, root: Tensor
) -> None:
    """Adam with the bias corrections in ``size`` = lr / (1 - β1^t) and ``root`` = sqrt(1 - β2^t)."""
    g = grad * scale
    m1 = m + (g - m) * (1 - ADAM_BETAS[0])
    v1 = v * ADAM_BETAS[1] + g * g * (1 - ADAM_BETAS[1])
    updated = param - size * m1 / (torch.sqrt(v1) / root + ADAM_EPS)
    m.copy_(m1)
    v.copy_(v1)
    param.copy_(updated)
    effective.copy_(updated * scale)


def _sine_in_place(z: Tensor, bias: Tensor, h: Tensor) -> None:
    """``_sine`` without temporaries, for when there is no compiler."""
    z.add_(bias)
    torch.sin(z, out=h)
    z.cos_()


def _adam_in_place(
    param: Tensor, effective: Tensor, grad: Tensor, m: Tensor, v: Tensor, scale: Tensor, size: Tensor, root: Tensor
) -> None:
    """``_adam`` without temporaries, for when there is no compiler."""
    grad.mul_(scale)
    m.lerp_(grad, 1 - ADAM_BETAS[0])
    v.mul_(ADAM_BETAS[1]).addcmul_(grad, grad, value=1 - ADAM_BETAS[1])
    step = torch.sqrt(v, out=effective).div_(root).add_(ADAM_EPS).reciprocal_().mul_(m)
    param.sub_(step.mul_(size))
    torch.mul(param, scale, out=effective)


# An activation's kernel overwrites h with f(z + bias) and z with f'(z + bias); sines are of frequency 1.
_KERNELS: dict[str, Kernel] = {
    "none": _none,
    "sine": _sine,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "adam": _adam,
    "grid of sines": _grid,
    **{f"value of {kind}": _value(cast(Kind, kind)) for kind in KINDS},
}
_EAGER: dict[str, Kernel] = {
    **_KERNELS,
    "sine": _sine_in_place,
    "adam": _adam_in_place,
    "grid of sines": _grid_in_place,
    "value of sine": _sine_value_in_place,
}
_compiled: dict[str, Kernel] = {}
_compile_lock = threading.Lock()


def kernel(name: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> Kernel:
    """A pointwise kernel: fused by torch.compile where asked for and possible, else eager. It runs on torch's threads."""
    if not compiled:
        return _EAGER[name]
    with _compile_lock:
        key = f"{name} {device.type} {dtype}"
        if key not in _compiled:
            _compiled[key] = _compile(name, device, dtype)
        return _compiled[key]


def _compile(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    options: dict[str, Any] = {"cpp.dynamic_threads": True, "compile_threads": 1} if device.type == "cpu" else {}
    fused: Kernel = torch.compile(_KERNELS[name], dynamic=True, options=options)
    shapes = [(240,)] * 6 + [()] * 2 if name == "adam" else [(4, 6, 40), (4, 6, 1), (4, 6, 40)]
    if name.startswith("value"):
        shapes.pop()
    if name.startswith("grid"):
        shapes = [(40, 2, 6), (40, 2, 8), (40, 8, 6)]
    try:
        fused(*(torch.ones(shape, device=device, dtype=dtype) for shape in shapes))
    except Exception:  # no C++ compiler, no Triton, an unsupported platform: the eager kernel computes the same
        return _EAGER[name]
    return fused
