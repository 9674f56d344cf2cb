"""Constraints on spaces: unification, and what it takes: refining variables, fixing positions, taking spaces apart.

See ``_var`` for what a space is.
"""

from __future__ import annotations

from collections.abc import Iterable

from neural_graphs.graph._var import (
    MOST_CASES,
    UNIT,
    Segment,
    SizeError,
    Space,
    Var,
    all_deps,
    all_fixed,
    as_factors,
    box,
    cases,
    dependents_of,
    deps_of,
    find,
    fixed,
    free_parts,
    like_var,
    normal,
    pivot_of,
    present,
    raw_deps,
    same_space,
    segment_size,
    segment_vars,
    set_deps,
    space_size,
    splice,
)


def confine(space: Space, allowed: set[Var]) -> None:
    """Remove every dependency on a variable that is neither in ``allowed`` nor beside the dependent one in its product:
    families become constant along it."""
    for segment in space:
        within = allowed | segment_vars(segment)
        for v in sorted(map(find, segment), key=lambda v: len(deps_of(v))):  # a dependency before what depends on it
            _confine(v, within)


def _confine(v: Var, allowed: set[Var]) -> None:
    if v.kind == "cases" and find(pivot_of(v)) not in allowed:
        collapse(v)
        v = find(v)
    if v.kind == "free":
        if not deps_of(v) <= allowed:
            set_deps(v, deps_of(v) & allowed)
    elif v.kind in ("product", "sum"):
        confine(v.parts, allowed)
    elif v.kind == "cases":
        for part, branch in zip(find(pivot_of(v)).parts, v.branches, strict=True):
            confine(branch, allowed | segment_vars(part))


def collapse(v: Var) -> None:
    """Make a variable of kind ``cases`` the same in all cases."""
    pivot, branches = find(pivot_of(v)), v.branches
    inner = present([pivot.parts])
    first = branches[0]
    for branch in branches:
        confine(branch, all_deps([branch]) - inner)
    v.kind, v.pivot, v.branches, v.parts = "sum", None, (), first
    for branch in branches[1:]:
        unify(first, branch)
    if len(first) == 1:
        v.kind = "product"


# -- refinement --------------------------------------------------------------------------------------------------------


def refine_sum(v: Var, parts: Space) -> None:
    """The free variable ``v`` turns out to be a concatenation; what depends on it splits into cases."""
    assert v.kind == "free" and space_size(parts) == v.size
    outer = deps_of(v)
    for part in parts:
        confine((part,), outer)
    dependents = dependents_of(v)
    v.kind, v.parts, v.deps = "sum", parts, set()
    if not dependents:
        return
    before = {u: raw_deps(u) for u in dependents}
    branches: dict[Var, list[Space]] = {u: [] for u in dependents}
    for part in parts:
        copies = {u: Var(u.size) for u in dependents}
        flat = set().union(*map(free_parts, part)) if part else set()
        for u in sorted(dependents, key=lambda u: len(before[u])):  # a dependency before what depends on it
            set_deps(copies[u], {copies.get(d, d) for d in before[u] if d is not v} | flat)
            branches[u].append(((copies[u],),))
    for u in dependents:
        u.kind, u.pivot, u.branches, u.deps = "cases", v, tuple(branches[u]), set()


def refine_product(v: Var, factors: Segment) -> None:
    """The free variable ``v`` turns out to be a product."""
    assert v.kind == "free" and segment_size(factors) == v.size
    outer = deps_of(v)
    confine((factors,), outer - {v})
    users = set(v.users)
    if any(find(f).kind in ("sum", "cases") for f in factors):
        for u in dependents_of(v):
            set_deps(u, deps_of(u) - {v})
    v.kind, v.parts, v.deps = "product", (factors,), set()
    for f in free_parts(v):
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
    dependents = dependents_of(v)
    if dependents and v.size <= MOST_CASES:
        refine_sum(v, ((),) * v.size)
        return
    for u in dependents:
        set_deps(u, deps_of(u) - {v})
    v.kind, v.deps = "fixed", set()


# -- unification -------------------------------------------------------------------------------------------------------


def unify(a: Space, b: Space) -> None:
    """Two axes are the same axis."""
    if a is b or same_space(a, b):
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
    if u.kind == "cases" and v.kind == "cases" and find(pivot_of(u)) is find(pivot_of(v)):
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
        set_deps(v, common)
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
    if all_fixed(s) or all_fixed(t):
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
        _unify_segments(splice(as_factors(inner) + s[1:]), t[1:])
    else:
        freeze([(s, t)])


# -- taking apart ------------------------------------------------------------------------------------------------------


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
        parts: Space = tuple(() if n == 1 else (like_var(head, n, outer),) for n in sizes)
        if head.kind == "fixed":
            head = box(parts)
            segment = (head, *rest)
        else:
            refine_sum(head, parts)
    return cut_space((segment,), size)


def _cut_cases(segment: Segment, size: int) -> tuple[Space, Space]:
    """Cut an axis that differs between the cases of a pivot on another axis: in each case alike."""
    head, rest = segment[0], segment[1:]
    if rest:
        collapse(head)
        return cut_space((segment,), size)
    pairs = [cut_space(branch, size) for branch in head.branches]
    return cases(pivot_of(head), [a for a, _ in pairs]), cases(pivot_of(head), [b for _, b in pairs])


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
    pivot.kind, pivot.parts = "sum", tuple(as_factors(o) for o, _ in pieces)
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
        taken += as_factors(a)
        rest = [*as_factors(b), *rest]
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
        return cases(pivot_of(v), [a for a, _ in pairs]), cases(pivot_of(v), [b for _, b in pairs])
    return split(((v,),), outer, inner)
