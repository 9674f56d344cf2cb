"""NG-T the textbook way: the slow, obvious twin of ``neural_graphs.nn.NGT`` that benchmarks and tests compare with.

It runs the parameters of an ``NGT`` as the equations of Kofinas et al. (2024) read: a dense ``[B, N, N, c]`` adjacency
tensor embedded entry by entry, queries, keys and values of every pair of neurons, every linear map applied on its own.
Nothing is fused, chunked, composed, skipped or recomputed. For an encoder whose neurons attend along blocks only, the
logits of all other pairs are minus infinity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.bench._edge_list_twin import dense_adjacency, embed, embed_nodes
from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn import NGT, Encoding
from neural_graphs.nn._transformer import EdgeMLP, NGTLayer


class AllPairsTwin(nn.Module):
    """Same call, same parameters, same numbers as ``encoder``; no parallel edges. ``attention`` overrides the encoder's."""

    def __init__(self, encoder: NGT, attention: str | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.attention = attention or encoder.attention
        self.dropout = encoder.dropout

    def forward(self, batch: GraphBatch | NeuralGraph) -> Encoding:
        """All node and edge embeddings, laid out as those of ``NGT``."""
        batch = GraphBatch.of(batch)
        encoded = [self._encode(graph) for graph in batch.buckets]
        return Encoding(batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded))

    def _encode(self, graph: NeuralGraph) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        encoder = self.encoder
        adjacency, source, target = dense_adjacency(encoder, graph)
        size = graph.spec.num_nodes
        mask = torch.eye(size, dtype=torch.bool, device=adjacency.device)
        if self.attention == "blocks":
            mask[source, target] = mask[target, source] = True
        else:
            mask[:] = True
        if encoder.reverse_edges:
            flipped = adjacency.transpose(1, 2)
            adjacency = torch.cat([adjacency, flipped, adjacency + flipped], -1)
        e = encoder.embedding.edge_in(embed(encoder.embedding.edge_embedding, adjacency))
        x = embed_nodes(encoder, graph)
        for depth, layer in enumerate(encoder.layers):
            assert isinstance(layer, NGTLayer)
            x = self._update_nodes(layer, x, e, mask)
            if depth < len(encoder.edge_mlps):
                mlp = encoder.edge_mlps[depth]
                assert isinstance(mlp, EdgeMLP)
                e = self._update_edges(mlp, x, e)

        sizes = [nodes.size for nodes in graph.spec.node_sets]
        rows = [row.split(sizes, 2) for row in e.split(sizes, 1)]
        there = [rows[block.source][block.target].transpose(1, 2) for block in graph.spec.blocks]
        back = [rows[block.target][block.source] for block in graph.spec.blocks]
        return x.split(sizes, 1), (*there, *back)

    def _update_nodes(self, layer: NGTLayer, x: Tensor, e: Tensor, mask: Tensor) -> Tensor:
        q = layer.query(x)[:, :, None] + layer.edge_query(e)
        k = layer.key(x)[:, None, :] + layer.edge_key(e)
        v = layer.value(x)[:, None, :] * layer.edge_scale(e) + layer.edge_value(e)
        width = q.shape[-1]
        q, k, v = (t.unflatten(-1, (layer.heads, -1)) for t in (q, k, v))  # [B, N, N, heads, c]
        logits = (q * k).sum(-1) / width**0.5
        weights = logits.masked_fill(~mask[:, :, None], -torch.inf).softmax(2)
        o = layer.join((weights.unsqueeze(-1) * v).sum(2).flatten(2))
        x = layer.norm(x + self._drop(layer.project_out(o)))
        return layer.last_norm(x + self._drop(layer.shrink(F.gelu(layer.grow(x)))))

    def _update_edges(self, mlp: EdgeMLP, x: Tensor, e: Tensor) -> Tensor:
        hidden = mlp.pair(torch.cat([e, e.transpose(1, 2)], -1))
        hidden = hidden + mlp.receiver(x)[:, :, None] + mlp.sender(x)[:, None, :]
        e = mlp.norm(e + self._drop(mlp.out(F.gelu(hidden))))
        return mlp.last_norm(e + self._drop(mlp.shrink(F.gelu(mlp.grow(e)))))

    def _drop(self, t: Tensor) -> Tensor:
        return F.dropout(t, self.dropout, self.training)
