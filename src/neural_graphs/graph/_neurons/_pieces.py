"""From sites to node sets: packed axes taken apart where their parts are used differently, queries and keys put together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neural_graphs.graph._axis import Axis, Factor
from neural_graphs.graph._neurons._digits import Stretch, stretch_of
from neural_graphs.graph._neurons._labels import NOBODY
from neural_graphs.graph._neurons._sites import Join, Ledger, Site, product_axis

_MOST_PIECES = 64


@dataclass(eq=False)
class Draft:
    """A node set in the making: ``ids`` are its neurons in order. ``parts`` names what was put together in it."""

    ids: Tensor
    name: str
    kind: str
    axis: Axis
    rank: float
    site: Site | None = None
    stretch: Stretch | None = None
    names: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.ids.numel()


@dataclass(eq=False)
class Sets:
    """All drafts; ``set_of`` and ``place`` say for every neuron in which draft it is, and where (-1: in none), ``piece``
    in which one it was before drafts were put together."""

    drafts: list[Draft]
    set_of: Tensor
    place: Tensor
    piece: Tensor

    def add(self, size: int, name: str, axis: Axis, rank: float) -> Draft:
        """A draft with neurons of its own."""
        start = self.set_of.numel()
        ids = torch.arange(start, start + size)
        own = torch.full((size,), len(self.drafts))
        self.set_of, self.piece = torch.cat([self.set_of, own]), torch.cat([self.piece, own])
        self.place = torch.cat([self.place, torch.arange(size)])
        self.drafts.append(Draft(ids, name, "read", axis, rank, names=[name]))
        return self.drafts[-1]

    def pieces(self, ids: Tensor) -> Tensor:
        """The pieces of these neurons, ``NOBODY`` where there is none."""
        return torch.where(ids == NOBODY, NOBODY, self.piece[ids.clamp_min(0)])

    def draft_of(self, piece: int) -> int:
        return int(self.set_of[self.drafts[piece].ids[0]])

    def among(self, ids: Tensor) -> list[int]:
        """The drafts of these neurons."""
        return [number for number in self.set_of[ids[ids != NOBODY]].unique().tolist() if number >= 0]


def make_sets(ledger: Ledger) -> Sets:
    """One draft per site, or several where the site's neurons were not all used alike."""
    generator = torch.Generator().manual_seed(0)
    signature = torch.zeros(ledger.total, dtype=torch.int64)
    for ids in ledger.events:
        signature[ids] += torch.randint(1, 1 << 62, (), generator=generator)
    _cut_alike(ledger, signature)
    axes = site_axes(ledger)
    sets = Sets([], *(torch.full((ledger.total,), -1) for _ in range(3)))
    for rank, site in enumerate(ledger.sites):
        pieces = _pieces(site, axes.get(site.base, Axis.fixed(site.size)), signature[site.ids])
        for number, (stretch, axis) in enumerate(pieces):
            ids = site.base + stretch.positions if stretch is not None else site.ids
            name = f"{site.name}.{number}" if len(pieces) > 1 else site.name
            sets.set_of[ids] = len(sets.drafts)
            sets.place[ids] = torch.arange(ids.numel())
            sets.drafts.append(Draft(ids, name, site.kind, axis, rank, site, stretch, [name]))
    sets.piece = sets.set_of.clone()
    return sets


def _cut_alike(ledger: Ledger, signature: Tensor) -> None:
    """Where neurons are joined one to one, whatever cuts the ones cuts the others: whole node sets then meet in order."""
    ends = [(j.source, j.target) for j in ledger.joins if j.aligned and j.kind == "identity" and j.source.numel()]
    ends = [pair for pair in ends if all(ids.unique().numel() == ids.numel() for ids in pair)]
    changed = True
    while changed:
        changed = False
        for pair in ends:
            for this, other in (pair, pair[::-1]):
                both, where = torch.stack([signature[this], signature[other]], 1).unique(dim=0, return_inverse=True)
                kinds, counts = both[:, 0].unique(return_counts=True)
                mixed = torch.isin(signature[this], kinds[counts > 1])
                if bool(mixed.any()) and len(both) <= _MOST_PIECES:
                    fresh = both[:, 0] * 1_000_003 + both[:, 1] * 998_244_353  # wraps around: any number will do
                    signature[this[mixed]] = fresh[where][mixed]
                    changed = True


def _pieces(site: Site, axis: Axis, signature: Tensor) -> list[tuple[Stretch | None, Axis]]:
    kinds = list(dict.fromkeys(signature.tolist()))
    whole: list[tuple[Stretch | None, Axis]] = [(None, axis)]
    if len(kinds) == 1 or len(kinds) > _MOST_PIECES:
        return whole
    found: list[tuple[Stretch | None, Axis]] = []
    for kind in kinds:
        stretch = stretch_of((signature == kind).nonzero().flatten(), site.size)
        own = stretch_axis(axis, stretch) if stretch is not None else None
        if own is None:
            return whole
        found.append((stretch, own))
    return found


def site_axes(ledger: Ledger) -> dict[int, Axis]:
    """How the group moves the neurons of each site (by its base), read off the parameters that act on them; where there
    are none, off the neurons to which they are joined one by one."""
    found: dict[int, Axis] = {}
    bases = torch.tensor(sorted(site.base for site in ledger.sites))
    sites = {site.base: site for site in ledger.sites}
    for use in ledger.uses:
        for ids in (use.target, use.source):
            if ids is None or not bool((ids != NOBODY).any()):
                continue
            known = ids[ids != NOBODY].unique()
            for base in bases[torch.searchsorted(bases, known, right=True) - 1].unique().tolist():
                if base not in found:
                    axis = _axis_along(ledger.parameters[use.parameter], ids, sites[base])
                    if axis is not None and axis.size == sites[base].size and ledger.closed(axis):
                        found[base] = axis
    changed = True
    while changed:
        changed = False
        for join in ledger.joins:
            if join.aligned and join.source.numel():
                ends = [
                    int(bases[torch.searchsorted(bases, ids[:1], right=True) - 1]) for ids in (join.source, join.target)
                ]
                whole = all(torch.equal(i, sites[e].ids) for i, e in zip((join.source, join.target), ends, strict=True))
                for this, other in (ends, ends[::-1]):
                    if whole and this in found and other not in found:
                        found[other] = found[this]
                        changed = True
    return found


def _axis_along(axes: tuple[Axis, ...], ids: Tensor, site: Site) -> Axis | None:
    """The axis of a site whose neurons stand in this order along one or more axes of a parameter."""
    inside = (ids >= site.base) & (ids < site.base + site.size)
    at = inside.nonzero()[0].tolist()
    lines = []
    for d in range(ids.dim()):
        line = ids[tuple(slice(None) if k == d else i for k, i in enumerate(at))] - site.base
        within = (line >= 0) & (line < site.size)
        count = line[within].unique().numel()
        if count > 1:
            first = torch.full((site.size,), line.numel())
            first.scatter_reduce_(0, line[within], torch.arange(line.numel())[within], "amin")
            places = first[first < line.numel()]
            neurons = (first < line.numel()).nonzero().flatten()
            step = int(neurons[1] - neurons[0])
            even = torch.equal(neurons, neurons[0] + step * torch.arange(count))
            stretch = stretch_of(places, line.numel()) if bool((places[1:] > places[:-1]).all()) else None
            axis = stretch_axis(axes[d], stretch) if stretch is not None and even else None
            if axis is None:
                return None
            lines.append((step, axis))
    lines.sort(key=lambda pair: -pair[0])
    radix = 1
    for step, axis in reversed(lines):
        if step != radix:
            return None
        radix *= axis.size
    return product_axis([axis for _, axis in lines])


def join_queries_and_keys(ledger: Ledger, sets: Sets) -> None:
    """Queries and keys that one permutation moves are one node set; else the keys act on the queries."""
    for q, k in ledger.products:
        found = sets.among(q), sets.among(k)
        if len(found[0]) == len(found[1]) == 1 and found[0] != found[1]:
            query, key = sets.drafts[found[0][0]], sets.drafts[found[1][0]]
            places = sets.place[q], sets.place[k]
            alike = (
                query.kind == key.kind == "layer"
                and q.numel() == query.size == key.size
                and torch.equal(*places)
                and places[0].unique().numel() == query.size
                and query.axis == key.axis
                and not _feeds(ledger, sets, found[0][0], found[1][0])
            )
            if alike:
                sets.set_of[key.ids] = found[0][0]
                for ids in (member.ids for member in sets.drafts if sets.set_of[member.ids[0]] == found[1][0]):
                    sets.set_of[ids] = found[0][0]
                query.names += key.names
                key.kind = "gone"
                continue
        if set(found[0]) != set(found[1]):
            ledger.joins.append(Join(k, q, "attention"))


def _feeds(ledger: Ledger, sets: Sets, first: int, second: int) -> bool:
    """Whether one of the two is made from the other."""
    for use in ledger.uses:
        if use.source is not None:
            ends = sets.among(use.source), sets.among(use.target)
            if (first in ends[0] and second in ends[1]) or (second in ends[0] and first in ends[1]):
                return True
    return False


# -- parts of an axis -----------------------------------------------------------------------------------------------------


def stretch_axis(axis: Axis, stretch: Stretch) -> Axis | None:
    """How the group acts on a stretch of an axis; None where it moves positions in and out of it."""
    if stretch.period is None:
        return section(axis, stretch.start, stretch.stop)
    parts: list[tuple[Factor, ...]] = []
    for part in axis.parts:
        found = _periodic(part, stretch)
        if found is None:
            return None
        parts.append(found)
    return Axis(tuple(parts))


def _periodic(part: tuple[Factor, ...], stretch: Stretch) -> tuple[Factor, ...] | None:
    assert stretch.period is not None
    size = math.prod(map(_size, part))
    if all(not isinstance(f, Axis) and f[0] is None for f in part):
        if size % stretch.period:
            return None
        return ((None, size // stretch.period * (stretch.stop - stretch.start)),)
    for k in range(len(part) + 1):
        if math.prod(map(_size, part[k:])) == stretch.period:
            inner = section(Axis((part[k:],)), stretch.start, stretch.stop)
            if inner is None:
                return None
            if inner.size == 1:
                return part[:k]
            return (*part[:k], *(inner.parts[0] if len(inner.parts) == 1 else (inner,)))
    return None


def section(axis: Axis, start: int, stop: int) -> Axis | None:
    """Positions ``start:stop`` of an axis; None where the group moves positions across the cut."""
    parts: list[tuple[Factor, ...]] = []
    position = 0
    for part in axis.parts:
        size = math.prod(map(_size, part))
        first, last = max(start - position, 0), min(stop - position, size)
        position += size
        if first >= last:
            continue
        cut = ((part,) if (first, last) == (0, size) else _cut(part, first, last)) if part else (part,)
        if cut is None:
            return None
        parts += cut
    return Axis(tuple(parts))


def _cut(part: tuple[Factor, ...], start: int, stop: int) -> tuple[tuple[Factor, ...], ...] | None:
    if all(not isinstance(f, Axis) and f[0] is None for f in part):
        return (((None, stop - start),),)
    head, rest = part[0], part[1:]
    inner = math.prod(map(_size, rest))
    if start % inner == 0 and stop % inner == 0:
        if isinstance(head, Axis):
            found = section(head, start // inner, stop // inner)
            return tuple((*piece, *rest) for piece in found.parts) if found is not None else None
        count = (stop - start) // inner
        return ((((None, count), *rest) if count > 1 else rest),) if head[0] is None else None
    if start // inner == (stop - 1) // inner and not isinstance(head, Axis) and head[0] is None:
        found = section(Axis((rest,)), start % inner, start % inner + stop - start)
        return found.parts if found is not None else None
    return None


def _size(factor: Factor) -> int:
    return factor.size if isinstance(factor, Axis) else factor[1]
