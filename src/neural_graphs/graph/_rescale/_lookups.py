"""Operators that look entries up by index, and those that write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._rescale._pass import Pass, Value, aligned, compact, rank_of, rule, shape_of
from neural_graphs.graph._rescale._pointwise import still
from neural_graphs.graph._rules import Call


@rule("index", "index_select", "gather", "take_along_dim")
def index(p: Pass, call: Call) -> Value:
    """Entries of the indexed axes scale alike, or the indices are known."""
    node = call["self"]
    rank = rank_of(node)
    if call.name == "index":
        chosen = list(call["indices"])
        if any(n is not None and n.meta["val"].dtype in (torch.bool, torch.uint8) for n in chosen):
            return still(p, call)
        dims = [d for d, n in enumerate(chosen) if n is not None]
    else:
        chosen = [call["index" if "index" in call.arguments else "indices"]]
        if call.name == "take_along_dim":
            return still(p, call)
        dims = [int(call["dim"]) % rank]
    for n in chosen:
        if n is not None:
            p.zero(p.of(n))
    value = p.of(node)
    known = [call.constant(n) for n in chosen if n is not None]
    if len(known) == 1 and known[0] is not None and call.name in ("index", "index_select"):
        result = _taken(p, call, value, dims[0], known[0])
        if result is not None:
            return result
    if p.hot(node, dims):
        p.zero(value)
        return {}
    value = p.level(value, dims)
    found: Value = {}
    for dim, array in value.items():
        output = _looked_up(call, array)
        place = _only(p, call, len(value))
        if place is None:
            p.zero({dim: array})
        else:
            found[place] = compact(output)
    return found


def _taken(p: Pass, call: Call, value: Value, dim: int, chosen: Tensor) -> Value | None:
    """Positions picked by known numbers: a move like any other."""
    place = _only(p, call, len(value))
    if chosen.dim() != 1 or place is None:
        return None
    size = shape_of(call["self"])[dim]
    (array,) = value.values()
    whole = array.expand([size if d == dim else n for d, n in enumerate(array.shape)])
    return {place: compact(whole.index_select(dim, chosen.to("cpu", torch.int64) % size))}


def _looked_up(call: Call, array: Tensor) -> Tensor:
    """Unknowns that are level along the indexed axes: one place of those stands for all."""
    if call.name == "index":
        one = tuple(
            slice(None) if n is None else torch.zeros([1] * rank_of(n), dtype=torch.int64) for n in call["indices"]
        )
        return array[one]
    if call.name == "index_select":
        return array
    for d, size in enumerate(shape_of(call["index"])):
        array = array.narrow(d, 0, min(size, array.shape[d]))
    return array


def _only(p: Pass, call: Call, count: int) -> int | None:
    dims = p.dims(call.node)
    return dims[0] if len(dims) == 1 and count == 1 else None


@rule("index_add", "index_copy", "scatter_add", "scatter", "index_put", "_unsafe_index_put")
def write(p: Pass, call: Call) -> Value:
    """Entries along the indexed axis scale alike, and like what is written among them."""
    node = call["self"]
    rank = rank_of(node)
    name = next((n for n in ("source", "src", "values", "value") if n in call.arguments), None)
    if name is None or call.get("reduce") is not None:
        return still(p, call)
    if "indices" in call.arguments:
        chosen = list(call["indices"])
        if len(chosen) != 1 or chosen[0].meta["val"].dim() != 1 or chosen[0].meta["val"].dtype == torch.bool:
            return still(p, call)
        dim = 0
    else:
        chosen, dim = [call["index"]], int(call["dim"]) % rank
    source = call[name]
    if p.hot(node, [dim]) or p.hot(source, [dim]) or rank_of(source) not in (0, rank):
        return still(p, call)
    if rank_of(source) and any(
        a != b for d, (a, b) in enumerate(zip(shape_of(node), shape_of(source), strict=True)) if d != dim
    ):
        return still(p, call)
    for n in chosen:
        p.zero(p.of(n))
    x = p.level(p.of(node), [dim])
    if not isinstance(source, Node):
        return p.same(x, {}) if source != 0 else x
    return p.same(x, p.level(aligned(p.of(source), rank_of(source), rank), [dim]) if rank_of(source) else {})
