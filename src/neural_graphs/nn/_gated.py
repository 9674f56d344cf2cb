"""What ScaleGMN does on every edge: two fused operations, chunked so that temporaries stay in cache.

As in ``_edges``: edges ``e`` are ``[B, n_out, n_in, E]``, nothing per edge is kept for the backward pass but ``e`` itself,
the rest is recomputed chunk by chunk. The obvious implementation of each operation is its slow twin in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_graphs.nn._edges import _chunks, _rows
from neural_graphs.nn._products import apply


def _parts(e: Tensor) -> Iterator[slice]:
    """Slices of the batch axis; the temporaries here are some four times as large as ``e``."""
    return _chunks(e.unsqueeze(-1).expand(*e.shape, 4))


def gated(
    e: Tensor, to: Tensor, start: Tensor, inner: Tensor, last: Tensor, bias: Tensor, map_: Tensor, odd: bool
) -> Tensor:
    """``(map e) * (last SiLU(inner c(e) + to_i + start_j) + bias)`` for every edge, ``c(e)`` being ``|e|`` if ``odd``.

    ``to`` ``[B, n_out, H]`` and ``start`` ``[B, n_in, H]`` are what the ends say; ``inner`` is ``[H, E]``, ``last``
    ``[E, H]``, ``map_`` ``[E, E]``.
    """
    return _Gated.apply(e.contiguous(), to, start, inner, last, bias, map_, odd)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        to: Tensor,
        start: Tensor,
        inner: Tensor,
        last: Tensor,
        bias: Tensor,
        map_: Tensor,
        odd: bool,
    ) -> Tensor:
        ctx.save_for_backward(e, to, start, inner, last, bias, map_)
        ctx.odd = odd
        out = torch.empty_like(e)
        for part in _parts(e):
            rows = _rows(e[part])
            hidden = F.silu(_hidden(e[part], rows, to[part], start[part], inner, odd), inplace=True)
            gate = apply(hidden, last).add_(bias)
            torch.mul(gate, apply(rows, map_), out=_rows(out[part]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        e, to, start, inner, last, bias, map_ = ctx.saved_tensors
        grad = grad.contiguous()
        grad_e, grad_to, grad_start = torch.empty_like(e), torch.empty_like(to), torch.empty_like(start)
        grad_inner, grad_last, grad_bias, grad_map = (torch.zeros_like(p) for p in (inner, last, bias, map_))
        for part in _parts(e):
            rows, g = _rows(e[part]), _rows(grad[part])
            before = _hidden(e[part], rows, to[part], start[part], inner, ctx.odd)
            hidden = F.silu(before)
            gate = apply(hidden, last).add_(bias)
            grad_gate = apply(rows, map_).mul_(g)
            grad_mapped = gate.mul_(g)
            grad_map += grad_mapped.T @ rows
            grad_last += grad_gate.T @ hidden
            grad_bias += grad_gate.sum(0)
            grad_hidden = torch.ops.aten.silu_backward(apply(grad_gate, last.T.contiguous()), before)
            form = rows.abs() if ctx.odd else rows
            grad_inner += grad_hidden.T @ form
            grad_form = apply(grad_hidden, inner.T.contiguous())
            target = _rows(grad_e[part])
            torch.add(apply(grad_mapped, map_.T.contiguous()), _signed(grad_form, rows, ctx.odd), out=target)
            grid = grad_hidden.view(*e[part].shape[:-1], -1)
            torch.sum(grid, 2, out=grad_to[part])
            torch.sum(grid, 1, out=grad_start[part])
        return grad_e, grad_to, grad_start, grad_inner, grad_last, grad_bias, grad_map, None


def _hidden(e: Tensor, rows: Tensor, to: Tensor, start: Tensor, inner: Tensor, odd: bool) -> Tensor:
    """``inner c(e) + to_i + start_j``, ``[rows, H]``."""
    found = apply(rows.abs() if odd else rows, inner)
    found.view(*e.shape[:-1], -1).add_(to.unsqueeze(2)).add_(start.unsqueeze(1))
    return found


def _signed(grad: Tensor, rows: Tensor, odd: bool) -> Tensor:
    return grad.mul_(rows.sign()) if odd else grad


def summed(e: Tensor, values: Tensor, mix: Tensor, reverse: bool) -> Tensor:
    """``m_if = sum_jh mix_hf e_ijh v_jf`` ``[B, n_out, F]`` with the senders' ``values`` ``[B, n_in, F]`` and ``mix``
    ``[E, F]``; in ``reverse``, senders are on the other side."""
    return _Summed.apply(e, values, mix, reverse)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, e: Tensor, values: Tensor, mix: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(e, values, mix)
        ctx.reverse = reverse
        receivers = e.shape[2 if reverse else 1]
        out = values.new_empty(e.shape[0], receivers, values.shape[2])
        for part in _parts(e):
            found = _per_channel(_by_receiver(e[part], reverse), values[part], len(mix))
            torch.sum(found.mul_(mix), 2, out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        e, values, mix = ctx.saved_tensors
        grad_e, grad_values, grad_mix = torch.empty_like(e), torch.empty_like(values), torch.zeros_like(mix)
        for part in _parts(e):
            left, right, g = _by_receiver(e[part], ctx.reverse), values[part], grad[part].unsqueeze(2)
            grad_mix += _per_channel(left, right, len(mix)).mul_(g).sum((0, 1))
            grad_found = (g * mix).flatten(1, 2)  # [B, n * E, F]
            torch.bmm(left.transpose(1, 2), grad_found, out=grad_values[part])
            grad_left = torch.bmm(grad_found, right.transpose(1, 2)).unflatten(1, (-1, len(mix)))
            grad_e[part] = grad_left.permute(0, 3, 1, 2) if ctx.reverse else grad_left.transpose(2, 3)
        return grad_e, grad_values, grad_mix, None


def _by_receiver(e: Tensor, reverse: bool) -> Tensor:
    """``[B, n_receiver * E, n_sender]``."""
    return (e.permute(0, 2, 3, 1) if reverse else e.transpose(2, 3)).flatten(1, 2)


def _per_channel(left: Tensor, values: Tensor, channels: int) -> Tensor:
    """``sum_j e_ijh v_jf`` ``[B, n, E, F]``."""
    return torch.bmm(left, values).unflatten(1, (-1, channels))
