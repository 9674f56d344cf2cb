"""Products of tensors: linear layers, matrix products, einsum, convolutions, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from neural_graphs.graph._axes import close, merge, mix
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule, unify_all
from neural_graphs.graph._space import freeze, split, unify
from neural_graphs.graph._var import UNIT, Space, fixed, space_size

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names for axes in ``contract``; those with a meaning have small letters."""


def contract(operands: Sequence[tuple[str, Axes]], out: str) -> Axes:
    """``einsum`` over axes: the same letter is the same axis (size 1 broadcasts), letters not in ``out`` are summed.

    The families of an axis that is summed must hang on axes that all its operands share by *letter*: in the Gram matrix of
    ``w [o, i]`` both operands are over ``o``, but on two letters, and only one permutation of ``i`` for all ``o`` cancels.
    ``close`` on the product before the sum says so, for then ``o`` stands on two axes.
    """
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
    product = list(known.values())
    close(product)
    mix(product, [dim for dim, letter in enumerate(known) if letter not in out])
    return [known[letter] for letter in out]


@rule("linear")
def linear(call: Call) -> Axes:
    x, weight = call.axes("input"), call.axes("weight")
    lead = LETTERS[: len(x) - 1]
    out = "o" if len(weight) > 1 else ""
    found = contract([(lead + "i", x), (out + "i", weight)], lead + out)
    if call.has("bias"):
        unify_all((space, found[-1]) for space in call.axes("bias") if space_size(space) > 1)
    return found


@rule("bilinear")
def bilinear(call: Call) -> Axes:
    a, b, weight = call.axes("input1"), call.axes("input2"), call.axes("weight")
    lead = LETTERS[: len(a) - 1]
    found = contract([(lead + "i", a), (lead + "j", b), ("oij", weight)], lead + "o")
    if call.has("bias"):
        unify(call.axes("bias")[0], found[-1])
    return found


@rule("matmul", "mm", "bmm", "mv", "dot", "inner", "vdot", "linalg_matmul")
def matmul(call: Call) -> Axes:
    a, b = (call.axes(node) for node in list(call.arguments.values())[:2])
    if call.name == "inner" and a and b:
        first, second = LETTERS[: len(a) - 1], LETTERS[len(a) : len(a) + len(b) - 1]
        return contract([(first + "k", a), (second + "k", b)], first + second)
    return _product(a, b)


def _product(a: Axes, b: Axes) -> Axes:
    if not a or not b:
        return [*a, *b]
    batch = LETTERS[: max(len(a), len(b), 2) - 2]
    left = batch[len(batch) - max(0, len(a) - 2) :] + ("x" if len(a) > 1 else "") + "k"
    right = batch[len(batch) - max(0, len(b) - 2) :] + "k" + ("y" if len(b) > 1 else "")
    return contract([(left, a), (right, b)], batch + ("x" if len(a) > 1 else "") + ("y" if len(b) > 1 else ""))


@rule("addmm", "baddbmm", "addbmm", "addmv", "addr")
def addmm(call: Call) -> Axes:
    first, second = (call.axes(node) for node in list(call.arguments.values())[1:3])
    if call.name == "addbmm":
        found = contract([("bxk", first), ("bky", second)], "xy")
    elif call.name == "addr":
        found = contract([("x", first), ("y", second)], "xy")
    else:
        found = _product(first, second)
    return broadcast([found, call.axes("self")])


@rule("outer", "ger")
def outer(call: Call) -> Axes:
    return [*call.axes("self"), *call.axes("vec2")]


@rule("einsum")
def einsum(call: Call) -> Axes:
    operands = [call.axes(node) for node in call["tensors"]]
    terms, out = einsum_letters(call["equation"], [len(axes) for axes in operands])
    if any(len(set(term)) != len(term) for term in terms):
        raise Unsupported  # a diagonal
    return contract(list(zip(terms, operands, strict=True)), out)


def einsum_letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result, with those that "..." stands for."""
    equation = equation.replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in equation]
    most = max((rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term), default=0)
    dots = "".join(spare[:most])
    if not arrow:
        letters = inputs.replace("...", "").replace(",", "")
        out = ("..." if dots else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    filled = [
        term.replace("...", dots[most - (rank - len(term) + 3) :] if "..." in term else "")
        for term, rank in zip(terms, ranks, strict=True)
    ]
    return filled, out.replace("...", dots)


# -- convolutions -----------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(call: Call) -> Axes:
    if call.get("transposed"):
        return transposed_convolution(call)
    x, weight, groups = call.axes("input"), call.axes("weight"), call.integer("groups")
    batch, channels, spatial = _channels(x, len(weight) - 2)
    freeze([*spatial, *weight[2:]])
    if groups == 1:
        return _convolved(call, x, ("o", "i"), weight, len(batch))
    per_in, per_out = space_size(weight[1]), space_size(weight[0]) // groups
    grouped = [*batch, *split(channels, groups, per_in), *spatial]
    return _convolved(call, grouped, ("go", "i"), [*split(weight[0], groups, per_out), *weight[1:]], len(batch))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    x, weight, groups = call.axes("input"), call.axes("weight"), call.integer("groups")
    batch, channels, spatial = _channels(x, len(weight) - 2)
    freeze([*spatial, *weight[2:]])
    unify(channels, weight[0])
    if groups == 1:
        return _convolved(call, x, ("i", "o"), weight, len(batch))
    # The output channels are groups times the weight's second axis, which may differ from group to group.
    apart = split(weight[0], groups, space_size(weight[0]) // groups)
    return _convolved(call, [*batch, *apart, *spatial], ("gi", "o"), [*apart, *weight[1:]], len(batch))


def _channels(x: Axes, spatial: int) -> tuple[Axes, Space, Axes]:
    at = len(x) - spatial - 1
    return x[:at], x[at], x[at + 1 :]


def _convolved(call: Call, x: Axes, names: tuple[str, str], weight: Axes, batch: int) -> Axes:
    """The product over the input channels ``i`` of ``x [batch, (g), i, spatial]`` with a weight whose first two axes are
    ``names``, which may be split: output channels ``o`` in groups ``g``, if any."""
    groups = "g" if "g" in "".join(names) else ""
    count = len(weight) - 2 - len(groups)
    lead, here, kernel = LETTERS[:batch], LETTERS[batch : batch + count], LETTERS[batch + count : batch + 2 * count]
    found = contract(
        [(lead + groups + "i" + here, x), ("".join(names) + kernel, weight)],
        lead + groups + "o",
    )
    out = merge(found[batch:])
    if call.has("bias"):
        unify(call.axes("bias")[0], out)
    return [*found[:batch], out, *(fixed(n) for n in call.shape[batch + 1 :])]


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
    found = broadcast([v, g])
    dim = call.integer("dim")
    mix(found, [d for d in range(len(v)) if dim == -1 or d != dim])
    return found


@rule("cosine_similarity", "pairwise_distance")
def similarity(call: Call) -> Axes:
    a, b = (call.axes(node) for node in list(call.arguments.values())[:2])
    found = broadcast([a, b])
    if not found:
        raise Unsupported
    dim = int(call.get("dim", -1)) % len(found)
    close(found)
    mix(found, [dim])
    return [*found[:dim], *([UNIT] if call.get("keepdim") else []), *found[dim + 1 :]]
