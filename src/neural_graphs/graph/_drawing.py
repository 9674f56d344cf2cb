"""Many images of multilayer perceptrons at once: forward and backward pass by hand, in pieces that fit the cache.

A piece is some of the networks on some rows of the image. Values are ``[networks, neurons, pixels]``, so that a layer is one
batched matrix product and one pointwise pass. Nothing but the parameters is kept for the backward pass, which computes the
values of a piece again.

The pixels are a grid, z = w_x x + w_y y + b, so the sines of the first layer, sin(w_x x + b + w_y y), are products of sines
and cosines of columns and of rows alone: for an image of 28 x 28 pixels 112 of them per neuron instead of 784, and the
gradient of the first layer needs no cosines of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.graph._kernels import Kernel, kernel
from neural_graphs.graph._stack import Stack

CACHE_BYTES = 8 * 2**20  # values of one piece: measured to stay in a shared L3 cache and hide Python's overhead


def can_draw(stack: Stack) -> bool:
    """Whether ``draw`` knows the architecture: linear layers on two coordinates, each on the one before."""
    return stack.input_shape == (2,) and all(layer.residual < 0 and not layer.pool for layer in stack.layers)


def draw(stack: Stack, params: dict[str, Tensor], columns: Tensor, rows: Tensor, compiled: bool) -> Tensor:
    """Outputs ``[B, channels, rows * columns]``, without the shift, at all pairs of ``rows`` and ``columns``.

    ``params`` are the networks' ``{name: [B, *shape]}``, all of the coordinates' dtype, float32 or float64, on the CPU.
    ``compiled``: whether to fuse pointwise passes by torch.compile.
    """
    tensors = []
    for layer in stack.layers:
        weight = params[layer.weight]
        bias = params[layer.bias_name] if layer.bias_name else weight.new_zeros(len(weight), layer.outputs)
        if layer.activation.omega != 1:
            weight, bias = weight * layer.activation.omega, bias * layer.activation.omega
        tensors += [weight, bias]
    kinds = tuple(layer.activation.kind for layer in stack.layers)
    plan = _Plan(kinds, stack.widths, columns, rows, compiled)
    drawn: Tensor = _Draw.apply(plan, *tensors)
    return drawn


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all networks share."""

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    columns: Tensor
    rows: Tensor
    compiled: bool

    @property
    def separable(self) -> bool:
        """Whether the first layer's sines are those of columns and rows."""
        return self.kinds[0] == "sine" and len(self.kinds) > 1

    def kernel(self, name: str) -> Kernel:
        return kernel(name, self.columns.device, self.columns.dtype, self.compiled)

    def pieces(self, networks: int) -> Iterator[tuple[slice, slice]]:
        """Networks and rows of the image that are computed together."""
        per_row = self.columns.element_size() * len(self.columns) * 2 * sum(self.widths[1:])
        rows = max(1, min(len(self.rows), CACHE_BYTES // per_row))
        step = max(1, CACHE_BYTES // (per_row * rows))
        for first in range(0, networks, step):
            for top in range(0, len(self.rows), rows):
                yield slice(first, first + step), slice(top, top + rows)


class _Buffers:
    """Memory that one piece after another writes to: pages that are new with every piece would take longer than the work."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        if name not in self.kept or len(self.kept[name]) < size:
            self.kept[name] = like.new_empty(size)
        return self.kept[name][:size].view(shape)


class _Piece:
    """Some networks on some rows; ``parameters`` are weight ``[n, out, in]`` and bias ``[n, out]`` of every layer."""

    def __init__(
        self, plan: _Plan, parameters: tuple[Tensor, ...], networks: slice, rows: slice, buffers: _Buffers
    ) -> None:
        self.plan, self.buffers = plan, buffers
        self.weights = [weight[networks].contiguous() for weight in parameters[::2]]
        self.biases = [bias[networks].unsqueeze(-1) for bias in parameters[1::2]]
        self.rows = plan.rows[rows]
        self.pixels = len(self.rows) * len(plan.columns)
        if plan.separable:
            self._waves()
        else:
            across, down = (axis.flatten() for axis in torch.meshgrid(plan.columns, self.rows, indexing="xy"))
            self.inputs = self._empty("inputs", 2).copy_(torch.stack((across, down)))

    def _waves(self) -> None:
        """Sine and cosine ``[n * neurons, 2, Q + R]`` of w_x x + b for every column and of w_y y for every row."""
        columns, rows = self.plan.columns, self.rows
        basis = columns.new_zeros(3, len(columns) + len(rows))
        basis[0, : len(columns)], basis[1, len(columns) :], basis[2, : len(columns)] = columns, rows, 1
        first = torch.cat((self.weights[0], self.biases[0]), -1).flatten(0, 1)
        self.waves = columns.new_empty(len(first), 2, basis.shape[1])
        torch.mm(first, basis, out=self.waves[:, 1])
        self.plan.kernel("sine")(self.waves[:, 1], columns.new_zeros(1, 1), self.waves[:, 0])

    def _empty(self, name: str, width: int) -> Tensor:
        weight = self.weights[0]
        return self.buffers.take(name, (len(weight), width, self.pixels), weight)

    def _first(self) -> Tensor:
        """The first layer's sines, or the inputs where it has none."""
        if not self.plan.separable:
            return self.inputs
        found = self._empty("value 0", self.plan.widths[1])
        grid = found.view(-1, len(self.rows), len(self.plan.columns))
        self.plan.kernel("grid of sines")(*self.waves.split((len(self.plan.columns), len(self.rows)), 2), grid)
        return found

    def forward(self) -> Tensor:
        """Outputs ``[n, channels, pixels]``."""
        kinds = self.plan.kinds
        h = self._first()
        for index in range(self.plan.separable, len(kinds)):
            z = self._empty(f"value {index % 2}", self.plan.widths[index + 1])
            if kinds[index] == "none":
                h = torch.baddbmm(self.biases[index], self.weights[index], h, out=z)
                continue
            h = torch.bmm(self.weights[index], h, out=z)
            self.plan.kernel(f"value of {kinds[index]}")(h, self.biases[index])
        return h

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of all parameters, shaped as these, from that of the outputs ``[n, channels, pixels]``."""
        kinds, last = self.plan.kinds, len(self.plan.kinds) - 1
        first = int(self.plan.separable)
        values, slopes = [self._first()], []
        for index in range(first, last if kinds[last] == "none" else last + 1):
            width = self.plan.widths[index + 1]
            slopes.append(torch.bmm(self.weights[index], values[-1], out=self._empty(f"slope {index}", width)))
            values.append(self._empty(f"value {index}", width))
            self.plan.kernel(kinds[index])(slopes[-1], self.biases[index], values[-1])
        if kinds[last] != "none":
            gradient = slopes.pop().mul_(gradient)
            values.pop()
        found: list[Tensor] = []
        for index in range(last, first - 1, -1):
            before = values.pop()
            found = [torch.bmm(gradient, before.transpose(1, 2)), gradient.sum(-1), *found]
            if index:  # what the layer before said is used up: the gradient that flows back takes its place
                torch.bmm(self.weights[index].transpose(1, 2), gradient, out=before)
                gradient = slopes.pop().mul_(before) if index > first else before
        return [*self._first_backward(gradient), *found] if self.plan.separable else found

    def _first_backward(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the first layer's weights and biases from that of its sines ``[n, neurons, pixels]``."""
        across, down = self.waves.split((len(self.plan.columns), len(self.rows)), 2)
        flow = gradient.view(-1, len(self.rows), len(self.plan.columns))
        # dz = flow (cos cos - sin sin): summed over rows, plain and times y, beside their sine and their cosine ...
        times = torch.stack((torch.ones_like(self.rows), self.rows)).unsqueeze(1)
        summed = torch.bmm((down.unsqueeze(1) * times).flatten(1, 2), flow).unflatten(1, (2, 2))
        # ... and then over columns, plain and times x.
        along = summed[:, :, 1] * across[:, 1:] - summed[:, :, 0] * across[:, :1]
        found = along @ torch.stack((self.plan.columns, torch.ones_like(self.plan.columns)), 1)
        shape = gradient.shape[:2]
        weight = torch.stack((found[:, 0, 0], found[:, 1, 1]), -1)
        return [weight.view(*shape, 2), found[:, 0, 1].view(shape)]


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *parameters: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*parameters)
        networks, width, buffers = len(parameters[0]), len(plan.columns), _Buffers()
        drawn = plan.columns.new_empty(networks, plan.widths[-1], len(plan.rows) * width)
        for chosen, rows in plan.pieces(networks):
            pixels = slice(rows.start * width, rows.stop * width)
            drawn[chosen, :, pixels] = _Piece(plan, parameters, chosen, rows, buffers).forward()
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, parameters = ctx.plan, ctx.saved_tensors
        found = [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in parameters]
        width, buffers = len(plan.columns), _Buffers()
        for chosen, rows in plan.pieces(len(gradient)):
            part = gradient[chosen, :, rows.start * width : rows.stop * width].contiguous()
            for total, value in zip(found, _Piece(plan, parameters, chosen, rows, buffers).backward(part), strict=True):
                total[chosen] += value
        return (None, *found)
