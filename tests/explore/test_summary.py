"""Statistics and cells of a block against the obvious computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.explore._summary import _EXACT, statistics, summarise


def cells_of(edges: Tensor, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Strongest entry and mean of every cell, one by one."""
    values = edges.double().numpy()
    if values.shape[1] == 1 and values.shape[2] > 1:
        values = values.transpose(0, 2, 1)
    steps = [math.ceil(n / side) for n in values.shape[:2]]
    rows = range(0, values.shape[0], steps[0])
    columns = range(0, values.shape[1], steps[1])
    strongest, average = np.empty((len(rows), len(columns))), np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = values[row : row + steps[0], column : column + steps[1]].ravel()
            strongest[i, j] = max(cell.max(), cell.min(), key=abs)  # the positive one of two equal ones
            average[i, j] = cell.mean()
    return strongest, average


SHAPES = [(1, 1, 1), (3, 5, 1), (64, 64, 1), (65, 3, 9), (130, 200, 1), (7, 1, 9), (129, 1, 25), (3, 150, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_obvious_way(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    edges = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for view in (edges, edges.transpose(0, 1).contiguous().transpose(0, 1)):  # both orders in memory
        numbers, cells = summarise(view, 64)
        values = edges.double()
        assert numbers.entries == edges.numel() and numbers.nan == numbers.inf == 0
        assert numbers.mean == pytest.approx(values.mean().item(), abs=1e-12)
        assert numbers.std == pytest.approx(values.std(correction=0).item(), abs=1e-12)
        assert (numbers.min, numbers.max) == (values.min().item(), values.max().item())
        strongest, average = cells_of(edges, 64)
        assert np.array_equal(cells.strongest, strongest)
        assert np.allclose(cells.average, average, rtol=0, atol=1e-12)
        assert cells.by_feature == (shape[1] == 1 and shape[2] > 1)
        assert max(cells.strongest.shape) <= 64
        assert cells.exact == (cells.strongest.size == edges.numel())


@pytest.mark.parametrize("transposed", [False, True])
def test_large_blocks(transposed: bool) -> None:
    edges = torch.randn(1100, 1000, 1) * 0.02 + 0.001
    assert edges.numel() > _EXACT
    view = edges.transpose(0, 1) if transposed else edges
    numbers, cells = summarise(view, 64)
    values = edges.double()
    assert numbers.mean == pytest.approx(values.mean().item(), abs=1e-8)
    assert numbers.std == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    strongest, average = cells_of(view, 64)
    assert np.array_equal(cells.strongest, strongest)
    assert np.allclose(cells.average, average, rtol=0, atol=1e-7)


def test_constant_large_blocks_have_no_spread() -> None:
    numbers, _ = summarise(torch.full((1100, 1000, 1), 0.3), 64)
    assert numbers.std is not None and numbers.std < 1e-7
    assert numbers.mean == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1500, 900, 1)], ids=str)
def test_entries_that_are_not_finite_are_counted_and_shown(shape: tuple[int, int, int]) -> None:
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    edges = clean.clone()
    edges[0, 1, 0], edges[2, 3, 0], edges[-1, -1, -1] = math.nan, math.inf, -math.inf
    numbers, cells = summarise(edges, 4)
    inside = edges[torch.isfinite(edges)].double()
    assert (numbers.nan, numbers.inf) == (1, 2)
    assert numbers.mean == pytest.approx(inside.mean().item(), abs=1e-9)
    assert numbers.std == pytest.approx(inside.std(correction=0).item(), rel=1e-9)
    assert (numbers.min, numbers.max) == (inside.min().item(), inside.max().item())
    assert np.isnan(cells.strongest[0, 0])
    assert cells.strongest[-1, -1] == -math.inf
    strongest, average = cells_of(clean, 4)
    for found, expected, tolerance in ((cells.strongest, strongest, 0), (cells.average, average, 1e-6)):
        same = np.isfinite(found)
        assert same.sum() >= same.size - 3
        assert np.allclose(found[same], expected[same], rtol=0, atol=tolerance)


def test_nothing_finite_at_all() -> None:
    numbers, cells = summarise(torch.full((2, 3, 1), math.nan), 64)
    assert (numbers.entries, numbers.mean, numbers.std, numbers.min, numbers.nan) == (6, None, None, None, 6)
    assert np.isnan(cells.strongest).all()
    assert statistics(torch.zeros(0)).mean is None


def test_whole_numbers_and_values_beyond_float32() -> None:
    assert statistics(torch.tensor([3, 4, 5])).mean == 4.0
    assert statistics(torch.tensor([1e300, -1e300], dtype=torch.float64)).max == 1e300
    large = torch.full((1100, 1000, 1), 1e30)  # squares do not fit float32
    numbers, _ = summarise(large, 64)
    assert numbers.mean == pytest.approx(1e30, rel=1e-6) and numbers.nan == numbers.inf == 0
