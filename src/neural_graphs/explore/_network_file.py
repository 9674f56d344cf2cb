"""One network in one file: a safetensors state dict that also says which architecture it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Architecture, NeuralGraph
from neural_graphs.graph._files import ARCHITECTURE, check_finite, read_state_dict, stated_architecture


def save_network(path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Write a state dict and, in the file's metadata, its architecture. Any safetensors reader can open it.

    Raises ``RunError`` when the disk is full or not writable.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {ARCHITECTURE: json.dumps(architecture.to_json())})


def load_network(
    path: str | os.PathLike[str],
    activation: str | Activation | Sequence[str | Activation] | None = None,
    shift: float = 0.0,
) -> NeuralGraph:
    """The neural graph of the network in a file, ``.safetensors`` or PyTorch's (tensors only, nothing is executed).

    The architecture is the one the file states; ``activation`` (``"sine:30"``, or one per hidden layer) and ``shift`` are
    for files that state none, and overrule it.

    Raises:
        UserError: the file is missing, broken, hostile, holds NaN, no plain stack, or does not say its non-linearity.
    """
    state = read_state_dict(path)
    try:
        check_finite(state)
        stated = stated_architecture(Path(path)) if activation is None else None
        if stated is not None:
            return stated.graph({name: value.unsqueeze(0) for name, value in state.items()})
        return NeuralGraph.from_state_dict(state, activation, shift=shift)
    except UserError as error:
        raise UserError(f"{os.fspath(path)}: {error}") from None
