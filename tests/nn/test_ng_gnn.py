"""NG-GNN against its textbook twin, on every kind of network, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.bench._edge_list_twin import EdgeListTwin
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import NGGNN, Encoding, GraphHead, Normalization, create_encoder
from neural_graphs.nn import _edges as edges_module
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph, random_stack

KINDS = [(kind, seed) for kind in ("mlp", "siren", "cnn") for seed in (0, 1)]


def encoder_for(stack: Stack, dtype: torch.dtype = torch.float64, **arguments: Any) -> NGGNN:
    torch.manual_seed(0)
    kernel = [1, 1]
    for layer in stack.layers:
        side = math.isqrt(layer.positions)
        kernel = [max(kernel[0], *layer.kernel, side), max(kernel[1], *layer.kernel, side)]
    wanted = {"width": 8, "layers": 3, "inputs": stack.widths[0], "kernel": kernel, "fourier": 6, **arguments}
    encoder = create_encoder("ng-gnn", **wanted)
    assert isinstance(encoder, NGGNN)
    encoder.fit_normalization([random_graph(stack, 3, seed=5)])
    return encoder.to(dtype).eval()


def tensors(encoding: Encoding) -> list[Tensor]:
    assert encoding.nodes is not None and encoding.edges is not None
    return [x for part in (*encoding.nodes, *encoding.edges) for x in part if x is not None]


# -- the textbook twin ----------------------------------------------------------------------------------------------------


def assert_equals_twin(encoder: NGGNN, graph: NeuralGraph) -> None:
    """Embeddings, and the gradients of a random projection of them in every parameter, to 1e-10."""
    found, right = tensors(encoder(graph)), tensors(EdgeListTwin(encoder).eval()(graph))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in right]
    parameters = [p for p in encoder.parameters()]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(values, weights, strict=True)), parameters)
        for values in (found, right)
    ]
    for f, r in zip(found, right, strict=True):
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)
    for (name, _), f, r in zip(encoder.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.abs().max().clamp_min(1)), msg=name)


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("probes", [0, 8])
def test_sirens_equal_the_twin(reverse: bool, probes: int) -> None:
    stack = Stack.mlp((2, 7, 5, 2), "sine:30", shift=0.5)
    encoder = encoder_for(stack, probes=probes, reverse_edges=reverse)
    assert_equals_twin(encoder, random_graph(stack, 3))


def test_the_twin_notices_a_wrong_parameter() -> None:
    stack = Stack.mlp((2, 5, 1))
    encoder, graph = encoder_for(stack), random_graph(stack, 2)
    right = tensors(EdgeListTwin(encoder).eval()(graph))[2].detach()
    with torch.no_grad():
        encoder.layers[1].edge_mlp.out.bias[0] += 1e-3
    assert (tensors(encoder(graph))[2] - right).abs().max() > 1e-6


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_random_stacks_equal_the_twin(kind: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", 100)
    stack = random_stack(seed, kind)
    assert_equals_twin(encoder_for(stack, layers=2, fourier=seed * 6), random_graph(stack, 2))


def test_dropout_draws_on_nodes_only() -> None:
    """In training mode, with the dropout off, nothing changes; with it on, something does."""
    stack = Stack.mlp((2, 6, 1))
    graph = random_graph(stack, 2)
    for dropout, same in ((0.0, True), (0.5, False)):
        encoder = encoder_for(stack, dropout=dropout)
        still = tensors(encoder(graph))[2]
        assert torch.equal(tensors(encoder.train()(graph))[2], still) is same


# -- symmetries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_random_stacks_are_encoded_equivariantly(kind: Any, seed: int, dtype: torch.dtype) -> None:
    stack = random_stack(seed, kind)
    encoder, graph = encoder_for(stack, dtype, probes=0 if kind == "cnn" else 4), random_graph(stack, 3, dtype)
    head = GraphHead(encoder.width, stack.widths[-1], 3).to(dtype)
    assert_equivariant(encoder, graph)
    assert_invariant(lambda batch: head(encoder(batch, reads="outputs")), graph)


def test_inputs_and_outputs_are_told_apart() -> None:
    """Swapping two inputs, or two outputs, makes another network: no symmetry of the model."""
    stack = Stack.mlp((2, 5, 2))
    encoder, graph = encoder_for(stack), random_graph(stack, 2)
    state = graph.to_state_dict(batched=True)
    flipped = {**state, "seq.0.weight": state["seq.0.weight"].flip(2)}
    turned = {**state, "seq.1.weight": state["seq.1.weight"].flip(1), "seq.1.bias": state["seq.1.bias"].flip(1)}
    before = encoder(graph, reads="outputs").nodes[0][2].detach()
    for other in (flipped, turned):
        after = encoder(NeuralGraph.pack(graph.spec, other, stack), reads="outputs").nodes[0][2].detach()
        assert min(float((after - x).abs().max()) for x in (before, before.flip(1))) > 1e-4


def test_depths_never_seen_are_read() -> None:
    encoder = encoder_for(Stack.mlp((2, 5, 1)))
    networks = [random_graph(Stack.mlp((2, *[4] * depth, 1)), 1) for depth in (1, 3, 6)]
    values = encoder(GraphBatch.of(networks), reads="outputs")
    found = torch.stack([nodes[-1][0, 0] for nodes in values.nodes])
    assert found.isfinite().all() and (found[0] - found[2]).abs().max() > 1e-4


# -- size, precision, statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probes", "published"), [(0, 331_466), (16, 336_362), (64, 348_746)])
def test_parameter_count_is_the_papers(probes: int, published: int) -> None:
    model = torch.nn.ModuleList([create_encoder("ng-gnn", probes=probes), GraphHead(64, 1, 10)])
    assert abs(sum(p.numel() for p in model.parameters()) / published - 1) < 0.02


def test_bfloat16_edges_stay_near_float32() -> None:
    stack = Stack.mlp((2, 8, 8, 1), "sine:30")
    encoder, graph = encoder_for(stack, torch.float32), random_graph(stack, 4, torch.float32)
    exact = encoder(graph).nodes[0][-1]
    encoder.edge_dtype = torch.bfloat16
    rounded = encoder(graph).nodes[0][-1]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_normalisation_is_that_of_the_training_networks() -> None:
    stack = Stack.mlp((3, 6, 4, 2))
    graph = random_graph(stack, 20)
    statistics = Normalization.fit([graph[:7], graph[7:]])
    for value in (*statistics.weights(graph), *statistics.biases(graph)[1:]):
        assert abs(float(value.mean())) < 1e-10
        assert float(value.std(correction=0)) == pytest.approx(1, abs=1e-10)
    assert not statistics.biases(graph)[0].any()  # inputs have none
    wider = random_graph(Stack.mlp((3, 24, 4, 2)), 200)  # same initial scheme: w * sqrt(fan_in) has the same scale
    assert float(statistics.weights(wider)[1].std()) == pytest.approx(1, abs=0.2)


def test_average_degree_counts_both_directions() -> None:
    stack = Stack.mlp((2, 4, 1))
    expected = {True: (2 * math.log(5) + 4 * math.log(4) + math.log(5)) / 7, False: (4 * math.log(3) + math.log(5)) / 7}
    for reverse, value in expected.items():
        assert float(encoder_for(stack, reverse_edges=reverse).average_log_degree) == pytest.approx(value)


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "arguments", "message"),
    [
        (Stack.mlp((2, 4, 17)), {}, "up to 16 inputs and outputs"),
        (Stack.mlp((3, 4, 1)), {"probes": 4, "inputs": 2}, "probes networks of 2 inputs, this one has 3"),
        (random_stack(3, "cnn"), {"kernel": (1, 1)}, "larger kernel"),
    ],
)
def test_networks_that_do_not_fit_are_refused(stack: Stack, arguments: dict[str, Any], message: str) -> None:
    encoder = create_encoder("ng-gnn", width=4, layers=1, **arguments).double()
    for call in (encoder.check_readable, encoder):
        with pytest.raises(UserError, match=message):
            call(random_graph(stack, 1))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="must be positive"):
        create_encoder("ng-gnn", layers=0)
    with pytest.raises(UserError, match="unknown encoder 'gnn': choose one of"):
        create_encoder("gnn")
    with pytest.raises(UserError, match="encoder ng-gnn has no argument .depth.*"):
        create_encoder("ng-gnn", depth=3)
    with pytest.raises(UserError, match="reads networks of 1 outputs, this one has 2"):
        stack = Stack.mlp((2, 3, 2))
        GraphHead(8, 1, 3).double()(encoder_for(stack)(random_graph(stack, 1)))


def test_aggregators_equal_pytorch_geometric() -> None:
    """The statistics and scalers are those of PyTorch Geometric's PNA aggregation."""
    aggregation = pytest.importorskip("torch_geometric.nn.aggr")
    from neural_graphs.nn._edges import aggregate

    generator = torch.Generator().manual_seed(0)
    messages = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)  # [B, receivers, senders, F]
    degree = messages.shape[2]
    theirs = aggregation.DegreeScalerAggregation(
        ["mean", "min", "max", "std"], ["identity", "amplification"], torch.bincount(torch.tensor([2, 5, 5, 9]))
    )
    index = torch.arange(8).repeat_interleave(degree)
    right = theirs(messages.flatten(0, 2), index).unflatten(0, (2, 4))
    statistics = (messages.sum(2), messages.square().sum(2), messages.amin(2), messages.amax(2))
    found = aggregate([statistics], degree, messages[:, :, 0])
    average = torch.log1p(torch.tensor([2.0, 5, 5, 9], dtype=torch.float64)).mean()
    scaled = torch.cat([found, found * math.log1p(degree) / average], -1)
    torch.testing.assert_close(scaled, right, rtol=1e-4, atol=1e-4)  # newer versions clamp the variance at our epsilon
