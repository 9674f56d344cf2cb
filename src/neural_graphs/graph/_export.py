"""The same graph for the rest of the ecosystem: PyTorch Geometric and NetworkX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._structure import GraphSpec


def edge_index(spec: GraphSpec) -> Tensor:
    """``[2, E]`` (source, target) node numbers; nodes are numbered set after set, edges block after block, each block
    in the order of its weight (target-major)."""
    starts = [0]
    for nodes in spec.node_sets:
        starts.append(starts[-1] + nodes.size)
    parts = []
    for block in spec.blocks:
        source = torch.arange(starts[block.source], starts[block.source + 1])
        target = torch.arange(starts[block.target], starts[block.target + 1])
        parts.append(torch.stack([source.repeat(len(target)), target.repeat_interleave(len(source))]))
    return torch.cat(parts, 1)


def flat_features(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """Node features ``[B, N, c]`` and edge features ``[B, E, f]``, zero-padded to the widest node set and block."""
    channels = max(1, *(t.shape[-1] for t in graph.nodes))
    features = max(t.shape[-1] for t in graph.edges)
    nodes = torch.cat([F.pad(t, (0, channels - t.shape[-1])) for t in graph.nodes], 1)
    edges = torch.cat([F.pad(t.flatten(1, 2), (0, features - t.shape[-1])) for t in graph.edges], 1)
    return nodes, edges


def to_pyg(graph: NeuralGraph) -> list[Any]:
    """One ``Data`` per network with ``x`` [N, c], ``edge_index`` [2, E], ``edge_attr`` [E, f], ``layer`` [N]."""
    try:
        from torch_geometric.data import Data
    except ImportError:
        raise UserError("to_pyg needs PyTorch Geometric: pip install 'neural-graphs[pyg]'") from None
    nodes, edges = flat_features(graph)
    index = edge_index(graph.spec)
    layer = torch.cat([torch.full((s.size,), s.depth) for s in graph.spec.node_sets])
    return [Data(x=nodes[i], edge_index=index, edge_attr=edges[i], layer=layer) for i in range(graph.batch_size)]


def to_networkx(graph: NeuralGraph, index: int = 0) -> Any:
    """A ``DiGraph`` of network ``index``: nodes carry ``layer``, ``role`` and ``features``, edges ``features``."""
    try:
        import networkx as nx
    except ImportError:
        raise UserError("to_networkx needs NetworkX: pip install 'neural-graphs[networkx]'") from None
    nodes, edges = flat_features(graph[index])
    out = nx.DiGraph()
    number = 0
    for node_set in graph.spec.node_sets:
        for _ in range(node_set.size):
            out.add_node(number, layer=node_set.name, role=node_set.role, features=nodes[0, number].tolist())
            number += 1
    for (source, target), value in zip(edge_index(graph.spec).T.tolist(), edges[0].tolist(), strict=True):
        out.add_edge(source, target, features=value)
    return out
