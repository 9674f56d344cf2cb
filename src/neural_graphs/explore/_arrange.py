"""Where the node sets of a graph stand in a layered drawing, and the way every block takes between them.

Rows are the longest path from the inputs (the depth, in a plain stack), after Sugiyama, Tagawa and Toda (1981): edges over
several rows get a lane of their own, rows are ordered by barycentres, and positions are a least squares fit that keeps the
order, so that a residual stream runs straight. Tall drawings are folded into columns. Everything is deterministic.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from neural_graphs.explore._fold import HEIGHT, MARGIN, Fold, Point

if TYPE_CHECKING:
    from neural_graphs.graph import Block, GraphSpec, NodeSet

GAP = 22.0  # between boxes of a row
LANE = 12.0  # width of an edge that passes a row
LOOP = 34.0  # room beside a box for an edge to itself or upwards
_SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """Middle and size of a node set's rectangle, and the text in it."""

    x: float
    y: float
    width: float
    height: float
    title: str
    detail: str


@dataclass(frozen=True)
class Arrangement:
    """A drawing in pixels at normal size. ``paths[k]`` is block k as cubic Bézier pieces: a start, then triples.

    ``column`` is the width of the first column, margins included.
    """

    boxes: tuple[Box, ...]
    paths: tuple[tuple[Point, ...], ...]
    width: float
    height: float
    column: float


def style_of(block: Block) -> str:
    """How an edge looks: parameter-free ones by what they are, all others alike."""
    return block.kind if block.kind in ("identity", "attention") else "weights"


def arrange(spec: GraphSpec, folded: bool = True) -> Arrangement:
    """Place all node sets and blocks of ``spec``; ``folded`` breaks tall drawings into columns."""
    rows = _rows(spec)
    drawing = _Drawing(spec, rows)
    drawing.order()
    drawing.tie()
    drawing.place()
    return drawing.finish(folded)


def _rows(spec: GraphSpec) -> list[int]:
    """A row per node set: below everything that it reads from, cycles broken at the node set that comes first."""
    count = len(spec.node_sets)
    reads: list[set[int]] = [set() for _ in range(count)]
    for block in spec.blocks:
        if block.source != block.target:
            reads[block.target].add(block.source)
    key = [(nodes.depth, i) for i, nodes in enumerate(spec.node_sets)]
    rows = [0] * count
    waiting = sorted(range(count), key=key.__getitem__)
    placed: set[int] = set()
    while waiting:
        current = next((i for i in waiting if reads[i] <= placed), waiting[0])
        waiting.remove(current)
        nodes = spec.node_sets[current]
        above = [rows[s] + 1 for s in reads[current] & placed]
        if not above and nodes.role != "input":  # nothing known leads here: keep it below what is less deep
            above = [rows[s] + 1 for s in placed if spec.node_sets[s].depth < nodes.depth]
        rows[current] = max(above, default=0)
        placed.add(current)
    for i in range(count):  # sources stand right above their first reader
        below = [rows[b.target] for b in spec.blocks if b.source == i and rows[b.target] > rows[i]]
        if not reads[i] and below:
            rows[i] = max(rows[i], min(below) - 1)
    used = {row: number for number, row in enumerate(sorted(set(rows)))}
    return [used[row] for row in rows]


class _Drawing:
    """Items are node sets (first) and lane points; every row lists its items from left to right."""

    def __init__(self, spec: GraphSpec, rows: Sequence[int]) -> None:
        self.spec = spec
        incoming = [0] * len(spec.node_sets)
        for block in spec.blocks:
            incoming[block.target] += 1
        self.labels = [label(nodes) for nodes in spec.node_sets]
        self.boxes = [
            max(84.0, 38 + 7.2 * max(len(title), 0.86 * len(detail)), min(12.0 * count + 24, 240.0))
            for (title, detail), count in zip(self.labels, incoming, strict=True)
        ]
        looped = {i for b in spec.blocks if rows[b.source] >= rows[b.target] for i in (b.source, b.target)}
        self.widths = [width + 2 * LOOP * (i in looped) for i, width in enumerate(self.boxes)]
        self.row = list(rows)
        self.rows: list[list[int]] = [[] for _ in range(max(rows) + 1)]
        for item, row in enumerate(rows):
            self.rows[row].append(item)
        self.up: list[set[int]] = [set() for _ in rows]
        self.down: list[set[int]] = [set() for _ in rows]
        self.chains: list[list[int]] = []  # per block: source, lane points, target; empty for loops and edges backwards
        lanes: dict[tuple[int, str], list[int]] = defaultdict(list)
        for block in spec.blocks:
            self.chains.append(self._chain(block, lanes))
        self.x = [0.0] * len(self.row)

    def _chain(self, block: Block, lanes: dict[tuple[int, str], list[int]]) -> list[int]:
        first, last = self.row[block.source], self.row[block.target]
        if first >= last:
            return []
        lane = lanes[block.source, style_of(block)]  # edges that leave one node set share a lane and branch off it
        while len(lane) < last - first - 1:
            self.widths.append(LANE)
            self.row.append(first + 1 + len(lane))
            self.rows[self.row[-1]].append(len(self.row) - 1)
            self.up.append(set())
            self.down.append(set())
            lane.append(len(self.row) - 1)
        chain = [block.source, *lane[: last - first - 1], block.target]
        for a, b in pairwise(chain):
            self.down[a].add(b)
            self.up[b].add(a)
        return chain

    # -- order within the rows ----------------------------------------------------------------------------------------

    def order(self) -> None:
        place = {item: float(i) for row in self.rows for i, item in enumerate(row)}
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(_SWEEPS):
            near = self.up if sweep % 2 == 0 else self.down
            for row in self.rows if sweep % 2 == 0 else self.rows[::-1]:
                middle = {
                    item: sum(place[n] for n in near[item]) / len(near[item]) if near[item] else place[item]
                    for item in row
                }
                row.sort(key=middle.__getitem__)
                for i, item in enumerate(row):
                    place[item] = (i + 0.5) / len(row)
            if (crossings := self._crossings()) < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _crossings(self) -> int:
        total = 0
        for upper, lower in pairwise(self.rows):
            position = {item: i for i, item in enumerate(lower)}
            seen: list[int] = []
            for item in upper:
                ends = sorted(position[n] for n in self.down[item])
                total += sum(len(seen) - bisect_right(seen, end) for end in ends)
                for end in ends:
                    insort(seen, end)
        return total

    # -- positions ----------------------------------------------------------------------------------------------------

    def tie(self) -> None:
        """Ends of the blocks on their boxes, and how strongly each piece of an edge wants to be straight."""
        places = {item: i for row in self.rows for i, item in enumerate(row)}
        self.starts, self.ends = self._ports(0, places), self._ports(1, places)
        pulls: dict[tuple[int, int], tuple[float, float]] = {}
        for k, chain in enumerate(self.chains):
            strength = 60.0 if self.spec.blocks[k].kind == "identity" else 6.0 if len(chain) > 2 else 1.0
            for a, b in pairwise(chain):
                shift = (self.starts[k] if a == chain[0] else 0.0) - (self.ends[k] if b == chain[-1] else 0.0)
                pulls[a, b] = max(pulls.get((a, b), (0.0, 0.0)), (strength, shift))
        self.pulls: list[list[tuple[int, float, float]]] = [[] for _ in self.row]
        for (a, b), (strength, shift) in pulls.items():
            self.pulls[b].append((a, strength, shift))
            self.pulls[a].append((b, strength, -shift))

    def place(self) -> None:
        for row in self.rows:
            self._settle(row, [0.0] * len(row), [1.0] * len(row))
        for sweep in range(4 * _SWEEPS):
            # Straightening down and up carries a place along the whole drawing; the last sweeps balance both directions.
            both, down = sweep >= 2 * _SWEEPS, sweep % 2 == 0
            for row in self.rows if down else self.rows[::-1]:
                wanted, weights = [], []
                for item in row:
                    near = [p for p in self.pulls[item] if both or (self.row[p[0]] < self.row[item]) == down]
                    weight = sum(strength for _, strength, _ in near)
                    pull = sum(strength * (self.x[n] + shift) for n, strength, shift in near)
                    wanted.append(pull / weight if weight else self.x[item])
                    weights.append(weight or 0.1)
                self._settle(row, wanted, weights)

    def _settle(self, row: list[int], wanted: list[float], weights: list[float]) -> None:
        """Closest positions to the wanted ones that keep order and distances (pool adjacent violators)."""
        offsets = [0.0]
        for a, b in pairwise(row):
            gap = GAP if a < len(self.spec.node_sets) or b < len(self.spec.node_sets) else 2.0
            offsets.append(offsets[-1] + (self.widths[a] + self.widths[b]) / 2 + gap)
        pools: list[list[float]] = []  # weighted sum, weight, count
        for want, weight, offset in zip(wanted, weights, offsets, strict=True):
            pools.append([weight * (want - offset), weight, 1])
            while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
                last = pools.pop()
                pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
        settled = [pool[0] / pool[1] for pool in pools for _ in range(int(pool[2]))]
        for item, at, offset in zip(row, settled, offsets, strict=True):
            self.x[item] = at + offset

    # -- the result ---------------------------------------------------------------------------------------------------

    def finish(self, folded: bool) -> Arrangement:
        extents = [
            (min(self.x[i] - self.widths[i] / 2 for i in row), max(self.x[i] + self.widths[i] / 2 for i in row))
            for row in self.rows
        ]
        stops = []
        for k, chain in enumerate(self.chains):
            way = [(self.row[i], self.x[i]) for i in chain]
            if chain:
                way[0] = (way[0][0], way[0][1] + self.starts[k])
                way[-1] = (way[-1][0], way[-1][1] + self.ends[k])
            stops.append(way)
        fold = Fold(extents, stops, folded)
        boxes = []
        for i, (title, detail) in enumerate(self.labels):
            x, y = fold.at(self.row[i], self.x[i])
            boxes.append(Box(x, y, self.boxes[i], HEIGHT, title, detail))
        paths = []
        for k, way in enumerate(stops):
            block = self.spec.blocks[k]
            paths.append(fold.path(k) if way else _loop(boxes[block.source], boxes[block.target]))
        return Arrangement(tuple(boxes), tuple(paths), fold.width, fold.height, fold.right[0] + MARGIN)

    def _ports(self, side: int, places: dict[int, int]) -> dict[int, float]:
        """Where blocks leave (side 0) or enter (1) their boxes, from the middle, in the order in which they come.

        A residual stands in the middle, the others around it, so that a residual stream is one straight line.
        """
        ports: dict[int, float] = {}
        groups: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for k, chain in enumerate(self.chains):
            if chain:
                own, near = (chain[0], chain[1]) if side == 0 else (chain[-1], chain[-2])
                # Edges that share a lane leave through one port; all others have their own.
                shared = near if side == 0 and near >= len(self.spec.node_sets) else -1 - k
                groups[own].append((places[near], shared, k))
        for own, members in groups.items():
            members.sort(key=lambda member: (member[0], member[2]))
            numbers = {shared: i for i, shared in enumerate(dict.fromkeys(member[1] for member in members))}
            straight = [numbers[m[1]] for m in members if self.spec.blocks[m[2]].kind == "identity"]
            middle = straight[len(straight) // 2] if straight else (len(numbers) - 1) / 2
            step = min(14.0, (self.boxes[own] / 2 - 12) / max(middle, len(numbers) - 1 - middle, 1))
            for _, shared, k in members:
                ports[k] = step * (numbers[shared] - middle)
        return ports


def label(nodes: NodeSet) -> tuple[str, str]:
    """Two short lines for a box: the end of the name, then size and activation."""
    name = nodes.name if len(nodes.name) <= 20 else "…" + nodes.name[-19:]
    kind = str(nodes.activation)
    return name, f"{nodes.size:,}" + (f" · {kind}" if kind != "none" else "")


def _loop(source: Box, target: Box) -> tuple[Point, ...]:
    """An edge to the node set itself or to an earlier one, around the right side."""
    right = max(source.x + source.width / 2, target.x + target.width / 2)
    reach = right + LOOP
    x0, y0 = source.x + source.width / 2, source.y + HEIGHT / 5
    x1, y1 = target.x + target.width / 2, target.y - HEIGHT / 5
    return (x0, y0), (reach, y0 + 4), (reach, y1 - 4), (x1, y1)
