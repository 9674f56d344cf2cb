"""Pointwise operators: every axis passes through, axes of several operands that meet are the same."""

from __future__ import annotations

from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule
from neural_graphs.graph._space import family, fixed

POINTWISE = [
    "abs",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
    "alias",
    "angle",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "clone",
    "conj",
    "conj_physical",
    "contiguous",
    "copysign",
    "cos",
    "cosh",
    "deg2rad",
    "detach",
    "digamma",
    "div",
    "divide",
    "elu",
    "eq",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "fix",
    "float_power",
    "floor",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "frac",
    "ge",
    "gelu",
    "greater",
    "greater_equal",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "heaviside",
    "hypot",
    "i0",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "ldexp",
    "le",
    "leaky_relu",
    "lerp",
    "less",
    "less_equal",
    "lgamma",
    "lift_fresh",
    "lift_fresh_copy",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "multiply",
    "nan_to_num",
    "ne",
    "neg",
    "negative",
    "not_equal",
    "polar",
    "positive",
    "pow",
    "rad2deg",
    "real",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "resolve_conj",
    "resolve_neg",
    "round",
    "rsqrt",
    "rsub",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "softshrink",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tan",
    "tanh",
    "threshold",
    "_to_copy",
    "true_divide",
    "trunc",
    "where",
    "xlogy",
    "__and__",
    "__or__",
    "__xor__",
    "__iand__",
    "__ior__",
    "copy",
]


@rule(*POINTWISE)
def pointwise(call: Call) -> Axes:
    return broadcast([call.axes(node) for node in call.tensors()], len(call.shape))


@rule("to", "type_as")
def cast(call: Call) -> Axes:
    """A second tensor among the operands only lends its type."""
    return call.input


@rule("alpha_dropout", "dropout", "feature_dropout", "rrelu")
def random(call: Call) -> Axes:
    """The identity, or a plain non-linearity; where chance acts it tells positions apart."""
    on = call["training"] if call.name == "rrelu" else call["train"] and call["p"]
    if on:
        raise Unsupported
    return call.input


@rule("max", "min")
def extreme(call: Call) -> Axes:
    """``max.other`` and ``min.other`` are pointwise; the reductions of the same name are not."""
    if call.has("other"):
        return pointwise(call)
    from neural_graphs.graph._rules._reduction import reduce_with_indices

    return reduce_with_indices(call)


@rule("prelu")
def prelu(call: Call) -> Axes:
    x, weight = call.axes("input" if "input" in call.arguments else "self"), call.axes("weight")
    channel = 1 if len(x) > 1 else 0
    broadcast([[x[channel]], weight])
    return x


CONSTANTS = [
    "zeros",
    "ones",
    "full",
    "empty",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "scalar_tensor",
    "fill",
    "zero",
]


@rule(*CONSTANTS)
def constant(call: Call) -> Axes:
    """One value everywhere: any permutation leaves it alone, also one for each position of the axes before."""
    if call.name in ("fill", "zero"):
        return call.input
    axes: Axes = []
    for size in call.shape:
        axes.append(family(size, axes))
    return axes


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices")
def positions(call: Call) -> Axes:
    return [fixed(n) for n in call.shape]
