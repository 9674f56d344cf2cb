"""What the last step of a learned optimizer did, layer by layer."""

from __future__ import annotations

from typing import Any

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


def step_row(
    parameter: str, kind: str, entries: int, step: float, adam: float, cosine: float, weight: float, replaced: int
) -> dict[str, Any]:
    """A row of ``StepTable``; ``weight`` is the root mean square of the weights."""
    relative = step / weight if weight > 0 else float("inf") if step > 0 else 0.0
    gain = step / adam if adam > 0 else 1.0 if step == adam else float("inf")
    values = (parameter, kind, entries, step, adam, gain, cosine, relative, replaced)
    return dict(zip(COLUMNS, values, strict=True))
