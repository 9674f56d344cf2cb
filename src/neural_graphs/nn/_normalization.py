"""Per-layer scalar statistics of a zoo's weights and biases, kept with the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphSpec, NeuralGraph

Moments = tuple[float, float]


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per layer, for weights and biases apart (Kofinas et al. 2024, appendix).

    Keys are ``"l/L"`` (layer l of L) for depths seen in the training zoo, and ``"first"``, ``"hidden"``, ``"last"`` pooled
    over them, used for a depth that was not. Weights are measured as ``w * sqrt(fan_in)``, so that an unseen width meets
    the same scale; for one architecture this is exactly the paper's normalisation.
    """

    weight: Mapping[str, Moments] = field(default_factory=dict)
    bias: Mapping[str, Moments] = field(default_factory=dict)

    @classmethod
    def fit(cls, graphs: Iterable[NeuralGraph]) -> Normalization:
        """Statistics over all networks of ``graphs`` (any architectures). Raises ``UserError`` when there are none."""
        sums: dict[str, dict[str, list[float]]] = {
            "weight": defaultdict(lambda: [0.0] * 3),
            "bias": defaultdict(lambda: [0.0] * 3),
        }
        for graph in graphs:
            for kind, depth, value, scale in _tensors(graph):
                double = value.double() * scale
                entry = (float(double.numel()), float(double.sum()), float(double.square().sum()))
                for key in (f"{depth}/{graph.spec.depth}", role_of(depth, graph.spec.depth)):
                    sums[kind][key] = [a + b for a, b in zip(sums[kind][key], entry, strict=True)]
        if not sums["weight"]:
            raise UserError("there are no networks to measure weight statistics on")
        return cls(*({key: _moments(entry) for key, entry in sums[kind].items()} for kind in ("weight", "bias")))

    def uncentred(self) -> Normalization:
        """Division by the root mean square alone, for values from which nothing may be subtracted."""
        tables = (
            {k: (0.0, math.hypot(*moments)) for k, moments in table.items()} for table in (self.weight, self.bias)
        )
        return Normalization(*tables)

    def weights(self, graph: NeuralGraph) -> list[Tensor]:
        """Normalised edge features per block, ``[B, n_out, n_in / groups, f]``."""
        out = []
        for block, edges in zip(graph.spec.blocks, graph.edges, strict=True):
            if not block.features:
                out.append(edges)
                continue
            depth = graph.spec.node_sets[block.target].depth
            mean, std = self._lookup(self.weight, depth, graph.spec.depth)
            scale = math.sqrt(_fan_in(graph.spec, block))
            out.append((edges - mean / scale) * (scale / std))
        return out

    def biases(self, graph: NeuralGraph) -> list[Tensor]:
        """Normalised node features per node set, ``[B, n, c]``; zeros ``[B, n, 1]`` where a set has none."""
        out = []
        for node_set, nodes in zip(graph.spec.node_sets, graph.nodes, strict=True):
            if nodes.shape[-1] == 0:
                out.append(nodes.new_zeros(*nodes.shape[:-1], 1))
                continue
            mean, std = self._lookup(self.bias, node_set.depth, graph.spec.depth)
            out.append((nodes - mean) / std)
        return out

    def _lookup(self, table: Mapping[str, Moments], depth: int, layers: int) -> Moments:
        if not table:
            return 0.0, 1.0
        for key in (f"{depth}/{layers}", role_of(depth, layers), "hidden", "last", "first"):
            if key in table:
                return table[key]
        return 0.0, 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "weight": {k: list(v) for k, v in self.weight.items()},
            "bias": {k: list(v) for k, v in self.bias.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Normalization:
        if data is None:
            return cls()
        try:
            tables = ({key: (float(m), float(s)) for key, (m, s) in data[kind].items()} for kind in ("weight", "bias"))
            return cls(*tables)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the normalisation statistics of this model are broken: {error}") from None


def _fan_in(spec: GraphSpec, block: Block) -> int:
    return spec.node_sets[block.source].size // block.groups * block.features


def role_of(depth: int, layers: int) -> str:
    """Which of "first", "hidden" and "last" the layer of this depth is in a network of ``layers`` layers."""
    return "last" if depth == layers else "first" if depth == 1 else "hidden"


def _tensors(graph: NeuralGraph) -> Iterable[tuple[str, int, Tensor, float]]:
    for block, edges in zip(graph.spec.blocks, graph.edges, strict=True):
        if block.features:
            scale = math.sqrt(_fan_in(graph.spec, block))
            yield "weight", graph.spec.node_sets[block.target].depth, edges, scale
    for node_set, nodes in zip(graph.spec.node_sets, graph.nodes, strict=True):
        if nodes.shape[-1]:
            yield "bias", node_set.depth, nodes, 1.0


def _moments(entry: list[float]) -> Moments:
    count, total, square = entry
    mean = total / count
    variance = max(square / count - mean * mean, 0.0)
    std = math.sqrt(variance)
    if not math.isfinite(std):
        raise UserError("the zoo holds weights that are NaN or infinite, so no statistics can be taken")
    return mean, std if std > 1e-12 else 1.0
