"""A module's state dict by reference, checked for what a neural graph can hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from neural_graphs.errors import UserError


def read_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict without copies, and which of its names are second names of a tensor."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if not parameters:
        raise UserError(f"{type(module).__name__} has no parameters: there is nothing to make a graph of")
    for name, value in parameters.items():
        if isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise UserError(f"{name} has no shape yet: run the module once on its input first")
        if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            kind = f"{value.layout} and sparse" if value.layout != torch.strided else str(value.dtype)
            kind = f"quantized ({kind})" if value.is_quantized else kind
            raise UserError(f"parameter {name} is {kind}: give the module with real floating-point weights")
    raw = module.state_dict(keep_vars=True)
    if missing := [name for name in parameters if not isinstance(raw.get(name), Tensor)]:
        raise UserError(f"parameter {missing[0]} is not in the module's state dict, so it could not be written back")
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in raw.items():
        if not isinstance(value, Tensor):
            continue  # the extra state of a module
        canonical = first.setdefault(_identity(value), name)
        if canonical != name:
            tied[name] = canonical
        state[name] = value.detach()
    return state, tied


def _identity(value: Tensor) -> Any:
    """Equal for two names of one tensor: the same object, or the same memory read in the same way."""
    fake = isinstance(value, FakeTensor) or value.device.type == "meta" or value.layout != torch.strided
    if fake or value.is_quantized or not value.numel():
        return id(value)
    return value.data_ptr(), value.device, value.dtype, tuple(value.shape), value.stride()
