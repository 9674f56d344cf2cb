"""Colours and lines of the layered drawing, the same on the page and in a figure."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neural_graphs.graph import Block, GraphSpec

# On white paper; the page's style sheet has these and lighter ones for dark screens.
KINDS = {
    "linear": "#5d6880",
    "conv": "#d0672b",
    "embedding": "#2e8b57",
    "query": "#2f6fb5",
    "key": "#7a52c7",
    "value": "#0f8f9c",
    "position": "#8a8a1f",
    "identity": "#a3a8b3",
    "attention": "#c2357e",
    "recurrent": "#b5462f",
    "other": "#8b6f5c",
}


def class_colours(spec: GraphSpec) -> dict[str, str]:
    """A colour per symmetry class; neighbours in the list are far apart on the colour wheel."""
    colours = {}
    for i, name in enumerate(spec.symmetries.classes):
        rgb = colorsys.hls_to_rgb((0.58 + 0.381966 * i) % 1.0, 0.56, 0.58)
        colours[name] = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    return colours


def edge_dashes(block: Block) -> tuple[float, ...]:
    """Dashes of a block's line: residuals dashed, attention dotted, a further use of a shared tensor long dashes."""
    if block.kind == "identity":
        return (5, 4)
    if block.kind == "attention":
        return (1, 5)
    return (12, 4) if block.copy_of is not None else ()


def edge_width(block: Block) -> float:
    """Wider lines for more parameters, within reason."""
    if block.parameter is None:
        return 2.6 if block.kind == "attention" else 1.6
    return min(3.4, 1.2 + 0.32 * math.log10(max(1, math.prod(block.shape))))
