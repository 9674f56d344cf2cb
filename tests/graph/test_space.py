"""The algebra of axes: unification, cutting, splitting, families, and whether what it says about tensors is true."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_graphs.graph import PermutationSpec
from neural_graphs.graph import _propagate as propagate
from neural_graphs.graph._axes import close, merge, mix, narrow, reshape
from neural_graphs.graph._rules._contraction import contract
from neural_graphs.graph._rules._registry import broadcast
from neural_graphs.graph._rules._shape import join
from neural_graphs.graph._space import collapse, confine, cut_space, freeze, split, unify
from neural_graphs.graph._var import (
    UNIT,
    SizeError,
    Space,
    Var,
    cases,
    deps_of,
    everywhere,
    family,
    find,
    fixed,
    fresh,
    normal,
    present,
    space_size,
)


def text(space: Space) -> str:
    """``a·b + 3``: free variables by size (``x`` for one that depends on others), fixed positions in brackets."""

    def factor(v: Var) -> str:
        v = find(v)
        if v.kind == "free":
            return f"{v.size}x" if deps_of(v) else f"{v.size}"
        if v.kind == "fixed":
            return f"[{v.size}]"
        if v.kind == "cases":
            return "{" + " | ".join(text(branch) for branch in v.branches) + "}"
        return f"({text(v.parts)})"

    return " + ".join("·".join(map(factor, segment)) or "1" for segment in space)


def flat(space: Space) -> str:
    return text(tuple(normal(space)))


# -- constructors -----------------------------------------------------------------------------------------------------------


def test_axes_of_size_one_are_the_unit() -> None:
    assert fresh(1) is UNIT and fixed(1) is UNIT and family(1, [fresh(3)]) is UNIT
    assert space_size(UNIT) == 1 and space_size(()) == 0 and everywhere(()) == set()


def test_a_family_is_over_what_stands_at_every_position() -> None:
    a, b = fresh(3), fresh(2)
    assert deps_of(family(4, [a, b])[0][0]) == {a[0][0], b[0][0]}
    both: Space = (a[0], b[0])
    assert deps_of(family(4, [both])[0][0]) == set()
    assert deps_of(family(4, [(a[0], a[0])])[0][0]) == {a[0][0]}


def test_dependencies_are_closed() -> None:
    """A variable cannot depend on a family without what the family depends on."""
    a = fresh(3)
    b = family(4, [a])
    assert deps_of(Var(5, [b[0][0]])) == set()
    assert deps_of(Var(5, [a[0][0], b[0][0]])) == {a[0][0], b[0][0]}


# -- unification ------------------------------------------------------------------------------------------------------------


def test_free_axes_become_the_same() -> None:
    a, b, c = fresh(5), fresh(5), fresh(5)
    unify(a, b)
    unify(b, c)
    assert find(a[0][0]) is find(c[0][0])


def test_sizes_must_agree() -> None:
    with pytest.raises(SizeError, match="5 and 6"):
        unify(fresh(5), fresh(6))


@pytest.mark.parametrize("swap", [False, True])
def test_a_fixed_axis_fixes(swap: bool) -> None:
    a, b = fresh(5), fixed(5)
    unify(*((b, a) if swap else (a, b)))
    assert text(a) == "[5]"


def test_a_sum_and_a_product_refine() -> None:
    a = fresh(5)
    unify(a, (fresh(2)[0], fresh(3)[0]))
    assert flat(a) == "2 + 3"
    b = fresh(6)
    unify(b, merge([fresh(2), fresh(3)]))
    assert flat(b) == "2·3"


def test_sums_that_overlap_are_cut_at_both_places() -> None:
    a, b = (fresh(2)[0], fresh(4)[0]), (fresh(3)[0], fresh(3)[0])
    unify(a, b)
    assert flat(a) == flat(b) == "2 + 1 + 3"
    assert [find(s[0]) for s in normal(a) if s] == [find(s[0]) for s in normal(b) if s]


def test_sums_of_sums_flatten() -> None:
    inner: Space = (fresh(2)[0], fresh(3)[0])
    a, b = fresh(9), fresh(5)
    unify(b, inner)
    unify(a, (fresh(4)[0], b[0]))
    assert flat(a) == "4 + 2 + 3"


def test_products_of_different_factors_meet_in_the_common_one() -> None:
    a, b = merge([fresh(4), fresh(3)]), merge([fresh(2), fresh(6)])
    unify(a, b)
    assert flat(a) == flat(b) == "2·2·3"


def test_products_that_do_not_divide_become_fixed() -> None:
    a, b = merge([fresh(3), fresh(4)]), merge([fresh(4), fresh(3)])
    unify(a, b)
    assert all(v.kind != "free" for v in present([a, b]))


def test_an_axis_twice_its_own_half() -> None:
    """``cat([x, y])`` beside ``x`` repeated: y is x."""
    a = fresh(6)
    half, rest = cut_space(a, 3)
    unify(a, merge([fresh(2), half]))
    assert flat(a) == "3 + 3" and find(half[0][0]) is find(rest[0][0])


def test_two_products_of_one_axis() -> None:
    b, c = fresh(4), fresh(4)
    unify(c, merge([fresh(2), fresh(2)]))
    unify(b, c)
    assert flat(b) == "2·2" and normal(b) == normal(c)


def test_families_keep_what_they_have_in_common() -> None:
    a, b = fresh(2), fresh(3)
    x, y = family(5, [a, b]), family(5, [a])
    unify(x, y)
    assert deps_of(find(x[0][0])) == {a[0][0]}


def test_unifying_again_changes_nothing() -> None:
    a, b = fresh(12), merge([fresh(3), fresh(4)])
    unify(a, b)
    before = flat(a)
    unify(b, a)
    unify(a, a)
    assert flat(a) == before == "3·4"


# -- cutting and splitting --------------------------------------------------------------------------------------------------


def test_cutting() -> None:
    a = fresh(7)
    first, rest = cut_space(a, 3)
    assert text(first) == "3" and text(rest) == "4" and flat(a) == "3 + 4"
    assert cut_space(a, 0)[0] == () and space_size(cut_space(a, 7)[1]) == 0


def test_cutting_a_product_inside_its_inner_factor() -> None:
    a = merge([fresh(3), fresh(4)])
    first, rest = cut_space(a, 6)
    assert space_size(first) == space_size(rest) == 6
    assert flat(a) == "2 + 2 + 2 + 2 + 2 + 2"  # the inner factor is cut in two for each of the three
    assert [find(s[0]) for s in normal(first)] == [find(s[0]) for s in normal(a)][:3]


def test_splitting_gives_a_family_per_outer_position() -> None:
    a = fresh(12)
    outer, inner = split(a, 3, 4)
    assert deps_of(inner[0][0]) == {outer[0][0]} and flat(a) == "3·4x"


def test_splitting_by_one() -> None:
    a = fresh(4)
    assert split(a, 1, 4) == (UNIT, a) and split(a, 4, 1) == (a, UNIT)


def test_splitting_twice_and_merging_gives_the_same_axis_back() -> None:
    a = fresh(24)
    shape = reshape([a], (2, 3, 4))
    assert [space_size(s) for s in shape] == [2, 3, 4]
    (b,) = reshape(shape, (24,))
    assert normal(b) == normal(a)


def test_splitting_a_sum() -> None:
    """Packed queries, keys and values: one family of heads in each."""
    a: Space = (fresh(6)[0], fresh(6)[0], fresh(3)[0])
    outer, inner = split(a, 5, 3)
    assert flat(outer) == "2 + 2 + 1" and text(inner).startswith("{3x | 3x | 3")


def test_a_split_that_does_not_divide_the_summands_fixes() -> None:
    a: Space = (fresh(4)[0], fresh(2)[0])
    outer, inner = split(a, 2, 3)
    assert text(outer) == "[2]" and text(inner) == "[3]" and flat(a) == "[4] + [2]"


def test_a_split_across_factors_fixes() -> None:
    a = merge([fresh(3), fresh(4)])
    split(a, 2, 6)
    assert all(v.kind != "free" for v in present([a]))


def test_reshape_with_ones_and_zeros() -> None:
    a, b = fresh(3), fresh(4)
    assert reshape([a, UNIT, b], (1, 3, 4, 1)) == [UNIT, a, b, UNIT]
    empty = reshape([fresh(3), ()], (0, 5))
    assert [space_size(s) for s in empty] == [0, 5]


# -- families under cuts ----------------------------------------------------------------------------------------------------


def test_a_slice_of_the_outer_axis_decides_the_family() -> None:
    a, b = split(fresh(12), 3, 4)
    first = narrow([a, b], 0, 0, 1)
    second = narrow([a, b], 0, 1, 2)
    assert find(first[1][0][0]) is not find(second[1][0][0])
    assert text(first[1]) == "4" and first[0] == UNIT


def test_a_slice_across_families_hangs_on_its_own_axis() -> None:
    a, b = split(fresh(20), 5, 4)
    narrow([a, b], 0, 0, 2)
    found = narrow([a, b], 0, 1, 4)
    assert space_size(found[0]) == 3 and text(found[1]).startswith("{")
    close(found)
    assert text(found[1]).startswith("{")


def test_an_empty_slice_makes_no_cut() -> None:
    a, b = split(fresh(12), 3, 4)
    found = narrow([a, b], 0, 2, 2)
    assert found[0] == () and text(a) == "3"


def test_freezing_the_outer_axis_leaves_one_permutation_per_position() -> None:
    a, b = split(fresh(12), 3, 4)
    freeze([a])
    assert text(b) == "{4 | 4 | 4}"
    collapse(find(b[0][0]))
    assert flat(b) == "4"


def test_freezing_a_long_outer_axis_makes_its_families_constant() -> None:
    a, b = split(fresh(600), 100, 6)
    freeze([a])
    assert text(a) == "[100]" and text(b) == "6"


def test_freezing_all_at_once_leaves_nothing() -> None:
    a, b = split(fresh(12), 3, 4)
    freeze([a, b])
    assert text(a) == "[3]" and text(b) == "[4]"


def test_cases_in_cases() -> None:
    a, b, c = reshape([fresh(24)], (2, 3, 4))
    freeze([a])
    assert text(b) == "{3 | 3}" and text(c) == "{4x | 4x}"
    freeze([b])
    assert text(c).count("4") == 6
    close([a, b, c])
    mix([a, b, c], [0])
    assert all(v.kind == "free" or v.kind == "product" for v in map(find, c[0]))


def test_the_same_cases_unify_case_by_case() -> None:
    pivot, _ = split(fresh(8), 2, 4)
    freeze([pivot])
    p = Var(2)
    p.kind, p.parts = "sum", ((), ())
    x, y = cases(p, [fresh(3), fresh(3)]), cases(p, [fresh(3), fresh(3)])
    unify(x, y)
    assert text(x) == "{3 | 3}" and find(x[0][0]) is find(y[0][0])
    unify(x, fresh(3))
    assert flat(x) == "3"


# -- holding tensors to their types -----------------------------------------------------------------------------------------


def test_a_family_without_its_outer_axis_is_constant() -> None:
    _, b = split(fresh(12), 3, 4)
    close([b])
    assert deps_of(find(b[0][0])) == set()


def test_mixing_the_outer_axis_makes_the_family_constant() -> None:
    a, b = split(fresh(12), 3, 4)
    mix([a, b], [1])
    assert deps_of(find(b[0][0])) == {find(a[0][0])}
    mix([a, b], [-2])
    assert deps_of(find(b[0][0])) == set()


def test_an_outer_variable_on_two_axes_is_nobodys() -> None:
    a, b = split(fresh(12), 3, 4)
    close([a, b])
    assert deps_of(find(b[0][0]))
    close([a, a, b])
    assert not deps_of(find(b[0][0]))


def test_an_outer_variable_on_a_part_of_an_axis_is_not_enough() -> None:
    a, b = split(fresh(12), 3, 4)
    close([(a[0], fresh(2)[0]), b])
    assert not deps_of(find(b[0][0]))


def test_cases_come_with_their_pivot() -> None:
    a, b = split(fresh(12), 3, 4)
    freeze([a])
    close([a, b])
    assert find(b[0][0]).kind == "cases"
    close([b])
    assert find(b[0][0]).kind != "cases"


def test_confining_removes_what_is_not_allowed() -> None:
    a, b = fresh(2), fresh(3)
    x = family(5, [a, b])
    confine(x, {a[0][0]})
    assert deps_of(x[0][0]) == {a[0][0]}


# -- against tensors --------------------------------------------------------------------------------------------------------


class Tape:
    """A tensor computed from parameters, once as a value and once as a type."""

    def __init__(self, seed: int) -> None:
        self.parameters: dict[str, list[Space]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.steps: list[Callable[[dict[str, Tensor], Tensor], Tensor]] = []
        self.axes: list[Space] = []
        self.seed = seed
        self.history: list[Any] = []

    def __repr__(self) -> str:
        return f"Tape({self.history})"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(space_size, self.axes))

    def new(self, shape: Sequence[int]) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name], self.shapes[name] = propagate._unknown(shape), tuple(shape)
        return name

    def step(self, axes: list[Space], run: Callable[[dict[str, Tensor], Tensor], Tensor], *others: list[Space]) -> None:
        for tensor in (self.axes, axes, *others):
            close(tensor)
        self.axes = axes
        self.steps.append(run)

    def run(self, values: dict[str, Tensor]) -> Tensor:
        value = values["p0"]
        for step in self.steps:
            value = step(values, value)
        return value

    def finish(self) -> PermutationSpec:
        """Tie the result to a parameter of its shape, and read the group off."""
        last = self.parameters["result"] = propagate._unknown(self.shape)
        self.shapes["result"] = self.shape
        broadcast([last, self.axes])
        for tensor in (last, self.axes):
            close(tensor)
        propagate._settle(self.parameters.values())
        names: dict[Var, str] = {}
        for axes in self.parameters.values():
            for space in axes:
                for v in propagate._leaves(space):
                    names.setdefault(v, f"P{len(names)}")
        over = tuple((name, tuple(sorted(names[d] for d in deps_of(v)))) for v, name in names.items() if deps_of(v))
        found = tuple(
            (name, tuple(propagate._axis(space, names) for space in axes)) for name, axes in self.parameters.items()
        )
        return PermutationSpec(found, over=over)


def factors(draw: Any, size: int, most: int) -> tuple[int, ...]:
    found = []
    while size > 1 and len(found) < most - 1:
        k = draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0]))
        found.append(k)
        size //= k
    return (*found, size)


def extend(draw: Any, tape: Tape) -> None:
    """One more random step."""
    axes, shape = tape.axes, tape.shape
    kind = draw(st.sampled_from(
        ("reshape", "reshape", "permute", "slice", "cat", "split", "select", "expand", "sum", "scale", "own", "product")
    ))  # fmt: skip
    rank = len(shape)
    dim = draw(st.integers(0, rank - 1)) if rank else 0
    tape.history += [shape, (kind, dim)]
    if kind == "reshape":
        new = factors(draw, math.prod(shape), 4)
        tape.step(reshape(axes, new), lambda p, x: x.reshape(new))
    elif kind == "permute" and rank > 1:
        order = draw(st.permutations(range(rank)))
        tape.step([axes[d] for d in order], lambda p, x: x.permute(*order))
    elif kind == "slice" and rank and shape[dim] > 1:
        start = draw(st.integers(0, shape[dim] - 1))
        stop = draw(st.integers(start + 1, shape[dim]))
        tape.step(narrow(axes, dim, start, stop), lambda p, x: x.narrow(dim, start, stop - start))
    elif kind == "split" and rank and shape[dim] > 1:
        at = draw(st.integers(1, shape[dim] - 1))
        parts = [narrow(axes, dim, at, shape[dim]), narrow(axes, dim, 0, at)]
        tape.step(
            join(parts, dim),
            lambda p, x: torch.cat([x.narrow(dim, at, x.shape[dim] - at), x.narrow(dim, 0, at)], dim),
            *parts,
        )
    elif kind == "cat" and rank and math.prod(shape) < 200:
        other = (*shape[:dim], draw(st.integers(1, 3)), *shape[dim + 1 :])
        name = tape.new(other)
        tape.step(
            join([axes, tape.parameters[name]], dim), lambda p, x: torch.cat([x, p[name]], dim), tape.parameters[name]
        )
    elif kind == "select" and rank and shape[dim] > 1:
        index = draw(st.integers(0, shape[dim] - 1))
        found = narrow(axes, dim, index, index + 1)
        tape.step(found[:dim] + found[dim + 1 :], lambda p, x: x.select(dim, index))
    elif kind == "expand" and rank < 4 and math.prod(shape) < 100:
        n = draw(st.integers(2, 3))
        tape.step([family(n, axes), *axes], lambda p, x: x.expand(n, *x.shape))
    elif kind == "sum" and rank > 1:
        mix(axes, [dim])
        tape.step(axes[:dim] + axes[dim + 1 :], lambda p, x: x.sum(dim))
    elif kind == "scale" and rank:
        name = tape.new(shape[dim:])
        tape.step(broadcast([axes, tape.parameters[name]]), lambda p, x: x * p[name], tape.parameters[name])
    elif kind == "own" and rank == 2 and shape[0] == shape[1]:
        tape.step(broadcast([axes, axes[::-1]]), lambda p, x: x + 2 * x.t(), axes[::-1])
    elif kind == "product" and rank == 2 and shape[0] <= 8:
        tape.step(contract([("ik", axes), ("jk", axes)], "ij"), lambda p, x: x @ x.t())


@st.composite
def tapes(draw: Any) -> Tape:
    tape = Tape(draw(st.integers(0, 1000)))
    tape.new(draw(st.sampled_from([(12,), (4, 6), (2, 3, 4), (18,), (8, 3), (3, 2, 2, 3), (6, 6), (24,), (5, 2)])))
    tape.axes = list(tape.parameters["p0"])
    for _ in range(draw(st.integers(1, 6))):
        extend(draw, tape)
    return tape


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tapes())
def test_the_group_commutes_with_the_operations(tape: Tape) -> None:
    """Permuting the parameters and computing is computing and permuting the result as its own type says."""
    spec = tape.finish()
    generator = torch.Generator().manual_seed(tape.seed)
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in tape.shapes.items()}
    values["result"] = tape.run(values)
    assert values["result"].shape == tape.shape
    for seed in range(2):
        moved = spec.apply(values, spec.sample(seed))
        torch.testing.assert_close(tape.run(moved), moved["result"], rtol=1e-10, atol=1e-10)


def test_random_tapes_have_symmetries() -> None:
    """The test above would pass with trivial groups: most of its groups are not."""
    sizes: list[float] = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(tapes())
    def collect(tape: Tape) -> None:
        sizes.append(tape.finish().log10_order)

    collect()
    assert sum(size > 0 for size in sizes) > 0.6 * len(sizes)
