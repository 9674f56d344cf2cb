"""bfloat16 edges, TF32 products and torch.compile agree with plain float32, on every device there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.graph import GraphBatch, Stack
from neural_graphs.testing import random_graph

BF16_LOGITS, BF16_GRADIENTS = 2e-2, 1e-2  # relative to the spread of logits, and to the norm of all gradients
TF32 = 1e-2
COMPILED = 1e-5

WITH_BF16_EDGES = ("combined", "ng-gnn", "ng-t")
"""Encoders that keep edges in ``edge_dtype``; on the others it has no effect."""

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
)
DEVICES = ["cpu", CUDA]

STACK = Stack.mlp((2, 16, 12, 1), "sine:30", shift=0.5)
OTHER = Stack.mlp((2, 9, 1), "relu")


def networks(name: str, device: str) -> GraphBatch:
    batch = [random_graph(STACK, 6, torch.float32)]
    if name != "mlp":
        batch.append(random_graph(OTHER, 4, torch.float32))
    return GraphBatch.of(batch).to(device)


@pytest.fixture
def model(build: Any, with_head: Any) -> Any:
    def make(encoder_variant: str, device: str, **arguments: Any) -> nn.Module:
        encoder = build(encoder_variant, torch.float32, parameters=STACK.num_parameters, **arguments)
        return with_head(encoder).to(device)

    return make


def logits_and_gradients(model: Any, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    logits = model(batch)
    logits.square().mean().backward()
    # Compiled, a parameter that is not read may have a gradient of zeros in place of none.
    gradients = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()]
    model.zero_grad()
    return logits.detach(), torch.cat(gradients)


def apart(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Distance of logits relative to how far they are from their mean over networks, of gradients to their norm."""
    logits = (found[0] - right[0]).abs().max() / (right[0] - right[0].mean(0)).abs().max()
    return float(logits), float((found[1] - right[1]).norm() / right[1].norm())


@pytest.fixture
def products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_edges_agree_with_float32(encoder_variant: str, device: str, model: Any) -> None:
    subject, batch = model(encoder_variant, device), networks(encoder_variant, device)
    right = logits_and_gradients(subject, batch)
    subject.encoder.edge_dtype = torch.bfloat16
    found = logits_and_gradients(subject, batch)
    assert found[0].dtype == torch.float32 and all(p.dtype == torch.float32 for p in subject.parameters())
    logits, gradients = apart(found, right)
    if encoder_variant.split()[0] in WITH_BF16_EDGES:
        assert logits > 1e-6, "bfloat16 changes nothing: it is not used"
        assert logits <= BF16_LOGITS
        assert gradients <= BF16_GRADIENTS
    else:
        assert torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])


@pytest.mark.parametrize("device", DEVICES)
def test_tf32_products_agree_with_float32(encoder_variant: str, device: str, model: Any, products: None) -> None:
    """Where a device has no such products, the setting changes nothing."""
    subject, batch = model(encoder_variant, device), networks(encoder_variant, device)
    torch.set_float32_matmul_precision("highest")
    right = logits_and_gradients(subject, batch)
    torch.set_float32_matmul_precision("high")
    found = logits_and_gradients(subject, batch)
    assert max(apart(found, right)) <= TF32


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_equals_eager(encoder_with_probes: str, device: str, model: Any) -> None:
    """With the graphs that ``torch.compile`` records, forward and backward; how kernels are fused is not ours to test."""
    subject = model(encoder_with_probes, device, width=8, layers=2)
    batch = GraphBatch.of(random_graph(STACK, 6, torch.float32)).to(device)
    right = logits_and_gradients(subject, batch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = logits_and_gradients(torch.compile(subject, backend="aot_eager"), batch)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert graphs > 0, "nothing was compiled"
    assert max(apart(found, right)) <= COMPILED
