"""Rendering networks in bulk is what running each of them by itself gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, GraphBatch, NeuralGraph, Stack, pixel_grid, render, trace


def networks(stack: Stack, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> NeuralGraph:
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (torch.rand(n, *shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype) / shape[-1] ** 0.5
        for name, shape in stack.parameter_shapes().items()
    }
    return stack.graph(state)


def one_by_one(graph: NeuralGraph, height: int, width: int) -> Tensor:
    """The slow, obvious twin: every network by itself."""
    grid = pixel_grid(height, width, graph.dtype)
    drawn = [graph[b].run(grid)[0].unflatten(0, (height, width)) for b in range(len(graph))]
    return torch.stack(drawn)


STACKS = {
    "siren": Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5),
    "colour": Stack.mlp((2, 16, 16, 16, 3), ["sine:30", "relu", "tanh"], output_activation="sigmoid"),
    "no bias": Stack.mlp((2, 9, 5, 2), "gelu", bias=False),
    "linear": Stack.mlp((2, 3)),
}


@pytest.mark.parametrize("name", STACKS)
def test_bulk_is_one_by_one(name: str) -> None:
    graph = networks(STACKS[name], 5)
    torch.testing.assert_close(render(graph, 6, 9), one_by_one(graph, 6, 9), rtol=1e-11, atol=1e-11)
