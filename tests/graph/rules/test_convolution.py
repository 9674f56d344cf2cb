"""Convolutions: dense, grouped, depthwise, transposed, unbatched, padded, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

aten = torch.ops.aten


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def stack(*layers: nn.Module) -> dict[str, Any]:
    return {"net": nn.Sequential(*layers)}


def run(s: Any, x: Any) -> Any:
    return s.net(x)


def between(*layers: nn.Module, channels: int = 4) -> dict[str, Any]:
    """These layers between two dense ones."""
    return stack(nn.Conv2d(2, channels, 1), nn.Tanh(), *layers)


R = nn.ReLU
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], str, tuple[int, ...]]] = {
    "conv1d": (run, stack(nn.Conv1d(2, 4, 3), R(), nn.Conv1d(4, 2, 3, stride=2)), "S4", (2, 2, 9)),
    "conv2d": (run, stack(nn.Conv2d(2, 4, 3), R(), nn.Conv2d(4, 2, 3, bias=False)), "S4", (2, 2, 7, 7)),
    "conv3d": (run, stack(nn.Conv3d(2, 4, 2), R(), nn.Conv3d(4, 6, 2), R(), nn.Conv3d(6, 2, 1)), "S4 × S6", (1, 2, 4, 4, 4)),
    "conv1d/unbatched": (run, stack(nn.Conv1d(2, 4, 3), R(), nn.Conv1d(4, 2, 3)), "S4", (2, 9)),
    "conv2d/unbatched": (run, stack(nn.Conv2d(2, 4, 3), R(), nn.Conv2d(4, 2, 3)), "S4", (2, 7, 7)),
    "conv2d/same": (run, between(nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(6, 2, 2)), "S4 × S6", (1, 2, 5, 5)),
    "conv2d/reflect": (run, between(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")), "S4", (1, 2, 5, 5)),
    "conv2d/circular": (run, between(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")), "S4", (1, 2, 5, 5)),
    "conv2d/replicate": (run, between(nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate")), "S4", (1, 2, 5, 5)),
    "conv2d/groups": (
        run,
        stack(nn.Conv2d(2, 6, 1), R(), nn.Conv2d(6, 4, 3, groups=2), R(), nn.Conv2d(4, 2, 1)),
        "S2 × S3^2 × S2^2",
        (1, 2, 5, 5),
    ),
    "conv2d/groups-of-inputs": (run, stack(nn.Conv2d(2, 4, 3, groups=2), R(), nn.Conv2d(4, 2, 1)), "S2 × S2", (1, 2, 5, 5)),
    "conv2d/depthwise": (run, between(nn.Conv2d(4, 4, 3, groups=4), R(), nn.Conv2d(4, 2, 1)), "S4", (1, 2, 5, 5)),
    "conv2d/multiplier": (
        run,
        between(nn.Conv2d(4, 12, 3, groups=4), R(), nn.Conv2d(12, 2, 1)),
        "S4 × S3^4",
        (1, 2, 5, 5),
    ),
    "conv2d/flattened": (
        run,
        stack(nn.Conv2d(2, 4, 3), R(), nn.Flatten(), nn.Linear(36, 5), R(), nn.Linear(5, 2)),
        "S4 × S5",
        (2, 2, 5, 5),
    ),
    "convolution": (
        lambda s, x: aten.convolution(
            aten.convolution(x, s.w, s.b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1).relu(),
            s.v, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        ),
        {"w": (4, 2, 3, 3), "b": (4,), "v": (2, 4, 1, 1)},
        "S4",
        (1, 2, 5, 5),
    ),
    "convolution/transposed": (
        lambda s, x: aten.convolution(
            aten.convolution(x, s.w, s.b, [1, 1], [0, 0], [1, 1], True, [0, 0], 1).relu(),
            s.v, None, [2, 2], [0, 0], [1, 1], True, [1, 1], 2,
        ),
        {"w": (2, 4, 3, 3), "b": (4,), "v": (4, 1, 1, 1)},
        "S2 × S2",
        (1, 2, 3, 3),
    ),
    "_convolution": (
        lambda s, x: aten._convolution(
            aten._convolution(x, s.w, s.b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True).relu(),
            s.v, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True,
        ),
        {"w": (4, 2, 3, 3), "b": (4,), "v": (2, 4, 1, 1)},
        "S4",
        (1, 2, 5, 5),
    ),
    "conv_transpose1d": (
        run, stack(nn.ConvTranspose1d(2, 4, 3), R(), nn.ConvTranspose1d(4, 2, 2, stride=2)), "S4", (1, 2, 5),
    ),
    "conv_transpose2d": (
        run, stack(nn.ConvTranspose2d(2, 4, 3), R(), nn.ConvTranspose2d(4, 2, 2, stride=2)), "S4", (1, 2, 4, 4),
    ),
    "conv_transpose3d": (
        run, stack(nn.ConvTranspose3d(2, 4, 2), R(), nn.ConvTranspose3d(4, 2, 2)), "S4", (1, 2, 2, 2, 2),
    ),
    "conv_transpose2d/unbatched": (
        run, stack(nn.ConvTranspose2d(2, 4, 3), R(), nn.ConvTranspose2d(4, 2, 2)), "S4", (2, 4, 4),
    ),
    "conv_transpose2d/groups": (
        run,
        stack(nn.Conv2d(2, 6, 1), R(), nn.ConvTranspose2d(6, 8, 2, groups=2), R(), nn.Conv2d(8, 2, 1)),
        "S2 × S3^2 × S4^2",
        (1, 2, 4, 4),
    ),
    "conv2d/weight-of-weights": (
        lambda s, x: F.conv2d(x, F.conv2d(s.w, s.u).relu()).relu().sum(1),
        {"w": (6, 3, 2, 2), "u": (2, 3, 1, 1)},
        "S6 × S3",
        (1, 2, 5, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, shape = CASES[name]
    hold(name, function, own, group, image(*shape))
