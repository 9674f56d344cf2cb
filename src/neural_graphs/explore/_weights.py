"""Weights of a file into a module: exact, or one line that names the tensor that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from neural_graphs.errors import UserError
from neural_graphs.graph._files import check_finite


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``, which takes on the widest floating dtype of ``state``, so that no digit is lost.

    Of tied tensors one name suffices.

    Raises:
        UserError: names ``source`` and the first tensor that is missing, that the module does not have, of another shape,
            complex, of another kind (integer weights for a real parameter), not finite, or two values for one tied tensor.
    """
    try:
        _load(module, state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def check_real(module: nn.Module) -> None:
    """Raise ``UserError`` naming the first complex or integer parameter, or complex buffer, of ``module``."""
    for name, value in module.named_parameters():
        if not value.is_floating_point():
            raise UserError(f"{name} is {_dtype(value)}: only networks with real weights are read")
    for name, buffer in module.named_buffers():
        if buffer.is_complex():
            raise UserError(f"{name} is complex: only networks of real numbers are read")


def widest_dtype(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The dtype that holds every floating-point tensor of ``state`` exactly."""
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    return reduce(torch.promote_types, floats) if floats else None


def first_of(names: Sequence[str]) -> str:
    """The first of ``names`` and how many more there are, for messages."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = module.state_dict(keep_vars=True)
    if expected and all(name.startswith("module.") for name in expected):  # the reader of files drops this prefix
        state = {name if name.startswith("module.") else f"module.{name}": value for name, value in state.items()}
    for name, value in state.items():
        if name in expected and not is_lazy(expected[name]):
            _fits(name, value, expected[name])
    if (widest := widest_dtype(state)) is not None:
        module.to(widest)
    try:
        # Not our own loop: a module may rename the tensors of its older versions while it loads.
        missing, extra = module.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"the weights do not fit the module: {' '.join(str(error).split())}") from None
    if extra:
        raise UserError(f"the module has no tensor {first_of(extra)}, which the file holds")
    tensors = module.state_dict(keep_vars=True)
    loaded = {id(tensors[name]) for name in state if name in tensors}
    if absent := [name for name in missing if id(tensors.get(name)) not in loaded]:
        raise UserError(f"the file lacks the tensor {first_of(absent)} of the module")
    check_finite(state)  # before comparing: NaN is equal to nothing
    for name, value in state.items():  # of two values for one tied tensor, the second has replaced the first
        if name in tensors and not torch.equal(tensors[name], value.to(tensors[name].dtype)):
            raise UserError(f"{name} is tied to another tensor of the module, but has another value in the file")


def _fits(name: str, value: Tensor, expected: Tensor) -> None:
    if value.is_complex():
        raise UserError(f"{name} is complex: only networks of real numbers are read")
    if expected.is_floating_point() and not value.is_floating_point():
        raise UserError(f"{name} holds {_dtype(value)} numbers, but the module's is real: integer weights are not read")
    if value.is_floating_point() and not expected.is_floating_point():
        raise UserError(f"{name} holds {_dtype(value)} numbers, but the module's is {_dtype(expected)}")
    if value.shape != expected.shape:
        raise UserError(f"{name} has shape {_shape(value)} in the file, but {_shape(expected)} in the module")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "of a single number"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
