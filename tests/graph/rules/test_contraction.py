"""Products of tensors: linear layers, matrix products of every rank, einsum, embeddings, distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

IN = {"w": (4, 6), "v": (6, 2)}
HEADS = {"w": (4, 6), "u": (4, 6), "v": (6, 2)}
TOKENS = torch.tensor([[0, 2, 4], [1, 1, 3]])


def heads(x: Any) -> Any:
    """[3, 6] -> [2 heads, 3, 3]."""
    return x.reshape(3, 2, 3).transpose(0, 1)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "linear": (lambda s, x: F.linear(F.linear(x, s.w, s.b).relu(), s.v), {"w": (6, 4), "b": (6,), "v": (2, 6)}, "S6"),
    "linear/vector": (lambda s, x: F.linear((x @ s.w).relu(), s.u) * s.v, {"w": (4, 6), "u": (6,), "v": (3,)}, "S6"),
    "linear/ranks": (
        lambda s, x: F.linear(F.linear(x[None, None], s.w).relu(), s.v, s.b),
        {"w": (6, 4), "v": (2, 6), "b": (2,)},
        "S6",
    ),
    "bilinear": (
        lambda s, x: F.bilinear(x @ s.w, x @ s.u, s.t, s.b).relu() @ s.v,
        {"w": (4, 6), "u": (4, 5), "t": (7, 6, 5), "b": (7,), "v": (7, 2)},
        "S6 × S5 × S7",
    ),
    "matmul": (lambda s, x: (x @ s.w).relu() @ s.v, IN, "S6"),
    "matmul/vector-matrix": (lambda s, x: (x[0] @ s.w).relu() @ s.v, IN, "S6"),
    "matmul/matrix-vector": (lambda s, x: s.v.t() @ (s.w.t() @ x[0]).relu(), IN, "S6"),
    "matmul/vector-vector": (lambda s, x: (x[0] @ s.w).relu() @ s.v[:, 0], IN, "S6"),
    "matmul/matrix-stack": (lambda s, x: s.v.t() @ (s.w.t() @ x.reshape(3, 4, 1)).relu(), IN, "S6"),
    "matmul/stack-vector": (lambda s, x: (x @ s.t).relu() @ s.v[:, 0], {"t": (5, 4, 6), "v": (6, 2)}, "S6"),
    "matmul/vector-stack": (
        lambda s, x: (x[0] @ s.t).relu().reshape(-1) @ s.v.reshape(-1),
        {"t": (5, 4, 6), "v": (5, 6)},
        "S5 × S6^5",
    ),
    "matmul/broadcast": (lambda s, x: (x[None, None] @ s.t).relu() @ s.v, {"t": (5, 1, 4, 6), "v": (6, 2)}, "S6"),
    "mm": (lambda s, x: torch.mm(torch.mm(x, s.w).relu(), s.v), IN, "S6"),
    "mv": (lambda s, x: torch.mv(s.v.t(), torch.mv(s.w.t(), x[0]).relu()), IN, "S6"),
    "dot": (lambda s, x: torch.dot((x[0] @ s.w).relu(), s.v[:, 0]), IN, "S6"),
    "vdot": (lambda s, x: torch.vdot((x[0] @ s.w).relu(), s.v[:, 0]), IN, "S6"),
    "inner": (lambda s, x: torch.inner((x @ s.w).relu(), s.v.t()), IN, "S6"),
    "linalg_matmul": (lambda s, x: torch.linalg.matmul((x @ s.w).relu(), s.v), IN, "S6"),
    "bmm": (
        lambda s, x: (
            torch.bmm(torch.bmm(heads(x @ s.w), heads(x @ s.u).mT).softmax(-1), heads(x @ s.w))
            .transpose(0, 1)
            .reshape(3, 6)
            @ s.v
        ),
        HEADS,
        "S2 × S3^2",
    ),
    "addmm": (lambda s, x: torch.addmm(s.b, x, s.w).relu() @ s.v, {**IN, "b": (6,)}, "S6"),
    "addmm/column": (lambda s, x: torch.addmm(x[:, :1], x, s.w, beta=2, alpha=3).relu() @ s.v, IN, "S6"),
    "baddbmm": (
        lambda s, x: torch.baddbmm(s.b, x.expand(2, 3, 4), s.w).relu() @ s.v,
        {"w": (2, 4, 6), "b": (2, 1, 6), "v": (2, 6, 2)},
        "S6",  # one permutation for each of the two would do, too, but the spec has no words for it
    ),
    "addbmm": (
        lambda s, x: torch.addbmm(s.b, x.expand(2, 3, 4), s.w).relu() @ s.v,
        {"w": (2, 4, 6), "b": (6,), "v": (6, 2)},
        "S2 × S6",
    ),
    "addmv": (lambda s, x: torch.addmv(s.b, s.w.t(), x[0]).relu() @ s.v, {**IN, "b": (6,)}, "S6"),
    "addr": (lambda s, x: torch.addr(s.b, x[:, 0], x[0] @ s.w).relu() @ s.v, {**IN, "b": (6,)}, "S6"),
    "outer": (lambda s, x: torch.outer(x[:, 0], x[0] @ s.w).relu() @ s.v, IN, "S6"),
    "outer/flat": (
        lambda s, x: torch.outer(x[0] @ s.w, x[0] @ s.u).flatten() @ s.v,
        {"w": (4, 3), "u": (4, 5), "v": (15, 2)},
        "S3 × S5",
    ),
    "ger": (lambda s, x: torch.ger(x[:, 0], x[0] @ s.w).relu() @ s.v, IN, "S6"),
    "einsum": (lambda s, x: torch.einsum("nc,ch->nh", x, s.w).relu() @ s.v, IN, "S6"),
    "einsum/implicit": (lambda s, x: torch.einsum("ij, jk", x, s.w).relu() @ s.v, IN, "S6"),
    "einsum/ellipsis": (lambda s, x: torch.einsum("...c,ch->...h", x[None], s.w).relu() @ s.v, IN, "S6"),
    "einsum/implicit-ellipsis": (lambda s, x: torch.einsum("...c,ch", x[None], s.w).relu() @ s.v, IN, "S6"),
    "einsum/experts": (
        lambda s, x: torch.einsum("neh,eho->no", torch.einsum("nc,ech->neh", x, s.w).relu(), s.v),
        {"w": (5, 4, 6), "v": (5, 6, 2)},
        "S5 × S6^5",
    ),
    "einsum/summed": (lambda s, x: torch.einsum("nc,ch,hk->n", x, s.w, s.v) * s.b, {**IN, "b": (3,)}, "S6 × S2^6"),
    "einsum/attention": (
        lambda s, x: (
            torch.einsum(
                "hqk,hkd->qhd",
                torch.einsum("hqd,hkd->hqk", heads(x @ s.w), heads(x @ s.u)).softmax(-1),
                heads(x @ s.w),
            ).reshape(3, 6)
            @ s.v
        ),
        HEADS,
        "S2 × S3^2",
    ),
    "embedding": (lambda s, x: s.e(TOKENS).relu() @ s.v, {"e": nn.Embedding(5, 6), "v": (6, 2)}, "S6"),
    "embedding/tied": (
        lambda s, x: (s.e(TOKENS) @ s.w).relu() @ s.e.weight.t(),
        {"e": nn.Embedding(5, 6), "w": (6, 6)},
        "S6",
    ),
    "_weight_norm": (
        lambda s, x: s.out(F.linear(x, torch._weight_norm(s.w, s.g, 0)).relu()),
        {"w": (6, 4), "g": (6, 1), "out": nn.Linear(6, 2)},
        "S6",
    ),
    "_weight_norm/all": (
        lambda s, x: s.out(F.linear(x, torch._weight_norm(s.w, s.g.sum(), -1)).relu()),
        {"w": (6, 4), "g": (1,), "out": nn.Linear(6, 2)},
        "S6",
    ),
    "_weight_norm/inputs": (
        lambda s, x: F.linear((x @ s.u).relu(), torch._weight_norm(s.w, s.g, 1)),
        {"u": (4, 6), "w": (2, 6), "g": (1, 6)},
        "S6",
    ),
    "cosine_similarity": (
        lambda s, x: F.cosine_similarity((x @ s.w).relu(), s.b) * x[:, 0],
        {"w": (4, 6), "b": (6,)},
        "S6",
    ),
    "cosine_similarity/heads": (
        lambda s, x: F.cosine_similarity(heads(x @ s.w), heads(x @ s.u), dim=2).t() @ s.v,
        {"w": (4, 6), "u": (4, 6), "v": (2, 2)},
        "S2 × S3^2",
    ),
    "pairwise_distance": (lambda s, x: F.pairwise_distance(x @ s.w, s.b, keepdim=True), {"w": (4, 6), "b": (6,)}, "S6"),
}


@pytest.mark.parametrize("name", CASES)
def test_products(name: str, hold: Callable[..., Any]) -> None:
    function, own, group = CASES[name]
    hold(name, function, own, group)
