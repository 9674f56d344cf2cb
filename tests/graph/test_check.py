"""Symmetry claims are verified on the real network, and wrong ones are caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, NeuralGraph, PermutationSpec, Stack, trace
from neural_graphs.testing import random_graph, random_inputs, random_stack


def with_spec(graph: NeuralGraph, symmetries: PermutationSpec) -> NeuralGraph:
    return replace(graph, spec=replace(graph.spec, symmetries=symmetries))


def freeze(spec: PermutationSpec, parameter: str, position: int) -> PermutationSpec:
    """The spec with one axis of one parameter left out."""
    axes = []
    for name, entry in spec.axes:
        if name == parameter:
            entry = tuple(Axis.fixed(a.size) if k == position else a for k, a in enumerate(entry))
        axes.append((name, entry))
    return replace(spec, axes=tuple(axes), rescalings=())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["mlp", "siren", "cnn"])
def test_true_claims_hold(kind: Any, seed: int) -> None:
    stack = random_stack(seed, kind)
    torch.manual_seed(seed)
    module = stack.module()
    inputs = random_inputs(stack, 16)
    report = trace(module).check(module, inputs)
    assert report.passed, str(report)
    assert report.error < 1e-12 and report.control > 1e-6
    assert "holds" in str(report)
    assert all(p.dtype == torch.float32 for p in module.parameters())  # the module is left alone
    assert random_graph(stack, 1).check(inputs=inputs).passed


def test_every_left_out_axis_is_caught() -> None:
    stack = Stack.mlp((2, 5, 4, 1), "tanh")
    graph = random_graph(stack, 1)
    caught = 0
    for name, axes in graph.symmetries.axes:
        for position, axis in enumerate(axes):
            if axis.moves:
                report = with_spec(graph, freeze(graph.symmetries, name, position)).check()
                assert not report.passed and report.error > 1e-3 and "FAILS" in str(report)
                caught += 1
    assert caught == 6


def test_a_smaller_group_is_a_true_claim() -> None:
    graph = random_graph(Stack.mlp((2, 5, 4, 1), "tanh"), 1)
    spec = graph.symmetries
    for name, axes in spec.axes:
        for position, axis in enumerate(axes):
            if str(axis) == "P0":
                spec = freeze(spec, name, position)
    report = with_spec(graph, spec).check()
    assert report.passed and report.group == "S4"


def test_a_module_that_is_not_the_traced_one_is_caught() -> None:
    """The claim of a plain stack on a module that adds a fixed pattern to its hidden neurons."""

    class Skewed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seq = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Linear(6, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.seq[1](torch.tanh(self.seq[0](x) + torch.arange(6)))

    module = Skewed()
    graph = NeuralGraph.from_state_dict(module.state_dict(), "tanh")
    assert graph.check().passed
    assert not graph.check(module).passed


@pytest.mark.parametrize("widths", [(2, 1), (2, 1, 1), (3, 2, 1)])
def test_tiny_groups(widths: tuple[int, ...]) -> None:
    """No neuron to move, or only two: nothing to get wrong by chance."""
    graph = random_graph(Stack.mlp(widths, "tanh"), 1)
    for seed in range(20):
        report = graph.check(seed=seed, samples=2)
        assert report.passed, (seed, str(report))


def test_a_network_of_nan_does_not_pass() -> None:
    graph = random_graph(Stack.mlp((2, 4, 1)), 1).map(lambda t: t * float("nan"))
    assert not graph.check().passed


def test_convolutions_need_inputs() -> None:
    with pytest.raises(UserError, match="give example inputs"):
        random_graph(random_stack(0, "cnn"), 1).check()


class _Casting(torch.nn.Module):
    """Normalises in float32, or half, whatever its weights are, as many language models do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second, self.dtype = torch.nn.Linear(3, 6), torch.nn.Linear(6, 2), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x)).to(self.dtype)
        x = torch.softmax(x / x.pow(2).mean(-1, keepdim=True).sqrt(), -1, dtype=self.dtype)
        return self.second(x.to(self.second.weight.dtype))


def test_casts_to_single_precision_do_not_blur_the_check() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 3)
    module = _Casting(torch.float32)
    report = trace(module, inputs).check(module, inputs)
    assert report.passed and report.dtype == "float64" and report.error < 1e-12, str(report)
    single = trace(module, inputs).check(module, inputs, dtype=torch.float32)
    assert single.passed and single.dtype == "float32" and single.tolerance == 1e-4 and single.error > 1e-12


def test_coarser_casts_set_the_tolerance() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 3)
    report = trace(_Casting(torch.float16), inputs).check(_Casting(torch.float16), inputs)
    assert report.dtype == "float16" and report.tolerance == 3e-2 and report.error < 3e-2


class _Counting(torch.nn.Module):
    """Keeps a running mean of its hidden values, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 6), torch.nn.Linear(6, 2)
        self.register_buffer("mean", torch.linspace(0, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.second(x - self.mean)


def test_buffers_that_a_module_updates_stay_as_they_were() -> None:
    torch.manual_seed(0)
    module, inputs = _Counting().double(), torch.randn(5, 3, dtype=torch.float64)
    graph, before = trace(module, inputs), module.mean.clone()
    assert str(graph.symmetries) == "S6"
    assert graph.check(module, inputs).passed
    assert torch.equal(module.mean, before)


class _Largest(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).amax(-1)


def test_the_control_of_a_single_moved_tensor_shuffles_it() -> None:
    torch.manual_seed(0)
    module, inputs = _Largest(), torch.randn(5, 3)
    report = trace(module, inputs).check(module, inputs)
    assert report.group == "S6" and report.passed and report.control > 1e-3


def test_single_classes_are_checked_alone() -> None:
    graph = random_graph(Stack.mlp((2, 4, 5, 1)), 1)
    (bias,) = (name for name, shape in graph.spec.shapes.items() if shape == (5,))
    broken = with_spec(graph, freeze(graph.symmetries, bias, 0))
    first, second = graph.symmetries.classes
    assert broken.check(classes=(first,)).error < 1e-12
    assert broken.check(classes=(second,)).error > 1e-3


class Summed(nn.Module):
    """A bias before a sum: its order makes no difference, but that of the weights beside it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))).sum(-1, keepdim=True)


def test_a_tensor_whose_order_makes_no_difference_is_inert() -> None:
    torch.manual_seed(0)
    module, x = Summed(), torch.randn(5, 3)
    report = trace(module, x).check(module, x)
    assert report.passed and report.error < 1e-12, str(report)
    assert "second.bias" in report.inert and not any(name.startswith("first") for name in report.inert)


def test_a_network_that_notices_nothing_shows_nothing() -> None:
    module, x = Summed(), torch.randn(5, 3)
    with torch.no_grad():
        module.second.weight.zero_()
    report = trace(module, x).check(module, x)
    assert not report.passed and report.control == 0
    assert "neither shown nor refuted" in str(report) and "FAILS" not in str(report)
