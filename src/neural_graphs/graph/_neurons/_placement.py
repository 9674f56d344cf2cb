"""Every parameter put into blocks and node features, by what was found out about neurons."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from neural_graphs.graph._axis import Axis
from neural_graphs.graph._neurons._digits import Reading, Stretch, read_axes, stretch_of
from neural_graphs.graph._neurons._labels import NOBODY
from neural_graphs.graph._neurons._pieces import Draft, Sets, section
from neural_graphs.graph._neurons._sites import Join, Ledger, Use, product_axis
from neural_graphs.graph._structure import Block, BlockKind, NodeFeature


@dataclass(eq=False)
class Owner:
    """What holds a parameter or a part of it: a block, or a feature of a draft."""

    reading: Reading
    block: int | None
    draft: int
    source: int | None = None


class Placement:
    """Blocks and node features as they come to be placed; node sets are the numbers of their drafts."""

    def __init__(self, ledger: Ledger, sets: Sets) -> None:
        self.ledger, self.sets = ledger, sets
        self.blocks: list[Block] = []
        self.features: dict[int, list[NodeFeature]] = defaultdict(list)
        self.owners: dict[str, list[Owner]] = defaultdict(list)
        self.free: dict[tuple[int, int, str], int] = {}
        self.roles: dict[int, str] = {}
        for ids, role in ledger.roles:
            for piece in sets.pieces(ids).unique().tolist():
                self.roles.setdefault(piece, role)

    # -- parameters -----------------------------------------------------------------------------------------------------

    def place(self, use: Use) -> None:
        """Blocks or features for one use of a parameter; where no layout can say it, a node set of its own between."""
        found = self._readings(use)
        if found is None and use.source is not None:
            use = self._between(use)
            found = self._readings(use)
        if found is None:
            self.ledger.strays.append((use.parameter, use.target[use.target != NOBODY].unique()))
            if use.source is not None:
                self.ledger.joins.append(Join(use.source.flatten(), use.target.flatten(), "other", aligned=False))
            return
        for target, source, reading in found:
            self._add(use, target, source, reading)

    def _readings(self, use: Use) -> list[tuple[int, int | None, Reading]] | None:
        shape = self.ledger.shape(use.parameter)
        axes = self.ledger.parameters[use.parameter]
        targets = self._segments(use.target)
        sources = self._segments(use.source) if use.source is not None else [(None, {})]
        if not targets or not sources:
            return None
        found = []
        for target, t_cuts in targets:
            for source, s_cuts in sources:
                if any(s_cuts[axis] != cut for axis, cut in t_cuts.items() if axis in s_cuts):
                    return None
                cuts = {**t_cuts, **s_cuts}
                assert target is not None
                steps = [self._steps(ids, cuts) for ids in (use.target, use.source if use.source is not None else None)]
                if steps[0] is None or steps[1] is None:
                    return None
                sizes = (self.sets.drafts[target].size, self.sets.drafts[source].size if source is not None else 1)
                reading = read_axes(shape, axes, cuts, steps[0], steps[1], sizes)
                if reading is None:
                    return None
                found.append((target, source, reading))
        return found

    def _segments(self, ids: Tensor | None) -> list[tuple[int | None, dict[int, Stretch]]] | None:
        """The node sets along a parameter, each with the stretches of the axes where it stands."""
        assert ids is not None
        pieces = self.sets.pieces(ids)
        found: list[tuple[int | None, dict[int, Stretch]]] = []
        for piece in pieces.unique().tolist():
            if piece == NOBODY:
                continue
            here = pieces == piece
            cuts: dict[int, Stretch] = {}
            block = torch.ones((1,) * ids.dim(), dtype=torch.bool)
            for axis, size in enumerate(ids.shape):
                line = here.movedim(axis, 0).reshape(size, -1).any(1)
                block = block & line.reshape([-1 if d == axis else 1 for d in range(ids.dim())])
                if not bool(line.all()):
                    stretch = stretch_of(line.nonzero().flatten(), size)
                    if stretch is None:
                        return None
                    cuts[axis] = stretch
            if not torch.equal(block.expand(here.shape), here):
                return None
            found.append((piece, cuts))
        return found

    def _steps(self, ids: Tensor | None, cuts: dict[int, Stretch]) -> dict[int, Tensor] | None:
        """How the neuron changes along each axis of a parameter, within the cuts; None where the axes do not add up."""
        if ids is None:
            return {}
        place = torch.where(ids == NOBODY, NOBODY, self.sets.place[ids.clamp_min(0)])
        for axis, cut in cuts.items():
            if place.shape[axis] > 1:
                place = place.index_select(axis, cut.positions)
        if place.numel() and int(place.flatten()[0]) != 0:
            return None
        found: dict[int, Tensor] = {}
        total = torch.zeros((1,) * place.dim(), dtype=torch.int64)
        for axis in range(place.dim()):
            if place.shape[axis] > 1:
                line = place.movedim(axis, 0).reshape(place.shape[axis], -1)[:, 0]
                found[axis] = line
                total = total + line.reshape([-1 if d == axis else 1 for d in range(place.dim())])
        return found if torch.equal(total.expand(place.shape), place) else None

    def _between(self, use: Use) -> Use:
        """The same use, read through a node set of its own that has one neuron for every entry along the source axes."""
        assert use.source is not None
        shape = self.ledger.shape(use.parameter)
        axes = [d for d, size in enumerate(use.source.shape) if size > 1 and use.target.shape[d] == 1]
        if any(size > 1 and use.target.shape[d] > 1 for d, size in enumerate(use.source.shape)) or not axes:
            return use
        lines = self.ledger.parameters[use.parameter]
        rank = min(self.sets.drafts[n].rank for n in self.sets.among(use.target)) - 0.5
        size = math.prod(shape[d] for d in axes)
        name = f"{use.parameter}.input"
        draft = self.sets.add(size, name, product_axis([lines[d] for d in axes]), rank)
        ids = draft.ids.reshape([shape[d] if d in axes else 1 for d in range(len(shape))])
        old, new = torch.broadcast_tensors(use.source, ids)
        known = old != NOBODY
        self.ledger.joins.append(Join(old[known], new[known], "attention" if self._mixed(use.source) else "other"))
        return replace(use, source=ids)

    def _mixed(self, ids: Tensor) -> bool:
        return any(self.roles.get(number) == "value" for number in self.sets.among(ids))

    def _add(self, use: Use, piece: int, source_piece: int | None, reading: Reading) -> None:
        target = self.sets.draft_of(piece)
        source = self.sets.draft_of(source_piece) if source_piece is not None else None
        owners = self.owners[use.parameter]
        shape = self.ledger.shape(use.parameter)
        before = next((o for o in owners if o.reading.layout.overlaps(reading.layout)), None)
        layout = None if reading.plain else reading.layout
        if source is None:
            own = None if shape == (self.sets.drafts[target].size,) else reading.layout
            feature = NodeFeature(use.parameter, use.kind, own, reading.features, shared=before is not None)
            self.features[target].append(feature)
            if before is None:
                owners.append(Owner(reading, None, target))
            return
        if before is not None and before.block is None:  # a feature elsewhere: a block cannot be a copy of it
            self.ledger.joins.append(Join(self.sets.drafts[source].ids, self.sets.drafts[target].ids, "other", False))
            return
        block = Block(
            source,
            target,
            use.parameter,
            shape,
            use.kernel,
            reading.features,
            self._kind(use, piece),
            reading.groups,
            layout,
            before.block if before is not None else None,
        )
        if before is None:
            owners.append(Owner(reading, len(self.blocks), target, source))
        self.blocks.append(block)

    def _kind(self, use: Use, piece: int) -> BlockKind:
        if use.kind == "linear" and piece in self.roles:
            return cast(BlockKind, self.roles[piece])
        known = ("linear", "conv", "embedding", "position", "recurrent")
        return cast(
            BlockKind, use.kind if use.kind in known else "position" if use.kind in ("bias", "token") else "other"
        )

    def complete(self, name: str) -> None:
        """What of a parameter no use has placed gets node sets of its own."""
        shape, owners = self.ledger.shape(name), self.owners[name]
        held = sum(math.prod(owner.reading.layout.picked) for owner in owners)
        total = math.prod(shape)
        if held == total:
            return
        gaps = _gaps(shape, [owner.reading for owner in owners])
        if held and gaps is None:
            self._withdraw(name)
            gaps = None
        if gaps is None:
            gaps = [{}]
        for cut in gaps:
            self._alone(name, cut)

    def _withdraw(self, name: str) -> None:
        """Give up on the uses of a parameter that do not add up: only the joins of what they act on stay."""
        for number, block in enumerate(self.blocks):
            if block.parameter == name:
                kept = Block(block.source, block.target, None, features=0, kind="other")
                self.blocks[number] = kept
        for number in self.features:
            self.features[number] = [feature for feature in self.features[number] if feature.parameter != name]
        self.owners[name] = []

    def _alone(self, name: str, cuts: dict[int, Stretch]) -> None:
        shape, lines = self.ledger.shape(name), self.ledger.parameters[name]
        sizes = [cuts[d].stop - cuts[d].start if d in cuts else n for d, n in enumerate(shape)]
        axes = [section(lines[d], cuts[d].start, cuts[d].stop) if d in cuts else lines[d] for d in range(len(shape))]
        axes = [axis if axis is not None else Axis.fixed(n) for axis, n in zip(axes, sizes, strict=True)]
        big = [d for d, n in enumerate(sizes) if n > 1 or d in cuts]
        if not self.ledger.closed(product_axis([cast(Axis, axes[d]) for d in big[1:]])):
            ways: tuple[tuple[list[int], str], ...] = ((big, ""), ([], ".positions"))
        else:
            ways = ((big[:1], ""), (big[1:], ".positions"))
        last = self.sets.drafts[-1].rank + 1
        ids: list[Tensor | None] = []
        # every axis but the first is a source of its own: nothing is left that a symmetry could move as a feature
        for dims, ending in ways:
            if not dims and ending:
                ids.append(None)
                continue
            size = math.prod(sizes[d] for d in dims)
            draft = self.sets.add(size, f"{name}{ending}", product_axis([cast(Axis, axes[d]) for d in dims]), last)
            draft.kind = "tensor"
            full = torch.full([shape[d] if d in dims else 1 for d in range(len(shape))], NOBODY)
            index = [torch.arange(n) for n in full.shape]
            for d in dims:
                if d in cuts:
                    index[d] = cuts[d].positions
            full[torch.meshgrid(*index, indexing="ij") if index else ()] = draft.ids.reshape(
                [sizes[d] if d in dims else 1 for d in range(len(shape))]
            )
            ids.append(full)
        target, source = ids
        assert target is not None
        found = self._readings(Use(name, target, source, "other"))
        assert found is not None, name
        for goes_to, comes_from, reading in found:
            self._add(Use(name, target, source, "other"), goes_to, comes_from, reading)

    def homes(self, name: str) -> list[Draft]:
        """The node sets that a parameter stands in or acts on."""
        return [self.sets.drafts[owner.draft] for owner in self.owners[name]]

    # -- joins ----------------------------------------------------------------------------------------------------------

    def join(self, join: Join) -> None:
        if not join.aligned:
            for source in self.sets.among(join.source):
                for target in self.sets.among(join.target):
                    self._free(source, target, join.kind, 1)
            return
        a, b = join.source, join.target
        pairs = torch.stack([self.sets.set_of[a], self.sets.set_of[b]], 1)
        for source, target in pairs.unique(dim=0).tolist():
            here = (pairs[:, 0] == source) & (pairs[:, 1] == target)
            left, right = self.sets.place[a[here]], self.sets.place[b[here]]
            sizes = self.sets.drafts[source].size, self.sets.drafts[target].size
            self._free(source, target, join.kind, _groups(left, right, sizes, join.kind))

    def _free(self, source: int, target: int, kind: str, groups: int) -> None:
        if source == target or (source, target, kind) in self.free:
            return
        if kind == "other" and any((b.source, b.target) == (source, target) for b in self.blocks):
            return
        self.free[source, target, kind] = groups
        self.blocks.append(Block(source, target, None, features=0, kind=cast(BlockKind, kind), groups=groups))


def _gaps(shape: tuple[int, ...], readings: Sequence[Reading]) -> list[dict[int, Stretch]] | None:
    """The parts of a tensor outside the readings, when they all cut one and the same axis; None otherwise."""
    cuts = [reading.layout.part for reading in readings]
    if not readings or any(reading.layout.pick for reading in readings) or any(len(cut) > 2 for cut in cuts):
        return None
    axes = {axis for cut in cuts for axis, _, _ in cut}
    for axis in sorted(axes):
        covered = torch.zeros(shape[axis], dtype=torch.int64)
        for cut, reading in zip(cuts, readings, strict=True):
            here = [(start, stop) for dim, start, stop in cut if dim == axis] or [(0, shape[axis])]
            width = here[0][1] - here[0][0]
            covered[here[0][0] : here[0][1]] += math.prod(reading.layout.picked) // width
        if not set(covered.unique().tolist()) <= {0, math.prod(shape) // shape[axis]}:
            continue
        missing = (covered == 0).nonzero().flatten()
        ends = [0, *((missing[1:] - missing[:-1] != 1).nonzero().flatten() + 1).tolist(), missing.numel()]
        runs = [missing[a:b] for a, b in itertools.pairwise(ends)]
        return [{axis: Stretch(shape[axis], int(run[0]), int(run[-1]) + 1)} for run in runs]
    return None


def _groups(left: Tensor, right: Tensor, sizes: tuple[int, int], kind: str) -> int:
    """Into how many groups neurons that meet one by one fall: all of them apart where they meet in order."""
    if sizes[0] == sizes[1] and torch.equal(left, right) and left.unique().numel() == sizes[0]:
        return sizes[0]
    if kind != "attention":
        return 1
    common = math.gcd(*sizes)
    for groups in sorted((g for g in range(1, common + 1) if common % g == 0), reverse=True):
        if torch.equal(left // (sizes[0] // groups), right // (sizes[1] // groups)):
            return groups
    return 1
