"""The assertions that hold models to their symmetries catch wrong models, and models that look at nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import create_encoder
from neural_graphs.testing import (
    _symmetries,
    assert_equivariant,
    assert_invariant,
    assert_symmetries,
    random_graph,
    random_inputs,
    random_module,
    random_stack,
)

STACK = Stack.mlp((2, 6, 5, 1), "tanh")
GRAPH = random_graph(STACK, 4)


def first_weights(batch: GraphBatch) -> torch.Tensor:
    return batch.buckets[0].edges[0].flatten(1)


def sorted_products(batch: GraphBatch) -> torch.Tensor:
    """Invariant to the group, not to more: incoming times outgoing weight of every neuron of the first hidden layer."""
    first, second = (edges[..., 0] for edges in batch.buckets[0].edges[:2])
    return torch.einsum("boi,bko->bi", first, second)


def sums(batch: GraphBatch) -> torch.Tensor:
    """Invariant to any reordering of any tensor."""
    return torch.stack([edges.square().flatten(1).sum(1) for edges in batch.buckets[0].edges], 1)


def test_invariant_models_pass() -> None:
    assert assert_invariant(sorted_products, GRAPH) < 1e-12
    assert assert_invariant(sums, GRAPH, control="networks") < 1e-12


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (first_weights, "not invariant: permuting neurons changes the output by"),
        (sums, "proves nothing: a wrong permutation changes the output by only"),
        (lambda batch: torch.ones(len(batch), 2, dtype=torch.float64), "proves nothing"),
        (lambda batch: sorted_products(batch) * float("nan"), "not invariant"),
    ],
)
def test_wrong_models_fail(model: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_invariant(model, GRAPH)


def test_constant_models_fail_the_weaker_control() -> None:
    with pytest.raises(AssertionError, match="another network"):
        assert_invariant(lambda batch: torch.ones(len(batch), 2, dtype=torch.float64), GRAPH, control="networks")


def test_equivariant_models_pass() -> None:
    encoder = create_encoder("ng-gnn", width=6, layers=2, fourier=4).double()
    assert assert_equivariant(encoder, GRAPH) < 1e-10
    assert encoder.training  # left as it was found, though it was run without dropout
    mixed = GraphBatch.of([GRAPH, random_graph(random_stack(1, "siren"), 2)])
    assert assert_equivariant(create_encoder("ng-gnn", width=6, layers=2, fourier=4).double(), mixed) < 1e-10


def test_parameter_heads_are_compared_parameter_by_parameter() -> None:
    def square(batch: GraphBatch) -> NeuralGraph:
        return batch.buckets[0].map(torch.square)

    assert assert_equivariant(square, GRAPH) == 0
    assert assert_equivariant(lambda batch: square(batch).to_state_dict(batched=True), GRAPH) == 0
    with pytest.raises(AssertionError, match="not equivariant: seq.0.weight"):
        assert_equivariant(lambda batch: square(batch).map(lambda t: t.cumsum(1)), GRAPH)


@pytest.mark.parametrize("part", ["nodes", "edges"])
def test_one_wrong_embedding_is_caught(part: str) -> None:
    encoder = create_encoder("ng-gnn", width=6, layers=2, fourier=4).double().eval()

    def wrong(batch: GraphBatch) -> Any:
        encoding = encoder(batch)
        values = list(getattr(encoding, part)[0])
        values[1] = values[1].clone()
        values[1][:, 0] += 0.1
        return replace(encoding, **{part: (tuple(values),)})

    with pytest.raises(AssertionError, match=f"not equivariant: {'node set' if part == 'nodes' else 'edges'} 1"):
        assert_equivariant(wrong, GRAPH)


def test_equal_values_everywhere_prove_nothing() -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        assert_equivariant(lambda batch: batch.buckets[0].map(torch.ones_like), GRAPH)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UserError, match="no symmetry to test"):
        assert_invariant(sums, random_graph(Stack.mlp((2, 1, 1)), 2))
    encoder = create_encoder("ng-gnn", width=4, layers=1, fourier=2).double()
    with pytest.raises(UserError, match="put a head"):
        assert_invariant(encoder, GRAPH)
    with pytest.raises(UserError, match="cannot read a Tensor"):
        assert_equivariant(sums, GRAPH)


def test_random_stacks_are_varied_and_repeatable() -> None:
    stacks = [random_stack(seed) for seed in range(60)]
    assert stacks == [random_stack(seed) for seed in range(60)]
    assert len(set(stacks)) > 55
    layers = [layer for stack in stacks for layer in stack.layers]
    assert {layer.activation.kind for layer in layers} >= {"relu", "tanh", "sine", "gelu", "none"}
    assert any(layer.positions > 1 for layer in layers) and any(layer.pool == "global" for layer in layers)
    assert any(layer.pool == "max:2" for layer in layers) and any(not layer.bias for layer in layers)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_run(seed: int) -> None:
    stack = random_stack(seed)
    for dtype in (torch.float32, torch.float64):
        graph = random_graph(stack, 2, dtype, seed)
        outputs = graph.run(random_inputs(stack, 3, dtype))
        assert outputs.shape == (2, 3, stack.widths[-1]) and outputs.dtype == dtype
        assert outputs.isfinite().all() and outputs.std() > 1e-4
        again = random_graph(stack, 2, dtype, seed)
        assert all(torch.equal(a, b) for a, b in zip(graph.edges, again.edges, strict=True))


# -- modules --------------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))


def test_traced_symmetries_hold() -> None:
    module, x = network(), torch.randn(4, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = assert_symmetries(module, x, moves=True)
    assert report.group.startswith("S6") and report.error < 1e-12 and report.control > 1e-6
    assert module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert assert_symmetries(module, x, dtype=torch.float32, tolerance=None).dtype == "float32"
    assert_symmetries(*random_module(0))


def test_wrong_symmetries_fail_and_the_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), torch.randn(4, 3)
    graph = trace(module, x)
    axes = tuple((name, (Axis.fixed(6),) if name == "1.bias" else entry) for name, entry in graph.symmetries.axes)
    wrong = replace(graph, spec=replace(graph.spec, symmetries=replace(graph.symmetries, axes=axes)))
    monkeypatch.setattr(_symmetries, "trace", lambda *_: wrong)
    with pytest.raises(
        AssertionError, match="change what the module computes.*permutations alone.*class P0 on 0.weight axis 0"
    ):
        assert_symmetries(module, x)


def test_inexact_graphs_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), torch.randn(4, 3)
    graph = trace(module, x).map(lambda value: value + 1)
    monkeypatch.setattr(_symmetries, "trace", lambda *_: graph)
    with pytest.raises(AssertionError, match="does not give 0.weight back exactly"):
        assert_symmetries(module, x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 2), "finds no symmetry"),
        (nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Threshold(5, 0), nn.Linear(6, 2)), "proves nothing"),
    ],
)
def test_symmetries_that_do_not_show_fail(module: nn.Module, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_symmetries(module, torch.randn(4, 3), moves=True)
