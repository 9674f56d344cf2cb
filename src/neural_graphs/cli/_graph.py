"""`neural-graphs graph CKPT`: the neural graph of a network and its symmetries, as tables, JSON or a drawing."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neural_graphs.cli._network import DETAILS, Network, add_network, read_network
from neural_graphs.cli._parser import add_json, add_threads, add_verb, print_json, print_table, use_threads
from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.graph import Activation

_FEW = 12  # rescalings listed one by one
_WIDEST = 160  # characters of a symmetry group or a list of tensors


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "graph",
        "show the neural graph of a network and its symmetries",
        "neural-graphs graph runs/quickstart/example.safetensors --html graph.html\n"
        "  neural-graphs graph resnet.pt --model mynets.resnet:resnet18 --input 3x224x224",
        run,
        DETAILS,
    )
    add_network(parser)
    parser.add_argument(
        "--rows", type=_rows, default=40, metavar="N", help="rows per table, 0 for all of them (default: 40)"
    )
    add_json(parser)
    parser.add_argument("--html", metavar="FILE", help="draw the graph in a self-contained HTML page")
    parser.add_argument("--svg", metavar="FILE", help="draw it as a vector image")
    parser.add_argument("--png", metavar="FILE", help="draw it as a pixel image")
    add_threads(parser)


def _rows(value: str) -> int:
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return number


_rows.__name__ = "number of rows"


def run(options: argparse.Namespace) -> int:
    for option in ("svg", "png"):
        path = getattr(options, option)
        if path and not path.lower().endswith(f".{option}"):
            raise UserError(f"--{option} {path}: the name of the file must end in .{option}")
    use_threads(options)
    network = read_network(options)
    from neural_graphs.explore import describe_graph, render_graph_page, save_drawing

    drawings = [path for path in (options.html, options.svg, options.png) if path]
    if options.html:
        _write_page(render_graph_page(network.graph, network.name), options.html)
    for path in (options.svg, options.png):
        if path:
            save_drawing(network.graph, path)
    found = describe_graph(network.graph)
    if options.json:
        print_json({"file": network.name, **network.facts, **found})
    else:
        _print(network, found, options.rows)
        for number, path in enumerate(drawings):
            print(f"{'' if number else chr(10)}drawing: {path}")
    return 0


def _print(network: Network, found: dict[str, Any], rows: int) -> None:
    facts, group = network.facts, found["symmetries"]
    print(f"{network.name}: {_headline(facts, found)}")
    if facts.get("lossy"):
        print(f"lossy: {facts['lossy']}")
    for note in facts.get("notes", ()):
        print(f"note: {note}")
    print()
    sets = [
        (
            s["name"],
            s["size"],
            s["role"],
            s["activation"],
            s["class"] or _mixed(s),
            _listed(list(dict.fromkeys(s["parameters"]))) or "-",
        )
        for s in found["node_sets"]
    ]
    _print_cut(("node set", "neurons", "role", "activation", "class", "node features"), sets, (1,), rows)
    print()
    blocks = [
        (
            f"{b['source']} -> {b['target']}",
            f"{b['edges']:,}",
            b["features"],
            _number(b["mean"], "+.4f"),
            _number(b["std"], ".4f"),
            b["kind"],
            f"{b['parameter']} [{', '.join(group['axes'][b['parameter']])}]" if b["parameter"] else "-",
        )
        for b in found["blocks"]
    ]
    head = ("block", "edges", "features", "mean", "std", "kind", "weight [axes]")
    _print_cut(head, blocks, (1, 2, 3, 4), rows)
    _print_group(network, group, rows)


def _headline(facts: dict[str, Any], found: dict[str, Any]) -> str:
    what = f"{facts['model']}, {found['architecture']}" if facts else found["architecture"]
    parameters = f", {found['parameters']:,} parameters" if facts else ""
    return f"{what}, {found['nodes']:,} nodes, {found['edges']:,} edges{parameters}"


def _print_group(network: Network, group: dict[str, Any], rows: int) -> None:
    text = _short(group["group"])
    print(f"\nsymmetries: {text}, 10^{group['log10_order']:.0f} orders of the neurons give the same function")
    if network.facts:
        print(f"  they move {group['share_moved']:.1%} of the parameters' entries")
    if network.graph.stack is not None:
        lines = [f"  {name} ({kind}): each neuron also has {_kinds(kind)} symmetry"
                 for name, kind in network.graph.symmetries.activations if _kinds(kind)]  # fmt: skip
    else:
        lines = _rescalings(group["rescalings"], rows)
    for line in lines[: rows or None]:
        print(line)
    if 0 < rows < len(lines):
        print(_more(len(lines) - rows))
    if network.facts.get("frozen"):
        frozen = ", ".join(f"{name} ({count})" for name, count in network.facts["frozen"].items())
        print(f"  operators without a rule, whose axes stay fixed: {frozen}")


def _kinds(activation: Activation) -> str:
    words = (("scale", activation.scale), ("sign", activation.sign), ("phase", activation.phase))
    return " and ".join(word for word, has in words if has)


def _print_cut(head: Sequence[str], lines: list[tuple[Any, ...]], right: Sequence[int], rows: int) -> None:
    print_table(head, lines[: rows or None], right)
    if 0 < rows < len(lines):
        print(_more(len(lines) - rows))


def _more(count: int) -> str:
    return f"… {count} more (--rows 0 shows all)"


def _mixed(nodes: dict[str, Any]) -> str:
    """Neurons of several classes or parts of one."""
    return _listed(nodes["classes"]) or "fixed"


def _rescalings(found: Sequence[dict[str, Any]], rows: int) -> list[str]:
    """A line each where they are few or all rows are wanted, else how many there are of each kind."""
    if len(found) <= _FEW or not rows:
        return [
            f"  {r['class']}: {r['kind']} symmetry in {_listed(list(dict.fromkeys(r['parameters'])))}" for r in found
        ]
    kinds = Counter(r["kind"] for r in found)
    classes = {kind: len({r["class"] for r in found if r["kind"] == kind}) for kind in kinds}
    counts = ", ".join(f"{n} of {kind} in {classes[kind]} classes" for kind, n in kinds.items())
    return [f"  rescalings of single neurons: {counts} (--rows 0 lists them)"]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST].rpartition(' ')[0]} …"


def _write_page(text: str, path: str) -> None:
    from neural_graphs._io import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
