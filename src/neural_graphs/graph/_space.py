"""Types of tensor axes, and their unification: the algebra under the tracer.

A *space* is the index set of one tensor axis, seen as a concatenation (sum) of products of *variables*. A variable is a
set of interchangeable positions until something distinguishes them. Operators of a network put constraints on the spaces of
their operands: a linear layer's input axis and its weight's second axis are the same space, a slice cuts a space in two, a
reshape splits it into a product, an input's positions are fixed. Solving the constraints is type inference by unification;
every variable that is free at the end may be permuted arbitrarily, by the same permutation wherever it occurs, and the
network cannot notice. The group is therefore a proof, not a guess: it can come out too small, never too large.

A variable made by splitting an axis (the inner dimension of attention heads) may take a permutation *per index* of the outer
variable: it depends on it (``deps``). Such families give the wreath products of attention and grouped convolutions. Every
tensor that has a dependent variable must also have what it depends on; ``close`` removes a dependency where that fails.

State of a variable, after ``find``:
    free       nothing known; ``deps`` are the variables it is a family over
    fixed      its positions are distinguished
    product    it is the product of other variables
    sum        it is the concatenation of spaces
    cases      its outer variable is a sum, and it is another space in each summand of that (packed q, k and v)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Segment = tuple["Var", ...]
Space = tuple[Segment, ...]

UNIT: Space = ((),)
"""The space of an axis of size 1."""

MOST_CASES = 64
"""A distinguished outer variable of more positions than this makes its families constant instead of splitting them."""


class SizeError(ValueError):
    """A constraint between axes of different sizes."""


class Var:
    """A variable: see the module's docstring. Compare with ``is``, after ``find``."""

    __slots__ = ("branches", "copies", "deps", "kind", "link", "parts", "pivot", "size", "users")

    def __init__(self, size: int, deps: Iterable[Var] = ()) -> None:
        self.size = size
        self.kind: Literal["free", "fixed", "product", "sum", "cases"] = "free"
        self.link: Var | None = None
        self.deps: set[Var] = set()
        self.users: set[Var] = set()  # free variables that may depend on this one
        self.parts: Space = ()  # product: its one segment; sum: the summands
        self.pivot: Var | None = None  # cases: the sum variable on which it hangs
        self.branches: tuple[Space, ...] = ()  # cases: one space per summand of the pivot
        self.copies: dict[tuple[Var, int], Var] = {}  # sum: what it is in a summand of another
        _set_deps(self, deps)

    def __repr__(self) -> str:
        return f"{self.kind}{self.size}@{id(self) % 9973}"


def find(v: Var) -> Var:
    while v.link is not None:
        if v.link.link is not None:
            v.link = v.link.link
        v = v.link
    return v


def fresh(size: int) -> Space:
    """A space about which nothing is known."""
    return UNIT if size == 1 else ((Var(size),),)


def family(size: int, axes: Iterable[Space]) -> Space:
    """A new axis of a tensor with these others: nothing is known about it, so it may be a family over all of them."""
    if size == 1:
        return UNIT
    return ((Var(size, set().union(*map(everywhere, axes))),),)


def fixed(size: int) -> Space:
    """A space whose positions are all distinguished."""
    if size == 1:
        return UNIT
    v = Var(size)
    v.kind = "fixed"
    return ((v,),)


def segment_size(segment: Segment) -> int:
    return math.prod(v.size for v in segment)


def space_size(space: Space) -> int:
    return sum(map(segment_size, space))


# -- dependencies -----------------------------------------------------------------------------------------------------------


def deps_of(v: Var) -> set[Var]:
    """The free variables that ``v`` (free) is a family over."""
    found: set[Var] = set()
    for d in v.deps:
        found |= _free_parts(d)
    found.discard(v)
    return found


def _free_parts(v: Var) -> set[Var]:
    """A dependency on a product is one on its factors; on anything else that is not free, none."""
    v = find(v)
    if v.kind == "free":
        return {v}
    if v.kind == "product":
        return set().union(*map(_free_parts, v.parts[0])) if v.parts[0] else set()
    return set()


def _set_deps(v: Var, deps: Iterable[Var]) -> None:
    """Set the dependencies of a free variable, closed: a dependency counts only with all of its own dependencies."""
    wanted = set().union(*map(_free_parts, deps)) - {v}
    while True:
        open_ = {d for d in wanted if not deps_of(d) <= wanted}
        if not open_:
            break
        wanted -= open_
    v.deps = wanted
    for d in wanted:
        d.users.add(v)


def _dependents(v: Var) -> list[Var]:
    found = {find(u) for u in v.users}
    return [u for u in found if u.kind == "free" and u is not v and v in deps_of(u)]


def present(spaces: Iterable[Space]) -> set[Var]:
    """Every variable that occurs in these spaces, at any depth."""
    found: set[Var] = set()
    stack = [v for space in spaces for segment in space for v in segment]
    while stack:
        v = find(stack.pop())
        if v in found:
            continue
        found.add(v)
        for space in (v.parts, *v.branches):
            stack += [u for segment in space for u in segment]
    return found


def everywhere(space: Space) -> set[Var]:
    """The variables that have an index at every position of the space."""
    return set.intersection(*(_along(segment) for segment in space)) if space else set()


def _along(segment: Segment) -> set[Var]:
    found: set[Var] = set()
    for v in segment:
        v = find(v)
        found.add(v)
        if v.kind in ("product", "sum"):
            found |= everywhere(v.parts)
        elif v.kind == "cases":
            found |= set.intersection(*map(everywhere, v.branches))
    return found


def confine(space: Space, allowed: set[Var]) -> None:
    """Remove every dependency on a variable that is neither in ``allowed`` nor beside the dependent one in its product:
    families become constant along it."""
    for segment in space:
        within = allowed | _along(segment)
        for v in sorted(map(find, segment), key=lambda v: len(deps_of(v))):  # a dependency before what depends on it
            _confine(v, within)


def _confine(v: Var, allowed: set[Var]) -> None:
    if v.kind == "cases" and find(_pivot(v)) not in allowed:
        collapse(v)
        v = find(v)
    if v.kind == "free":
        if not deps_of(v) <= allowed:
            _set_deps(v, deps_of(v) & allowed)
    elif v.kind in ("product", "sum"):
        confine(v.parts, allowed)
    elif v.kind == "cases":
        for part, branch in zip(find(_pivot(v)).parts, v.branches, strict=True):
            confine(branch, allowed | _along(part))


def close(axes: Sequence[Space]) -> None:
    """Hold a tensor to the rule that dependent variables come with what they depend on, once: were the outer variable on
    two axes, as after an outer product, nobody could say on which of them the families hang."""
    mix(axes, ())


def mix(axes: Sequence[Space], dims: Iterable[int]) -> None:
    """The operator mixes positions along ``dims``: nothing on the other axes may depend on them."""
    chosen = {d % len(axes) for d in dims}
    kept = [axes[d] for d in range(len(axes)) if d not in chosen]
    while any(map(_depends, kept)):
        found: list[_Place] = []
        for k, space in enumerate(kept):
            _places(space, (*kept[:k], *kept[k + 1 :]), {}, found)
        lost = [v for v, around, decided in found if v.kind == "cases" and not _sole(around, decided, [_pivot(v)])]
        if lost:  # variables may become the same: look again
            collapse(lost[0])
            continue
        for v, around, decided in sorted(found, key=lambda place: len(deps_of(place[0]))):
            if v.kind == "free":  # outer ones first: a dependency counts only with all of its own
                wanted = deps_of(v)
                kept_deps = _sole(around, decided, wanted)
                if kept_deps != wanted:
                    _set_deps(v, kept_deps)
        return


_Place = tuple["Var", Sequence[Space], Mapping["Var", int]]
"""A variable that depends on others, the spaces beside it, and the summands that are chosen where it stands."""


def _places(space: Space, around: Sequence[Space], decided: Mapping[Var, int], found: list[_Place]) -> None:
    for segment in space:
        if not _depends((segment,)):
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
                    _places(branch, beside, {**decided, find(_pivot(v)): index}, found)


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
                index = decided.get(find(_pivot(v)))
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
            if v.kind == "cases" and find(_pivot(v)) not in before:
                collapse(v)
                v = find(v)
            if v.kind in ("product", "sum"):
                order(v.parts, before)
            elif v.kind == "cases":
                for part, branch in zip(find(_pivot(v)).parts, v.branches, strict=True):
                    order(branch, before | _along(part))
            before = before | _along((v,))


def _depends(space: Space) -> bool:
    return any(v.kind == "cases" or (v.kind == "free" and v.deps) for v in present([space]))


def _pivot(v: Var) -> Var:
    assert v.pivot is not None
    return v.pivot


def collapse(v: Var) -> None:
    """Make a variable of kind ``cases`` the same in all cases."""
    pivot, branches = find(_pivot(v)), v.branches
    inner = present([pivot.parts])
    first = branches[0]
    for branch in branches:
        confine(branch, _all_deps([branch]) - inner)
    v.kind, v.pivot, v.branches, v.parts = "sum", None, (), first
    for branch in branches[1:]:
        unify(first, branch)
    if len(first) == 1:
        v.kind = "product"


def _all_deps(spaces: Iterable[Space]) -> set[Var]:
    found: set[Var] = set()
    for v in present(spaces):
        if v.kind == "free":
            found |= deps_of(v)
        elif v.kind == "cases":
            found.add(find(_pivot(v)))
    return found


# -- refinement -------------------------------------------------------------------------------------------------------------


def refine_sum(v: Var, parts: Space) -> None:
    """The free variable ``v`` turns out to be a concatenation; what depends on it splits into cases."""
    assert v.kind == "free" and space_size(parts) == v.size
    outer = deps_of(v)
    for part in parts:
        confine((part,), outer)
    dependents = _dependents(v)
    v.kind, v.parts, v.deps = "sum", parts, set()
    if not dependents:
        return
    before = {u: _raw_deps(u) for u in dependents}
    branches: dict[Var, list[Space]] = {u: [] for u in dependents}
    for part in parts:
        copies = {u: Var(u.size) for u in dependents}
        flat = set().union(*map(_free_parts, part)) if part else set()
        for u in sorted(dependents, key=lambda u: len(before[u])):  # a dependency before what depends on it
            _set_deps(copies[u], {copies.get(d, d) for d in before[u] if d is not v} | flat)
            branches[u].append(((copies[u],),))
    for u in dependents:
        u.kind, u.pivot, u.branches, u.deps = "cases", v, tuple(branches[u]), set()


def _raw_deps(v: Var) -> set[Var]:
    """Like ``deps_of``, while a dependency may just have become a sum."""
    found: set[Var] = set()
    for d in v.deps:
        d = find(d)
        found |= {d} if d.kind == "sum" else _free_parts(d)
    found.discard(v)
    return found


def refine_product(v: Var, factors: Segment) -> None:
    """The free variable ``v`` turns out to be a product."""
    assert v.kind == "free" and segment_size(factors) == v.size
    outer = deps_of(v)
    confine((factors,), outer - {v})
    users = set(v.users)
    if any(find(f).kind in ("sum", "cases") for f in factors):
        for u in _dependents(v):
            _set_deps(u, deps_of(u) - {v})
    v.kind, v.parts, v.deps = "product", (factors,), set()
    for f in _free_parts(v):
        f.users |= users


def freeze(spaces: Iterable[Space]) -> None:
    """Distinguish all positions of these spaces."""
    free = [v for v in present(spaces) if v.kind == "free"]
    for v in sorted(free, key=lambda v: -len(deps_of(v))):  # families first: nothing then needs to split into cases
        _freeze(v)


def _freeze(v: Var) -> None:
    v = find(v)
    if v.kind != "free":
        freeze([((v,),)])
        return
    dependents = _dependents(v)
    if dependents and v.size <= MOST_CASES:
        refine_sum(v, ((),) * v.size)
        return
    for u in dependents:
        _set_deps(u, deps_of(u) - {v})
    v.kind, v.deps = "fixed", set()


# -- normal form ------------------------------------------------------------------------------------------------------------

Choice = tuple[Var, int]
"""Summand ``index`` of a sum variable."""


def expand(space: Space) -> list[tuple[Segment, tuple[Choice, ...]]]:
    """The space as a flat sum: segments whose leading factor is neither a sum nor a product, each with the choices of
    summands that lead to it. Products inside are spliced."""
    found: list[tuple[Segment, tuple[Choice, ...]]] = []
    stack: list[tuple[Segment, tuple[Choice, ...]]] = [(segment, ()) for segment in reversed(space)]
    while stack:
        segment, choices = stack.pop()
        flat = splice(segment)
        if flat and flat[0].kind == "sum":
            head, rest = flat[0], flat[1:]
            for index in range(len(head.parts) - 1, -1, -1):
                chosen = tuple(f for r in rest for f in _as_factors(choose(((r,),), head, index)))
                stack.append((head.parts[index] + chosen, (*choices, (head, index))))
            continue
        found.append((flat, choices))
    return found


def splice(segment: Segment) -> Segment:
    """The segment with links followed and products replaced by their factors."""
    found: list[Var] = []
    for v in segment:
        v = find(v)
        if v.kind == "product":
            found += splice(v.parts[0])
        else:
            found.append(v)
    return tuple(found)


def normal(space: Space) -> list[Segment]:
    return [segment for segment, _ in expand(space)]


def choose(space: Space, pivot: Var, index: int) -> Space:
    """``space`` in summand ``index`` of ``pivot``: cases that hang on it are decided."""
    return tuple(tuple(f for v in segment for f in _choose(v, pivot, index)) for segment in space)


def _choose(v: Var, pivot: Var, index: int) -> Segment:
    v = find(v)
    if v.kind == "product":
        return tuple(f for u in v.parts[0] for f in _choose(u, pivot, index))
    if v.kind == "sum":
        parts = choose(v.parts, pivot, index)
        return (v,) if _same(parts, v.parts) else (_copy(v, pivot, index, parts),)
    if v.kind != "cases":
        return (v,)
    own = find(_pivot(v))
    if own is pivot:
        return _as_factors(v.branches[index])
    branches = [choose(branch, pivot, index) for branch in v.branches]
    hung = find(_choose(own, pivot, index)[0])  # what hangs on a sum hangs on its copy in the copy
    if all(_same(a, b) for a, b in zip(branches, v.branches, strict=True)) and hung is own:
        return (v,)
    copied = Var(v.size)
    copied.kind, copied.pivot, copied.branches = "cases", hung, tuple(branches)
    return (copied,)


def _copy(v: Var, pivot: Var, index: int, parts: Space) -> Var:
    """The sum ``v`` in summand ``index`` of ``pivot``: one variable, however often it is asked for."""
    known = v.copies.get((pivot, index))
    if known is None or not _same(find(known).parts, parts):
        known = v.copies[pivot, index] = box(parts)
    return find(known)


def _same(a: Space, b: Space) -> bool:
    return len(a) == len(b) and all(
        len(s) == len(t) and all(find(u) is find(v) for u, v in zip(s, t, strict=True))
        for s, t in zip(a, b, strict=True)
    )


def box(space: Space) -> Var:
    """A space of more than one position as one variable."""
    if len(space) == 1 and len(space[0]) == 1:
        return find(space[0][0])
    v = Var(space_size(space))
    v.kind, v.parts = ("product" if len(space) == 1 else "sum"), space
    return v


def _as_factors(space: Space) -> Segment:
    return space[0] if len(space) == 1 else (box(space),)


# -- unification ------------------------------------------------------------------------------------------------------------


def unify(a: Space, b: Space) -> None:
    """Two axes are the same axis."""
    if a is b or _same(a, b):
        return
    if space_size(a) != space_size(b):
        raise SizeError(f"axes of {space_size(a)} and {space_size(b)} positions cannot be the same")
    if len(a) == len(b) == 1 and len(a[0]) == len(b[0]) == 1:
        _unify_vars(a[0][0], b[0][0])
        return
    left, right = list(reversed(a)), list(reversed(b))
    while left:
        left[-1:] = reversed(normal((left[-1],)))
        right[-1:] = reversed(normal((right[-1],)))
        s, t = left.pop(), right.pop()
        if (m := segment_size(s)) != (n := segment_size(t)):
            if m > n:
                head, rest = cut(s, n)
                left += [*reversed(head + rest)]
                right.append(t)
            else:
                head, rest = cut(t, m)
                right += [*reversed(head + rest)]
                left.append(s)
            continue
        _unify_segments(s, t)


def _unify_vars(u: Var, v: Var) -> None:
    u, v = find(u), find(v)
    if u is v:
        return
    if u.kind == "fixed" or v.kind == "fixed":
        if v.kind == "fixed":
            u, v = v, u
        freeze([((v,),)])
        v = find(v)
        if u is not v and u not in present([((v,),)]):
            _redirect(u, v)  # what hangs on the positions of v, case by case, hangs on those of u
        return
    if u.kind == "cases" and v.kind == "cases" and find(_pivot(u)) is find(_pivot(v)):
        for branch, other in zip(u.branches, v.branches, strict=True):
            unify(branch, other)
        _redirect(u, v)
        return
    for w in (u, v):
        if w.kind == "cases":
            collapse(w)
            _unify_vars(u, v)
            return
    if u.kind == "free" and v.kind == "free":
        common = deps_of(u) & deps_of(v)
        v.users |= u.users
        _redirect(u, v)
        _set_deps(v, common)
        return
    if v.kind == "free":
        u, v = v, u
    if u.kind == "free":
        if v in present([v.parts]) or u in present([((v,),)]):  # a space inside itself: only fixed positions fit
            freeze([((u, v),)])
        elif v.kind == "product":
            refine_product(u, v.parts[0])
        else:
            refine_sum(u, v.parts)
            _redirect(u, v)
        return
    if u.kind == v.kind == "sum" and [segment_size(s) for s in u.parts] == [segment_size(t) for t in v.parts]:
        pairs = list(zip(u.parts, v.parts, strict=True))
        _redirect(u, v)  # before its parts: what hangs on u now hangs on v
        for s, t in pairs:
            unify((s,), (t,))
        return
    # Spaces of different make: compare them piece by piece.
    first, second = tuple(normal(((u,),))), tuple(normal(((v,),)))
    if len(first) == len(second) == 1:
        _unify_segments(first[0], second[0])
    else:
        unify(first, second)


def _redirect(u: Var, v: Var) -> None:
    """From now on ``u`` is ``v``."""
    u.link, u.deps, u.users, u.parts, u.branches, u.pivot = v, set(), set(), (), (), None


def _unify_segments(s: Segment, t: Segment) -> None:
    """Two products of the same size. Common outer factors are matched; a variable against a product becomes that product."""
    s, t = splice(s), splice(t)
    if s == t:
        return
    if _is_fixed(s) or _is_fixed(t):
        freeze([(s, t)])
        return
    if len(s) == 1 and len(t) == 1:
        _unify_vars(s[0], t[0])
        return
    if len(s) == 1 or len(t) == 1:
        one, many = (s[0], t) if len(s) == 1 else (t[0], s)
        if one.kind == "free":
            if one in present([(many,)]):
                freeze([(many,)])
            else:
                refine_product(one, many)
            return
        if one.kind == "cases":
            collapse(one)
            unify((s,), (t,))
            return
        unify((s,), (t,))  # a sum: ``normal`` takes it apart
        return
    if s[0].size < t[0].size:
        s, t = t, s
    a, b = s[0], t[0]
    if a.size == b.size:
        _unify_vars(a, b)
        _unify_segments(s[1:], t[1:])
    elif a.size % b.size == 0:
        outer, inner = split(((a,),), b.size, a.size // b.size)
        unify(outer, ((b,),))
        _unify_segments(splice(_as_factors(inner) + s[1:]), t[1:])
    else:
        freeze([(s, t)])


def _is_fixed(segment: Segment) -> bool:
    return all(v.kind == "fixed" for v in segment)


# -- taking apart -----------------------------------------------------------------------------------------------------------


def cut(segment: Segment, size: int) -> tuple[Space, Space]:
    """The first ``size`` positions of a product, and the rest."""
    segment = splice(segment)
    total = segment_size(segment)
    if size in (0, total):
        return ((), (segment,)) if size == 0 else ((segment,), ())
    head, rest = segment[0], segment[1:]
    inner = segment_size(rest)
    if head.kind == "fixed" and not rest:
        return fixed(size), fixed(total - size)
    if head.kind == "cases":
        return _cut_cases(segment, size)
    if head.kind in ("free", "fixed"):
        whole, extra = divmod(size, inner)
        if extra and head.size > MOST_CASES:
            freeze([(segment,)])
            return fixed(size), fixed(total - size)
        sizes = [n for n in (whole, 1 if extra else 0, head.size - whole - (1 if extra else 0)) if n]
        outer = deps_of(head) if head.kind == "free" else set()
        parts: Space = tuple(() if n == 1 else (_like(head, n, outer),) for n in sizes)
        if head.kind == "fixed":
            head = box(parts)
            segment = (head, *rest)
        else:
            refine_sum(head, parts)
    return cut_space((segment,), size)


def _like(v: Var, size: int, deps: Iterable[Var]) -> Var:
    found = Var(size, deps)
    if v.kind == "fixed":
        found.kind = "fixed"
    return found


def _cut_cases(segment: Segment, size: int) -> tuple[Space, Space]:
    """Cut an axis that differs between the cases of a pivot on another axis: in each case alike."""
    head, rest = segment[0], segment[1:]
    if rest:
        collapse(head)
        return cut_space((segment,), size)
    pairs = [cut_space(branch, size) for branch in head.branches]
    return cases(_pivot(head), [a for a, _ in pairs]), cases(_pivot(head), [b for _, b in pairs])


def cut_space(space: Space, size: int) -> tuple[Space, Space]:
    """The first ``size`` positions of a space, and the rest; refines what lies across the cut."""
    first: list[Segment] = []
    remaining = list(reversed(normal(space)))
    while remaining and size:
        segment = remaining.pop()
        n = segment_size(segment)
        if n <= size:
            first.append(segment)
            size -= n
            continue
        head, tail = cut(segment, size)
        return tuple(first) + head, tail + tuple(reversed(remaining))
    return tuple(first), tuple(reversed(remaining))


def split(space: Space, outer: int, inner: int) -> tuple[Space, Space]:
    """An axis of ``outer * inner`` positions as two axes. A free variable becomes a product whose inner factor is a family
    over the outer one."""
    if outer == 1:
        return UNIT, space
    if inner == 1:
        return space, UNIT
    segments = normal(space)
    if len(segments) == 1:
        return _split_segment(segments[0], outer, inner)
    sizes = [segment_size(s) for s in segments]
    if any(n % inner for n in sizes):
        freeze([space])
        return fixed(outer), fixed(inner)
    pieces = [split((s,), n // inner, inner) for s, n in zip(segments, sizes, strict=True)]
    pivot = Var(outer)
    pivot.kind, pivot.parts = "sum", tuple(_as_factors(o) for o, _ in pieces)
    return ((pivot,),), cases(pivot, [i for _, i in pieces])


def _split_segment(segment: Segment, outer: int, inner: int) -> tuple[Space, Space]:
    taken: list[Var] = []
    rest = list(segment)
    need = outer
    while need > 1:
        v = rest.pop(0)
        if need % v.size == 0:
            taken.append(v)
            need //= v.size
            continue
        if v.size % need:
            break
        a, b = _split_var(v, need, v.size // need)
        taken += _as_factors(a)
        rest = [*_as_factors(b), *rest]
        need = 1
    if need > 1:
        freeze([(segment,)])
        return fixed(outer), fixed(inner)
    return (tuple(taken),), (tuple(rest),)


def _split_var(v: Var, outer: int, inner: int) -> tuple[Space, Space]:
    if v.kind == "fixed":
        return fixed(outer), fixed(inner)
    if v.kind == "free":
        a = Var(outer, deps_of(v))
        b = Var(inner, deps_of(v) | {a})
        refine_product(v, (a, b))
        return ((a,),), ((b,),)
    if v.kind == "cases":
        pairs = [split(branch, outer, inner) for branch in v.branches]
        return cases(_pivot(v), [a for a, _ in pairs]), cases(_pivot(v), [b for _, b in pairs])
    return split(((v,),), outer, inner)


def merge(axes: Sequence[Space]) -> Space:
    """Several axes as one, row-major."""
    return (tuple(f for space in axes if space_size(space) > 1 for f in _as_factors(space)),)


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
        if d != dim and _depends(other)
    }
    found[dim] = space
    if all(_same(v, options[0]) for options in versions.values() for v in options):
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


def cases(pivot: Var, options: Sequence[Space]) -> Space:
    """The space that is ``options[i]`` in summand i of the sum variable ``pivot``."""
    if all(_same(option, options[0]) for option in options):
        return options[0]
    v = Var(space_size(options[0]))
    v.kind, v.pivot, v.branches = "cases", pivot, tuple(options)
    return ((v,),)


def _decide(space: Space, choices: Iterable[Choice]) -> Space:
    for pivot, index in choices:
        space = choose(space, find(pivot), index)
    return space
