"""Network files of unknown origin: state dicts out of safetensors and PyTorch checkpoints, never executing anything."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._architecture import Architecture, architecture_from_json

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict beside the optimizer's and others."""

ARCHITECTURE = "neural_graphs.stack"
"""Key of a safetensors file's metadata under which it states its architecture."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of one network file, on the CPU, in the dtype they were saved in.

    Reads ``.safetensors`` and PyTorch's ``.pt``, ``.pth``, ``.bin``, ``.ckpt``. Pickles are read with ``weights_only=True``:
    one that holds anything but tensors and plain containers is refused, not executed. A state dict wrapped as
    ``{"state_dict": ...}`` or ``{"model": ...}`` is unwrapped, and the ``module.`` and ``_orig_mod.`` that data-parallel
    training and ``torch.compile`` put before every name are dropped.

    Raises:
        UserError: the file is missing, truncated, of an unknown kind, holds forbidden objects or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {_first_line(error)}; it may be truncated") from None
    elif path.suffix in PICKLES:
        found = load_checkpoint(path)
    else:
        raise UserError(f"{path}: unknown kind of network file; give one of .safetensors, {', '.join(PICKLES)}")
    return _state_dict(found, path)


def stated_architecture(path: Path) -> Architecture | None:
    """The architecture that a ``.safetensors`` file states in its metadata, None where it states none.

    Raises ``UserError`` when what it states is broken.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(ARCHITECTURE)
        return architecture_from_json(json.loads(stated)) if stated is not None else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"the architecture that it states is broken ({error}): give the activation") from None


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Raise ``UserError`` naming the first tensor that holds NaN or infinite values."""
    for name, value in state_dict.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"the network has NaN or infinite values in {name}")


def load_checkpoint(path: Path) -> Any:
    """What a PyTorch file holds, on the CPU: tensors and plain containers, else ``UserError``; nothing in it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; only what is returned matters here
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle raises anything at all
        reason = str(error)
        if "weights_only" in reason or "Unsupported" in reason:
            raise UserError(
                f"{path} holds more than tensors and was refused, because loading it could run code: save the state dict "
                "alone (torch.save(model.state_dict(), ...)) or as safetensors"
            ) from None
        raise UserError(f"cannot read {path}: {_first_line(error)}; it may be truncated or no checkpoint") from None


def unwrapped(found: Any, path: Path) -> tuple[Mapping[Any, Any], str]:
    """The state dict in what a file holds, and what training put before all of its names (``module.``), often nothing.

    Raises ``UserError`` when there is none, or when it holds anything but tensors.
    """
    for _ in range(2):  # {"model": {"state_dict": ...}} occurs
        if isinstance(found, Mapping):
            inner = [found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)]
            if inner:
                found = inner[0]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no state dict (a mapping from names to tensors)")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{path}: the entry {name} is of type {type(value).__name__}, not a tensor: save weights only"
            )
    prefix = ""
    for part in ("_orig_mod.", "module.", "_orig_mod."):  # either may wrap the other
        if all(str(name).startswith(prefix + part) for name in found):
            prefix += part
    return found, prefix


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    inner, prefix = unwrapped(found, path)
    tensors = {str(name): value.detach() for name, value in inner.items()}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: {name} is a sparse or quantised tensor; only dense ones are read")
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _first_line(error: BaseException) -> str:
    """The first sentence: PyTorch adds guesses of its own."""
    lines = str(error).splitlines()
    return lines[0].partition(". ")[0] if lines else type(error).__name__
