"""The action of permutations and rescalings on tensors, against an entry-by-entry twin, on random groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, PermutationSpec
from neural_graphs.graph._axis import Factor
from neural_graphs.graph._rescaling import Rescaling, Term
from neural_graphs.graph._spec import Element

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 10_000)

# A place on an axis spelt out: which part of every sum, and the class and index of every factor.
Word = tuple[tuple[str | None, int], ...]

# -- the twin: from the definition, one entry at a time -------------------------------------------------------------------


def words(axis: Axis) -> list[Word]:
    """The places of an axis in order."""
    found: list[Word] = []
    for k, part in enumerate(axis.parts):
        letters = [words(f) if isinstance(f, Axis) else [((f[0], i),) for i in range(f[1])] for f in part]
        found += [((f"part {k}", 0), *sum(word, ())) for word in product(*letters)]
    return found


def class_index(place: tuple[Word, ...], dim: int, k: int, over: dict[str, tuple[str, ...]]) -> tuple[int, ...]:
    """The index of letter k on axis ``dim`` within its class: first those of the classes it depends on."""
    word = place[dim]
    name, number = word[k]
    found = []
    for needed in over.get(name or "", ()):
        before = [i for n, i in word[:k] if n == needed]
        behind = [i for n, i in word[k:] if n == needed]
        elsewhere = [i for d, other in enumerate(place) if d != dim for n, i in other if n == needed]
        found.append((before[::-1] + behind + elsewhere)[0])
    return (*found, number)


def permuted_twin(spec: PermutationSpec, state: dict[str, Tensor], element: Element) -> dict[str, Tensor]:
    over, out = dict(spec.over), {}
    for name, axes in spec.axes:
        spelt = [words(axis) for axis in axes]
        where = [{word: number for number, word in enumerate(places)} for places in spelt]
        out[name] = torch.empty_like(state[name])
        for place in product(*spelt):
            source = []
            for dim, word in enumerate(place):
                moved = tuple(
                    (n, int(element[n][class_index(place, dim, k, over)]) if n in element else i)
                    for k, (n, i) in enumerate(word)
                )
                source.append(where[dim][moved])
            target = tuple(w[word] for w, word in zip(where, place, strict=True))
            out[name][target] = state[name][tuple(source)]
    return out


def rescaled_twin(spec: PermutationSpec, state: dict[str, Tensor], element: Element) -> dict[str, Tensor]:
    over, out = dict(spec.over), {name: value.clone() for name, value in state.items()}
    for number, rescaling in enumerate(spec.rescalings):
        vector = element[f"{rescaling.kind}:{number}"]
        for term in rescaling.terms:
            axes = spec.parameters[term.parameter]
            spelt = [words(axis) for axis in axes]
            for entry in product(*(range(axis.size) for axis in axes)):
                place = tuple(s[i] for s, i in zip(spelt, entry, strict=True))
                word = place[term.axis]
                hits = [k for k, (name, _) in enumerate(word) if name == rescaling.symmetry]
                if term.pieces and piece_of(axes[term.axis], entry[term.axis]) not in term.pieces:
                    continue
                factors = [float(vector[class_index(place, term.axis, k, over)]) for k in hits]
                if factors:
                    x = float(out[term.parameter][entry])
                    x = (x + term.offset) * math.prod(factors) ** term.exponent - term.offset
                    out[term.parameter][entry] = x + term.shift * (math.prod(factors) < 0)
    return out


def piece_of(axis: Axis, place: int) -> int:
    """Which piece of the axis holds this place."""
    for number, piece in enumerate(axis.pieces):
        steps = product(*(range(0, digit.size * digit.stride, digit.stride) for digit in piece.digits))
        if place in {piece.offset + sum(step) for step in steps}:
            return number
    raise AssertionError("the pieces do not cover the axis")


# -- random groups ----------------------------------------------------------------------------------------------------------

NAMES = "ABCDE"


@st.composite
def parts(
    draw: Callable, sizes: dict[str, int], over: dict[str, tuple[str, ...]], given: set[str], depth: int
) -> tuple[Factor, ...]:
    """A product in which every class finds those it depends on, either in the product or among the ``given``."""
    free = [name for name in NAMES if name not in given]
    chosen = draw(st.lists(st.sampled_from([*free, None]), min_size=1, max_size=2))
    for name in list(chosen):
        chosen += [needed for needed in over.get(name or "", ()) if needed not in chosen and needed not in given]
    factors: list[Factor] = [(name, sizes[name] if name else draw(st.integers(1, 3))) for name in chosen]
    if depth and draw(st.booleans()):
        known = given | {name for name in chosen if name}
        inner = st.lists(parts(sizes, over, known, depth - 1), min_size=1, max_size=2)
        factors.append(Axis(tuple(draw(inner))))
    return tuple(draw(st.permutations(factors)))


@st.composite
def tensors(draw: Callable, sizes: dict[str, int], over: dict[str, tuple[str, ...]]) -> tuple[Axis, ...]:
    """Axes of one tensor; sometimes classes on one axis depend on a class that stands on another."""
    shared = draw(st.sampled_from([(), (), ("A",), ("A", "B"), ("A", "C")]))
    axes = []
    for name in shared:
        shared_parts = []
        for _ in range(draw(st.integers(1, 2))):
            factors = draw(st.permutations([(name, sizes[name]), (None, draw(st.integers(1, 2)))]))
            shared_parts.append(tuple(factors))
        axes.append(Axis(tuple(shared_parts)))
    for _ in range(draw(st.integers(1, 2))):
        count = draw(st.integers(1, 2))
        axes.append(Axis(tuple(draw(parts(sizes, over, set(shared), 1)) for _ in range(count))))
    return tuple(draw(st.permutations(axes)))


@st.composite
def specs(draw: Callable) -> PermutationSpec:
    sizes = {name: draw(st.integers(1, 3)) for name in NAMES}
    pair = draw(st.sampled_from([("A", "B"), ("B", "A")]))
    over = {"C": ("A",), "D": pair, "E": draw(st.sampled_from([("A", "C"), ("C", "A")]))}
    axes = [(f"w{k}", draw(tensors(sizes, over))) for k in range(draw(st.integers(1, 2)))]
    assume(all(math.prod(axis.size for axis in entry) <= 1500 for _, entry in axes))
    present = {name for _, entry in axes for axis in entry for name, _ in axis.classes}
    used = tuple((name, outer) for name, outer in over.items() if name in present)
    try:
        return PermutationSpec(tuple(axes), over=used)
    except UserError:
        assume(False)
        raise


def numbered(spec: PermutationSpec, batch: int | None = None) -> dict[str, Tensor]:
    """All entries differ, so that a wrong move shows."""
    lead = () if batch is None else (batch,)
    found = {}
    for name, axes in spec.axes:
        shape = (*lead, *(axis.size for axis in axes))
        found[name] = torch.arange(math.prod(shape)).view(shape)
    return found


def same(a: Element, b: Element) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: Element, b: Element) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-12, atol=1e-12) for k in a)


# -- permutations -----------------------------------------------------------------------------------------------------------


@quick
@given(specs(), seeds)
def test_permutations_equal_the_twin(spec: PermutationSpec, seed: int) -> None:
    state, element = numbered(spec), spec.sample(seed)
    moved = spec.apply(state, element)
    assert same(moved, permuted_twin(spec, state, element))
    assert all(value.is_contiguous() for value in moved.values())


H, D, G, P = ("H", 3), ("d", 3), ("g", 3), ("o", 3)


@pytest.mark.parametrize(
    "axes",
    [
        (Axis(((H, H, D),)),),
        (Axis(((H, D, H),)),),
        (Axis(((D, H, H),)),),
        # o ties both axes together, yet each d keeps to the H beside it
        (Axis(((H, D, G),)), Axis(((D, H, P),))),
    ],
)
def test_a_class_depends_on_the_nearest_of_several(axes: tuple[Axis, ...]) -> None:
    spec = PermutationSpec((("w", axes), ("v", (Axis(((G, P),)),))), over=(("d", ("H",)), ("o", ("g",))))
    state, element = numbered(spec), spec.sample(0)
    assert same(spec.apply(state, element), permuted_twin(spec, state, element))
    assert same(spec.apply(spec.apply(state, element), spec.invert(element)), state)


@quick
@given(specs(), seeds)
def test_group_laws(spec: PermutationSpec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (spec.sample(generator) for _ in range(3))
    assert same(spec.compose(a, spec.compose(b, c)), spec.compose(spec.compose(a, b), c))
    assert same(spec.compose(a, spec.identity()), a) and same(spec.compose(spec.identity(), a), a)
    assert same(spec.compose(a, spec.invert(a)), spec.identity())
    assert same(spec.compose(spec.invert(a), a), spec.identity())
    state = numbered(spec)
    moved = spec.apply(state, a)
    assert same(spec.apply(moved, b), spec.apply(state, spec.compose(b, a)))
    assert same(spec.apply(moved, spec.invert(a)), state)
    assert same(spec.apply(state, spec.identity()), state)


@quick
@given(specs(), seeds)
def test_batch_equals_loop(spec: PermutationSpec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state, a, b = numbered(spec, 3), spec.sample(generator, 3), spec.sample(generator, 3)
    together = spec.apply(state, a, batched=True)
    shared = spec.apply(state, {k: v[0] for k, v in a.items()}, batched=True)
    product, mixed, inverse = spec.compose(b, a), spec.compose(b, {k: v[0] for k, v in a.items()}), spec.invert(a)
    for n in range(3):
        a_n, b_n = ({k: v[n] for k, v in element.items()} for element in (a, b))
        own = {name: value[n] for name, value in state.items()}
        assert same({k: v[n] for k, v in together.items()}, spec.apply(own, a_n))
        assert same({k: v[n] for k, v in shared.items()}, spec.apply(own, {k: v[0] for k, v in a.items()}))
        assert same({k: v[n] for k, v in product.items()}, spec.compose(b_n, a_n))
        assert same({k: v[n] for k, v in mixed.items()}, spec.compose(b_n, {k: v[0] for k, v in a.items()}))
        assert same({k: v[n] for k, v in inverse.items()}, spec.invert(a_n))


@quick
@given(specs(), seeds)
def test_a_part_of_an_element_leaves_the_rest_alone(spec: PermutationSpec, seed: int) -> None:
    assume(spec.classes)
    state, element = numbered(spec), spec.sample(seed)
    name = next(iter(element))
    alone = {name: element[name]}
    filled = {**spec.identity(), **alone}
    assert same(spec.apply(state, alone), spec.apply(state, filled))
    assert same(spec.compose(alone, element), spec.compose(filled, element))
    assert same(spec.invert(alone), {name: spec.invert(filled)[name]})


def heads() -> PermutationSpec:
    """Packed queries and values of 2 heads, and a grouped convolution whose input channels depend on the group."""
    packed = Axis(((("H", 2), ("d", 3)), (("H", 2), ("v", 4))))
    entries = (
        ("qv", (packed, Axis.of("P", 5))),
        ("out", (Axis.of("P", 5), Axis(((("H", 2), ("v", 4)),)))),
        ("conv", (Axis(((("g", 2), ("o", 3)),)), Axis.of("i", 2), Axis.fixed(3))),
    )
    return PermutationSpec(entries, over=(("d", ("H",)), ("v", ("H",)), ("o", ("g",)), ("i", ("g",))))


def test_axes_that_move_together_need_not_be_neighbours() -> None:
    spec = PermutationSpec((("w", (Axis(((D,),)), Axis.fixed(2), Axis(((H,),)))),), over=(("d", ("H",)),))
    state, element = numbered(spec), spec.sample(0)
    moved = spec.apply(state, element)
    assert same(moved, permuted_twin(spec, state, element)) and moved["w"].is_contiguous()
    several = spec.sample(0, batch=2)
    together = spec.apply(numbered(spec, 2), several, batched=True)["w"]
    assert together.is_contiguous() and together.shape == (2, 3, 2, 3)
    for n, value in enumerate(numbered(spec, 2)["w"]):
        one = {name: index[n] for name, index in several.items()}
        assert torch.equal(together[n], permuted_twin(spec, {"w": value}, one)["w"])


def test_attention_is_left_unchanged() -> None:
    """The heads' scores and mixture, computed from permuted weights, give the same output."""
    spec = heads()
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn([axis.size for axis in axes], generator=generator, dtype=torch.float64)
        for name, axes in spec.axes
    }

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        q, v = (x @ weights["qv"].T).split([6, 8], -1)
        q, v = q.unflatten(-1, (2, 3)), v.unflatten(-1, (2, 4))
        mixed = torch.einsum("ihd,jhd,jhe->ihe", q, q, v)
        return mixed.flatten(-2) @ weights["out"].T

    def grouped(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.nn.functional.conv1d(x, weights["conv"], groups=2)

    x, maps = torch.randn(7, 5, generator=generator).double(), torch.randn(1, 4, 9, generator=generator).double()
    element = spec.sample(1)
    moved = spec.apply(state, element)
    assert torch.allclose(run(moved, x[:, element["P"]]), run(state, x)[:, element["P"]])
    assert not torch.allclose(run({**moved, "out": state["out"]}, x[:, element["P"]]), run(state, x)[:, element["P"]])
    inputs = torch.cat([2 * g + element["i"][p] for p, g in enumerate(element["g"])])
    outputs = torch.cat([3 * g + element["o"][p] for p, g in enumerate(element["g"])])
    assert torch.allclose(grouped(moved, maps[:, inputs]), grouped(state, maps)[:, outputs])


DTYPES = [
    torch.bool,
    torch.int8,
    torch.uint16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [None, 3])
def test_every_dtype_moves(dtype: torch.dtype, batch: int | None) -> None:
    spec = heads()
    state = {name: (value % 97).to(dtype) for name, value in numbered(spec, 3).items()}
    moved = spec.apply(state, spec.sample(0, batch), batched=True)
    wide = spec.apply({k: v.to(torch.complex128) for k, v in state.items()}, spec.sample(0, batch), batched=True)
    assert all(value.dtype == dtype for value in moved.values())
    assert all(torch.equal(moved[name].to(torch.complex128), wide[name]) for name in moved)


def test_what_does_not_move_is_not_copied() -> None:
    spec = PermutationSpec((("a", (Axis.fixed(3),)), ("b", (Axis.of("P", 4), Axis.fixed(2)))))
    state = numbered(spec)
    moved = spec.apply(state, spec.sample(0))
    assert moved["a"] is state["a"] and moved["b"] is not state["b"]
    assert spec.apply(state, {})["b"] is state["b"]


# -- rescalings -------------------------------------------------------------------------------------------------------------


@st.composite
def rescaled_specs(draw: Callable, kinds: tuple[str, ...] = ("scale", "sign")) -> PermutationSpec:
    spec = draw(specs())
    assume(spec.classes)
    rescalings = []
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(kinds))
        symmetry = draw(st.sampled_from(list(spec.classes)))
        places = [(name, dim) for name, axes in spec.axes for dim, a in enumerate(axes) if symmetry in dict(a.classes)]
        terms = []
        for name, dim in draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
            exponent = draw(st.sampled_from([-1.0, 1.0, 2.0, *((0.5,) if kind == "scale" else ())]))
            shift = draw(st.sampled_from([0.0, 0.25])) if kind == "phase" else 0.0
            # Affine terms do not commute with others on the same entries, so only lone ones form a group.
            offset = draw(st.sampled_from([0.0, 1.0])) if "phase" in kinds else 0.0
            held = [
                number
                for number, piece in enumerate(spec.parameters[name][dim].pieces)
                if symmetry in {digit.symmetry for digit in piece.digits}
            ]
            chosen = tuple(draw(st.lists(st.sampled_from(held), max_size=2, unique=True)))
            terms.append(Term(name, dim, exponent, offset, shift, chosen))
        rescalings.append(Rescaling(kind, symmetry, tuple(terms)))
    return PermutationSpec(spec.axes, over=spec.over, rescalings=tuple(rescalings))


KINDS = ("permutation", "scale", "sign", "phase")


def drawn(spec: PermutationSpec, seed: int, batch: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.rand(v.shape, generator=generator).double() + 0.5 for k, v in numbered(spec, batch).items()}


@quick
@given(rescaled_specs(KINDS[1:]), seeds)
def test_rescalings_equal_the_twin(spec: PermutationSpec, seed: int) -> None:
    state, element = drawn(spec, seed), spec.sample(seed, kinds=KINDS)
    expected = rescaled_twin(spec, permuted_twin(spec, state, element), element)
    assert close(spec.apply(state, element), expected)


@quick
@given(rescaled_specs(), seeds)
def test_group_laws_with_rescalings(spec: PermutationSpec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (spec.sample(generator, kinds=KINDS) for _ in range(3))
    assert close(spec.compose(a, spec.compose(b, c)), spec.compose(spec.compose(a, b), c))
    assert same(spec.compose(a, spec.identity()), a) and close(spec.compose(spec.identity(), a), a)
    state = drawn(spec, seed)
    moved = spec.apply(state, a)
    assert close(spec.apply(moved, b), spec.apply(state, spec.compose(b, a)))
    assert close(spec.apply(moved, spec.invert(a)), state)


@quick
@given(rescaled_specs(KINDS[1:]), seeds)
def test_rescaled_batch_equals_loop(spec: PermutationSpec, seed: int) -> None:
    state, element = drawn(spec, seed, 2), spec.sample(seed, 2, kinds=KINDS)
    together = spec.apply(state, element, batched=True)
    for n in range(2):
        alone = spec.apply({k: v[n] for k, v in state.items()}, {k: v[n] for k, v in element.items()})
        assert close({k: v[n] for k, v in together.items()}, alone)
