"""The probing baseline, against networks run one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs import trace
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import Encoder, create_encoder
from neural_graphs.nn._probing import Probing
from neural_graphs.testing import assert_invariant, random_graph

SIREN = Stack.mlp((2, 6, 5, 2), "sine:30", shift=0.5)
RELU = Stack.mlp((2, 7, 2), "relu")
DEEP = Stack.mlp((2, 4, 4, 6, 5, 2), ["tanh", "relu", "gelu", "silu"])
READS = ("outputs", "neurons")


def probing(stack: Stack = SIREN, **arguments: Any) -> Probing:
    torch.manual_seed(0)
    sizes = {"inputs": stack.widths[0], "outputs": stack.widths[-1], "probes": 9, "width": 8}
    encoder = create_encoder("probing", **sizes | arguments)
    encoder.fit_normalization([random_graph(stack, 4, torch.float32, seed=9)])
    assert isinstance(encoder, Probing)
    return encoder.double().eval()


def slowly(encoder: Probing, graph: NeuralGraph) -> Tensor:
    """One network, one probe, one neuron at a time."""
    assert graph.stack is not None
    rows = []
    for b in range(graph.batch_size):
        state = graph[b].to_state_dict()
        found: list[list[Tensor]] = []
        for h in encoder.probes.points:
            values = []
            for layer in graph.stack.layers:
                h = layer.activation(state[layer.weight] @ h + state[layer.bias_name])
                values.append(h)
            found.append(values)
        answers = torch.stack([(values[-1] + graph.stack.shift - encoder.mean) / encoder.std for values in found])
        row = answers.flatten()
        if encoder.neurons is not None:
            pooled = []
            for depth in range(1, len(graph.stack.layers)):
                place = encoder.neurons.depth(depth, len(graph.stack.layers) - depth)
                tokens = []
                for n in range(graph.stack.widths[depth]):
                    response = torch.stack([values[depth - 1][n] for values in found])
                    tokens.append(encoder.neurons.token(encoder.neurons.responses(response) + place))
                token = torch.stack(tokens)
                pooled.append(torch.cat([token.mean(0), token.max(0).values]))
            row = torch.cat([row, torch.stack(pooled).mean(0)])
        rows.append(encoder.net(row))
    return torch.stack(rows)


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("stack", [SIREN, RELU, DEEP], ids=str)
def test_it_equals_its_twin(stack: Stack, reads: str, generator: str) -> None:
    encoder = probing(probe_reads=reads, probe_generator=generator)
    graph = random_graph(stack, 3)
    found, right = encoder(graph).vector, slowly(encoder, graph)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    weights = torch.randn(right.shape, dtype=right.dtype)
    parameters = list(encoder.parameters())
    gradients = [torch.autograd.grad((x * weights).sum(), parameters) for x in (found, right)]
    for (name, _), f, r in zip(encoder.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(f, r, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("reads", READS)
def test_invariance(reads: str) -> None:
    encoder = probing(probe_reads=reads)
    networks = [random_graph(stack, 2, seed=k) for k, stack in enumerate((SIREN, RELU, DEEP))]
    assert_invariant(encoder, networks)


def rescaled(graph: NeuralGraph) -> NeuralGraph:
    """The same functions of ReLU networks with other weights."""
    factor = torch.tensor([1e-3, 0.1, 1.0, 2.0, 50.0, 1e3, 7.0], dtype=torch.float64)
    state = graph.to_state_dict(batched=True)
    first, last = graph.stack.layers
    state[first.weight] = state[first.weight] * factor[:, None]
    state[first.bias_name] = state[first.bias_name] * factor
    state[last.weight] = state[last.weight] / factor
    return graph.like(state, batched=True)


def test_outputs_alone_see_functions_and_neurons_see_weights() -> None:
    graph = random_graph(RELU, 3)
    outside, inside = (probing(probe_reads=reads) for reads in READS)
    assert torch.allclose(outside(rescaled(graph)).vector, outside(graph).vector, atol=1e-10)
    assert (inside(rescaled(graph)).vector - inside(graph).vector).abs().max() > 1e-3


def test_networks_without_hidden_neurons_are_read() -> None:
    encoder = probing(probe_reads="neurons")
    assert encoder(random_graph(Stack.mlp((2, 2)), 3)).vector.shape == (3, 8)


def test_responses_are_standardised_over_the_zoo() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("probing", probes=50, width=8, outputs=2)
    graphs = [random_graph(SIREN, 40, torch.float32), random_graph(RELU, 5, torch.float32)]
    encoder.fit_normalization(iter(graphs))
    answers = torch.cat([graph.run(encoder.probes.points).flatten(0, 1) for graph in graphs])
    standardised = (answers - encoder.mean) / encoder.std
    assert torch.allclose(standardised.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(standardised.std(0), torch.ones(2), atol=1e-3)


class Residual(nn.Module):
    """No plain stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(a, b) for a, b in ((2, 6), (6, 6), (6, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(x + torch.tanh(self.inner(x)))


@pytest.mark.parametrize("reads", READS)
def test_traced_modules_are_read_beside_stacks(reads: str) -> None:
    torch.manual_seed(0)
    modules = [Residual().double().eval() for _ in range(3)]
    graph = trace(modules[0], torch.zeros(4, 2, dtype=torch.float64))
    states = [module.state_dict() for module in modules]
    traced = graph.like({name: torch.stack([state[name] for state in states]) for name in states[0]}, batched=True)
    encoder = probing(probe_reads=reads)
    siren = random_graph(SIREN, 2)
    found = encoder(GraphBatch.of([siren, traced])).vector
    assert torch.allclose(found, torch.cat([encoder(siren).vector, encoder(traced).vector]), atol=1e-12)
    if reads == "outputs":
        answers = torch.stack([module(encoder.probes.points) for module in modules])
        right = encoder.net(((answers - encoder.mean) / encoder.std).flatten(1))
        assert torch.allclose(found[2:], right, atol=1e-12)
    assert_invariant(encoder, traced)


def test_mistakes_are_said() -> None:
    encoder: Encoder = probing()
    for stack, message in (
        (Stack.mlp((3, 4, 2)), "probes networks of 2 inputs, this one has 3"),
        (Stack.mlp((2, 4, 3)), "reads networks of 2 outputs, this one has 3"),
    ):
        with pytest.raises(UserError, match=message):
            encoder(random_graph(stack, 2))
    with pytest.raises(UserError, match="must be positive"):
        probing(probes=0)
    with pytest.raises(UserError, match="cannot read 'hidden'"):
        probing(probe_reads="hidden")
    broken = random_graph(RELU, 2, torch.float32).map(lambda t: t * 1e25)
    with pytest.raises(UserError, match="answer probes with NaN or infinity"):
        encoder.fit_normalization([broken])
