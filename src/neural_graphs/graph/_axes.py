"""The axes of one tensor: what must hold between them, and how operators that move entries change them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from neural_graphs.graph._space import collapse, cut_space, freeze, split
from neural_graphs.graph._var import (
    UNIT,
    Choice,
    Space,
    Var,
    as_factors,
    cases,
    choose,
    deps_of,
    expand,
    find,
    fixed,
    has_families,
    normal,
    pivot_of,
    same_space,
    segment_size,
    segment_vars,
    set_deps,
    space_size,
)


def close(axes: Sequence[Space]) -> None:
    """Hold a tensor to the rule that dependent variables come with what they depend on, once: were the outer variable on
    two axes, as after an outer product, nobody could say on which of them the families hang."""
    mix(axes, ())


def mix(axes: Sequence[Space], dims: Iterable[int]) -> None:
    """The operator mixes positions along ``dims``: nothing on the other axes may depend on them."""
    chosen = {d % len(axes) for d in dims}
    kept = [axes[d] for d in range(len(axes)) if d not in chosen]
    while any(map(has_families, kept)):
        found: list[_Place] = []
        for k, space in enumerate(kept):
            _places(space, (*kept[:k], *kept[k + 1 :]), {}, found)
        lost = [v for v, around, decided in found if v.kind == "cases" and not _sole(around, decided, [pivot_of(v)])]
        if lost:  # variables may become the same: look again
            collapse(lost[0])
            continue
        for v, around, decided in sorted(found, key=lambda place: len(deps_of(place[0]))):
            if v.kind == "free":  # outer ones first: a dependency counts only with all of its own
                wanted = deps_of(v)
                kept_deps = _sole(around, decided, wanted)
                if kept_deps != wanted:
                    set_deps(v, kept_deps)
        return


_Place = tuple["Var", Sequence[Space], Mapping["Var", int]]
"""A variable that depends on others, the spaces beside it, and the summands that are chosen where it stands."""


def _places(space: Space, around: Sequence[Space], decided: Mapping[Var, int], found: list[_Place]) -> None:
    for segment in space:
        if not has_families((segment,)):
            continue
        for k, v in enumerate(segment):
            v = find(v)
            beside = (*around, (segment[:k] + segment[k + 1 :],))
            if v.kind == "cases" or (v.kind == "free" and deps_of(v)):
                found.append((v, beside, decided))
            if v.kind in ("product", "sum"):
                _places(v.parts, beside, decided, found)
            elif v.kind == "cases":
                for index, branch in enumerate(v.branches):
                    _places(branch, beside, {**decided, find(pivot_of(v)): index}, found)


def _sole(around: Sequence[Space], decided: Mapping[Var, int], wanted: Iterable[Var]) -> set[Var]:
    """Those of the wanted variables that have exactly one index at every position of the spaces around."""
    low, high = Counter[Var](), Counter[Var]()
    for space in around:
        least, most = _counts(space, decided)
        low.update(least)
        high.update(most)
    return {v for v in map(find, wanted) if low[v] == high[v] == 1}


def _counts(space: Space, decided: Mapping[Var, int]) -> tuple[Counter[Var], Counter[Var]]:
    """How often each variable has an index at a position of the space, at least and at most."""
    lows, most = [], Counter[Var]()
    for segment in space:
        low, high = Counter[Var](), Counter[Var]()
        for v in segment:
            v = find(v)
            low[v] += 1
            high[v] += 1
            inner = v.parts
            if v.kind == "cases":
                index = decided.get(find(pivot_of(v)))
                options = v.branches if index is None else (v.branches[index],)
                inner = tuple(s for option in options for s in option)
            elif v.kind == "sum" and v in decided:
                inner = (v.parts[decided[v]],)
            if inner:
                least, greatest = _counts(inner, decided)
                low.update(least)
                high.update(greatest)
        lows.append(low)
        most |= high
    if len(lows) == 1:
        return lows[0], most
    return Counter({v: n for v in most if (n := min(low[v] for low in lows))}), most


def order(space: Space, outer: frozenset[Var] = frozenset()) -> None:
    """Collapse cases that stand before the sum on which they hang: a type is read from the outermost factor inwards."""
    for segment in space:
        before = outer
        for v in segment:
            v = find(v)
            if v.kind == "cases" and find(pivot_of(v)) not in before:
                collapse(v)
                v = find(v)
            if v.kind in ("product", "sum"):
                order(v.parts, before)
            elif v.kind == "cases":
                for part, branch in zip(find(pivot_of(v)).parts, v.branches, strict=True):
                    order(branch, before | segment_vars(part))
            before = before | segment_vars((v,))


# -- moving entries ----------------------------------------------------------------------------------------------------


def merge(axes: Sequence[Space]) -> Space:
    """Several axes as one, row-major."""
    return (tuple(f for space in axes if space_size(space) > 1 for f in as_factors(space)),)


def reshape(axes: Sequence[Space], shape: Sequence[int]) -> list[Space]:
    """The axes of a tensor after a row-major reshape."""
    sizes = [space_size(space) for space in axes]
    if 0 in sizes or 0 in shape:
        freeze(axes)
        return [fixed(n) if n else ((),) * 0 for n in shape]
    found: list[Space] = []
    i = o = 0
    while o < len(shape) or i < len(sizes):
        if o < len(shape) and shape[o] == 1:
            found.append(UNIT)
            o += 1
            continue
        if i < len(sizes) and sizes[i] == 1:
            i += 1
            continue
        taken, wanted = [axes[i]], [shape[o]]
        have, want = sizes[i], shape[o]
        i, o = i + 1, o + 1
        while have != want:
            if have < want:
                taken.append(axes[i])
                have *= sizes[i]
                i += 1
            else:
                wanted.append(shape[o])
                want *= shape[o]
                o += 1
        rest = taken[0] if len(taken) == 1 else merge(taken)
        for n in wanted[:-1]:
            have //= n
            first, rest = split(rest, n, have)
            found.append(first)
        found.append(rest)
    return found


def narrow(axes: Sequence[Space], dim: int, start: int, stop: int) -> list[Space]:
    """The axes of a tensor after slicing ``dim`` to [start, stop). Families over the sliced axis are decided or rebuilt."""
    total = space_size(axes[dim])
    if (start, stop) == (0, total):
        return list(axes)
    if start >= stop:
        mix(axes, [dim])
        return [() if d == dim else space for d, space in enumerate(axes)]
    space = cut_space(cut_space(axes[dim], stop)[0], start)[1]
    position = 0
    chosen: list[tuple[Choice, ...]] = []
    for segment, choices in expand(axes[dim]):
        if start < position + segment_size(segment) and position < stop:
            chosen.append(choices)
        position += segment_size(segment)
    found = list(axes)
    versions = {
        d: [_decide(other, choices) for choices in chosen]
        for d, other in enumerate(axes)
        if d != dim and has_families(other)
    }
    found[dim] = space
    if all(same_space(v, options[0]) for options in versions.values() for v in options):
        for d, options in versions.items():
            found[d] = options[0]
        return found
    parts = tuple(normal(space))
    if len(parts) != len(chosen):  # cannot happen but after a freeze on the way: make the families constant
        freeze([axes[dim]])
        mix(axes, [dim])
        found[dim] = fixed(stop - start)
        return found
    pivot = Var(stop - start)
    pivot.kind, pivot.parts = "sum", parts
    found[dim] = ((pivot,),)
    for d, options in versions.items():
        found[d] = cases(pivot, options)
    return found


def _decide(space: Space, choices: Iterable[Choice]) -> Space:
    for pivot, index in choices:
        space = choose(space, find(pivot), index)
    return space
