"""Scaled dot-product attention."""

from __future__ import annotations

from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule, unify_all
from neural_graphs.graph._space import Space, family, freeze, merge, mix, space_size


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """softmax(q k^T) v per batch index: query and key meet in the inner axis, key and value in the sequence."""
    query, key, value = call.axes("query"), call.axes("key"), call.axes("value")
    if call.get("enable_gqa"):
        key, value = (_repeated(axes, query) for axes in (key, value))
    batch = _batch(query, key, value)
    unify_all([(query[-1], key[-1]), (key[-2], value[-2])])
    if call["is_causal"]:
        freeze([query[-2], key[-2]])
    if call.has("attn_mask"):
        mask = call.axes("attn_mask")
        scores = [*batch, query[-2], key[-2]]
        unify_all(
            (space, scores[dim])
            for dim, space in enumerate(mask, len(scores) - len(mask))
            if space_size(space) > 1 and space_size(scores[dim]) > 1
        )
    for axes in (query, key):
        mix(axes, [len(axes) - 1])
    mix(value, [len(value) - 2])
    return [*batch, query[-2], value[-1]]


def _batch(*operands: Axes) -> Axes:
    rank = max(map(len, operands)) - 2
    found: list[Space] = [((),)] * rank
    pairs = []
    for axes in operands:
        lead = axes[:-2]
        for dim, space in enumerate(lead, rank - len(lead)):
            if space_size(space) == 1:
                continue
            if space_size(found[dim]) == 1:
                found[dim] = space
            else:
                pairs.append((found[dim], space))
    unify_all(pairs)
    return found


def _repeated(axes: Axes, query: Axes) -> Axes:
    """Key or value heads, each shared by a group of query heads."""
    if len(axes) < 3 or len(query) < 3:
        raise Unsupported
    heads, wanted = space_size(axes[-3]), space_size(query[-3])
    if heads == wanted:
        return axes
    return [*axes[:-3], merge([axes[-3], family(wanted // heads, axes)]), *axes[-2:]]
