"""Mixup: alignment against an exhaustive search, functions that stay, distances that shrink, and what is mixed with what."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Layer, NeuralGraph, Stack, trace
from neural_graphs.testing import random_graph
from neural_graphs.zoo._mixup import align, interpolate, mixup
from neural_graphs.zoo._symmetry import symmetric

STACKS = {
    "siren": Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5),
    "siren without biases": Stack.mlp((2, 6, 5, 1), "sine:30", bias=False),
    "tanh": Stack.mlp((2, 6, 5, 1), "tanh"),
    "relu": Stack.mlp((2, 6, 5, 1), "relu"),
    "mixed": Stack.mlp((2, 6, 5, 4, 1), ["tanh", "gelu", "sine:10"]),
}
CONVOLUTIONS = Stack((Layer("0", 2, 4, (3, 3), padding=1, pool="global"), Layer("1", 4, 5), Layer("2", 5, 2)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(graph: NeuralGraph) -> Tensor:
    return torch.cat([t.flatten(1) for t in (*graph.edges, *graph.nodes)], 1)


def distance(a: NeuralGraph, b: NeuralGraph) -> Tensor:
    """Squared distance of all weights and biases, per network."""
    return (flat(a) - flat(b)).square().sum(1)


def points(stack: Stack) -> Tensor:
    shape = (7, stack.layers[0].inputs, *((5, 5) if stack.layers[0].kernel else ()))
    return torch.rand(shape, generator=generator(9), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("stack", [*STACKS.values(), CONVOLUTIONS], ids=[*STACKS, "convolutions"])
def test_aligned_networks_compute_the_same_and_are_closer(stack: Stack) -> None:
    reference, graph = random_graph(stack, batch=6, seed=1), random_graph(stack, batch=6, seed=2)
    before = [t.clone() for t in (*graph.nodes, *graph.edges)]
    out = align(reference, graph)
    x = points(stack)
    torch.testing.assert_close(out.run(x), graph.run(x), atol=1e-10, rtol=0)
    assert (distance(reference, out) < distance(reference, graph)).all()
    further = [distance(reference, align(reference, graph, sweeps)) for sweeps in range(1, 5)]
    assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(further))
    assert all(map(torch.equal, (*graph.nodes, *graph.edges), before))


@pytest.mark.parametrize("name", ["siren", "siren without biases", "tanh", "relu"])
def test_twin_of_one_hidden_layer_is_an_exhaustive_search(name: str) -> None:
    """Every order of the units, every sign, every half period of the bias that could help."""
    template = STACKS[name]
    kind = template.layers[0].activation
    stack = Stack.mlp((2, 4, 1), kind, bias=template.layers[0].bias)
    reference, graph = random_graph(stack, batch=2, seed=3), random_graph(stack, batch=2, seed=4)
    biased = stack.layers[0].bias
    half = math.pi / kind.omega
    forms = [(1, 0)]
    if kind.kind == "tanh" or (kind.kind == "sine" and not biased):
        forms = [(1, 0), (-1, 0)]
    elif kind.kind == "sine":
        forms = list(itertools.product((1, -1), range(-30, 31)))
    out = align(reference, graph, 1)
    for b in range(2):
        a, x = reference[b].to_state_dict(), graph[b].to_state_dict()
        w0, v0, w, v = a["seq.0.weight"], a["seq.1.weight"], x["seq.0.weight"], x["seq.1.weight"]
        b0 = a.get("seq.0.bias", torch.zeros(4, dtype=w.dtype))
        bias = x.get("seq.0.bias", torch.zeros(4, dtype=w.dtype))
        cost = np.empty((4, 4))
        for i, j in itertools.product(range(4), range(4)):
            cost[i, j] = min(
                float((w0[i] - sign * w[j]).square().sum())
                + float((b0[i] - sign * bias[j] - k * half).square())
                + float((v0[:, i] - sign * (-1) ** k * v[:, j]).square().sum())
                for sign, k in forms
            )
        best = min(sum(cost[i, order[i]] for i in range(4)) for order in itertools.permutations(range(4)))
        rest = float(distance_of_output_bias(reference[b], graph[b]))
        assert float(distance(reference[b], out[b])[0]) == pytest.approx(best + rest)


def distance_of_output_bias(a: NeuralGraph, b: NeuralGraph) -> Tensor:
    return (a.nodes[-1] - b.nodes[-1]).square().sum()


@pytest.mark.parametrize("name", ["siren", "tanh", "relu", "mixed"])
def test_other_weights_of_the_same_network_are_recognised(name: str) -> None:
    graph = random_graph(STACKS[name], batch=20)
    moved = symmetric(graph, generator(), kinds=("permutation", "sign", "phase"))
    assert (distance(graph, align(graph, moved, 1)) < 1e-20).all()
    assert (distance(graph, moved) > 1e-3).all()


def test_every_network_has_a_partner_and_a_share() -> None:
    first, second = random_graph(STACKS["siren"], batch=5, seed=1), random_graph(STACKS["relu"], batch=1, seed=2)
    batch = GraphBatch.of([first[:2], second, first[2:]])
    mixed = mixup(batch, np.random.default_rng(0), 0.7)
    assert mixed.partner[2] == 2 and sorted(mixed.partner.tolist()) == list(range(6))
    assert all(k == 2 or k != other for k, other in enumerate(mixed.partner.tolist()))
    assert ((mixed.share > 0) & (mixed.share < 1)).all() and mixed.share.unique().numel() == 6
    torch.testing.assert_close(flat(mixed.batch.buckets[1]), flat(second))

    graph, index = batch.buckets[0], batch.index[0].tolist()
    for row, place in enumerate(index):
        partner = graph[index.index(int(mixed.partner[place]))]
        share = float(mixed.share[place])
        expected = share * flat(graph[row]) + (1 - share) * flat(align(graph[row], partner))
        torch.testing.assert_close(flat(mixed.batch.buckets[0][row]), expected)

    again = mixup(batch, np.random.default_rng(0), 0.7)
    assert torch.equal(flat(again.batch.buckets[0]), flat(mixed.batch.buckets[0]))


def test_a_share_of_one_changes_nothing_and_of_zero_no_function() -> None:
    graph, other = (random_graph(STACKS["siren"], batch=3, seed=seed) for seed in (1, 2))
    aligned = align(graph, other)
    assert torch.equal(flat(interpolate(graph, aligned, torch.ones(3))), flat(graph))
    x = points(STACKS["siren"])
    nothing = interpolate(graph, aligned, torch.zeros(3))
    torch.testing.assert_close(nothing.run(x), other.run(x), atol=1e-10, rtol=0)


def test_shares_follow_the_beta_distribution() -> None:
    graph = random_graph(Stack.mlp((2, 2, 1), "tanh"), batch=1500)
    share = mixup(graph, np.random.default_rng(0), 0.3).share
    assert float(share.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * 0.3 + 1)), rel=0.1)


def test_networks_that_are_no_stacks_are_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    graph = trace(module, torch.zeros(1, 2))
    with pytest.raises(UserError, match="plain stacks .* set augment.mixup=0"):
        align(graph, graph)


def test_a_pair_takes_less_than_a_millisecond() -> None:
    graph = random_graph(Stack.mlp((2, 32, 32, 1), "sine:30"), batch=32, dtype=torch.float32)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        mixup(graph, np.random.default_rng(0), 0.2)
        times.append(time.perf_counter() - start)
    assert min(times) / 32 < 2e-3  # 0.4 ms where nothing else runs
