"""Scaled dot-product attention."""

from __future__ import annotations

from neural_graphs.graph._axes import close, merge, mix
from neural_graphs.graph._rules._contraction import LETTERS, contract
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule
from neural_graphs.graph._space import freeze
from neural_graphs.graph._var import family, space_size


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """softmax(q k^T) v per batch index: query and key meet in the inner axis, key and value in the sequence."""
    query, key, value = call.axes("query"), call.axes("key"), call.axes("value")
    if call.get("enable_gqa"):
        key, value = (_repeated(axes, query) for axes in (key, value))
    if call["dropout_p"]:
        raise Unsupported  # chance tells positions apart
    rank = max(map(len, (query, key, value))) - 2
    lead = LETTERS[:rank]
    batches = [lead[rank - len(axes) + 2 :] for axes in (query, key, value)]
    scores = contract([(batches[0] + "qd", query), (batches[1] + "kd", key)], lead + "qk")
    if call["is_causal"]:
        freeze(scores[-2:])
    if call.has("attn_mask"):
        scores = broadcast([scores, call.axes("attn_mask")])
    close(scores)
    mix(scores, [len(scores) - 1])
    return contract([(lead + "qk", scores), (batches[2] + "kv", value)], lead + "qv")


def _repeated(axes: Axes, query: Axes) -> Axes:
    """Key or value heads, each shared by a group of query heads."""
    if len(axes) < 3 or len(query) < 3:
        raise Unsupported
    heads, wanted = space_size(axes[-3]), space_size(query[-3])
    if heads == wanted:
        return axes
    return [*axes[:-3], merge([axes[-3], family(wanted // heads, axes)]), *axes[-2:]]
