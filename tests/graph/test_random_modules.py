"""Never a silent wrong group: whatever the module, its traced symmetries leave its function alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from neural_graphs.errors import UserError
from neural_graphs.testing import assert_symmetries, random_module
from neural_graphs.testing._modules import assemble
from neural_graphs.testing._steps import STEPS

RECIPES = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 999)), min_size=1, max_size=7)


@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    kind=st.sampled_from(["vector", "sequence", "image", "tokens"]),
    recipe=RECIPES,
    head=st.sampled_from(["linear", "pooled", "flat", "tied"]),
    answer=st.sampled_from(["tensor", "tuple", "dictionary"]),
)
def test_any_module_keeps_its_function(kind: str, recipe: list[tuple[str, int]], head: str, answer: str) -> None:
    assert_symmetries(*assemble(kind, recipe, head, answer), samples=2)


def test_most_random_modules_have_symmetries_that_show() -> None:
    """The negative control of the property above: were a tensor left out of the permutation, it would fail."""
    found = Counter[str]()
    for seed in range(24):
        try:
            assert_symmetries(*random_module(seed), samples=2, moves=True)
            found["shows"] += 1
        except AssertionError as error:
            found[
                "trivial" if "no symmetry" in str(error) else "inert" if "proves nothing" in str(error) else "wrong"
            ] += 1
    assert not found["wrong"]
    assert found["shows"] >= 4 * found["inert"] and found["shows"] >= 12, found


@pytest.mark.parametrize("kind", ["vector", "sequence", "image", "tokens", None])
def test_the_same_seed_gives_the_same_module(kind: Any) -> None:
    (first, x), (second, y) = random_module(3, kind), random_module(3, kind)
    assert str(first) == str(second) and torch.equal(x, y)
    other = second.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.state_dict().items())
    assert str(first) != str(random_module(4, kind)[0])


def test_random_modules_use_every_step() -> None:
    seen = Counter(name for seed in range(250) for name, _ in random_module(seed)[0].recipe)
    assert seen.keys() == STEPS.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_modules_run_and_are_sensitive(dtype: torch.dtype) -> None:
    still = 0
    for seed in range(60):
        module, x = random_module(seed, dtype=dtype)
        with torch.no_grad():
            before = tree_leaves(module(x))[0]
            assert before.dtype == dtype and before.isfinite().all()
            for parameter in module.parameters():
                parameter.mul_(1.1)
            still += torch.equal(before, tree_leaves(module(x))[0])
    assert still <= 3


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(UserError, match="no kind of module 'graph': choose among vector, sequence"):
        random_module(0, "graph")  # type: ignore[arg-type]
