"""Pointwise operators."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._rescale._pass import Pass, Value, aligned, rank_of, rule
from neural_graphs.graph._rules import Call

LINEAR = [
    *("alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy", "positive", "resolve_conj"),
    *("resolve_neg", "neg", "negative", "deg2rad", "rad2deg", "dropout", "feature_dropout", "alpha_dropout"),
    *("real", "conj", "conj_physical"),
]
POSITIVE = ["relu", "leaky_relu", "rrelu"]
ODD = [
    *(
        "tanh",
        "asin",
        "arcsin",
        "asinh",
        "arcsinh",
        "atan",
        "arctan",
        "sinh",
        "tan",
        "atanh",
        "arctanh",
        "erf",
        "erfinv",
    ),
    *("tanhshrink", "softshrink", "hardshrink", "round", "trunc", "fix"),
]
EVEN = ["cosh", "sinc"]


def operand(p: Pass, call: Call, node: Any) -> Value:
    """The value of an operand, broadcast to the result."""
    return aligned(p.of(node), rank_of(node), len(call.shape))


def first(call: Call) -> Any:
    return call.node.args[0] if call.node.args else next(iter(call.arguments.values()))


def still(p: Pass, call: Call) -> Value:
    """Neither the operands scale nor the result does."""
    p.still(call.node.all_input_nodes)
    return {}


@rule(*LINEAR)
def linear(p: Pass, call: Call) -> Value:
    return operand(p, call, first(call))


@rule("to", "_to_copy", "to_copy", "type_as")
def converted(p: Pass, call: Call) -> Value:
    value: Tensor = call.value
    if not (value.is_floating_point() or value.is_complex()):
        return still(p, call)
    return operand(p, call, first(call))


@rule(*POSITIVE)
def positive(p: Pass, call: Call) -> Value:
    return operand(p, call, first(call)) if p.scale else still(p, call)


@rule("prelu")
def prelu(p: Pass, call: Call) -> Value:
    x = p.of(first(call))
    p.zero(p.of(call["weight"]))
    if not p.scale:
        p.zero(x)
    return x if p.scale else {}


@rule(*ODD)
def odd(p: Pass, call: Call) -> Value:
    return still(p, call) if p.scale else operand(p, call, first(call))


@rule(*EVEN)
def even(p: Pass, call: Call) -> Value:
    return still(p, call) if p.scale else {}


@rule("abs")
def absolute(p: Pass, call: Call) -> Value:
    return operand(p, call, first(call)) if p.scale else {}


@rule("sign", "sgn")
def sign(p: Pass, call: Call) -> Value:
    return {} if p.scale else operand(p, call, first(call))


@rule("sin")
def sine(p: Pass, call: Call) -> Value:
    if p.scale:
        return still(p, call)
    return p.add([(1, operand(p, call, first(call))), (1, p.turn(first(call)))])


@rule("cos")
def cosine(p: Pass, call: Call) -> Value:
    return still(p, call) if p.scale else p.turn(first(call))


@rule("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6")
def clamp(p: Pass, call: Call) -> Value:
    """One-sided at zero it is homogeneous, symmetric about zero it is odd."""
    if call.name == "relu6":
        return still(p, call)
    low = call.get("min_val", call.get("min"))
    high = call.get("max_val", call.get("max"))
    if call.name == "hardtanh":
        low, high = (-1 if low is None else low), (1 if high is None else high)
    if isinstance(low, Node) or isinstance(high, Node):
        return still(p, call)
    one_sided = (low, high) in ((0, None), (None, 0))
    symmetric = low is not None and high is not None and low == -high and low < high
    return operand(p, call, first(call)) if (one_sided if p.scale else symmetric) else still(p, call)


@rule("threshold")
def threshold(p: Pass, call: Call) -> Value:
    homogeneous = p.scale and call["threshold"] == call["value"] == 0
    return operand(p, call, first(call)) if homogeneous else still(p, call)


# -- powers ---------------------------------------------------------------------------------------------------------------


def power(p: Pass, call: Call, exponent: Any) -> Value:
    x = operand(p, call, first(call))
    if isinstance(exponent, (int, float)) and math.isfinite(exponent) and (p.scale or exponent == int(exponent)):
        return p.times(x, Fraction(exponent))
    return still(p, call)


@rule("pow", "float_power")
def pow_(p: Pass, call: Call) -> Value:
    return power(p, call, call.get("exponent"))


@rule("square", "sqrt", "rsqrt", "reciprocal")
def fixed_power(p: Pass, call: Call) -> Value:
    return power(p, call, {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}[call.name])


# -- two operands ---------------------------------------------------------------------------------------------------------


def _two(call: Call) -> tuple[Any, Any]:
    a, b = list(call.arguments.values())[:2]
    return a, b


@rule("mul", "multiply")
def mul(p: Pass, call: Call) -> Value:
    return p.add([(1, operand(p, call, node)) for node in _two(call)])


@rule("div", "divide", "true_divide")
def div(p: Pass, call: Call) -> Value:
    if call.get("rounding_mode") is not None:
        return still(p, call)
    a, b = (operand(p, call, node) for node in _two(call))
    return p.add([(1, a), (-1, b)])


def alike(p: Pass, call: Call, nodes: list[Any]) -> Value:
    """Operands that scale alike. A number does not scale, unless it is zero."""
    values = [operand(p, call, node) for node in nodes if isinstance(node, Node) or node != 0]
    return p.same(*values) if values else {}


@rule("add", "sub", "subtract", "rsub")
def add(p: Pass, call: Call) -> Value:
    a, b = _two(call)
    for dim, array in p.phase_of(call.node).items():
        p.phases[call.node] = aligned({dim: array}, array.dim(), len(call.shape))
    return alike(p, call, [a, b])


@rule("maximum", "minimum", "fmax", "fmin")
def extreme(p: Pass, call: Call) -> Value:
    return alike(p, call, list(_two(call))) if p.scale else still(p, call)


@rule("copy")
def copy(p: Pass, call: Call) -> Value:
    return operand(p, call, call["src"]) if call.value.is_floating_point() else still(p, call)


@rule("where")
def where(p: Pass, call: Call) -> Value:
    condition, *rest = list(call.arguments.values())
    p.zero(p.of(condition))
    return alike(p, call, rest) if len(rest) == 2 else still(p, call)


@rule("masked_fill")
def masked_fill(p: Pass, call: Call) -> Value:
    p.zero(p.of(call["mask"]))
    return alike(p, call, [first(call), call["value"]])


@rule("addcmul", "addcdiv")
def addcmul(p: Pass, call: Call) -> Value:
    a, b = (operand(p, call, call[name]) for name in ("tensor1", "tensor2"))
    sign_ = 1 if call.name == "addcmul" else -1
    return p.same(operand(p, call, first(call)), p.add([(1, a), (sign_, b)]))


@rule("lerp")
def lerp(p: Pass, call: Call) -> Value:
    if isinstance(call["weight"], Node):
        p.zero(p.of(call["weight"]))
    return alike(p, call, [first(call), call["end"]])


@rule("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "eq", "ne", "not_equal", "heaviside")
def compare(p: Pass, call: Call) -> Value:
    """Whether an entry is above zero does not change with a positive factor, whether it is zero with none."""
    zero = call.get("other") == 0 and not isinstance(call.get("other"), (Node, bool))
    if zero and (p.scale or call.name in ("eq", "ne", "not_equal")):
        return {}
    return still(p, call)
