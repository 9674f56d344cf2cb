"""Everything that touches every edge: three fused operations on dense blocks, chunked so that temporaries stay in cache.

A directed block holds edge features ``z`` of shape ``[B, n_out, n_in, F]``, whichever way its messages run: ``forward``
messages run from the ``n_in`` axis to the ``n_out`` axis, ``reverse`` messages the other way. Edges dominate the cost, so
nothing per edge is kept for the backward pass but ``z`` itself; the rest is recomputed chunk by chunk. The obvious
implementation of each operation is its slow twin in the tests.

Edges may be kept in bfloat16 while nodes and parameters stay in float32: matrix products and pointwise work on edges then
run in bfloat16, sums over neighbours and over edges accumulate in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.nn import _products

STD_EPSILON = 1e-5

CHUNK_ELEMENTS = 1 << 19
"""Edge values per chunk on the CPU: 2 MiB in float32, a few of which fit the second- and third-level cache."""


WAVE_ELEMENTS = 1 << 19
"""Angles of Fourier features per chunk on the CPU: 2 MiB in float32."""


def in_one(z: Tensor) -> bool:
    """Whether to work on a batch in one piece: on an accelerator, where launching few large kernels matters more than cache,
    and under ``torch.compile``, which would unroll the loop and fuses by itself."""
    return z.device.type != "cpu" or torch.compiler.is_compiling()


def _chunks(z: Tensor) -> Iterator[slice]:
    """Slices of the batch axis."""
    batch = z.shape[0]
    step = batch if in_one(z) else max(1, CHUNK_ELEMENTS // max(1, math.prod(z.shape[1:])))
    for start in range(0, batch, max(1, step)):
        yield slice(start, min(start + step, batch))


def _rows(t: Tensor) -> Tensor:
    """``[..., F]`` -> ``[rows, F]``."""
    return t.reshape(-1, t.shape[-1])


def _apart(t: Tensor, groups: int) -> Tensor:
    """``[B, n, ...]`` -> ``[B * groups, n / groups, ...]``: a grouped block of a network is ``groups`` dense ones."""
    return t.unflatten(1, (groups, -1)).flatten(0, 1)


def _joined(t: Tensor, groups: int) -> Tensor:
    return t.unflatten(0, (-1, groups)).flatten(1, 2)


class _FourierEmbedding(torch.autograd.Function):
    """``z = [cos(e F), sin(e F)] W + b``; saves the scalar weights ``e`` only."""

    @staticmethod
    def forward(ctx: Any, e: Tensor, frequencies: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(e, frequencies, weight)
        dtype, half = weight.dtype, frequencies.shape[1]
        out = weight.new_empty(*e.shape[:-1], weight.shape[0])
        rows, target, rates = _rows(e), _rows(out), frequencies.T.contiguous()
        left, right = weight[:, :half].contiguous(), weight[:, half:].contiguous()
        for part in wave_chunks(rows, half):
            cos, sin = (wave.to(dtype) for wave in waves(_products.apply(rows[part], rates)))
            torch.add(_products.apply(cos, left, bias), _products.apply(sin, right), out=target[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        e, frequencies, weight = ctx.saved_tensors
        dtype, half = weight.dtype, frequencies.shape[1]
        grad_weight = e.new_zeros(weight.shape)
        rows, rates = _rows(e), frequencies.T.contiguous()
        grads = _rows(grad.contiguous())
        grad_bias = grads.sum(0, dtype=_wide(grads))
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for part in wave_chunks(rows, half):
            out = grad_rows[part] if grad_rows is not None else None
            waves_backward(grads[part], rows[part], rates, weight, grad_weight, out)
        grad_e = None if grad_rows is None else grad_rows.view_as(e)
        return grad_e, None, grad_weight.to(dtype), grad_bias.to(dtype)


def waves(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and, in place, sines."""
    one = angle.dtype == torch.float32 and angle.device.type == "cpu" and torch.get_num_threads() == 1
    if not one or torch.compiler.is_compiling():
        return torch.cos(angle), angle.sin_()
    # numpy's are nearly three times as fast as torch's.
    values = angle.numpy()
    return torch.from_numpy(np.cos(values)), torch.from_numpy(np.sin(values, out=values))


def waves_backward(
    g: Tensor, rows: Tensor, rates: Tensor, weight: Tensor, grad_weight: Tensor, grad_rows: Tensor | None
) -> None:
    """Backward of ``[cos(rows @ rates.T), sin(...)] @ weight.T``: adds to ``grad_weight`` and, if wanted, writes
    ``grad_rows``; ``g`` ``[R, F]``, ``rows`` ``[R, f]``, ``rates`` ``[m, f]``, ``weight`` ``[F, 2m]``."""
    half = weight.shape[1] // 2
    cos, sin = (wave.to(weight.dtype) for wave in waves(_products.apply(rows, rates)))
    grad_weight[:, :half] += _products.correlate(g, cos)
    grad_weight[:, half:] += _products.correlate(g, sin)
    if grad_rows is not None:
        grad_angle = (g @ weight[:, half:]) * cos - (g @ weight[:, :half]) * sin
        torch.mm(grad_angle.to(rows.dtype), rates, out=grad_rows)


def wave_chunks(rows: Tensor, width: int) -> Iterator[slice]:
    """Slices of rows whose angles stay in cache: they pass through it several times on the way to sums of waves."""
    step = max(1, len(rows) if in_one(rows) else WAVE_ELEMENTS // max(1, width))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def fourier_embedding(
    e: Tensor, frequencies: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Random Fourier features of raw edge features, followed by a linear map.

    ``e`` ``[..., f]``, ``frequencies`` ``[f, m]`` (fixed, 2π included), ``weight`` ``[F, 2m]``, ``bias`` ``[F]`` ->
    ``[..., F]`` of ``dtype`` (default: that of the weight). Angles are always computed in the precision of ``e``.
    """
    dtype = dtype or weight.dtype
    return _FourierEmbedding.apply(e.contiguous(), frequencies, weight.to(dtype), bias.to(dtype))


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, in float32 also when the factors are bfloat16."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _wide(t: Tensor) -> torch.dtype:
    """The dtype in which sums of ``t`` accumulate."""
    return torch.float32 if t.dtype == torch.bfloat16 else t.dtype


class _ModulatedStatistics(torch.autograd.Function):
    """Sum, sum of squares, minimum and maximum over neighbours of ``m = s * (a_i + b_j) + t``, ``[s, t] = z W + b``."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, receiver: Tensor, sender: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dim = 1 if reverse else 2
        total, square = (receiver.new_empty(receiver.shape, dtype=_wide(z)) for _ in range(2))
        low, high = torch.empty_like(receiver), torch.empty_like(receiver)
        buffers: list[Tensor] = []
        for part in _chunks(z):
            scale, offset, message = _messages(z[part], weight, bias, receiver[part], sender[part], reverse, buffers)
            torch.addcmul(offset, scale, message, out=message)
            torch.sum(message, dim, dtype=total.dtype, out=total[part])
            torch.amin(message, dim, out=low[part])
            torch.amax(message, dim, out=high[part])
            wide = message.to(total.dtype)
            torch.sum(torch.mul(wide, wide, out=wide), dim, out=square[part])
        ctx.save_for_backward(z, weight, bias, receiver, sender, low, high)
        ctx.reverse = reverse
        return total, square, low.to(total.dtype), high.to(total.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_total: Tensor, g_square: Tensor, g_low: Tensor, g_high: Tensor) -> tuple[Any, ...]:
        z, weight, bias, receiver, sender, low, high = ctx.saved_tensors
        reverse = ctx.reverse
        width = weight.shape[0] // 2
        dim, other = (1, 2) if reverse else (2, 1)
        grad_z = torch.empty_like(z)
        grad_receiver, grad_sender = torch.empty_like(receiver), torch.empty_like(sender)
        grad_weight = weight.new_zeros(weight.shape, dtype=_wide(z))
        grad_bias = bias.new_zeros(bias.shape, dtype=_wide(z))
        g_total, g_square, g_low, g_high = (g.to(z.dtype) for g in (g_total, g_square, g_low, g_high))
        buffers: list[Tensor] = []
        for part in _chunks(z):
            scale, offset, pair = _messages(z[part], weight, bias, receiver[part], sender[part], reverse, buffers)
            message = offset.addcmul_(scale, pair)
            grad = torch.addcmul(g_total[part].unsqueeze(dim), message, g_square[part].unsqueeze(dim), value=2.0)
            for extreme, g_extreme in ((low, g_low), (high, g_high)):
                hit = torch.eq(message, extreme[part].unsqueeze(dim), out=torch.empty_like(message))
                share = g_extreme[part] / hit.sum(dim).clamp_min(1)  # equal shares among ties: equivariant
                grad.addcmul_(hit, share.unsqueeze(dim))
            grad_scale = torch.mul(grad, pair, out=pair)
            grad_pair = torch.mul(grad, scale, out=scale)
            torch.sum(grad_pair, dim, out=grad_receiver[part])
            torch.sum(grad_pair, other, out=grad_sender[part])
            rows, flat_s, flat_t = _rows(z[part]), _rows(grad_scale), _rows(grad)
            _accumulate(grad_weight[:width], flat_s.T, rows)
            _accumulate(grad_weight[width:], flat_t.T, rows)
            grad_bias[:width] += flat_s.sum(0)
            grad_bias[width:] += flat_t.sum(0)
            target = _rows(grad_z[part])
            torch.mm(flat_s, weight[:width], out=target)
            target.addmm_(flat_t, weight[width:])
        return grad_z, grad_weight.to(z.dtype), grad_bias.to(z.dtype), grad_receiver, grad_sender, None


def _messages(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    receiver: Tensor,
    sender: Tensor,
    reverse: bool,
    buffers: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Modulation ``s``, ``t`` and the node part ``a_i + b_j`` for one chunk, in buffers reused between chunks."""
    width = weight.shape[0] // 2
    if not buffers:
        buffers += [z.new_empty(*z.shape[:-1], width) for _ in range(3)]
    scale, offset, pair = (buffer[: z.shape[0]] for buffer in buffers)
    rows = _rows(z)
    torch.addmm(bias[:width], rows, weight[:width].T, out=_rows(scale))
    torch.addmm(bias[width:], rows, weight[width:].T, out=_rows(offset))
    out_side, in_side = (sender, receiver) if reverse else (receiver, sender)
    torch.add(out_side.unsqueeze(2), in_side.unsqueeze(1), out=pair)
    return scale, offset, pair


def modulated_statistics(
    z: Tensor, weight: Tensor, bias: Tensor, receiver: Tensor, sender: Tensor, reverse: bool, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics over neighbours of FiLM-modulated messages (Kofinas et al. 2024, equations of NG-GNN).

    ``z`` ``[B, n_out, n_in, F]``; ``weight`` ``[2F', F]`` and ``bias`` ``[2F']`` map it to scale and shift; ``receiver``
    and ``sender`` are the projected embeddings of the two endpoints, ``[B, n, F']``. Returns sum, sum of squares, minimum
    and maximum, each ``[B, n_receiver, F']``. With ``groups`` the in side of ``z`` is ``n_in / groups``.
    """
    if groups > 1:
        z, receiver, sender = (_apart(t, groups) for t in (z, receiver, sender))
        total, square, low, high = modulated_statistics(z, weight, bias, receiver, sender, reverse)
        return _joined(total, groups), _joined(square, groups), _joined(low, groups), _joined(high, groups)
    weight, bias, receiver, sender = (t.to(z.dtype) for t in (weight, bias, receiver, sender))
    return _ModulatedStatistics.apply(z.contiguous(), weight, bias, receiver, sender, reverse)


class _EdgeUpdate(torch.autograd.Function):
    """``SiLU(z W + out_i + in_j)``; the pre-activation is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, out_side: Tensor, in_side: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight, out_side, in_side)
        out = z.new_empty(*z.shape[:-1], weight.shape[0])
        for part in _chunks(z):
            torch.nn.functional.silu(_pre_activation(z, weight, out_side, in_side, part, out[part]), inplace=True)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, weight, out_side, in_side = ctx.saved_tensors
        grad = grad.contiguous()
        grad_z = torch.empty_like(z)
        grad_weight = weight.new_zeros(weight.shape, dtype=_wide(z))
        grad_out, grad_in = torch.empty_like(out_side), torch.empty_like(in_side)
        buffer: Tensor | None = None
        for part in _chunks(z):
            if buffer is None:
                buffer = torch.empty_like(grad[part])
            pre = _pre_activation(z, weight, out_side, in_side, part, buffer[: grad[part].shape[0]])
            g = torch.ops.aten.silu_backward(grad[part], pre)
            torch.sum(g, 2, out=grad_out[part])
            torch.sum(g, 1, out=grad_in[part])
            rows = _rows(g)
            _accumulate(grad_weight, rows.T, _rows(z[part]))
            torch.mm(rows, weight, out=_rows(grad_z[part]))
        return grad_z, grad_weight.to(z.dtype), grad_out, grad_in


def _pre_activation(z: Tensor, weight: Tensor, out_side: Tensor, in_side: Tensor, part: slice, out: Tensor) -> Tensor:
    torch.add(out_side[part].unsqueeze(2), in_side[part].unsqueeze(1), out=out)
    _rows(out).addmm_(_rows(z[part]), weight.T)
    return out


def edge_update(z: Tensor, weight: Tensor, out_side: Tensor, in_side: Tensor, groups: int = 1) -> Tensor:
    """``SiLU(W z_ij + p_i + q_j)``, the hidden layer of the edge MLP.

    ``z`` ``[B, n_out, n_in, F]``, ``weight`` ``[F', F]``, ``out_side`` ``[B, n_out, F']`` and ``in_side`` ``[B, n_in, F']``
    the projected endpoints (biases included) -> ``[B, n_out, n_in, F']``. With ``groups`` the in side of ``z`` is
    ``n_in / groups``.
    """
    if groups > 1:
        z, out_side, in_side = (_apart(t, groups) for t in (z, out_side, in_side))
        return _joined(edge_update(z, weight, out_side, in_side), groups)
    weight, out_side, in_side = (t.to(z.dtype) for t in (weight, out_side, in_side))
    return _EdgeUpdate.apply(z.contiguous(), weight, out_side, in_side)


def aggregate(found: list[tuple[Tensor, Tensor, Tensor, Tensor]], degree: int | Tensor, like: Tensor) -> Tensor:
    """``[mean, min, max, std]`` ``[B, n, 4F]`` from the statistics of all blocks that end in one node set.

    ``degree`` is the number of neighbours, or ``[n, 1]`` that of each neuron, at least 1. Without neighbours the first three
    are 0, as in PyTorch Geometric.
    """
    if not found:
        zero = torch.zeros_like(like)
        return torch.cat([zero, zero, zero, zero + math.sqrt(STD_EPSILON)], -1)
    total, square, low, high = found[0]
    for other in found[1:]:
        total, square = total + other[0], square + other[1]
        low, high = torch.minimum(low, other[2]), torch.maximum(high, other[3])
    mean = total / degree
    std = torch.sqrt(torch.relu(square / degree - mean * mean) + STD_EPSILON)
    return torch.cat([mean, low, high, std], -1)
