"""Steps with attention, experts and look-ups."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.testing._steps import Draw, Saved, Step, largest, step


def _sequence(x: Tensor) -> int:
    if x.ndim != 3:
        raise ValueError("no sequence")
    return x.shape[-1]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, fused: bool) -> Tensor:
    """Heads on axis 1; ``fused`` is PyTorch's own operator, the other way is written out."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def rotate(x: Tensor, interleaved: bool) -> Tensor:
    """Rotary positions: pairs of neighbours, or of one half with the other."""
    time, width = x.shape[-2:]
    angles = torch.outer(torch.arange(time, dtype=x.dtype), 2.0 ** -torch.arange(width // 2, dtype=x.dtype))
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    pairs = (a * cos - b * sin, b * cos + a * sin)
    return torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)


@step("attention")
def attention(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Separate queries, keys and values; perhaps grouped queries, rotary positions, normalised queries and keys."""
    width = _sequence(x)
    heads, inner, value = draw.choice((1, 2, 3, 4)), draw.choice((2, 4)), draw.choice((2, 3))
    shared = draw.divisor(heads)
    causal, fused, rotary, normal = draw.maybe(0.4), draw.maybe(), draw.randrange(4), draw.maybe(0.2)
    repeat = draw.randrange(3)
    source = draw.choice([None, *(k for k, s in enumerate(saved) if s.ndim == 3)]) if draw.maybe(0.3) else None
    read = width if source is None else saved[source].shape[-1]

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        y = x if source is None else saved[source]
        q, k, v = own.query(x), own.key(y), own.value(y)
        q = q.unflatten(-1, (heads, inner)).transpose(1, 2)
        k = k.unflatten(-1, (heads // shared, inner)).transpose(1, 2)
        v = v.unflatten(-1, (heads // shared, value)).transpose(1, 2)
        if normal:
            q, k = own.query_norm(q), own.key_norm(k)
        if rotary < 2:
            q, k = rotate(q, rotary == 0), rotate(k, rotary == 0)
        if shared > 1 and repeat == 0:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        elif shared > 1 and repeat == 1:
            k, v = (s[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2) for s in (k, v))
        elif shared > 1:
            found = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            return own.out(found.transpose(1, 2).flatten(-2))
        return own.out(attend(q, k, v, causal, fused).transpose(1, 2).flatten(-2))

    return Step(
        forward,
        query=nn.Linear(width, heads * inner, bias=draw.maybe()),
        key=nn.Linear(read, heads // shared * inner, bias=draw.maybe()),
        value=nn.Linear(read, heads // shared * value, bias=draw.maybe()),
        out=nn.Linear(heads * value, width, bias=draw.maybe()),
        query_norm=nn.LayerNorm(inner) if normal else None,
        key_norm=nn.RMSNorm(inner, eps=1e-5) if normal else None,
    )


@step("attention")
def packed_attention(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """One projection for queries, keys and values, in any order of the three axes."""
    width = _sequence(x)
    heads, inner = draw.choice((1, 2, 3)), draw.choice((2, 3))
    layout = draw.choice(("3hd", "h3d", "hd3", "chunk", "split"))
    causal, fused = draw.maybe(0.4), draw.maybe()

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        y = own.packed(x)
        if layout in ("chunk", "split"):
            parts = y.chunk(3, -1) if layout == "chunk" else y.split(heads * inner, -1)
            q, k, v = (s.unflatten(-1, (heads, inner)).transpose(1, 2) for s in parts)
        else:
            sizes = {"3": 3, "h": heads, "d": inner}
            y = y.reshape(*y.shape[:2], *(sizes[c] for c in layout))
            q, k, v = y.permute(2 + layout.index("3"), 0, 2 + layout.index("h"), 1, 2 + layout.index("d")).unbind(0)
        return own.out(attend(q, k, v, causal, fused).transpose(1, 2).flatten(2))

    packed, out = nn.Linear(width, 3 * heads * inner, bias=draw.maybe()), nn.Linear(heads * inner, draw.width())
    return Step(forward, packed=packed, out=out)


@step("attention")
def attention_module(draw: Draw, x: Tensor, saved: Saved) -> Step:
    width = _sequence(x)
    options: dict[str, Any] = {"bias": draw.maybe(), "add_bias_kv": draw.maybe(0.2), "add_zero_attn": draw.maybe(0.1)}
    if draw.maybe(0.2):
        options |= {"kdim": width, "vdim": width, "batch_first": draw.maybe()}
    layer = nn.MultiheadAttention(width, draw.divisor(width), **{"batch_first": True} | options)
    weights, mean = draw.maybe(0.5), draw.maybe()

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        found, seen = own.layer(x, x, x, need_weights=weights, average_attn_weights=mean)
        return found + seen.mean() if weights else found

    return Step(forward, layer=layer)


@step("attention")
def encoder_layer(draw: Draw, x: Tensor, saved: Saved) -> Step:
    width = _sequence(x)
    act = draw.choice(("relu", "gelu"))
    layer = nn.TransformerEncoderLayer(
        width, draw.divisor(width), 5, 0.0, act, batch_first=draw.maybe(0.8), norm_first=draw.maybe()
    )
    return Step(lambda own, x, saved: own.layer(x), layer=layer)


@step("attention")
def linear_attention(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Keys and values are summed over time before the queries read them."""
    width, inner = _sequence(x), draw.width()
    names = ("query", "key", "value")

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        q, k, v = F.elu(own.query(x)) + 1, own.key(x).softmax(1), own.value(x)
        return own.out(torch.einsum("btd,bde->bte", q, torch.einsum("bsd,bse->bde", k, v)))

    return Step(forward, out=nn.Linear(inner, width), **{name: nn.Linear(width, inner) for name in names})


@step("attention")
def experts(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A mixture of stacked experts: soft, or of the best ones only."""
    width, number, hidden = x.shape[-1], draw.choice((2, 3, 4)), draw.choice((3, 4))
    best = draw.choice((0, 0, 1, 2))

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        weights = own.gate(x).softmax(-1)
        if best:
            top, chosen = weights.topk(best, -1)
            weights = torch.zeros_like(weights).scatter(-1, chosen, top)
        y = torch.einsum("...i,eih->...eh", x, own.first)
        return torch.einsum("...eh,eho,...e->...o", torch.relu(y), own.second, weights)

    return Step(
        forward,
        gate=nn.Linear(width, number),
        first=draw.parameter(number, width, hidden),
        second=draw.parameter(number, hidden, width),
    )


@step("attention")
def look_up(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """The largest entry's index chooses a row of a table."""
    table = nn.Embedding(x.shape[-1], draw.width())
    return Step(lambda own, x, saved: own.table(largest(x, -1)), table=table) if x.ndim > 2 else _add_row(draw, x)


def _add_row(draw: Draw, x: Tensor) -> Step:
    return Step(lambda own, x, saved: x + own.table(largest(x, -1)), table=nn.Embedding(x.shape[-1], x.shape[-1]))


@step("attention")
def class_token(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A learned token before the others, and learned positions."""
    width = _sequence(x)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        return torch.cat([own.token.expand(x.shape[0], -1, -1), x], 1) + own.places

    return Step(forward, token=draw.parameter(1, 1, width), places=draw.parameter(1, x.shape[1] + 1, width))


@step("attention")
def relative_bias(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Attention without projections, with a learned bias per distance, looked up by constant indices."""
    width, time = _sequence(x), x.shape[1]
    heads = draw.divisor(width)
    distance = torch.arange(time)[:, None] - torch.arange(time)[None] + time - 1

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        q = x.unflatten(-1, (heads, width // heads)).transpose(1, 2)
        bias = own.table[distance].permute(2, 0, 1)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=bias).transpose(1, 2).flatten(2)

    return Step(forward, table=draw.parameter(2 * time - 1, heads))
