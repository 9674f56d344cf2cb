"""Pointwise operators: every axis passes through, axes of several operands that meet are the same.

Those that hand on their operand as it is (``clone``, ``dropout`` in evaluation mode) are not here: the recorded graph has
none of them. What is left of dropout is a network that drops at all times, and chance tells positions apart.
"""

from __future__ import annotations

from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, broadcast, rule
from neural_graphs.graph._var import UNIT, family, fixed, space_size

POINTWISE = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
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
    "conj",
    "conj_physical",
    "copysign",
    "cos",
    "cosh",
    "deg2rad",
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
    "imag",
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
    "pow",
    "rad2deg",
    "real",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "round",
    "rsqrt",
    "rsub",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "signbit",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "softshrink",
    "special_log1p",
    "special_xlog1py",
    "special_ndtr",
    "special_entr",
    "special_expit",
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
]


@rule(*POINTWISE)
def pointwise(call: Call) -> Axes:
    return broadcast([call.axes(node) for node in call.tensors()], len(call.shape))


@rule("to", "type_as")
def cast(call: Call) -> Axes:
    """A second tensor among the operands only lends its type."""
    return call.input


@rule("rrelu")
def rrelu(call: Call) -> Axes:
    """A plain non-linearity, but for training, where chance tells positions apart."""
    if call["training"]:
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
    x, weight = call.axes("self"), call.axes("weight")
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
    axes: Axes = []
    for size in call.shape:
        axes.append(family(size, axes))
    return axes


@rule("copy")
def copy(call: Call) -> Axes:
    """The second operand, broadcast to the shape of the first, whose values do not matter."""
    x = call.axes("src")
    x = [UNIT] * (len(call.shape) - len(x)) + x
    return [s if space_size(s) == n else family(n, x) for s, n in zip(x, call.shape, strict=True)]


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices")
def positions(call: Call) -> Axes:
    return [fixed(n) for n in call.shape]
