"""Many architectures in one call, against the same networks bucket by bucket, and the plan that puts them in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch, NeuralGraph, trace
from neural_graphs.nn import NGGNN, Encoding, create_encoder
from neural_graphs.nn import _edges as edges_module
from neural_graphs.nn import _stacked_edges as stacked_edges
from neural_graphs.nn._encoder import Reads
from neural_graphs.testing import random_graph, random_stack

READS: tuple[Reads, ...] = ("outputs", "nodes", "edges")


def encoder_for(graphs: Sequence[NeuralGraph], **arguments: Any) -> NGGNN:
    torch.manual_seed(0)
    encoder = create_encoder(
        "ng-gnn", **{"width": 8, "layers": 3, "inputs": 2, "kernel": (7, 7), "fourier": 5, **arguments}
    )
    assert isinstance(encoder, NGGNN)
    encoder.fit_normalization(graphs)
    return encoder.double().eval()


class Residual(torch.nn.Module):
    """Residuals between layers of several widths and depths."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.first, self.inner = torch.nn.Linear(2, width), torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, wide)
        self.last = torch.nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.tanh(self.inner(x) + x)
        return self.last(torch.sigmoid(self.out(x)))


def residual(width: int, wide: int, batch: int, seed: int = 0) -> NeuralGraph:
    torch.manual_seed(seed)
    graph = trace(Residual(width, wide).double(), torch.zeros(2, 2, dtype=torch.float64))
    shapes = {name: value.shape[1:] for name, value in graph.to_state_dict(batched=True).items()}
    return graph.like({name: torch.randn(batch, *shape, dtype=torch.float64) for name, shape in shapes.items()}, True)


def mixed(kinds: Sequence[Any] = ("mlp", "siren", "cnn"), seeds: int = 3) -> list[NeuralGraph]:
    """Random stacks and residual networks, several networks of some."""
    found = [random_graph(random_stack(seed, kind), 1 + seed % 2, seed=seed) for kind in kinds for seed in range(seeds)]
    return [*found, residual(4, 5, 2), residual(6, 3, 1)]


def tensors(encoding: Encoding) -> list[Tensor | None]:
    assert encoding.nodes is not None and encoding.edges is not None
    return [x for part in (*encoding.nodes, *encoding.edges) for x in part]


def bucket_by_bucket(encoder: NGGNN, batch: GraphBatch, reads: Reads) -> list[Tensor | None]:
    """The slow twin."""
    found = [encoder(graph, reads) for graph in batch.buckets]
    assert all(e.nodes is not None and e.edges is not None for e in found)
    return [x for e in found for x in e.nodes[0]] + [x for e in found for x in e.edges[0]]


def assert_equals_buckets(encoder: NGGNN, batch: GraphBatch, reads: Reads) -> None:
    """Embeddings, and the gradients of a random projection of them in every parameter, to 1e-10."""
    assert len(batch.buckets) > 1
    found, right = tensors(encoder(batch, reads)), bucket_by_bucket(encoder, batch, reads)
    assert [x is None for x in found] == [x is None for x in right]
    gradients = []
    for values in (found, right):
        generator = torch.Generator().manual_seed(1)
        parts = [x * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in values if x is not None]
        total = torch.stack([part.sum() for part in parts]).sum()
        gradients.append(torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True))
    for f, r in zip(found, right, strict=True):
        if f is not None and r is not None:
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)
    for (name, _), f, r in zip(encoder.named_parameters(), *gradients, strict=True):
        zero = torch.zeros(1, dtype=torch.float64)  # an unused parameter has none, or zeros
        f, r = (zero if g is None else g for g in (f, r))
        torch.testing.assert_close(
            *torch.broadcast_tensors(f, r), rtol=1e-10, atol=1e-10 * float(r.abs().max().clamp_min(1)), msg=name
        )


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"reverse_edges": False},
        {"fourier": 0, "layers": 1},
        {
            "block_kinds": ["identity", "conv"],
            "activations": ["relu", "tanh", "sigmoid", "sine", "gelu", "silu", "leaky_relu"],
        },
    ],
    ids=["default", "one way", "linear", "kinds"],
)
def test_all_architectures_at_once(arguments: dict[str, Any], reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_edges, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(edges_module, "WAVE_ELEMENTS", 200)
    graphs = mixed()
    assert_equals_buckets(encoder_for(graphs, **arguments), GraphBatch.of(graphs), reads)
