"""Seven statistics per tensor, and the encoder that reads nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import StatNN, create_encoder, statistics
from neural_graphs.testing import random_graph, random_module, random_stack


def seven(values: np.ndarray) -> list[float]:
    return [values.mean(), values.var(), *np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


@pytest.mark.parametrize("seed", range(6))
def test_statistics_are_those_of_numpy(seed: int) -> None:
    stack = random_stack(seed)
    graph, slots = random_graph(stack, 3), len(stack.layers) + 2
    found = statistics(graph, slots).view(3, slots, 2, 7).numpy()
    for b in range(3):
        state = graph[b].to_state_dict()
        wanted = np.zeros((slots, 2, 7))
        for place, layer in zip([*range(len(stack.layers) - 1), slots - 1], stack.layers, strict=True):
            wanted[place, 0] = seven(state[layer.weight].numpy())
            if layer.bias_name:
                wanted[place, 1] = seven(state[layer.bias_name].numpy())
        np.testing.assert_allclose(found[b], wanted, rtol=1e-12, atol=1e-14)
    traced = graph.map(lambda t: t.clone().requires_grad_())  # sorted by torch, which has gradients
    again = statistics(traced, slots)
    np.testing.assert_allclose(again.detach().view(3, slots, 2, 7).numpy(), found, rtol=1e-12, atol=1e-14)
    again.sum().backward()
    assert all(edges.grad is not None and edges.grad.any() for edges in traced.edges)


def test_mixed_architectures_share_the_first_slots_and_the_last() -> None:
    shallow, deep = Stack.mlp((2, 4, 1), "relu"), Stack.mlp((2, 4, 5, 6, 1), "relu")
    graphs = [random_graph(deep, 1), random_graph(shallow, 2), random_graph(deep, 1, seed=1)]
    found = statistics(graphs).view(4, 4, 14)
    assert (found[1:3, 1:3] == 0).all() and (found[[0, 3]] != 0).any(2).all()
    torch.testing.assert_close(found[1:3][:, [0, 3]], statistics(graphs[1]).view(2, 2, 14), rtol=0, atol=0)
    with pytest.raises(UserError, match="room for networks of 3 layers, this one has 4: raise max_layers"):
        statistics(graphs, 3)
    with pytest.raises(UserError, match="room for networks of 3 layers, this one has 4: raise max_layers"):
        create_encoder("statnn", max_layers=3).check_readable(graphs[0])
    assert statistics([]).shape[0] == 0


def test_moments_are_of_the_networks_that_have_the_tensor() -> None:
    graphs = [random_graph(Stack.mlp((2, 4, 1)), 6), random_graph(Stack.mlp((2, 4, 5, 1)), 4)]
    encoder = StatNN(width=4, max_layers=3).double()
    encoder.fit_normalization(graphs)
    middle = slice(14, 28)
    own = statistics(graphs[1], 3)[:, middle]
    torch.testing.assert_close(encoder.mean[middle], own.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder.std[middle], own.std(0, correction=0), rtol=1e-10, atol=1e-12)
    read: list[torch.Tensor] = []
    encoder.net.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    encoder(GraphBatch.of(graphs))
    values, present = read[0].split([42, 6], 1)
    assert present.tolist() == [[1, 1, 0, 0, 1, 1]] * 6 + [[1, 1, 1, 1, 1, 1]] * 4
    assert (values[:6, middle] == 0).all()
    torch.testing.assert_close(values[:, :14].mean(0), values.new_zeros(14), rtol=0, atol=1e-10)
    with pytest.raises(UserError, match="no networks"):
        encoder.fit_normalization([])
    with pytest.raises(UserError, match="NaN or infinite"):
        encoder.fit_normalization([graphs[0].map(lambda t: t * float("nan"))])


@pytest.mark.parametrize("seed", range(4))
def test_traced_modules_are_read(seed: int) -> None:
    """Every tensor that is a part of the graph has its statistics in the table, none twice."""
    graph: NeuralGraph = trace(*random_module(seed))
    found = statistics(graph)[0].view(-1, 7)
    state = graph.to_state_dict()
    wanted = [seven(state[name].double().numpy()) for name in graph.spec.places]
    held = found[(found != 0).any(1)].double().numpy()
    np.testing.assert_allclose(sorted(map(list, held)), sorted(filter(any, wanted)), rtol=1e-9, atol=1e-12)
