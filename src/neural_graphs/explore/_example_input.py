"""Random example inputs for a module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs._inputs import InputSpec, batch_size
from neural_graphs.errors import UserError


def is_specs(inputs: Any) -> bool:
    """Whether ``inputs`` describes inputs, as ``parse_inputs`` returns them, instead of holding them."""
    return isinstance(inputs, tuple) and bool(inputs) and all(isinstance(spec, InputSpec) for spec in inputs)


def make_inputs(specs: Sequence[InputSpec], module: nn.Module, seed: int = 0) -> Any:
    """Random inputs ``[batch, *shape]``: a tensor, a tuple for several, a dictionary where they have names.

    Real numbers are standard normal in the dtype of the module's parameters. Ids without a bound stay below the size of the
    smallest ``nn.Embedding`` of ``module``, so that every table has a row for them.

    Raises:
        UserError: ids without a bound for a module that has no ``nn.Embedding``.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = float_dtype(module)
    batch = min(batch_size(math.prod(spec.shape), spec.ids) for spec in specs)
    values = [_make(spec, module, generator, dtype, batch) for spec in specs]
    if specs[0].name is not None:
        return {str(spec.name): value for spec, value in zip(specs, values, strict=True)}
    return values[0] if len(values) == 1 else tuple(values)


def float_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the first real parameter or buffer, the default where there is none."""
    tensors = (*module.parameters(), *module.buffers())
    return next((value.dtype for value in tensors if value.is_floating_point()), torch.get_default_dtype())


def _make(spec: InputSpec, module: nn.Module, generator: torch.Generator, dtype: torch.dtype, batch: int) -> Tensor:
    if not spec.ids:
        return torch.randn(batch, *spec.shape, generator=generator, dtype=torch.float64).to(dtype)
    bound = spec.bound
    if bound is None:
        tables = [child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)]
        if not tables:
            raise UserError("the module has no nn.Embedding: say how large the ids may get, as in ids:16:50257")
        bound = min(tables)
    return torch.randint(bound, (batch, *spec.shape), generator=generator)
