"""Breaking a tall drawing into columns, like a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

HEIGHT = 40.0  # of a box
PITCH = 82.0  # from row to row
MARGIN = 26.0
_ASPECT = 1.6  # wanted width over height
_MOST_ROWS = 16  # in one column before anything is folded
_GUTTER = 60.0
_TURN = 14.0  # room above and below columns for the edges that pass from one to the next

Point = tuple[float, float]
Stop = tuple[int, float]
"""A row and a place in it."""


class Fold:
    """Maps (row, x) of an unfolded drawing to the page.

    ``extents[r]`` is the left and right end of row r, ``ways[k]`` the stops of edge k from above to below (empty for edges
    that take another way). Columns end where few edges pass.
    """

    def __init__(self, extents: Sequence[tuple[float, float]], ways: Sequence[Sequence[Stop]], folded: bool) -> None:
        self.ways = ways
        count = len(extents)
        wide = max(b for _, b in extents) - min(a for a, _ in extents) + _GUTTER
        columns = 1
        if folded and count > _MOST_ROWS:
            columns = max(1, round(math.sqrt(_ASPECT * count * PITCH / wide)))
        busy = [0] * count  # edges that come into a row from above
        for way in ways:
            for row, _ in way[1:]:
                busy[row] += 1
        self.first = [0, *_breaks(busy, columns), count]
        self.column = [c for c, (a, b) in enumerate(pairwise(self.first)) for _ in range(a, b)]
        turn = _TURN if columns > 1 else 0.0
        self.top = MARGIN + HEIGHT / 2 + turn
        self.shift: list[float] = []
        self.right: list[float] = []
        self.bottom: list[float] = []
        x = MARGIN
        for a, b in pairwise(self.first):
            low, high = min(e[0] for e in extents[a:b]), max(e[1] for e in extents[a:b])
            self.shift.append(x - low)
            self.right.append(x + high - low)
            self.bottom.append(self.top + (b - a - 1) * PITCH + HEIGHT / 2)
            x = self.right[-1] + _GUTTER
        self.width = self.right[-1] + MARGIN
        self.height = max(self.bottom) + turn + MARGIN
        # Edges that turn at the same column are nested: the rightmost is the innermost below and the outermost above.
        self.turns: dict[tuple[int, int], tuple[int, int]] = {}
        for column in range(len(self.right) - 1):
            last = self.first[column + 1] - 1
            turning = sorted((-x, k) for k, way in enumerate(ways) for row, x in way[:-1] if row == last)
            for i, (_, k) in enumerate(turning):
                self.turns[column, k] = (i, len(turning))

    def at(self, row: int, x: float) -> Point:
        """Middle of an item."""
        column = self.column[row]
        return x + self.shift[column], self.top + (row - self.first[column]) * PITCH

    def path(self, edge: int) -> tuple[Point, ...]:
        """Edge number ``edge`` as Bézier pieces, from the lower side of its first box to the upper side of its last."""
        way, half = self.ways[edge], HEIGHT / 2
        x, y = self.at(*way[0])
        points: list[Point] = [(x, y + half)]
        for (row, _), (below, x1) in pairwise(way):
            x, y = self.at(below, x1)
            if self.column[row] != self.column[below]:
                self._turn(points, self.column[row], edge, (x, y - half))
            elif abs(points[-1][0] - x) < 1.5:
                _line(points, (points[-1][0], y - half))
            else:
                start = points[-1]
                bend = (y - half - start[1]) * 0.5
                points += [(start[0], start[1] + bend), (x, y - half - bend), (x, y - half)]
            if below != way[-1][0]:
                _line(points, (points[-1][0], y + half))
        return tuple(points)

    def _turn(self, points: list[Point], column: int, edge: int, end: Point) -> None:
        """Down to the foot of the column, up in the gutter, into the head of the next one."""
        number, many = self.turns[column, edge]
        step = min(5.0, 18.0 / many)
        foot = self.bottom[column] + 8 + step * number
        gutter = self.right[column] + 14 + step * number
        head = self.top - HEIGHT / 2 - 8 - step * (many - 1 - number)
        corners = [(points[-1][0], foot), (gutter, foot), (gutter, head), (end[0], head), end]
        for corner, follow in pairwise(corners):
            _line(points, _towards(corner, points[-1], 6.0))
            points += [corner, corner, _towards(corner, follow, 6.0)]
        _line(points, end)


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
