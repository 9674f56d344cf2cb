"""Normalisation layers, softmax and gates."""

from __future__ import annotations

from torch import Tensor

from neural_graphs.graph._rescale._pass import Pass, Value, rank_of, rule, shape_of
from neural_graphs.graph._rescale._pointwise import still
from neural_graphs.graph._rules import Call


def channels(p: Pass, call: Call, name: str) -> Value:
    """A parameter ``[c]`` in the place of the channels of ``[n, c, ...]``; nothing if it is missing."""
    spatial = rank_of(call["input"]) - 2
    return {dim + 1: array.reshape([1, -1] + [1] * spatial) for dim, array in p.of(call.get(name)).items()}


def affine(p: Pass, call: Call, normal: Value, weight: Value, bias: Value) -> Value:
    """``normal * weight + bias``."""
    found = p.add([(1, normal), (1, weight)])
    return p.same(found, bias) if call.has("bias") else found


def results(p: Pass, call: Call, value: Value) -> Value | list[Value]:
    """Decomposed forms also return the statistics; where those hold the class, nothing is said."""
    if isinstance(call.value, Tensor):
        return value
    if any(p.dims(call.node, part) for part in range(1, len(call.value))):
        p.zero(value)
        still(p, call)
        return [{} for _ in call.value]
    return [value, *({} for _ in list(call.value)[1:])]


BATCH_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training")


@rule(*BATCH_NORMS)
def batch_norm(p: Pass, call: Call) -> Value | list[Value]:
    """With fixed statistics: they scale with what is normalised, so that they stay true, and take its scale away."""
    x = call["input"]
    mean, variance = channels(p, call, "running_mean"), channels(p, call, "running_var")
    weight, bias = channels(p, call, "weight"), channels(p, call, "bias")
    if call.get("training") or not call.has("running_mean") or p.hot(x, [0, *range(2, rank_of(x))]):
        return results(p, call, still(p, call))
    value = p.same(p.level(p.of(x), range(2, rank_of(x))), mean)
    p.same(variance, p.times(value, 2))
    return results(p, call, affine(p, call, {} if p.scale else value, weight, bias))


@rule("instance_norm")
def instance_norm(p: Pass, call: Call) -> Value:
    """Its small number under the root sees the scale, but not the sign."""
    x = call["input"]
    if p.scale:
        p.zero(p.of(x))
    if not call["use_input_stats"] or p.hot(x, range(2, rank_of(x))) or call.has("running_mean"):
        return still(p, call)
    weight, bias = channels(p, call, "weight"), channels(p, call, "bias")
    return affine(p, call, p.level(p.of(x), range(2, rank_of(x))), weight, bias)


@rule("group_norm", "native_group_norm")
def group_norm(p: Pass, call: Call) -> Value:
    if call.name == "native_group_norm":
        return still(p, call)
    x = call["input"]
    if p.scale or call["num_groups"] != shape_of(x)[1]:
        p.zero(p.of(x))
    if p.hot(x, [0, *range(2, rank_of(x))]):
        return still(p, call)
    value = p.level(p.of(x), range(2, rank_of(x)))
    return affine(p, call, value, channels(p, call, "weight"), channels(p, call, "bias"))


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(p: Pass, call: Call) -> Value | list[Value]:
    """A mean over the class (not taken by ``rms_norm``) sees signs; the root of the mean square does not."""
    centred = "layer" in call.name
    x, count = call["input"], len(call["normalized_shape"])
    rank = rank_of(x)
    dims = range(rank - count, rank)
    value = p.of(x)
    if p.scale or (centred and p.hot(x, dims)):
        p.zero(value)
    elif centred:
        value = p.level(value, dims)
    weight, bias = (
        {dim + rank - count: array.reshape([1] * (rank - count) + list(array.shape)) for dim, array in found.items()}
        for found in (p.of(call.get("weight")), p.of(call.get("bias")))
    )
    return results(p, call, affine(p, call, value, weight, bias))


@rule("glu")
def glu(p: Pass, call: Call) -> Value:
    node = call["input" if "input" in call.arguments else "self"]
    dim = int(call["dim"]) % rank_of(node)
    half = shape_of(node)[dim] // 2
    found: Value = {}
    for key, array in p.of(node).items():
        whole = array.expand([2 * half if d == dim else n for d, n in enumerate(array.shape)])
        p.zero({key: whole.narrow(dim, half, half)})
        found[key] = whole.narrow(dim, 0, half)
    return found
