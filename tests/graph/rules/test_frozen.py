"""Operators that no rule covers freeze what they touch, and are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

MLP = {"w": (4, 6), "u": (6, 5), "v": (5, 2)}


def around(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A hidden class that the operator touches, and one that it does not."""
    return lambda s, x: (operator(x @ s.w).double().reshape(3, 6) @ s.u).relu() @ s.v


UNKNOWN: dict[str, tuple[str, Callable[..., Any]]] = {
    "grid_sampler": ("grid_sampler", around(lambda h: F.grid_sample(h.reshape(1, 6, 3, 1), h.reshape(1, 3, 3, 2)[:, :, :1],
                                                                   align_corners=True).permute(0, 2, 3, 1))),
    "fft": ("fft_rfft", around(lambda h: torch.fft.rfft(h, n=10).real)),
    "unfold": ("unfold", around(lambda h: h.unfold(1, 2, 2))),
    "cdist": ("cdist", around(lambda h: torch.cdist(h.t(), h.t())[:3])),
    "inverse": ("linalg_inv", around(lambda h: torch.linalg.inv(h.t() @ h + torch.eye(6).double())[:3])),
    "lu": ("linalg_solve", around(lambda h: torch.linalg.solve(h.t() @ h + torch.eye(6).double(), h.t()).t())),
    "diagonal": ("diagonal", around(lambda h: torch.diagonal(h[:, None] * h[None], dim1=0, dim2=1).t())),
    "einsum-diagonal": ("einsum", around(lambda h: torch.einsum("ii,ij->ij", h[:, :3], h))),
    "view-dtype": ("view", around(lambda h: h.view(torch.int64).bitwise_and(1 << 40))),
    "repeats": ("repeat_interleave", around(lambda h: h.repeat_interleave(torch.tensor([2, 1, 0]), 0, output_size=3))),
    "roll-flat": ("roll", around(lambda h: torch.roll(h, 1))),
    "masked": ("masked_scatter", around(lambda h: h.masked_scatter(h > 0, h.relu()))),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operators_freeze(name: str, sound: Callable[..., Any]) -> None:
    operator, function = UNKNOWN[name]
    found = sound(function, MLP)
    assert operator in found.frozen_ops, found.frozen_ops
    assert str(found.spec) == "S5"


def test_custom_operators_freeze(sound: Callable[..., Any]) -> None:
    @torch.library.custom_op("neural_graphs_tests::reverse", mutates_args=())
    def reverse(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1).clone()

    @reverse.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    found = sound(around(reverse), MLP)
    assert found.frozen_ops == {"reverse": 1} and str(found.spec) == "S5"
