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
    more = padded_size(rows.shape[0]) - rows.shape[0]
    return torch.nn.functional.pad(rows, (0, 0, 0, more)) if more else rows


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
        return torch.ops.mkldnn._linear_pointwise(_padded(left).T, _padded(right).T, None, "none", [], "")
    product = left.T @ right
    return product.float() if product.dtype == torch.bfloat16 else product
