"""The model zoos of Schuerholt et al. 2022: folders of Ray Tune, one per run, a checkpoint and a line of results per epoch.

Facts of the published code (``ModelZooDataset``, ``def_net.py``): CNN is conv 5x5, max pooling, activation, twice; conv 2x2,
activation; flatten; linear, activation, linear. CNN3 has three 3x3 convolutions, each with max pooling. Activations that
grow commute with max pooling, so a ``Stack``, which pools last, computes the same; GELU and SiLU do not (``PooledCnn``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Architecture, Layer, ModuleArchitecture, Stack
from neural_graphs.graph._files import load_checkpoint
from neural_graphs.zoo._imports import _pooled_cnn as _pooled_cnn  # registers its architecture
from neural_graphs.zoo._imports._source import (
    Network,
    Part,
    classifier_meta,
    guess_images,
    number,
    one_by_one,
    split_by_run,
    state_of,
    walk,
)

_FOLDER = re.compile(r"checkpoint_(?P<epoch>\d+)$")
_KINDS = {"leakyrelu": "leaky_relu"}
# Kernels of the published CNNs -> how many of the convolutions are pooled, and positions that the first linear layer reads.
_PUBLISHED: dict[tuple[int, ...], tuple[int, int]] = {(5, 5, 2): (2, 9), (3, 3, 3): (3, 4)}
_TEXTS = {"optimizer": "optim::optimizer", "init": "model::init_type"}
_NUMBERS = {"learning_rate": "optim::lr", "weight_decay": "optim::wd", "dropout": "model::dropout"}
_RESULTS = {
    "train_loss": "train_loss",
    "train_accuracy": "train_acc",
    "test_loss": "test_loss",
    "test_accuracy": "test_acc",
}


class ModelZoos:
    """``<run>/params.json``, ``<run>/result.json`` (a JSON object per line, with ``training_iteration``) and
    ``<run>/checkpoint_<epoch>/checkpoints`` (a state dict).

    Splits are drawn by run with ``seed``. ``steps`` ``"last"`` keeps the last checkpoint of each run, ``"all"`` each.
    """

    def __init__(self, folder: Path, images: str | None, steps: str, shares: Sequence[float], seed: int) -> None:
        self.where = str(folder)
        self.steps = steps
        self.runs = [path.parent for path in walk(folder, "params.json")]
        if not self.runs:
            raise UserError(
                f"{folder} holds no model zoo: there are no folders like NN_tune_trainable_*/ with params.json"
            )
        self.split = split_by_run(len(self.runs), shares, seed)
        self.checkpoints = [_checkpoints(run, steps) for run in self.runs]
        params = _params(self.runs[0])
        guess = images or guess_images(folder.resolve().name) or guess_images(str(params.get("dataset::dump", "")))
        self.images = guess or ""
        self.meta = classifier_meta(folder, "model-zoos", guess)
        if guess:  # the images were brought to the size that the networks are made for
            side = 32 if params.get("model::type") == "CNN3" else 28
            self.meta["source"] |= {"height": side, "width": side, "channels": params.get("model::channels_in", 1)}
        self.request: dict[str, Any] = {"steps": steps, "split": list(shares)}

    def __len__(self) -> int:
        return sum(map(len, self.checkpoints))

    def parts(self, size: int) -> Iterator[Part]:
        return one_by_one(self._networks(), size)

    def _networks(self) -> Iterator[Network | str]:
        for number_, (run, split, checkpoints) in enumerate(zip(self.runs, self.split, self.checkpoints, strict=True)):
            try:
                params = read_json(run / "params.json")
                if not isinstance(params, dict):
                    raise UserError(f"{run / 'params.json'} holds no parameters")
                results = _results(run / "result.json")
            except UserError as error:
                yield from [str(error)] * len(checkpoints)
                continue
            for epoch, path in checkpoints:
                yield self._read(path, epoch, number_, split, params, results.get(epoch))

    def _read(
        self, path: Path, epoch: int, run: int, split: str, params: dict[str, Any], result: dict[str, Any] | None
    ) -> Network | str:
        try:
            if result is None:
                raise UserError(f"{path}: result.json has no line for training_iteration {epoch}")
            state = _state(path)
            word = str(params.get("model::nlin"))
            kind = Activation.parse(_KINDS.get(word, word))
            architecture = architecture_of_state(state, kind, path)
            tensors = state_of(state, architecture, path)
        except UserError as error:
            return str(error)
        row = {
            "split": split,
            "run": run,
            "epoch": float(epoch),
            **{name: number(result.get(key)) for name, key in _RESULTS.items()},
            **{name: str(params.get(key, "")) for name, key in _TEXTS.items()},
            **{name: number(params.get(key)) for name, key in _NUMBERS.items()},
            "activation": str(kind),
            "images": self.images,
        }
        for name in ("train_loss", "train_accuracy"):
            if row[name] == -999:  # the published code's word for "not trained yet"
                row[name] = float("nan")
        return architecture, tensors, row, str(path)


def architecture_of_state(state: Mapping[str, Tensor], activation: Activation, where: object) -> Architecture:
    """The published architecture with these tensors: convolutions, some pooled, then linear layers.

    Raises:
        UserError: it is none of them.
    """
    weights = [(name, value) for name, value in state.items() if name.endswith("weight")]
    kernels = tuple(value.shape[-1] for _, value in weights if value.dim() == 4)
    published = _PUBLISHED.get(kernels)
    if published is None or [value.dim() for _, value in weights] != [4, 4, 4, 2, 2]:
        raise UserError(f"{where} is none of the CNNs of this zoo: its weights are {_shapes(weights)}")
    pooled, positions_read = published
    if activation.kind in ("gelu", "silu"):
        widths = tuple(value.shape[0] for _, value in weights)
        side = 28 if kernels == (5, 5, 2) else 32
        arguments = {
            "channels": weights[0][1].shape[1],
            "side": side,
            "widths": widths,
            "kernels": kernels,
            "pooled": pooled,
        }
        return ModuleArchitecture("pooled-cnn", (*arguments.items(), ("activation", str(activation))))
    layers: list[Layer] = []
    for i, (name, value) in enumerate(weights):
        bias = f"{name.removesuffix('weight')}bias" in state
        inputs, positions, last = value.shape[1], 1, i == len(weights) - 1
        if layers and layers[-1].kernel and value.dim() == 2:
            positions = positions_read
            if inputs != positions * layers[-1].outputs:
                raise UserError(f"{where} is none of the CNNs of this zoo: its weights are {_shapes(weights)}")
            inputs = layers[-1].outputs
        conv = value.dim() == 4
        layers.append(
            Layer(
                f"conv{i}" if conv else "head" if last else f"linear{i}", inputs, value.shape[0],
                tuple(value.shape[2:]), positions, bias, Activation() if last else activation,
                pool="max:2" if conv and i < pooled else "",
            )
        )  # fmt: skip
    try:
        return Stack(tuple(layers))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _shapes(weights: Sequence[tuple[str, Tensor]]) -> str:
    return ", ".join("x".join(map(str, value.shape)) for _, value in weights)[:200] or "none"


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict, layers in the order of their numbers, each weight before its bias."""
    content = load_checkpoint(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UserError(f"{path}: {name!r} is no dense tensor")
        if not re.fullmatch(r"module_list\.\d+\.(weight|bias)", name):
            raise UserError(f"{path} holds {name}, which no CNN of this zoo has (module_list.<layer>.weight)")
    return {
        name: content[name]
        for name in sorted(content, key=lambda name: (int(name.split(".")[1]), name.endswith("bias")))
    }


def _checkpoints(run: Path, steps: str) -> list[tuple[int, Path]]:
    found = sorted(
        (int(match["epoch"]), path / "checkpoints")
        for path in run.iterdir()
        if (match := _FOLDER.match(path.name)) and (path / "checkpoints").is_file()
    )
    return found[-1:] if steps == "last" else found


def _results(path: Path) -> dict[int, dict[str, Any]]:
    """Lines of ``result.json`` by epoch; a last line that a killed run left half written is ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    found = {}
    for i, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            if i == len(lines) - 1:
                break
            raise UserError(f"{path}: line {i + 1} is not JSON") from None
        if isinstance(entry, dict) and isinstance(entry.get("training_iteration"), int):
            found[entry["training_iteration"]] = entry
    return found


def _params(run: Path) -> dict[str, Any]:
    """The parameters of a run; empty when they cannot be read, which is reported with its networks."""
    try:
        params = read_json(run / "params.json")
    except UserError:
        return {}
    return params if isinstance(params, dict) else {}
