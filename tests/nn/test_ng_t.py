"""NG-T, both variants, against its textbook twin, on every kind of network, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.bench._all_pairs_twin import AllPairsTwin
from neural_graphs.graph import NeuralGraph, Stack
from neural_graphs.nn import NGT, Encoding, create_encoder
from neural_graphs.nn import _edges as edges_module
from neural_graphs.testing import random_graph

ATTENTION = ["blocks", "all"]
SIREN = Stack.mlp((2, 7, 5, 2), "sine:30", shift=0.5)
SMALL: dict[str, Any] = {
    "width": 8,
    "edge_width": 6,
    "attention_width": 12,
    "hidden": 10,
    "edge_hidden": 7,
    "heads": 3,
    "layers": 3,
    "fourier": 6,
}


def encoder_for(stack: Stack, dtype: torch.dtype = torch.float64, **arguments: Any) -> NGT:
    torch.manual_seed(0)
    kernel = [1, 1]
    for layer in stack.layers:
        side = math.isqrt(layer.positions)
        kernel = [max(kernel[0], *layer.kernel, side), max(kernel[1], *layer.kernel, side)]
    encoder = create_encoder("ng-t", **{**SMALL, "inputs": stack.widths[0], "kernel": kernel, **arguments})
    assert isinstance(encoder, NGT)
    encoder.fit_normalization([random_graph(stack, 3, seed=5)])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and norms as after some training
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return encoder.to(dtype).eval()


def tensors(encoding: Encoding) -> list[Tensor]:
    assert encoding.nodes is not None and encoding.edges is not None
    return [x for part in (*encoding.nodes, *encoding.edges) for x in part if x is not None]


def gradients(encoder: NGT, values: list[Tensor]) -> list[Tensor]:
    """Of a random projection of ``values`` in every parameter."""
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in values)
    found = torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(encoder.parameters(), found, strict=True)]


def assert_equals_twin(encoder: NGT, graph: NeuralGraph) -> None:
    """Embeddings and the gradients in every parameter, for everything that can be read."""
    twin = AllPairsTwin(encoder).eval()
    count = len(graph.spec.node_sets)
    parts = {"edges": slice(None), "nodes": slice(count), "outputs": slice(count - 1, count)}
    for reads, part in parts.items():
        found, right = tensors(encoder(graph, reads=reads)), tensors(twin(graph))[part]
        for f, r in zip(found, right, strict=True):
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)
        slopes = gradients(encoder, found), gradients(encoder, right)
        for (name, _), f, r in zip(encoder.named_parameters(), *slopes, strict=True):
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.abs().max().clamp_min(1)), msg=name)


@pytest.mark.parametrize("chunk", [1, 300, 1 << 19])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("attention", ATTENTION)
def test_sirens_equal_the_twin(attention: str, reverse: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", chunk)
    assert_equals_twin(encoder_for(SIREN, attention=attention, reverse_edges=reverse, probes=4), random_graph(SIREN, 3))
