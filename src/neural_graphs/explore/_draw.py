"""Small drawings as inline SVG and PNG data addresses: networks, curves, matrices, contact sheets.

Colours are CSS variables of the page that shows them (`--pos`, `--neg`, `--ink`, `--line`, `--soft`, `--accent`), so that
one drawing serves light and dark pages. Nothing here fetches anything.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from neural_graphs.graph import Block, NeuralGraph, NodeSet

MOST_NEURONS = 40  # drawn per node set; a larger set shows evenly spaced ones
MOST_EDGES = 2500  # drawn per block, the strongest ones
_SIDE = 46  # left and right of the outer columns, room for their labels
_LEVELS = 8  # shades per sign: edges of one shade share a path, which keeps the page small


def svg(width: float, height: float, body: str, label: str) -> str:
    """An SVG element that scales with its container; `label` says what it shows to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{width:g}px">{body}</svg>'
    )


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """A text element; `kind` is a CSS class (`dim`, `strong`, `small`)."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def png(image: np.ndarray) -> str:
    """`data:` address of a PNG of `image`, float `[H, W]` or `[H, W, 3]` in [0, 1] (clipped)."""
    from PIL import Image

    pixels = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def draw_graph(graph: NeuralGraph, width: int = 880, height: int = 460) -> str:
    """Network 0 of `graph`: node sets as columns, edges coloured by sign and shaded by size, per block.

    Neurons are shaded by their bias. Convolution kernels and flattened maps count with their largest entry; residuals are
    thin grey lines.
    """
    layers = "-".join(str(nodes.size) for nodes in graph.spec.node_sets)
    return svg(width, height, neurons_and_edges(graph, width, height), f"Neural graph of a {layers} network")


def column_places(count: int, width: float) -> list[float]:
    """Horizontal places of `count` node sets."""
    step = (width - 2 * _SIDE) / max(1, count - 1)
    return [_SIDE + step * i for i in range(count)]


def neurons_and_edges(graph: NeuralGraph, width: float, height: float) -> str:
    """What `draw_graph` draws, without the SVG element around it."""
    sets = graph.spec.node_sets
    top, bottom = 16, 58
    shown = [_evenly(nodes.size) for nodes in sets]
    # Hidden layers in a deep network come closer together; names then do not fit side by side and are left to tooltips.
    xs = column_places(len(sets), width)
    step = xs[1] - xs[0] if len(xs) > 1 else width
    ys = [_column(len(picked), top, height - bottom) for picked in shown]
    parts = []
    for block, edges in zip(graph.spec.blocks, graph.edges, strict=True):
        weights, present = _strongest(block, edges[0], sets[block.source].size)
        picked = np.ix_(shown[block.target], shown[block.source])
        ends = (xs[block.source], ys[block.source], xs[block.target], ys[block.target])
        parts.append(_edges(weights[picked], present[picked], block.parameter is not None, *ends))
    for number, nodes in enumerate(sets):
        bias = graph.nodes[number][0].detach().float().cpu().numpy()
        parts.append(_neurons(nodes, bias, shown[number], xs[number], ys[number]))
        anchor = "start" if number == 0 else "end" if number == len(sets) - 1 else "middle"
        x = xs[number] + {"start": -_SIDE + 4, "middle": 0, "end": _SIDE - 4}[anchor]
        if step >= 90 or anchor != "middle":
            parts.append(text(x, height - 32, f"{nodes.size} {_noun(nodes)}", anchor, "strong"))
            detail = nodes.name if nodes.role != "input" else "coordinates" if nodes.size == 2 else ""
            detail += f" · {nodes.activation}" if nodes.activation.kind != "none" else ""
            parts.append(text(x, height - 14, detail, anchor, "dim"))
    return "".join(parts)


def _strongest(block: Block, edges: Tensor, sources: int) -> tuple[np.ndarray, np.ndarray]:
    """Per pair of neurons `[n_target, n_source]` the entry with the largest absolute value, and whether there is an edge."""
    values = np.nan_to_num(edges.detach().float().cpu().numpy())
    targets = len(values)
    if values.shape[2]:
        values = np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), -1)[..., 0]
    else:
        values = np.zeros(values.shape[:2])
    if block.groups == 1:
        return values, np.ones_like(values, dtype=bool)
    weights, present = np.zeros((targets, sources)), np.zeros((targets, sources), dtype=bool)
    inside = sources // block.groups
    rows = np.arange(targets)[:, None]
    columns = rows // (targets // block.groups) * inside + np.arange(inside)
    weights[rows, columns], present[rows, columns] = values, True
    return weights, present


def _noun(nodes: NodeSet) -> str:
    noun = {"input": "input", "hidden": "neuron", "output": "output"}[nodes.role]
    return noun + "s" * (nodes.size != 1)


def _evenly(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, MOST_NEURONS)).round().astype(int))


def _column(count: int, top: float, bottom: float) -> np.ndarray:
    """Heights of `count` neurons, centred; few neurons stay close to the middle."""
    gap = min((bottom - top) / max(1, count - 1), 60 if count <= 4 else 26)
    return (top + bottom) / 2 + gap * (np.arange(count) - (count - 1) / 2)


def _edges(
    weights: np.ndarray, present: np.ndarray, weighted: bool, x0: float, y0: np.ndarray, x1: float, y1: np.ndarray
) -> str:
    size = np.abs(weights).ravel()
    order = np.argsort(size)
    order = order[present.ravel()[order]][-MOST_EDGES:]
    unit = np.quantile(size[order], 0.98) if order.size else 1.0
    level = np.minimum(size / (unit or 1.0) * _LEVELS, _LEVELS - 1).astype(int)
    positive = weights.ravel() > 0
    bend = (x1 - x0) * 0.42
    target, source = np.divmod(np.arange(size.size), max(1, weights.shape[1]))

    def path(chosen: Iterable[int]) -> str:
        return "".join(
            f"M{x0:.0f} {y0[source[e]]:.1f}C{x0 + bend:.0f} {y0[source[e]]:.1f} {x1 - bend:.0f} {y1[target[e]]:.1f} "
            f"{x1:.0f} {y1[target[e]]:.1f}"
            for e in chosen
        )

    if not weighted:
        return f'<path d="{path(order)}" fill="none" style="stroke:var(--dim);stroke-opacity:.45;stroke-width:.8"/>'
    parts = []
    for step in range(_LEVELS):
        for sign, colour in ((False, "neg"), (True, "pos")):
            chosen = [e for e in order if level[e] == step and positive[e] == sign]
            if not chosen:
                continue
            share = (step + 1) / _LEVELS
            opacity, thickness = 0.06 + 0.74 * share**1.6, 0.5 + 1.3 * share
            style = f"stroke:var(--{colour});stroke-opacity:{opacity:.2f};stroke-width:{thickness:.2f}"
            parts.append(f'<path d="{path(chosen)}" fill="none" style="{style}"/>')
    return "".join(parts)


def _neurons(nodes: NodeSet, bias: np.ndarray, shown: np.ndarray, x: float, y: np.ndarray) -> str:
    values = np.nan_to_num(bias[:, 0]) if bias.shape[1] else np.zeros(len(bias))
    unit = float(np.abs(values).max()) or 1.0
    gap = float(y[1] - y[0]) if len(y) > 1 else 60.0
    radius = min(9.0, max(2.5, gap * 0.38))
    parts = []
    for place, index in zip(y, shown, strict=True):
        value = float(values[index])
        colour = "var(--pos)" if value > 0 else "var(--neg)"
        shade = f"fill:{colour};fill-opacity:{abs(value) / unit:.2f}" if bias.shape[1] else "fill:var(--ink)"
        note = f"{nodes.name}[{index}]" + (f", bias {value:+.3f}" if bias.shape[1] else "")
        parts.append(
            f'<circle cx="{x:.0f}" cy="{place:.1f}" r="{radius:.1f}" style="fill:var(--paper)"/>'
            f'<circle cx="{x:.0f}" cy="{place:.1f}" r="{radius:.1f}" style="{shade};stroke:var(--ink);stroke-width:.9">'
            f"<title>{escape(note)}</title></circle>"
        )
    return "".join(parts)


def draw_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    colours: Mapping[str, str],
    x_label: str,
    reference: tuple[str, float] | None = None,
    width: int = 560,
    height: int = 280,
) -> str:
    """Shares (0 to 1) against `x_label`; each series is labelled at its last point. `reference` is a dashed line."""
    left, right, top, bottom = 44, 92, 14, 40
    last = max((points[-1][0] for points in series.values() if points), default=1) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - right) * x / last, top + (height - top - bottom) * (1 - y)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = at(0, share)
        parts.append(f'<path d="M{left} {y:.1f}H{width - right}" class="grid"/>')
        parts.append(text(left - 8, y + 4, f"{share:.0%}", "end", "dim"))
    for x_value in _ticks(last):
        parts.append(text(at(x_value, 0)[0], height - bottom + 18, f"{x_value:g}", "middle", "dim"))
    parts.append(text((left + width - right) / 2, height - 5, x_label, "middle", "dim"))
    if reference:
        _, y = at(0, reference[1])
        parts.append(
            f'<path d="M{left} {y:.1f}H{width - right}" class="grid" stroke-dasharray="4 4" style="stroke:var(--dim)"/>'
        )
    ends = {name: at(*points[-1])[1] for name, points in series.items() if points}
    if reference:
        ends[reference[0]] = at(0, reference[1])[1]
    for name, points in series.items():
        path = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in points)
        parts.append(
            f'<path d="M{path}" fill="none" stroke-linejoin="round" style="stroke:var(--{colours[name]});stroke-width:2.4"/>'
        )
    for name, y in _apart(ends, 17).items():
        colour = colours.get(name, "dim")
        parts.append(f'<g style="--ink:var(--{colour})">{text(width - right + 8, y + 4, name, "start", "strong")}</g>')
    return svg(width, height, "".join(parts), f"{', '.join(series)} against {x_label}")


def _ticks(last: float) -> list[float]:
    raw = last / 5
    power = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1
    step = max(1.0, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw))
    return [step * i for i in range(int(last / step) + 1)]


def _apart(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move labels apart so that none covers another, keeping their order."""
    moved: dict[str, float] = {}
    previous = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        previous = max(place, previous + gap)
        moved[name] = previous
    return moved


def draw_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], size: int = 400) -> str:
    """Rows are true classes, columns predictions; shaded by the share of the row."""
    counts = np.asarray(matrix, dtype=float)
    n = len(counts)
    longest = max(map(len, names)) * 8  # pixels
    left = 58 + max(0, longest - 24)
    cell = (size - left) / n
    tilted = longest > cell + 8  # names that would run into each other
    top = 52 + (0.7 * longest if tilted else 0)
    parts = [
        text(left + cell * n / 2, 16, "predicted", "middle", "dim"),
        f'<g transform="translate(14 {top + cell * n / 2:.1f}) rotate(-90)">{text(0, 0, "true", "middle", "dim")}</g>',
    ]
    for row in range(n):
        middle = top + cell * (row + 0.5) + 4
        parts.append(text(left - 10, middle, names[row], "end", "strong"))
        x = left + cell * (row + 0.5)
        if tilted:
            turned = text(0, 0, names[row], "start", "strong")
            parts.append(f'<g transform="translate({x:.1f} {top - 8:.1f}) rotate(-45)">{turned}</g>')
        else:
            parts.append(text(x, top - 10, names[row], "middle", "strong"))
        total = counts[row].sum() or 1.0
        for column in range(n):
            share = counts[row, column] / total
            colour = "accent" if row == column else "bad"
            opacity = share if row == column else min(1.0, 3 * share)
            x, y = left + cell * column, top + cell * row
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{cell - 2:.1f}" rx="3" '
                f'style="fill:var(--{colour});fill-opacity:{max(opacity, 0.045):.3f}"/>'
            )
            if counts[row, column]:
                kind = "on" if opacity > 0.55 else ""
                parts.append(text(x + cell / 2, middle, f"{counts[row, column]:.0f}", "middle", kind))
    beyond = max(0.0, 0.7 * longest - cell / 2) if tilted else 0.0  # the last name leans out
    return svg(size + beyond, top + cell * n + 2, "".join(parts), "Confusion matrix")


def draw_bars(values: Sequence[float], names: Sequence[str], right: int | None = None, width: int = 320) -> str:
    """Horizontal bars of shares, for one network's class probabilities; class `right` is marked."""
    row, left = 23, 34 + 6 * max(0, max(map(len, names)) - 2)
    parts = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        y = row * i + 4
        length = max(1.5, (width - left - 56) * float(value))
        colour = "accent" if i == right else "bad" if right is not None and value == max(values) else "dim"
        parts.append(text(left - 10, y + 13, name, "end", "strong"))
        parts.append(
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 9}" rx="3" style="fill:var(--{colour})"/>'
        )
        parts.append(text(left + length + 7, y + 13, f"{value:.1%}", "start", "dim"))
    return svg(width, row * len(values) + 8, "".join(parts), "Class probabilities")
