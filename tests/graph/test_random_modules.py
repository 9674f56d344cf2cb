"""Never a silent wrong group: whatever the module, its traced symmetries leave its function alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
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


# -- what random modules found, as small as it gets ------------------------------------------------------------------------


class Gram(nn.Module):
    """Products of all hidden units with each other: one class on two axes, of which one is then summed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        z = torch.einsum("bi,bj->bij", y, y) @ self.weight
        return self.last((z @ z.transpose(1, 2)).mean(1))


class RepeatedProducts(nn.Module):
    """One class on two axes of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        products = y[:, :, None] * torch.cat([y, y], 1)[:, None]
        return self.last(products.transpose(1, 2).mean(2))


class WeightNorm(nn.Module):
    """The norm of all weights as a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(4, 3), dim=None)  # type: ignore[arg-type]
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


class ShuffledConcatenation(nn.Module):
    """Two layers' units, interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.first(x).tanh(), self.second(x).relu()], 1)
        return self.last(y.unflatten(1, (2, 3)).transpose(1, 2).flatten(1))


class ClassToken(nn.Module):
    """A learned token before those that a layer gives, and learned positions on both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv1d(1, 3, 2), nn.Linear(4, 2)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 3)), nn.Parameter(torch.randn(1, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(len(x), -1, -1), self.layer(x.unsqueeze(1)).tanh()], 1)
        return self.last((y + self.places).mean(-1))


class CutTwice(nn.Module):
    """Two overlapping corners of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(4, 5)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((F.linear(x, self.weight[:3, :4]) + F.linear(x, self.weight[-3:, -4:])).tanh())


@pytest.mark.parametrize(
    ("module", "group"),
    [
        (Gram, "S3 × S5"),
        (RepeatedProducts, "S3"),
        (WeightNorm, "S3"),
        (ShuffledConcatenation, "S3"),
        (ClassToken, "S3"),
        (CutTwice, "trivial"),
    ],
)
def test_what_random_modules_found(module: type[nn.Module], group: str) -> None:
    torch.manual_seed(0)
    report = assert_symmetries(module(), torch.randn(2, 4), kinds=("permutation",))
    assert report.group == group
