"""From the embeddings of a network's neurons to one vector: which neurons, and how they are pooled."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphSpec

Pooling = Literal["concat", "mean", "max", "attention", "set-transformer"]
"""How embeddings become one vector; ``concat`` keeps the order of the neurons, the others forget it."""

Over = Literal["output", "last", "all"]
"""Whose embeddings are read: the output neurons', those of the last hidden layer, or every neuron's."""


def pooled_sets(spec: GraphSpec, over: str) -> list[int]:
    """Numbers of the node sets that ``over`` means. Raises ``UserError`` for ``last`` where there is no hidden layer."""
    if over == "all":
        return list(range(len(spec.node_sets)))
    if over == "output":
        return [s for s, nodes in enumerate(spec.node_sets) if nodes.role == "output"]
    hidden = [s for s, nodes in enumerate(spec.node_sets) if nodes.role == "hidden"]
    if not hidden:
        raise UserError("this head pools the last hidden layer, and this network has none: choose over=output or all")
    last = max(spec.node_sets[s].depth for s in hidden)
    return [s for s in hidden if spec.node_sets[s].depth == last]


def check_pooling(pooling: str, over: str) -> None:
    """Raise ``UserError`` for unknown names, and for combinations that mean nothing."""
    if pooling not in get_args(Pooling):
        raise UserError(f"unknown pooling {pooling!r}: choose one of {', '.join(get_args(Pooling))}")
    if over not in get_args(Over):
        raise UserError(f"cannot pool over {over!r}: choose one of {', '.join(get_args(Over))}")
    if pooling == "concat" and over != "output":
        raise UserError(
            f"pooling=concat needs a fixed number of neurons in a fixed order, which over={over} has not: choose "
            "over=output, or pool by mean, max, attention or set-transformer"
        )


def create_pooling(pooling: str, width: int, heads: int, blocks: int) -> nn.Module | None:
    """The module of one way of pooling, ``[B, n, width]`` -> ``[B, width]``; None for ``concat``."""
    if pooling == "concat":
        return None
    if pooling == "attention":
        return AttentionPooling(width)
    if pooling == "set-transformer":
        return SetTransformerPooling(width, heads, blocks)
    return MaxPooling() if pooling == "max" else MeanPooling()


class MeanPooling(nn.Module):
    """``[B, n, F]`` -> ``[B, F]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class MaxPooling(nn.Module):
    """``[B, n, F]`` -> ``[B, F]``; neurons that tie share the gradient equally."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1)


class AttentionPooling(nn.Module):
    """Gated attention with a learned query q (Ilse et al. 2018, equation 9), ``[B, n, F]`` -> ``[B, F]``::

    a_i = softmax_i(q . (tanh(V x_i) * sigmoid(U x_i)))        pooled = sum_i a_i x_i
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, x: Tensor) -> Tensor:
        score = self.query(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))
        return (score.softmax(1) * x).sum(1)


class AttentionBlock(nn.Module):
    """The MAB of Lee et al. (2019, equations 6 and 7): queries ``x`` ``[B, n, F]`` attend to ``y`` ``[B, m, F]``::

        h = x + multihead(LN(x), LN(y), LN(y))        out = h + rFF(LN(h))        rFF: Linear, ReLU, Linear

    Layer norms stand before what they normalise, not after the sums as in the paper: at three times the default learning
    rate the paper's order ends at chance, this one trains.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen = self.norm_attention(y)
        query = self._split(self.query(self.norm_attention(x)))
        key, value = self._split(self.key(seen)), self._split(self.value(seen))
        h = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return h + self.feed(self.norm_feed(h))

    def _split(self, x: Tensor) -> Tensor:
        """``[B, n, F]`` -> ``[B, heads, n, F / heads]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SetTransformerPooling(nn.Module):
    """Self-attention blocks, then pooling by one learned seed S (Lee et al. 2019): ``[B, n, F]`` -> ``[B, F]``::

    z = SAB(...SAB(x))        SAB(x) = MAB(x, x)        pooled = MAB(S, z)
    """

    def __init__(self, width: int, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"a set-transformer of {heads} heads needs a width that they divide, not {width}")
        if blocks < 0:
            raise UserError(f"a set-transformer cannot have {blocks} self-attention blocks")
        self.blocks = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.seed = nn.Parameter(torch.empty(1, 1, width))
        nn.init.xavier_uniform_(self.seed)
        self.pool = AttentionBlock(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, x)
        return self.pool(self.seed.expand(x.shape[0], -1, -1), x).squeeze(1)
