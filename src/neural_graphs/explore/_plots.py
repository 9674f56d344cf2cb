"""Plots of predictions as inline SVG: scatter, calibration, histogram. Colours as in ``_draw``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from neural_graphs.explore._draw import svg, text

MOST_POINTS = 4000  # in one scatter plot; of more networks, so many are drawn
MOST_INTERVALS = 200  # networks; more intervals would hide the points
COLOURS = ("var(--neg)", "var(--pos)", "var(--accent)", "#8a63d2", "#c2357e", "#1595a5", "#a88a12", "var(--dim)")
"""Of groups of points; they stand out from light and dark paper."""

Write = Callable[[float], str]
"""How a value is written at an axis."""


class _Axes:
    """A plot's area: from values to places, with ticks and labels drawn around it."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], width: float, height: float, left: float = 56
    ) -> None:
        self.x, self.y = x, y
        self.left, self.right, self.top, self.bottom = left, width - 14, 12, height - 46
        self.width, self.height = width, height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Places of a point, values beyond the ends at the ends."""
        across = min(1.0, max(0.0, (x - self.x[0]) / (self.x[1] - self.x[0])))
        up = min(1.0, max(0.0, (y - self.y[0]) / (self.y[1] - self.y[0])))
        return self.left + (self.right - self.left) * across, self.bottom - (self.bottom - self.top) * up

    def frame(self, x_label: str, y_label: str, write_x: Write, write_y: Write) -> str:
        parts = []
        for value in ticks(*self.y, (self.bottom - self.top) / 50):
            place = self.at(self.x[0], value)[1]
            parts.append(f'<path d="M{self.left} {place:.1f}H{self.right}" class="grid"/>')
            parts.append(text(self.left - 8, place + 4, write_y(value), "end", "dim"))
        for value in ticks(*self.x, (self.right - self.left) / 60):
            parts.append(text(self.at(value, self.y[0])[0], self.bottom + 18, write_x(value), "middle", "dim"))
        parts.append(text((self.left + self.right) / 2, self.height - 6, x_label, "middle", "dim"))
        middle = (self.top + self.bottom) / 2
        parts.append(
            f'<g transform="translate(13 {middle:.1f}) rotate(-90)">{text(0, 0, y_label, "middle", "dim")}</g>'
        )
        return "".join(parts)

    def diagonal(self) -> str:
        """Where predicted and true are equal."""
        low, high = max(self.x[0], self.y[0]), min(self.x[1], self.y[1])
        (x0, y0), (x1, y1) = self.at(low, low), self.at(high, high)
        style = "fill:none;stroke:var(--dim);stroke-width:1.2;stroke-dasharray:5 4"
        return f'<path class="identity" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" style="{style}"/>'


def ticks(low: float, high: float, most: float = 6) -> list[float]:
    """Round values between ``low`` and ``high``, about ``most`` of them at most."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def span(*values: np.ndarray) -> tuple[float, float]:
    """From the smallest to the largest value, with some room at both ends; never empty."""
    low = min(float(part.min()) for part in values)
    high = max(float(part.max()) for part in values)
    room = 0.04 * (high - low) or 0.05 * max(abs(low), 1e-3)
    return low - room, high + room


def draw_scatter(
    true: np.ndarray,
    predicted: np.ndarray,
    label: str,
    write: Write,
    group: np.ndarray | None = None,
    interval: np.ndarray | None = None,
    size: int = 560,
) -> str:
    """Predicted against true values ``[n]`` with the line on which they are equal.

    ``group`` (whole numbers from 0) colours the points by ``COLOURS``; ``interval`` ``[n, 2]`` is drawn where it does not
    hide the points. Of more than ``MOST_POINTS`` networks, so many are shown, drawn by lot with a fixed seed.
    """
    shown = np.arange(len(true))
    if len(shown) > MOST_POINTS:
        shown = np.sort(np.random.default_rng(0).permutation(len(true))[:MOST_POINTS])
    whole = span(true, predicted)
    axes = _Axes(whole, whole, size, size)
    parts = [axes.frame(f"true {label}", f"predicted {label}", write, write), axes.diagonal()]
    groups = np.zeros(len(true), int) if group is None else group
    if interval is not None and len(shown) <= MOST_INTERVALS:
        for i in shown:
            (x, low), (_, high) = axes.at(true[i], interval[i, 0]), axes.at(true[i], interval[i, 1])
            style = f"stroke:{COLOURS[groups[i] % len(COLOURS)]};stroke-opacity:.3;stroke-width:1.2"
            parts.append(f'<path class="interval" d="M{x:.1f} {low:.1f}V{high:.1f}" style="{style}"/>')
    thickness, opacity = (6, 0.75) if len(shown) <= 300 else (5, 0.5) if len(shown) <= 1500 else (4, 0.35)
    for number in np.unique(groups):
        style = f"stroke:{COLOURS[number % len(COLOURS)]};stroke-opacity:{opacity};stroke-width:{thickness}"
        points = (axes.at(true[i], predicted[i]) for i in shown[groups[shown] == number])
        dots = "".join(f'<path d="M{x:.1f} {y:.1f}h0"/>' for x, y in points)
        parts.append(f'<g class="points" fill="none" stroke-linecap="round" style="{style}">{dots}</g>')
    return svg(size, size, "".join(parts), f"Predicted against true {label}")


def draw_calibration(
    predicted: Sequence[float], true: Sequence[float], counts: Sequence[int], label: str, write: Write, size: int = 400
) -> str:
    """Mean true value against mean predicted value of groups of networks with similar predictions.

    The area of a point is in proportion to ``counts``; a calibrated model's points lie on the dashed line.
    """
    whole = span(np.asarray(predicted, float), np.asarray(true, float))
    axes = _Axes(whole, whole, size, size)
    parts = [axes.frame(f"mean predicted {label}", f"mean true {label}", write, write), axes.diagonal()]
    places = [axes.at(x, y) for x, y in zip(predicted, true, strict=True)]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts.append(f'<path d="M{line}" fill="none" style="stroke:var(--accent);stroke-width:1.6;stroke-opacity:.6"/>')
    largest = max(counts)
    for (x, y), count, p, t in zip(places, counts, predicted, true, strict=True):
        note = f"{count} networks: predicted {write(p)}, true {write(t)}"
        parts.append(
            f'<circle class="bin" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 4.5 * math.sqrt(count / largest):.1f}" '
            f'style="fill:var(--accent)"><title>{note}</title></circle>'
        )
    return svg(size, size, "".join(parts), f"Calibration: mean true against mean predicted {label}")


def draw_histogram(
    values: np.ndarray, label: str, write: Write, mark: float | None = None, width: int = 400, height: int = 400
) -> str:
    """How often values ``[n]`` occur; ``mark`` is a dashed line."""
    edges = np.linspace(*span(values), min(41, max(6, int(2 * len(values) ** 0.5))))
    counts = np.histogram(values, edges)[0]
    axes = _Axes((float(edges[0]), float(edges[-1])), (0.0, float(counts.max()) * 1.05), width, height)
    parts = [axes.frame(label, "networks", write, lambda count: f"{count:g}" if count == int(count) else "")]
    for count, low, high in zip(counts.tolist(), edges, edges[1:], strict=False):
        (x0, y0), (x1, y1) = axes.at(low, count), axes.at(high, 0)
        if count:
            parts.append(
                f'<rect class="bar" x="{x0 + 0.5:.1f}" y="{y0:.1f}" width="{max(0.8, x1 - x0 - 1):.1f}" '
                f'height="{y1 - y0:.1f}" style="fill:var(--accent);fill-opacity:.75"><title>{count} networks from '
                f"{write(low)} to {write(high)}</title></rect>"
            )
    if mark is not None and edges[0] <= mark <= edges[-1]:
        x, _ = axes.at(mark, 0)
        parts.append(
            f'<path d="M{x:.1f} {axes.top}V{axes.bottom}" style="stroke:var(--dim);stroke-width:1.2;stroke-dasharray:5 4"/>'
        )
    return svg(width, height, "".join(parts), f"Histogram of {label}")
