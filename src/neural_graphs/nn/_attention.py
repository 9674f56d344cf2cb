"""Attention along the edges of dense blocks, and the edge update of NG-T: three fused operations, chunked.

A block holds edge embeddings ``z`` ``[B, r, s, d]`` of r receivers, which attend, to s senders. As in ``_edges``, edges
dominate the cost: nothing per edge is kept for the backward pass but ``z``, logits and attention weights (one value per
head); queries, keys and values per edge exist for one chunk at a time and are computed again in the backward pass.

With the head-wise width c, A = heads * c, and ``[x]_h`` the part of x that belongs to head h::

    logit_ijh = [query_i + Wq z_ij]_h . [key_j + Wk z_ij]_h / sqrt(A)
    o_ih      = sum_j weight_ijh [value_j * Wm z_ij]_h           a_ih = sum_j weight_ijh z_ij

The value's additive term needs no value per edge: ``sum_j weight_ijh [Wv z_ij]_h = [Wv]_h a_ih``.
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


def _heads(heads: int, like: Tensor) -> Tensor:
    """``[heads, A]``: 1 where a channel belongs to a head."""
    eye = torch.eye(heads, dtype=like.dtype, device=like.device)
    return eye.repeat_interleave(like.shape[-1] // heads, 1)


def _blockwise(t: Tensor, heads: int) -> Tensor:
    """``[n, A]`` -> ``[n, heads, A]`` that is 0 outside each head's own channels."""
    return t.unsqueeze(1) * _heads(heads, t)


class _EdgeLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, query: Tensor, key: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(z, weight, query, key)
        ctx.heads = heads
        width = query.shape[-1]
        members = _heads(heads, query) * width**-0.5
        out = query.new_empty(*query.shape[:2], heads, z.shape[2], dtype=_wide(z))
        for part in _parts(z, 2 * width):
            both = _query_and_key(z, weight, query, key, part)
            product = torch.mul(both[..., :width], both[..., width:])
            out[part] = apply(_rows(product), members).view(*product.shape[:3], heads).transpose(2, 3)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, query, key = ctx.saved_tensors
        width = query.shape[-1]
        members = (_heads(ctx.heads, query) * width**-0.5).T.contiguous()
        grad_z = torch.empty_like(z)
        grad_weight = weight.new_zeros(weight.shape, dtype=_wide(z))
        grad_query, grad_key = (torch.zeros_like(t, dtype=_wide(z)) for t in (query, key))
        for part in _parts(z, 2 * width):
            both = _query_and_key(z, weight, query, key, part)
            g = apply(_rows(grad[part].transpose(2, 3)).to(z.dtype), members).view(*both.shape[:3], width)
            pair = torch.empty_like(both)
            torch.mul(both[..., width:], g, out=pair[..., :width])
            torch.mul(both[..., :width], g, out=pair[..., width:])
            grad_query[part] = pair[..., :width].sum(2)
            grad_key[part[0]] += pair[..., width:].sum(1)
            rows = _rows(pair)
            grad_weight += correlate(_rows(z[part]), rows).T
            grad_z[part] = apply(rows, weight.T).view_as(grad_z[part])
        return grad_z, grad_weight.to(z.dtype), grad_query.to(z.dtype), grad_key.to(z.dtype), None


def _query_and_key(z: Tensor, weight: Tensor, query: Tensor, key: Tensor, part: Part) -> Tensor:
    """Queries and keys side by side, ``[b, r, s, 2A]``."""
    chunk, width = z[part], query.shape[-1]
    both = apply(_rows(chunk), weight).view(*chunk.shape[:3], 2 * width)
    both[..., :width] += query[part].unsqueeze(2)
    both[..., width:] += key[part[0]].unsqueeze(1)
    return both


@torch.compiler.disable  # fused by hand
def edge_logits(z: Tensor, query_map: Tensor, key_map: Tensor, query: Tensor, key: Tensor, heads: int) -> Tensor:
    """``logit_ijh`` ``[B, r, heads, s]``, in float32 or wider.

    ``z`` ``[B, r, s, d]``; ``query_map`` and ``key_map`` ``[A, d]`` are Wq and Wk; ``query`` ``[B, r, A]`` and ``key``
    ``[B, s, A]`` the node parts.
    """
    weight = torch.cat([query_map, key_map]).to(z.dtype)
    return _EdgeLogits.apply(z.contiguous(), weight, query.to(z.dtype), key.to(z.dtype), heads)


class _EdgeValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, attention: Tensor, weight: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, attention, weight, value)
        heads, width = attention.shape[2], value.shape[-1]
        out = value.new_empty(*z.shape[:2], width, dtype=_wide(z))
        mean = z.new_empty(*z.shape[:2], heads, z.shape[3], dtype=_wide(z))
        for part in _parts(z, width):
            chunk, alpha = z[part].flatten(0, 1), attention[part].flatten(0, 1)
            values = apply(_rows(chunk), weight).view(*z[part].shape[:3], width)
            values *= value[part[0]].unsqueeze(1)
            # One product with all heads' channels, of which the own ones are kept, is faster than one per head.
            every = torch.bmm(alpha, values.flatten(0, 1)).view(*mean[part].shape[:3], heads, -1)
            out[part].view(*every.shape[:2], heads, -1).copy_(every.diagonal(dim1=2, dim2=3).transpose(2, 3))
            mean[part] = torch.bmm(alpha, chunk).view_as(mean[part])
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_mean: Tensor) -> tuple[Tensor | None, ...]:
        z, attention, weight, value = ctx.saved_tensors
        heads, width = attention.shape[2], value.shape[-1]
        grad_z, grad_attention = torch.empty_like(z), torch.empty_like(attention)
        grad_weight = weight.new_zeros(weight.shape, dtype=_wide(z))
        grad_value = torch.zeros_like(value, dtype=_wide(z))
        grad_out, grad_mean = grad_out.to(z.dtype), grad_mean.to(z.dtype)
        for part in _parts(z, width):
            chunk, alpha = z[part].flatten(0, 1), attention[part].flatten(0, 1)
            into, into_mean = _blockwise(_rows(grad_out[part]), heads), grad_mean[part].flatten(0, 1)
            shape = (*z[part].shape[:3], width)
            scale = apply(_rows(chunk), weight).view(shape)
            values = scale * value[part[0]].unsqueeze(1)
            g = torch.bmm(into, values.flatten(0, 1).transpose(1, 2))
            grad_attention[part] = g.baddbmm_(into_mean, chunk.transpose(1, 2)).view_as(grad_attention[part])
            flipped = alpha.transpose(1, 2)
            grad = torch.bmm(flipped, into).view(shape)
            grad_value[part[0]] += torch.mul(grad, scale, out=values).sum(1)
            grad *= value[part[0]].unsqueeze(1)
            grad_weight += correlate(_rows(chunk), _rows(grad)).T
            direct = apply(_rows(grad), weight.T).view(chunk.shape)
            grad_z[part] = direct.baddbmm_(flipped, into_mean).view_as(grad_z[part])
        return grad_z, grad_attention, grad_weight.to(z.dtype), grad_value.to(z.dtype)


@torch.compiler.disable  # fused by hand
def edge_values(z: Tensor, attention: Tensor, scale_map: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """``o`` ``[B, r, A]`` and ``a`` ``[B, r, heads, d]``, in float32 or wider.

    ``z`` ``[B, r, s, d]``, ``attention`` ``[B, r, heads, s]``, ``scale_map`` ``[A, d]`` is Wm, ``value`` ``[B, s, A]`` the
    node part.
    """
    return _EdgeValues.apply(z.contiguous(), *(t.to(z.dtype) for t in (attention, scale_map, value)))


class _EdgeUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, back: Tensor, receiver: Tensor, sender: Tensor, *rest: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, back, receiver, sender, *rest)
        out = torch.empty_like(z)
        for part in _parts(z, receiver.shape[-1]):
            out[part] = _update(z, back, receiver, sender, rest, part)[-1].view_as(out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, back, receiver, sender, *rest = ctx.saved_tensors
        pair, out_1, _, norm_1, bias_1, hidden_2, out_2, _, norm_2, bias_2, keep_1, keep_2 = rest
        grad_z, grad_back = torch.empty_like(z), torch.empty_like(back)
        grad_receiver, grad_sender = (torch.zeros_like(t, dtype=_wide(z)) for t in (receiver, sender))
        grads = [torch.zeros_like(t, dtype=_wide(z)) for t in rest[:10]]
        d = [z.shape[-1]]
        for part in _parts(z, receiver.shape[-1]):
            both, pre_1, post_1, sum_1, stats_1, middle, pre_2, post_2, sum_2, stats_2, _ = _update(
                z, back, receiver, sender, rest, part
            )
            g, into_norm, into_bias = torch.ops.aten.native_layer_norm_backward(
                _rows(grad[part]), sum_2, d, *stats_2, norm_2, bias_2, [True, True, True]
            )
            grads[8] += into_norm
            grads[9] += into_bias
            kept = g if keep_2 is None else g * _rows(keep_2[part])
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
            kept = g if keep_1 is None else g * _rows(keep_1[part])
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
    """All intermediate values of one chunk, rows of edges each."""
    pair, out_1, shift_1, norm_1, bias_1, hidden_2, out_2, shift_2, norm_2, bias_2, keep_1, keep_2 = rest
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
    sum_1 = apply(post_1, out_1).add_(shift_1)
    sum_1 = (sum_1 if keep_1 is None else sum_1.mul_(_rows(keep_1[part]))).add_(_rows(chunk))
    middle, *stats_1 = torch.ops.aten.native_layer_norm(sum_1, [d], norm_1, bias_1, NORM_EPSILON)
    pre_2 = apply(middle, hidden_2)
    post_2 = torch.nn.functional.gelu(pre_2)
    sum_2 = apply(post_2, out_2).add_(shift_2)
    sum_2 = (sum_2 if keep_2 is None else sum_2.mul_(_rows(keep_2[part]))).add_(middle)
    out, *stats_2 = torch.ops.aten.native_layer_norm(sum_2, [d], norm_2, bias_2, NORM_EPSILON)
    return both, pre_1, post_1, sum_1, stats_1, middle, pre_2, post_2, sum_2, stats_2, out


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
