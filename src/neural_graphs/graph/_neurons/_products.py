"""Products: of a value with weights (layers), and of two values (attention)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._neurons._labels import Crowd, Label, Value, moved
from neural_graphs.graph._neurons._reader import Reader, rule, unknown

Letters = Sequence[str]


def layer_name(reader: Reader, w: Value, node: Node) -> str:
    """A layer is named after its weight."""
    for label in w.labels:
        if label.key is not None:
            name = reader.ledger.names[label.key[0]][1]
            head, _, tail = name.rpartition(".")
            return head if tail.startswith("weight") and head else name
    return min(w.parameters, default=node.name)


def spread(ids: Tensor, have: Letters, want: Letters) -> Tensor:
    """``ids`` with axes ``have`` as a tensor with axes ``want``; axes that vanish must have size 1."""
    order = [have.index(letter) for letter in want if letter in have]
    gone = [k for k, letter in enumerate(have) if letter not in want]
    ids = ids.permute([*order, *gone]).reshape([ids.shape[k] for k in order])
    for k, letter in enumerate(want):
        if letter not in have:
            ids = ids.unsqueeze(k)
    return ids


def contract(
    reader: Reader, node: Node, x: Value, xl: Letters, w: Value, wl: Letters, out: Letters, kind: str = "linear"
) -> Value:
    """The product of a value and weights, summed over the letters that ``out`` lacks."""
    ledger = reader.ledger
    sizes = {**dict(zip(xl, x.shape, strict=True)), **dict(zip(wl, w.shape, strict=True))}
    sizes |= {letter: max(n, sizes[letter]) for letter, n in zip(xl, x.shape, strict=True)}
    x_has = {letter for letter, n in zip(xl, x.shape, strict=True) if n == sizes[letter]}
    w_has = {letter for letter, n in zip(wl, w.shape, strict=True) if n == sizes[letter]}
    summed = [letter for letter in xl if letter not in out]
    shared = [letter for letter in out if letter in x_has and letter in w_has and sizes[letter] > 1]
    wide = [letter for letter in out if letter in w_has and letter not in x_has and sizes[letter] > 1]
    x_node = next(a for a in node.all_input_nodes if reader.env[a] is x) if _is_operand(reader, node, x) else node
    ids, loose = ledger.reading(
        x, [xl.index(letter) for letter in summed], [xl.index(letter) for letter in shared], x_node.name
    )
    ledger.event(ids)
    source = spread(ids, xl, wl)
    grid = [*shared, *wide]
    n = math.prod(sizes[letter] for letter in grid)
    shape, dims = reader.shape(node), [out.index(letter) for letter in grid]
    response = (node.name, dims[0]) if len(dims) == 1 else (node.name, -1) if not dims else None
    site = ledger.site(n, layer_name(reader, w, node), "layer", response)
    neurons = site.ids.reshape([sizes[letter] for letter in grid])
    ledger.parametric(w, spread(neurons, grid, wl), source, kind)
    ledger.join(loose, site.ids)
    kept = [Label(spread(neurons, grid, out))]
    gone = {xl.index(letter) for letter in (*summed, *grid) if letter in xl}
    for label in x.labels:
        if label.axes and not label.axes & gone:
            kept.append(Label(spread(label.ids, xl, out), label.key))
    reader.mingle(kept[1:], site.ids)
    return Value(shape, tuple(kept))


def _is_operand(reader: Reader, node: Node, value: Value) -> bool:
    return any(reader.env[source] is value for source in node.all_input_nodes)


def product(
    reader: Reader, node: Node, a: Value, al: Letters, b: Value, bl: Letters, out: Letters, shape: tuple[int, ...]
) -> Value:
    """The product of two values without weights: attention, or the like."""
    ledger = reader.ledger
    summed = [letter for letter in al if letter not in out]
    used: list[list[Label]] = []
    kept: list[Value] = []
    for value, letters in ((a, al), (b, bl)):
        dims = {letters.index(letter) for letter in summed}
        used.append([label for label in ledger.neurons(value) if label.axes & dims])
        stay = [label for label in value.labels if not label.axes & dims and label.axes]
        moved_labels = tuple(Label(spread(label.ids, letters, out), label.key) for label in stay)
        kept.append(Value(shape, moved_labels, given=value.given, parameters=value.parameters))
    attention = False
    if used[0] and used[1]:
        sides = ((used[0][0], al), (used[1][0], bl))
        both = [letter for letter in al if letter in bl and any(ls.index(letter) in x.axes for x, ls in sides)]
        wide = torch.broadcast_shapes(
            *(tuple(v.shape[ls.index(letter)] for letter in both) for v, ls in ((a, al), (b, bl)))
        )
        pair = []
        for labels, letters in ((used[0], al), (used[1], bl)):
            outside = {letters.index(letter) for letter in letters if letter not in both}
            if not labels[0].axes & outside:
                pair.append(spread(labels[0].ids, letters, both).expand(wide).flatten())
        attention = len(pair) == 2
        if attention:
            ledger.products.append((pair[0], pair[1]))
    for labels, role in zip(used, ("query", "key"), strict=True):
        for label in labels:
            ledger.role(label.ids, role) if attention else ledger.event(label.ids)
    loose: tuple[Crowd, ...] = ledger.crowds((*used[0], *used[1]), "attention" if attention else "other")
    for weights, mixed in ((0, 1), (1, 0)):
        own, other = (a, b)[weights], (a, b)[mixed]
        crowds = (*own.loose, *ledger.crowds(used[weights], "attention"))
        if crowds and not ledger.neurons(kept[weights]) and ledger.neurons(kept[mixed]) and not used[mixed]:
            left = reader.joined(crowds, kept[mixed].labels, attention=not used[weights])
            return Value(shape, kept[mixed].labels, (*left, *other.loose))
    met, _ = reader.combine(kept, shape)
    return Value(shape, met, reader.prune(met, (*a.loose, *b.loose, *loose)), a.given or b.given)


def multiply(
    reader: Reader, node: Node, a: Value, al: Letters, b: Value, bl: Letters, out: Letters, shape: tuple[int, ...]
) -> Value:
    """A product of two values, of which one may be weights."""
    pure = [not v.given and bool(v.parameters) and not reader.ledger.neurons(v) for v in (a, b)]
    if pure == [False, True]:
        return contract(reader, node, a, al, b, bl, out)
    if pure == [True, False] and b.given:
        return contract(reader, node, b, bl, a, al, out)
    if all(pure):  # weights computed from weights, as in low-rank adapters
        found = product(reader, node, a, al, b, bl, out, shape)
        labels = []
        for value, letters in ((a, al), (b, bl)):
            dims = {k for k, letter in enumerate(letters) if letter not in out}
            labels += [Label(spread(x.ids, letters, out), x.key) for x in value.labels if not x.axes & dims]
        return Value(shape, tuple(labels), found.loose, False, parameters=a.parameters | b.parameters)
    return product(reader, node, a, al, b, bl, out, shape)


def with_bias(reader: Reader, node: Node, value: Value, bias: Value | None) -> Value:
    return value if bias is None else reader.elementwise([value, bias], reader.shape(node), "bias")


# -- products -------------------------------------------------------------------------------------------------------------


def matmul_letters(a: int, b: int) -> tuple[list[str], list[str], list[str]]:
    """Letters of the operands and the result of ``matmul`` for operands of ``a`` and ``b`` axes."""
    batch = [f"b{k}" for k in range(max(a, b, 2) - 2)]
    al = [*batch[len(batch) - max(a - 2, 0) :], *(["m"] if a > 1 else []), "k"]
    bl = [*batch[len(batch) - max(b - 2, 0) :], "k", *(["n"] if b > 1 else [])]
    return al, bl, [*batch, *(["m"] if a > 1 else []), *(["n"] if b > 1 else [])]


@rule("linear")
def _linear(reader: Reader, node: Node) -> Value:
    x, w = reader.value(node, "input"), reader.value(node, "weight")
    assert x is not None and w is not None
    batch = [f"b{k}" for k in range(len(x.shape) - 1)]
    wl, out = (["n", "k"], [*batch, "n"]) if len(w.shape) == 2 else (["k"], batch)
    if w.given or not w.parameters:
        found = product(reader, node, x, [*batch, "k"], w, wl, out, reader.shape(node))
    else:
        found = contract(reader, node, x, [*batch, "k"], w, wl, out)
    return with_bias(reader, node, found, reader.value(node, "bias"))


@rule("matmul", "mm", "bmm", "mv", "dot", "inner")
def _matmul(reader: Reader, node: Node) -> Value:
    a, b = (reader.env[arg] for arg in node.args[:2])  # type: ignore[index]
    al, bl, out = matmul_letters(len(a.shape), len(b.shape))
    if reader.name(node) == "inner" and len(b.shape) > 1:
        return unknown(reader, node)
    return multiply(reader, node, a, al, b, bl, out, reader.shape(node))


@rule("addmm", "baddbmm", "addbmm", "addmv")
def _addmm(reader: Reader, node: Node) -> Value:
    bias, a, b = (reader.env[arg] for arg in node.args[:3])  # type: ignore[index]
    if reader.name(node) == "addbmm":
        return unknown(reader, node)
    al, bl, out = matmul_letters(len(a.shape), len(b.shape))
    found = multiply(reader, node, a, al, b, bl, out, reader.shape(node))
    return reader.elementwise([found, bias], reader.shape(node), "bias")


@rule("einsum")
def _einsum(reader: Reader, node: Node) -> Value:
    equation: Any = node.args[0]
    parts: Any = node.args[1]
    values = [reader.env[part] for part in parts]
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(values) != 2 or len(terms) != 2:
        return unknown(reader, node)
    letters = []
    for term, value in zip(terms, values, strict=True):
        extra = len(value.shape) - len(term.replace("...", ""))
        head, _, tail = term.partition("...")
        letters.append([*head, *(f".{extra - k}" for k in range(extra)), *tail] if "..." in term else list(term))
    rest = max((one for one in letters), key=lambda one: sum(letter[0] == "." for letter in one))
    dots = [letter for letter in rest if letter[0] == "."]
    if not arrow:
        every = left.replace(",", "").replace("...", "")
        right = ("..." if dots else "") + "".join(sorted(c for c in set(every) if every.count(c) == 1))
    head, _, tail = right.partition("...")
    out = [*head, *(dots if "..." in right else []), *tail]
    if any(len(set(one)) < len(one) for one in letters):
        return unknown(reader, node)
    for k, one in enumerate(letters):  # what only one operand has and the result has not is summed before
        alone = [d for d, letter in enumerate(one) if letter not in letters[1 - k] and letter not in out]
        if alone:
            return unknown(reader, node)
    return multiply(reader, node, values[0], letters[0], values[1], letters[1], out, reader.shape(node))


@rule("transformers::grouped_mm_fallback", "_grouped_mm")
def _grouped_mm(reader: Reader, node: Node) -> Value:
    """Stacked experts: each row of ``x`` ``[n, k]`` is multiplied with one of ``w`` ``[experts, k, o]``, on which its values
    decide. All experts' outputs are neurons, but which of them a row holds is not known."""
    ledger = reader.ledger
    x, w = (reader.env[arg] for arg in node.args[:2])  # type: ignore[index]
    if w.given or not w.parameters or len(w.shape) != 3 or len(x.shape) != 2:
        return unknown(reader, node)
    experts, _, wide = w.shape
    ids, loose = ledger.reading(x, [1], [], str(node.args[0]))
    ledger.event(ids)
    site = ledger.site(experts * wide, layer_name(reader, w, node), "layer")
    ledger.parametric(w, site.ids.reshape(experts, 1, wide), ids.reshape(1, -1, 1), "linear")
    ledger.join(loose, site.ids)
    return Value(reader.shape(node), (), (Crowd(site.ids),))


# -- attention --------------------------------------------------------------------------------------------------------------


@rule("scaled_dot_product_attention")
def _attention(reader: Reader, node: Node) -> Value:
    q, k, v = (reader.env[arg] for arg in node.args[:3])  # type: ignore[index]
    rank = len(q.shape)
    if rank > 2 and k.shape[-3] != q.shape[-3]:  # grouped queries
        times = q.shape[-3] // k.shape[-3]
        k, v = (
            moved(t, lambda ids: ids.repeat_interleave(times, -3), (*t.shape[:-3], q.shape[-3], *t.shape[-2:]))
            for t in (k, v)
        )
    batch = [f"b{d}" for d in range(rank - 2)]
    scores = (*q.shape[:-1], k.shape[-2])
    weights = product(reader, node, q, [*batch, "l", "e"], k, [*batch, "s", "e"], [*batch, "l", "s"], scores)
    mask = reader.value(node, "attn_mask")
    if mask is not None:
        weights = reader.elementwise([weights, mask], scores, "other")
    # the labels of the scores, if any, say whose head they are: the values carry the same
    bare = Value(scores, (), (*weights.loose, *reader.ledger.crowds(weights.labels)))
    return product(
        reader, node, bare, [*batch, "l", "s"], v, [*batch, "s", "f"], [*batch, "l", "f"], reader.shape(node)
    )
