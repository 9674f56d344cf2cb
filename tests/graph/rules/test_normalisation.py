"""Normalisation layers, softmax and gated linear units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

aten = torch.ops.aten
IN = {"w": (4, 6), "v": (6, 2)}


def conv(layer: nn.Module, last: int = 2, **more: Any) -> dict[str, Any]:
    """A layer between two convolutions of 6 channels."""
    return {"net": nn.Sequential(nn.Conv2d(1, 6, 2), layer, nn.ReLU(), nn.Conv2d(6, last, 2)), **more}


def maps(s: Any, x: Any) -> Any:
    """The network on x as an image."""
    return s.net(x[None, None])


def own_statistics(s: Any, x: Any) -> Any:
    return aten.native_batch_norm(x @ s.w, s.b, s.b, s.m, s.r.exp(), False, 0.1, 1e-5)[0].relu() @ s.v


BATCH = {**IN, "b": (6,), "m": (6,), "r": (6,)}
CASES: dict[str, tuple[Any, ...]] = {
    "batch_norm": (maps, conv(nn.BatchNorm2d(6)), "S6"),
    "batch_norm/vectors": (lambda s, x: s.n(x @ s.w).relu() @ s.v, {**IN, "n": nn.BatchNorm1d(6)}, "S6"),
    "batch_norm/no-statistics": (maps, conv(nn.BatchNorm2d(6, track_running_stats=False)), "S6", "net.0.bias"),
    "batch_norm/of-weights": (
        # all of a row is averaged, so that its entries may change places one row at a time
        lambda s, x: F.batch_norm(s.w.t()[:, :, None], None, None, training=True).square().sum() * x @ s.u,
        {"w": (6, 4), "u": (4, 3)},
        "S6 × S4^6",
        "w",
    ),
    "native_batch_norm": (own_statistics, BATCH, "S6"),
    "_native_batch_norm_legit_no_training": (
        lambda s, x: aten._native_batch_norm_legit_no_training(x @ s.w, s.b, None, s.m, s.r.exp(), 0.1, 1e-5)[0] @ s.v,
        BATCH,
        "S6",
    ),
    "_native_batch_norm_legit": (
        lambda s, x: aten._native_batch_norm_legit.no_stats(x @ s.w, s.b, None, True, 0.1, 1e-5)[0].relu() @ s.v,
        {**IN, "b": (6,)},
        "S6",
    ),
    "_native_batch_norm_legit_functional": (
        lambda s, x: torch.stack(
            aten._native_batch_norm_legit_functional(x @ s.w, s.b, None, s.m, s.r.exp(), True, 0.1, 1e-5)[1:]
        ).relu() @ s.v,
        BATCH,
        "S6",
        "b",
    ),
    "instance_norm": (maps, conv(nn.InstanceNorm2d(6, affine=True)), "S6", "net.0.bias"),
    "instance_norm/statistics": (maps, conv(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), "S6"),
    "layer_norm": (lambda s, x: s.n(x @ s.w).relu() @ s.v, {**IN, "n": nn.LayerNorm(6)}, "S6"),
    "layer_norm/plain": (lambda s, x: F.layer_norm(x @ s.w, (6,)).relu() @ s.v, IN, "S6"),
    "layer_norm/two-axes": (
        lambda s, x: s.n((x @ s.w).reshape(3, 2, 3)).relu().flatten(1) @ s.v,
        {**IN, "n": nn.LayerNorm((2, 3))},
        "S2 × S3^2",
    ),
    "layer_norm/per-head": (
        lambda s, x: F.layer_norm((x @ s.w).reshape(3, 2, 3), (3,)).relu().flatten(1) @ s.v,
        IN,
        "S2 × S3^2",
    ),
    "native_layer_norm": (
        lambda s, x: aten.native_layer_norm(x @ s.w, [6], s.b, s.b, 1e-5)[0].relu() @ s.v,
        {**IN, "b": (6,)},
        "S6",
    ),
    "rms_norm": (lambda s, x: s.n(x @ s.w).relu() @ s.v, {**IN, "n": nn.RMSNorm(6)}, "S6"),
    "rms_norm/per-head": (
        lambda s, x: s.n((x @ s.w).reshape(3, 2, 3)).relu().flatten(1) @ s.v,
        {**IN, "n": nn.RMSNorm(3)},
        "S2 × S3",
    ),
    "_fused_rms_norm": (lambda s, x: aten._fused_rms_norm(x @ s.w, [6], s.b, 1e-5)[0] @ s.v, {**IN, "b": (6,)}, "S6"),
    "group_norm": (maps, conv(nn.GroupNorm(3, 6)), "S3 × S2^3"),
    "group_norm/one": (maps, conv(nn.GroupNorm(1, 6)), "S6"),
    "group_norm/each": (maps, conv(nn.GroupNorm(6, 6, affine=False)), "S6", "net.0.bias"),
    "group_norm/vectors": (lambda s, x: F.group_norm(x @ s.w, 2).relu() @ s.v, IN, "S2 × S3^2"),
    "group_norm/of-weights": (
        # position by position the channels of a group may change places, the groups only all at once
        lambda s, x: F.group_norm(s.w.t()[None], 2).relu().sum() * x @ s.u,
        {"w": (5, 6), "u": (4, 3)},
        "S5 × S2 × S3^10",
        "w",
    ),
    "softmax": (lambda s, x: (x @ s.w).softmax(-1) @ s.v, IN, "S6"),
    "softmax/other-axis": (lambda s, x: (x @ s.w).softmax(0) @ s.v, IN, "S6"),
    "log_softmax": (lambda s, x: (x @ s.w).log_softmax(1) @ s.v, IN, "S6"),
    "_softmax": (lambda s, x: aten._softmax(x @ s.w, -1, False) @ s.v, IN, "S6"),
    "_log_softmax": (lambda s, x: aten._log_softmax(x @ s.w, -1, False) @ s.v, IN, "S6"),
    "_safe_softmax": (lambda s, x: aten._safe_softmax(x @ s.w, -1) @ s.v, IN, "S6"),
    "softmax/heads": (
        lambda s, x: (x @ s.w).reshape(3, 2, 3).softmax(-1).flatten(1) @ s.v,
        IN,
        "S2 × S3^2",
    ),
    "glu": (lambda s, x: F.glu(x @ s.w) @ s.v, {"w": (4, 12), "v": (6, 2)}, "S6"),
    "glu/rows": (lambda s, x: F.glu(s.w @ x.t(), 0).t() @ s.v, {"w": (12, 4), "v": (6, 2)}, "S6"),
    "renorm": (lambda s, x: F.linear(x, torch.renorm(s.w, 2, 0, 1.0)).relu() @ s.v, {"w": (6, 4), "v": (6, 2)}, "S6"),
    "renorm/of-weights": (
        lambda s, x: torch.renorm(s.w, 2, 1, 0.5).relu().sum() * x @ s.v,
        {"w": (6, 5), "v": (4, 2)},
        "S6 × S5",
        "w",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_normalisation(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[name]
    hold(name, function, own, group, blind="".join(blind))
