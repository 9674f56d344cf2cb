"""The graph head, the raw-weight MLP, and kernels of different sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Stack
from neural_graphs.nn import GraphHead, create_encoder, list_encoders
from neural_graphs.nn._embedding import pad_kernel
from neural_graphs.testing import random_graph, random_stack


# Probes look at what networks compute, which changes with the units of their weights.
@pytest.mark.parametrize("name", sorted(set(list_encoders()) - {"probing", "combined"}))
def test_scale_of_the_zoo_does_not_matter(name: str, build: Any) -> None:
    """Encoders see weights relative to the training networks' statistics: other units, same answer.

    Of tanh, whose scale is no symmetry and whose bias, unlike a sine's, is not periodic.
    """
    stack = Stack.mlp((2, 6, 5, 1), "tanh")
    encoder, graph = build(name, parameters=stack.num_parameters), random_graph(stack, 6)
    found = []
    for units in (1.0, 100.0):
        scaled = graph.map(lambda t, u=units: u * t)
        encoder.fit_normalization([scaled])
        encoding = encoder(scaled)
        found.append(encoding.vector if encoding.nodes is None else encoding.nodes[0][-1])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_head_reads_output_neurons_only() -> None:
    stack = Stack.mlp((2, 4, 3))
    encoder = create_encoder("ng-gnn", width=6, layers=2, fourier=4).double().eval()
    head, graph = GraphHead(6, 3, 2).double(), random_graph(stack, 4)
    full, part = (head(encoder(graph, reads=reads)) for reads in ("edges", "outputs"))
    torch.testing.assert_close(full, part, rtol=1e-12, atol=1e-12)
    outputs = encoder(graph).nodes[0][2]
    torch.testing.assert_close(full, head.mlp(outputs.reshape(4, 18)), rtol=1e-12, atol=1e-12)


def test_head_answers_in_the_batchs_order() -> None:
    encoder = create_encoder("ng-gnn", width=6, layers=2, fourier=4).double().eval()
    head = GraphHead(6, 1, 2).double()
    graphs = [random_graph(Stack.mlp((2, width, 1)), 1, seed=width) for width in (3, 5, 3, 4)]
    found = head(encoder(GraphBatch.of(graphs), reads="outputs"))
    torch.testing.assert_close(found, torch.cat([head(encoder(g, reads="outputs")) for g in graphs]))


def test_mlp_reads_every_parameter_of_one_size() -> None:
    stack = random_stack(4, "cnn")
    graph = random_graph(stack, 2)
    encoder = create_encoder("mlp", parameters=stack.num_parameters, width=8, layers=1).double().eval()
    state = graph.to_state_dict(batched=True)
    for name in state:
        state[name].requires_grad_()
    encoder(graph.pack(graph.spec, state, stack)).vector.square().sum().backward()
    for name, value in state.items():
        assert value.grad is not None and value.grad.abs().max() > 0, name
    with pytest.raises(UserError, match=rf"reads networks of {stack.num_parameters} parameters, this one has 17"):
        encoder(random_graph(Stack.mlp((2, 4, 1)), 1))


def test_small_kernels_are_centred_in_large_ones() -> None:
    edges = torch.arange(1.0, 7).view(1, 1, 1, 6)  # a kernel of 2 rows and 3 columns
    padded = pad_kernel(edges, 6, (2, 3), (5, 5)).view(5, 5)
    right = torch.zeros(5, 5)
    right[1:3, 1:4] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert torch.equal(padded, right)
    assert torch.equal(pad_kernel(edges, 6, (2, 3), (2, 3)), edges)
    scalar = pad_kernel(torch.ones(1, 1, 1, 1), 1, (), (3, 3)).view(3, 3)
    assert scalar[1, 1] == 1 and scalar.sum() == 1
