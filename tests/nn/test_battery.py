"""What every registered encoder must do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import _edges, create_encoder, list_encoders
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph

ENCODERS = list_encoders()
DTYPES = [torch.float32, torch.float64]

# Different architectures of equal parameter count, so that also an encoder of fixed input size reads them.
MIXED = (
    Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5),
    Stack.mlp((2, 14, 1, 1), "relu"),
    Stack.mlp((2, 6, 5, 1), ["tanh", "relu"]),
)

pytestmark = pytest.mark.parametrize("name", ENCODERS)


def close(found: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(found, right, rtol=tolerance, atol=tolerance)


def test_shapes(name: str, build: Any, stack: Stack) -> None:
    encoder = build(name)
    encoding = encoder(random_graph(stack, 4))
    if encoding.vector is not None:
        assert encoding.vector.shape == (4, encoder.width)
        return
    (nodes,), (edges,) = encoding.nodes, encoding.edges
    assert [tuple(x.shape) for x in nodes] == [(4, n, encoder.width) for n in stack.widths]
    blocks = [
        (4, after, before, encoder.edge_width) for before, after in zip(stack.widths, stack.widths[1:], strict=False)
    ]
    assert [tuple(e.shape) for e in edges][: len(blocks)] == blocks
    assert len(edges) % len(blocks) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_invariance(name: str, dtype: torch.dtype, build: Any, with_head: Any, stack: Stack) -> None:
    model = with_head(build(name, dtype))
    graph = random_graph(stack, 5, dtype)
    if model.encoder.invariant:
        assert_invariant(model, graph, control="networks")
    else:
        with pytest.raises(AssertionError, match="not invariant"):
            assert_invariant(model, graph)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equivariance(name: str, dtype: torch.dtype, build: Any, stack: Stack) -> None:
    encoder = build(name, dtype)
    graph = random_graph(stack, 5, dtype)
    if encoder(graph).nodes is None:
        with pytest.raises(AssertionError, match="no embedding"):
            assert_equivariant(encoder, graph)
    else:
        assert_equivariant(encoder, graph)


def test_gradients_reach_every_parameter(name: str, build: Any, with_head: Any, stack: Stack) -> None:
    model = with_head(build(name))
    model(random_graph(stack, 4)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


def test_save_and_load(name: str, build: Any, stack: Stack) -> None:
    encoder, graph = build(name), random_graph(stack, 3)
    config = json.loads(json.dumps(encoder.config))
    torch.manual_seed(123)
    other = create_encoder(**config).double().eval()
    head = torch.randn(encoder.width, dtype=torch.float64)

    def value(module: Any) -> torch.Tensor:
        encoding = module(graph)
        return (encoding.vector if encoding.nodes is None else encoding.nodes[0][-1]) @ head

    assert not close(value(other), value(encoder))
    other.load_state_dict(encoder.state_dict())
    other.load_extra_state(json.loads(json.dumps(encoder.extra_state())))
    assert torch.equal(value(other), value(encoder))


def test_mixed_architectures_equal_one_by_one(name: str, build: Any, with_head: Any) -> None:
    model = with_head(build(name))
    networks = [random_graph(MIXED[k % 3], 1, seed=k) for k in range(7)]
    together = model(GraphBatch.of(networks))
    assert together.shape == (7, 3)
    assert close(together, torch.cat([model(network) for network in networks]))
    assert (together - together[0]).abs().amax(1)[1:].min() > 1e-6


@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_batch_mates_do_not_matter(
    name: str, chunk: int, build: Any, with_head: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph = with_head(build(name)), random_graph(stack, 6)
    alone = model(graph[2])
    monkeypatch.setattr(_edges, "CHUNK_ELEMENTS", chunk)
    louder = NeuralGraph.cat([graph[:3], graph[3:].map(lambda t: 50 * t)])
    assert close(model(louder)[2:3], alone)


def test_empty_and_single_batches(name: str, build: Any, with_head: Any, stack: Stack) -> None:
    model, graph = with_head(build(name)), random_graph(stack, 2)
    for empty in (GraphBatch.of([]), graph[:0], GraphBatch.of([graph[:0]])):
        found = model(empty)
        assert found.shape == (0, 3) and found.dtype == torch.float64
        found.sum().backward()
    assert model(graph[1]).shape == (1, 3)
    assert close(model(graph[1]), model(graph)[1:])
    assert close(model([graph[:0], graph]), model(graph))


def test_thread_count_does_not_matter(name: str, build: Any, with_head: Any, stack: Stack) -> None:
    model, graph = with_head(build(name)), random_graph(stack, 8)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(model(graph))
    assert close(*found)


def test_what_is_not_read_changes_nothing(name: str, build: Any, stack: Stack) -> None:
    encoder, graph = build(name), random_graph(stack, 3)
    full = encoder(graph, reads="edges")
    if full.nodes is None:
        pytest.skip("one vector per network: nothing to leave out")
    for reads in ("outputs", "nodes"):
        part = encoder(graph, reads=reads)
        assert all(edges is None for edges in part.edges[0])
        kept = [s for s, x in enumerate(part.nodes[0]) if x is not None]
        assert kept == ([len(stack.layers)] if reads == "outputs" else list(range(len(stack.layers) + 1)))
        assert all(close(part.nodes[0][s], full.nodes[0][s]) for s in kept)
