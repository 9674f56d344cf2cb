"""What the scripts of the graph page read: node sets, blocks, symmetry classes, and blocks as small images."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_graphs.explore._palette import class_colours

if TYPE_CHECKING:
    from neural_graphs.explore._summary import Cells
    from neural_graphs.graph import GraphSpec


def page_data(spec: GraphSpec, found: dict[str, Any], images: list[Cells | None]) -> dict[str, Any]:
    """What the scripts read."""
    axes, colours = found["symmetries"]["axes"], class_colours(spec)
    blocks = []
    for k, (block, entry, cells) in enumerate(zip(spec.blocks, found["blocks"], images, strict=True)):
        shown = {
            **{
                name: entry[name] for name in ("parameter", "kind", "shape", "edges", "groups", "copy_of", "nan", "inf")
            },
            **{name: _short(entry[name]) for name in ("mean", "std", "min", "max")},
            **{name: entry[name] or None for name in ("nan", "inf")},
            "source": block.source,
            "target": block.target,
            "count": entry["parameters"],
            "axes": ", ".join(axes.get(block.parameter, [])),
            "map": _image(cells, spec.edge_shape(k)) if cells else None,
        }
        blocks.append(
            {
                name: value
                for name, value in shown.items()
                if value is not None and (value or name not in ("nan", "inf"))
            }
        )
    sets = []
    for s, entry in enumerate(found["node_sets"]):
        reads = [k for k, block in enumerate(spec.blocks) if block.target == s]
        own = sum(f["entries"] for f in entry["features"] if not f["kind"].startswith("running"))
        sets.append(
            {
                **entry,
                "activation": "" if entry["activation"] == "none" else entry["activation"],
                "incoming": reads,
                "outgoing": [k for k, block in enumerate(spec.blocks) if block.source == s],
                "count": own + sum(found["blocks"][k]["parameters"] for k in reads),
            }
        )
    group = found["symmetries"]
    classes = [
        {
            "name": name,
            "size": size,
            "color": colours[name],
            "over": group["over"].get(name, []),
            "activation": group["activations"].get(name, "").replace("none", ""),
            "members": [s for s, entry in enumerate(sets) if name in entry["classes"]],
        }
        for name, size in group["classes"].items()
    ]
    return {
        **{name: found[name] for name in ("nodes", "edges", "parameters", "rest")},
        "sets": sets,
        "blocks": blocks,
        "classes": classes,
        **{name: group[name] for name in ("group", "log10_order", "share_moved")},
        "rescalings": [{**r, "tensors": len(set(r["parameters"]))} for r in group["rescalings"]],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")


def _image(cells: Cells, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Cells for the page: codes of two bytes where every entry has a cell of its own, else of one byte."""
    targets, sources, features = shape
    return {
        "rows": cells.strongest.shape[0],
        "columns": cells.strongest.shape[1],
        "row_step": cells.row_step,
        "column_step": cells.column_step,
        "size": [targets, features if cells.by_feature else sources],
        "features": 1 if cells.by_feature else features,
        "by_feature": cells.by_feature,
        "strongest": _codes(cells.strongest, 2 if cells.exact else 1),
        "average": None if cells.exact else _codes(cells.average, 1),
    }


def _codes(values: np.ndarray, size: int) -> dict[str, Any]:
    """Whole numbers in proportion to the values; the ends of the range stand for infinities and NaN."""
    lowest = -(1 << (8 * size - 1))
    top = -lowest - 2
    finite = np.isfinite(values)
    scale = float(np.abs(values[finite]).max(initial=0.0)) or 1.0
    codes = np.rint(np.where(finite, values, 0.0) / scale * top)
    codes[np.isposinf(values)], codes[np.isneginf(values)], codes[np.isnan(values)] = top + 1, lowest + 1, lowest
    return {
        "bytes": size,
        "scale": _short(scale),
        "data": base64.b64encode(codes.astype(f"<i{size}").tobytes()).decode("ascii"),
    }
