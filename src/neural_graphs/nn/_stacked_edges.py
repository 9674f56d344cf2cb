"""The operations of ``_edges`` on the edges of any mixture of architectures, as rows of one tensor (see ``Stacking``).

What is kept for the backward pass, precision and chunks are as there. Only the minimum and maximum are taken degree by
degree; everything else that is done per edge is one call per chunk, whatever the architectures. Chunks are worked on side by
side (see ``_parallel``), with sums over all edges per worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.nn import _edges, _parallel, _products
from neural_graphs.nn._stacking import Chunk, Stacking

CHUNK_ELEMENTS = 1 << 18
"""Edge values per chunk on the CPU: 1 MiB in float32, a few of which fit caches."""


def _rows_per_chunk(z: Tensor) -> int:
    if _edges.in_one(z):
        return 1 << 62
    return max(1, CHUNK_ELEMENTS // max(1, z.shape[1]))


def _window(z: Tensor, chunk: Chunk) -> Tensor:
    """The rows of a chunk and, as far as there are any, those behind it, up to a size at which products are fast."""
    return z[chunk.edges.start : chunk.edges.start + _products.padded_size(chunk.rows)]


def _buffer(window: Tensor, rows: int, width: int) -> Tensor:
    """``[len(window), width]``, zeros behind the first ``rows``."""
    buffer = window.new_empty(window.shape[0], width)
    buffer[rows:].zero_()
    return buffer


def _sums(rows: Tensor, chunk: Chunk) -> Tensor:
    """Sums over the edges of each node of a chunk, in float32 or wider: ``[nodes, F]``."""
    values = rows.to(_edges._wide(rows))
    return torch.embedding_bag(values, chunk.every, chunk.offsets, mode=0, include_last_offset=True)[0]


class _StackedStatistics(torch.autograd.Function):
    """Sum, sum of squares, minimum and maximum of ``m = s * (a_i + b_j) + t``, ``[s, t] = z W + b``, at every node."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        receiver: Tensor,
        sender: Tensor,
        stacking: Stacking,
        layer: int,
        kept: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        total, square = (receiver.new_zeros(receiver.shape, dtype=_edges._wide(z)) for _ in range(2))
        low, high = torch.zeros_like(receiver), torch.zeros_like(receiver)
        ends = _joined(receiver, sender)

        def work(_: int, chunk: Chunk) -> None:
            nodes = chunk.nodes
            message = _messages(z, weight, bias, ends, chunk)[1]
            total[nodes] = _sums(message, chunk)
            for run in chunk.runs:
                if run.start < run.stop:
                    dense = message[run.start : run.stop].unflatten(0, (run.last - run.first, -1))
                    torch.amin(dense, 1, out=low[nodes][run.first : run.last])
                    torch.amax(dense, 1, out=high[nodes][run.first : run.last])
            wide = message.to(total.dtype)
            square[nodes] = _sums(torch.mul(wide, wide, out=wide), chunk)

        chunks = stacking.chunks(layer, _rows_per_chunk(z))
        _parallel.each(work, chunks, _parallel.workers(len(chunks), z.device))
        ctx.save_for_backward(z, weight, bias, receiver, sender, low, high)
        ctx.stacking, ctx.layer = stacking, layer
        return total, square, low.to(total.dtype), high.to(total.dtype), z[:kept]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_total: Tensor, g_square: Tensor, g_low: Tensor, g_high: Tensor, g_kept: Tensor
    ) -> tuple[Any, ...]:
        z, weight, bias, receiver, sender, low, high = ctx.saved_tensors
        stacking: Stacking = ctx.stacking
        width = weight.shape[0] // 2
        wide = _edges._wide(z)
        chunks = stacking.chunks(ctx.layer, _rows_per_chunk(z))
        count = _parallel.workers(len(chunks), z.device)
        grad_z, ends = torch.empty_like(z), _joined(receiver, sender)
        grad_receiver, turned = torch.zeros_like(receiver, dtype=wide), weight.T.contiguous()
        grad_sender, grad_turned, grad_bias = (t.new_zeros(count, *t.shape, dtype=wide) for t in (sender, turned, bias))
        g_total, g_square, g_low, g_high = (g.to(z.dtype) for g in (g_total, 2 * g_square, g_low, g_high))

        def work(worker: int, chunk: Chunk) -> None:
            nodes, edges, rows, into = chunk.nodes, chunk.edges, chunk.rows, chunk.receiver
            window = _window(z, chunk)
            scale, message, pair = _messages(z, weight, bias, ends, chunk)
            both = _buffer(window, rows, 2 * width)
            other = g_square.index_select(0, into)
            grad = g_total.index_select(0, into).addcmul_(message, other)
            for extreme, g_extreme in ((low, g_low), (high, g_high)):
                torch.index_select(extreme, 0, into, out=other)
                hit = torch.eq(message, other, out=other)
                # Equal shares among ties: equivariant.
                share = g_extreme[nodes] / _sums(hit, chunk).clamp_min_(1).to(z.dtype)
                grad.addcmul_(hit, share.index_select(0, chunk.local))
            torch.mul(grad, pair, out=both[:rows, :width])
            both[:rows, width:] = grad
            grad_pair = torch.mul(grad, scale, out=message)
            grad_receiver[nodes] = _sums(grad_pair, chunk)
            grad_sender[worker].index_add_(0, chunk.sender, grad_pair.to(wide))
            grad_turned[worker] += _products.correlate(window, both)
            grad_bias[worker] += both.sum(0, dtype=wide)
            own, target = _products.apply(both, turned)[:rows], grad_z[edges]
            kept = min(max(g_kept.shape[0] - edges.start, 0), rows)
            if kept:
                torch.add(own[:kept], g_kept[edges.start : edges.start + kept], out=target[:kept])
            if kept < rows:
                target[kept:] = own[kept:]

        _parallel.each(work, chunks, count)
        sums = (grad_turned.sum(0).T, grad_bias.sum(0), grad_receiver, grad_sender.sum(0))
        grads = (g.to(z.dtype) for g in sums)
        return grad_z, *grads, None, None, None


def _messages(z: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Modulation ``s``, messages ``s (a_i + b_j) + t`` and their node part ``a_i + b_j`` of one chunk."""
    both = _products.apply(_window(z, chunk), weight, bias)[: chunk.rows]
    scale, offset = both.chunk(2, 1)
    pair = _ends(ends, chunk)
    return scale, torch.addcmul(offset, scale, pair), pair


def _joined(receiver: Tensor, sender: Tensor) -> Tensor:
    """The rows in which ``Chunk.ends`` are found."""
    return torch.cat([sender, receiver])


def _ends(nodes: Tensor, chunk: Chunk) -> Tensor:
    """``a_i + b_j`` of every edge of a chunk."""
    if nodes.dtype == torch.bfloat16:  # whose sums torch makes one by one
        return nodes.index_select(0, chunk.ends[::2]).add_(nodes.index_select(0, chunk.ends[1::2]))
    return torch.embedding_bag(nodes, chunk.ends, chunk.every_second, mode=0)[0]


def stacked_statistics(
    z: Tensor, weight: Tensor, bias: Tensor, receiver: Tensor, sender: Tensor, stacking: Stacking, layer: int, kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``modulated_statistics`` over all messages to the nodes that are computed after ``layer``.

    ``z`` ``[E, F]``, the edges that end in these, ``receiver`` ``[live nodes, F']``, ``sender`` ``[nodes, F']`` -> sum, sum
    of squares, minimum and maximum, each ``[live nodes, F']``, 0 for nodes without neighbours, and ``z[:kept]``: whatever
    reads edges afterwards should read these, so that their gradients are added up chunk by chunk.
    """
    weight, bias, receiver, sender = (t.to(z.dtype) for t in (weight, bias, receiver, sender))
    return _StackedStatistics.apply(z, weight, bias, receiver, sender, stacking, layer, kept)


class _StackedUpdate(torch.autograd.Function):
    """``SiLU(z W + p_i + q_j)``; the pre-activation is recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, receiver: Tensor, sender: Tensor, stacking: Stacking, layer: int
    ) -> Tensor:
        ctx.save_for_backward(z, weight, receiver, sender)
        ctx.stacking, ctx.layer = stacking, layer
        out = z.new_empty(z.shape[0], weight.shape[0])
        ends = _joined(receiver, sender)

        def work(_: int, chunk: Chunk) -> None:
            pre = _pre_activation(z, weight, ends, chunk)
            torch.ops.aten.silu.out(pre, out=out[chunk.edges])

        chunks = stacking.chunks(layer, _rows_per_chunk(z))
        _parallel.each(work, chunks, _parallel.workers(len(chunks), z.device))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        z, weight, receiver, sender = ctx.saved_tensors
        stacking: Stacking = ctx.stacking
        wide = _edges._wide(z)
        chunks = stacking.chunks(ctx.layer, _rows_per_chunk(z))
        count = _parallel.workers(len(chunks), z.device)
        grad_z, grad_receiver = torch.empty_like(z), torch.zeros_like(receiver, dtype=wide)
        grad_weight, grad_sender = (t.new_zeros(count, *t.shape, dtype=wide) for t in (weight, sender))
        turned, ends = weight.T.contiguous(), _joined(receiver, sender)

        def work(worker: int, chunk: Chunk) -> None:
            rows, edges = chunk.rows, chunk.edges
            pre, window = _pre_activation(z, weight, ends, chunk), _window(z, chunk)
            padded = _buffer(window, rows, weight.shape[0])
            g = torch.ops.aten.silu_backward.grad_input(grad[edges], pre, grad_input=padded[:rows])
            grad_receiver[chunk.nodes] = _sums(g, chunk)
            grad_sender[worker].index_add_(0, chunk.sender, g.to(wide))
            grad_weight[worker] += _products.correlate(padded, window)
            grad_z[edges] = _products.apply(padded, turned)[:rows]

        _parallel.each(work, chunks, count)
        grads = (t.to(z.dtype) for t in (grad_weight.sum(0), grad_receiver, grad_sender.sum(0)))
        return grad_z, *grads, None, None


def _pre_activation(z: Tensor, weight: Tensor, ends: Tensor, chunk: Chunk) -> Tensor:
    pre = _products.apply(_window(z, chunk), weight)[: chunk.rows]
    return pre.add_(_ends(ends, chunk))


def stacked_update(
    z: Tensor, weight: Tensor, receiver: Tensor, sender: Tensor, stacking: Stacking, layer: int
) -> Tensor:
    """``edge_update`` of the edges that end in the nodes which are computed after ``layer``.

    ``z`` ``[E, F]``, these edges, ``weight`` ``[F', F]``, ``receiver`` and ``sender`` the projected nodes ``[nodes, F']``,
    biases included -> ``[E, F']``.
    """
    weight, receiver, sender = (t.to(z.dtype) for t in (weight, receiver, sender))
    return _StackedUpdate.apply(z, weight, receiver, sender, stacking, layer)


class _StackedFourier(torch.autograd.Function):
    """``[cos(e F), sin(e F)] W + b`` of groups of rows with frequencies and biases of their own, to where ``rank`` says."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, rank: Tensor, *groups: Tensor) -> Tensor:
        ctx.save_for_backward(weight, rank, *groups)
        half = weight.shape[1] // 2
        left, right = weight[:, :half].contiguous(), weight[:, half:].contiguous()
        out = weight.new_empty(rank.shape[0], weight.shape[0])

        def work(_: int, part: _Part) -> None:
            angles = _products.apply(part.rows, part.rates)
            cos, sin = (wave.to(weight.dtype) for wave in _edges.waves(angles))
            found = _products.apply(cos, left, bias[part.group])
            out.index_copy_(0, rank[part.places], found.add_(_products.apply(sin, right)))

        parts = list(_parts(groups, half))
        _parallel.each(work, parts, _parallel.workers(len(parts), rank.device))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, rank, *groups = ctx.saved_tensors
        half, wide = weight.shape[1] // 2, _edges._wide(weight)
        parts = list(_parts(groups, half))
        count = _parallel.workers(len(parts), rank.device)
        grad_weight = weight.new_zeros(count, *weight.shape, dtype=wide)
        grad_bias = weight.new_zeros(count, len(groups) // 2, weight.shape[0], dtype=wide)
        needed = ctx.needs_input_grad[3::2]
        grads = [torch.empty_like(rows) if n else None for rows, n in zip(groups[::2], needed, strict=True)]

        def work(worker: int, part: _Part) -> None:
            g = grad.index_select(0, rank[part.places])
            own = grads[part.group]
            target = None if own is None else own[part.inside]
            _edges.waves_backward(g, part.rows, part.rates, weight, grad_weight[worker], target)
            grad_bias[worker, part.group] += g.sum(0, dtype=wide)

        _parallel.each(work, parts, count)
        more = [g for own in grads for g in (own, None)]
        return grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(weight.dtype), None, *more


class _Part(NamedTuple):
    """Some rows of a group: ``inside`` of the group's, ``places`` in the order of all groups."""

    group: int
    rows: Tensor
    rates: Tensor
    inside: slice
    places: slice


def _parts(groups: Sequence[Tensor], width: int) -> Iterator[_Part]:
    start = 0
    for number, (rows, frequencies) in enumerate(zip(groups[::2], groups[1::2], strict=True)):
        rates = frequencies.T.contiguous()
        for inside in _edges.wave_chunks(rows, width):
            yield _Part(number, rows[inside], rates, inside, slice(start + inside.start, start + inside.stop))
        start += len(rows)


def stacked_fourier(
    groups: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor,
    bias: Tensor,
    rank: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``fourier_embedding`` of groups of edges.

    A group is rows ``[R, f]`` and frequencies ``[f, m]``, ``weight`` is ``[F, 2m]``, ``bias`` ``[groups, F]``. Row r of all
    groups' becomes row ``rank[r]`` of the result ``[E, F]``, which is of ``dtype`` (default: that of the weight).
    """
    dtype = dtype or weight.dtype
    flat = [t for rows, frequencies in groups for t in (rows.contiguous(), frequencies)]
    return _StackedFourier.apply(weight.to(dtype), bias.to(dtype), rank, *flat)


class _Linear(torch.autograd.Function):
    """``x W + b`` by the products that are faster for edges and nodes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _products.apply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return _products.apply(grad, weight.T), _products.correlate(grad, x).to(x.dtype), grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of rows ``[N, k]``."""
    return _Linear.apply(x.contiguous(), weight, bias)


class _Reordered(torch.autograd.Function):
    """Rows in another order, and back: a sum over rows that each stand once needs no scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, rank: Tensor) -> Tensor:
        ctx.save_for_backward(order, rank)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        order, rank = ctx.saved_tensors
        return _Reordered.apply(grad, rank, order), None, None


def reordered(x: Tensor, order: Tensor, rank: Tensor) -> Tensor:
    """``x[order]`` for a permutation ``order`` with the inverse ``rank``."""
    return _Reordered.apply(x, order, rank)
