"""Pointwise operators: a hidden class passes through each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

aten = torch.ops.aten

REAL = (
    "abs arctan arcsinh asinh atan ceil conj conj_physical cos cosh deg2rad erf erfc exp exp2 expm1 "
    "fix floor frac gelu hardsigmoid hardswish i0 log_sigmoid mish nan_to_num "
    "neg negative rad2deg real relu relu6 round selu sgn sigmoid sign silu sin sinc sinh "
    "softplus square tan tanh trunc angle elu celu hardtanh hardshrink leaky_relu softshrink "
    "signbit absolute special_expit special_ndtr"
)
UNIT = (
    "acos arccos asin arcsin atanh arctanh digamma erfinv lgamma log log10 log1p log2 logit reciprocal rsqrt sqrt "
    "special_entr special_log1p"
)
ABOVE_ONE = ["acosh", "arccosh"]
BINARY = (
    "add arctan2 atan2 copysign div divide fmax fmin fmod ge greater greater_equal gt hypot le less "
    "less_equal logaddexp logaddexp2 lt maximum minimum mul multiply remainder rsub sub "
    "subtract true_divide floor_divide max min"
)
BITS = [
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "__and__",
    "__or__",
    "__xor__",
    "logical_and",
    "logical_or",
    "logical_xor",
    "eq",
    "ne",
    "not_equal",
]
POSITIVE = ["pow", "float_power", "ldexp", "xlogy", "special_xlog1py"]
SIGNS = ["heaviside", "isclose"]

Case = tuple[Callable[..., Any], dict[str, Any], str]
IN = {"w": (4, 6), "v": (6, 2)}
TWO = {"w": (4, 6), "u": (4, 6), "b": (6,), "v": (6, 2)}


def unary(name: str, domain: Callable[[Any], Any]) -> Case:
    operator = getattr(aten, name)
    return lambda s, x: operator(domain(x @ s.w)).double() @ s.v, IN, "S6"


def binary(name: str, domain: Callable[[Any], Any]) -> Case:
    """Two hidden tensors, one and a vector broadcast against it, and one and a column of another."""
    operator = getattr(aten, name)

    def forward(s: Any, x: Any) -> Any:
        h, g, b = domain(x @ s.w), domain(x @ s.u), domain(s.b)
        found = operator(h, g).double() + operator(h.clone(), b).double() + operator(h.clone(), g[:, :1]).double()
        return found @ s.v

    return forward, TWO, "S5"


CASES: dict[str, Case] = {
    **{name: unary(name, lambda h: h * 2) for name in REAL.split()},
    **{name: unary(name, lambda h: h.sigmoid() * 0.8 + 0.1) for name in UNIT.split()},
    **{name: unary(name, lambda h: h.exp() + 1) for name in ABOVE_ONE},
    **{name: binary(name, lambda h: h) for name in BINARY.split()},
    **{name: binary(name, lambda h: h > 0) for name in BITS},
    **{name: binary(name, lambda h: (h > 0).double()) for name in SIGNS},
    **{name: binary(name, lambda h: h.sigmoid()) for name in POSITIVE},
    "isfinite": (lambda s, x: torch.isfinite((x @ s.w).log()).double() @ s.v, IN, "S6"),
    "isnan": (lambda s, x: torch.isnan((x @ s.w).log()).double() @ s.v, IN, "S6"),
    "isinf": (lambda s, x: torch.isinf((x @ s.w).relu().log()).double() @ s.v, IN, "S6"),
    "logical_not": (lambda s, x: torch.logical_not(x @ s.w > 0).double() @ s.v, IN, "S6"),
    "imag": (lambda s, x: torch.polar((x @ s.w).exp(), s.b).imag @ s.v, {**IN, "b": (6,)}, "S6"),
    "bitwise_not": (lambda s, x: aten.bitwise_not(x @ s.w > 0).double() @ s.v, IN, "S6"),
    "bitwise_left_shift": (lambda s, x: aten.bitwise_left_shift((x @ s.w * 5).long(), 2).double() @ s.v, IN, "S6"),
    "bitwise_right_shift": (lambda s, x: aten.bitwise_right_shift((x @ s.w * 9).long(), 1).double() @ s.v, IN, "S6"),
    "addcmul": (lambda s, x: torch.addcmul(x @ s.w, x @ s.u, s.b) @ s.v, TWO, "S6"),
    "addcdiv": (lambda s, x: torch.addcdiv(x @ s.w, x @ s.u, s.b.exp()) @ s.v, TWO, "S6"),
    "lerp": (lambda s, x: torch.lerp(x @ s.w, x @ s.u, s.b) @ s.v, TWO, "S6"),
    "lerp/scalar": (lambda s, x: torch.lerp(x @ s.w, x @ s.u, 0.3) @ s.v, {**IN, "u": (4, 6)}, "S6"),
    "where": (lambda s, x: torch.where(x @ s.w > 0, x @ s.u, s.b) @ s.v, TWO, "S6"),
    "where/column": (lambda s, x: torch.where(x[:, :1] > 0, x @ s.w, 0.0) @ s.v, IN, "S6"),
    "masked_fill": (lambda s, x: (x @ s.w).masked_fill(x @ s.w < 0, 0.3) @ s.v, IN, "S6"),
    "clamp": (lambda s, x: (x @ s.w).clamp(-0.5, 0.7) @ s.v, IN, "S6"),
    "clamp/tensor": (lambda s, x: torch.clamp(x @ s.w, s.b, s.b + 1) @ s.v, {**IN, "b": (6,)}, "S6"),
    "clamp_min": (lambda s, x: aten.clamp_min(x @ s.w, 0.1) @ s.v, IN, "S6"),
    "clamp_max": (lambda s, x: aten.clamp_max(x @ s.w, 0.1) @ s.v, IN, "S6"),
    "clip": (lambda s, x: aten.clip(x @ s.w, 0.1) @ s.v, IN, "S6"),
    "threshold": (lambda s, x: torch.threshold(x @ s.w, 0.1, 2.0) @ s.v, IN, "S6"),
    "polar": (lambda s, x: torch.polar((x @ s.w).exp(), s.b).real @ s.v, {**IN, "b": (6,)}, "S6"),
    "copy": (lambda s, x: aten.copy(torch.zeros(3, 6).double(), x @ s.w) @ s.v, IN, "S6"),
    "to": (lambda s, x: (x @ s.w * 3).to(torch.int64).double() @ s.v, IN, "S6"),
    "_to_copy": (lambda s, x: aten._to_copy(x @ s.w * 3, dtype=torch.int64).double() @ s.v, IN, "S6"),
    "type_as": (lambda s, x: (x @ s.w * 3).type_as(torch.ones(5, 7).long()).double() @ s.v, IN, "S6"),
    "to/other": (lambda s, x: (x @ s.w * 3).to(s.i).double() @ s.v, {**IN, "i": torch.ones(5, 7).long()}, "S6"),
    "rrelu": (lambda s, x: torch.rrelu(x @ s.w) @ s.v, IN, "S6"),
    "prelu": (lambda s, x: torch.prelu(x @ s.w, s.b) @ s.v, {**IN, "b": (6,)}, "S6"),
    "prelu/one": (lambda s, x: torch.prelu(x @ s.w, s.b) @ s.v, {**IN, "b": (1,)}, "S6"),
    "prelu/maps": (lambda s, x: torch.prelu((x @ s.w)[..., None], s.b)[..., 0] @ s.v, {**IN, "b": (6,)}, "S6"),
    "zeros": (lambda s, x: torch.maximum(torch.zeros(3, 6).double(), x @ s.w) @ s.v, IN, "S6"),
    "ones": (lambda s, x: torch.maximum(torch.ones(3, 6).double(), x @ s.w) @ s.v, IN, "S6"),
    "full": (lambda s, x: torch.maximum(torch.full((3, 6), 0.5).double(), x @ s.w) @ s.v, IN, "S6"),
    "scalar_tensor": (lambda s, x: torch.maximum(aten.scalar_tensor(0.5, dtype=x.dtype), x @ s.w) @ s.v, IN, "S6"),
    "zeros_like": (lambda s, x: torch.maximum(torch.zeros_like(x @ s.w), x @ s.w) @ s.v, IN, "S6"),
    "ones_like": (lambda s, x: torch.maximum(torch.ones_like(x @ s.w), x @ s.w) @ s.v, IN, "S6"),
    "full_like": (lambda s, x: torch.maximum(torch.full_like(x @ s.w, 0.5), x @ s.w) @ s.v, IN, "S6"),
    "new_zeros": (lambda s, x: torch.maximum(x.new_zeros(3, 6), x @ s.w) @ s.v, IN, "S6"),
    "new_ones": (lambda s, x: torch.maximum(x.new_ones(6), x @ s.w) @ s.v, IN, "S6"),
    "new_full": (lambda s, x: torch.maximum(x.new_full((6,), 0.5), x @ s.w) @ s.v, IN, "S6"),
    "empty": (lambda s, x: torch.empty(3, 6).double().fill_(0.5).maximum(x @ s.w) @ s.v, IN, "S6"),
    "empty_like": (lambda s, x: torch.empty_like(x @ s.w).fill_(0.5).maximum(x @ s.w) @ s.v, IN, "S6"),
    "new_empty": (lambda s, x: x.new_empty(3, 6).fill_(0.5).maximum(x @ s.w) @ s.v, IN, "S6"),
    "fill": (lambda s, x: aten.fill(x @ s.w, 0.5).maximum(x @ s.w) @ s.v, IN, "S6"),
    "fill/tensor": (lambda s, x: aten.fill(x @ s.w, x[0].sum()).maximum(x @ s.w) @ s.v, IN, "S6"),
    "zero": (lambda s, x: aten.zero(x @ s.w).maximum(x @ s.w) @ s.v, IN, "S6"),
    "arange": (lambda s, x: (x @ s.w * torch.arange(3).double()[:, None]) @ s.v, IN, "S6"),
    "linspace": (lambda s, x: (x @ s.w * torch.linspace(0, 1, 3).double()[:, None]) @ s.v, IN, "S6"),
    "logspace": (lambda s, x: (x @ s.w * torch.logspace(0, 1, 3).double()[:, None]) @ s.v, IN, "S6"),
    "eye": (lambda s, x: (torch.eye(3).double() @ (x @ s.w)) @ s.v, IN, "S6"),
    "tril_indices": (lambda s, x: (x @ s.w)[torch.tril_indices(3, 3)[0]] @ s.v, IN, "S6"),
    "triu_indices": (lambda s, x: (x @ s.w)[torch.triu_indices(3, 3)[0]] @ s.v, IN, "S6"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pointwise(name: str, hold: Callable[..., Any]) -> None:
    function, own, group = CASES[name]
    hold(name, function, own, group)
