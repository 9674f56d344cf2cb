"""Losses and gradients of many small convolutional networks by one compiled function, whose feature maps stay in the cache.

``_training_step.cpp`` is compiled for the machine's own processor when it is first needed. Where there is no compiler, and
for other networks, ``_grouped.py`` computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.graph._native import native_function

if TYPE_CHECKING:
    from neural_graphs.graph import Stack

_SOURCE = Path(__file__).with_suffix(".cpp")
_LANES = 16  # of the longest vectors that the source is compiled to
_ARGUMENTS = (*[ctypes.c_int] * 4, *[ctypes.c_void_p] * 10)


def _function() -> Any:
    """The function of the source, or None without a compiler that takes it."""
    return native_function(_SOURCE, "training_step", _ARGUMENTS)


class TrainingStep:
    """``step(picked, noise, flat, gradients) -> losses`` for B networks of one shape on ``images`` ``[N, c, h, w]``.

    ``flat`` float32 ``[P]`` holds their parameters, one after another as ``params`` ``{name: [B, *shape]}`` has them;
    ``gradients`` likewise is written over with those of ``losses`` ``[B]``, mean cross-entropies of the images ``picked``
    ``[n]``. ``noise`` has a tensor ``[n, H, W, 1, C]`` in [0, 1) for each hidden layer of which values are dropped, where it
    lies below the network's rate in ``rates`` ``[B]``, else None.

    Only for what it ``takes``.
    """

    def __init__(
        self, stacks: Sequence[Stack], images: Tensor, labels: Tensor, params: Mapping[str, Tensor], rates: Tensor
    ) -> None:
        first = stacks[0]
        self._pixels, self._labels = images.permute(0, 2, 3, 1).contiguous(), labels.contiguous()
        self._counts = len(stacks), len(first.layers) - 1, first.num_outputs
        self._shapes = np.array(_shapes(first, images.shape[1:]), np.int32)
        sizes = [value.numel() for value in params.values()]
        begin = dict(zip(params, np.cumsum([0, *sizes]).tolist(), strict=False))
        wanted = [name for layer in first.layers for name in (layer.weight, layer.bias_name or "")]
        self._offsets = np.array([begin[name] for name in wanted], np.int64)
        self._tanh = np.array([[layer.activation.kind == "tanh" for layer in s.layers[:-1]] for s in stacks], np.int32)
        self._rates = rates.float().contiguous()
        self._function = _function()

    def __call__(self, picked: Tensor, noise: Sequence[Tensor | None], flat: Tensor, gradients: Tensor) -> Tensor:
        networks, depth, classes = self._counts
        x, labels = self._pixels.index_select(0, picked), self._labels.index_select(0, picked)
        losses = torch.empty(networks)
        drawn = (ctypes.c_void_p * depth)(*[None if part is None else part.data_ptr() for part in noise])
        self._function(
            networks, len(x), depth, classes, self._shapes.ctypes.data, self._offsets.ctypes.data, x.data_ptr(),
            labels.data_ptr(), drawn, self._tanh.ctypes.data, self._rates.data_ptr(), flat.data_ptr(),
            gradients.data_ptr(), losses.data_ptr(),
        )  # fmt: skip
        return losses

    def noise_shapes(self, images: int) -> list[tuple[int, ...]]:
        """Shapes of the noise behind the hidden layers."""
        return [(images, rows, columns, 1, outputs) for _, outputs, *_, rows, columns in self._shapes.tolist()]

    @staticmethod
    def takes(stacks: Sequence[Stack], images: Tensor, labels: Tensor) -> bool:
        """Whether there is a compiler, and the networks and the float32 images ``[N, c, h, w]`` are such as it is for."""
        *hidden, head = stacks[0].layers
        if images.dtype != torch.float32 or images.device.type != "cpu" or not hidden or stacks[0].shift:
            return False
        kinds = {layer.activation.kind for stack in stacks for layer in stack.layers[:-1]}
        plain = all(
            layer.kernel and layer.bias and not layer.padding and layer.residual < 0 and layer.outputs % _LANES == 0
            for layer in hidden
        )
        pools = [layer.pool for layer in hidden] == [""] * (len(hidden) - 1) + ["global"]
        linear = not head.kernel and head.bias and head.positions == 1 and str(head.activation) == "none"
        if not (kinds <= {"relu", "tanh"} and plain and pools and linear and head.residual < 0):
            return False
        if images.shape[1] != hidden[0].inputs or min(_shapes(stacks[0], images.shape[1:])[-1]) < 1:
            return False
        low, high = labels.aminmax()
        in_range = int(low) >= 0 and int(high) < head.outputs  # others are for torch to complain of
        return in_range and _function() is not None


def _shapes(stack: Stack, shape: Sequence[int]) -> list[list[int]]:
    """Per convolution: channels read and written, kernel, stride, height and width of what is read and what is written."""
    found, sides = [], list(shape[1:])
    for layer in stack.layers[:-1]:
        written = [(n - k) // layer.stride + 1 for n, k in zip(sides, layer.kernel, strict=True)]
        found.append([layer.inputs, layer.outputs, *layer.kernel, layer.stride, *sides, *written])
        sides = written
    return found
