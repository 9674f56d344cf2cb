"""Networks replaced by random elements of their symmetry groups compute the same functions."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.testing import random_graph
from neural_graphs.zoo._symmetry import KINDS, symmetric

STACKS = {
    "siren": Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5),
    "relu": Stack.mlp((2, 6, 5, 1), "relu"),
    "tanh": Stack.mlp((2, 6, 5, 1), "tanh"),
    "mixed": Stack.mlp((2, 6, 5, 16, 1), ["leaky_relu", "gelu", "sine:10"]),
}
CHANGES = {"siren": {"sign", "phase"}, "relu": {"scale"}, "tanh": {"sign"}, "mixed": {"scale", "sign", "phase"}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(graph: NeuralGraph) -> Tensor:
    return torch.cat([t.flatten(1) for t in (*graph.edges, *graph.nodes)], 1)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("kind", ["all", *KINDS])
def test_the_function_stays_and_every_network_moves_differently(name: str, kind: str) -> None:
    one = random_graph(STACKS[name], batch=1)
    graph = NeuralGraph.cat([one] * 8)
    kinds = KINDS if kind == "all" else (kind,)
    out = symmetric(graph, generator(), kinds=kinds)
    points = torch.rand(40, 2, generator=generator(1), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(out.run(points), graph.run(points), atol=1e-10, rtol=0)
    moves = kind in ("all", "permutation") or kind in CHANGES[name]
    assert flat(out).unique(dim=0).shape[0] == (8 if moves else 1)
    assert torch.equal(flat(symmetric(graph, generator(), kinds=kinds)), flat(out))
    assert moves != torch.equal(flat(symmetric(graph, generator(2), kinds=kinds)), flat(out))


def test_twin_one_network_at_a_time() -> None:
    graph = random_graph(STACKS["mixed"], batch=5)
    out = symmetric(graph, generator(3), spread=3.0)
    element = graph.symmetries.sample(generator(3), 5, KINDS, 3.0)
    for b in range(5):
        own = {key: table[b] for key, table in element.items()}
        expected = graph.symmetries.apply(graph[b].to_state_dict(), own)
        found = out[b].to_state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-14, rtol=0)


def test_phases_leave_biases_centred() -> None:
    graph = random_graph(STACKS["siren"], batch=1).map(torch.zeros_like)
    out = symmetric(NeuralGraph.cat([graph] * 400), generator())
    biases = out.nodes[1] * 30 / torch.pi
    assert set(biases.round(decimals=9).unique().tolist()) == {-1.0, 0.0, 1.0}
    assert abs(float(biases.mean())) < 0.05


def test_mixed_batches_keep_their_order() -> None:
    graphs = [random_graph(stack, batch=2, seed=k) for k, stack in enumerate(STACKS.values())]
    batch = GraphBatch.of(graphs)
    out = symmetric(batch, generator())
    points = torch.rand(10, 2, generator=generator(1), dtype=torch.float64)
    assert out.index is batch.index
    for before, after in zip(batch.buckets, out.buckets, strict=True):
        torch.testing.assert_close(after.run(points), before.run(points), atol=1e-10, rtol=0)


def test_a_batch_takes_milliseconds() -> None:
    graph = random_graph(Stack.mlp((2, 32, 32, 1), "sine:30"), batch=64, dtype=torch.float32)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        symmetric(graph, generator())
        times.append(time.perf_counter() - start)
    assert min(times) < 0.03  # some 1.5 ms
