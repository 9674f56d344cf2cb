"""Attention in its many spellings: the heads change places, and what is inside each head on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

QKV = {"q": (4, 6), "k": (4, 6), "t": (4, 6), "v": (6, 2)}
attend = F.scaled_dot_product_attention


def split(h: Any, heads: int = 2) -> Any:
    """[3, heads * d] -> [1, heads, 3, d]"""
    return h.reshape(1, 3, heads, -1).transpose(1, 2)


def join(h: Any) -> Any:
    return h.transpose(1, 2).reshape(3, -1)


def sdpa(**options: Any) -> Callable[..., Any]:
    return lambda s, x: join(attend(split(x @ s.q), split(x @ s.k), split(x @ s.t), **options)) @ s.v


def grouped(s: Any, x: Any) -> Any:
    """Four query heads on two key heads."""
    found = attend(split(x @ s.q, 4), split(x @ s.k), split(x @ s.t), enable_gqa=True)
    return join(found) @ s.v


def repeated(s: Any, x: Any) -> Any:
    """The same with the heads repeated by hand."""
    key, value = (split(x @ w).repeat_interleave(2, 1) for w in (s.k, s.t))
    return join(attend(split(x @ s.q, 4), key, value)) @ s.v


def multi_query(s: Any, x: Any) -> Any:
    """One key head for all."""
    return join(attend(split(x @ s.q), split(x @ s.k, 1), split(x @ s.t, 1))) @ s.v


def packed(s: Any, x: Any) -> Any:
    q, k, v = (x @ s.w).reshape(1, 3, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    return join(attend(q, k, v)) @ s.v


def chunked(s: Any, x: Any) -> Any:
    q, k, v = (x @ s.w).chunk(3, -1)
    return join(attend(split(q), split(k), split(v))) @ s.v


def interleaved(s: Any, x: Any) -> Any:
    """Heads outside, q, k and v inside."""
    q, k, v = (x @ s.w).reshape(1, 3, 2, 9).transpose(1, 2).chunk(3, -1)
    return join(attend(q, k, v)) @ s.v


def module(s: Any, x: Any) -> Any:
    return s.a(*[x[None] @ s.w] * 3, need_weights=False)[0] @ s.v


def alibi(s: Any, x: Any) -> Any:
    distance = (torch.arange(3)[:, None] - torch.arange(3)).abs().double()
    bias = -distance * torch.tensor([0.5, 0.25]).double()[:, None, None]
    return join(attend(split(x @ s.q), split(x @ s.k), split(x @ s.t), attn_mask=bias)) @ s.v


def relative(s: Any, x: Any) -> Any:
    """A learned bias per head and distance."""
    index = torch.arange(3)[:, None] - torch.arange(3) + 2
    bias = s.b[index].permute(2, 0, 1)[None]
    return join(attend(split(x @ s.q), split(x @ s.k), split(x @ s.t), attn_mask=bias)) @ s.v


def angles(d: int) -> tuple[Any, Any]:
    found = torch.arange(3).double()[:, None] * 0.3 ** torch.arange(d // 2).double()
    return found.cos(), found.sin()


def rotary(h: Any) -> Any:
    """Halves turned against each other."""
    cos, sin = angles(h.shape[-1])
    first, second = h.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotary_pairs(h: Any) -> Any:
    """Neighbours turned against each other."""
    cos, sin = angles(h.shape[-1])
    first, second = h[..., ::2], h[..., 1::2]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


def turned(turn: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda s, x: join(attend(turn(split(x @ s.q)), turn(split(x @ s.k)), split(x @ s.t))) @ s.v


def by_hand(s: Any, x: Any) -> Any:
    q, k, v = split(x @ s.q), split(x @ s.k), split(x @ s.t)
    scores = (q @ k.mT / 3).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf")).softmax(-1)
    return join(scores @ v) @ s.v


def memory(s: Any, x: Any) -> Any:
    """Learned keys and values: the memory's places may be permuted, too."""
    return join(attend(split(x @ s.q), split(s.k), split(s.t))) @ s.v


def linear_attention(s: Any, x: Any) -> Any:
    q, k, v = split(x @ s.q).softmax(-1), split(x @ s.k).softmax(-2), split(x @ s.t)
    return join(q @ (k.mT @ v)) @ s.v


WIDE = {"q": (4, 16), "k": (4, 16), "t": (4, 16), "v": (16, 2)}
HEADS = "S2 × S3^2 × S3^2"
name = "scaled_dot_product_attention"
CASES: dict[str, tuple[Any, ...]] = {
    name: (sdpa(), QKV, HEADS),
    f"{name}/causal": (sdpa(is_causal=True), QKV, HEADS),
    f"{name}/mask": (sdpa(attn_mask=torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()), QKV, HEADS),
    f"{name}/bias": (sdpa(attn_mask=torch.arange(9).reshape(3, 3).double()), QKV, HEADS),
    f"{name}/scale": (sdpa(scale=0.3), QKV, HEADS),
    f"{name}/alibi": (alibi, QKV, "S3^4"),
    f"{name}/relative": (relative, {**QKV, "b": (5, 2)}, HEADS),
    f"{name}/grouped": (grouped, {"q": (4, 12), "k": (4, 6), "t": (4, 6), "v": (12, 2)}, "S2 × S2^2 × S3^2 × S3^2"),
    f"{name}/repeated": (repeated, {"q": (4, 12), "k": (4, 6), "t": (4, 6), "v": (12, 2)}, "S2 × S2^2 × S3^2 × S3^2"),
    f"{name}/multi-query": (multi_query, {"q": (4, 6), "k": (4, 3), "t": (4, 3), "v": (6, 2)}, "S2 × S3 × S3"),
    f"{name}/packed": (packed, {"w": (4, 18), "v": (6, 2)}, HEADS),
    f"{name}/chunked": (chunked, {"w": (4, 18), "v": (6, 2)}, HEADS),
    f"{name}/interleaved": (interleaved, {"w": (4, 18), "v": (6, 2)}, HEADS),
    f"{name}/module": (module, {"w": (4, 6), "a": nn.MultiheadAttention(6, 2, batch_first=True), "v": (6, 2)},
                       "S6 × S6 × S2 × S3^2 × S3^2"),
    f"{name}/rotary": (turned(rotary), WIDE, "S2 × S8^2"),
    f"{name}/rotary-pairs": (turned(rotary_pairs), WIDE, "S2 × S8^2"),
    f"{name}/rotary-part": (turned(lambda h: torch.cat([rotary(h[..., :4]), h[..., 4:]], -1)), WIDE,
                            "S2 × S4^2 × S8^2"),
    "softmax/by-hand": (by_hand, QKV, HEADS),
    "softmax/linear": (linear_attention, QKV, HEADS),
    f"{name}/memory": (memory, {"q": (4, 6), "k": (3, 6), "t": (3, 6), "v": (6, 2)}, "S2 × S3^2 × S3 × S3^2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_attention(case: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[case]
    hold(case, function, own, group, blind=" ".join(blind))
