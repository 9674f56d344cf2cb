"""Operators that work entry by entry: neurons stay where they are, and meet others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._neurons._labels import Value, moved
from neural_graphs.graph._neurons._nonlinearities import activation_of
from neural_graphs.graph._neurons._reader import Reader, rule, unknown


@rule("pointwise")  # no operator: stands for all those that torch marks as pointwise
def pointwise(reader: Reader, node: Node) -> Value:
    values = [value for value in reader.operands(node) if value.shape or value.parameters or value.labels]
    name = reader.name(node)
    kind = {"add": "bias", "sub": "bias", "mul": "scale", "div": "scale"}.get(name, "other")
    found = reader.elementwise(values, reader.shape(node), kind)
    if len(node.all_input_nodes) >= 1:
        first = reader.env[node.all_input_nodes[0]]
        scale = first.scale if isinstance(first, Value) else 1.0
        activation = activation_of(node, name, scale)
        if activation is not None:
            reader.activate(node, found, activation)
        elif name in ("mul", "div", "neg", "add", "sub", "rsub"):
            found = Value(
                found.shape, found.labels, found.loose, found.given, _scaled(node, name, scale), found.parameters
            )
    return found


def _scaled(node: Node, name: str, scale: float) -> float:
    number = next((arg for arg in node.args if isinstance(arg, (int, float))), None)
    if name == "neg":
        return -scale
    if name == "mul" and number is not None:
        return scale * number
    if name == "div" and number:
        return scale / number
    return scale if number is not None or len(node.all_input_nodes) > 1 else 1.0


@rule("to", "type_as", "_to_copy", "dropout", "feature_dropout", "native_dropout", "multiply", "subtract", "divide")
@rule(
    "hardswish",
    "log_sigmoid",
    "where",
    "copy",
    "fill",
    "masked_fill",
    "tril",
    "triu",
    "clone",
)
@rule("contiguous", "detach", "alias", "softmax", "_softmax", "log_softmax", "cumsum", "cumprod", "sort", "normalize")
@rule("lift_fresh_copy", "nan_to_num", "__and__", "__or__", "rrelu", "__xor__", "lift_fresh", "clip", "std_mean")
def _like(reader: Reader, node: Node) -> Any:
    if isinstance(node.meta["val"], (tuple, list)):
        return unknown(reader, node)
    return pointwise(reader, node)


@rule("_weight_norm", "_weight_norm_interface")
def _weight_norm(reader: Reader, node: Node) -> Any:
    direction, size = (reader.env[arg] for arg in node.args[:2])  # type: ignore[index]
    found = reader.elementwise([direction, size], direction.shape, "scale")
    return found if isinstance(node.meta["val"], Tensor) else [found, size]


@rule("glu")
def _glu(reader: Reader, node: Node) -> Value:
    x = reader.env[node.args[0]]  # type: ignore[index]
    dim = reader.arg(node, "dim", -1) % len(x.shape)
    half = x.shape[dim] // 2
    shape = reader.shape(node)
    first, gate = (moved(x, partial(torch.narrow, dim=dim, start=start, length=half), shape) for start in (0, half))
    reader.activate(node, gate, Activation("sigmoid"))
    for value in (first, gate):
        for crowd in reader.ledger.crowds(value.labels):
            reader.ledger.event(crowd.ids)
    return reader.elementwise([first, gate], shape, "scale")


@rule(
    "arange", "zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full", "linspace", "eye"
)
@rule("zeros_like", "ones_like", "full_like")
@rule("new_empty", "empty_like", "rand", "randn", "rand_like", "randn_like", "triu_indices", "tril_indices")
def _constant(reader: Reader, node: Node) -> Value:
    return Value(reader.shape(node), given=False)
