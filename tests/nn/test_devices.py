"""Encoders and heads on other devices.

Torch's ``meta`` device computes shapes only, but refuses to mix devices as an accelerator does, so a tensor that was made on
the CPU by mistake is found without one. With a CUDA device, its results are held to the CPU's as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch, Stack
from neural_graphs.nn import DeltaHead, Encoder, GraphHead, NodeHead
from neural_graphs.testing import random_graph

NETWORKS = (Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5), Stack.mlp((2, 14, 1, 1), ["relu", "tanh"]))
POOLINGS = [
    {"pooling": pooling, "over": over}
    for pooling in ("concat", "mean", "max", "attention", "set-transformer")
    for over in ("output", "last", "all")
    if pooling != "concat" or over == "output"
]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def batch(dtype: torch.dtype = torch.float64) -> GraphBatch:
    return GraphBatch.of([random_graph(NETWORKS[k % 2], 2, dtype, seed=k) for k in range(3)])


def heads(encoder: Encoder, dtype: torch.dtype) -> list[torch.nn.Module]:
    """Every head that reads this encoder."""
    torch.manual_seed(0)
    found: list[torch.nn.Module] = [GraphHead(encoder.width, 1, 3)]
    if not encoder.vectors:
        rescaled = encoder(batch(dtype), reads="outputs").rescaled
        both = len(encoder(batch(dtype)).edges[0]) == 2 * len(NETWORKS[0].layers)
        found += [GraphHead(encoder.width, 1, 3, **options) for options in POOLINGS]
        found += [NodeHead(encoder.width, 2)]
        found += [DeltaHead(encoder.width, encoder.edge_width, reverse_edges=both, rescaled=rescaled)]
    return [head.to(dtype).eval() for head in found]


def tensors(found: Any) -> list[Tensor]:
    """Whatever a head gives, as tensors."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, (list, tuple)):
        return [t for part in found for t in tensors(part)]
    return list(found.to_state_dict(batched=True).values())  # an edited network


def run(encoder: Encoder, given: list[torch.nn.Module], networks: GraphBatch) -> tuple[list[Tensor], list[Tensor]]:
    """What all heads say, and the gradients of all parameters; the first head also reads outputs alone."""
    whole, part = encoder(networks), encoder(networks, reads="outputs")
    found = tensors([head(whole) for head in given]) + tensors(given[0](part))
    sum(t.square().sum() for t in found).backward()
    parameters = [p for module in (encoder, *given) for p in module.parameters()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return [t.detach() for t in found], gradients


def test_no_tensor_is_made_on_the_wrong_device(encoder_variant: str, build: Any) -> None:
    encoder = build(encoder_variant, torch.float32, width=8, layers=2)
    given = heads(encoder, torch.float32)
    encoder, networks = encoder.to("meta"), batch(torch.float32).to("meta")
    found, gradients = run(encoder, [head.to("meta") for head in given], networks)
    assert all(t.device.type == "meta" for t in (*found, *gradients))


def test_meta_tensors_do_notice() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device="meta") + torch.zeros(3)


@cuda
def test_cuda_equals_the_cpu(encoder_variant: str, build: Any) -> None:
    encoder = build(encoder_variant, torch.float64, width=8, layers=2)
    given = heads(encoder, torch.float64)
    values, slopes = run(encoder, given, batch())
    found, gradients = run(encoder.cuda(), [head.cuda() for head in given], batch().to("cuda"))
    for mine, its in zip((*found, *gradients), (*values, *slopes), strict=True):
        assert mine.device.type == "cuda"
        torch.testing.assert_close(mine.cpu(), its, rtol=1e-9, atol=1e-9 * float(its.abs().max().clamp_min(1)))
