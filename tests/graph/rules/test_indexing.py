"""Look-ups by index: adjacent, separate, by mask, constant or computed, and writes by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

IN = {"w": (4, 6), "v": (6, 2)}
ROWS = torch.tensor([2, 0, 2])


def heads(s: Any, x: Any) -> Any:
    """[3, 2, 3]"""
    return (x @ s.w).relu().reshape(3, 2, 3)


def computed(x: Any, n: int = 3) -> Any:
    """Row numbers that depend on the input."""
    return (x[:, 0] * 7).long() % n


def written(s: Any, x: Any) -> Any:
    h = (x @ s.w).relu()
    h[ROWS[:2]] = s.b
    return h @ s.v


def columns(s: Any, x: Any) -> Any:
    h = (x @ s.w).relu()
    h[:, ROWS[:2]] = s.b
    return h @ s.v


CASES: dict[str, tuple[Any, ...]] = {
    "index": (lambda s, x: (x @ s.w)[computed(x)].relu() @ s.v, IN, "S6"),
    "index/constant": (lambda s, x: (x @ s.w)[:, [0, 1, 2, 5]].relu() @ s.v, {"w": (4, 6), "v": (4, 2)}, "S3 × S2"),
    "index/constant-rows": (lambda s, x: (x @ s.w)[torch.tensor([-1, 0])].relu() @ s.v, IN, "S6"),
    "index/computed-columns": (lambda s, x: (x @ s.w)[:, computed(x, 6)] * s.b, {"w": (4, 6), "b": (3,)}, "trivial"),
    "index/adjacent": (lambda s, x: heads(s, x)[computed(x), computed(x, 2)] @ s.v, {"w": (4, 6), "v": (3, 2)}, "S3"),
    "index/separate": (lambda s, x: (x @ s.w).reshape(1, 3, 6).expand(2, 3, 6)[computed(x, 2), :, computed(x, 6)] * s.b,
                       {"w": (4, 6), "b": (3,)}, "trivial"),
    "index/around": (lambda s, x: ((x @ s.w)[:, :, None] * x[:, None])[computed(x), :, computed(x, 4)] @ s.v, IN, "S6"),
    "index/grid": (lambda s, x: s.t[computed(x)[:, None], computed(x)[None]].relu() @ s.v,
                   {"t": (3, 3, 6), "v": (6, 2)}, "S6"),
    "index/mask": (lambda s, x: (x @ s.w)[torch.tensor([True, False, True])].relu() @ s.v, IN, "S6"),
    "index_select": (lambda s, x: torch.index_select(x @ s.w, 0, computed(x)).relu() @ s.v, IN, "S6"),
    "index_select/constant": (lambda s, x: torch.index_select(x @ s.w, -1, torch.tensor([3, 4, 5, 0])).relu() @ s.v,
                              {"w": (4, 6), "v": (4, 2)}, "S2 × S3"),
    "gather": (lambda s, x: torch.gather(x @ s.w, 0, computed(x)[:, None].expand(3, 6)).relu() @ s.v, IN, "S6"),
    "gather/fewer": (lambda s, x: torch.gather(x @ s.w, 0, computed(x)[:, None].expand(3, 5)).relu() @ s.v,
                     {"w": (4, 6), "v": (5, 2)}, "trivial"),
    "gather/own-order": (lambda s, x: torch.gather(x @ s.w, 0, torch.argsort(x @ s.w, 0)).relu() @ s.v, IN, "S6"),
    "take_along_dim": (lambda s, x: torch.take_along_dim(x @ s.w, computed(x)[:, None], 0).relu() @ s.v, IN, "S6"),
    "scatter": (lambda s, x: torch.scatter(x @ s.w, 0, computed(x)[:1, None].expand(1, 6), 2.0).relu() @ s.v, IN, "S6"),
    "scatter/source": (lambda s, x: torch.scatter(x @ s.w, 0, torch.argsort(x @ s.w, 0), x @ s.u) @ s.v,
                       {**IN, "u": (4, 6)}, "S6"),
    "scatter_add": (lambda s, x: torch.scatter_add(x @ s.w, 0, computed(x)[:, None].expand(3, 6), x @ s.u).relu() @ s.v,
                    {**IN, "u": (4, 6)}, "S6"),
    "scatter_reduce": (
        lambda s, x: torch.scatter_reduce(x @ s.w, -2, computed(x)[:, None].expand(3, 6), x @ s.u, "amax") @ s.v,
        {**IN, "u": (4, 6)}, "S6"),
    "index_add": (lambda s, x: torch.index_add(x @ s.w, 0, ROWS, x @ s.u).relu() @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "index_add/sources": (
        # a sum over its sources: their order does not matter
        lambda s, x: torch.index_add(x @ s.w, 0, torch.zeros(5, dtype=torch.int64) + computed(x)[0], s.u).relu() @ s.v,
        {**IN, "u": (5, 6)}, "S6 × S5"),
    "index_copy": (lambda s, x: torch.index_copy(x @ s.w, 0, ROWS[:2], x[:2] @ s.u) @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "index_reduce": (lambda s, x: torch.index_reduce(x @ s.w, 0, ROWS, x @ s.u, "amax") @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "index_fill": (lambda s, x: torch.index_fill(x @ s.w, 0, ROWS[:2], 0.7) @ s.v, IN, "S6"),
    "index_put": (written, {**IN, "b": (2, 6)}, "S6"),
    "index_put/added": (lambda s, x: torch.index_put(x @ s.w, (ROWS,), s.b, accumulate=True).relu() @ s.v,
                        {**IN, "b": (6,)}, "S6"),
    "index_put/columns": (columns, {**IN, "b": (2,)}, "trivial"),
    "_unsafe_index_put": (lambda s, x: torch.ops.aten._unsafe_index_put(x @ s.w, [ROWS[:2]], s.b) @ s.v,
                          {**IN, "b": (2, 6)}, "S6"),
    "one_hot": (lambda s, x: (F.one_hot((x @ s.w > 0).long(), 2).double() @ s.u).flatten(1) @ s.v,
                {"w": (4, 6), "u": (2, 3), "v": (18, 2)}, "S6 × S3"),
    "bucketize": (lambda s, x: torch.bucketize(x @ s.w, torch.tensor([-1.0, 0.0, 1.0]).double()).double() @ s.v, IN, "S6"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", CASES)
def test_indexing(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[name]
    hold(name, function, own, group, blind=" ".join(blind))
