"""Layers on networks whose only factors left are signs: odd neurons change sign, the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.graph import GraphSpec
from neural_graphs.nn._edges import _apart, _joined
from neural_graphs.nn._gated import gated, summed

GAIN = 0.3
"""Initial last weights of gates, relative to the default: gates start near 1, and products of many of them stay there."""


@dataclass(frozen=True)
class Layout:
    """All nodes of a network in one tensor ``[B, N, F]``, the ``odd`` ones first: where each node set stands."""

    spans: tuple[tuple[int, int], ...]
    odd: int
    signs: tuple[bool, ...]

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, spec: GraphSpec, signs: tuple[bool, ...]) -> Layout:
        spans, at = {}, 0
        for odd in (True, False):
            for s, nodes in enumerate(spec.node_sets):
                if signs[s] == odd:
                    spans[s] = (at, at + nodes.size)
                    at += nodes.size
        first = sum(nodes.size for nodes, odd in zip(spec.node_sets, signs, strict=True) if odd)
        return cls(tuple(spans[s] for s in range(len(signs))), first, signs)

    def join(self, parts: Mapping[int, Tensor]) -> Tensor:
        return torch.cat([parts[s] for s in sorted(parts, key=lambda s: self.spans[s])], -2)

    def split(self, x: Tensor) -> list[Tensor]:
        return [x[..., a:b, :] for a, b in self.spans]

    def places(self, sets: Iterable[int]) -> Tensor:
        return torch.cat([torch.arange(*self.spans[s]) for s in sets])

    def canonical(self, x: Tensor) -> Tensor:
        """``[B, N, F]``, the same for either sign of the odd neurons."""
        if not self.odd:
            return x
        return x.abs() if self.odd == x.shape[1] else torch.cat([x[:, : self.odd].abs(), x[:, self.odd :]], 1)


def bounded(x: Tensor) -> Tensor:
    """``x`` ``[..., F]``, shortened to a root mean square below 1 where it is long; odd, so signs stay."""
    return x * torch.rsqrt(1 + x.square().mean(-1, keepdim=True))


class Gate(nn.Module):
    """``y = Gamma x * MLP([|Gamma x|, position])``: odd, and linear where the MLP says 1, as it about does at the start."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.gamma = nn.Linear(inputs, 2 * width, bias=False)
        self.first = nn.Linear(2 * width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, width)
        self.dropout = dropout
        nn.init.ones_(self.last.bias)
        with torch.no_grad():
            self.last.weight *= GAIN

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        u = self.gamma(x)
        hidden = F.silu(self.norm(self.first(u.abs()) + self.position(position)))
        return u.chunk(2, -1)[0] * self.last(F.dropout(hidden, self.dropout, self.training))


class Plain(nn.Module):
    """``MLP([x, position])``."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.position = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        hidden = F.silu(self.norm(self.first(x) + self.position(position)))
        return self.last(F.dropout(hidden, self.dropout, self.training))


class EdgeGate(nn.Module):
    """``e_ij <- W e_ij * MLP([c(x_i), c(x_j), c(e_ij)])``, one hidden layer of twice the width of edges."""

    def __init__(self, width: int, edge_width: int) -> None:
        super().__init__()
        hidden = 2 * edge_width
        self.ends = nn.Linear(width, 2 * hidden)
        self.edge = nn.Linear(edge_width, hidden, bias=False)
        self.last = nn.Linear(hidden, edge_width)
        self.map = nn.Linear(edge_width, edge_width, bias=False)
        nn.init.orthogonal_(self.map.weight)
        nn.init.ones_(self.last.bias)
        with torch.no_grad():
            self.last.weight *= GAIN

    def forward(self, edges: list[Tensor], nodes: Tensor, layout: Layout, spec: GraphSpec) -> list[Tensor]:
        """``nodes``: canonical ``[B, N, F]``."""
        ends = layout.split(self.ends(nodes))
        found = []
        for block, e in zip(spec.blocks, edges, strict=True):
            to, _ = ends[block.target].chunk(2, -1)
            _, start = ends[block.source].chunk(2, -1)
            odd = layout.signs[block.target] or layout.signs[block.source]
            e, to, start = (_apart(t, block.groups) for t in (e, to, start))
            last = self.last
            e = gated(e, to, start, self.edge.weight, last.weight, last.bias, self.map.weight, odd)
            found.append(_joined(e, block.groups))
        return found


class SignedLayer(nn.Module):
    """Messages, their sum, and the update of nodes."""

    def __init__(self, width: int, edge_width: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.width, self.ways = width, ways
        self.value = nn.Linear(width, ways * width, bias=False)
        self.mix = nn.Parameter(torch.randn(ways, edge_width, width) * edge_width**-0.5)
        self.gate = Gate((1 + ways) * width, width, dropout)
        self.plain = Plain((1 + ways) * width, width, dropout)

    def forward(
        self, x: Tensor, normed: Tensor, edges: list[Tensor], position: Tensor, layout: Layout, spec: GraphSpec
    ) -> Tensor:
        values = layout.split(self.value(normed))
        sums: list[list[list[Tensor]]] = [[[] for _ in spec.node_sets] for _ in range(self.ways)]
        degrees = [[0] * len(spec.node_sets) for _ in range(self.ways)]
        for block, e in zip(spec.blocks, edges, strict=True):
            for way, (sender, receiver) in enumerate(((block.source, block.target), (block.target, block.source))):
                if way < self.ways:
                    v = values[sender].chunk(self.ways, -1)[way]
                    apart = _apart(e, block.groups), _apart(v, block.groups)
                    sums[way][receiver].append(_joined(summed(*apart, self.mix[way], bool(way)), block.groups))
                    degrees[way][receiver] += spec.node_sets[sender].size // block.groups
        messages = []
        for way in range(self.ways):
            parts = {}
            for s, found in enumerate(sums[way]):
                total = sum(found[1:], found[0]) if found else torch.zeros_like(layout.split(normed)[s])
                parts[s] = total * max(1, degrees[way][s]) ** -0.5
            messages.append(bounded(layout.join(parts)))
        z = torch.cat([normed, *messages], -1)
        odd = layout.odd
        change = [self.gate(z[:, :odd], position[:odd])] if odd else []
        change += [self.plain(z[:, odd:], position[odd:])] if odd < z.shape[1] else []
        return x + torch.cat(change, 1)
