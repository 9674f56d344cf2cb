"""Pooling, interpolation and padding of maps: channels pass, positions stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

aten = torch.ops.aten
EXTENT = {1: (8,), 2: (4, 4), 3: (4, 4, 4)}


def between(operator: Callable[..., Any], count: int, s: Any, x: Any) -> Any:
    """Six channels of maps with ``count`` axes, made from x, through the operator to a dense layer; batched and not."""
    h = torch.einsum("nc,ch->nh", x, s.w)[(..., *[None] * count)] + s.p
    batched, alone = operator(h), operator(h[0])
    return torch.einsum("nh...,hk->k", batched.double(), s.v) + torch.einsum("h...,hk->k", alone.double().exp(), s.v)


def case(count: int, operator: Callable[..., Any]) -> tuple[Any, ...]:
    return partial(between, operator, count), {"w": (4, 6), "v": (6, 2), "p": EXTENT[count]}, "S6"


def resized(mode: str, count: int, **more: Any) -> tuple[Any, ...]:
    def forward(s: Any, x: Any) -> Any:
        h = (x @ s.w)[(..., *[None] * count)] * s.p
        return torch.einsum("nh...,hk->nk", F.interpolate(h, scale_factor=2, mode=mode, **more).exp(), s.v)

    return forward, {"w": (4, 6), "v": (6, 2), "p": EXTENT[count]}, "S6"


def low_level(operator: Callable[..., Any]) -> tuple[Any, ...]:
    def forward(s: Any, x: Any) -> Any:
        h = (x @ s.w)[..., None, None] * s.p
        return torch.einsum("nh...,hk->nk", operator(h).exp(), s.v)

    return forward, {"w": (4, 6), "v": (6, 2), "p": (4, 4)}, "S6"


CASES: dict[str, tuple[Any, ...]] = {
    "max_pool1d": case(1, lambda h: F.max_pool1d(h, 3, ceil_mode=True)),
    "max_pool2d": case(2, lambda h: F.max_pool2d(h, 3, stride=2, padding=1, ceil_mode=True)),
    "max_pool3d": case(3, lambda h: F.max_pool3d(h, 2)),
    "max_pool1d_with_indices": case(1, lambda h: sum(F.max_pool1d(h, 2, return_indices=True))),
    "max_pool2d_with_indices": case(2, lambda h: sum(F.max_pool2d(h, 2, return_indices=True))),
    "max_pool3d_with_indices": case(3, lambda h: sum(F.max_pool3d(h, 2, return_indices=True))),
    "avg_pool1d": case(1, lambda h: F.avg_pool1d(h, 3, padding=1, ceil_mode=True)),
    "avg_pool2d": case(2, lambda h: F.avg_pool2d(h, 3, stride=2, count_include_pad=False)),
    "avg_pool3d": case(3, lambda h: F.avg_pool3d(h, 2)),
    "adaptive_avg_pool1d": case(1, lambda h: F.adaptive_avg_pool1d(h, 3)),
    "adaptive_avg_pool2d": case(2, lambda h: F.adaptive_avg_pool2d(h, (1, 3))),
    "adaptive_avg_pool3d": case(3, lambda h: F.adaptive_avg_pool3d(h, 1)),
    "_adaptive_avg_pool2d": case(2, lambda h: aten._adaptive_avg_pool2d(h, [2, 3])),
    "_adaptive_avg_pool3d": case(3, lambda h: aten._adaptive_avg_pool3d(h, [2, 3, 1])),
    "adaptive_max_pool1d": case(1, lambda h: F.adaptive_max_pool1d(h, 3)),
    "adaptive_max_pool2d": case(2, lambda h: F.adaptive_max_pool2d(h, 3)),
    "adaptive_max_pool3d": case(3, lambda h: F.adaptive_max_pool3d(h, 2)),
    "reflection_pad1d": case(1, lambda h: aten.reflection_pad1d(h, [1, 2])),
    "reflection_pad2d": case(2, lambda h: aten.reflection_pad2d(h, [1, 2, 0, 1])),
    "reflection_pad3d": case(3, lambda h: aten.reflection_pad3d(h, [1, 2, 0, 1, 1, 1])),
    "replication_pad1d": case(1, lambda h: aten.replication_pad1d(h, [1, 2])),
    "replication_pad2d": case(2, lambda h: aten.replication_pad2d(h, [1, 2, 0, 1])),
    "replication_pad3d": case(3, lambda h: aten.replication_pad3d(h, [1, 2, 0, 1, 1, 1])),
    "upsample_nearest1d": resized("nearest", 1),
    "upsample_nearest2d": resized("nearest", 2),
    "upsample_nearest3d": resized("nearest", 3),
    "_upsample_nearest_exact1d": resized("nearest-exact", 1),
    "_upsample_nearest_exact2d": resized("nearest-exact", 2),
    "_upsample_nearest_exact3d": resized("nearest-exact", 3),
    "upsample_linear1d": resized("linear", 1),
    "upsample_bilinear2d": resized("bilinear", 2),
    "upsample_bicubic2d": resized("bicubic", 2, align_corners=True),
    "upsample_trilinear3d": resized("trilinear", 3),
    "_upsample_bilinear2d_aa": low_level(lambda h: F.interpolate(h, (3, 3), mode="bilinear", antialias=True)),
    "_upsample_bicubic2d_aa": low_level(lambda h: F.interpolate(h, (3, 3), mode="bicubic", antialias=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_maps(name: str, hold: Callable[..., Any]) -> None:
    function, own, group = CASES[name]
    hold(name, function, own, group)
