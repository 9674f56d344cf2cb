"""Any network with its weights and an example input, ready to be traced."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from neural_graphs._inputs import parse_inputs
from neural_graphs.errors import UserError
from neural_graphs.explore._example_input import is_specs, make_inputs
from neural_graphs.explore._factory import make_module
from neural_graphs.explore._hub_folder import is_hub_folder, load_hub_folder, read_folder
from neural_graphs.explore._weights import check_real, load_weights
from neural_graphs.graph._files import check_finite, read_state_dict


class LoadedModel(NamedTuple):
    """``module`` in eval mode, ``inputs`` for it (a tensor, a tuple or a dictionary of keyword arguments), and JSON-able
    ``facts``: ``name``; ``source`` (``"module"``, ``"transformers"`` or ``"onnx"``); ``model``, its class; ``lossy``, why
    the weights cannot be written back to the file (None where they can); ``notes``, what was left out."""

    module: nn.Module
    inputs: Any
    facts: dict[str, Any]


def load_model(
    checkpoint: str | os.PathLike[str] | None = None,
    model: Any = None,
    inputs: Any = None,
    *,
    model_args: Mapping[str, Any] | str | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Read a network of any kind.

    - With ``model`` (a module, a class or function that makes one, or a name such as ``"pkg.module:factory"`` or
      ``"file.py:factory"``, which is imported and called with ``model_args``, a mapping or JSON): the weights of
      ``checkpoint`` are loaded into it; without a checkpoint it stays as made.
    - Without: ``checkpoint`` is a Hugging Face folder (``config.json`` beside the weights; extra ``hub``) or an ``.onnx``
      file (extra ``onnx``). A checkpoint alone never runs code of its own.

    ``inputs`` is an example input, or its shape without the batch axis as text: ``"3x224x224"``, ``"ids:16"`` or
    ``"ids:16:50257"`` for token ids, ``"NAME=SHAPE"`` for a keyword argument, commas between several. Hugging Face folders
    and most ONNX files do without. ``seed`` draws random inputs and, where there is no checkpoint, weights.

    Raises:
        UserError: in one line, whatever is missing, broken or does not fit; see ``load_weights`` for tensors.
    """
    given = parse_inputs(inputs) if isinstance(inputs, str) else inputs
    if model is not None:
        loaded = _from_module(checkpoint, model, given, _arguments(model_args), seed)
    elif model_args is not None:
        raise UserError("model arguments need a model that takes them")
    elif checkpoint is None:
        raise UserError("give a checkpoint or a model")
    elif is_onnx(checkpoint):
        loaded = _from_onnx(Path(checkpoint), given, seed)
    elif is_hub_folder(checkpoint):
        loaded = LoadedModel(*load_hub_folder(Path(checkpoint), given, seed))
    else:
        raise UserError(
            f"{checkpoint} does not say which network it is: give its module as model, and the shape of an input"
        )
    loaded.module.eval()
    try:
        check_real(loaded.module)
        check_finite(loaded.module.state_dict())
    except UserError as error:
        raise UserError(f"{loaded.facts['name']}: {error}") from None
    return loaded


def is_onnx(checkpoint: str | os.PathLike[str]) -> bool:
    return Path(checkpoint).suffix == ".onnx"


def describes_itself(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether ``load_model`` reads ``checkpoint`` without a model: an ONNX file or any folder."""
    return is_onnx(checkpoint) or is_hub_folder(checkpoint)


def _from_module(
    checkpoint: str | os.PathLike[str] | None, model: Any, inputs: Any, arguments: Mapping[str, Any], seed: int
) -> LoadedModel:
    if inputs is None:
        raise UserError("give the shape of an input of the model, as in 3x224x224 (an image) or ids:16 (16 token ids)")
    module = make_module(model, arguments, seed)
    name = (
        str(checkpoint) if checkpoint is not None else str(model) if isinstance(model, str) else type(module).__name__
    )
    notes = []
    if checkpoint is None:
        notes.append("no checkpoint: the weights are those that the model was made with")
    elif is_onnx(checkpoint):
        raise UserError(f"{checkpoint}: an ONNX file has its own structure and tensor names: read it without a model")
    else:
        state = read_folder(Path(checkpoint)) if Path(checkpoint).is_dir() else read_state_dict(checkpoint)
        load_weights(module, state, str(checkpoint))
    facts = _facts(name, "module", type(module).__name__, notes=notes)
    return LoadedModel(module, make_inputs(inputs, module, seed) if is_specs(inputs) else inputs, facts)


def _from_onnx(path: Path, inputs: Any, seed: int) -> LoadedModel:
    from neural_graphs.graph._onnx import import_onnx

    if inputs is not None and not is_specs(inputs):
        raise UserError("give the inputs of an ONNX file as shapes, as in 3x224x224")
    sizes = [(spec.shape, spec.bound) for spec in inputs or ()]
    module, values, notes = import_onnx(path, sizes or None, seed)
    lossy = (
        "read from ONNX, for reading only: an export folds, renames and transposes tensors, so these are not the tensors of "
        "the network it was made from, and edits cannot be written back"
    )
    return LoadedModel(module, values, _facts(str(path), "onnx", "ONNX graph", lossy, notes))


def _facts(
    name: str, source: str, model: str, lossy: str | None = None, notes: list[str] | None = None
) -> dict[str, Any]:
    return {"name": name, "source": source, "model": model, "lossy": lossy, "notes": notes or []}


def _arguments(given: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UserError(f'the model arguments are no JSON ({error}): write them like {{"width": 64}}') from None
    if given is not None and not isinstance(given, Mapping):
        raise UserError('the model arguments are no JSON object: write them like {"width": 64}')
    return given or {}
