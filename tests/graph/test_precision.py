"""Float64 throughout, for networks that cast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neural_graphs.graph._check import Precision


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.float().square().mean(-1),
        lambda x: x.to(torch.float32).exp(),
        lambda x: torch.softmax(x, -1, dtype=torch.float32),
        lambda x: x.sum(-1, dtype=torch.float32) / 3,
        lambda x: x * torch.full((5,), 1 / 3, dtype=torch.float32),
        lambda x: x @ torch.arange(5, dtype=torch.float32).div(3).to(x.dtype),
    ],
)
def test_casts_to_float32_lose_nothing(step: Callable[[Tensor], Tensor]) -> None:
    x = torch.rand(4, 5, dtype=torch.float64)
    with Precision(torch.float64):
        found = step(x)
    assert found.dtype == torch.float64
    rounded = step(x)
    error = (found - rounded).abs().max()
    assert 0 < error < 1e-5  # the same values, but for the rounding


def test_other_types_stay() -> None:
    with Precision(torch.float64):
        assert torch.arange(3).dtype == torch.int64 and torch.zeros(2, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert torch.rand(2).dtype == torch.float32
    assert torch.zeros(2).float().dtype == torch.float32
