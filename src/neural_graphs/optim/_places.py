"""Where the neurons at both ends of every piece of a wiring stand in one list, and what is known of pieces beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from neural_graphs.optim._wiring import KINDS, Wiring

STATIC = len(KINDS) + 4
"""Numbers that are known of a piece from the architecture."""


@dataclass(frozen=True, eq=False)
class Places:
    """A wiring's index tensors.

    Every piece has a place for each target neuron and then for each source neuron (one where it has no source); ``count``
    places in all, N neurons, B pieces.

    ``neuron [count]`` is the neuron's number in ``[targets; sources; nothing]`` (``2 N + 1`` rows), ``slot [count]`` where
    what is summed there is collected: ``[entering; leaving; own; nothing]`` (``3 N + 1`` rows). ``summed [count]`` is the
    number of parameters at a place, ``collected [3 N + 1]`` in a slot (1 where there is none), ``side [count]`` is 0 for
    targets, 1 for sources, ``piece [count]`` the piece. ``static [B, STATIC]``: kind, sizes and depth.
    """

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    count: int
    neurons: int
    neuron: Tensor
    slot: Tensor
    summed: Tensor
    collected: Tensor
    side: Tensor
    piece: Tensor
    static: Tensor
    numel: Tensor

    def spans(self, number: int) -> tuple[int, int, int]:
        """First place of piece ``number``'s targets, of its sources, and of the next piece."""
        after = self.targets[number + 1] if number + 1 < len(self.targets) else self.count
        return self.targets[number], self.sources[number], after


@lru_cache(maxsize=256)
def places(wiring: Wiring, device: torch.device, dtype: torch.dtype, shuffled: bool = False) -> Places:
    """The places of a wiring. ``shuffled`` takes other neurons of the same node set for those at the ends of every piece,
    so that nothing is said about who is connected with whom."""
    starts = [0]
    for size in wiring.sizes:
        starts.append(starts[-1] + size)
    total, at = starts[-1], 0
    generator = torch.Generator().manual_seed(0)
    targets, sources, neuron, slot, summed, side, piece_of = [], [], [], [], [], [], []
    for number, piece in enumerate(wiring.pieces):
        n_target, n_source, taps = piece.sizes
        first = starts[piece.target]
        ends = torch.arange(first, first + n_target)
        if shuffled:
            ends = first + torch.randperm(n_target, generator=generator)
        targets.append(at)
        neuron.append(ends)
        slot.append(ends if piece.source is not None else 2 * total + ends)
        summed.append(torch.full((n_target,), n_source * taps))
        if piece.source is None:
            begins, where = torch.full((1,), 2 * total), torch.full((1,), 3 * total)
        else:
            n_source, first = wiring.sizes[piece.source], starts[piece.source]
            begins = torch.arange(first, first + n_source)
            if shuffled:
                begins = first + torch.randperm(n_source, generator=generator)
            begins = total + begins
            where = begins
        sources.append(at + n_target)
        neuron.append(begins)
        slot.append(where)
        summed.append(torch.full((len(begins),), n_target // piece.groups * taps))
        side += [torch.zeros(n_target, dtype=torch.long), torch.ones(len(begins), dtype=torch.long)]
        piece_of.append(torch.full((n_target + len(begins),), number))
        at += n_target + len(begins)
    slots, sums = torch.cat(slot), torch.cat(summed)
    collected = torch.zeros(3 * total + 1, dtype=torch.long).index_add_(0, slots, sums).clamp_min(1)

    def made(value: Tensor, kind: torch.dtype | None = None) -> Tensor:
        return value.to(device, kind)

    return Places(
        tuple(targets), tuple(sources), at, total,
        made(torch.cat(neuron)), made(slots), made(sums, dtype), made(collected, dtype), made(torch.cat(side)),
        made(torch.cat(piece_of)), made(_static(wiring), dtype),
        made(torch.tensor([piece.numel for piece in wiring.pieces]), dtype),
    )  # fmt: skip


def _static(wiring: Wiring) -> Tensor:
    rows = []
    for piece in wiring.pieces:
        depth = wiring.depths[piece.target]
        rows.append(
            [
                *(float(piece.kind == kind) for kind in KINDS),
                math.log10(piece.sizes[0]) - 1,
                math.log10(piece.fan_in) - 1,
                depth / max(wiring.depth, 1) - 0.5,
                1 / max(1, 1 + wiring.depth - depth),
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)
