"""`neural-graphs graph CKPT`: the neural graph of a network and its symmetries, as a table, JSON or a drawing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from neural_graphs.cli._network import add_network, load_network
from neural_graphs.cli._parser import add_json, add_verb, print_json, print_table

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "graph",
        "show the neural graph of a network and its symmetries",
        "neural-graphs graph runs/quickstart/example.safetensors --html graph.html",
        run,
    )
    add_network(parser)
    add_json(parser)
    parser.add_argument("--html", metavar="FILE", help="draw the graph in a self-contained HTML page")


def run(options: argparse.Namespace) -> int:
    graph = load_network(options)
    from neural_graphs.explore import describe_graph

    if options.html:
        _write_page(graph, options.checkpoint, options.html)
    if options.json:
        print_json({"file": options.checkpoint, **describe_graph(graph)})
    else:
        _print(graph, options.checkpoint, describe_graph(graph))
        if options.html:
            print(f"\ndrawing: {options.html}")
    return 0


def _print(graph: NeuralGraph, name: str, found: dict[str, Any]) -> None:
    group = found["symmetries"]
    print(f"{name}: {found['architecture']}, {found['nodes']:,} nodes, {found['edges']:,} edges\n")
    sets = [
        (s["name"], s["size"], s["role"], s["activation"], s["class"] or "fixed", ", ".join(s["parameters"]) or "-")
        for s in found["node_sets"]
    ]
    print_table(("node set", "neurons", "role", "activation", "class", "node features"), sets, right=(1,))
    print()
    blocks = [
        (
            f"{b['source']} -> {b['target']}",
            f"{b['edges']:,}",
            b["features"],
            f"{b['mean']:+.4f}",
            f"{b['std']:.4f}",
            f"{b['parameter']} [{', '.join(group['axes'][b['parameter']])}]",
        )
        for b in found["blocks"]
    ]
    print_table(("block", "edges", "features", "mean", "std", "weight [axes]"), blocks, right=(1, 2, 3, 4))
    print(f"\nsymmetries: {group['group']}, 10^{group['log10_order']:.0f} orders of the neurons give the same function")
    for name, kind in graph.symmetries.activations:
        kinds = [word for word, has in (("scale", kind.scale), ("sign", kind.sign), ("phase", kind.phase)) if has]
        if kinds:
            print(f"  {name} ({kind}): each neuron also has {' and '.join(kinds)} symmetry")


def _write_page(graph: NeuralGraph, name: str, path: str) -> None:
    from neural_graphs._io import atomic_write
    from neural_graphs.explore import render_graph_page

    with atomic_write(path) as temporary:
        temporary.write_text(render_graph_page(graph, name), encoding="utf-8")
