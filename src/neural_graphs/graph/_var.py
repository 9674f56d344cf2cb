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
from collections.abc import Iterable, Sequence
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
        set_deps(self, deps)

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


# -- dependencies ------------------------------------------------------------------------------------------------------


def deps_of(v: Var) -> set[Var]:
    """The free variables that ``v`` (free) is a family over."""
    found: set[Var] = set()
    for d in v.deps:
        found |= free_parts(d)
    found.discard(v)
    return found


def free_parts(v: Var) -> set[Var]:
    """A dependency on a product is one on its factors; on anything else that is not free, none."""
    v = find(v)
    if v.kind == "free":
        return {v}
    if v.kind == "product":
        return set().union(*map(free_parts, v.parts[0])) if v.parts[0] else set()
    return set()


def set_deps(v: Var, deps: Iterable[Var]) -> None:
    """Set the dependencies of a free variable, closed: a dependency counts only with all of its own dependencies."""
    wanted = set().union(*map(free_parts, deps)) - {v}
    while True:
        open_ = {d for d in wanted if not deps_of(d) <= wanted}
        if not open_:
            break
        wanted -= open_
    v.deps = wanted
    for d in wanted:
        d.users.add(v)


def dependents_of(v: Var) -> list[Var]:
    found = {find(u) for u in v.users}
    return [u for u in found if u.kind == "free" and u is not v and v in deps_of(u)]


def raw_deps(v: Var) -> set[Var]:
    """Like ``deps_of``, while a dependency may just have become a sum."""
    found: set[Var] = set()
    for d in v.deps:
        d = find(d)
        found |= {d} if d.kind == "sum" else free_parts(d)
    found.discard(v)
    return found


def all_deps(spaces: Iterable[Space]) -> set[Var]:
    found: set[Var] = set()
    for v in present(spaces):
        if v.kind == "free":
            found |= deps_of(v)
        elif v.kind == "cases":
            found.add(find(pivot_of(v)))
    return found


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
    return set.intersection(*(segment_vars(segment) for segment in space)) if space else set()


def segment_vars(segment: Segment) -> set[Var]:
    found: set[Var] = set()
    for v in segment:
        v = find(v)
        found.add(v)
        if v.kind in ("product", "sum"):
            found |= everywhere(v.parts)
        elif v.kind == "cases":
            found |= set.intersection(*map(everywhere, v.branches))
    return found


def has_families(space: Space) -> bool:
    return any(v.kind == "cases" or (v.kind == "free" and v.deps) for v in present([space]))


def pivot_of(v: Var) -> Var:
    assert v.pivot is not None
    return v.pivot


# -- normal form -------------------------------------------------------------------------------------------------------

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
                chosen = tuple(f for r in rest for f in as_factors(choose(((r,),), head, index)))
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
        return (v,) if same_space(parts, v.parts) else (_copy(v, pivot, index, parts),)
    if v.kind != "cases":
        return (v,)
    own = find(pivot_of(v))
    if own is pivot:
        return as_factors(v.branches[index])
    branches = [choose(branch, pivot, index) for branch in v.branches]
    hung = find(_choose(own, pivot, index)[0])  # what hangs on a sum hangs on its copy in the copy
    if all(same_space(a, b) for a, b in zip(branches, v.branches, strict=True)) and hung is own:
        return (v,)
    copied = Var(v.size)
    copied.kind, copied.pivot, copied.branches = "cases", hung, tuple(branches)
    return (copied,)


def _copy(v: Var, pivot: Var, index: int, parts: Space) -> Var:
    """The sum ``v`` in summand ``index`` of ``pivot``: one variable, however often it is asked for."""
    known = v.copies.get((pivot, index))
    if known is None or not same_space(find(known).parts, parts):
        known = v.copies[pivot, index] = box(parts)
    return find(known)


def same_space(a: Space, b: Space) -> bool:
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


def as_factors(space: Space) -> Segment:
    return space[0] if len(space) == 1 else (box(space),)


def cases(pivot: Var, options: Sequence[Space]) -> Space:
    """The space that is ``options[i]`` in summand i of the sum variable ``pivot``."""
    if all(same_space(option, options[0]) for option in options):
        return options[0]
    v = Var(space_size(options[0]))
    v.kind, v.pivot, v.branches = "cases", pivot, tuple(options)
    return ((v,),)


def all_fixed(segment: Segment) -> bool:
    return all(v.kind == "fixed" for v in segment)


def like_var(v: Var, size: int, deps: Iterable[Var]) -> Var:
    found = Var(size, deps)
    if v.kind == "fixed":
        found.kind = "fixed"
    return found
