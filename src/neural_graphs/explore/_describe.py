"""What is in a graph, as plain numbers and text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neural_graphs.explore._summary import Cells, Statistics, statistics, summarise

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph


def describe_graph(graph: NeuralGraph) -> dict[str, Any]:
    """Node sets, blocks and symmetries of network 0 of `graph`, JSON-able.

    `mean`, `std`, `min` and `max` are over the finite entries, and None where there are none (a block without a parameter);
    `nan` and `inf` count the others. `parameters` of a block counts its entries, 0 where it shares them with an earlier
    block, which `copy_of` then numbers.
    """
    return survey(graph, 1)[0]


def survey(graph: NeuralGraph, side: int) -> tuple[dict[str, Any], list[Cells | None]]:
    """`describe_graph`, and every block seen as at most `side` x `side` cells (None without a parameter)."""
    spec = graph.spec
    images: list[Cells | None] = []
    blocks = []
    for block, batch in zip(spec.blocks, graph.edges, strict=True):
        edges = batch[0].detach().cpu()
        numbers, cells = Statistics(0), None
        if edges.numel():
            numbers, cells = summarise(edges, side)
        images.append(cells)
        found = asdict(numbers)
        entries = found.pop("entries")
        blocks.append(
            {
                "parameter": block.parameter,
                "kind": block.kind,
                "source": spec.node_sets[block.source].name,
                "target": spec.node_sets[block.target].name,
                "shape": list(block.shape),
                "edges": edges.shape[0] * edges.shape[1],
                "features": block.features,
                "groups": block.groups,
                "copy_of": block.copy_of,
                "parameters": entries if block.copy_of is None else 0,
                **found,
            }
        )
    group = spec.symmetries
    found = {
        "architecture": str(graph.stack) if graph.stack else f"{len(spec.node_sets)} node sets, {len(blocks)} blocks",
        "nodes": spec.num_nodes,
        "edges": spec.num_edges,
        "parameters": graph_parameters(graph),
        "node_sets": [_node_set(graph, number) for number in range(len(spec.node_sets))],
        "blocks": blocks,
        "symmetries": {
            "group": str(group),
            "log10_order": group.log10_order,
            "share_moved": group.share_moved(),
            "classes": group.classes,
            "over": {name: list(over) for name, over in group.over},
            "activations": {name: str(kind) for name, kind in group.activations},
            "rescalings": [
                {"kind": r.kind, "class": r.symmetry, "parameters": [term.parameter for term in r.terms]}
                for r in group.rescalings
            ],
            "axes": {name: list(map(str, axes)) for name, axes in group.axes},
        },
        "rest": [name for name, _ in spec.rest],
        "tied": dict(spec.tied),
    }
    return found, images


def graph_parameters(graph: NeuralGraph) -> int:
    """Entries of all blocks and node features, shared ones counted once; running statistics are no parameters."""
    own = (e[0].numel() for b, e in zip(graph.spec.blocks, graph.edges, strict=True) if b.copy_of is None)
    columns = (
        nodes.size * feature.columns
        for nodes in graph.spec.node_sets
        for feature in nodes.features
        if not feature.kind.startswith("running")
    )
    return sum(own) + sum(columns)


def _node_set(graph: NeuralGraph, number: int) -> dict[str, Any]:
    nodes = graph.spec.node_sets[number]
    values = graph.nodes[number][0].detach().cpu()
    features, start = [], 0
    for feature in nodes.features:
        numbers = asdict(statistics(values[:, start : start + feature.columns]))
        start += feature.columns
        features.append({"parameter": feature.parameter, "kind": feature.kind, **numbers})
    return {
        "name": nodes.name,
        "role": nodes.role,
        "size": nodes.size,
        "depth": nodes.depth,
        "activation": str(nodes.activation),
        "class": nodes.symmetry,
        "classes": list(dict(nodes.axis.classes)),
        "parameters": list(nodes.parameters),
        "features": features,
    }
