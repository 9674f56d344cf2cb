"""NG-GNN on a batch of many architectures, each of few networks: one call per operation for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.graph import GraphBatch
from neural_graphs.nn._edges import aggregate
from neural_graphs.nn._embedding import composed
from neural_graphs.nn._encoder import Encoding, Reads
from neural_graphs.nn._ng_gnn_layer import NGGNNLayer
from neural_graphs.nn._stacked_edges import linear, reordered, stacked_statistics, stacked_update
from neural_graphs.nn._stacked_embedding import edge_rows, node_rows
from neural_graphs.nn._stacking import Stacking

if TYPE_CHECKING:
    from neural_graphs.nn._ng_gnn import NGGNN


def encode_stacked(encoder: NGGNN, batch: GraphBatch, reads: Reads) -> Encoding:
    """What ``NGGNN`` gives bucket by bucket, for all buckets together."""
    graphs, depth = batch.buckets, len(encoder.layers)
    for graph in graphs:
        encoder.check_readable(graph)
    stacking = Stacking.of(graphs, depth, encoder.reverse_edges, reads)
    x = node_rows(encoder.embedding, graphs, encoder.normalization)
    x = reordered(x, stacking.node_order, stacking.node_rank)[: stacking.live[0]]
    z = edge_rows(encoder.embedding, graphs, encoder.normalization, stacking, encoder.edge_dtype)
    compose: torch.nn.Linear | None = None
    for number, layer in enumerate(encoder.layers, start=1):
        assert isinstance(layer, NGGNNLayer)
        x, z = _message_pass(encoder, layer, stacking, number, x, z, compose)
        if layer.edge_mlp is not None and layer.norm is not None:
            x = F.dropout(F.silu(layer.norm(x)), encoder.dropout, encoder.training)
            if number < depth:
                mlp = layer.edge_mlp
                weight, bias = composed(mlp.edge, compose)
                receiver = linear(x, mlp.receiver.weight, mlp.receiver.bias + bias)
                sender = linear(x, mlp.sender.weight, mlp.sender.bias)
                z = stacked_update(z, weight, receiver, sender, stacking, number + 1)
            compose = layer.edge_mlp.out
    nodes = _apart_nodes(stacking, batch, x, reads)
    if reads != "edges":
        return Encoding(batch, nodes, tuple((None,) * len(bucket.todo.directions) for bucket in stacking.buckets))
    final = z.to(x.dtype) if compose is None else compose(z.to(x.dtype))
    return Encoding(batch, nodes, _apart_edges(stacking, batch, final))


def _message_pass(
    encoder: NGGNN,
    layer: NGGNNLayer,
    stacking: Stacking,
    number: int,
    x: Tensor,
    z: Tensor,
    compose: torch.nn.Linear | None,
) -> tuple[Tensor, Tensor]:
    """Nodes after layer ``number``, and of the edges those that are read afterwards."""
    weight, bias = composed(layer.modulation, compose)
    left, right = layer.message.weight.chunk(2, 1)
    own = x[: stacking.live[number]]
    receiver, sender = linear(own, left, layer.message.bias), linear(x, right)
    kept = stacking.edges(number + 1) if number < len(encoder.layers) else len(z)
    *found, z = stacked_statistics(z, weight, bias, receiver, sender, stacking, number, kept)
    degree = stacking.degree[: len(own)].to(x.dtype).unsqueeze(1)
    total, square, low, high = found
    a = aggregate([(total, square, low, high)], degree.clamp_min(1), own)
    weight, bias = composed(layer.mix, layer.combine)
    of_own, plain, amplified = weight.split([own.shape[1], a.shape[1], a.shape[1]], 1)
    # The statistics once, whatever they are multiplied by: that comes to the same behind the map.
    plain, amplified = linear(a, torch.cat([plain, amplified])).chunk(2, 1)
    scale = degree.log1p() / encoder.average_log_degree
    return torch.addcmul(linear(own, of_own, bias) + plain, amplified, scale), z


def _apart_nodes(
    stacking: Stacking, batch: GraphBatch, x: Tensor, reads: Reads
) -> tuple[tuple[Tensor | None, ...], ...]:
    """The rows of the node sets that are read, per bucket and node set."""
    last = len(stacking.live) - 1
    shapes = [
        (k, s, graph.batch_size, size, s in bucket.todo.nodes[last])
        for k, (graph, bucket) in enumerate(zip(batch.buckets, stacking.buckets, strict=True))
        for s, size in enumerate(bucket.sizes)
    ]
    parts = iter(x.index_select(0, stacking.kept_rank).split([b * n for _, _, b, n, read in shapes if read]))
    found: list[list[Tensor | None]] = [[] for _ in batch.buckets]
    for k, _, b, n, read in shapes:
        found[k].append(next(parts).unflatten(0, (b, n)) if read else None)
    return tuple(map(tuple, found))


def _apart_edges(stacking: Stacking, batch: GraphBatch, z: Tensor) -> tuple[tuple[Tensor | None, ...], ...]:
    """The rows of every direction's edges, per bucket; all of them are read."""
    shapes = []
    for k, d in (part for parts in stacking.groups.values() for part in parts):
        graph = batch.buckets[k]
        rows, columns, _ = graph.spec.edge_shape(stacking.buckets[k].todo.directions[d].block)
        shapes.append((k, d, graph.batch_size, rows, columns))
    parts = reordered(z, stacking.edge_rank, stacking.edge_order).split([b * n * m for *_, b, n, m in shapes])
    found: list[list[Tensor | None]] = [[None] * len(bucket.todo.directions) for bucket in stacking.buckets]
    for (k, d, *shape), part in zip(shapes, parts, strict=True):
        found[k][d] = part.unflatten(0, shape)
    return tuple(map(tuple, found))
