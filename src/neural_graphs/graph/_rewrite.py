"""A copy of a network file with other weights in it: the same format, names, order, dtypes and everything beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError
from neural_graphs.graph._architecture import Architecture
from neural_graphs.graph._files import ARCHITECTURE, load_checkpoint, unwrapped


def rewrite(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    values: Mapping[str, Tensor],
    architecture: Architecture | None = None,
) -> None:
    """Write ``out``: what the file ``source`` holds, with ``values`` (float32, by the names that ``read_state_dict`` gives).

    Tensors that ``values`` leaves out or does not change stay as they are, bit for bit; others keep their dtype, float64
    ones what they hold beyond float32. Names that ``source`` lacks come last. ``architecture`` is what a ``.safetensors``
    file then states (default: what it stated). ``source``, one that ``read_state_dict`` reads, is only read.

    Raises:
        UserError: a value is beyond the largest of the tensor's dtype, or the tensor is not one of floats.
        RunError: ``out`` cannot be written.
    """
    source = Path(source)
    metadata: dict[str, str] | None = None
    if source.suffix == ".safetensors":
        content: Any = load_file(source)
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata()
        if architecture is not None:
            metadata = {**(metadata or {}), ARCHITECTURE: json.dumps(architecture.to_json())}
    else:
        content = load_checkpoint(source)
    tensors, prefix = unwrapped(content, source)
    assert isinstance(tensors, dict)
    keys = {str(key): key for key in tensors}
    new_dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), torch.float32)
    for name, value in values.items():
        key = keys.get(prefix + name, prefix + name)
        tensors[key] = _like(tensors[key], value, name) if key in tensors else value.to(new_dtype, copy=True)
    with atomic_write(out) as temporary:
        if source.suffix == ".safetensors":
            save_file(content, temporary, metadata)
        else:
            with open(temporary, "wb") as stream:  # given a path, torch hides that the disk is full
                torch.save(content, stream)
        shutil.copymode(source, temporary)


def _like(old: Tensor, new: Tensor, name: str) -> Tensor:
    """``new`` as the tensor that takes the place of ``old``."""
    before = old.detach().float()
    new = new.detach().cpu()
    if torch.equal(before, new):
        return old
    if not old.is_floating_point():
        raise UserError(f"{name} is of {_dtype(old)}, which holds no edited weights: only tensors of floats are edited")
    if old.dtype == torch.float64 and old.shape == new.shape:
        value = old.detach() + (new.double() - before.double())
    else:
        value = new.to(old.dtype, copy=True).contiguous()
    if not bool(torch.isfinite(value.float()).all()):
        raise UserError(
            f"the edited {name} holds numbers too large for {_dtype(old)}: save the network as float32 first"
        )
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
