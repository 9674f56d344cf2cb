"""Sizes of the feature maps in a stack: what its layers write, and which inputs fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.graph._stack import Layer

_LARGE = 1 << 12
"""The side of an input on which maps of equal size are told from others: sizes differ by factors and small constants."""


def check_residuals(layers: Sequence[Layer]) -> None:
    """Raises ``UserError`` for residuals that are no earlier layer's or of another size."""
    sizes: list[tuple[int, int] | None] = []  # what each layer writes, None for vectors
    height = width = _LARGE
    for number, layer in enumerate(layers):
        if layer.kernel:
            height, width = (_side_behind(layer, axis, side) for axis, side in enumerate((height, width)))
        sizes.append((height, width) if layer.kernel else None)
        if layer.pool.startswith("max:"):
            size = int(layer.pool[4:])
            height, width = height // size, width // size
        if layer.residual == -1:
            continue
        if not 0 <= layer.residual < number:
            raise UserError(
                f"layer {layer.name} adds layer number {layer.residual}: only those before it, from 0, exist"
            )
        if sizes[layer.residual] != sizes[number]:
            raise UserError(
                f"layer {layer.name} adds the values of {layers[layer.residual].name}, which differ in size: residuals join "
                "feature maps of one size, or vectors"
            )


def _side_behind(layer: Layer, axis: int, side: int) -> int:
    """The height (axis 0) or width that a convolution writes."""
    return (side + 2 * layer.padding - layer.kernel[axis]) // layer.stride + 1


def _side_before(layers: Sequence[Layer], axis: int, side: int) -> int | None:
    """The roundest input side of which convolutions and their pooling leave ``side``; None when none does."""
    low = high = side
    for layer in reversed(layers):
        if layer.pool.startswith("max:"):
            size = int(layer.pool[4:])
            low, high = low * size, high * size + size - 1
        offset = layer.kernel[axis] - 2 * layer.padding
        low, high = (low - 1) * layer.stride + offset, high * layer.stride - 1 + offset
    sides = range(max(low, 1), high + 1)
    return max(sides, key=lambda side: side & -side, default=None)


def input_shape(layers: Sequence[Layer]) -> tuple[int | None, ...]:
    """See ``Stack.input_shape``."""
    first = layers[0]
    if not first.kernel:
        return (first.inputs * first.positions,)
    readers = [k for k, layer in enumerate(layers) if not layer.kernel]
    if not readers or layers[readers[0] - 1].pool == "global":
        return (first.inputs, None, None)
    positions = layers[readers[0]].positions
    for height in range(math.isqrt(positions), 0, -1):
        if positions % height == 0:
            sides = [
                _side_before(layers[: readers[0]], axis, side)
                for axis, side in enumerate((height, positions // height))
            ]
            if None not in sides:
                return (first.inputs, *sides)
    raise UserError(f"no input is such that layer {layers[readers[0]].name} reads {positions} positions")
