"""The edge update of NG-T, fused and chunked.

Nothing per edge is kept for the backward pass but the edges themselves and the statistics of the last layer norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.nn import _edges
from neural_graphs.nn._edges import _rows, _wide
from neural_graphs.nn._products import apply, correlate

Part = tuple[slice, slice]


def _parts(z: Tensor, width: int) -> Iterator[Part]:
    """Slices of networks, or of one network's receivers where a network is large; one where ``in_one`` says so.

    ``width`` is that of the widest temporary per edge.
    """
    batch, receivers, senders = z.shape[:3]
    budget = _edges.CHUNK_ELEMENTS // max(1, 2 * senders * width)  # receivers per chunk
    if _edges.in_one(z):
        budget = batch * receivers
    networks = max(1, budget // max(1, receivers))
    rows = max(1, budget) if budget < receivers else receivers
    for b in range(0, batch, networks):
        for r in range(0, receivers, max(1, rows)):
            yield slice(b, min(b + networks, batch)), slice(r, min(r + rows, receivers))


class _EdgeUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, back: Tensor, receiver: Tensor, sender: Tensor, *rest: Tensor | None) -> Tensor:
        out = torch.empty_like(z)
        stats = [z.new_empty(*z.shape[:3], 1) for _ in range(2)]
        for part in _parts(z, receiver.shape[-1]):
            last = _update(z, back, receiver, sender, rest, part)[-1]
            found = torch.ops.aten.native_layer_norm(last, [z.shape[-1]], rest[8], rest[9], NORM_EPSILON)
            stats = [t.to(found[1].dtype) for t in stats]  # which differs between processors
            for whole, t in zip((out, *stats), found, strict=True):
                whole[part] = t.view_as(whole[part])
        ctx.save_for_backward(z, back, receiver, sender, *stats, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, back, receiver, sender, mean_2, rate_2, *rest = ctx.saved_tensors
        pair, out_1, _, norm_1, bias_1, hidden_2, out_2, _, norm_2, bias_2, keep_1, keep_2 = rest
        grad_z, grad_back = torch.empty_like(z), torch.empty_like(back)
        grad_receiver, grad_sender = (torch.zeros_like(t, dtype=_wide(z)) for t in (receiver, sender))
        grads = [torch.zeros_like(t, dtype=_wide(z)) for t in rest[:10]]
        d = [z.shape[-1]]
        for part in _parts(z, receiver.shape[-1]):
            both, pre_1, post_1, sum_1, stats_1, middle, pre_2, post_2, sum_2 = _update(
                z, back, receiver, sender, rest, part
            )
            stats_2 = _rows(mean_2[part]), _rows(rate_2[part])
            g, into_norm, into_bias = torch.ops.aten.native_layer_norm_backward(
                _rows(grad[part]), sum_2, d, *stats_2, norm_2, bias_2, [True, True, True]
            )
            grads[8] += into_norm
            grads[9] += into_bias
            kept = g if keep_2 is None else g * _rows(keep_2[part]).to(g.dtype)
            grads[6] += correlate(kept, post_2)
            grads[7] += kept.sum(0)
            inner = torch.ops.aten.gelu_backward(apply(kept, out_2.T), pre_2)
            grads[5] += correlate(middle, inner).T
            g += apply(inner, hidden_2.T)
            g, into_norm, into_bias = torch.ops.aten.native_layer_norm_backward(
                g, sum_1, d, *stats_1, norm_1, bias_1, [True, True, True]
            )
            grads[3] += into_norm
            grads[4] += into_bias
            kept = g if keep_1 is None else g * _rows(keep_1[part]).to(g.dtype)
            grads[1] += correlate(kept, post_1)
            grads[2] += kept.sum(0)
            inner = torch.ops.aten.gelu_backward(apply(kept, out_1.T), pre_1)
            grads[0] += correlate(both, inner).T
            shaped = inner.view(*z[part].shape[:3], -1)
            grad_receiver[part] = shaped.sum(2)
            grad_sender[part[0]] += shaped.sum(1)
            ends = apply(inner, pair.T)
            grad_z[part] = (g + ends[:, : d[0]]).view_as(grad_z[part])
            grad_back[part[0], :, part[1]] = ends[:, d[0] :].view_as(z[part]).transpose(1, 2)
        grads = [g.to(z.dtype) for g in grads]
        return grad_z, grad_back, grad_receiver.to(z.dtype), grad_sender.to(z.dtype), *grads, None, None


def _update(z: Tensor, back: Tensor, receiver: Tensor, sender: Tensor, rest: Any, part: Part) -> tuple[Any, ...]:
    """All values of one chunk that lead to the second layer norm, rows of edges each."""
    pair, out_1, shift_1, norm_1, bias_1, hidden_2, out_2, shift_2, *_, keep_1, keep_2 = rest
    d = z.shape[-1]
    chunk = z[part]
    both = z.new_empty(*chunk.shape[:3], 2 * d)
    both[..., :d] = chunk
    both[..., d:] = back[part[0], :, part[1]].transpose(1, 2)
    both = _rows(both)
    pre_1 = apply(both, pair).view(*chunk.shape[:3], -1)
    pre_1 += receiver[part].unsqueeze(2)
    pre_1 += sender[part[0]].unsqueeze(1)
    pre_1 = _rows(pre_1)
    post_1 = torch.nn.functional.gelu(pre_1)
    sum_1 = apply(post_1, out_1, shift_1)
    sum_1 = (sum_1 if keep_1 is None else sum_1.mul_(_rows(keep_1[part]).to(z.dtype))).add_(_rows(chunk))
    middle, *stats_1 = torch.ops.aten.native_layer_norm(sum_1, [d], norm_1, bias_1, NORM_EPSILON)
    pre_2 = apply(middle, hidden_2)
    post_2 = torch.nn.functional.gelu(pre_2)
    sum_2 = apply(post_2, out_2, shift_2)
    sum_2 = (sum_2 if keep_2 is None else sum_2.mul_(_rows(keep_2[part]).to(z.dtype))).add_(middle)
    return both, pre_1, post_1, sum_1, stats_1, middle, pre_2, post_2, sum_2


NORM_EPSILON = 1e-5


@torch.compiler.disable  # fused by hand
def edge_update(
    z: Tensor,
    back: Tensor,
    receiver: Tensor,
    sender: Tensor,
    maps: tuple[Tensor, ...],
    keep: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``y = LN(z_ij + W_2 GELU(W_1 [z_ij, z_ji] + p_i + q_j) + b_2)``, then ``LN(y + W_4 GELU(W_3 y) + b_4)``.

    ``z`` ``[B, r, s, d]``; ``back`` ``[B, s, r, d]`` holds ``z_ji``; ``receiver`` ``[B, r, h]`` and ``sender``
    ``[B, s, h]`` are p and q, biases included; ``maps`` are W_1 ``[h, 2d]``, W_2 ``[d, h]``, b_2, the first norm's weight
    and bias, W_3 ``[h, d]``, W_4, b_4 and the second norm's. ``keep`` multiplies what is added to ``z`` and ``y``
    (dropout), like ``z``.
    """
    ends = (t.to(z.dtype) for t in (receiver, sender))
    return _EdgeUpdate.apply(z.contiguous(), back.contiguous(), *ends, *(m.to(z.dtype) for m in maps), *keep)
