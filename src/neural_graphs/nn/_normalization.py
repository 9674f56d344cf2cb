"""Per-layer scalar statistics of a zoo's weights, biases and other node features, kept with the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphSpec, NeuralGraph, NodeSet

Moments = tuple[float, float]

VARIANCE_EPSILON = 1e-5
"""What normalisation layers add to a variance by default."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per layer, for weights, biases and each other kind of node feature apart (Kofinas et al.
    2024, appendix).

    Keys are ``"l/L"`` (layer l of L) for depths seen in the training zoo, and ``"first"``, ``"hidden"``, ``"last"`` pooled
    over them, used for a depth that was not. Weights are measured as ``w * sqrt(fan_in)``, so that an unseen width meets
    the same scale; for one architecture this is exactly the paper's normalisation. Running variances are measured, and
    read, as ``log(variance + 1e-5)``: what a layer divides by spans orders of magnitude. ``features`` holds a table for
    every kind of node feature but biases.
    """

    weight: Mapping[str, Moments] = field(default_factory=dict)
    bias: Mapping[str, Moments] = field(default_factory=dict)
    features: Mapping[str, Mapping[str, Moments]] = field(default_factory=dict)

    @classmethod
    def fit(cls, graphs: Iterable[NeuralGraph]) -> Normalization:
        """Statistics over all networks of ``graphs`` (any architectures). Raises ``UserError`` when there are none."""
        sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * 3))
        for graph in graphs:
            for table, depth, value, scale in _tensors(graph):
                double = value.double() * scale
                entry = (float(double.numel()), float(double.sum()), float(double.square().sum()))
                for key in (f"{depth}/{graph.spec.depth}", role_of(depth, graph.spec.depth)):
                    sums[table][key] = [a + b for a, b in zip(sums[table][key], entry, strict=True)]
        if not sums[WEIGHT]:
            raise UserError("there are no networks to measure weight statistics on")
        found = {table: {key: _moments(entry) for key, entry in sums[table].items()} for table in sums}
        return cls(found.pop(WEIGHT), found.pop("bias", {}), found)

    def uncentred(self) -> Normalization:
        """Division by the root mean square alone, for values from which nothing may be subtracted."""

        def uncentred(table: Mapping[str, Moments]) -> dict[str, Moments]:
            return {key: (0.0, math.hypot(*moments)) for key, moments in table.items()}

        features = {kind: uncentred(table) for kind, table in self.features.items()}
        return Normalization(uncentred(self.weight), uncentred(self.bias), features)

    def weights(self, graph: NeuralGraph) -> list[Tensor]:
        """Normalised edge features per block, ``[B, n_out, n_in / groups, f]``."""
        maps = self.weight_maps(graph.spec)
        return [
            (edges - shift) * factor if block.features else edges
            for block, edges, (shift, factor) in zip(graph.spec.blocks, graph.edges, maps, strict=True)
        ]

    def weight_maps(self, spec: GraphSpec) -> tuple[Moments, ...]:
        """Shift and factor of every block: its weights are read as ``(w - shift) * factor``."""
        if spec not in self._weight_maps:
            found = []
            for block in spec.blocks:
                mean, std = self._lookup(self.weight, spec.node_sets[block.target].depth, spec.depth)
                scale = math.sqrt(_fan_in(spec, block))
                found.append((mean / scale, scale / std) if block.features else (0.0, 1.0))
            self._weight_maps[spec] = tuple(found)
        return self._weight_maps[spec]

    @cached_property
    def _weight_maps(self) -> dict[GraphSpec, tuple[Moments, ...]]:
        return {}

    def bias_maps(self, spec: GraphSpec) -> tuple[Moments, ...]:
        """Shift and factor of the biases of every node set."""
        if spec not in self._bias_maps:
            moments = [self._lookup(self.bias, nodes.depth, spec.depth) for nodes in spec.node_sets]
            self._bias_maps[spec] = tuple((mean, 1 / std) for mean, std in moments)
        return self._bias_maps[spec]

    @cached_property
    def _bias_maps(self) -> dict[GraphSpec, tuple[Moments, ...]]:
        return {}

    def biases(self, graph: NeuralGraph) -> list[Tensor]:
        """Normalised node features per node set, ``[B, n, c]``; zeros ``[B, n, 1]`` where a set has none."""
        out = []
        for node_set, nodes in zip(graph.spec.node_sets, graph.nodes, strict=True):
            parts = []
            for kind, value in _columns(node_set, nodes):
                table = self.bias if kind == "bias" else self.features.get(kind, {})
                mean, std = self._lookup(table, node_set.depth, graph.spec.depth)
                parts.append((value - mean) / std)
            if not parts:
                parts.append(nodes.new_zeros(*nodes.shape[:-1], 1))
            out.append(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return out

    def _lookup(self, table: Mapping[str, Moments], depth: int, layers: int) -> Moments:
        if not table:
            return 0.0, 1.0
        for key in (f"{depth}/{layers}", role_of(depth, layers), "hidden", "last", "first"):
            if key in table:
                return table[key]
        return 0.0, 1.0

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"weight": _table_to_json(self.weight), "bias": _table_to_json(self.bias)}
        if self.features:
            found["features"] = {kind: _table_to_json(table) for kind, table in self.features.items()}
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Normalization:
        if data is None:
            return cls()
        try:
            features = {kind: _table_from_json(table) for kind, table in data.get("features", {}).items()}
            return cls(_table_from_json(data["weight"]), _table_from_json(data["bias"]), features)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the normalisation statistics of this model are broken: {error}") from None


def _table_to_json(table: Mapping[str, Moments]) -> dict[str, list[float]]:
    return {key: list(moments) for key, moments in table.items()}


def _table_from_json(data: Mapping[str, Any]) -> dict[str, Moments]:
    return {key: (float(mean), float(std)) for key, (mean, std) in data.items()}


def _fan_in(spec: GraphSpec, block: Block) -> int:
    return spec.node_sets[block.source].size // block.groups * block.features


def role_of(depth: int, layers: int) -> str:
    """Which of "first", "hidden" and "last" the layer of this depth is in a network of ``layers`` layers."""
    return "last" if depth == layers else "first" if depth == 1 else "hidden"


WEIGHT = "/weight"
"""The table of weights; those of node features are named by their kind."""


def _tensors(graph: NeuralGraph) -> Iterable[tuple[str, int, Tensor, float]]:
    for block, edges in zip(graph.spec.blocks, graph.edges, strict=True):
        if block.features:
            scale = math.sqrt(_fan_in(graph.spec, block))
            yield WEIGHT, graph.spec.node_sets[block.target].depth, edges, scale
    for node_set, nodes in zip(graph.spec.node_sets, graph.nodes, strict=True):
        for kind, value in _columns(node_set, nodes):
            yield kind, node_set.depth, value, 1.0


def _columns(node_set: NodeSet, nodes: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Kind and values ``[B, n, columns]`` of every feature of a node set, as they are read."""
    start = 0
    for feature in node_set.features:
        value = nodes if feature.columns == nodes.shape[-1] else nodes[..., start : start + feature.columns]
        start += feature.columns
        # Noise that augmentation adds may make a small variance negative.
        yield feature.kind, (value.clamp_min(0) + VARIANCE_EPSILON).log() if feature.kind == "running_var" else value


def _moments(entry: list[float]) -> Moments:
    count, total, square = entry
    mean = total / count
    variance = max(square / count - mean * mean, 0.0)
    std = math.sqrt(variance)
    if not math.isfinite(std):
        raise UserError("the zoo holds weights that are NaN or infinite, so no statistics can be taken")
    return mean, std if std > 1e-12 else 1.0
