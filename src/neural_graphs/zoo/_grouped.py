"""Many convolutional networks of one shape at once: networks are groups of channels, images are shared.

What ``Stack.forward`` computes, for training: networks may differ in their non-linearities, values are dropped, and written
over where their gradients allow it. They stay ``[n, B * C, H, W]`` in channels-last memory from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._convolution import channels_last
from neural_graphs.graph._stack import Layer, Stack

_IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}

Drop = Callable[[int, Tensor], Tensor]
"""``(layer, values [n, H, W, B, C] or [B, n, C]) -> values``, behind a hidden layer's activation."""


def grouped_logits(
    stacks: Sequence[Stack], params: Mapping[str, Tensor], images: Tensor, drop: Drop | None = None
) -> Tensor:
    """Outputs ``[B, n, out]`` of B networks on the same ``images`` ``[n, c, h, w]``.

    ``stacks`` has an entry per network; they may differ in their activations only. ``params`` are stacked, ``[B, *shape]``.
    """
    first, count = stacks[0], len(stacks)
    h = channels_last(images)
    values: list[Tensor] = []
    for number, layer in enumerate(first.layers):
        last = number == len(first.layers) - 1
        h = _linear_part(layer, params, h, count, shared=number == 0)
        if layer.residual >= 0:
            h = _add_residual(h, values[layer.residual], count, layer, first.layers[layer.residual])
        kinds = [stack.layers[number].activation for stack in stacks]
        h = _activate(h, kinds)
        values.append(h)
        if last:
            break
        if drop is not None:
            h = drop(number, h) if h.dim() == 3 else _from_rows(drop(number, _rows(h, count)))
        h = _pool(layer, h, count, flat=not first.layers[number + 1].kernel)
    return h + first.shift if first.shift else h


def _linear_part(layer: Layer, params: Mapping[str, Tensor], h: Tensor, count: int, shared: bool) -> Tensor:
    weight, bias = params[layer.weight], params[layer.bias_name] if layer.bias_name else None
    if layer.kernel:
        kernels = channels_last(weight.flatten(0, 1))
        groups = 1 if shared else count
        return F.conv2d(
            h, kernels, bias.flatten() if bias is not None else None, layer.stride, layer.padding, 1, groups
        )
    if shared:
        h = h.flatten(1).expand(count, -1, -1)
    transposed = weight.transpose(1, 2)
    return torch.baddbmm(bias.unsqueeze(1), h, transposed) if bias is not None else torch.bmm(h, transposed)


def _rows(h: Tensor, count: int) -> Tensor:
    """``[n, B * C, H, W]`` in channels-last memory as ``[n, H, W, B, C]``, without a copy."""
    return h.permute(0, 2, 3, 1).unflatten(3, (count, -1))


def _from_rows(rows: Tensor) -> Tensor:
    return rows.flatten(3).permute(0, 3, 1, 2)


def _add_residual(h: Tensor, source: Tensor, count: int, layer: Layer, from_layer: Layer) -> Tensor:
    shared = min(layer.outputs, from_layer.outputs)
    if h.dim() == 3:
        return torch.cat([h[..., :shared] + source[..., :shared], h[..., shared:]], -1)
    if layer.outputs == from_layer.outputs:
        return h + source
    target, added = _rows(h, count), _rows(source, count)
    return _from_rows(torch.cat([target[..., :shared] + added[..., :shared], target[..., shared:]], -1))


def _activate(h: Tensor, kinds: Sequence[Activation]) -> Tensor:
    if len(set(kinds)) == 1:
        # In place where the derivative follows from the result: these values are the largest, and memory is the limit.
        in_place = _IN_PLACE.get(kinds[0].kind)
        return in_place(h) if in_place is not None else kinds[0](h)
    if h.dim() == 3:
        return torch.cat([kind(part) for kind, part in zip(kinds, h.split(1), strict=True)])
    parts = _rows(h, len(kinds)).split(1, 3)
    return _from_rows(torch.cat([kind(part) for kind, part in zip(kinds, parts, strict=True)], 3))


def _pool(layer: Layer, h: Tensor, count: int, flat: bool) -> Tensor:
    if layer.pool == "global":
        h = h.mean((2, 3)).unflatten(1, (count, -1)).transpose(0, 1)
    elif layer.pool.startswith("max:"):
        h = F.max_pool2d(h, int(layer.pool.partition(":")[2]))
    elif layer.pool:
        raise UserError(f"layer {layer.name}: unknown pooling {layer.pool!r}")
    if flat and h.dim() == 4:  # channel-major, as torch flattens
        h = h.unflatten(1, (count, -1)).transpose(0, 1).flatten(2)
    return h
