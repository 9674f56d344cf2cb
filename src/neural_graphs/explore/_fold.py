"""Breaking a tall drawing into columns, like a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_ASPECT = 1.6  # wanted width over height
_MOST_ROWS = 16  # in one column before anything is folded
_GUTTER = 56.0

Point = tuple[float, float]


class Fold:
    """Maps (row, x) of an unfolded drawing to the page.

    ``extents[r]`` is the left and right end of row r, ``busy[r]`` its number of items: columns end after quiet rows.
    """

    def __init__(
        self,
        extents: Sequence[tuple[float, float]],
        busy: Sequence[int],
        pitch: float,
        box: float,
        margin: float,
        folded: bool,
    ) -> None:
        self.pitch, self.box = pitch, box
        count = len(extents)
        wide = max(b for _, b in extents) - min(a for a, _ in extents) + _GUTTER
        columns = 1
        if folded and count > _MOST_ROWS:
            columns = max(1, round(math.sqrt(_ASPECT * count * pitch / wide)))
        starts = [0, *_breaks(busy, columns), count]
        self.column = [c for c, (a, b) in enumerate(pairwise(starts)) for _ in range(a, b)]
        self.first = starts
        self.shift: list[float] = []
        self.right: list[float] = []
        x = margin
        for a, b in pairwise(starts):
            low, high = min(e[0] for e in extents[a:b]), max(e[1] for e in extents[a:b])
            self.shift.append(x - low)
            x += high - low
            self.right.append(x)
            x += _GUTTER
        self.top = margin + box / 2 + (14.0 if len(starts) > 2 else 0.0)
        self.width = x - _GUTTER + margin
        tallest = max(b - a for a, b in pairwise(starts))
        self.bottom = self.top + (tallest - 1) * pitch + box / 2
        self.height = self.bottom + margin + (14.0 if len(starts) > 2 else 0.0)

    def at(self, row: int, x: float) -> Point:
        """Middle of an item."""
        column = self.column[row]
        return x + self.shift[column], self.top + (row - self.first[column]) * self.pitch

    def path(self, stops: Sequence[tuple[int, float]], number: int) -> tuple[Point, ...]:
        """Bézier pieces through (row, x) stops: from the lower edge of the first to the upper edge of the last."""
        half = self.box / 2
        x, y = self.at(*stops[0])
        points: list[Point] = [(x, y + half)]
        for (row, x0), (below, x1) in pairwise(stops):
            x, y = self.at(below, x1)
            if self.column[row] != self.column[below]:
                self._around(points, row, x, y - half, number)
            elif abs(points[-1][0] - x) < 0.05:
                _line(points, (x, y - half))
            else:
                start = self.at(row, x0)[1] + half
                _line(points, (points[-1][0], start))
                bend = (y - half - start) * 0.5
                points += [(points[-1][0], start + bend), (x, y - half - bend), (x, y - half)]
            if below != stops[-1][0]:
                _line(points, (x, y + half))
        return tuple(points)

    def _around(self, points: list[Point], row: int, x: float, y: float, number: int) -> None:
        """Down to the foot of the column, up in the gutter, into the head of the next one."""
        column = self.column[row]
        lane = (number % 5) * 3.0
        foot, head = self.bottom + 8 + lane, self.top - self.box / 2 - 8 - lane
        gutter = self.right[column] + _GUTTER / 2 - 6 + lane
        corners = [(points[-1][0], foot), (gutter, foot), (gutter, head), (x, head), (x, y)]
        radius = 6.0
        for i, corner in enumerate(corners):
            if i == len(corners) - 1:
                _line(points, corner)
                break
            follow = corners[i + 1]
            _line(points, _towards(corner, points[-1], radius))
            out = _towards(corner, follow, radius)
            points += [corner, corner, out]


def _breaks(busy: Sequence[int], columns: int) -> list[int]:
    """Rows that start a new column: near equal parts, where few edges pass."""
    count = len(busy)
    found: list[int] = []
    slack = max(1, round(0.12 * count / columns))
    for c in range(1, columns):
        ideal = round(c * count / columns)
        near = [r for r in range(ideal - slack, ideal + slack + 1) if (found[-1] if found else 0) < r < count]
        if near:
            found.append(min(near, key=lambda r: (busy[r - 1] + busy[r], abs(r - ideal), r)))
    return found


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    share = min(0.5, distance / length)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _line(points: list[Point], end: Point) -> None:
    """A straight piece, joined with the piece before it where that is straight the same way."""
    start = points[-1]
    if math.dist(start, end) < 0.05:
        return
    if len(points) >= 4 and all(abs(p[0] - end[0]) < 0.05 for p in points[-4:]):
        points[-1] = points[-2] = end
        return
    third = ((2 * start[0] + end[0]) / 3, (2 * start[1] + end[1]) / 3)
    other = ((start[0] + 2 * end[0]) / 3, (start[1] + 2 * end[1]) / 3)
    points += [third, other, end]
