"""Transformer layers and mixtures of experts of the small networks, in the ways that models in use write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 11
"""Size of the vocabulary of the small language models."""


class FusedAttention(nn.Module):
    """Self-attention whose queries, keys and values are one matrix, of one of two row orders: ``(3, heads, d)`` as in
    timm, or ``(heads, 3, d)`` as in GPT-NeoX."""

    def __init__(self, width: int, heads: int, heads_first: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.heads_first, self.causal = heads, heads_first, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.heads_first:
            qkv = self.qkv(x).view(batch, length, self.heads, 3, width // self.heads).permute(3, 0, 2, 1, 4)
        else:
            qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class ModuleAttention(nn.Module):
    """``nn.MultiheadAttention`` as self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class SplitAttention(nn.Module):
    """Causal self-attention, queries, keys and values split from one matrix after GPT-2; the softmax written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(6, 6).tril().view(1, 1, 6, 6))
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(width, 2)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ value
        return self.out(y.transpose(1, 2).contiguous().view(batch, length, width))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class GroupedQueryAttention(nn.Module):
    """Causal attention with fewer key and value heads than query heads, and rotary position embedding (halves)."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int = 4) -> None:
        super().__init__()
        self.head_width, self.repeats = head_width, heads // kv_heads
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, kv_heads * head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        frequency = 1.0 / 100 ** (torch.arange(0, head_width, 2) / head_width)
        self.register_buffer("frequency", frequency, persistent=False)
        self.frequency: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2], device=x.device)[:, None] * self.frequency
        angle = torch.cat([angle, angle], -1)
        first, second = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            layer(x).view(batch, length, -1, self.head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = self.rotate(query), self.rotate(key)
        key, value = (part.repeat_interleave(self.repeats, dim=1) for part in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """``x + layer(norm(x))``"""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))


def block(attention: nn.Module, width: int = 12) -> nn.Module:
    mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
    return nn.Sequential(Residual(nn.LayerNorm(width), attention), Residual(nn.LayerNorm(width), mlp))


class VisionTransformer(nn.Module):
    """Patches, a class token, position embeddings, one block."""

    def __init__(self, attention: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.5 * torch.randn(1, 5, width))
        self.block = block(attention, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.block(x)[:, 0])


class TiedGpt(nn.Module):
    """Token and position embeddings, one causal block, the token embedding again as output layer."""

    def __init__(self, attention: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, width), nn.Embedding(6, width)
        self.block, self.norm = block(attention, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.block(hidden)))


class Llama(nn.Module):
    """Grouped queries, rotary embedding, RMS norm and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 12)
        self.attention = Residual(RmsNorm(12), GroupedQueryAttention(12, heads=4, kv_heads=2))
        self.mlp = Residual(nn.RMSNorm(12), SwiGlu(12, 10))
        self.norm = RmsNorm(12)
        self.head = nn.Linear(12, TOKENS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.mlp(self.attention(self.tokens(x)))))


class Encoder(nn.Module):
    """Two of torch's own encoder layers, after a projection."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=norm_first)
        self.enter, self.out = nn.Linear(5, 12), nn.Linear(12, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.enter(x)))


class Decoder(nn.Module):
    """Torch's own decoder layers: causal self-attention, and attention to a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.memory, self.out = nn.Linear(5, 12), nn.Linear(7, 12), nn.Linear(12, 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        return self.out(self.decoder(self.enter(x), self.memory(memory), tgt_mask=mask, tgt_is_causal=True))


class BranchingExperts(nn.Module):
    """Experts chosen by control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        y = x.new_zeros(x.shape[0], 3)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            if mine.any():
                y[mine] = expert(x[mine])
        return y


class StackedExperts(nn.Module):
    """All experts in one tensor; ``top`` of them count per token (0: all, with softmax weights)."""

    def __init__(self, top: int = 0, experts: int = 3, width: int = 6, hidden: int = 5) -> None:
        super().__init__()
        self.top = top
        self.enter, self.gate = nn.Linear(5, width), nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) / math.sqrt(width))
        self.down = nn.Parameter(torch.randn(experts, hidden, width) / math.sqrt(hidden))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights = F.softmax(self.gate(x), -1)
        if self.top:
            best, chosen = weights.topk(self.top, dim=-1)
            weights = torch.zeros_like(weights).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.relu(torch.einsum("bd,edh->ebh", x, self.up))
        y = torch.bmm(hidden, self.down)
        return self.out(x + torch.einsum("be,ebd->bd", weights, y))
