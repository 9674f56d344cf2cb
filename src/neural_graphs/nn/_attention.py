"""Attention along the edges of dense blocks, fused and chunked.

A block holds edge embeddings ``z`` ``[G, r, s, d]``: r receivers attend to s senders, in each of G networks (or groups of
networks). Receivers attend to the senders of several blocks at once. As in ``_edges``, edges dominate the cost: nothing
per edge is kept for the backward pass but ``z`` and the attention weights (one value per head); queries, keys and values
per edge exist for one chunk of receivers at a time and are computed again in the backward pass.

With A channels in all, ``[x]_h`` those of head h::

    logit_ijh = [query_i + Wq z_ij]_h . [key_j + Wk z_ij]_h / sqrt(A)
    o_ih      = sum_j weight_ijh [value_j * Wm z_ij]_h           a_ih = sum_j weight_ijh z_ij

The value's additive term needs no value per edge: ``sum_j weight_ijh [Wv z_ij]_h = [Wv]_h a_ih``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.nn import _edges
from neural_graphs.nn._edges import _rows, _wide
from neural_graphs.nn._products import apply, correlate

CHUNK = 2
"""Values per chunk relative to ``CHUNK_ELEMENTS``: there are more operations per chunk here, each of which has a price."""

Block = tuple[Tensor, Tensor, Tensor]
"""Edges ``z`` ``[G, r, s, d]``, and their senders' keys and values ``[G, s, A]``."""


@torch.compiler.disable  # fused by hand
def attend(
    maps: tuple[Tensor, Tensor, Tensor], query: Tensor, own: Tensor, blocks: Sequence[Block]
) -> tuple[Tensor, Tensor, Tensor]:
    """One softmax over the senders of all blocks and, with logits of their own, the receivers themselves.

    ``maps`` are Wq, Wk and Wm, ``[A, d]`` each; ``query`` ``[B, n, A]``; ``own`` ``[B, n, heads, k]`` further logits, whose
    values the caller adds (k = 0: none). All blocks have ``G * r = B * n`` receivers in the order of ``query``. Returns
    ``o`` ``[B, n, A]``, ``a`` ``[B, n, heads, d]`` and the weights of ``own``.
    """
    batch, count = query.shape[:2]
    if not blocks:
        weights = own.softmax(-1)
        nothing = weights.new_zeros(batch, count, own.shape[2], maps[0].shape[1])
        return torch.zeros_like(query), nothing, weights
    dtype = blocks[0][0].dtype
    weight = torch.cat(maps).to(dtype)
    flat = [t for z, *sides in blocks for t in (z.contiguous(), *(t.to(dtype) for t in sides))]
    o, a, weights = _Attention.apply(weight, _rows(query).to(dtype), own.flatten(0, 1), count, *flat)
    return o.view(query.shape), a.unflatten(0, (batch, count)), weights.view(own.shape)


def _receivers(query: Tensor, count: int, width: int) -> Iterator[slice]:
    """Chunks of receivers ``[total, A]``: whole networks of ``count``, or parts of one where a network is large.

    ``width`` is the number of values per receiver in the widest temporary. One chunk where ``in_one`` says so.
    """
    total = len(query)
    budget = total if _edges.in_one(query) else CHUNK * _edges.CHUNK_ELEMENTS // max(1, width)
    if budget >= count:
        step = budget // max(1, count) * count
        for start in range(0, total, max(1, step)):
            yield slice(start, min(start + step, total))
        return
    for network in range(0, total, count):
        for start in range(network, network + count, max(1, budget)):
            yield slice(start, min(start + max(1, budget), network + count))


class _Chunk:
    """One block's part of a chunk of receivers: ``groups`` times ``rows`` receivers share their senders."""

    def __init__(self, z: Tensor, key: Tensor, value: Tensor, part: slice) -> None:
        total, r = part.stop - part.start, z.shape[1]
        self.z = z.flatten(0, 1)[part]  # [receivers, s, d]
        if part.start % r == 0 and part.stop % r == 0:
            self.index: slice | Tensor = slice(part.start // r, part.stop // r)
            self.shape = (total // r, r)
        elif part.start // r == (part.stop - 1) // r:
            self.index = slice(part.start // r, part.start // r + 1)
            self.shape = (1, total)
        else:  # the chunk cuts through groups
            self.index = torch.arange(part.start, part.stop, device=z.device) // r
            self.shape = (total, 1)
        self.key, self.value = key[self.index].unsqueeze(1), value[self.index].unsqueeze(1)

    def apart(self, t: Tensor) -> Tensor:
        """``[receivers, ...]`` -> ``[groups, rows, ...]``."""
        return t.unflatten(0, self.shape)

    def add(self, total: Tensor, t: Tensor) -> None:
        """Add the sum over receivers of ``t`` ``[receivers, s, A]`` to ``total`` ``[G, s, A]``."""
        sums = self.apart(t).sum(1)
        if isinstance(self.index, slice):
            total[self.index] += sums
        else:
            total.index_add_(0, self.index, sums.to(total.dtype))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, query: Tensor, own: Tensor, count: int, *flat: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        blocks = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        (total, width), heads, wide = query.shape, own.shape[1], _wide(query)
        sizes = [own.shape[2], *(z.shape[2] for z in flat[::3])]
        weights = query.new_empty(total, heads, sum(sizes))
        out, mean = (
            query.new_zeros(total, width, dtype=wide),
            query.new_zeros(total, heads, flat[0].shape[3], dtype=wide),
        )
        own_weights = own.new_empty(own.shape)
        members = _members(heads, query)
        for part in _receivers(query, count, 3 * width * sum(sizes)):
            logits, values = [own[part]], []
            for z, key, value in blocks:
                chunk = _Chunk(z, key, value, part)
                q, k, v = _project(chunk, weight, query[part])
                v = torch.mul(chunk.apart(v), chunk.value, out=chunk.apart(v)).flatten(0, 1)
                # Sums over each head's channels as a product with 0 and 1 (times the scale) for every receiver.
                logits.append(torch.bmm(members.expand(len(q), -1, -1), q.mul_(k).transpose(1, 2)).to(own.dtype))
                values.append((chunk, v))
            found = torch.cat(logits, -1).softmax(-1)
            own_weights[part] = found[..., : sizes[0]]
            weights[part] = found
            alphas = weights[part].split(sizes, -1)[1:]
            for (chunk, v), alpha in zip(values, alphas, strict=True):
                # One product with all heads' channels, of which the own ones are kept, is faster than one per head.
                every = torch.bmm(alpha, v).unflatten(-1, (heads, -1)).diagonal(dim1=1, dim2=2)
                out[part].unflatten(-1, (heads, -1)).add_(every.transpose(1, 2))
                mean[part] += torch.bmm(alpha, chunk.z)
        ctx.save_for_backward(weight, query, weights, own_weights, out, mean, *flat)
        ctx.count = count
        return out, mean, own_weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor, g_mean: Tensor, g_own: Tensor) -> tuple[Tensor | None, ...]:
        weight, query, weights, own_weights, out, mean, *flat = ctx.saved_tensors
        blocks = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        width, heads, wide, dtype = query.shape[1], weights.shape[1], _wide(query), query.dtype
        sizes = [own_weights.shape[2], *(z.shape[2] for z in flat[::3])]
        # The softmax's sum_j weight_j g_j, without a pass over the edges.
        common = (
            (g_out * out).unflatten(-1, (heads, -1)).sum(-1) + (g_mean * mean).sum(-1) + (g_own * own_weights).sum(-1)
        )
        common = common.unsqueeze(-1)
        grad_own = own_weights * (g_own - common)
        g_out, g_mean, common = (t.to(dtype) for t in (g_out, g_mean, common))
        grad_weight, grad_query = weight.new_zeros(weight.shape, dtype=wide), torch.zeros_like(query, dtype=wide)
        grads = [(torch.empty_like(z), *(torch.zeros_like(t, dtype=wide) for t in sides)) for z, *sides in blocks]
        members = _members(heads, query)
        mask = (members != 0).to(dtype)
        # Keys first: multiplied by the gradient of the logits, in place, they are the gradient of the queries.
        swapped = torch.cat([weight[width : 2 * width], weight[:width], weight[2 * width :]])
        flipped = weight.T
        for part in _receivers(query, ctx.count, 3 * width * sum(sizes)):
            into, into_mean = g_out[part].unsqueeze(1) * mask, g_mean[part]
            alphas = weights[part].split(sizes, -1)[1:]
            for (z, key, value), (grad_z, grad_key, grad_value), alpha in zip(blocks, grads, alphas, strict=True):
                chunk = _Chunk(z, key, value, part)
                both = apply(_rows(chunk.z), swapped).view(*chunk.z.shape[:2], 3 * width)
                k, q, m = both.split(width, -1)
                chunk.apart(k).add_(chunk.key)
                q += query[part].unsqueeze(1)
                v = (chunk.apart(m) * chunk.value).flatten(0, 1)
                g_alpha = torch.bmm(into, v.transpose(1, 2)).baddbmm_(into_mean, chunk.z.transpose(1, 2))
                g_logits = g_alpha.sub_(common[part]).mul_(alpha)
                g = torch.bmm(g_logits.transpose(1, 2), members.expand(len(q), -1, -1))
                k *= g
                q *= g
                g_v = torch.bmm(alpha.transpose(1, 2), into, out=g)
                chunk.add(grad_value, torch.mul(g_v, m, out=v))
                torch.mul(chunk.apart(g_v), chunk.value, out=chunk.apart(m))
                grad_query[part] += k.sum(1)
                chunk.add(grad_key, q)
                rows = _rows(both)
                grad_weight += correlate(_rows(chunk.z), rows).T
                into_z = apply(rows, flipped).view(chunk.z.shape).baddbmm_(alpha.transpose(1, 2), into_mean)
                grad_z.flatten(0, 1)[part] = into_z
        flat_grads = [t.to(dtype) for three in grads for t in three]
        return grad_weight.to(dtype), grad_query.to(dtype), grad_own, None, *flat_grads


def _members(heads: int, like: Tensor) -> Tensor:
    """``[heads, A]``: ``A ** -0.5`` where a channel belongs to a head, 0 elsewhere."""
    eye = torch.eye(heads, dtype=like.dtype, device=like.device)
    return eye.repeat_interleave(like.shape[-1] // heads, 1) * like.shape[-1] ** -0.5


def _project(chunk: _Chunk, weight: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, and values before they are modulated, ``[receivers, s, A]``: parts of one tensor."""
    width = query.shape[-1]
    q, k, m = apply(_rows(chunk.z), weight).view(*chunk.z.shape[:2], 3 * width).split(width, -1)
    q += query.unsqueeze(1)
    chunk.apart(k).add_(chunk.key)
    return q, k, m
