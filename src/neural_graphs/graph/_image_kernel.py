"""Images of many multilayer perceptrons by one compiled function, whose values stay in the core's own cache.

``_image_kernel.cpp`` is compiled when it is first needed. Where there is no compiler, and for other networks,
``_drawing.py`` computes the same.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.graph._native import native_function
from neural_graphs.graph._stack import Stack

_KINDS = ("none", "sine", "relu", "tanh")  # as the source numbers them


class _Task(ctypes.Structure):
    """As the source has it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("networks", "depth", "width", "height", "threads")),
        *((name, ctypes.c_void_p) for name in ("widths", "kinds", "omegas", "columns", "rows")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("weights", "biases")),
        *((name, ctypes.c_void_p) for name in ("images", "slopes")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("weight_gradients", "bias_gradients")),
    )


def can_draw_natively(stack: Stack, dtype: torch.dtype) -> bool:
    """Whether ``draw_natively`` knows the architecture, of those that ``can_draw``, and there is a compiler."""
    known = dtype == torch.float32 and all(layer.activation.kind in _KINDS for layer in stack.layers)
    return known and _function() is not None


def draw_natively(stack: Stack, params: dict[str, Tensor], columns: Tensor, rows: Tensor) -> Tensor:
    """As ``draw``, in float32, on torch's number of threads.

    An image does not depend, to the bit, on the networks beside it, nor on the number of threads.
    """
    names = [name for layer in stack.layers for name in (layer.weight, layer.bias_name) if name]
    drawn: Tensor = _Draw.apply(stack, columns, rows, *(params[name] for name in names))
    return drawn


def _function() -> Any:
    return native_function(Path(__file__).with_suffix(".cpp"), "draw_images", (ctypes.POINTER(_Task),))


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stack: Stack, columns: Tensor, rows: Tensor, *parameters: Tensor) -> Tensor:
        ctx.plan = stack, columns, rows
        ctx.save_for_backward(*parameters)
        images = columns.new_empty(len(parameters[0]), stack.widths[-1], len(rows) * len(columns))
        _call((stack, columns, rows), parameters, images, None, None)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        found = [torch.empty_like(value, memory_format=torch.contiguous_format) for value in parameters]
        _call(ctx.plan, parameters, None, slopes.contiguous(), found)
        return (None, None, None, *found)


def _call(
    plan: tuple[Stack, Tensor, Tensor],
    parameters: tuple[Tensor, ...],
    images: Tensor | None,
    slopes: Tensor | None,
    gradients: list[Tensor] | None,
) -> None:
    stack, columns, rows = plan
    layers = stack.layers
    values = [value.contiguous() for value in parameters]
    widths = np.array(stack.widths, np.int32)
    kinds = np.array([_KINDS.index(layer.activation.kind) for layer in layers], np.int32)
    omegas = np.array([layer.activation.omega for layer in layers], np.float32)
    task = _Task(
        len(values[0]), len(layers), len(columns), len(rows), torch.get_num_threads(), widths.ctypes.data,
        kinds.ctypes.data, omegas.ctypes.data, columns.data_ptr(), rows.data_ptr(), *_addresses(stack, values),
        None if images is None else images.data_ptr(), None if slopes is None else slopes.data_ptr(),
        *_addresses(stack, gradients),
    )  # fmt: skip
    _function()(task)


def _addresses(stack: Stack, tensors: list[Tensor] | None) -> tuple[Any, Any]:
    """Those of the layers' weights, and of their biases or null."""
    if tensors is None:
        return None, None
    left = iter(tensors)
    pairs = [(next(left).data_ptr(), next(left).data_ptr() if layer.bias_name else None) for layer in stack.layers]
    weights, biases = ((ctypes.c_void_p * len(pairs))(*each) for each in zip(*pairs, strict=True))
    return weights, biases
