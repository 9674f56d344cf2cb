"""Folders as Hugging Face writes them: `config.json` beside the weights, in one file or in shards with an index.

The class of the model comes from `transformers` by the name in the config. Code that a folder brings along is never run,
nothing is downloaded, and the weights are read as in `graph/_files.py`: tensors only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs._inputs import InputSpec
from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.explore._example_input import is_specs, make_inputs
from neural_graphs.explore._weights import first_of, widest_dtype
from neural_graphs.graph._files import check_finite, read_state_dict

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Keys of a config that make transformers fetch or run code of others (attention kernels from the Hub, remote classes).
_UNSAFE = ("auto_map", "_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation",
           "kernel_config", "use_kernels", "fusion_config", "_attn_implementation_internal")  # fmt: skip
_LENGTH = 16  # tokens of an example; long enough for every position to differ


def is_hub_folder(path: str | os.PathLike[str]) -> bool:
    return Path(path).is_dir()


def load_hub_folder(folder: Path, inputs: Any = None, seed: int = 0) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Module, example inputs and facts of a folder; see ``load_model``.

    Raises:
        UserError: config or weights are missing, broken, hostile, quantised or do not fit each other (naming the tensor),
            or the extra ``hub`` is not installed.
    """
    config = _read_config(folder)
    state = read_folder(folder)
    try:
        _check_tensors(state)
        with _quiet_transformers():
            module, left_out = _build(config, state)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out)} tensors of the file have no place in {type(module).__name__}: {', '.join(left_out[:3])}"
        )
    if is_specs(inputs) or inputs is None:
        inputs = make_inputs(_complete(inputs or (), module), module, seed)
    facts = {
        "name": str(folder),
        "source": "transformers",
        "model": type(module).__name__,
        "lossy": None,
        "notes": notes,
    }
    return module, inputs, facts


def _complete(given: Sequence[InputSpec], module: Any) -> list[InputSpec]:
    """The example of the config, but for the inputs that are given; one without a name is the main input."""
    named = [
        replace(spec, name=module.main_input_name) if len(given) == 1 and not spec.name else spec for spec in given
    ]
    if named and named[0].name is None:
        raise UserError(
            "give the inputs of this model with their names, as in input_ids=ids:16,decoder_input_ids=ids:8"
        )
    try:
        usual = example_of_config(module)
    except UserError:
        if not named:
            raise
        usual = ()
    return list({str(spec.name): spec for spec in (*usual, *named)}.values())


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder: ``model.safetensors`` or ``pytorch_model.bin``, whole or in the shards that an index names.

    Raises:
        UserError: there are no weights; a shard is missing, broken, lies outside the folder or lacks a tensor of the index.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds no weights: expected one of {', '.join(_WEIGHTS)}")
    if found.suffix != ".json":
        return read_state_dict(found)
    index = read_json(found)
    places = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(places, Mapping) or not places or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{found} is no index of shards: it has no weight_map from tensors to files")
    state: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        # Names of files only: the index comes with the download and must not reach for others.
        if file != os.path.basename(file) or "\\" in file or file in ("", ".", ".."):
            raise UserError(f"{found}: the shard {file!r} is no file of this folder, and was refused")
        if not (folder / file).is_file():
            raise UserError(f"{found} names the shard {file}, which is missing")
        state |= read_state_dict(folder / file)
    for name, file in places.items():
        if name not in state:
            raise UserError(f"{folder / file} lacks the tensor {name}, which {found.name} says it holds")
    return state


def example_of_config(module: Any) -> tuple[InputSpec, ...]:
    """The inputs that a model of transformers needs at least, with sizes from its config.

    Raises:
        UserError: its main input is none of the usual ones.
    """
    config, main = module.config, module.main_input_name
    text = config.get_text_config(decoder=False) if hasattr(config, "get_text_config") else config
    vision = getattr(config, "vision_config", config)
    if isinstance(vision, Mapping):
        raise UserError("its vision config is not understood: give the shapes of its inputs")
    length = min(_LENGTH, getattr(text, "max_position_embeddings", None) or _LENGTH)
    ids = InputSpec((length,), "input_ids", True, getattr(text, "vocab_size", None))
    specs = {}
    if main == "input_ids":
        specs[main] = ids
    elif main == "pixel_values":
        specs[main] = _image(vision)
    elif main == "input_features":  # spectrograms: [bins, frames], frames being twice the encoder's positions
        bins = getattr(config, "num_mel_bins", None)
        positions = getattr(config, "max_source_positions", None)
        if bins is None or positions is None:
            raise UserError(
                "its config does not say the shape of input_features: give it, as in input_features=80x3000"
            )
        specs[main] = InputSpec((bins, 2 * positions), main)
    elif main == "input_values" and hasattr(config, "num_mel_bins"):
        specs[main] = InputSpec((getattr(config, "max_length", 1024), config.num_mel_bins), main)
    elif main == "input_values":  # a wave form: some frames after all strides
        specs[main] = InputSpec((8 * getattr(config, "inputs_to_logits_ratio", 320),), main)
    else:
        raise UserError(f"its main input is {main}: give its shape, as in {main}=3x224x224")
    if hasattr(config, "vision_config") and main == "input_ids" and hasattr(config, "text_config"):
        specs["pixel_values"] = _image(vision)
    if getattr(config, "is_encoder_decoder", False):
        decoder = config.get_text_config(decoder=True)
        specs["decoder_input_ids"] = InputSpec((length // 2 or 1,), "decoder_input_ids", True, decoder.vocab_size)
    return tuple(specs.values())


def _image(config: Any) -> InputSpec:
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return InputSpec((getattr(config, "num_channels", 3), height, width), "pixel_values")


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face folder, or the module with --model")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is no JSON object")
    if config.get("quantization_config"):
        raise UserError(f"{folder} holds a quantised model: only plain weights are read")
    if "model_type" not in config and isinstance(config.get("architecture"), str):
        raise UserError(
            f"{folder} is a model of timm: give --model timm:create_model --model-args "
            f'\'{{"model_name": "{config["architecture"]}"}}\' and the shape of an image, --input 3x224x224'
        )
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} names no model_type: give the module with --model")
    return _without(config)


def _without(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _UNSAFE
    }


def _build(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """The model with its weights, and the names of those that it has no place for."""
    try:
        import transformers
    except ImportError:
        raise UserError("this is a Hugging Face folder: pip install 'neural-graphs[hub]'") from None
    kind = config["model_type"]
    try:
        if kind not in transformers.CONFIG_MAPPING:
            raise UserError(
                f"transformers {transformers.__version__} knows no model type {kind}, and code that a folder brings along "
                "is not run: give the module with --model"
            )
        settings = transformers.CONFIG_MAPPING[kind].from_dict(config)
    except UserError:
        raise
    except Exception as error:  # a config may hold anything
        raise UserError(f"transformers {transformers.__version__} cannot read its config: {_line(error)}") from None
    settings.use_cache = False  # only speeds up generation; a cache would be one more output to trace
    cls = _model_class(transformers, config, settings)
    try:
        module, found = cls.from_pretrained(
            None,
            config=settings,
            state_dict=state,
            dtype=widest_dtype(state) or torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            trust_remote_code=False,
        )
    except Exception as error:  # a config that transformers reads can still be nonsense to the model
        raise UserError(
            f"{cls.__name__} cannot be made from this config: {type(error).__name__}: {_line(error)}"
        ) from None
    if mismatched := sorted(found["mismatched_keys"], key=str):
        name, has, needs = mismatched[0]
        raise UserError(f"{name} has shape {tuple(has)} in the file, but {tuple(needs)} in {cls.__name__}")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"the file lacks the tensor {first_of(missing)} of {cls.__name__}")
    if found["error_msgs"]:
        raise UserError(f"the weights do not fit {cls.__name__}: {' '.join(found['error_msgs'][0].split())}")
    if hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("batched_mm")  # the default, grouped matrix products, knows no float64
    return module, sorted(found["unexpected_keys"])


def _model_class(transformers: Any, config: Mapping[str, Any], settings: Any) -> Any:
    names = config.get("architectures") or []
    if not names:
        try:
            return transformers.MODEL_MAPPING[type(settings)]
        except KeyError:
            raise UserError(f"its config names no architecture, and {settings.model_type} has no plain one") from None
    name = names[0]
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UserError(
            f"transformers {transformers.__version__} has no model {name}, and code that a folder brings along is not run: "
            "give the module with --model"
        )
    return found


def _check_tensors(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_complex():
            raise UserError(f"{name} is complex: only networks of real numbers are read")
        # Old files hold counters such as position_ids; weights have "weight" or "bias" in their names.
        if not value.is_floating_point() and name.rpartition(".")[2] in ("weight", "bias"):
            raise UserError(
                f"{name} holds {str(value.dtype).removeprefix('torch.')} numbers: integer weights are not read"
            )
    check_finite(state)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its warnings and progress bars repeat what is said here in one line."""
    try:
        from transformers.utils import logging
    except ImportError:  # said where the model is built
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
