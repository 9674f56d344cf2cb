"""The layers of NG-T, on dense blocks of edges whose first node axis is the attending one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.nn._attention import Block, attend
from neural_graphs.nn._edge_mlp import edge_update
from neural_graphs.nn._embedding import composed


class NGTLayer(nn.Module):
    """One layer of the relational transformer; per head h, with channels ``[·]_h``, node i attends to nodes j::

    q_ij = Wq x_i + Wq' e_ij      k_ij = Wk x_j + Wk' e_ij      v_ij = (Wv x_j) * (Wm' e_ij) + Wv' e_ij
    o_i  = W_j concat_h sum_j softmax_j([q_ij . k_ij]_h / sqrt(A)) [v_ij]_h
    x_i <- LN(x_i + W_p o_i)                        x_i <- LN(x_i + W_s GELU(W_g x_i))
    e_ij <- `EdgeMLP` of e_ij, e_ji, the new x_i and x_j                            (not in the last layer)
    """

    def __init__(
        self, width: int, edge_width: int, attention_width: int, hidden: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, attention_width, bias=False) for _ in range(3))
        self.edge_query, self.edge_key, self.edge_scale, self.edge_value = (
            nn.Linear(edge_width, attention_width, bias=False) for _ in range(4)
        )
        self.join = nn.Linear(attention_width, width)
        self.project_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, hidden, bias=False)
        self.shrink = nn.Linear(hidden, width)
        self.last_norm = nn.LayerNorm(width)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of nodes ``[..., F]``, side by side ``[..., 3A]``."""
        return F.linear(x, torch.cat([self.query.weight, self.key.weight, self.value.weight]))

    def attend(self, query: Tensor, blocks: Sequence[Block], own: Block | None = None) -> Tensor:
        """What the receivers gather, ``o`` before the map ``W_j``: ``[B, n, A]``.

        ``query`` ``[B, n, A]``. Each of ``blocks`` is ``(z, key, value)``: ``[B * groups, n / groups, s, d]`` and twice
        ``[B, groups * s, A]``. ``own`` is what a node sees of itself: ``[B, n, d]`` and twice ``[B, n, A]``.
        """
        maps = self.edge_query.weight, self.edge_key.weight, self.edge_scale.weight
        logits = query.new_zeros(*query.shape[:2], self.heads, 0)
        if own is not None:
            e, key, value = own[0].to(query.dtype), *own[1:]
            to_query, to_key, to_value = F.linear(e, torch.cat(maps)).chunk(3, -1)
            product = (query + to_query) * (key + to_key)
            logits = self._per_head(product).sum(-1, keepdim=True) * query.shape[-1] ** -0.5
        apart = [(z, _apart(key, z), _apart(value, z)) for z, key, value in blocks]
        o, mean, weights = attend(maps, query, logits, apart)
        if own is not None:
            o = o + (weights * self._per_head(value * to_value)).flatten(2)
            mean = mean + weights * e.unsqueeze(2)
        shift = torch.einsum("bnhd,hcd->bnhc", mean, self.edge_value.weight.unflatten(0, (self.heads, -1)))
        return o + shift.flatten(2)

    def _per_head(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.heads, -1))

    def update(self, x: Tensor, o: Tensor) -> Tensor:
        """The new ``x`` ``[..., F]`` from what its nodes gathered, ``o`` ``[..., A]``."""
        x = self.norm(x + self._drop(F.linear(o, *composed(self.project_out, self.join))))
        return self.last_norm(x + self._drop(self.shrink(F.gelu(self.grow(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class EdgeMLP(nn.Module):
    """The edge update of `NGTLayer`::

    e_ij <- LN(e_ij + W_o GELU(W_e [e_ij, e_ji] + W_r x_i + W_t x_j))      e_ij <- LN(e_ij + W_s GELU(W_g e_ij))
    """

    def __init__(self, width: int, edge_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.pair = nn.Linear(2 * edge_width, hidden)
        self.receiver = nn.Linear(width, hidden)
        self.sender = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, edge_width)
        self.norm = nn.LayerNorm(edge_width)
        self.grow = nn.Linear(edge_width, hidden, bias=False)
        self.shrink = nn.Linear(hidden, edge_width)
        self.last_norm = nn.LayerNorm(edge_width)

    def forward(self, z: Tensor, back: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """The new ``z`` ``[B * groups, r, s, d]``.

        ``back`` ``[B * groups, s, r, d]`` holds ``e_ji``; ``receiver`` ``[B, r * groups, hidden]`` and ``sender`` are
        ``W_r x_i`` and ``W_t x_j``.
        """
        keep: tuple[Tensor | None, Tensor | None] = (None, None)
        scale = 1.0
        steps = round(self.dropout * DROPOUT_STEPS)
        if self.training and steps:
            keep, scale = (_mask(z, steps), _mask(z, steps)), DROPOUT_STEPS / max(1, DROPOUT_STEPS - steps)
        p, q = _apart(receiver + self.pair.bias, back), _apart(sender, z)
        maps = (
            *(self.pair.weight, self.out.weight * scale, self.out.bias * scale, self.norm.weight, self.norm.bias),
            *(self.grow.weight, self.shrink.weight * scale, self.shrink.bias * scale),
            *(self.last_norm.weight, self.last_norm.bias),
        )
        return edge_update(z, back, p, q, maps, keep)


DROPOUT_STEPS = 1 << 16
"""Edges' dropout is a multiple of one over this: masks are drawn as 16-bit integers, several times as fast as others."""


def _mask(like: Tensor, steps: int) -> Tensor:
    """Truth values in the shape of ``like``, false for a share of ``steps / DROPOUT_STEPS``; at least one step."""
    count = like.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return (drawn.view(torch.int16)[:count] > steps - 1 - DROPOUT_STEPS // 2).view(like.shape)


def _apart(senders: Tensor, z: Tensor) -> Tensor:
    """``[B, groups * s, c]`` -> ``[B * groups, s, c]``, for edges ``z`` ``[B * groups, r, s, d]``."""
    return senders.reshape(len(z), z.shape[2], senders.shape[-1])
