"""Reductions, in all forms of their dims, and what runs along an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

aten = torch.ops.aten
IN = {"w": (4, 6), "v": (6, 2)}


def every_dim(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Over the hidden class, beside it, and over all, with and without keepdim, counted from either end."""

    def forward(s: Any, x: Any) -> Any:
        h = x @ s.w
        cube = h.reshape(3, 1, 6) * x.reshape(3, 4, 1)
        return (
            operator(h, -1, keepdim=True).double() * x
            + operator(h, 0).double() @ s.v[:, :1]
            + operator(cube, [1, -1]).double()[:, None]
            + operator(cube, (0, 1), keepdim=True).double().flatten(1) @ s.v[:, 1:]
        )

    return forward


def one_dim(operator: Callable[..., Any]) -> Callable[..., Any]:
    def forward(s: Any, x: Any) -> Any:
        h = x @ s.w
        return operator(h, -1, keepdim=True).double() * x + operator(h, 0).double() @ s.v[:, :1]

    return forward


OPERATORS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(torch, name)
        for name in ("amax", "amin", "logsumexp", "mean", "nansum", "nanmean", "std", "sum", "var")
    },
    "linalg_vector_norm": lambda h, dim, keepdim=False: torch.linalg.vector_norm(h, 3, dim, keepdim),
    "norm": lambda h, dim, keepdim=False: aten.norm(h, 3, [dim] if isinstance(dim, int) else dim, keepdim),
    "frobenius_norm": lambda h, dim, keepdim=False: aten.frobenius_norm(
        h, [dim] if isinstance(dim, int) else dim, keepdim
    ),
    "any": lambda h, dim, keepdim=False: torch.any(h > 1, dim, keepdim=keepdim),
    "all": lambda h, dim, keepdim=False: torch.all(h > -1, dim, keepdim=keepdim),
}
VALUES: dict[str, Callable[..., Any]] = {
    "prod": torch.prod,
    "max": lambda h, dim, keepdim=False: torch.max(h, dim, keepdim).values,
    "min": lambda h, dim, keepdim=False: torch.min(h, dim, keepdim).values,
    "median": lambda h, dim, keepdim=False: torch.median(h, dim, keepdim).values,
    "nanmedian": lambda h, dim, keepdim=False: torch.nanmedian(h, dim, keepdim).values,
    "mode": lambda h, dim, keepdim=False: torch.mode(h.round(), dim, keepdim).values,
    "kthvalue": lambda h, dim, keepdim=False: torch.kthvalue(h, 2, dim, keepdim).values,
    "aminmax": lambda h, dim, keepdim=False: sum(torch.aminmax(h, dim=dim, keepdim=keepdim)),
    "var_mean": lambda h, dim, keepdim=False: sum(torch.var_mean(h, dim, keepdim=keepdim)),
    "std_mean": lambda h, dim, keepdim=False: sum(torch.std_mean(h, dim, correction=0, keepdim=keepdim)),
}

CASES: dict[str, tuple[Any, ...]] = {
    **{name: (every_dim(operator), IN, "S6") for name, operator in OPERATORS.items()},
    **{name: (one_dim(operator), IN, "S6") for name, operator in VALUES.items()},
    "count_nonzero": (lambda s, x: torch.count_nonzero(x @ s.w > 0, 0).double() @ s.v, IN, "S6"),
    "sum/all": (lambda s, x: (x @ s.w).relu().sum() * (x @ s.w) @ s.v, IN, "S6"),
    "sum/number": (lambda s, x: s.t.sum(0).sum(0) * (x @ s.w).relu() @ s.v, {**IN, "t": (1,)}, "S6"),
    "max/all": (lambda s, x: (x @ s.w).max() * (x @ s.w) @ s.v, IN, "S6"),
    "std/all": (lambda s, x: torch.std(x @ s.w, unbiased=False) * (x @ s.w) @ s.v, IN, "S6"),
    "norm/all": (lambda s, x: aten.norm(x @ s.w, 2) * (x @ s.w) @ s.v, IN, "S6"),
    "any/all": (lambda s, x: ((x @ s.w > 0).any() + 1) * (x @ s.w) @ s.v, IN, "S6"),
    "var/heads": (lambda s, x: (x @ s.w).reshape(3, 2, 3).var(-1) @ s.v, {"w": (4, 6), "v": (2, 2)}, "S2 × S3^2"),
    "max/index": (lambda s, x: torch.stack(list(torch.max(x @ s.w, 0))) .double() @ s.v, IN, "S6"),
    "argmax": (lambda s, x: torch.argmax(x @ s.w, 0, keepdim=True).double() @ s.v, IN, "S6"),
    "argmin": (lambda s, x: torch.argmin(x @ s.w, 0).double() @ s.v, IN, "S6"),
    "argmax/hidden": (lambda s, x: torch.argmax(x @ s.w, -1), {"w": (4, 6)}, "trivial"),
    "argmax/all": (lambda s, x: torch.argmax(x @ s.w) + x, {"w": (4, 6)}, "trivial"),
    "cumsum": (lambda s, x: torch.cumsum(x @ s.w, 0) @ s.v, IN, "S6"),
    "cumprod": (lambda s, x: torch.cumprod(x @ s.w, -2) @ s.v, IN, "S6"),
    "logcumsumexp": (lambda s, x: torch.logcumsumexp(x @ s.w, 0) @ s.v, IN, "S6"),
    "cumsum/hidden": (lambda s, x: torch.cumsum(x @ s.w, -1) @ s.v, IN, "trivial"),
    "flip": (lambda s, x: torch.flip(x @ s.w, [0]) @ s.v, IN, "S6"),
    "fft_fft": (lambda s, x: torch.fft.fft(x @ s.w, dim=0).real @ s.v, IN, "S6"),
    "fft_ifft": (lambda s, x: torch.fft.ifft(x @ s.w, n=5, dim=0).real @ s.v, IN, "S6"),
    "tril": (lambda s, x: torch.tril((x @ s.w).t()[:, :, None] * x[:, 0]).sum(-1).t() @ s.v, IN, "S6"),
    "triu": (lambda s, x: torch.triu((x @ s.w).t()[:, :, None] * x[:, 0]).sum(-1).t() @ s.v, IN, "S6"),
    "diff": (lambda s, x: torch.diff(x @ s.w, dim=0) @ s.v, IN, "S6"),
    "diff/prepended": (lambda s, x: torch.diff(x @ s.w, dim=0, prepend=x[:1] @ s.w) @ s.v, IN, "trivial"),
    "topk": (lambda s, x: torch.topk(x @ s.w, 2, 0).values @ s.v, IN, "S6"),
    "topk/router": (
        lambda s, x: torch.einsum("nke,ehc->nc", F.one_hot(torch.topk(x @ s.r, 2).indices, 3).double(), s.t),
        {"r": (4, 3), "t": (3, 5, 2)},
        "S5",
        "t",
    ),
    "sort": (lambda s, x: torch.sort(x @ s.w, 0).values @ s.v, IN, "S6"),
    "sort/stable": (lambda s, x: torch.sort(x @ s.w, stable=True, dim=0)[1].double() @ s.v, IN, "S6"),
    "argsort": (lambda s, x: torch.argsort(x @ s.w, 0).double() @ s.v, IN, "S6"),
    "cummax": (lambda s, x: torch.cummax(x @ s.w, 0)[0] @ s.v, IN, "S6"),
    "cummin": (lambda s, x: torch.cummin(x @ s.w, 0)[0] @ s.v, IN, "S6"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reductions(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[name]
    hold(name, function, own, group, blind="".join(blind))
