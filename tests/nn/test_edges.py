"""The fused edge operations against slow, obvious twins, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.nn import _edges
from neural_graphs.nn._edges import edge_update, fourier_embedding, modulated_statistics

WIDTH, BATCH, OUT, IN = 3, 3, 4, 5


@pytest.fixture(autouse=True, params=[1, 1 << 19], ids=["one network per chunk", "one chunk"])
def chunk_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_edges, "CHUNK_ELEMENTS", request.param)


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


# -- twins ----------------------------------------------------------------------------------------------------------------


def fourier_embedding_twin(e: Tensor, frequencies: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    angle = e @ frequencies
    return F.linear(torch.cat([angle.cos(), angle.sin()], -1), weight, bias)


def modulated_statistics_twin(
    z: Tensor, weight: Tensor, bias: Tensor, receiver: Tensor, sender: Tensor, reverse: bool
) -> tuple[Tensor, ...]:
    scale, offset = F.linear(z, weight, bias).chunk(2, -1)
    if reverse:  # messages from the n_out axis to the n_in axis
        message = scale * (receiver[:, None, :] + sender[:, :, None]) + offset
        dim = 1
    else:
        message = scale * (receiver[:, :, None] + sender[:, None, :]) + offset
        dim = 2
    return message.sum(dim), message.square().sum(dim), message.amin(dim), message.amax(dim)


def edge_update_twin(z: Tensor, weight: Tensor, out_side: Tensor, in_side: Tensor) -> Tensor:
    return F.silu(F.linear(z, weight) + out_side[:, :, None] + in_side[:, None, :])


def assert_same(ours: Callable[..., Any], twin: Callable[..., Any], inputs: Sequence[Tensor], *rest: Any) -> None:
    """Equal values, and equal gradients of a random projection of them."""
    found, right = ours(*inputs, *rest), twin(*inputs, *rest)
    found, right = ((f,) if isinstance(f, Tensor) else f for f in (found, right))
    into = draw(*(f.shape for f in right), seed=1)
    learned = [x for x in inputs if x.requires_grad]
    sums = [sum((f * g.detach()).sum() for f, g in zip(fs, into, strict=True)) for fs in (found, right)]
    gradients = [torch.autograd.grad(total, learned) for total in sums]
    for f, r in zip((*found, *gradients[0]), (*right, *gradients[1]), strict=True):
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)


def tied(reverse: bool, copies: int) -> list[Tensor]:
    """Inputs in which the first ``copies`` senders of every receiver send the same message."""
    z, weight, bias, receiver, sender = statistics_inputs(reverse)
    with torch.no_grad():
        if reverse:
            z[:, :copies] = z[:, :1]
        else:
            z[:, :, :copies] = z[:, :, :1]
        sender[:, :copies] = sender[:, :1]
    return [z, weight, bias, receiver, sender]


def statistics_inputs(reverse: bool) -> list[Tensor]:
    receivers, senders = (IN, OUT) if reverse else (OUT, IN)
    shapes = (
        (BATCH, OUT, IN, WIDTH),
        (2 * WIDTH, WIDTH),
        (2 * WIDTH,),
        (BATCH, receivers, WIDTH),
        (BATCH, senders, WIDTH),
    )
    return draw(*shapes)


# -- tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 3])
def test_fourier_embedding(features: int) -> None:
    e, frequencies, weight, bias = draw((BATCH, OUT, IN, features), (features, 6), (WIDTH, 12), (WIDTH,))
    inputs = [e, frequencies.detach(), weight, bias]
    assert_same(fourier_embedding, fourier_embedding_twin, inputs)
    assert torch.autograd.gradcheck(fourier_embedding, inputs)


@pytest.mark.parametrize("reverse", [False, True])
def test_modulated_statistics(reverse: bool) -> None:
    inputs = statistics_inputs(reverse)
    assert_same(modulated_statistics, modulated_statistics_twin, inputs, reverse)
    assert torch.autograd.gradcheck(modulated_statistics, (*inputs, reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
def test_ties_share_the_gradient(reverse: bool, copies: int) -> None:
    inputs = tied(reverse, copies)
    assert_same(modulated_statistics, modulated_statistics_twin, inputs, reverse)
    if copies == 2:  # the central difference of a minimum of two equal values is their mean, as equal shares are
        assert torch.autograd.gradcheck(modulated_statistics, (*inputs, reverse))
    gradient = torch.autograd.grad(modulated_statistics(*inputs, reverse)[2].sum(), inputs[0])[0]
    senders = gradient.transpose(1, 2) if not reverse else gradient
    assert all(torch.equal(senders[:, 0], senders[:, k]) for k in range(copies))


def test_edge_update() -> None:
    inputs = draw((BATCH, OUT, IN, WIDTH), (2, WIDTH), (BATCH, OUT, 2), (BATCH, IN, 2))
    assert_same(edge_update, edge_update_twin, inputs)
    assert torch.autograd.gradcheck(edge_update, inputs)


def test_strided_edges_are_read_right() -> None:
    """A transposed view of the edges, and a gradient that is expanded, not stored."""
    z, weight, bias, receiver, sender = statistics_inputs(False)
    turned = z.transpose(1, 2)
    assert_same(modulated_statistics, modulated_statistics_twin, [turned, weight, bias, sender, receiver], False)
    small = draw((BATCH, OUT, IN, WIDTH), (2, WIDTH), (BATCH, OUT, 2), (BATCH, IN, 2))
    found = torch.autograd.grad(edge_update(*small).sum(), small)
    right = torch.autograd.grad(edge_update_twin(*small).sum(), small)
    for f, r in zip(found, right, strict=True):
        torch.testing.assert_close(f, r)


def test_bfloat16_edges_stay_near_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 8, 8, 16, generator=generator)
    weight, bias = torch.randn(32, 16, generator=generator) / 4, torch.randn(32, generator=generator)
    receiver, sender = torch.randn(2, 8, 16, generator=generator), torch.randn(2, 8, 16, generator=generator)
    exact = modulated_statistics(z, weight, bias, receiver, sender, False)
    rounded = modulated_statistics(z.bfloat16(), weight, bias, receiver, sender, False)
    for f, r in zip(rounded, exact, strict=True):
        assert f.dtype == torch.float32
        assert (f - r).abs().max() < 0.05 * r.abs().max()
        assert not torch.equal(f, r)
