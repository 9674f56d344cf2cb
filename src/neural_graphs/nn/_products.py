"""Products of tall, thin matrices: one row per edge, a few dozen columns.

On x86 processors torch multiplies float32 matrices with MKL, which on other makers' processors leaves wide vector units
idle; oneDNN, which comes with torch as well, uses them. Both compute in plain float32. Nothing here is differentiable:
these run inside the forward and backward passes of autograd functions.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _onednn(t: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which chooses kernels by itself
        return False
    suited = _X86 and t.dtype == torch.float32 and t.device.type == "cpu" and t.shape[0] > 0
    return suited and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def padded_size(rows: int) -> int:
    """The next of sixteen sizes per power of two.

    oneDNN generates code for every size that it has not met, for milliseconds, and batches of mixed architectures have ever
    new ones.
    """
    step = 1 << max(0, rows.bit_length() - 5)
    return rows + -rows % step


def _padded(rows: Tensor) -> Tensor:
    """With rows of zeros up to the ``padded_size``."""
    count, size = rows.shape[0], padded_size(rows.shape[0])
    if size == count:
        return rows
    found = rows.new_empty(size, rows.shape[1])
    found[:count] = rows
    found[count:].zero_()
    return found


def apply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows`` ``[n, k]`` times the transpose of ``weight`` ``[m, k]``, plus ``bias`` ``[m]`` -> ``[n, m]``."""
    if _onednn(rows):
        # Of a view with other strides oneDNN makes a reference product, a thousand times slower.
        found = torch.ops.mkldnn._linear_pointwise(_padded(rows), weight.contiguous(), bias, "none", [], "")
        return found[: rows.shape[0]]
    return rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)


def correlate(left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of outer products: ``left`` ``[n, a]``, ``right`` ``[n, b]`` -> ``[a, b]``, in float32 or wider.

    The first matrix should be the narrower one.
    """
    if _onednn(left):
        left, right = _padded(left), _padded(right)
        if left.shape[0] >= MANY_ROWS:
            return _weight_gradient(left, right)
        return torch.ops.mkldnn._linear_pointwise(left.T, right.T, None, "none", [], "")
    product = left.T @ right
    return product.float() if product.dtype == torch.bfloat16 else product


MANY_ROWS = 512
"""From here on the weight gradient of a convolution is the faster correlation; padded sizes are then multiples of 16."""


def _weight_gradient(left: Tensor, right: Tensor) -> Tensor:
    """The correlation as oneDNN's weight gradient of a 1x1 convolution, channels last, which reads both as they are; for a
    product one has to be transposed, which torch does on one thread. Of fewer than sixteen images torch uses no oneDNN."""
    inputs, grads = (t.contiguous().view(16, 1, -1, t.shape[1]).permute(0, 3, 1, 2) for t in (right, left))
    weight = left.new_empty(left.shape[1], right.shape[1], 1, 1)
    mask = [False, True, False]  # of the three gradients only the weight's
    found = torch.ops.aten.convolution_backward(
        grads, inputs, weight, [0], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask
    )
    return found[1][:, :, 0, 0]
