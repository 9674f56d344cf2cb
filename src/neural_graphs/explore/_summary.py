"""Numbers and small images that stand for a block of weights, in two passes over it and without a copy of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_EXACT = 1 << 20  # entries up to which everything is computed in float64


@dataclass(frozen=True)
class Statistics:
    """Of the finite entries; None where there are none. ``nan`` and ``inf`` count the others."""

    entries: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    nan: int = 0
    inf: int = 0


@dataclass(frozen=True, eq=False)
class Cells:
    """A block seen as at most ``side`` x ``side`` cells, ``[rows, columns]`` float64: cell (i, j) stands for rows
    ``i * row_step`` and following, columns alike.

    ``strongest`` is the entry with the largest absolute value (NaN if one is NaN), ``average`` the mean. Rows are target
    neurons; columns are source neurons, or, where there is one source per target (``by_feature``), the entries of its
    kernel.
    """

    strongest: np.ndarray
    average: np.ndarray
    row_step: int
    column_step: int
    by_feature: bool

    @property
    def exact(self) -> bool:
        """Every cell is one entry of the block."""
        return self.row_step == self.column_step == 1 and bool(np.array_equal(self.strongest, self.average, True))


def statistics(values: Tensor) -> Statistics:
    """Of all entries of a real tensor of any shape (empty ones included)."""
    return summarise(values.reshape(1, 1, -1), 1)[0] if values.numel() else Statistics(0)


def summarise(edges: Tensor, side: int) -> tuple[Statistics, Cells]:
    """``edges`` is one network's block ``[n_target, n_source, features]``, not empty, of any real type and strides."""
    by_feature = edges.shape[1] == 1 and edges.shape[2] > 1
    if by_feature:
        edges = edges.transpose(1, 2)
    steps = [-(-size // side) for size in edges.shape[:2]]
    if not edges.is_floating_point() or edges.numel() <= _EXACT:
        edges = edges.double()
    found = _reduce(edges, steps)
    finite = bool(torch.isfinite(found[0]).all() and torch.isfinite(found[3]).all())
    if not finite:
        return _with_gaps(edges, steps, by_feature)
    high, low, total, squares = (part.numpy() for part in found)
    entries = edges.numel()
    mean = float(total.sum()) / entries
    variance = float(squares.sum()) / entries - mean**2
    if variance < 1e-4 * mean**2:  # what is left after cancellation is noise
        variance = _variance(edges, mean)
    numbers = Statistics(entries, mean, math.sqrt(max(variance, 0.0)), float(low.min()), float(high.max()))
    return numbers, _cells(edges, steps, high, low, total, by_feature)


def _reduce(edges: Tensor, steps: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest, smallest, sum and sum of squares of every cell, float64."""
    strides = edges.stride()
    first = 1 if strides[1] <= strides[0] else 0  # the axis that runs along memory is reduced first: 3 times as fast
    wide = torch.float64 if edges.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        parts = []
        for piece in _pieces(edges, first, steps[first]):
            over = (first + 1, 3)
            parts.append(
                (
                    piece.amax(over).double(),
                    piece.amin(over).double(),
                    piece.sum(over, dtype=wide).double(),
                    torch.linalg.vector_norm(piece, 2, over, dtype=wide).double().square(),
                )
            )
        columns = [torch.cat(part, first) for part in zip(*parts, strict=True)]
        other = 1 - first
        high, low, total, squares = (list(_pieces(c.unsqueeze(-1), other, steps[other])) for c in columns)
        over = (other + 1, 3)
        return (
            torch.cat([p.amax(over) for p in high], other),
            torch.cat([p.amin(over) for p in low], other),
            torch.cat([p.sum(over) for p in total], other),
            torch.cat([p.sum(over) for p in squares], other),
        )


def _pieces(values: Tensor, dim: int, step: int) -> list[Tensor]:
    """Views that split axis ``dim`` of a 3-axis tensor into (cells, step), the last and smaller cell apart."""
    whole = values.shape[dim] // step
    pieces = []
    if whole:
        pieces.append(values.narrow(dim, 0, whole * step).unflatten(dim, (whole, step)))
    if rest := values.shape[dim] - whole * step:
        pieces.append(values.narrow(dim, whole * step, rest).unflatten(dim, (1, rest)))
    return pieces


def _variance(edges: Tensor, mean: float) -> float:
    total = 0.0
    rows = max(1, _EXACT // max(1, edges[0].numel()))
    for start in range(0, edges.shape[0], rows):
        total += float((edges[start : start + rows].double() - mean).square().sum())
    return total / edges.numel()


def _cells(
    edges: Tensor, steps: list[int], high: np.ndarray, low: np.ndarray, total: np.ndarray, by_feature: bool
) -> Cells:
    counts = [_counts(size, step) for size, step in zip(edges.shape[:2], steps, strict=True)]
    average = total / (np.outer(*counts) * edges.shape[2])
    return Cells(np.where(high >= -low, high, low), average, steps[0], steps[1], by_feature)


def _counts(size: int, step: int) -> np.ndarray:
    starts = np.arange(0, size, step)
    return np.minimum(starts + step, size) - starts


def _with_gaps(edges: Tensor, steps: list[int], by_feature: bool) -> tuple[Statistics, Cells]:
    """The same for a block with NaN or infinite entries (or sums beyond float32): slower, in float64, piece by piece."""
    rows = max(1, _EXACT // max(1, edges[0].numel() * steps[0])) * steps[0]
    nan = count = 0
    mean = spread = 0.0
    low, high = math.inf, -math.inf
    strongest, average = [], []
    for start in range(0, edges.shape[0], rows):
        values = edges[start : start + rows].detach().double()
        finite = torch.isfinite(values)
        nan += int(torch.isnan(values).sum())
        inside = values[finite]
        if n := inside.numel():  # moments merged after Chan, Golub and LeVeque (1983)
            own = float(inside.mean())
            spread += float((inside - own).square().sum()) + (own - mean) ** 2 * count * n / (count + n)
            mean += (own - mean) * n / (count + n)
            count += n
            low, high = min(low, float(inside.min())), max(high, float(inside.max()))
        # amax is NaN where an entry is, so that a NaN shows; an infinity is the strongest entry of its cell.
        top, bottom = (part.numpy() for part in _reduce(values, steps)[:2])
        total = _reduce(torch.where(finite, values, 0.0), steps)[2].numpy()
        with np.errstate(invalid="ignore"):
            strongest.append(np.where(np.isnan(top), np.nan, np.where(top >= -bottom, top, bottom)))
        average.append(_cells(values, steps, top, bottom, total, by_feature).average)
    nearly = np.concatenate(strongest)
    cells = Cells(
        nearly, np.where(np.isfinite(nearly), np.concatenate(average), nearly), steps[0], steps[1], by_feature
    )
    entries = edges.numel()
    if not count:
        return Statistics(entries, nan=nan, inf=entries - nan), cells
    return Statistics(entries, mean, math.sqrt(spread / count), low, high, nan, entries - count - nan), cells
