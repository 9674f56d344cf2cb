"""Reductions and what runs along an axis."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from neural_graphs.graph._axes import mix
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule
from neural_graphs.graph._space import freeze
from neural_graphs.graph._var import UNIT, fixed


def reduced(call: Call, x: Axes, dims: list[int], keep: bool) -> Axes:
    mix(x, dims)
    return [UNIT if d in dims else s for d, s in enumerate(x) if keep or d not in dims]


SUMMARIES = [
    "all",
    "amax",
    "amin",
    "any",
    "count_nonzero",
    "frobenius_norm",
    "linalg_vector_norm",
    "logsumexp",
    "mean",
    "nanmean",
    "nansum",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
]


@rule(*SUMMARIES)
def reduce(call: Call) -> Axes:
    x = call.input
    return reduced(call, x, call.dims(call.get("dim"), len(x)), bool(call.get("keepdim")))


@rule("var_mean", "std_mean", "aminmax")
def reduce_twice(call: Call) -> list[Axes]:
    x = call.input
    found = reduced(call, x, call.dims(call.get("dim"), len(x)), bool(call.get("keepdim")))
    return [found, list(found)]


def reduce_with_indices(call: Call) -> Any:
    """``max.dim`` and the like: the value is a reduction, the index says where it stood."""
    x = call.input
    if isinstance(call.value, Tensor):
        return reduced(call, x, call.dims(None, len(x)), False)
    dims = call.dims(call.get("dim"), len(x))
    found = reduced(call, x, dims, bool(call.get("keepdim")))
    if _indices_used(call):
        freeze([x[d] for d in dims])
    return [found, list(found)]


def _indices_used(call: Call) -> bool:
    return any(user.target is operator.getitem and user.args[1] == 1 and user.users for user in call.node.users)


@rule("median", "nanmedian", "mode", "kthvalue")
def order_statistic(call: Call) -> Any:
    return reduce_with_indices(call)


@rule("argmax", "argmin")
def where_extreme(call: Call) -> Axes:
    """An index tells positions apart."""
    x = call.input
    dims = call.dims(call.get("dim"), len(x))
    found = reduced(call, x, dims, bool(call.get("keepdim")))
    freeze([x[d] for d in dims])
    return found


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "fft_fft", "fft_ifft", "tril", "triu", "diff")
def along(call: Call) -> Axes:
    """What depends on the order along an axis fixes it."""
    x = call.input
    if call.name in ("tril", "triu"):
        dims = [len(x) - 2, len(x) - 1]
    else:
        dims = call.dims(call["dims"] if "dims" in call.arguments else call["dim"], len(x))
    mix(x, dims)
    freeze([x[d] for d in dims])
    if call.name == "diff" and (call.has("prepend") or call.has("append")):
        freeze([s for name in ("prepend", "append") if call.has(name) for s in call.axes(name)])
        freeze(x)
    return [fixed(n) if d in dims else s for (d, s), n in zip(enumerate(x), call.shape, strict=True)]


@rule("topk", "sort", "cummax", "cummin", "argsort")
def ranked(call: Call) -> Any:
    """The values in order do not depend on where they stood; indices, and what runs along the axis, do."""
    x = call.input
    if not x:
        raise Unsupported
    dim = call.integer("dim") % len(x)
    mix(x, [dim])
    if call.name not in ("topk", "sort") or _indices_used(call):
        freeze([x[dim]])
    values = call.value if isinstance(call.value, (tuple, list)) else [call.value]
    found = [[fixed(int(v.shape[d])) if d == dim else s for d, s in enumerate(x)] for v in values]
    return found[0] if isinstance(call.value, Tensor) else found
