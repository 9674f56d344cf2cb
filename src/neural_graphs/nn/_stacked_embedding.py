"""``GraphEmbedding`` for all networks of a mixed batch at once: nodes and edges are the rows of two tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.graph import GraphSpec, NeuralGraph
from neural_graphs.nn._embedding import GraphEmbedding, composed, crop_kernel, number_embedding
from neural_graphs.nn._normalization import Normalization
from neural_graphs.nn._slots import BIAS_ONLY, is_table, slots_of
from neural_graphs.nn._stacked_edges import linear, reordered, stacked_fourier
from neural_graphs.nn._stacking import Group, Stacking


def node_rows(embedding: GraphEmbedding, graphs: Sequence[NeuralGraph], normalization: Normalization) -> Tensor:
    """Embeddings ``[N, F]``: bucket by bucket and node set by node set, each ``[B, n]`` flattened."""
    x = _features(embedding, graphs, normalization)
    if embedding.probes is not None:
        found = [
            features.flatten(0, 1) if features is not None else x.new_zeros(graph.batch_size * nodes.size, x.shape[1])
            for graph, each in zip(graphs, embedding.probes.of_all(graphs), strict=True)
            for nodes, features in zip(graph.spec.node_sets, each, strict=True)
        ]
        x = x + torch.cat(found)
    return linear(x, embedding.node_in.weight, embedding.node_in.bias) + _places(embedding, graphs, x)


def _features(embedding: GraphEmbedding, graphs: Sequence[NeuralGraph], normalization: Normalization) -> Tensor:
    """The embedded slots, added up; a slot that a node set lacks is 0."""
    if embedding.reading.node_features == BIAS_ONLY:
        return embedding.node_embedding(_biases(graphs, normalization))
    values = [normalization.biases(graph) for graph in graphs]
    slots = [slots_of(nodes) for graph in graphs for nodes in graph.spec.node_sets]
    sets = list(zip(slots, (x for xs in values for x in xs), strict=True))
    total: Tensor | None = None
    maps = (embedding.node_embedding, *embedding.more_features)
    for name, each in zip(embedding.reading.node_features, maps, strict=True):
        column = [x[..., own.index(name)] if name in own else x.new_zeros(x.shape[:2]) for own, x in sets]
        found = each(torch.cat([x.flatten() for x in column]).unsqueeze(1))
        total = found if total is None else total + found
    assert total is not None
    return total


def _biases(graphs: Sequence[NeuralGraph], normalization: Normalization) -> Tensor:
    """Normalised biases ``[N, 1]``, 0 where there are none."""
    sets = [(x, *m) for graph in graphs for x, m in zip(graph.nodes, normalization.bias_maps(graph.spec), strict=True)]
    given = [x if x.shape[-1] else x.new_full((*x.shape[:-1], 1), shift) for x, shift, _ in sets]
    return _normalised(given, [(shift, factor) for _, shift, factor in sets])


def _normalised(tensors: Sequence[Tensor], maps: Sequence[tuple[float, float]]) -> Tensor:
    """Rows ``[R, f]`` of all tensors ``[..., f]``, each with its shift and factor."""
    rows = torch.cat([t.reshape(-1, t.shape[-1]) for t in tensors])
    counts = [t.shape[:-1].numel() for t in tensors]
    spread = torch.from_numpy(np.repeat(np.array(maps), counts, 0)).to(rows)
    return (rows - spread[:, :1]) * spread[:, 1:]


class _Place(NamedTuple):
    """What a node set has in place of a position of its own: see ``PositionEmbedding``."""

    size: int
    role: str  # "input" and "output" have a row per neuron, "depth" one for all
    depth: tuple[int, int]
    table: bool
    activation: str | None


@lru_cache(maxsize=4096)
def _places_of(spec: GraphSpec) -> tuple[_Place, ...]:
    found = []
    for s, nodes in enumerate(spec.node_sets):
        table = is_table(spec, s)
        role = "depth" if nodes.role == "hidden" or nodes.axis.moves or table else nodes.role
        kind = nodes.activation.kind if nodes.role == "hidden" else None
        found.append(_Place(nodes.size, role, (nodes.depth, spec.depth - nodes.depth), table, kind))
    return tuple(found)


def _places(embedding: GraphEmbedding, graphs: Sequence[NeuralGraph], like: Tensor) -> Tensor:
    """``GraphEmbedding.place`` of every node, looked up in one table."""
    places = [(place, graph.batch_size) for graph in graphs for place in _places_of(graph.spec)]
    position, max_io = embedding.position, embedding.position.max_io
    depths = list(dict.fromkeys(place.depth for place, _ in places if place.role == "depth"))
    first = {"input": 0, "output": max_io}
    starts = [first[p.role] if p.role in first else 2 * max_io + depths.index(p.depth) for p, _ in places]
    size, batch = np.array([p.size for p, _ in places]), np.array([b for _, b in places])
    count = size * batch
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    inside %= np.repeat(size, count)
    index = np.repeat(starts, count) + inside * np.repeat([p.role != "depth" for p, _ in places], count)
    table = torch.cat([position.inputs, position.outputs, position.depth.rows(depths)])
    found = table.index_select(0, _long(index, like))
    if embedding.activation is not None:
        kinds = embedding.activation.kinds
        number = [kinds.index(p.activation) if p.activation is not None else len(kinds) for p, _ in places]
        known = F.pad(embedding.activation.weight, (0, 0, 0, 1))
        found = found + known.index_select(0, _long(np.repeat(number, count), like))
    if any(p.table for p, _ in places):
        numbers = [
            number_embedding(p.size, like).repeat(b, 1) if p.table else like.new_zeros(p.size * b, like.shape[1])
            for p, b in places
        ]
        found = found + torch.cat(numbers)
    return found


def edge_rows(
    embedding: GraphEmbedding,
    graphs: Sequence[NeuralGraph],
    normalization: Normalization,
    stacking: Stacking,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Embeddings ``[E, F]`` of the edges that the first layer needs, in the order of ``stacking``."""
    raw = embedding.edge_embedding
    weight, bias = composed(embedding.edge_in, raw.linear)
    known: dict[tuple[tuple[int, int], ...], Tensor] = {}  # both directions of the same blocks read the same rows
    groups, shifts = [], []
    for group, parts in stacking.groups.items():
        blocks = tuple((k, stacking.buckets[k].todo.directions[d].block) for k, d in parts)
        if blocks not in known:
            known[blocks] = _group_rows(graphs, normalization, group, blocks)
        kind = None if embedding.kind is None else embedding.kind(group.kind)
        shifts.append(bias if kind is None else bias + kind)
        groups.append((known[blocks], _columns(embedding, group, bias.device)))
    if not groups:
        return weight.new_zeros(0, len(weight), dtype=dtype)
    if raw.frequencies is None:
        found = [raw.mapped(rows, c, weight, shift, dtype) for (rows, c), shift in zip(groups, shifts, strict=True)]
        return reordered(torch.cat(found), stacking.edge_order, stacking.edge_rank)
    rates = [torch.stack([raw.frequencies[c] for c in columns]).sum(0) for _, columns in groups]
    rows = [rows for rows, _ in groups]
    return stacked_fourier(list(zip(rows, rates, strict=True)), weight, torch.stack(shifts), stacking.edge_rank, dtype)


def _group_rows(
    graphs: Sequence[NeuralGraph], normalization: Normalization, group: Group, blocks: Sequence[tuple[int, int]]
) -> Tensor:
    """Normalised features ``[R, f]`` of blocks, given by numbers of graph and block.

    A residual is a weight of 1, others without parameters are weights of 0.
    """
    tensors = [graphs[k].edges[b] for k, b in blocks]
    if not group.features:
        weight = 1.0 if group.kind == "identity" else 0.0
        return tensors[0].new_full((1, 1), weight).expand(sum(t.shape[:-1].numel() for t in tensors), 1)
    return _normalised(tensors, [normalization.weight_maps(graphs[k].spec)[b] for k, b in blocks])


def _columns(embedding: GraphEmbedding, group: Group, device: torch.device) -> list[Tensor]:
    """Where in the raw feature a group's values stand: centred in the model's kernel, once per role."""
    size = math.prod(embedding.kernel)
    features, kernel = (group.features, group.kernel) if group.features else (1, ())
    cells = crop_kernel(torch.arange(size), features, kernel, embedding.kernel).to(device)
    roles: tuple[int, ...] = (0,)
    if embedding.reverse_edges:
        roles = (1, 2) if group.reverse else (0, 2)
    return [cells + role * size for role in roles]


def _long(index: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(index).to(like.device)
