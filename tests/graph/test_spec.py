"""Permutation groups: algebra, action on state dicts, exchange formats."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, PermutationSpec, Stack, spec_of_stack
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._rescaling import Rescaling, Term
from neural_graphs.graph._spec import Element
from neural_graphs.testing import random_graph, random_stack

seeds = st.integers(0, 10_000)
quick = settings(max_examples=40, deadline=None)


def spec_of(seed: int) -> PermutationSpec:
    return spec_of_stack(random_stack(seed)).symmetries


def same(a: Element, b: Element) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@quick
@given(seeds)
def test_group_axioms(seed: int) -> None:
    spec = spec_of(seed)
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (spec.sample(generator) for _ in range(3))
    assert same(spec.compose(a, spec.compose(b, c)), spec.compose(spec.compose(a, b), c))
    assert same(spec.compose(a, spec.identity()), a) and same(spec.compose(spec.identity(), a), a)
    assert same(spec.compose(a, spec.invert(a)), spec.identity())
    assert same(spec.compose(spec.invert(a), a), spec.identity())


@quick
@given(seeds)
def test_action_on_state_dicts(seed: int) -> None:
    stack = random_stack(seed)
    spec = spec_of_stack(stack).symmetries
    state = random_graph(stack, 1, seed=seed).to_state_dict()
    generator = torch.Generator().manual_seed(seed)
    first, second = spec.sample(generator), spec.sample(generator)
    moved = spec.apply(state, first)
    assert same(spec.apply(moved, second), spec.apply(state, spec.compose(second, first)))
    assert same(spec.apply(moved, spec.invert(first)), state)
    assert same(spec.apply(state, spec.identity()), state)


@quick
@given(seeds)
def test_batched_equals_one_by_one(seed: int) -> None:
    stack = random_stack(seed)
    spec, graph = spec_of_stack(stack).symmetries, random_graph(stack, 3, seed=seed)
    state = graph.to_state_dict()
    elements = spec.sample(seed, batch=3)
    together = spec.apply(state, elements, batched=True)
    shared = spec.apply(state, {k: v[0] for k, v in elements.items()}, batched=True)
    for b in range(3):
        element = {name: index[b] for name, index in elements.items()}
        alone = spec.apply(graph[b].to_state_dict(), element)
        assert same({name: value[b] for name, value in together.items()}, alone)
    assert same({k: v[0] for k, v in shared.items()}, {k: v[0] for k, v in together.items()})


def test_sampling_is_uniform_and_repeatable() -> None:
    spec = spec_of_stack(Stack.mlp((2, 3, 1))).symmetries
    drawn = spec.sample(0, batch=6000)["P0"]
    assert torch.equal(drawn, spec.sample(0, batch=6000)["P0"])
    counts = torch.unique(drawn, dim=0, return_counts=True)[1]
    assert len(counts) == 6 and (counts - 1000).abs().max() < 150  # five standard deviations
    assert (drawn[1:] != drawn[:1]).any()


def attention(heads: int = 12, inner: int = 64) -> PermutationSpec:
    """Queries, keys and values packed, the output projection, and a weight per head."""
    packed = Axis(((("H", heads), ("d", inner)), (("H", heads), ("d", inner)), (("H", heads), ("v", inner))))
    out = Axis(((("H", heads), ("v", inner)),))
    axes = (("qkv", (packed, Axis.fixed(8))), ("out", (Axis.fixed(8), out)), ("gate", (Axis.of("H", heads),)))
    return PermutationSpec(axes, over=(("d", ("H",)), ("v", ("H",))))


def test_dependent_classes_are_sampled_per_index() -> None:
    spec = attention(3, 4)
    element = spec.sample(0)
    assert {name: tuple(index.shape) for name, index in element.items()} == {"H": (3,), "d": (3, 4), "v": (3, 4)}
    assert len({tuple(row) for row in spec.sample(1)["d"].tolist()}) > 1
    assert {name: tuple(index.shape) for name, index in spec.sample(0, batch=5).items()}["d"] == (5, 3, 4)
    rows = spec.sample(0, batch=2000)["d"].flatten(0, 1)
    assert torch.equal(rows.sort(-1).values, torch.arange(4).expand(6000, 4))
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24 and (counts - 250).abs().max() < 80  # five standard deviations


def test_printing() -> None:
    spec = spec_of_stack(Stack.mlp((2, 32, 32, 1))).symmetries
    assert str(spec) == "S32 × S32"
    assert spec.log10_order == pytest.approx(2 * math.log10(math.factorial(32)))
    text = spec.describe()
    assert "P0: 32 neurons, sine:30" in text and "seq.1.weight  [P1, P0]" in text
    assert str(spec_of_stack(Stack.mlp((2, 1))).symmetries) == "trivial"


def test_printing_of_families_and_large_groups() -> None:
    spec = attention()
    assert str(spec) == "S12 × S64^12 × S64^12"
    assert spec.log10_order == pytest.approx(math.log10(math.factorial(12)) + 24 * math.log10(math.factorial(64)))
    assert "  d: 64 neurons for each of H, none" in spec.describe()
    assert "qkv   [H·d + H·d + H·v, 8]" in spec.describe()

    def chain(*sizes: int) -> PermutationSpec:
        return PermutationSpec(tuple((f"w{k}", (Axis.of(f"P{k}", n),)) for k, n in enumerate(sizes)))

    assert str(chain(4, 4, 4, 5, 5)) == "S4^3 × S5 × S5"
    assert str(chain(*range(2, 14))) == " × ".join(f"S{n}" for n in range(2, 14))
    assert str(chain(*range(2, 39))) == " × ".join(f"S{n}" for n in range(2, 14)) + " × … (37 classes)"


def test_describe_can_be_cut_short() -> None:
    spec = spec_of_stack(Stack.mlp((2, *[8] * 20, 1))).symmetries
    full = spec.describe().splitlines()
    short = spec.describe(max_lines=10).splitlines()
    assert len(short) == 10 and short[:9] == full[:9]
    assert short[9] == f"  … ({len(full) - 9} more lines)"
    assert spec.describe(max_lines=len(full)).splitlines() == full


def test_share_moved() -> None:
    half = Axis(((("P", 3),), ((None, 3),)))
    spec = PermutationSpec((("w", (half, half)), ("b", (half,)), ("x", (Axis.fixed(8),)), ("one", (Axis.of("Q", 1),))))
    assert spec.share_moved() == pytest.approx((27 + 3) / (36 + 6 + 8 + 1))
    assert spec.share_moved(["w"]) == pytest.approx(0.75)
    assert spec.share_moved([]) == 0 and spec_of_stack(Stack.mlp((2, 1))).symmetries.share_moved() == 0


def test_device_stays() -> None:
    spec = attention(2, 3)
    state = {n: torch.empty([a.size for a in axes], device="meta") for n, axes in spec.axes}
    assert all(value.is_meta for value in spec.apply(state, spec.sample(0)).values())


@quick
@given(seeds)
def test_json_round_trip(seed: int) -> None:
    spec = spec_of(seed)
    found = PermutationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert found == spec and hash(found) == hash(spec)


def test_json_round_trip_of_everything() -> None:
    nested = Axis(((("H", 2), Axis(((("d", 3),), ((None, 1),)))), (("P", 4),)))
    scale = Rescaling("scale", "P", (Term("w", 0, 1.0), Term("b", 0, -1.0, 0.5)))
    phase = Rescaling("phase", "d", (Term("w", 0, 1.0, 0.0, 0.25),))
    spec = PermutationSpec(
        (("w", (nested, Axis.fixed(2))), ("b", (Axis.of("P", 4, 3),))),
        (("P", Activation.parse("sine:30")),),
        (("d", ("H",)),),
        (scale, phase),
    )
    found = PermutationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert found == spec and hash(found) == hash(spec) and found.describe() == spec.describe()


BROKEN = [
    {},
    None,
    {"axes": 3},
    {"axes": {"w": [1]}},
    {"axes": {"w": [[["P0"]]]}},
    {"axes": {"w": [[[["P0"]]]]}},
    {"axes": {"w": [[[["P0", "3"]]]]}},
    {"axes": {"w": [[[[3, 3]]]]}},
    {"axes": {"w": [[[{"product": []}]]]}},
    {"axes": {}, "over": 3},
    {"axes": {}, "rescalings": [3]},
    {"axes": {}, "rescalings": [{"kind": "scale", "symmetry": "P0", "terms": [[1]]}]},
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_broken_json_is_refused(broken: object) -> None:
    with pytest.raises(UserError, match="broken"):
        PermutationSpec.from_json(broken)


def test_git_rebasin_round_trip() -> None:
    spec = spec_of_stack(Stack.mlp((2, 4, 3, 1), "relu", prefix="fc{}")).symmetries
    table = spec.to_axes_to_perm()
    assert table == {
        "fc0.weight": ("P0", None),
        "fc0.bias": ("P0",),
        "fc1.weight": ("P1", "P0"),
        "fc1.bias": ("P1",),
        "fc2.weight": (None, "P1"),
        "fc2.bias": (None,),
    }
    shapes = {name: tuple(axis.size for axis in axes) for name, axes in spec.axes}
    assert PermutationSpec.from_axes_to_perm(table, shapes) == replace(spec, activations=(), rescalings=())
    with pytest.raises(UserError, match="fc0.weight"):
        PermutationSpec.from_axes_to_perm(table, {"fc0.weight": (2,)})


def test_git_rebasin_cannot_say_flattened_axes() -> None:
    spec = PermutationSpec((("w", (Axis.fixed(2), Axis.of("P0", 3, 4))),))
    with pytest.raises(UserError, match="flattened axis"):
        spec.to_axes_to_perm()


def test_git_rebasin_freezes_what_it_cannot_say() -> None:
    """A class that stands on a flattened axis is frozen on all axes, since moving it on the others alone would be wrong."""
    flat = PermutationSpec((("w", (Axis.of("Q", 2), Axis.of("P", 3, 4))), ("b", (Axis.of("P", 3),))))
    assert flat.to_axes_to_perm(strict=False) == {"w": ("Q", None), "b": (None,)}
    separate = PermutationSpec((("w", (Axis.of("H", 2), Axis.of("d", 3))),), over=(("d", ("H",)),))
    with pytest.raises(UserError, match="w has a dependent axis"):
        separate.to_axes_to_perm()
    assert separate.to_axes_to_perm(strict=False) == {"w": ("H", None)}
    assert attention().to_axes_to_perm(strict=False) == {"qkv": (None, None), "out": (None, None), "gate": (None,)}


def test_wrong_use_is_refused() -> None:
    spec = spec_of_stack(Stack.mlp((2, 3, 1))).symmetries
    state = random_graph(Stack.mlp((2, 3, 1)), 2).to_state_dict()
    with pytest.raises(UserError, match="expected"):
        spec.apply(state, spec.identity())  # the batch axis is not announced
    with pytest.raises(UserError, match="batched"):
        spec.apply({k: v[0] for k, v in state.items()}, spec.sample(0, batch=2))
    with pytest.raises(UserError, match="seq.0.weight holds 2 networks, the element is for 3"):
        spec.apply(state, spec.sample(0, batch=3), batched=True)
    with pytest.raises(UserError, match="class P0 has size 3, but 4"):
        PermutationSpec((("a", (Axis.of("P0", 3),)), ("b", (Axis.of("P0", 4),))))
    other = spec.apply({"step": torch.tensor(3)}, spec.identity())
    assert int(other["step"]) == 3  # unknown names pass


def test_wrong_elements_are_refused() -> None:
    spec = attention(2, 3)
    state = {n: torch.zeros([a.size for a in axes]) for n, axes in spec.axes}
    element = spec.sample(0)
    with pytest.raises(UserError, match="names P7, but the group has H, d"):
        spec.apply(state, {**element, "P7": torch.arange(3)})
    with pytest.raises(UserError, match=r"d of the element has shape \(3,\), expected \[B\?, \*\(2, 3\)\]"):
        spec.compose(element, {**element, "d": torch.arange(3)})
    with pytest.raises(UserError, match="for 2 and 3 networks"):
        spec.invert({"H": spec.sample(0, 2)["H"], "d": spec.sample(0, 3)["d"]})
    with pytest.raises(UserError, match="unknown kind 'rotation'"):
        spec.sample(0, kinds=("permutation", "rotation"))


H, D, P = ("H", 2), ("d", 3), ("P", 4)


@pytest.mark.parametrize(
    ("axes", "over", "message"),
    [
        ([Axis(((D,),)), Axis.fixed(1)], {"d": ("H",)}, "no axis holds H"),
        ([Axis(((H, D),)), Axis.of("P", 4)], {"x": ("H",)}, "no axis holds x"),
        ([Axis(((H, D),))], {"d": ("H", "H")}, "same class twice"),
        ([Axis(((H, D),))], {"d": ("d",)}, "depends on itself"),
        ([Axis(((H, D),))], {"d": ("H",), "H": ("d",)}, "depends on itself"),
        ([Axis(((H, D, P),))], {"d": ("H",), "P": ("d",)}, "must depend on H too"),
        ([Axis(((D,),)), Axis(((H,), (P,)))], {"d": ("H",)}, "only a part of another axis"),
        ([Axis(((D,),)), Axis(((H,),)), Axis(((H, P),))], {"d": ("H",)}, "on 2 other axes"),
        ([Axis(((H, D), (D,)))], {"d": ("H",)}, "on 0 other axes"),
        ([Axis(((D,), (H,)))], {"d": ("H",)}, "on 0 other axes"),
        ([Axis(((H, D),)), Axis(((H, P),))], {"d": ("H",), "P": ("H", "d")}, "P and d depend on different axes"),
    ],
)
def test_contradictory_dependencies_are_refused(
    axes: list[Axis], over: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PermutationSpec((("w", tuple(axes)),), over=tuple(over.items()))


def test_a_parameter_is_listed_once() -> None:
    with pytest.raises(UserError, match="listed twice"):
        PermutationSpec((("w", (Axis.fixed(2),)), ("w", (Axis.fixed(2),))))
