"""The page that `neural-graphs graph --html` writes: one network drawn, its layers and its symmetries."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from neural_graphs.explore._draw import draw_graph
from neural_graphs.explore._page import page, table

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph


def render_graph_page(graph: NeuralGraph, name: str) -> str:
    """The whole page as HTML, for network 0 of `graph`; `name` is its title."""
    found = describe_graph(graph)
    sets = [
        [
            s["name"],
            str(s["size"]),
            s["role"],
            s["activation"],
            s["class"] or "fixed",
            ", ".join(s["parameters"]) or "–",
        ]
        for s in found["node_sets"]
    ]
    axes = found["symmetries"]["axes"]
    blocks = [
        [
            f"{b['source']} → {b['target']}",
            f"{b['edges']:,}",
            str(b["features"]),
            f"{b['mean']:+.4f}",
            f"{b['std']:.4f}",
            f"{b['parameter']} [{', '.join(axes[b['parameter']])}]",
        ]
        for b in found["blocks"]
    ]
    group = found["symmetries"]
    body = f"""<h1>{escape(name)}</h1>
<p class="lead">{escape(found["architecture"])}: {found["nodes"]:,} nodes, {found["edges"]:,} edges, symmetries
{escape(group["group"])}.</p>
<figure>{draw_graph(graph)}<figcaption>Orange edges are positive weights, blue ones negative; stronger ones are darker, each
layer on its own scale. Neurons are shaded by their bias.</figcaption></figure>
<h2>Node sets</h2>{table(["node set", "neurons", "role", "activation", "class", "node features"], sets, {1})}
<h2>Blocks</h2>{table(["block", "edges", "features", "mean", "std", "weight [axes]"], blocks, {1, 2, 3, 4})}
<h2>Symmetries</h2><p>Reordering the neurons of a class leaves the function of the network unchanged. There are
10<sup>{group["log10_order"]:.0f}</sup> such orders: {escape(group["group"])}.</p>"""
    return page(name, body)


def describe_graph(graph: NeuralGraph) -> dict[str, Any]:
    """Node sets, blocks and symmetries of network 0 of `graph`, JSON-able."""
    spec = graph.spec
    blocks: list[Mapping[str, Any]] = []
    for block, edges in zip(spec.blocks, graph.edges, strict=True):
        blocks.append(
            {
                "parameter": block.parameter,
                "source": spec.node_sets[block.source].name,
                "target": spec.node_sets[block.target].name,
                "edges": edges.shape[1] * edges.shape[2],
                "features": block.features,
                "mean": edges[0].double().mean().item(),
                "std": edges[0].double().std(correction=0).item(),
            }
        )
    return {
        "architecture": str(graph.stack),
        "nodes": spec.num_nodes,
        "edges": spec.num_edges,
        "node_sets": [
            {
                "name": nodes.name,
                "role": nodes.role,
                "size": nodes.size,
                "activation": str(nodes.activation),
                "class": nodes.symmetry,
                "parameters": list(nodes.parameters),
            }
            for nodes in spec.node_sets
        ],
        "blocks": blocks,
        "symmetries": {
            "group": str(spec.symmetries),
            "log10_order": spec.symmetries.log10_order,
            "classes": spec.symmetries.classes,
            "axes": {name: list(map(str, axes)) for name, axes in spec.symmetries.axes},
        },
    }
