"""The ONNX operators that are read, each written with torch's own functions.

Semantics as in the ONNX operator specification (onnx.ai/onnx/operators), opset 9 to 23 where an operator's meaning did not
change otherwise. What a handler does not cover it refuses; `graph/_onnx.py` names the node in the message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from neural_graphs.errors import UserError


@dataclass(eq=False)
class Value:
    """A value of the ONNX graph: the tensor that the example gives, and the FX node that computes it. ``node`` is None
    where the value depends neither on inputs nor on weights (sizes, constants); ``constant`` is its place in a module."""

    value: Any
    node: fx.Node | None
    constant: fx.Node | None = None

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = self.value.shape
        return shape


@dataclass(frozen=True)
class Call:
    """One node of the ONNX graph with its inputs (None where an optional one is left out) and attributes. ``emit`` runs a
    function of torch, or the tensor method of that name, on values and writes it down."""

    kind: str
    inputs: Sequence[Value | None]
    attributes: dict[str, Any]
    outputs: list[str]
    opset: int
    emit: Callable[..., Value]

    def __getitem__(self, place: int) -> Value:
        value = self.get(place)
        if value is None:
            raise UserError(f"input {place + 1} is missing")
        return value

    def get(self, place: int) -> Value | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def static(self, place: int) -> Tensor | None:
        """The numbers of an input that must not depend on the network's inputs (a shape, axes); None if left out."""
        value = self.get(place)
        if value is None:
            return None
        if value.node is not None and value.node.op != "get_attr":
            raise UserError(f"input {place + 1} depends on the network's input data")
        found: Tensor = value.value
        return found

    def ints(self, place: int, attribute: str) -> list[int] | None:
        """Whole numbers that newer opsets give as an input, older ones as an attribute."""
        if attribute in self.attributes:
            return [int(number) for number in self.attributes[attribute]]
        value = self.static(place)
        return None if value is None else [int(number) for number in value.flatten().tolist()]

    def attribute(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)


Handler = Callable[[Call], "Value | Sequence[Value]"]
OPERATORS: dict[str, Handler] = {}


def element_dtype(element: int, name: str) -> torch.dtype:
    from onnx import TensorProto

    kinds: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64, TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16, TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32,
        TensorProto.INT16: torch.int16, TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8,
        TensorProto.BOOL: torch.bool,
    }  # fmt: skip
    if element not in kinds:
        kind = TensorProto.DataType.Name(element).lower() if element in TensorProto.DataType.values() else str(element)
        raise UserError(f"{name} holds {kind} numbers, which are not read")
    return kinds[element]


def handles(*kinds: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        OPERATORS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


_POINTWISE: dict[str, Callable[..., Any]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Sin": torch.sin, "Cos": torch.cos, "Sign": torch.sign,
    "Reciprocal": torch.reciprocal, "Softplus": F.softplus, "Softsign": F.softsign, "Mish": F.mish, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "HardSwish": F.hardswish, "Not": torch.logical_not, "Selu": F.selu,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "MatMul": torch.matmul,
}  # fmt: skip


def _pointwise(call: Call) -> Value:
    if call.kind == "Selu" and call.attributes:
        raise UserError("alpha and gamma other than the default are not supported")
    return call.emit(_POINTWISE[call.kind], *(call[place] for place in range(len(call.inputs))))


OPERATORS.update(dict.fromkeys(_POINTWISE, _pointwise))


@handles("Identity", "Dropout")
def _identity(call: Call) -> Value:
    return call[0]


@handles("Div")
def _div(call: Call) -> Value:
    real = call[0].value.is_floating_point()
    return call.emit(torch.div, call[0], call[1], **({} if real else {"rounding_mode": "trunc"}))


@handles("Mod")
def _mod(call: Call) -> Value:
    return call.emit(torch.fmod if call.attribute("fmod", 0) else torch.remainder, call[0], call[1])


@handles("Sum", "Min", "Max", "Mean")
def _variadic(call: Call) -> Value:
    found = call[0]
    for other in (call[place] for place in range(1, len(call.inputs))):
        if call.kind in ("Sum", "Mean"):
            found = call.emit(torch.add, found, other)
        else:  # torch.minimum and torch.maximum take no plain numbers
            nearer = call.emit(torch.lt if call.kind == "Min" else torch.gt, found, other)
            found = call.emit(torch.where, nearer, found, other)
    return call.emit(torch.div, found, len(call.inputs)) if call.kind == "Mean" else found


@handles("Where")
def _where(call: Call) -> Value:
    return call.emit(torch.where, call[0], call[1], call[2])


@handles("LeakyRelu", "Elu", "Celu", "HardSigmoid", "Gelu", "Softmax", "LogSoftmax")
def _activation(call: Call) -> Value:
    if call.kind == "LeakyRelu":
        return call.emit(F.leaky_relu, call[0], call.attribute("alpha", 0.01))
    if call.kind in ("Elu", "Celu"):
        return call.emit(F.elu if call.kind == "Elu" else F.celu, call[0], call.attribute("alpha", 1.0))
    if call.kind == "HardSigmoid":
        scaled = call.emit(torch.mul, call[0], call.attribute("alpha", 0.2))
        return call.emit(torch.clamp, call.emit(torch.add, scaled, call.attribute("beta", 0.5)), 0.0, 1.0)
    if call.kind == "Gelu":
        return call.emit(F.gelu, call[0], approximate=call.attribute("approximate", "none"))
    axis = call.attribute("axis", -1 if call.opset >= 13 else 1)
    if call.opset < 13 and axis % call[0].value.dim() != call[0].value.dim() - 1:
        raise UserError(f"over several axes at once (opset {call.opset}) it is not supported")
    return call.emit(F.softmax if call.kind == "Softmax" else F.log_softmax, call[0], axis)


@handles("PRelu")
def _prelu(call: Call) -> Value:
    positive = call.emit(torch.gt, call[0], 0)
    return call.emit(torch.where, positive, call[0], call.emit(torch.mul, call[0], call[1]))


@handles("Clip")
def _clip(call: Call) -> Value:
    low, high = call.static(1), call.static(2)
    lowest = call.attribute("min", None) if low is None else low.item()
    highest = call.attribute("max", None) if high is None else high.item()
    return call[0] if lowest is None and highest is None else call.emit(torch.clamp, call[0], lowest, highest)


@handles("Cast")
def _cast(call: Call) -> Value:
    dtype = element_dtype(call.attributes["to"], "its result")
    return call[0] if call[0].value.dtype == dtype else call.emit("to", call[0], dtype)


# -- layers -----------------------------------------------------------------------------------------------------------


@handles("Gemm")
def _gemm(call: Call) -> Value:
    alpha, beta, bias = call.attribute("alpha", 1.0), call.attribute("beta", 1.0), call.get(2)
    left = call.emit(torch.t, call[0]) if call.attribute("transA", 0) else call[0]
    vector = bias is None or (bias.value.dim() == 1 and bias.shape[0] != 1)
    if call.attribute("transB", 0) and alpha == 1.0 and beta == 1.0 and vector:
        return call.emit(F.linear, left, call[1], bias)
    right = call.emit(torch.t, call[1]) if call.attribute("transB", 0) else call[1]
    product = call.emit(torch.matmul, left, right)
    product = product if alpha == 1.0 else call.emit(torch.mul, product, alpha)
    if bias is None:
        return product
    return call.emit(torch.add, product, bias if beta == 1.0 else call.emit(torch.mul, bias, beta))


@handles("Conv", "ConvTranspose")
def _conv(call: Call) -> Value:
    rank = call[1].value.dim() - 2
    if not 1 <= rank <= 3:
        raise UserError(f"convolutions over {rank} axes are not supported")
    strides = list(call.attribute("strides", [1] * rank))
    dilations = list(call.attribute("dilations", [1] * rank))
    groups = call.attribute("group", 1)
    kernel = list(call[1].shape[2:])
    if call.kind == "Conv":
        x, pads = _pad_evenly(call, call[0], _pads(call, kernel, strides, dilations), 0.0)
        function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        return call.emit(function, x, call[1], call.get(2), strides, pads, dilations, groups)
    if call.attribute("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in call.attributes:
        raise UserError("only explicit pads are supported")
    pads = list(call.attribute("pads", [0] * 2 * rank))
    if pads[:rank] != pads[rank:]:
        raise UserError("pads that differ between the two ends of an axis are not supported")
    extra = list(call.attribute("output_padding", [0] * rank))
    transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return call.emit(transposed, call[0], call[1], call.get(2), strides, pads[:rank], extra, groups, dilations)


def _pads(call: Call, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Padding at the begin of every axis, then at the end of every axis."""
    mode = call.attribute("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return list(call.attribute("pads", [0] * 2 * len(kernel)))
    if mode == "VALID":
        return [0] * 2 * len(kernel)
    begins, ends = [], []
    for size, k, stride, dilation in zip(call[0].shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _pad_evenly(call: Call, x: Value, pads: list[int], fill: float) -> tuple[Value, list[int]]:
    """``x`` and the padding per axis that remains to be done; padding that differs between the ends is done at once."""
    rank = len(pads) // 2
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    flat = [pads[place] for axis in reversed(range(rank)) for place in (axis, axis + rank)]
    return call.emit(F.pad, x, flat, "constant", fill), [0] * rank


@handles("MaxPool", "AveragePool")
def _pool(call: Call) -> Value:
    kernel = list(call.attributes["kernel_shape"])
    rank = len(kernel)
    strides = list(call.attribute("strides", [1] * rank))
    dilations = list(call.attribute("dilations", [1] * rank))
    ceil = bool(call.attribute("ceil_mode", 0))
    pads = _pads(call, kernel, strides, dilations)
    if call.kind == "MaxPool":
        x, pads = _pad_evenly(call, call[0], pads, -math.inf)
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        return call.emit(function, x, kernel, strides, pads, dilations, ceil)
    if pads[:rank] != pads[rank:] or any(d != 1 for d in dilations):
        raise UserError("uneven pads and dilations are not supported")
    average: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    return call.emit(average, call[0], kernel, strides, pads[:rank], ceil, bool(call.attribute("count_include_pad", 0)))


@handles("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Value:
    axes = list(range(2, call[0].value.dim()))
    return call.emit(torch.mean if call.kind == "GlobalAveragePool" else torch.amax, call[0], axes, True)


@handles("BatchNormalization", "InstanceNormalization")
def _batch_norm(call: Call) -> Value:
    eps = call.attribute("epsilon", 1e-5)
    if call.kind == "InstanceNormalization":
        return call.emit(F.instance_norm, call[0], None, None, call[1], call[2], True, 0.0, eps)
    if call.attribute("training_mode", 0):
        raise UserError("the file is one for training: export the network in eval mode")
    return call.emit(F.batch_norm, call[0], call[3], call[4], call[1], call[2], False, 0.0, eps)


@handles("LayerNormalization", "RMSNormalization", "GroupNormalization")
def _layer_norm(call: Call) -> Value:
    x, eps = call[0], call.attribute("epsilon", 1e-5)
    if call.kind == "GroupNormalization":
        if call[1].shape[0] != x.shape[1]:
            raise UserError("one scale per group (opset 18) is not supported")
        return call.emit(F.group_norm, x, call.attributes["num_groups"], call[1], call[2], eps)
    shape = list(x.shape[call.attribute("axis", -1) :])
    if list(call[1].shape) != shape:
        raise UserError(f"a scale of shape {tuple(call[1].shape)} for axes of shape {tuple(shape)} is not supported")
    if call.kind == "RMSNormalization":
        return call.emit(F.rms_norm, x, shape, call[1], eps)
    return call.emit(F.layer_norm, x, shape, call[1], call.get(2), eps)


@handles("Einsum")
def _einsum(call: Call) -> Value:
    return call.emit(torch.einsum, call.attributes["equation"], *(call[i] for i in range(len(call.inputs))))
