"""How group elements act on tensors: which entry moves where, and which factor it takes.

The axes of a tensor act one by one, except where a class on one axis depends on a class on another (the input channels of a
grouped convolution depend on the group, which stands on the output axis): those axes form one group and move jointly.
Within a group, every choice of pieces (see ``Axis.pieces``) is a *cell*, a strided grid of entries in which each digit is
one class or fixed. What a cell's digits become under an element is a broadcast of the element's tables over that grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._axis import Axis, Digit

Element = dict[str, Tensor]
"""A group element. For every symmetry class one index tensor ``[n]``: position k of the permuted network holds what stood
at position ``element[class][k]`` before. A class that depends on others has one permutation for each of their (new) indices,
``[*sizes of the others, n]``. For every rescaling, under ``kind:number``, one factor per neuron of its class, in the same
shape. All of them may carry a leading network axis ``[B, ...]``. What is not named stays as it is."""

Over = Mapping[str, tuple[str, ...]]


class Slot(NamedTuple):
    """One digit of a cell. ``outer`` are the cell's digits that its class depends on, ``dim`` the axis it stands on and
    ``piece`` the number of the piece of that axis (see ``Axis.pieces``)."""

    symmetry: str | None
    size: int
    stride: int
    dim: int
    outer: tuple[int, ...]
    piece: int


class Cell(NamedTuple):
    offset: int
    slots: tuple[Slot, ...]


class AxisGroup(NamedTuple):
    """Axes that move together: their numbers (ascending), sizes, and the cells that tile their joint grid."""

    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    cells: tuple[Cell, ...]


def axis_groups(parameter: str, axes: tuple[Axis, ...], over: Over) -> tuple[AxisGroup, ...]:
    """The groups of moving axes. Raises ``UserError`` where a dependent class lacks a class it depends on."""
    links = {dim: {dim} for dim, axis in enumerate(axes) if axis.moves}
    for dim in list(links):
        for other in _other_dims(parameter, axes, dim, over):
            joined = links[dim] | links[other]
            for member in joined:
                links[member] = joined
    groups = []
    for dim, members in links.items():
        if dim == min(members):
            dims = tuple(sorted(members))
            sizes = tuple(axes[d].size for d in dims)
            groups.append(AxisGroup(dims, sizes, tuple(_cells(parameter, axes, dims, over))))
    return tuple(groups)


def _other_dims(parameter: str, axes: tuple[Axis, ...], dim: int, over: Over) -> set[int]:
    """Which other axes hold the classes that the classes of axis ``dim`` depend on."""
    found: set[int] = set()
    for _, digits in axes[dim].pieces:
        here = {digit.symmetry for digit in digits}
        for name in here:
            for needed in over.get(name, ()) if name is not None else ():
                if needed in here:
                    continue
                others = [d for d, axis in enumerate(axes) if d != dim and needed in dict(axis.classes)]
                counts = [[digit.symmetry for digit in p.digits].count(needed) for d in others for p in axes[d].pieces]
                if len(others) != 1 or any(count != 1 for count in counts):
                    where = f"on {len(others)} other axes" if len(others) != 1 else "on only a part of another axis"
                    raise UserError(
                        f"{parameter}: class {name} depends on {needed}, which stands {where}; freeze {name}"
                    )
                found.add(others[0])
    return found


def _cells(parameter: str, axes: tuple[Axis, ...], dims: tuple[int, ...], over: Over) -> list[Cell]:
    cells = []
    for pieces in product(*(enumerate(axes[dim].pieces) for dim in dims)):
        offset, digits, numbers = 0, [], []
        for position, (dim, (number, piece)) in enumerate(zip(dims, pieces, strict=True)):
            step = math.prod(axes[d].size for d in dims[position + 1 :])
            offset += piece.offset * step
            digits += [(dim, digit._replace(stride=digit.stride * step)) for digit in piece.digits]
            numbers += [number] * len(piece.digits)
        slots = [Slot(*digit, dim, _outer(digits, k, over), numbers[k]) for k, (dim, digit) in enumerate(digits)]
        for slot in slots:
            inner = dict(zip(over.get(slot.symmetry or "", ()), slot.outer, strict=True))
            for k in slot.outer:
                needed = over.get(slots[k].symmetry or "", ())
                if tuple(inner[name] for name in needed) != slots[k].outer:
                    raise UserError(f"{parameter}: {slot.symmetry} and {slots[k].symmetry} depend on different axes")
        cells.append(Cell(offset, tuple(slots)))
    return cells


def _outer(digits: list[tuple[int, Digit]], k: int, over: Over) -> tuple[int, ...]:
    """For the classes that digit k depends on, the digits that give their index: on the same axis the last before k, else
    the first behind it; else the one on another axis."""
    dim, digit = digits[k]
    found = []
    for needed in over.get(digit.symmetry, ()) if digit.symmetry is not None else ():
        places = [j for j, (_, other) in enumerate(digits) if other.symmetry == needed]
        places = [j for j in places if digits[j][0] == dim] or places
        before = [j for j in places if j < k]
        found.append(before[-1] if before else places[0])
    return tuple(found)


def align(table: Tensor, where: Sequence[int], ndim: int, batched: bool) -> Tensor:
    """``table [B?, ...]`` with its axes at places ``where`` of ``ndim`` broadcast axes (plus the batch axis, if any)."""
    own = len(where)
    lead = table.dim() - own
    order = sorted(range(own), key=where.__getitem__)
    shape = [1] * ndim
    for j in range(own):
        shape[where[j]] = table.shape[lead + j]
    table = table.permute(*range(lead), *(lead + j for j in order))
    return table.reshape(*(table.shape[:lead] if lead else (1,) * batched), *shape)


def _grid(flat: Tensor, cell: Cell) -> Tensor:
    """The entries of a cell, as a view of the flat joint grid ``[B?, N]``: ``[B?, *sizes of the digits]``."""
    lead = flat.dim() - 1
    sizes = [*flat.shape[:lead], *(slot.size for slot in cell.slots)]
    return flat.as_strided(sizes, [*flat.stride()[:lead], *(slot.stride for slot in cell.slots)], cell.offset)


def _lead(tables: Sequence[tuple[Tensor, int]]) -> tuple[int, ...]:
    """``(B,)`` if one of the tables, given with their own number of axes, has a batch axis, else ``()``."""
    return next(((table.shape[0],) for table, own in tables if table.dim() > own), ())


def sources(group: AxisGroup, element: Element) -> Tensor | None:
    """Where each entry of the group's joint grid comes from: ``[N]`` or ``[B, N]``; None if nothing moves."""
    tables = [
        (element[slot.symmetry], len(slot.outer) + 1)
        for cell in group.cells
        for slot in cell.slots
        if slot.symmetry in element
    ]
    if not tables:
        return None
    if len(group.cells) == 1 and len(group.cells[0].slots) == 1 and not group.cells[0].slots[0].outer:
        return tables[0][0]
    lead = _lead(tables)
    index = torch.empty(*lead, math.prod(group.sizes), dtype=torch.int64)
    for cell in group.cells:
        grid = _grid(index, cell).fill_(cell.offset)
        for k, slot in enumerate(cell.slots):
            if slot.symmetry in element:
                digit = align(element[slot.symmetry], (*slot.outer, k), len(cell.slots), bool(lead))
            else:
                digit = align(torch.arange(slot.size), (k,), len(cell.slots), bool(lead))
            grid.add_(digit.to(index.device), alpha=slot.stride)
    return index


def field(group: AxisGroup, dim: int, symmetry: str, vector: Tensor, pieces: tuple[int, ...] = ()) -> Tensor:
    """``vector``, one factor per neuron of a class, at the class's places on axis ``dim`` (on those ``pieces`` of it, if
    named), 1 elsewhere: ``[B?, *group.sizes]``. Where the class stands twice in a place (a flattened outer product), its
    factors multiply."""
    own = next(len(s.outer) + 1 for cell in group.cells for s in cell.slots if s.symmetry == symmetry)
    lead = _lead([(vector, own)])
    flat = torch.ones((*lead, math.prod(group.sizes)), dtype=vector.dtype)
    for cell in group.cells:
        for k, slot in enumerate(cell.slots):
            if slot.symmetry == symmetry and slot.dim == dim and (not pieces or slot.piece in pieces):
                _grid(flat, cell).mul_(align(vector.cpu(), (*slot.outer, k), len(cell.slots), bool(lead)))
    return flat.view(*lead, *group.sizes)


def gather(value: Tensor, dims: tuple[int, ...], index: Tensor, batched: bool) -> Tensor:
    """``value`` with the axes ``dims`` (counted without the batch axis), taken as one, reordered by ``index``."""
    shift = int(batched)
    first, last = dims[0] + shift, dims[-1] + shift
    if len(dims) == 1:
        return _select(value, first, index)
    together = [first + k for k in range(len(dims))]
    places = [dim + shift for dim in dims]
    value = value.movedim(places, together)
    sizes = value.shape[first : first + len(dims)]
    value = _select(value.flatten(first, first + len(dims) - 1), first, index).unflatten(first, sizes)
    return value if last == together[-1] else value.movedim(together, places).contiguous()


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _select(value: Tensor, dim: int, index: Tensor) -> Tensor:
    index = index.to(value.device)
    if index.dim() == 1:
        return value.index_select(dim, index)
    if dim == 1:  # rows of all networks as one list: whole rows are copied at once
        networks = torch.arange(index.shape[0], device=index.device).unsqueeze(-1) * value.shape[1]
        return value.flatten(0, 1).index_select(0, (index + networks).flatten()).unflatten(0, index.shape)
    shape = [1] * value.dim()
    shape[0], shape[dim] = index.shape
    tiny = value.is_floating_point() and value.element_size() == 1
    if tiny or value.dtype in (torch.uint16, torch.uint32, torch.uint64):
        bits = value.view(_BITS[value.element_size()])  # types that torch cannot gather: move their bits
        return bits.take_along_dim(index.view(shape), dim).view(value.dtype)
    return value.take_along_dim(index.view(shape), dim)
