"""The layered drawing of a graph as a figure for a paper: SVG, PDF or PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError
from neural_graphs.explore._arrange import arrange
from neural_graphs.explore._palette import KINDS, class_colours, edge_dashes, edge_width

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph

_INK, _DIM, _LINE = "#1d2330", "#666c7a", "#c9c9c3"
_POINT = 0.75  # points per pixel of the arrangement: its 12 px text is 9 pt
_DPI = 200
_LONGEST = 20_000  # pixels along one side of a PNG
_LEGEND = 30.0  # height of a line of the legend, pixels
_ENTRY = 118.0
# Dates and random identifiers would make equal drawings differ.
_METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": "neural-graphs"},
    ".pdf": {"CreationDate": None, "Creator": "neural-graphs", "Producer": None},
    ".png": {"Software": "neural-graphs"},
}


def save_drawing(graph: NeuralGraph, path: str | os.PathLike[str]) -> None:
    """Draw the node sets and blocks of `graph` into `path`: `.svg` (text stays text), `.pdf` (fonts embedded) or `.png`
    (200 dpi). Text is 9 pt at full size. The same graph gives the same bytes.

    Raises:
        UserError: another kind of file, or a drawing too large for a PNG.
        RunError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _METADATA:
        raise UserError(f"cannot draw into {path}: its name must end in {', '.join(_METADATA)}")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "neural-graphs", "pdf.fonttype": 42}):
        drawing = arrange(graph.spec)
        kinds = sorted({block.kind for block in graph.spec.blocks}, key=list(KINDS).index)
        per_line = max(1, int((drawing.width - 30) // _ENTRY))
        width = max(drawing.width, 30 + _ENTRY)
        height = drawing.height + _LEGEND * -(-len(kinds) // per_line) if len(kinds) > 1 else drawing.height
        inches = width * _POINT / 72, height * _POINT / 72
        if suffix == ".png" and max(inches) * _DPI > _LONGEST:
            raise UserError(
                f"the drawing is too large for a PNG ({max(inches):.0f} inches): write {path} as .svg or .pdf"
            )
        figure = Figure(figsize=inches, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim((drawing.width - width) / 2, (drawing.width + width) / 2)
        axes.set_ylim(height, 0)
        _draw_blocks(axes, graph, drawing.paths)
        _draw_sets(axes, graph, drawing.boxes)
        if len(kinds) > 1:
            _draw_legend(axes, graph, kinds, per_line, drawing.height)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=_DPI, metadata=_METADATA[suffix])


def _draw_blocks(axes: Any, graph: NeuralGraph, paths: Any) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    for block, points in zip(graph.spec.blocks, paths, strict=True):
        codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1)
        axes.add_patch(
            PathPatch(
                Curve(points, codes),
                fill=False,
                edgecolor=KINDS[block.kind],
                linewidth=edge_width(block) * _POINT,
                linestyle=_linestyle(edge_dashes(block), edge_width(block)),
                capstyle="round",
                zorder=1 if block.parameter is None else 2,
            )
        )


def _draw_sets(axes: Any, graph: NeuralGraph, boxes: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    colours = class_colours(graph.spec)
    for nodes, box in zip(graph.spec.node_sets, boxes, strict=True):
        x, y = box.x - box.width / 2, box.y - box.height / 2
        hidden = nodes.role == "hidden"
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                box.width,
                box.height,
                boxstyle="round,pad=0,rounding_size=8",
                facecolor="white",
                edgecolor=_LINE if hidden else _INK,
                linewidth=(1.2 if hidden else 1.6) * _POINT,
                linestyle=(0, (3.2, 2)) if nodes.role == "input" else "-",
                zorder=3,
            )
        )
        for name, _ in nodes.axis.classes[:1]:
            strip: dict[str, Any] = dict(
                boxstyle="round,pad=0,rounding_size=2", facecolor=colours[name], edgecolor="none", zorder=4
            )
            axes.add_patch(FancyBboxPatch((x + 5, y + 8), 4, box.height - 16, **strip))
        middle = box.x + (5 if nodes.axis.moves else 0)
        text = {"ha": "center", "va": "baseline", "zorder": 5, "parse_math": False}
        axes.text(middle, box.y - 3, box.title, fontsize=12 * _POINT, fontweight="bold", color=_INK, **text)
        axes.text(middle, box.y + 12, box.detail, fontsize=11 * _POINT, color=_DIM, **text)


def _draw_legend(axes: Any, graph: NeuralGraph, kinds: list[Any], per_line: int, top: float) -> None:
    for i, kind in enumerate(kinds):
        block = next(b for b in graph.spec.blocks if b.kind == kind)
        x, y = 26 + _ENTRY * (i % per_line), top - 4 + _LEGEND * (i // per_line)
        dashes = _linestyle(edge_dashes(block), 2.6)
        axes.plot([x, x + 28], [y, y], color=KINDS[kind], linewidth=2.6 * _POINT, linestyle=dashes)
        axes.text(x + 36, y + 4, kind, fontsize=12 * _POINT, color=_DIM)


def _linestyle(dashes: tuple[float, ...], width: float) -> Any:
    """Dashes in pixels as matplotlib's, which are in units of the line's width."""
    return (0, tuple(d / width for d in dashes)) if dashes else "-"
