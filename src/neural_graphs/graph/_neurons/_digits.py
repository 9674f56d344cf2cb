"""From "which neuron does each entry of a tensor belong to" to the ``Layout`` that reads it as edges.

The neurons along an axis are an integer array. Where it is a nest of arithmetic progressions (a mixed-radix number whose
digits count neurons, or repeat), the axis splits into those digits and a ``Layout`` can say it; anything else is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from neural_graphs.graph._axis import Axis
from neural_graphs.graph._layout import Cut, Layout


class Digit(NamedTuple):
    """One factor of an axis: a step along it moves ``target`` neurons on and ``source`` source neurons on."""

    size: int
    target: int
    source: int


class Stretch(NamedTuple):
    """Positions of an axis of ``size``: ``start:stop``, or, with a ``period``, the same in every period."""

    size: int
    start: int
    stop: int
    period: int | None = None

    @property
    def positions(self) -> Tensor:
        if self.period is None:
            return torch.arange(self.start, self.stop)
        starts = torch.arange(0, self.size, self.period)
        return (starts.unsqueeze(-1) + torch.arange(self.start, self.stop)).flatten()


def stretch_of(positions: Tensor, size: int) -> Stretch | None:
    """The stretch that consists of these ascending positions; None if they are no stretch."""
    first, count = int(positions[0]), positions.numel()
    breaks = (positions[1:] - positions[:-1] != 1).nonzero().flatten()
    if not breaks.numel():
        return Stretch(size, first, first + count)
    width = int(breaks[0]) + 1
    period = int(positions[width]) - first
    found = Stretch(size, first, first + width, period)
    if size % period or first + width > period or not torch.equal(found.positions, positions):
        return None
    return found


def digits(values: Tensor) -> list[tuple[int, int]] | None:
    """``[(size, stride), ...]``, outermost first, of an array that is a nest of arithmetic progressions."""
    found: list[tuple[int, int]] = []
    while values.numel() > 1:
        steps = values[1:] - values[:-1]
        step = int(steps[0])
        breaks = (steps != step).nonzero()
        run = int(breaks[0]) + 1 if breaks.numel() else values.numel()
        if values.numel() % run:
            return None
        grid = values.reshape(-1, run)
        if not torch.equal(grid, grid[:, :1] + step * torch.arange(run)):
            return None
        found.insert(0, (run, step))
        values = grid[:, 0]
    return found


def _common(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> list[Digit] | None:
    """Two readings of one axis as one: both split where either splits."""
    a, b, found = list(first), list(second), []
    while a and b:
        (n, s), (m, t) = a.pop(), b.pop()
        k = min(n, m)
        if n % k or m % k:
            return None
        found.append(Digit(k, s, t))
        if n > k:
            a.append((n // k, s * k))
        if m > k:
            b.append((m // k, t * k))
    return found[::-1]


@dataclass(frozen=True)
class Reading:
    """How a tensor, or a part of it, holds the edges between two node sets (or the features of one); ``plain``: a mere
    reshape of the whole tensor does."""

    layout: Layout
    plain: bool
    groups: int
    features: int


def read_axes(
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    cuts: dict[int, Stretch],
    target: dict[int, Tensor],
    source: dict[int, Tensor],
    sizes: tuple[int, int],
) -> Reading | None:
    """The ``Layout`` of a tensor whose axis ``j`` moves the target neuron by ``target[j]`` and the source neuron by
    ``source[j]`` (arrays over the cut axis, starting at 0; absent: not at all).

    ``cuts`` are the stretches of the axes that belong to these node sets, ``sizes`` theirs (source 1: none). None when no
    layout can say it, or when a symmetry would move features.
    """
    part: list[Cut] = []
    pick: list[Cut] = []
    factors: list[Digit] = []
    for j, whole in enumerate(shape):
        cut = cuts.get(j, Stretch(whole, 0, whole))
        if cut.period is None and (cut.start, cut.stop) != (0, whole):
            part.append((j, cut.start, cut.stop))
        own = _axis_digits(cut, target.get(j), source.get(j), len(factors), pick)
        if own is None or _moves_features(axes[j], cut, own):
            return None
        factors += own
    found = _layout(shape, part, pick, factors, sizes)
    return found


def _axis_digits(
    cut: Stretch, target: Tensor | None, source: Tensor | None, before: int, pick: list[Cut]
) -> list[Digit] | None:
    """The digits of one axis; with a period the outer ones count periods, and the stretch within one is picked."""
    n = cut.positions.numel()
    still = torch.zeros(n, dtype=torch.int64)
    t, s = (still if values is None else values for values in (target, source))
    if cut.period is None:
        return _joint(t, s)
    width, count = cut.stop - cut.start, cut.size // cut.period
    outer: list[Tensor] = []
    inner: list[Tensor] = []
    for values, found in ((t, outer), (s, inner)):
        grid = values.reshape(count, width)
        if not torch.equal(grid, grid[:, :1] + grid[:1] - grid[0, 0]):
            return None
        found.append(grid[:, 0])
        found.append(grid[0] - grid[0, 0])
    periods, within = _joint(outer[0], inner[0]), _joint(outer[1], inner[1])
    if periods is None or within is None:
        return None
    if width * (cut.period // width) == cut.period and cut.start % width == 0:
        pick.append((before + len(periods), cut.start // width, cut.start // width + 1))
        return [*periods, Digit(cut.period // width, 0, 0), *within]
    if len(within) > 1:
        return None
    pick.append((before + len(periods), cut.start, cut.stop))
    step = within[0] if within else Digit(1, 0, 0)
    return [*periods, Digit(cut.period, step.target, step.source)]


def _joint(target: Tensor, source: Tensor) -> list[Digit] | None:
    t, s = digits(target), digits(source)
    return None if t is None or s is None else _common(t, s)


def _moves_features(axis: Axis, cut: Stretch, own: list[Digit]) -> bool:
    """Whether a symmetry moves positions of this axis to other features."""
    if not axis.moves or all(digit.target or digit.source for digit in own):
        return False
    feature = torch.full((cut.size,), -1)
    value = torch.zeros(1, dtype=torch.int64)
    for size, t, s in own:
        step = torch.zeros(size, dtype=torch.int64) if t or s else torch.arange(size)
        value = (value.unsqueeze(-1) * (1 if t or s else size) + step).flatten()
    if value.numel() == cut.size:  # periods: the digits cover the whole axis
        feature = value
    else:
        feature[cut.positions] = value
    for offset, parts in axis.pieces:
        grid = torch.tensor(offset)
        for k, part in enumerate(parts):
            grid = grid.unsqueeze(-1) + torch.arange(part.size) * part.stride
            assert grid.dim() == k + 1
        values = feature[grid]
        for dim, part in enumerate(parts):
            if part.symmetry is not None and part.size > 1 and not bool((values == values.narrow(dim, 0, 1)).all()):
                return True
    return False


def _layout(
    shape: tuple[int, ...], part: list[Cut], pick: list[Cut], factors: list[Digit], sizes: tuple[int, int]
) -> Reading | None:
    picked = {k: stop - start for k, start, stop in pick}
    counts = [picked.get(k, digit.size) for k, digit in enumerate(factors)]
    target = sorted((k for k, d in enumerate(factors) if d.target), key=lambda k: -factors[k].target)
    source = sorted((k for k, d in enumerate(factors) if d.source), key=lambda k: -factors[k].source)
    for places, strides, size in (
        (target, [d.target for d in factors], sizes[0]),
        (source, [d.source for d in factors], sizes[1]),
    ):
        step = 1
        for k in reversed(places):
            if strides[k] != step:
                return None
            step *= counts[k]
        if step != size:
            return None
    shared = [k for k in target if k in source]
    if target[: len(shared)] != shared or source[: len(shared)] != shared:
        return None
    groups = math.prod(counts[k] for k in shared)
    source = source[len(shared) :]
    rest = [k for k in range(len(factors)) if k not in target and k not in source]
    features = math.prod(counts[k] for k in rest)
    plain = not part and not pick and [*target, *source, *rest] == list(range(len(factors)))
    layout = Layout(tuple(part), tuple(d.size for d in factors), tuple(target), tuple(source), tuple(pick))
    return Reading(layout, plain, groups, features)
