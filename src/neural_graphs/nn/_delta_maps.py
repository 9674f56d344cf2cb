"""From embeddings of neurons or edges to changes of their values: small MLPs, several results and several styles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMap(nn.Module):
    """``Linear, ReLU, Linear`` on ``parts`` embeddings ``[B, ..., F]`` side by side -> ``[copies * B, ..., targets]``.

    ``styles`` > 0: each style has a factor (1 at first) and a shift (0 at first) of every hidden unit, in front of the ReLU.
    """

    def __init__(self, width: int, targets: int, parts: int, copies: int = 1, styles: int = 0) -> None:
        super().__init__()
        self.copies = copies
        self.first, self.last = nn.Linear(parts * width, width), nn.Linear(width, copies * targets)
        self.style = style_table(styles, width)

    def forward(
        self,
        x: Tensor,
        forms: Sequence[Tensor],
        style: Tensor | None = None,
        scale: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """``forms`` are read; ``style`` ``[B]`` int64; ``scale`` multiplies the result, of which only ``targets`` (numbers,
        int64) are computed where they are given."""
        hidden = F.relu(styled(side_by_side(self.first, forms), self.style, style))
        return copy_major(hidden, self.copies, *chosen(self.last, self.copies, scale, targets))


class GatedMap(nn.Module):
    """An embedding ``x`` times an MLP of invariant ``forms``, through a linear map: multiplies exactly as ``x`` does."""

    def __init__(self, width: int, targets: int, parts: int, copies: int = 1, styles: int = 0) -> None:
        super().__init__()
        self.copies = copies
        self.first, self.gate = nn.Linear(parts * width, width), nn.Linear(width, width)
        self.last = nn.Linear(width, copies * targets, bias=False)
        self.style = style_table(styles, width)

    def forward(
        self,
        x: Tensor,
        forms: Sequence[Tensor],
        style: Tensor | None = None,
        scale: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """As that of ``PlainMap``."""
        hidden = F.relu(styled(side_by_side(self.first, forms), self.style, style))
        return copy_major(x * self.gate(hidden), self.copies, *chosen(self.last, self.copies, scale, targets))


def style_table(styles: int, width: int) -> nn.Embedding | None:
    """Per style what is added to the factors 1 of ``width`` hidden units, and their shifts; 0 at first."""
    if not styles:
        return None
    table = nn.Embedding(styles, 2 * width)
    nn.init.zeros_(table.weight)
    return table


def styled(x: Tensor, table: nn.Embedding | None, style: Tensor | None) -> Tensor:
    """``x`` ``[B, ..., F]`` with the factors and shifts of each network's ``style`` ``[B]``."""
    if table is None or style is None:
        return x
    factor, shift = (t.view(len(x), *[1] * (x.dim() - 2), x.shape[-1]) for t in table(style).chunk(2, -1))
    return torch.addcmul(shift, x, 1 + factor)


def chosen(last: nn.Linear, copies: int, scale: Tensor | None, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the last map, scaled (they are few, what they give is many), of ``targets`` of every copy alone."""
    found = []
    for t in (last.weight, last.bias):
        if t is not None and targets is not None:
            t = t.unflatten(0, (copies, -1))[:, targets].flatten(0, 1)
        found.append(t if t is None or scale is None else t * scale)
    return found[0], found[1]


def copy_major(x: Tensor, copies: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` ``[B, ..., F]`` through a map to ``copies`` times T values: ``[copies * B, ..., T]``."""
    out = F.linear(x, weight, bias)
    if copies == 1:
        return out
    return out.unflatten(-1, (copies, -1)).movedim(-2, 0).flatten(0, 1)


def side_by_side(linear: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """``linear`` of the concatenated ``parts``, which is never made: edges are the largest tensors there are."""
    weights = linear.weight.chunk(len(parts), 1)
    out = F.linear(parts[0], weights[0], linear.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out + F.linear(part, weight)
    return out
