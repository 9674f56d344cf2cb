"""Building blocks that combine many rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def gated(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def forward(s: Any, x: Any) -> Any:
        value, gate = s.up(s.first(x)).chunk(2, -1)
        return s.down(value * kind(gate))

    return forward


GATED = {"first": nn.Linear(4, 5), "up": nn.Linear(5, 12), "down": nn.Linear(6, 2)}


def squeeze_excite(s: Any, x: Any) -> Any:
    h = s.first(x[None, None])
    gate = s.b(F.relu(s.a(h.mean((2, 3), keepdim=True)))).sigmoid()
    return s.last(h * gate)


def residual(s: Any, x: Any) -> Any:
    h = s.stem(x)
    h = h + s.b(F.relu(s.a(s.n(h))))
    h = h + s.d(torch.tanh(s.c(s.n(h))))
    return s.head(h)


def experts(s: Any, x: Any) -> Any:
    """Soft mixture of stacked experts."""
    weights = (x @ s.router).softmax(-1)
    h = torch.einsum("nd,edh->enh", x, s.up).relu()
    return torch.einsum("enh,eho,ne->no", h, s.down, weights)


def expert_matmul(s: Any, x: Any) -> Any:
    weights = (x @ s.router).softmax(-1).t()[..., None]
    return (weights * torch.bmm(torch.bmm(x.expand(3, -1, -1), s.up).relu(), s.down)).sum(0)


TOKENS = torch.tensor([[0, 1, 2, 4]])


def language(s: Any, x: Any) -> Any:
    """Token and position embeddings, tied output."""
    h = s.tokens(TOKENS) + s.positions.weight[:4] * x[:1].t()
    h = h + s.down(F.gelu(s.up(s.norm(h))))
    return h @ s.tokens.weight.t()


def class_token(s: Any, x: Any) -> Any:
    h = torch.cat([s.token.expand(1, -1, -1), s.stem(x)[None]], 1) + s.place
    h = s.mix(h.mT).mT.relu()
    return s.head(h[:, 0])


def unet(s: Any, x: Any) -> Any:
    a = s.a(x[None, None].repeat(1, 1, 2, 1)[..., :4, :]).relu()
    b = F.interpolate(s.b(F.max_pool2d(a, 2)).relu(), scale_factor=2)
    return s.c(torch.cat([a, b], 1))


def feature_wise(s: Any, x: Any) -> Any:
    """FiLM: scale and shift of channels from another network."""
    scale, shift = s.film(x).chunk(2, -1)
    return s.head((s.first(x) * (1 + scale) + shift).relu())


def hypernetwork(s: Any, x: Any) -> Any:
    """Weights made by a network: their inputs are the code's neurons."""
    weight = s.make(x[:1].relu()).reshape(6, 4)
    return s.head(F.linear(x, weight).relu())


BLOCKS: dict[str, tuple[Any, ...]] = {
    "geglu": (gated(F.gelu), GATED, "S5 × S6"),
    "swiglu": (gated(F.silu), GATED, "S5 × S6"),
    "squeeze-excite": (
        squeeze_excite,
        {"first": nn.Conv2d(1, 6, 2), "a": nn.Conv2d(6, 3, 1), "b": nn.Conv2d(3, 6, 1), "last": nn.Conv2d(6, 2, 2)},
        "S6 × S3",
    ),
    "residual": (
        residual,
        {"stem": nn.Linear(4, 6), "n": nn.LayerNorm(6), "a": nn.Linear(6, 5), "b": nn.Linear(5, 6),
         "c": nn.Linear(6, 7), "d": nn.Linear(7, 6), "head": nn.Linear(6, 2)},
        "S6 × S5 × S7",
    ),
    "experts": (experts, {"router": (4, 3), "up": (3, 4, 5), "down": (3, 5, 2)}, "S3 × S5^3"),
    "expert-matmul": (expert_matmul, {"router": (4, 3), "up": (3, 4, 5), "down": (3, 5, 2)}, "S3 × S5^3"),
    "language": (
        language,
        {"tokens": nn.Embedding(5, 6), "positions": nn.Embedding(7, 6), "norm": nn.LayerNorm(6),
         "up": nn.Linear(6, 8), "down": nn.Linear(8, 6)},
        "S6 × S8",
    ),
    "class-token": (
        class_token,
        {"token": (1, 1, 6), "place": (4, 6), "stem": nn.Linear(4, 6), "mix": nn.Linear(4, 4), "head": nn.Linear(6, 2)},
        "S6 × S3",  # the other tokens are mixed, then left out
        "mix.weight mix.bias",
    ),
    "unet": (unet, {"a": nn.Conv2d(1, 4, 3, padding=1), "b": nn.Conv2d(4, 6, 1), "c": nn.Conv2d(10, 2, 1)}, "S4 × S6"),
    "feature-wise": (
        feature_wise,
        {"first": nn.Linear(4, 6), "film": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 12)),
         "head": nn.Linear(6, 2)},
        "S6 × S5",
    ),
    "hypernetwork": (
        hypernetwork,
        {"make": nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 24)), "head": nn.Linear(6, 2)},
        "S5 × S6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = BLOCKS[name]
    operator = {"experts": "einsum", "expert-matmul": "bmm", "squeeze-excite": "conv2d", "unet": "conv2d"}
    hold(operator.get(name, "linear"), function, own, group, blind=" ".join(blind))
