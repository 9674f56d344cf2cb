"""Which non-linearity an operator of a recorded graph is."""

from __future__ import annotations

import math

from torch.fx import Node

from neural_graphs.graph._activation import Activation

_KNOWN = {"relu": "relu", "sigmoid": "sigmoid", "silu": "silu", "gelu": "gelu", "tanh": "tanh"}

_OTHER = {
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "relu6",
    "elu",
    "selu",
    "celu",
    "softplus",
    "mish",
    "log_sigmoid",
    "prelu",
}
_OTHER |= {
    "rrelu",
    "threshold",
    "hardshrink",
    "softshrink",
    "clamp",
    "clamp_min",
    "clip",
    "cos",
    "erf",
    "softsign",
    "sinc",
}


def activation_of(node: Node, name: str, scale: float) -> Activation | None:
    """The non-linearity that ``node``, an operator ``name``, applies to values that were multiplied by ``scale`` since
    their layer; None if it is none."""
    if name == "sin":
        return Activation("sine", abs(scale) or 1.0)
    if name == "leaky_relu":
        slope = node.args[1] if len(node.args) > 1 else 0.01
        return Activation("leaky_relu") if slope == 0.01 else Activation("other")
    if name == "sigmoid" and _multiplies_itself(node):
        return Activation("silu")
    if name == "tanh" and _is_gelu(node):
        return Activation("gelu")
    if name in _KNOWN:
        return Activation(_KNOWN[name])  # type: ignore[arg-type]
    return Activation("other") if name in _OTHER else None


def result_of(node: Node) -> Node:
    """Where the non-linearity that starts at ``node`` ends: beyond the node itself where it is written out."""
    name = _name(node)
    if name == "sigmoid" and _multiplies_itself(node):
        return next(user for user in node.users if _name(user) == "mul" and node.args[0] in user.args)
    if name == "tanh" and _is_gelu(node):
        one_more = next(iter(node.users))
        return next(iter(one_more.users), node) if _name(one_more) == "add" else node
    return node


def _multiplies_itself(node: Node) -> bool:
    """``x * sigmoid(x)``, written out."""
    source = node.args[0]
    return any(_name(user) == "mul" and source in user.args for user in node.users)


def _is_gelu(node: Node) -> bool:
    """``tanh(√(2/π) (x + 0.044715 x³))``, the inner part of GELU's approximation written out."""
    inner = node.args[0]
    if not isinstance(inner, Node) or _name(inner) != "mul" or not isinstance(inner.args[0], Node):
        return False
    factor = next((arg for arg in inner.args if isinstance(arg, float)), 0.0)
    return abs(factor - math.sqrt(2 / math.pi)) < 1e-3 and _name(inner.args[0]) == "add"


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2].removesuffix("_") if schema is not None else ""
