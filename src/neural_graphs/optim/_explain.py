"""What the last step of a learned optimizer did, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from neural_graphs.optim import _plain_adam
from neural_graphs.optim._optimizer_state import StepPlan

COLUMNS = ("parameter", "kind", "entries", "step", "adam", "gain", "cosine", "relative", "replaced")


class StepTable(list[dict[str, Any]]):
    """A row (a dictionary) per parameter, or per part of one that stands for several layers (a packed query-key-value
    weight); ``print`` shows it as a table.

    ``step``: root mean square of the change, learning rate included and weight decay not; ``adam``: that of Adam's step;
    ``gain``: the one over the other; ``cosine``: between them; ``relative``: ``step`` over the root mean square of the
    weights (infinite where all are zero); ``replaced``: entries whose proposal was not finite and that took Adam's step.
    ``kind`` is ``"adam"`` for parameters outside the graph.
    """

    def __str__(self) -> str:
        lines = [list(COLUMNS)] + [[_text(row[key]) for key in COLUMNS] for row in self]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell:<{width}}" if k < 2 else f"{cell:>{width}}" for k, (cell, width) in enumerate(pairs)
            ).rstrip()
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        )


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def explained(
    plan: StepPlan, summary: Mapping[str, Tensor] | None, rates: Sequence[float], steps: Sequence[int]
) -> StepTable:
    """The table of a step of ``plan`` with these learning rates, of which a rule said ``summary`` (see ``Proposal``)."""
    rows = StepTable()
    known = dict(zip(plan.names, zip(plan.views, rates, strict=True), strict=True))
    if summary is not None:
        for number, piece in enumerate(plan.wiring.pieces):
            view, rate = known[piece.parameter]
            figures = (float(summary[key][0, number]) for key in ("step", "nominal", "cosine", "replaced"))
            step, adam, cosine, replaced = figures
            row = (piece.parameter, piece.kind, piece.numel, step * rate, adam * rate, cosine)
            rows.append(_row(*row, _rms(piece.read(view)), int(replaced)))
    outside = range(plan.count, len(plan.names))
    moved = _plain_adam.nominal(plan.held[plan.count :], steps[plan.count :]) if outside else []
    for number, update in zip(outside, moved, strict=True):
        size, name, view = _rms(update) * rates[number], plan.names[number], plan.views[number]
        rows.append(_row(name, "adam", view.numel(), size, size, 1.0, _rms(view), 0))
    return rows


def _row(
    parameter: str, kind: str, entries: int, step: float, adam: float, cosine: float, weight: float, replaced: int
) -> dict[str, Any]:
    relative = step / weight if weight > 0 else math.inf if step > 0 else 0.0
    gain = step / adam if adam > 0 else 1.0 if step == adam else math.inf
    values = (parameter, kind, entries, step, adam, gain, cosine, relative, replaced)
    return dict(zip(COLUMNS, values, strict=True))


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())
