"""Operators that only move entries: reshapes, permutations, slices, concatenations."""

from __future__ import annotations

from neural_graphs.graph._axes import merge, mix, narrow, reshape
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule, unify_all
from neural_graphs.graph._space import freeze, split
from neural_graphs.graph._var import UNIT, Space, family, fixed, fresh, space_size


@rule("reshape", "flatten", "unflatten", "view_as", "reshape_as")
def to_shape(call: Call) -> Axes:
    """``view`` is not here: recorded graphs reshape instead, and what is left of it looks at bits."""
    return reshape(call.input, call.shape)


@rule("permute")
def permute(call: Call) -> Axes:
    x = call.input
    return [x[d] for d in call["dims"]]


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Axes:
    x = call.input
    a, b = (call.integer(name) for name in list(call.arguments)[1:3])
    if x:
        x[a], x[b] = x[b], x[a]
    return x


@rule("t", "numpy_T", "mT", "adjoint", "matrix_H")
def reversed_axes(call: Call) -> Axes:
    x = call.input
    return [*x[:-2], *x[:-3:-1]] if call.name in ("mT", "adjoint") else x[::-1]


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Axes:
    x = call.input
    source, destination = (call.dims(call[name], len(x)) for name in ("source", "destination"))
    rest = [d for d in range(len(x)) if d not in source]
    order: list[int] = [-1] * len(x)
    for s, d in zip(source, destination, strict=True):
        order[d] = s
    left = iter(rest)
    return [x[d if d >= 0 else next(left)] for d in order]


@rule("unsqueeze")
def unsqueeze(call: Call) -> Axes:
    x = call.input
    x.insert(call.integer("dim") % (len(x) + 1), UNIT)
    return x


@rule("squeeze")
def squeeze(call: Call) -> Axes:
    x = call.input
    dims = call.dims(call.get("dim"), len(x))
    return [s for d, s in enumerate(x) if d not in dims or space_size(s) != 1]


@rule("expand", "broadcast_to", "expand_as")
def expand(call: Call) -> Axes:
    """Along a new axis all is equal, so it may be permuted at will."""
    x, shape = call.input, call.shape
    x = [UNIT] * (len(shape) - len(x)) + x
    return [s if space_size(s) == n else family(n, x) for s, n in zip(x, shape, strict=True)]


@rule("repeat", "tile")
def repeat(call: Call) -> Axes:
    x, shape = call.input, call.shape
    x = [UNIT] * (len(shape) - len(x)) + x
    return [
        s if space_size(s) == n else merge([family(n // space_size(s), x), s]) for s, n in zip(x, shape, strict=True)
    ]


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Axes:
    repeats, dim = call["repeats"], call.get("dim")
    x = call.axes("self")
    if not isinstance(repeats, int):
        raise Unsupported
    if dim is None:
        return [merge([*x, family(repeats, x)])]
    d = call.integer("dim") % len(x)
    x[d] = merge([x[d], family(repeats, x)])
    return x


@rule("select")
def select(call: Call) -> Axes:
    x = call.input
    dim = call.integer("dim") % len(x)
    index = call.integer("index") % space_size(x[dim])
    found = narrow(x, dim, index, index + 1)
    return found[:dim] + found[dim + 1 :]


@rule("unbind")
def unbind(call: Call) -> list[Axes]:
    x = call.input
    dim = call.integer("dim") % len(x)
    found = [narrow(x, dim, i, i + 1) for i in range(space_size(x[dim]))]
    return [axes[:dim] + axes[dim + 1 :] for axes in found]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def pieces(call: Call) -> list[Axes]:
    x = call.input
    dim = call.integer("dim") % len(x)
    found, start = [], 0
    for piece in call.value:
        size = int(piece.shape[dim])
        found.append(narrow(x, dim, start, start + size))
        start += size
    return found


@rule("slice", "narrow")
def slice_(call: Call) -> Axes:
    x = call.input
    dim = call.integer("dim") % len(x)
    total, size = space_size(x[dim]), call.shape[dim]
    start = _start(call, total)
    step = call.integer("step", 1) if call.name == "slice" else 1
    if step == 1:
        return narrow(x, dim, start, start + size)
    if total % step == 0 and start < step:  # every step-th: the inner factor of a product is chosen
        shape = [space_size(s) for s in x]
        apart = reshape(x, [*shape[:dim], total // step, step, *shape[dim + 1 :]])
        found = narrow(apart, dim + 1, start, start + 1)
        return narrow(found[: dim + 1] + found[dim + 2 :], dim, 0, size)
    mix(x, [dim])
    freeze([x[dim]])
    return [fixed(size) if d == dim else s for d, s in enumerate(x)]


def _start(call: Call, total: int) -> int:
    start = call.integer("start", 0)
    return max(0, start + total) if start < 0 else min(start, total)


def join(parts: list[Axes], dim: int) -> Axes:
    """Tensors one after the other along ``dim``."""
    dim %= len(parts[0])
    first = parts[0]
    unify_all((first[d], other[d]) for other in parts[1:] for d in range(len(first)) if d != dim)
    along: Space = tuple(segment for axes in parts for segment in axes[dim])
    return [along if d == dim else s for d, s in enumerate(first)]


@rule("cat", "concat", "concatenate", "hstack", "vstack")
def cat(call: Call) -> Axes:
    parts = [call.axes(node) for node in call["tensors"]]
    parts = [axes for axes in parts if not (len(axes) == 1 and space_size(axes[0]) == 0)]
    if call.name in ("hstack", "vstack") and any(len(axes) < 2 for axes in parts):
        raise Unsupported
    dim = {"hstack": 1, "vstack": 0}[call.name] if "stack" in call.name else call.integer("dim")
    return join(parts, dim) if parts else [fixed(n) for n in call.shape]


@rule("stack")
def stack(call: Call) -> Axes:
    parts = [call.axes(node) for node in call["tensors"]]
    dim = call.integer("dim") % (len(parts[0]) + 1)
    return join([[*axes[:dim], UNIT, *axes[dim:]] for axes in parts], dim)


@rule("pad", "constant_pad_nd")
def pad(call: Call) -> Axes:
    """Zeros beside an axis may change places; other modes of padding tell positions apart."""
    x, sizes = call.input, list(call["pad"])
    constant = call.name == "constant_pad_nd" or call["mode"] == "constant"
    for k in range(0, len(sizes), 2):
        dim = len(x) - 1 - k // 2
        before, after = int(sizes[k]), int(sizes[k + 1])
        if before == after == 0:
            continue
        if not constant:
            mix(x, [dim])
            freeze([x[dim]])
            x[dim] = fixed(call.shape[dim])
            continue
        x = narrow(x, dim, max(0, -before), space_size(x[dim]) - max(0, -after))
        zeros = [tuple(fresh(n)) if n > 0 else () for n in (before, after)]
        x[dim] = zeros[0] + x[dim] + zeros[1]
    return x


@rule("roll")
def roll(call: Call) -> Axes:
    x = call.input
    if not call.get("dims"):
        raise Unsupported
    for dim, shift in zip(call.dims(call["dims"], len(x)), call["shifts"], strict=True):
        n = space_size(x[dim])
        at = -int(shift) % max(n, 1)
        if at:
            x = join([narrow(x, dim, at, n), narrow(x, dim, 0, at)], dim)
    return x


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    x, groups = call.input, call.integer("groups")
    a, b = split(x[1], groups, space_size(x[1]) // groups)
    return [x[0], merge([b, a]), *x[2:]]


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> Axes:
    x = call.input
    factor = call.integer("upscale_factor" if call.name == "pixel_shuffle" else "downscale_factor")
    *batch, channels, height, width = x
    n = space_size(channels)
    freeze([height, width])
    spatial = [fixed(s) for s in call.shape[-2:]]
    if call.name == "pixel_shuffle":
        kept, inner = split(channels, n // factor**2, factor**2)
        freeze([inner])
        return [*batch, kept, *spatial]
    return [*batch, merge([channels, fixed(factor**2)]), *spatial]


@rule("meshgrid")
def meshgrid(call: Call) -> list[Axes]:
    operands = [call.axes(node) for node in call["tensors"]]
    axes = [x[0] if x else UNIT for x in operands]
    if call.get("indexing", "ij") == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return [list(axes) for _ in operands]


@rule("broadcast_tensors")
def broadcast_tensors(call: Call) -> list[Axes]:
    operands = [call.axes(node) for node in call["tensors"]]
    found = broadcast(operands)
    shape = [int(n) for n in call.value[0].shape]
    found = [s if space_size(s) == n else fresh(n) for s, n in zip(found, shape, strict=True)]
    return [list(found) for _ in operands]


@rule("slice_scatter", "select_scatter")
def slice_scatter(call: Call) -> Axes:
    x, source = call.axes("self"), call.axes("src")
    dim = call.integer("dim") % len(x)
    n = space_size(x[dim])
    if call.name == "select_scatter":
        start = call.integer("index") % n
        stop = start + 1
        source = [*source[:dim], UNIT, *source[dim:]]
    else:
        if call.integer("step", 1) != 1:
            raise Unsupported
        start = _start(call, n)
        stop = start + space_size(source[dim])
    before = [narrow(x, dim, 0, start)] if start else []
    after = [narrow(x, dim, stop, n)] if stop < n else []
    return join([*before, source, *after], dim)
