"""Operators that only move entries: reshapes, permutations, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

aten = torch.ops.aten
IN = {"w": (4, 6), "v": (6, 2)}
OUT8 = {"w": (4, 6), "v": (8, 2)}


def through(change: Callable[..., Any]) -> Callable[..., Any]:
    """A change of the hidden tensor [3, 6] between two layers."""
    return lambda s, x: change((x @ s.w).relu()).reshape(3, -1) @ s.v


def inplace(s: Any, x: Any) -> Any:
    h = (x @ s.w).relu()
    h[:, -2:] += s.b
    h[1].mul_(2)
    h.view(3, 2, 3)[:, 0].add_(1.0)
    return h @ s.v


CASES: dict[str, tuple[Any, ...]] = {
    "reshape": (through(lambda h: h.reshape(3, 2, 3).relu()), IN, "S2 × S3^2"),
    "reshape/merged": (lambda s, x: ((x @ s.w).reshape(18).relu() @ s.u).tanh() @ s.v,
                       {"w": (4, 6), "u": (18, 5), "v": (5, 2)}, "S6 × S5"),
    "reshape/regrouped": (through(lambda h: h.reshape(3, 2, 3).transpose(1, 2).reshape(3, 6).relu()), IN, "S2 × S3^2"),
    "reshape/across": (through(lambda h: h.reshape(9, 2).relu()), IN, "S3 × S2^3"),
    "reshape/ones": (through(lambda h: h.reshape(1, 3, 1, 6, 1).relu()), IN, "S6"),
    "flatten": (through(lambda h: h.reshape(3, 2, 3).flatten(-2).relu()), IN, "S2 × S3^2"),
    "unflatten": (through(lambda h: h.unflatten(-1, (2, 3)).relu()), IN, "S2 × S3^2"),
    "view_as": (through(lambda h: h.view_as(torch.zeros(3, 3, 2)).relu()), IN, "S3 × S2^3"),
    "reshape_as": (through(lambda h: h.reshape_as(torch.zeros(3, 3, 2)).relu()), IN, "S3 × S2^3"),
    "permute": (lambda s, x: (x @ s.w).reshape(3, 2, 3).permute(-1, 0, 1).relu() @ s.v,
                {"w": (4, 6), "v": (2, 2)}, "S2"),
    "transpose": (lambda s, x: s.v.t() @ (x @ s.w).transpose(-1, 0).relu(), IN, "S6"),
    "swapaxes": (lambda s, x: s.v.t() @ (x @ s.w).swapaxes(-1, 0).relu(), IN, "S6"),
    "swapdims": (lambda s, x: s.v.t() @ (x @ s.w).swapdims(0, 1).relu(), IN, "S6"),
    "t": (lambda s, x: s.v.t() @ (x @ s.w).t().relu(), IN, "S6"),
    "numpy_T": (lambda s, x: s.v.t() @ (x @ s.w).T.relu(), IN, "S6"),
    "mT": (lambda s, x: s.v.t() @ (x[None] @ s.w).mT.relu(), IN, "S6"),
    "adjoint": (lambda s, x: s.v.t() @ (x[None] @ s.w).adjoint().relu(), IN, "S6"),
    "matrix_H": (lambda s, x: s.v.t() @ (x @ s.w).H.relu(), IN, "S6"),
    "movedim": (lambda s, x: (x[None] @ s.w).movedim((0, -1), (-1, 0)).squeeze(-1).t() @ s.v, IN, "S6"),
    "moveaxis": (lambda s, x: (x[None] @ s.w).moveaxis(-1, 1)[0].t() @ s.v, IN, "S6"),
    "unsqueeze": (through(lambda h: h.unsqueeze(-1).unsqueeze(0).relu()), IN, "S6"),
    "squeeze": (through(lambda h: h[None, :, None].squeeze().relu()), IN, "S6"),
    "squeeze/dim": (through(lambda h: h[None, :, None].squeeze(-2).squeeze((0, 1)).relu()), IN, "S6"),
    "expand": (lambda s, x: (s.b.expand(3, 6) * (x @ s.w).unsqueeze(1).expand(-1, 2, -1)[:, 0]) @ s.v,
               {**IN, "b": (6,)}, "S6"),
    "broadcast_to": (lambda s, x: (torch.broadcast_to(s.b, (3, 6)) * (x @ s.w)) @ s.v, {**IN, "b": (6,)}, "S6"),
    "expand_as": (lambda s, x: (s.b.expand_as(x @ s.w) * (x @ s.w)) @ s.v, {**IN, "b": (6,)}, "S6"),
    "broadcast_tensors": (lambda s, x: torch.mul(*torch.broadcast_tensors(s.b, x @ s.w)) @ s.v,
                          {**IN, "b": (6,)}, "S6"),
    "repeat": (through(lambda h: h[:, :4].repeat(1, 2).relu()), OUT8, "S4 × S2 × S2^4"),
    "tile": (through(lambda h: h[:, :4].tile((2,)).relu()), OUT8, "S4 × S2 × S2^4"),
    "repeat_interleave": (through(lambda h: h[:, :4].repeat_interleave(2, -1).relu()), OUT8, "S4 × S2 × S2^4"),
    "repeat_interleave/flat": (lambda s, x: (x[0] @ s.w).repeat_interleave(2) @ s.v, {"w": (4, 3), "v": (6, 2)},
                               "S3 × S2^3"),
    "select": (lambda s, x: (x @ s.w).reshape(3, 2, 3)[:, -1].relu() @ s.v, {"w": (4, 6), "v": (3, 2)}, "S3 × S3"),
    "select/position": (lambda s, x: (x @ s.w).select(0, -1).relu() @ s.v, IN, "S6"),
    "unbind": (lambda s, x: torch.mul(*(x @ s.w).reshape(3, 2, 3).unbind(1)) @ s.v, {"w": (4, 6), "v": (3, 2)}, "S3"),
    "split": (lambda s, x: torch.mul(*(x @ s.w).split(3, -1)) @ s.v, {"w": (4, 6), "v": (3, 2)}, "S3"),
    "split_with_sizes": (lambda s, x: torch.cat([p.relu() for p in (x @ s.w).split([1, 3, 2], 1)], 1) @ s.v, IN,
                         "S3 × S2"),
    "chunk": (lambda s, x: torch.cat((x @ s.w).chunk(4, -1)[::-1], 1) @ s.v, {"w": (4, 7), "v": (7, 2)}, "S2^3"),
    "tensor_split": (lambda s, x: torch.cat((x @ s.w).tensor_split(4, -1)[::-1], 1) @ s.v,
                     {"w": (4, 7), "v": (7, 2)}, "S2^3"),
    "unsafe_split": (lambda s, x: torch.mul(*torch.unsafe_split(x @ s.w, 3, -1)) @ s.v,
                     {"w": (4, 6), "v": (3, 2)}, "S3"),
    "unsafe_chunk": (lambda s, x: torch.mul(*torch.unsafe_chunk(x @ s.w, 2, -1)) @ s.v,
                     {"w": (4, 6), "v": (3, 2)}, "S3"),
    "unsafe_split_with_sizes": (lambda s, x: torch.mul(*aten.unsafe_split_with_sizes(x @ s.w, [3, 3], -1)) @ s.v,
                                {"w": (4, 6), "v": (3, 2)}, "S3"),
    "slice": (lambda s, x: (x @ s.w)[:, :4].relu() @ s.v, {"w": (4, 6), "v": (4, 2)}, "S4 × S2"),
    "slice/negative": (lambda s, x: (x @ s.w)[:, -4:-1].relu() @ s.v, {"w": (4, 6), "v": (3, 2)}, "S2 × S3"),
    "slice/step": (lambda s, x: ((x @ s.w)[:, ::2] * (x @ s.w)[:, 1::2]) @ s.v, {"w": (4, 6), "v": (3, 2)}, "S3"),
    "slice/part-of-step": (lambda s, x: (x @ s.w)[:, 0:4:2] @ s.v, {"w": (4, 8), "v": (2, 2)}, "S2 × S2"),
    "slice/odd-step": (lambda s, x: (x @ s.w)[:, ::4] @ s.v, IN | {"v": (2, 2)}, "trivial"),
    "slice/empty": (lambda s, x: torch.cat([(x @ s.w)[:, 4:2], (x @ s.w).relu()], 1) @ s.v, IN, "S6"),
    "narrow": (lambda s, x: (x @ s.w).narrow(-1, 1, 4).relu() @ s.v, {"w": (4, 6), "v": (4, 2)}, "S4"),
    "cat": (lambda s, x: torch.cat([x @ s.w, x @ s.u, x @ s.w], -1).relu() @ s.v,
            {"w": (4, 3), "u": (4, 5), "v": (11, 2)}, "S3 × S5"),
    "cat/rows": (lambda s, x: torch.cat([x @ s.w, s.b]).relu() @ s.v, {**IN, "b": (2, 6)}, "S6"),
    "concat": (lambda s, x: torch.concat([x @ s.w, x @ s.u], 1).relu() @ s.v,
               {"w": (4, 3), "u": (4, 5), "v": (8, 2)}, "S3 × S5"),
    "concatenate": (lambda s, x: torch.concatenate([x @ s.w, x @ s.u], 1).relu() @ s.v,
                    {"w": (4, 3), "u": (4, 5), "v": (8, 2)}, "S3 × S5"),
    "hstack": (lambda s, x: torch.hstack([x @ s.w, x @ s.u]).relu() @ s.v,
               {"w": (4, 3), "u": (4, 5), "v": (8, 2)}, "S3 × S5"),
    "vstack": (lambda s, x: torch.vstack([x @ s.w, x @ s.u]).relu() @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "stack": (lambda s, x: torch.stack([x @ s.w, x @ s.u], -1).relu().flatten(1) @ s.v,
              {"w": (4, 3), "u": (4, 3), "v": (6, 2)}, "S3"),
    "stack/first": (lambda s, x: torch.stack([x @ s.w, x @ s.u]).prod(0) @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "pad": (lambda s, x: F.pad(x @ s.w, (1, 2)) @ s.v, {"w": (4, 3), "v": (6, 2)}, "S3 × S2"),
    "pad/cut": (lambda s, x: F.pad(x @ s.w, (-1, 1), value=2.0) @ s.v, IN, "S5"),
    "pad/reflect": (lambda s, x: F.pad((x @ s.w).t()[None], (1, 1), mode="reflect")[0].t() @ s.v, IN, "S6"),
    "pad/rows": (lambda s, x: F.pad(x @ s.w, (0, 0, 1, 0)).exp() @ s.v, IN, "S6"),
    "constant_pad_nd": (lambda s, x: aten.constant_pad_nd(x @ s.w, [2, 1], 1.0) @ s.v,
                        {"w": (4, 3), "v": (6, 2)}, "S3 × S2"),
    "roll": (lambda s, x: torch.roll(x @ s.w, (2,), (-1,)) @ s.v, IN, "S4 × S2"),
    "roll/rows": (lambda s, x: torch.roll(x @ s.w, 1, 0) @ s.v, IN, "S6"),
    "roll/half": (lambda s, x: (torch.roll(x @ s.w, 3, 1) + (x @ s.w)).relu() @ s.v, IN, "S3"),
    "pixel_shuffle": (lambda s, x: F.pixel_shuffle((x @ s.w).t()[:, None], 2).flatten(1).t() @ s.v,
                      {"w": (4, 12), "v": (3, 2)}, "S3"),
    "pixel_unshuffle": (lambda s, x: F.pixel_unshuffle((x @ s.w).t().reshape(6, 1, 3)[..., :2].repeat(1, 2, 1), 2)
                        .flatten() @ s.v, {"w": (4, 6), "v": (24, 2)}, "S6"),
    "channel_shuffle": (lambda s, x: F.channel_shuffle((x @ s.w)[..., None, None], 2)[..., 0, 0].relu() @ s.v, IN,
                        "S2 × S3^2"),
    "channel_shuffle/1d": (lambda s, x: F.channel_shuffle((x @ s.w).reshape(1, 3, 6).mT, 2)[0].t() @ s.v, IN,
                           "S2 × S3^2"),
    "meshgrid": (lambda s, x: sum(torch.meshgrid(x[0] @ s.w, x[1] @ s.u, indexing="ij")).exp().sum(1) @ s.v,
                 {"w": (4, 6), "u": (4, 5), "v": (6, 2)}, "S6 × S5", "u"),
    "meshgrid/xy": (lambda s, x: sum(torch.meshgrid(x[0] @ s.w, x[1] @ s.u, indexing="xy")).exp().sum(0) @ s.v,
                    {"w": (4, 6), "u": (4, 5), "v": (6, 2)}, "S6 × S5", "u"),
    "slice_scatter": (inplace, {**IN, "b": (2,)}, "trivial"),
    "slice_scatter/columns": (lambda s, x: torch.slice_scatter(x @ s.w, x @ s.u, 1, -2) @ s.v, {**IN, "u": (4, 2)},
                              "S4 × S2 × S2"),
    "select_scatter": (lambda s, x: torch.select_scatter(x @ s.w, s.b, 0, -1) @ s.v, {**IN, "b": (6,)}, "S6"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_shapes(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[name]
    hold(name, function, own, group, blind=" ".join(blind))


def test_reshape_of_an_image(hold: Callable[..., Any]) -> None:
    own = {"net": nn.Sequential(nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))}
    hold("flatten", lambda s, x: s.net(x[None, None]), own, "S6")
