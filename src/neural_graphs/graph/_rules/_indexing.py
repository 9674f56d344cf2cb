"""Operators that look entries up by index: what is indexed is fixed, the indices' own axes pass through."""

from __future__ import annotations

import torch
from torch.fx import Node

from neural_graphs.graph._axes import mix, narrow
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule, unify_all
from neural_graphs.graph._rules._shape import join
from neural_graphs.graph._space import freeze
from neural_graphs.graph._var import UNIT, fixed, space_size

MOST_CHOSEN = 64
"""A constant list of more indices than this fixes the axis instead of being followed."""


def take(x: Axes, dim: int, positions: list[int]) -> Axes:
    """Entries of ``dim`` by number, in order: runs of neighbours are slices."""
    n = space_size(x[dim])
    runs: list[tuple[int, int]] = []
    for p in (p % n for p in positions):
        if runs and runs[-1][1] == p:
            runs[-1] = (runs[-1][0], p + 1)
        else:
            runs.append((p, p + 1))
    parts = [narrow(x, dim, *run) for run in runs]
    return parts[0] if len(parts) == 1 else join(parts, dim)


@rule("index")
def index(call: Call) -> Axes:
    """Advanced indexing ``x[:, i, j]``."""
    x, indices = call.axes("self"), list(call["indices"])
    indices += [None] * (len(x) - len(indices))
    used = [d for d, i in enumerate(indices) if i is not None]
    nodes = [i for i in indices if isinstance(i, Node)]
    if any(_is_mask(n) for n in nodes):
        return _masked(call, x, indices)
    chosen = call.constant(nodes[0]) if len(nodes) == 1 else None
    if chosen is not None and chosen.dim() == 1 and 0 < chosen.numel() <= MOST_CHOSEN:
        return take(x, used[0], chosen.tolist())
    mix(x, used)
    freeze([x[d] for d in used])
    looked_up = broadcast([call.axes(n) for n in nodes])
    adjacent = used == list(range(used[0], used[-1] + 1))
    before = x[: used[0]] if adjacent else []
    after = [s for d, s in enumerate(x) if d not in used and (not adjacent or d > used[-1])]
    return [*before, *looked_up, *after]


def _is_mask(node: Node) -> bool:
    return node.meta["val"].dtype in (torch.bool, torch.uint8)


def _masked(call: Call, x: Axes, indices: list[Node | None]) -> Axes:
    """``x[mask]``: the axes under the mask become one of the entries chosen."""
    used = [d for d, i in enumerate(indices) if i is not None]
    if len(used) != 1:
        raise Unsupported
    mask = call.axes(indices[used[0]])
    under = range(used[0], used[0] + len(mask))
    mix(x, under)
    freeze([*mask, *(x[d] for d in under)])
    return [*x[: under.start], fixed(call.shape[under.start]), *x[under.stop :]]


@rule("index_select")
def index_select(call: Call) -> Axes:
    x = call.input
    if not x:
        raise Unsupported
    dim = call.integer("dim") % len(x)
    chosen = call.constant(call["index"])
    if chosen is not None and chosen.dim() == 1 and 0 < chosen.numel() <= MOST_CHOSEN:
        return take(x, dim, chosen.tolist())
    mix(x, [dim])
    freeze([x[dim]])
    x[dim] = call.axes("index")[0] if call.axes("index") else UNIT
    return x


@rule("gather")
def gather(call: Call) -> Axes:
    x, indices = call.axes("self"), call.axes("index")
    if not x or not indices:
        raise Unsupported
    dim = call.integer("dim") % len(x)
    mix(x, [dim])
    freeze([x[dim]])
    _meet(x, indices, dim)
    return indices


@rule("take_along_dim")
def take_along_dim(call: Call) -> Axes:
    """``gather`` with broadcasting; without a dim, on the flattened tensor."""
    x, indices = call.axes("self"), call.axes("indices")
    if call["dim"] is None or not x or len(x) != len(indices):
        raise Unsupported
    dim = call.integer("dim") % len(x)
    mix(x, [dim])
    freeze([x[dim]])
    return broadcast([[UNIT if d == dim else space for d, space in enumerate(x)], indices])


def _meet(x: Axes, indices: Axes, dim: int) -> None:
    for d, (a, b) in enumerate(zip(x, indices, strict=True)):
        if d != dim and space_size(a) != space_size(b):
            freeze([a, b])
    unify_all(
        (a, b) for d, (a, b) in enumerate(zip(x, indices, strict=True)) if d != dim and space_size(a) == space_size(b)
    )


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Axes:
    x, indices = call.axes("self"), call.axes("index")
    if not x or not indices:
        raise Unsupported
    dim = call.integer("dim") % len(x)
    for axes in (x, indices):
        mix(axes, [dim])
    freeze([x[dim], indices[dim]])
    _meet(x, indices, dim)
    if call.has("src"):
        source = call.axes("src")
        freeze([source[dim]])
        _meet(source, indices, dim)
    return x


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(call: Call) -> Axes:
    x = call.axes("self")
    if not x:
        raise Unsupported
    dim = call.integer("dim") % len(x)
    mix(x, [dim])
    freeze([x[dim]])
    if call.has("source"):
        source = call.axes("source")
        if len(source) != len(x):
            raise Unsupported
        unify_all((a, b) for d, (a, b) in enumerate(zip(x, source, strict=True)) if d != dim)
        unify_all([(source[dim], call.axes("index")[0])] if call.axes("index") else [])
    return x


@rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> Axes:
    """``x[i] = v``: what is indexed is fixed; axes that are written whole are those of the value."""
    x, value, indices = call.axes("self"), call.axes("values"), list(call["indices"])
    used = [d for d, i in enumerate(indices) if i is not None]
    nodes = [i for i in indices if isinstance(i, Node)]
    if len(nodes) == 1 and _is_mask(nodes[0]) and all(space_size(space) == 1 for space in value):
        mask = call.axes(nodes[0])  # one value wherever the mask says so
        return broadcast([x, [*[UNIT] * used[0], *mask, *[UNIT] * (len(x) - used[0] - len(mask))]])
    mix(x, used)
    freeze([x[d] for d in used])
    masks = any(n.meta["val"].dim() != 1 or _is_mask(n) for n in nodes)
    if masks or used != [0]:
        if value:
            freeze([*x, *value])
        for n in nodes:
            freeze(call.axes(n))
        return x
    written = [call.axes(nodes[0])[0], *x[1:]]
    unify_all((a, written[d]) for d, a in enumerate(value, len(written) - len(value)) if space_size(a) > 1)
    return x


@rule("one_hot")
def one_hot(call: Call) -> Axes:
    return [*call.input, fixed(call.shape[-1])]


@rule("bucketize")
def bucketize(call: Call) -> Axes:
    """How many of the boundaries, which must be sorted, stand below each value."""
    freeze(call.axes("boundaries"))
    return call.axes("self")
