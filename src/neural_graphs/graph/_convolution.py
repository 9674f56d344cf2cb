"""One convolution of many networks of one architecture at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.graph._stack import Stack

CHUNK = 1 << 20
"""Numbers in the feature maps of the networks that are probed together. Larger tensors leave the cache and cost fresh memory
from the system every time: three times slower."""


def convolve(h: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """``[B, K, o, H', W']``: what B networks' convolutions make of their K feature maps each.

    ``h`` is ``[B, K, c, H, W]``, or ``[K, c, H, W]`` for images that all networks share; ``weight`` ``[B, o, c, kh, kw]``,
    ``bias`` ``[B, o]``.

    Networks are groups of channels of one grouped convolution; shared images are one ordinary convolution to B * o channels,
    whose gradient to the images is one product as well. On the CPU both are fastest on channels-last memory, in which
    the result is left, so that the next convolution finds it as it needs it.
    """
    batch, shared = weight.shape[0], h.dim() == 4
    images = h if shared else h.transpose(0, 1).flatten(1, 2)
    kernels = weight.flatten(0, 1)
    if h.device.type == "cpu":
        images, kernels = channels_last(images), channels_last(kernels)
    offset = bias.flatten() if bias is not None else None
    out = F.conv2d(images, kernels, offset, stride, padding, groups=1 if shared else batch)
    return out.unflatten(1, (batch, -1)).transpose(0, 1)


def channels_last(x: Tensor) -> Tensor:
    """``[n, c, h, w]`` in channels-last memory, also by its strides.

    The strides of a single channel can be read as either layout, and ``contiguous`` leaves them: then torch takes the other,
    and a first layer on grey images is five times slower.
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
    # Not `contiguous(memory_format=...)`, which `torch.func.vmap` does not know.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def mean_over_positions(h: Tensor) -> Tensor:
    """``[B, K, n, H, W]`` -> ``[B, K, n]``. Its gradient is one number per map, spread without being written out: that of
    ``mean`` is written out, in another layout than the maps have."""
    return h.sum((-2, -1)) / (h.shape[-2] * h.shape[-1])


def map_sizes(stack: Stack, shape: tuple[int, int, int]) -> list[int]:
    """How many numbers each convolution of ``stack`` writes for one image of ``shape`` ``(c, h, w)``.

    Raises ``UserError`` when these networks cannot read such images.
    """
    channels, *sides = shape
    image = "x".join(map(str, shape))
    if not stack.layers[0].kernel:
        raise UserError(f"images of {image} cannot be read by networks that read vectors")
    if stack.layers[0].inputs != channels:
        raise UserError(f"images of {image} cannot be read by networks of {stack.layers[0].inputs} input channels")
    found = []
    for layer in stack.layers:
        if not layer.kernel:
            if layer.positions != sides[0] * sides[1]:
                raise UserError(f"images of {image} have another size than those that layer {layer.name} was made for")
            break
        sides = [(n + 2 * layer.padding - k) // layer.stride + 1 for n, k in zip(sides, layer.kernel, strict=True)]
        found.append(layer.outputs * sides[0] * sides[1])
        if layer.pool == "global":
            sides = [min(n, 1) for n in sides]
        elif layer.pool.startswith("max:"):
            sides = [n // int(layer.pool[4:]) for n in sides]
        if min(sides) < 1:
            raise UserError(f"images of {image} are too small for layer {layer.name} of networks {stack}")
    return found
