"""Reductions, pooling and interpolation: entries that are put together must scale alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from neural_graphs.graph._rescale._pass import Pass, Value, rank_of, rule
from neural_graphs.graph._rescale._pointwise import alike, first, still
from neural_graphs.graph._rules import Call


def reduced(p: Pass, call: Call, dims: list[int], keep: bool) -> Value:
    """Entries that are put together scale alike."""
    node = first(call)
    value = p.of(node)
    if p.hot(node, dims):
        p.zero(value)
        return {}
    found = p.level(value, dims)
    if keep:
        return found
    kept = [d for d in range(rank_of(node)) if d not in dims]
    return {kept.index(dim): array.squeeze(tuple(dims)) for dim, array in found.items()}


def _dims(call: Call) -> tuple[list[int], bool]:
    return call.dims(call.get("dim"), rank_of(first(call))), bool(call.get("keepdim"))


@rule("sum", "mean", "nansum", "nanmean")
def total(p: Pass, call: Call) -> Value:
    return reduced(p, call, *_dims(call))


@rule("amax", "amin")
def extreme(p: Pass, call: Call) -> Value:
    return reduced(p, call, *_dims(call)) if p.scale else still(p, call)


@rule("max", "min", "median", "nanmedian", "kthvalue")
def extreme_and_index(p: Pass, call: Call) -> Value | list[Value]:
    if "other" in call.arguments:
        return alike(p, call, [call["self"], call["other"]]) if p.scale else still(p, call)
    if not p.scale:
        p.still(call.node.all_input_nodes)
        return {} if isinstance(call.value, Tensor) else [{} for _ in call.value]
    found = reduced(p, call, *_dims(call))
    return found if isinstance(call.value, Tensor) else [found, {}]


@rule("norm", "linalg_vector_norm", "frobenius_norm", "std", "var")
def size_of(p: Pass, call: Call) -> Value:
    """A norm does not see signs, and is homogeneous; a variance sees the signs of what is put together."""
    dims, keep = _dims(call)
    if "norm" in call.name:
        if not p.scale:
            return {}
        if (call.get("ord", call.get("p")) or 2) in (0, 0.0):
            return still(p, call)
        return reduced(p, call, dims, keep)
    found = reduced(p, call, dims, keep)
    return p.times(found, (1 if call.name == "std" else 2)) if p.scale else {}


@rule("cumsum", "diff")
def running(p: Pass, call: Call) -> Value:
    node = first(call)
    dim = int(call["dim"]) % rank_of(node)
    if p.hot(node, [dim]) or call.has("prepend") or call.has("append"):
        return still(p, call)
    return p.level(p.of(node), [dim])


@rule("tril", "triu")
def triangle(p: Pass, call: Call) -> Value:
    """Some entries become zero."""
    return p.of(first(call))


# -- space ----------------------------------------------------------------------------------------------------------------


def _spatial(p: Pass, call: Call, count: int) -> Value:
    node = first(call)
    dims = list(range(rank_of(node) - count, rank_of(node)))
    if p.hot(node, dims):
        return still(p, call)
    return p.level(p.of(node), dims)


AVERAGES = ("avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "upsample_nearest", "_upsample_nearest_exact",
            "reflection_pad", "replication_pad")  # fmt: skip
MAPS = {
    1: ("upsample_linear1d",),
    2: ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    3: ("upsample_trilinear3d",),
}
MAXIMA = ("max_pool", "adaptive_max_pool")


def _averaging(count: int) -> Any:
    return lambda p, call: _spatial(p, call, count)


def _maximising(count: int) -> Any:
    def maximum(p: Pass, call: Call) -> Value | list[Value]:
        single = isinstance(call.value, Tensor)
        found = _spatial(p, call, count) if p.scale else still(p, call)
        return found if single else [found, *({} for _ in list(call.value)[1:])]

    return maximum


for _count, _names in MAPS.items():
    rule(*_names, *(f"{name}{_count}d" for name in AVERAGES))(_averaging(_count))
    rule(*(f"{name}{_count}d" for name in MAXIMA), f"max_pool{_count}d_with_indices")(_maximising(_count))
