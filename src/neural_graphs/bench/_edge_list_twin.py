"""NG-GNN the textbook way: the slow, obvious twin of ``neural_graphs.nn.NGGNN`` that benchmarks and tests compare with.

It runs the parameters of an ``NGGNN`` as the public message-passing implementations do: a dense ``[B, N, N, c]`` adjacency
tensor embedded entry by entry (non-edges too), the edges gathered from it, endpoints gathered per edge and concatenated,
messages scattered to their receivers, every linear map applied on its own. Nothing is fused, chunked, composed, skipped or
recomputed. The one departure from the authors' code is the layer norm, which is over each node's features, as in
``NGGNN``: theirs makes a network's output depend on its batch mates.

Networks of many architectures have no adjacency tensor of one size: ``MixedEdgeListTwin`` embeds the edges of one list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn import NGGNN, NGT, Encoding
from neural_graphs.nn._edges import STD_EPSILON
from neural_graphs.nn._embedding import RawEmbedding, pad_kernel
from neural_graphs.nn._ng_gnn_layer import NGGNNLayer
from neural_graphs.nn._probes import ProbeFeatures


class EdgeListTwin(nn.Module):
    """Same call, same parameters, same numbers as ``encoder``; reads one architecture per call or batch of buckets."""

    def __init__(self, encoder: NGGNN) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: GraphBatch | NeuralGraph) -> Encoding:
        """All node and edge embeddings, laid out as those of ``NGGNN``."""
        batch = GraphBatch.of(batch)
        encoded = [self._encode(graph) for graph in batch.buckets]
        return Encoding(batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded))

    def _encode(self, graph: NeuralGraph) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        encoder = self.encoder
        batch, size = graph.batch_size, graph.spec.num_nodes
        adjacency, source, target = dense_adjacency(encoder, graph)

        # Edge features: embed all N * N entries, then pick the edges.
        if encoder.reverse_edges:
            flipped = adjacency.transpose(1, 2)
            adjacency = torch.cat([adjacency, flipped, adjacency + flipped], -1)
            source, target = torch.cat([source, target]), torch.cat([target, source])
        dense = encoder.embedding.edge_in(embed(encoder.embedding.edge_embedding, adjacency))
        e = dense[:, source, target].flatten(0, 1)

        # One big disconnected graph, network b's nodes offset by b * N.
        offset = torch.arange(batch, device=source.device).unsqueeze(1) * size
        source_all, target_all = (source + offset).flatten(), (target + offset).flatten()
        x = embed_nodes(encoder, graph).flatten(0, 1)
        x, e = _layers(encoder, x, e, source_all, target_all, self.training)

        sizes = [nodes.size for nodes in graph.spec.node_sets]
        blocks = [(sizes[block.target], sizes[block.source]) for block in graph.spec.blocks]
        blocks *= 2 if encoder.reverse_edges else 1
        edges = e.unflatten(0, (batch, -1)).split([rows * columns for rows, columns in blocks], 1)
        return (
            x.unflatten(0, (batch, size)).split(sizes, 1),
            tuple(part.unflatten(1, shape) for part, shape in zip(edges, blocks, strict=True)),
        )


@dataclass(frozen=True, eq=False)
class EdgeList:
    """A batch as one big disconnected graph, as PyTorch Geometric's loaders collate it.

    ``features`` ``[E, kh * kw]`` and ``values`` ``[N, 1]`` are normalised weights and biases, ``source`` and ``target`` the
    nodes of each edge. ``places`` are node sets whose positions, row below row, hold that of every node, at ``row``.
    """

    batch: GraphBatch
    features: Tensor
    values: Tensor
    source: Tensor
    target: Tensor
    places: tuple[tuple[GraphSpec, int], ...]
    row: Tensor


class MixedEdgeListTwin(nn.Module):
    """As ``EdgeListTwin``, for networks of any architectures at once; without probes, biases are the only node features."""

    def __init__(self, encoder: NGGNN) -> None:
        super().__init__()
        if encoder.embedding.probes is not None:
            raise UserError("the twin for mixed architectures has no probes")
        self.encoder = encoder

    def collate(self, batch: GraphBatch) -> EdgeList:
        """What depends on the networks alone, made once: no part of a training step."""
        encoder = self.encoder
        features, values, ends, rows, start = [], [], [], [], 0
        places: dict[tuple[object, ...], tuple[int, GraphSpec, int]] = {}
        first = 0  # row of the next place
        for graph in batch.buckets:
            spec = graph.spec
            weights = encoder.embedding.raw_edges(graph, encoder.normalization)
            pairs = _pairs(spec)
            numbers = []
            for s, nodes in enumerate(spec.node_sets):
                key = (
                    nodes.role,
                    nodes.size if nodes.role != "hidden" else 0,
                    nodes.depth,
                    spec.depth,
                    nodes.activation,
                )
                if key not in places:
                    places[key] = (first, spec, s)
                    first += 1 if nodes.role == "hidden" else nodes.size
                inside = (
                    torch.zeros(nodes.size, dtype=torch.long) if nodes.role == "hidden" else torch.arange(nodes.size)
                )
                numbers.append(places[key][0] + inside)
            biases = torch.cat(encoder.normalization.biases(graph), 1)
            for b in range(graph.batch_size):
                features += [w[b].flatten(0, 1) for w in weights]
                values.append(biases[b])
                ends.append(pairs + start)
                rows += numbers
                start += spec.num_nodes
        target, source = torch.cat(ends, 1).to(values[0].device)
        found = tuple((spec, s) for _, spec, s in places.values())
        row = torch.cat(rows).to(target.device)
        return EdgeList(batch, torch.cat(features), torch.cat(values), source, target, found, row)

    def forward(self, networks: EdgeList | GraphBatch) -> Encoding:
        """All node and edge embeddings, laid out as those of ``NGGNN``."""
        if isinstance(networks, GraphBatch):
            networks = self.collate(networks)
        encoder, embedding = self.encoder, self.encoder.embedding
        w, source, target = networks.features, networks.source, networks.target
        if encoder.reverse_edges:
            zero = torch.zeros_like(w)
            w = torch.cat([torch.cat([w, zero, w], 1), torch.cat([zero, w, w], 1)])
            source, target = torch.cat([source, target]), torch.cat([target, source])
        e = embedding.edge_in(embed(embedding.edge_embedding, w))
        x = embedding.node_in(embed(embedding.node_embedding, networks.values))
        x = x + torch.cat([embedding.place(spec, s) for spec, s in networks.places])[networks.row]
        x, e = _layers(encoder, x, e, source, target, self.training)
        return Encoding(networks.batch, *_apart(networks.batch, x, e, encoder.reverse_edges))


def _pairs(spec: GraphSpec) -> Tensor:
    """``[2, edges]``: target and source of every edge of all blocks."""
    starts = [0]
    for nodes in spec.node_sets:
        starts.append(starts[-1] + nodes.size)
    found = []
    for block in spec.blocks:
        targets = torch.arange(starts[block.target], starts[block.target + 1]).chunk(block.groups)
        sources = torch.arange(starts[block.source], starts[block.source + 1]).chunk(block.groups)
        found += [torch.cartesian_prod(t, s).T for t, s in zip(targets, sources, strict=True)]
    return torch.cat(found, 1)


def _apart(
    batch: GraphBatch, x: Tensor, e: Tensor, reverse: bool
) -> tuple[tuple[tuple[Tensor, ...], ...], tuple[tuple[Tensor, ...], ...]]:
    """Rows of all nodes and edges, per bucket and node set or directed block."""
    nodes, edges = [], []
    ways = e.chunk(2) if reverse else (e,)
    node = edge = 0
    for graph in batch.buckets:
        spec, count = graph.spec, graph.batch_size
        shapes = [spec.edge_shape(k)[:2] for k in range(len(spec.blocks))]
        own = x[node : node + count * spec.num_nodes].unflatten(0, (count, -1))
        nodes.append(own.split([n.size for n in spec.node_sets], 1))
        found: list[Tensor] = []
        for way in ways:
            rows = way[edge : edge + count * spec.num_edges].unflatten(0, (count, -1))
            parts = rows.split([n * m for n, m in shapes], 1)
            found += [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        edges.append(tuple(found))
        node, edge = node + count * spec.num_nodes, edge + count * spec.num_edges
    return tuple(nodes), tuple(edges)


def _layers(
    encoder: NGGNN, x: Tensor, e: Tensor, source: Tensor, target: Tensor, training: bool
) -> tuple[Tensor, Tensor]:
    for layer in encoder.layers:
        assert isinstance(layer, NGGNNLayer)
        x = _convolve(layer, x, e, source, target, encoder.average_log_degree)
        if layer.edge_mlp is None or layer.norm is None:
            continue
        x = F.dropout(F.silu(layer.norm(x)), encoder.dropout, training)
        mlp = layer.edge_mlp
        e = mlp.out(F.silu(mlp.edge(e) + mlp.sender(x)[source] + mlp.receiver(x)[target]))
    return x, e


def dense_adjacency(encoder: NGGNN | NGT, graph: NeuralGraph) -> tuple[Tensor, Tensor, Tensor]:
    """``E[b, i, j]`` the normalised weight from node i to node j, zeros elsewhere, and the edges ``(source, target)``."""
    starts = [0]
    for nodes in graph.spec.node_sets:
        starts.append(starts[-1] + nodes.size)
    adjacency = graph.edges[0].new_zeros(graph.batch_size, starts[-1], starts[-1], math.prod(encoder.embedding.kernel))
    sources, targets = [], []
    for block, weights in zip(graph.spec.blocks, encoder.normalization.weights(graph), strict=True):
        weights = pad_kernel(weights, block.features, block.kernel, encoder.embedding.kernel)
        into = slice(starts[block.target], starts[block.target + 1])
        out_of = slice(starts[block.source], starts[block.source + 1])
        adjacency[:, out_of, into] = weights.transpose(1, 2)
        pairs = torch.cartesian_prod(torch.arange(into.start, into.stop), torch.arange(out_of.start, out_of.stop))
        targets.append(pairs[:, 0])
        sources.append(pairs[:, 1])
    device = adjacency.device
    return adjacency, torch.cat(sources).to(device), torch.cat(targets).to(device)


def embed(embedding: RawEmbedding, x: Tensor) -> Tensor:
    if embedding.frequencies is not None:
        angle = x @ embedding.frequencies
        x = torch.cat([torch.cos(angle), torch.sin(angle)], -1)
    return embedding.linear(x)


def embed_nodes(encoder: NGGNN | NGT, graph: NeuralGraph) -> Tensor:
    x = embed(encoder.embedding.node_embedding, torch.cat(encoder.normalization.biases(graph), 1))
    if encoder.embedding.probes is not None:
        x = x + _probe(encoder.embedding.probes, graph)
    positions = [
        encoder.embedding.position(graph.spec, s).expand(nodes.size, -1) for s, nodes in enumerate(graph.spec.node_sets)
    ]
    return encoder.embedding.node_in(x) + torch.cat(positions)


def _probe(probes: ProbeFeatures, graph: NeuralGraph) -> Tensor:
    """Every network is run by itself, layer by layer. Multilayer perceptrons only."""
    assert graph.stack is not None
    networks = []
    for b in range(graph.batch_size):
        state = graph[b].to_state_dict()
        h: Tensor = probes.points
        values: list[Tensor] = [h]
        for layer in graph.stack.layers:
            h = layer.activation(F.linear(h, state[layer.weight], state[layer.bias_name] if layer.bias_name else None))
            values.append(h)
        values[-1] = values[-1] + graph.stack.shift
        read = probes.projections
        projected = [
            read[nodes.role](value.T) if nodes.role in read else value.new_zeros(nodes.size, probes.width)
            for nodes, value in zip(graph.spec.node_sets, values, strict=True)
        ]
        networks.append(torch.cat(projected))
    return torch.stack(networks)


def _convolve(
    layer: NGGNNLayer, x: Tensor, e: Tensor, source: Tensor, target: Tensor, average_log_degree: Tensor
) -> Tensor:
    scale, offset = layer.modulation(e).chunk(2, -1)
    message = scale * layer.message(torch.cat([x[target], x[source]], -1)) + offset
    degree = torch.zeros(len(x), dtype=x.dtype, device=x.device).index_add(0, target, torch.ones_like(message[:, 0]))
    degree = degree.unsqueeze(1)
    count = degree.clamp_min(1)
    index = target.unsqueeze(1).expand_as(message)
    empty = torch.zeros_like(x)
    mean = empty.scatter_add(0, index, message) / count
    low = empty.scatter_reduce(0, index, message, "amin", include_self=False)
    high = empty.scatter_reduce(0, index, message, "amax", include_self=False)
    mean_of_squares = empty.scatter_add(0, index, message * message) / count
    std = torch.sqrt(torch.relu(mean_of_squares - mean * mean) + STD_EPSILON)
    aggregated = torch.cat([mean, low, high, std], -1)
    amplification = torch.log(degree + 1) / average_log_degree
    return layer.mix(layer.combine(torch.cat([x, aggregated, aggregated * amplification], -1)))
