"""Products that sum over axes: what scales along a sum must cancel, what scales along the result is handed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._rescale._pass import Pass, Value, aligned, compact, rank_of, rule, shape_of
from neural_graphs.graph._rescale._pointwise import still
from neural_graphs.graph._rules import Call
from neural_graphs.graph._rules._contraction import LETTERS, einsum_letters

Operand = tuple[str, Value, frozenset[str]]
"""Letters of the axes, the value, and the letters of what the class depends on."""


def operand(p: Pass, letters: str, node: Any) -> Operand:
    outer = frozenset(letter for dim, letter in enumerate(letters) if p.places.holds_outer(node, p.v, dim))
    return letters, p.of(node), outer


def contract(p: Pass, operands: Sequence[Operand], out: str) -> Value:
    """``einsum``: the exponents of a product, summed over the letters that are not in ``out``."""
    letters = out + "".join(dict.fromkeys(c for own, _, _ in operands for c in own if c not in out))
    found: dict[str, list[Tensor]] = {}
    for own, value, outer in operands:
        for dim, array in value.items():
            letter = own[dim]
            if letter in out and any(c not in out for c in outer):
                p.zero({dim: array})  # what the class depends on is summed over
                continue
            found.setdefault(letter, []).append(_spread(array, own, letters))
    result: Value = {}
    summed = range(len(out), len(letters))
    for letter, arrays in found.items():
        total = {0: p.sum([(1, array) for array in arrays])}
        if letter not in out:
            p.zero(total)
            continue
        result[out.index(letter)] = p.level(total, summed)[0].squeeze(tuple(summed)) if summed else total[0]
    return result


def _spread(array: Tensor, own: str, letters: str) -> Tensor:
    order = sorted(range(len(own)), key=lambda d: letters.index(own[d]))
    sizes = {own[d]: array.shape[d] for d in range(len(own))}
    return array.permute(order).reshape([sizes.get(letter, 1) for letter in letters])


# -- matrices -------------------------------------------------------------------------------------------------------------


@rule("linear")
def linear(p: Pass, call: Call) -> Value:
    x, weight = call["input"], call["weight"]
    batch = LETTERS[: rank_of(x) - 1]
    matrix = rank_of(weight) > 1
    out = batch + "o" * matrix
    found = contract(p, [operand(p, batch + "i", x), operand(p, "oi" if matrix else "i", weight)], out)
    if not call.has("bias"):
        return found
    bias = call["bias"]
    found = p.same(found, aligned(p.of(bias), rank_of(bias), len(out)))
    if p.phase_of(call.node):
        p.phases[call.node] = aligned(p.phase_of(call.node), rank_of(bias), len(out))
    return found


@rule("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul")
def matmul(p: Pass, call: Call) -> Value:
    a, b = list(call.arguments.values())[:2]
    return _product(p, a, b)


def _product(p: Pass, a: Node, b: Node) -> Value:
    m, n = rank_of(a), rank_of(b)
    if not m or not n:
        return p.add([(1, p.of(a)), (1, p.of(b))])
    batch, rows, columns = LETTERS[: max(m, n, 2) - 2], "x" * (m > 1), "y" * (n > 1)
    left = batch[len(batch) - max(0, m - 2) :] + rows + "k"
    right = batch[len(batch) - max(0, n - 2) :] + "k" + columns
    return contract(p, [operand(p, left, a), operand(p, right, b)], batch + rows + columns)


@rule("addmm", "baddbmm", "addmv")
def addmm(p: Pass, call: Call) -> Value:
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}[call.name]
    found = _product(p, call[names[0]], call[names[1]])
    if call.get("beta", 1) == 0:
        return found
    added, rank = call["self"], len(call.shape)
    if p.phase_of(call.node) and call.get("beta", 1) == 1:
        p.phases[call.node] = aligned(p.phase_of(call.node), rank_of(added), rank)
    return p.same(found, aligned(p.of(added), rank_of(added), rank))


@rule("outer", "ger")
def outer(p: Pass, call: Call) -> Value:
    return contract(p, [operand(p, "a", call["self"]), operand(p, "b", call["vec2"])], "ab")


@rule("bilinear")
def bilinear(p: Pass, call: Call) -> Value:
    batch = LETTERS[: rank_of(call["input1"]) - 1]
    operands = [operand(p, batch + "i", call["input1"]), operand(p, batch + "j", call["input2"])]
    found = contract(p, [*operands, operand(p, "oij", call["weight"])], batch + "o")
    if not call.has("bias"):
        return found
    return p.same(found, aligned(p.of(call["bias"]), 1, len(batch) + 1))


@rule("einsum")
def einsum(p: Pass, call: Call) -> Value:
    nodes = list(call["tensors"])
    terms, out = einsum_letters(call["equation"], [rank_of(node) for node in nodes])
    if any(len(set(term)) != len(term) for term in terms):
        return still(p, call)
    return contract(p, [operand(p, term, node) for term, node in zip(terms, nodes, strict=True)], out)


@rule("scaled_dot_product_attention")
def attention(p: Pass, call: Call) -> Value:
    """The scores must stay; what is mixed by them is handed on."""
    query, key, value = call["query"], call["key"], call["value"]
    if call.has("attn_mask"):
        p.zero(p.of(call["attn_mask"]))
    batch = LETTERS[: max(map(rank_of, (query, key, value))) - 2]
    operands = []
    for node, last in ((query, "qd"), (key, "kd"), (value, "kv")):
        letters, found, outer = operand(p, batch[len(batch) + 2 - rank_of(node) :] + last, node)
        operands.append((letters, _repeated(found, node, query) if call.get("enable_gqa") else found, outer))
    p.zero(contract(p, operands[:2], batch + "qk"))
    return contract(p, operands[2:], batch + "qv")


def _repeated(value: Value, node: Node, query: Node) -> Value:
    """Key or value heads, each shared by a group of query heads."""
    rank = rank_of(node)
    if rank < 3 or rank_of(query) < 3:
        return value
    heads, wanted = shape_of(node)[-3], shape_of(query)[-3]
    if heads in (1, wanted):
        return value
    dim = rank - 3
    return {
        key: array if array.shape[dim] == 1 else array.repeat_interleave(wanted // heads, dim)
        for key, array in value.items()
    }


# -- convolutions ---------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(p: Pass, call: Call) -> Value:
    transposed = bool(call.get("transposed"))
    return _convolved(p, call, call["input"], call["weight"], int(call["groups"]), transposed)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(p: Pass, call: Call) -> Value:
    return _convolved(p, call, call["input"], call["weight"], int(call["groups"]), transposed=True)


def _convolved(p: Pass, call: Call, x: Node, weight: Node, groups: int, transposed: bool) -> Value:
    """x: [.., g·i, space], weight: [g·o, i, kernel], transposed [g·i, o, kernel], result: [.., g·o, space]."""
    spatial = rank_of(weight) - 2
    channel = rank_of(x) - spatial - 1
    space, kernel = range(channel + 1, rank_of(x)), range(2, rank_of(weight))
    if p.hot(x, [*range(channel), *space]) or p.hot(weight, kernel):
        return still(p, call)
    rows, columns = shape_of(weight)[:2]
    data = [array.reshape(-1) for dim, array in p.level(p.of(x), space).items() if dim == channel]
    left = {0 if _per_group(p, x, channel, groups) else 1: _blocks(row, shape_of(x)[channel], groups) for row in data}
    right: Value = {}
    for dim, array in p.level(p.of(weight), kernel).items():
        flat = array.reshape(array.shape[:2])
        blocks = flat.unsqueeze(0) if flat.shape[0] == 1 else flat.reshape(groups, rows // groups, -1)
        per_group = transposed and dim == 0 and _per_group(p, weight, 0, groups)
        right[2 if dim == 1 else 0 if per_group else 1] = blocks
    found = contract(p, [("gi", left, frozenset()), ("gio" if transposed else "goi", right, frozenset())], "go")
    outputs = rows // groups if not transposed else columns
    blocks_out = [array if array.numel() == 1 else array.expand(groups, outputs) for array in found.values()]
    rows_out = [array.reshape([1] * channel + [-1] + [1] * spatial) for array in blocks_out]
    total = {channel: compact(p.sum([(1, row) for row in rows_out]))} if rows_out else {}
    if not call.has("bias"):
        return total
    if p.phase_of(call.node):
        p.phases[call.node] = _as_channels(p.phase_of(call.node), channel, spatial)
    return p.same(total, _as_channels(p.of(call["bias"]), channel, spatial))


def _per_group(p: Pass, node: Node, dim: int, groups: int) -> bool:
    """Whether all channels of a group belong to the same neuron of the class (always, in a depthwise convolution)."""
    if groups == 1:
        return False
    size = shape_of(node)[dim]
    neurons = p.places.neurons(node, p.v, dim)
    return size == groups or (neurons is not None and all(
        bool((row.reshape(groups, -1) == row.reshape(groups, -1)[:, :1]).all()) for row in neurons
    ))  # fmt: skip


def _blocks(row: Tensor, size: int, groups: int) -> Tensor:
    return row.reshape(1, 1) if row.numel() == 1 else row.reshape(groups, size // groups)


def _as_channels(value: Value, channel: int, spatial: int) -> Value:
    return {dim + channel: array.reshape([1] * channel + [-1] + [1] * spatial) for dim, array in value.items()}


# -- embeddings -----------------------------------------------------------------------------------------------------------


@rule("embedding")
def embedding(p: Pass, call: Call) -> Value:
    weight, indices = call["weight"], call["indices"]
    p.zero(p.of(indices))
    if p.hot(weight, [0]):
        return still(p, call)
    lead = rank_of(indices)
    return {
        dim - 1 + lead: array.reshape([1] * lead + list(array.shape[1:]))
        for dim, array in p.level(p.of(weight), [0]).items()
    }


@rule("_weight_norm")
def weight_norm(p: Pass, call: Call) -> Value:
    """v · g / |v|, the norm over all axes on which g has size 1: it takes the scale of v away, but not the signs."""
    v, g = call["v"], call["g"]
    kept = [d for d, n in enumerate(shape_of(g)) if n > 1]
    value, size = p.of(v), p.of(g)
    if not p.scale:
        return p.add([(1, value), (1, size)])
    mixed = {dim: array for dim, array in value.items() if dim not in kept}
    p.zero(mixed)
    p.level(value, [d for d in range(rank_of(v)) if d not in kept])
    return size
