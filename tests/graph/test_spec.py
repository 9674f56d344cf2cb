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


def test_printing() -> None:
    spec = spec_of_stack(Stack.mlp((2, 32, 32, 1))).symmetries
    assert str(spec) == "S32 × S32"
    assert spec.log10_order == pytest.approx(2 * math.log10(math.factorial(32)))
    text = spec.describe()
    assert "P0: 32 neurons, sine:30" in text and "seq.1.weight  [P1, P0]" in text
    assert str(spec_of_stack(Stack.mlp((2, 1))).symmetries) == "trivial"


@quick
@given(seeds)
def test_json_round_trip(seed: int) -> None:
    spec = spec_of(seed)
    found = PermutationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert found == spec and hash(found) == hash(spec)


@pytest.mark.parametrize("broken", [{}, {"axes": 3}, {"axes": {"w": [1]}}, {"axes": {"w": [[["P0"]]]}}, None])
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
    assert PermutationSpec.from_axes_to_perm(table, shapes) == replace(spec, activations=())
    with pytest.raises(UserError, match="fc0.weight"):
        PermutationSpec.from_axes_to_perm(table, {"fc0.weight": (2,)})


def test_git_rebasin_cannot_say_flattened_axes() -> None:
    spec = PermutationSpec((("w", (Axis.fixed(2), Axis.of("P0", 3, 4))),))
    with pytest.raises(UserError, match="flattened axis"):
        spec.to_axes_to_perm()


def test_wrong_use_is_refused() -> None:
    spec = spec_of_stack(Stack.mlp((2, 3, 1))).symmetries
    state = random_graph(Stack.mlp((2, 3, 1)), 2).to_state_dict()
    with pytest.raises(UserError, match="expected"):
        spec.apply(state, spec.identity())  # the batch axis is not announced
    with pytest.raises(UserError, match="batched"):
        spec.apply({k: v[0] for k, v in state.items()}, spec.sample(0, batch=2))
    with pytest.raises(UserError, match="class P0 has size 3, but 4"):
        PermutationSpec((("a", (Axis.of("P0", 3),)), ("b", (Axis.of("P0", 4),))))
    other = spec.apply({"step": torch.tensor(3)}, spec.identity())
    assert int(other["step"]) == 3  # unknown names pass
