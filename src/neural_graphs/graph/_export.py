"""The same graph for the rest of the ecosystem: PyTorch Geometric and NetworkX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._structure import BLOCK_KINDS, GraphSpec


def edge_index(spec: GraphSpec) -> Tensor:
    """``[2, E]`` (source, target) node numbers; nodes are numbered set after set, edges block after block, each block
    target-major; in a grouped one a target has edges from the sources of its group only."""
    starts = [0]
    for nodes in spec.node_sets:
        starts.append(starts[-1] + nodes.size)
    parts = []
    for k, block in enumerate(spec.blocks):
        targets, each, _ = spec.edge_shape(k)
        target = torch.arange(targets)
        group = target // max(1, targets // block.groups)
        source = group.unsqueeze(1) * each + torch.arange(each)
        parts.append(
            torch.stack(
                [starts[block.source] + source.flatten(), (starts[block.target] + target).repeat_interleave(each)]
            )
        )
    return torch.cat(parts, 1)


def flat_features(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """Node features ``[B, N, c]`` and edge features ``[B, E, f]``, zero-padded to the widest node set and block."""
    channels = max(1, *(t.shape[-1] for t in graph.nodes))
    features = max(1, *(t.shape[-1] for t in graph.edges))
    nodes = torch.cat([F.pad(t, (0, channels - t.shape[-1])) for t in graph.nodes], 1)
    edges = torch.cat([F.pad(t.flatten(1, 2), (0, features - t.shape[-1])) for t in graph.edges], 1)
    return nodes, edges


def to_pyg(graph: NeuralGraph) -> list[Any]:
    """One ``Data`` per network with ``x`` [N, c], ``edge_index`` [2, E], ``edge_attr`` [E, f], ``edge_type`` [E] (the
    position of the block's kind in ``BLOCK_KINDS``), ``layer`` [N]."""
    try:
        from torch_geometric.data import Data
    except ImportError:
        raise UserError("to_pyg needs PyTorch Geometric: pip install 'neural-graphs[pyg]'") from None
    nodes, edges = flat_features(graph)
    index = edge_index(graph.spec)
    layer = torch.cat([torch.full((s.size,), s.depth) for s in graph.spec.node_sets])
    kinds = [
        torch.full((t.shape[1] * t.shape[2],), BLOCK_KINDS.index(block.kind))
        for block, t in zip(graph.spec.blocks, graph.edges, strict=True)
    ]
    kind = torch.cat(kinds)
    return [
        Data(x=nodes[i], edge_index=index, edge_attr=edges[i], edge_type=kind, layer=layer)
        for i in range(graph.batch_size)
    ]


def to_networkx(graph: NeuralGraph, index: int = 0) -> Any:
    """Network ``index`` as a ``DiGraph``, or a ``MultiDiGraph`` where two blocks join the same node sets (a residual beside
    a layer): nodes carry ``layer``, ``role`` and ``features``, edges ``kind`` and ``features``."""
    try:
        import networkx as nx
    except ImportError:
        raise UserError("to_networkx needs NetworkX: pip install 'neural-graphs[networkx]'") from None
    nodes, edges = flat_features(graph[index])
    ends = {(block.source, block.target) for block in graph.spec.blocks}
    out = nx.DiGraph() if len(ends) == len(graph.spec.blocks) else nx.MultiDiGraph()
    number = 0
    for node_set in graph.spec.node_sets:
        for _ in range(node_set.size):
            out.add_node(number, layer=node_set.name, role=node_set.role, features=nodes[0, number].tolist())
            number += 1
    kinds = [
        b.kind for b, t in zip(graph.spec.blocks, graph.edges, strict=True) for _ in range(t.shape[1] * t.shape[2])
    ]
    for (source, target), kind, value in zip(edge_index(graph.spec).T.tolist(), kinds, edges[0].tolist(), strict=True):
        out.add_edge(source, target, kind=kind, features=value)
    return out
