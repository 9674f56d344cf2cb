"""Products of tensors: linear layers, matrix products, einsum, convolutions, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule, unify_all
from neural_graphs.graph._space import UNIT, Space, fixed, freeze, mix, space_size, split, unify


def contract(operands: Sequence[tuple[str, Axes]], out: str) -> Axes:
    """``einsum`` over axes: the same letter is the same axis (size 1 broadcasts), letters not in ``out`` are summed."""
    known: dict[str, Space] = {}
    pairs = []
    for letters, axes in operands:
        if len(letters) != len(axes):
            raise Unsupported
        for letter, space in zip(letters, axes, strict=True):
            if letter not in known or space_size(known[letter]) == 1:
                known[letter] = space
            elif space_size(space) > 1:
                pairs.append((known[letter], space))
    unify_all(pairs)
    return [known[letter] for letter in out]


@rule("linear")
def linear(call: Call) -> Axes:
    x, weight = call.axes("input"), call.axes("weight")
    unify(x[-1], weight[1] if len(weight) > 1 else weight[0])
    out = weight[:1] if len(weight) > 1 else []
    if call.has("bias") and out:
        unify(call.axes("bias")[0], out[0])
    return x[:-1] + out


@rule("bilinear")
def bilinear(call: Call) -> Axes:
    a, b, weight = call.axes("input1"), call.axes("input2"), call.axes("weight")
    unify_all([(a[-1], weight[1]), (b[-1], weight[2]), *zip(a[:-1], b[:-1], strict=True)])
    if call.has("bias"):
        unify(call.axes("bias")[0], weight[0])
    return [*a[:-1], weight[0]]


@rule("matmul", "mm", "bmm", "mv", "dot", "__matmul__", "linalg_matmul")
def matmul(call: Call) -> Axes:
    a, b = (call.axes(node) for node in list(call.arguments.values())[:2])
    return _product(a, b)


def _product(a: Axes, b: Axes) -> Axes:
    rank = max(len(a), len(b), 2) - 2
    batch = "abcdefghij"[:rank]
    left = batch[rank - max(0, len(a) - 2) :] + ("xk" if len(a) > 1 else "k")
    right = batch[rank - max(0, len(b) - 2) :] + ("ky" if len(b) > 1 else "k")
    out = batch + ("x" if len(a) > 1 else "") + ("y" if len(b) > 1 else "")
    return contract([(left, a), (right, b)], out)


@rule("addmm", "baddbmm", "addbmm", "addmv", "addr")
def addmm(call: Call) -> Axes:
    if call.name in ("addbmm", "addr"):
        raise Unsupported
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}[call.name]
    found = _product(call.axes(names[0]), call.axes(names[1]))
    added = call.axes("self")
    unify_all(
        (space, found[dim])
        for dim, space in enumerate(added, len(found) - len(added))
        if space_size(space) > 1 and space_size(found[dim]) > 1
    )
    return found


@rule("outer", "ger")
def outer(call: Call) -> Axes:
    return [*call.axes("self"), *call.axes("vec2")]


@rule("einsum")
def einsum(call: Call) -> Axes:
    equation = call["equation"].replace(" ", "")
    operands = [call.axes(node) for node in call["tensors"]]
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in equation]
    most = max(
        (len(axes) - len(term) + 3 for term, axes in zip(terms, operands, strict=True) if "..." in term), default=0
    )
    dots = "".join(spare[:most])
    if not arrow:
        letters = inputs.replace("...", "").replace(",", "")
        out = ("..." if dots else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    filled = []
    for term, axes in zip(terms, operands, strict=True):
        if len(set(term.replace("...", ""))) != len(term.replace("...", "")):
            raise Unsupported  # a diagonal
        own = dots[most - (len(axes) - len(term) + 3) :] if "..." in term else ""
        filled.append((term.replace("...", own), axes))
    return contract(filled, out.replace("...", dots))


# -- convolutions -----------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(call: Call) -> Axes:
    if call.get("transposed"):
        return transposed_convolution(call)
    x, weight, groups = call.axes("input"), call.axes("weight"), int(call["groups"])
    batch, channels, spatial = _channels(x, len(weight) - 2)
    freeze([*spatial, *weight[2:]])
    out = weight[0]
    if groups == 1:
        unify(channels, weight[1])
    else:
        per_in, per_out = space_size(weight[1]), space_size(weight[0]) // groups
        first, inner = split(channels, groups, per_in)
        second, _ = split(out, groups, per_out)
        unify_all([(first, second), (inner, weight[1])])
    return _convolved(call, batch, out)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    x, weight, groups = call.axes("input"), call.axes("weight"), int(call["groups"])
    batch, channels, spatial = _channels(x, len(weight) - 2)
    freeze([*spatial, *weight[2:]])
    unify(channels, weight[0])
    if groups == 1:
        return _convolved(call, batch, weight[1])
    # The output channels are groups times the weight's second axis, which may differ from group to group.
    first, _ = split(weight[0], groups, space_size(weight[0]) // groups)
    out: Space = (tuple(v for space in (first, weight[1]) if space_size(space) > 1 for v in _factors(space)),)
    return _convolved(call, batch, out)


def _factors(space: Space) -> tuple[Any, ...]:
    from neural_graphs.graph._space import box

    return space[0] if len(space) == 1 else (box(space),)


def _channels(x: Axes, spatial: int) -> tuple[Axes, Space, Axes]:
    at = len(x) - spatial - 1
    return x[:at], x[at], x[at + 1 :]


def _convolved(call: Call, batch: Axes, out: Space) -> Axes:
    if call.has("bias"):
        unify(call.axes("bias")[0], out)
    return [*batch, out, *(fixed(n) for n in call.shape[len(batch) + 1 :])]


# -- embeddings -------------------------------------------------------------------------------------------------------------


@rule("embedding")
def embedding(call: Call) -> Axes:
    weight, indices = call.axes("weight"), call.axes("indices")
    mix(weight, [0])
    freeze([weight[0]])
    return [*indices, *weight[1:]]


@rule("_weight_norm")
def weight_norm(call: Call) -> Axes:
    """v · g / |v|: the norm over all axes but one."""
    v, g = call.axes("v"), call.axes("g")
    unify_all((a, b) for a, b in zip(g, v, strict=True) if space_size(a) > 1)
    kept = [d for d, space in enumerate(g) if space_size(space) > 1]
    mix(v, [d for d in range(len(v)) if d not in kept])
    return v


@rule("cosine_similarity", "pairwise_distance")
def similarity(call: Call) -> Axes:
    a, b = (call.axes(node) for node in call.tensors()[:2])
    if len(a) != len(b):
        raise Unsupported
    unify_all((s, t) for s, t in zip(a, b, strict=True) if space_size(s) > 1 and space_size(t) > 1)
    found = [t if space_size(s) == 1 else s for s, t in zip(a, b, strict=True)]
    dim = int(call.get("dim", -1)) % len(found)
    kept = found[:dim] + found[dim + 1 :]
    return [*found[:dim], UNIT, *found[dim + 1 :]] if call.get("keepdim") else kept
