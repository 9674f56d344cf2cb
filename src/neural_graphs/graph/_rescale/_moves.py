"""Operators that move entries, and those that run along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from neural_graphs.graph._rescale._pass import Pass, Value, compact, rank_of, rule, shape_of
from neural_graphs.graph._rescale._pointwise import first, still
from neural_graphs.graph._rules import Call

# -- views ----------------------------------------------------------------------------------------------------------------

VIEWS = [
    *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as", "permute", "transpose"),
    *("swapaxes", "swapdims", "t", "numpy_T", "mT", "movedim", "moveaxis", "unsqueeze", "squeeze", "expand"),
    *("broadcast_to", "expand_as", "repeat", "tile", "repeat_interleave", "select", "slice", "narrow", "roll"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unbind", "split", "split_with_sizes", "chunk"),
    *("tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "diagonal", "unfold", "flip"),
]
"""Torch itself moves the unknowns about."""


@rule(*VIEWS)
def view(p: Pass, call: Call) -> Value | list[Value]:
    node = first(call)
    if "dtype" in call.arguments:
        return still(p, call)
    return moved(p, call, p.of(node), shape_of(node))


def moved(p: Pass, call: Call, value: Value, shape: tuple[int, ...]) -> Value | list[Value]:
    """The value of what the operator makes of its first operand; several if there are several results."""
    several = not isinstance(call.value, Tensor)
    results: list[Value] = [{} for _ in call.value] if several else [{}]
    ranks = [v.dim() for v in call.value] if several else [call.value.dim()]
    for dim, array in value.items():
        if several or array.numel() > 1:
            outputs = _run(call, array.expand(shape))
            outputs = list(outputs) if several else [outputs]
        else:
            outputs = [array.reshape([1] * rank) for rank in ranks]
        for part, output in enumerate(outputs):
            place = _place(p, call, part, dim, len(value), shape)
            if place is None:
                p.zero({dim: output})
            else:
                results[part][place] = compact(output)
    return results if several else results[0]


def _place(p: Pass, call: Call, part: int, dim: int, count: int, shape: tuple[int, ...]) -> int | None:
    """The axis of the result that the class on axis ``dim`` comes to stand on."""
    found = p.dims(call.node, part)
    if len(found) == 1 and count == 1:
        return found[0]
    if len(found) < count:
        return None
    # Several axes hold the class: the one along which the positions of axis ``dim`` come out in order.
    numbers = torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    output = _run(call, numbers.expand(shape))
    output = output if isinstance(output, Tensor) else output[part]
    for d in found:
        if output.shape[d] != shape[dim]:
            continue  # merged with another axis
        in_order = numbers.reshape([-1 if e == d else 1 for e in range(output.dim())])
        if torch.equal(output, in_order.expand(output.shape)):
            return d
    return None


def _run(call: Call, array: Tensor) -> Any:
    """The operator on unknowns in place of its first operand; tensors beside it give their shapes only."""
    node = first(call)

    def fill(argument: Any) -> Any:
        if argument is node:
            return array
        if isinstance(argument, Node):
            value = argument.meta["val"]
            return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value
        return argument

    args = pytree.tree_map(fill, call.node.args, is_leaf=lambda a: isinstance(a, Node))
    kwargs = pytree.tree_map(fill, dict(call.node.kwargs), is_leaf=lambda a: isinstance(a, Node))
    target: Any = call.node.target
    if call.name in ("view", "_unsafe_view"):
        target = torch.ops.aten.reshape.default
    return target(*args, **kwargs)


# -- joining --------------------------------------------------------------------------------------------------------------


def joined(p: Pass, parts: list[Value], sizes: list[int], dim: int) -> Value:
    """Tensors one after the other along an axis."""
    found: Value = {}
    rank = max((array.dim() for value in parts for array in value.values()), default=0)
    for key in sorted({key for value in parts for key in value}):
        arrays = [value.get(key, torch.zeros([1] * rank, dtype=torch.int64)) for value in parts]
        shape = torch.broadcast_shapes(*(a.narrow(dim, 0, 1).shape if a.shape[dim] else a.shape for a in arrays))
        pieces = [
            a.expand([n if d == dim else s for d, s in enumerate(shape)]) for a, n in zip(arrays, sizes, strict=True)
        ]
        found[key] = compact(torch.cat(pieces, dim))
    return found


@rule("cat", "concat", "concatenate")
def cat(p: Pass, call: Call) -> Value:
    nodes = [node for node in call["tensors"] if shape_of(node) != (0,)]
    if not nodes:
        return {}
    dim = int(call.get("dim", 0)) % rank_of(nodes[0])
    return joined(p, [p.of(node) for node in nodes], [shape_of(node)[dim] for node in nodes], dim)


@rule("hstack", "vstack")
def hstack(p: Pass, call: Call) -> Value:
    dim = 1 if call.name == "hstack" else 0
    nodes = list(call["tensors"])
    if any(rank_of(node) < 2 for node in nodes):
        return still(p, call)
    return joined(p, [p.of(node) for node in nodes], [shape_of(node)[dim] for node in nodes], dim)


@rule("stack")
def stack(p: Pass, call: Call) -> Value:
    nodes = list(call["tensors"])
    dim = int(call["dim"]) % (rank_of(nodes[0]) + 1)
    parts = [{key + (key >= dim): array.unsqueeze(dim) for key, array in p.of(node).items()} for node in nodes]
    return joined(p, parts, [1] * len(parts), dim)


@rule("pad", "constant_pad_nd")
def pad(p: Pass, call: Call) -> Value:
    """Zeros scale as one likes; another number does not; other modes copy entries, along axes without the class."""
    node, sizes = first(call), list(call["pad"])
    value = p.of(node)
    mode = "constant" if call.name == "constant_pad_nd" else call["mode"]
    number = call.get("value") or 0
    for k in range(0, len(sizes), 2):
        dim = rank_of(node) - 1 - k // 2
        before, after = int(sizes[k]), int(sizes[k + 1])
        if before == after == 0:
            continue
        if mode != "constant":
            if p.hot(node, [dim]):
                return still(p, call)
            value = p.level(value, [dim])
        elif dim in value or p.hot(node, [dim]):
            value = _padded(p, call, value, dim, before, after)
        elif number != 0:
            p.zero(value)
            return {}
        else:
            value = p.level(value, [dim])
    return value


def _padded(p: Pass, call: Call, value: Value, dim: int, before: int, after: int) -> Value:
    if before < 0 or after < 0:
        p.zero(value)
        return {}
    n = call.shape[dim] - before - after
    found = {}
    for key, array in value.items():
        shape = [n if d == dim else s for d, s in enumerate(array.shape)]
        zeros = [
            torch.zeros([size if d == dim else s for d, s in enumerate(shape)], dtype=torch.int64)
            for size in (before, after)
        ]
        found[key] = compact(torch.cat([zeros[0], array.expand(shape), zeros[1]], dim))
    return found


@rule("zeros", "zeros_like", "new_zeros", "zero", "full", "full_like", "new_full", "fill")
def zeros(p: Pass, call: Call) -> Value:
    """Nothing but zeros scales as one likes."""
    zero = "zero" in call.name or call.get("fill_value", call.get("value")) == 0
    if call.name == "fill":
        p.zero(p.of(call.get("value")))
    dims = p.dims(call.node)
    members = p.places.members(call.node, p.v, dims[0]) if zero and len(dims) == 1 else None
    if members is None:
        return {}
    shape = [-1 if d == dims[0] else 1 for d in range(len(call.shape))]
    return {dims[0]: compact((members * p.system.unknown()).reshape(shape))}


@rule("slice_scatter", "select_scatter")
def slice_scatter(p: Pass, call: Call) -> Value:
    node, source = call["self"], call["src"]
    dim, shape = int(call.get("dim") or 0) % rank_of(node), shape_of(node)
    x, written = p.of(node), p.of(source)
    if call.name == "select_scatter":
        written = {key + (key >= dim): array.unsqueeze(dim) for key, array in written.items()}
        start = int(call["index"]) % shape[dim]
        stop, step = start + 1, 1
    else:
        start, stop, step = slice(call.get("start"), call.get("end"), call.get("step")).indices(shape[dim])
    found: Value = {}
    for key in sorted(x.keys() | written.keys()):
        blank = torch.zeros([1] * len(shape), dtype=torch.int64)
        a, b = x.get(key, blank), written.get(key, blank)
        sizes = torch.broadcast_shapes(a.narrow(dim, 0, 1).shape, b.narrow(dim, 0, 1).shape)
        whole = a.expand([shape[dim] if d == dim else s for d, s in enumerate(sizes)]).clone()
        place = whole.narrow(dim, 0, shape[dim])[(slice(None),) * dim + (slice(start, stop, step),)]
        place.copy_(b.expand(place.shape))
        found[key] = compact(whole)
    return found
