"""The page that `neural-graphs graph --html` writes: one network to look at, in one file that fetches nothing.

The drawing is SVG made here, so that it shows without scripts; `_viewer/` holds the style sheet and the scripts that make it
move, and they read what they show from JSON in the page.
"""

from __future__ import annotations

import json
import math
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from neural_graphs.explore._arrange import Arrangement, Point, arrange
from neural_graphs.explore._describe import survey
from neural_graphs.explore._draw import MOST_NEURONS, column_places, neurons_and_edges
from neural_graphs.explore._page_data import page_data
from neural_graphs.explore._palette import KINDS, class_colours, edge_dashes, edge_width

if TYPE_CHECKING:
    from neural_graphs.graph import GraphSpec, NeuralGraph

_SIDE = 64  # cells along one side of an image of weights
_BUDGET = 1_600_000  # characters for all images of a page
_MOST_COLUMNS = 16  # of single neurons
_SCRIPTS = ("core", "view", "weights", "details", "main")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render_graph_page(graph: NeuralGraph, name: str) -> str:
    """The whole page as HTML, for network 0 of `graph`; `name` is its title.

    Small networks also show their single neurons and edges; large blocks are summarised in at most 64 x 64 cells, fewer
    where there are hundreds of blocks, so that a page stays under about 3 MB.
    """
    weighted = sum(block.parameter is not None for block in graph.spec.blocks)
    # Two images per block, a byte per cell, 4 characters per 3 bytes.
    side = max(8, min(_SIDE, math.isqrt(int(_BUDGET * 3 / 8 / max(1, weighted)))))
    found, images = survey(graph, side)
    drawing = arrange(graph.spec)
    drawings = {"layers": _layers(graph.spec, drawing)}
    views: dict[str, dict[str, float]] = {
        "layers": {"width": drawing.width, "height": drawing.height, "first": drawing.column}
    }
    sets = graph.spec.node_sets
    if len(sets) <= _MOST_COLUMNS and max(nodes.size for nodes in sets) <= MOST_NEURONS:
        width, height = max(640, 220 * (len(sets) - 1)), 460
        drawings["neurons"] = _neurons(graph, width, height)
        views["neurons"] = {"width": width, "height": height, "first": width}
    data = page_data(graph.spec, found, images) | {
        "views": views,
        "first": "neurons" if "neurons" in views else "layers",
    }
    return _page(name, found, graph.spec, drawings, data)


def _layers(spec: GraphSpec, drawing: Arrangement) -> str:
    colours = class_colours(spec)
    parts = []
    order = sorted(
        range(len(spec.blocks)), key=lambda k: spec.blocks[k].parameter is not None
    )  # weights above residuals
    for k in order:
        block = spec.blocks[k]
        line = f'style="stroke:var(--k-{block.kind})" stroke-width="{edge_width(block):.1f}"'
        if dashes := edge_dashes(block):
            line += f' stroke-dasharray="{" ".join(f"{d:g}" for d in dashes)}"'
        path = f'<path class="on" {line} d="{_path(drawing.paths[k])}"/>'
        parts.append(f'<g class="edge" data-block="{k}">{path}</g>')
    for s, (nodes, box) in enumerate(zip(spec.node_sets, drawing.boxes, strict=True)):
        x, y = box.x - box.width / 2, box.y - box.height / 2
        strip = "".join(
            f'<rect x="{x + 5:.1f}" y="{y + 8:.1f}" width="4" height="{box.height - 16:.1f}" rx="2" fill="{colours[c]}"/>'
            for c, _ in nodes.axis.classes[:1]
        )
        shift = 5 if strip else 0
        label = f"{nodes.name}, {nodes.size} neurons"
        parts.append(
            f'<g class="set {nodes.role}" data-set="{s}" tabindex="0" role="button" aria-label="{escape(label)}">'
            f'<rect class="b" x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="8"/>{strip}'
            f'<text class="t" x="{box.x + shift:.1f}" y="{box.y - 3:.1f}">{escape(box.title)}</text>'
            f'<text class="d" x="{box.x + shift:.1f}" y="{box.y + 12:.1f}">{escape(box.detail)}</text></g>'
        )
    return "".join(parts)


def _path(points: tuple[Point, ...]) -> str:
    """Bézier pieces as an SVG path, straight ones along an axis shortened."""
    rounded = [tuple(round(v, 1) for v in point) for point in points]
    parts = [f"M{rounded[0][0]:g} {rounded[0][1]:g}"]
    for i in range(1, len(rounded), 3):
        piece = rounded[i - 1 : i + 3]
        if len({x for x, _ in piece}) == 1:
            parts.append(f"V{piece[-1][1]:g}")
        elif len({y for _, y in piece}) == 1:
            parts.append(f"H{piece[-1][0]:g}")
        else:
            parts.append("C" + " ".join(f"{x:g} {y:g}" for x, y in piece[1:]))
    return "".join(parts)


def _neurons(graph: NeuralGraph, width: int, height: int) -> str:
    """Single neurons over a strip per node set that can be pointed at and chosen."""
    places = column_places(len(graph.spec.node_sets), width)
    half = min(60.0, (places[1] - places[0]) / 2 - 4 if len(places) > 1 else 60.0)
    strips = "".join(
        f'<rect class="column" data-set="{s}" x="{x - half:.1f}" y="2" width="{2 * half:.1f}" height="{height - 4}" rx="8" '
        f'tabindex="0" role="button" aria-label="{escape(nodes.name)}, {nodes.size} neurons"/>'
        for s, (nodes, x) in enumerate(zip(graph.spec.node_sets, places, strict=True))
    )
    return strips + neurons_and_edges(graph, width, height)


def _page(name: str, found: dict[str, Any], spec: GraphSpec, drawings: dict[str, str], data: dict[str, Any]) -> str:
    folder = files("neural_graphs.explore").joinpath("_viewer")
    style = folder.joinpath("viewer.css").read_text(encoding="utf-8")
    script = "\n".join(folder.joinpath(f"{part}.js").read_text(encoding="utf-8") for part in _SCRIPTS)
    group = found["symmetries"]["group"]
    if len(group) > 60:
        group = f"of {len(spec.symmetries.classes)} classes"
    lead = f"{found['architecture']} · {found['parameters']:,} parameters · symmetries {group}"
    groups = "".join(f'<g id="{kind}">{body}</g>' for kind, body in drawings.items())
    choices = "".join(
        f'<button type="button" data-view="{kind}" aria-pressed="false">{kind.title()}</button>' for kind in drawings
    )
    switch = f'<div class="group" role="group" aria-label="Drawing">{choices}</div>' if len(drawings) > 1 else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">
<style>{style}</style></head>
<body>
<header><div><button class="skip" id="skip" type="button">Skip the drawing</button>
<h1>{escape(name)}</h1><p>{escape(lead)}</p></div>
<div class="find"><input id="find" type="search" placeholder="Find a layer (/)" aria-label="Find a layer" role="combobox"
autocomplete="off" spellcheck="false" aria-expanded="false" aria-controls="found" aria-autocomplete="list">
<ul id="found" role="listbox" aria-label="Layers found" hidden></ul></div></header>
<main><section class="stage" aria-label="Drawing of the network">
<div class="tools" id="tools">{switch}
<div class="group" role="group" aria-label="Zoom"><button type="button" id="zoom-out" aria-label="Zoom out">−</button>
<button type="button" id="zoom-fit" aria-label="Show all">Fit</button>
<button type="button" id="zoom-in" aria-label="Zoom in">+</button></div></div>
<div class="canvas" id="canvas" tabindex="0" role="group"
aria-label="The network: plus, minus and 0 zoom, arrow keys move, Tab goes from layer to layer">
<svg><g id="world">{groups}</g></svg></div>
<div class="legend" id="legend">{_legend(spec)}</div></section>
<aside class="panel" id="panel" tabindex="-1" aria-label="Details"><div class="tabs" role="tablist">
{"".join(_tab(key, word) for key, word in _TABS)}</div>
{"".join(_pane(key) for key, _ in _TABS)}</aside></main>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{_json(data)}</script>
<script>'use strict';(() => {{
{script}}})();</script>
</body></html>
"""


_TABS = (("details", "Details"), ("symmetries", "Symmetries"), ("layers", "Layers"))


def _tab(key: str, word: str) -> str:
    return (
        f'<button type="button" role="tab" id="tab-{key}" aria-controls="pane-{key}" '
        f'aria-selected="false">{word}</button>'
    )


def _pane(key: str) -> str:
    return f'<div class="pane" role="tabpanel" id="pane-{key}" aria-labelledby="tab-{key}" hidden></div>'


def _legend(spec: GraphSpec) -> str:
    seen = {(block.kind, block.copy_of is not None): block for block in reversed(spec.blocks)}
    parts = []
    for kind, shared in sorted(seen, key=lambda key: (list(KINDS).index(key[0]), key[1])):
        dashes = " ".join(f"{d:g}" for d in edge_dashes(seen[kind, shared]))
        style = f"stroke:var(--k-{kind});stroke-width:2.6;fill:none" + (f";stroke-dasharray:{dashes}" if dashes else "")
        word = f"{kind}, shared weights" if shared else kind
        parts.append(f'<span><svg viewBox="0 0 28 10"><path d="M1 5H27" style="{style}"/></svg>{word}</span>')
    if any(nodes.axis.moves for nodes in spec.node_sets):
        parts.append("<span><i></i>one colour, one symmetry class</span>")
    return "".join(parts)


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
