"""The INR corpora of Navon et al. 2023 (DWSNets): one checkpoint per network, splits in a JSON file of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.graph._files import load_checkpoint
from neural_graphs.zoo._imports._inr import InrOptions, check_shapes, common_stack
from neural_graphs.zoo._imports._source import Network, Part, one_by_one
from neural_graphs.zoo._store import SPLITS

VAL_SHARE = 12  # the published splits hold out 5,000 of 60,000 training networks
_MNIST_FOLDER = re.compile(r"(?P<split>training|testing)_(?P<label>\d+)_(?P<image>\d+)$")
_FASHION_FILE = re.compile(r"model_(?P<image>\d+)\.pth$")


@dataclass(frozen=True)
class _File:
    path: Path
    image: int
    source_split: str
    label: int | None  # None: the checkpoint holds it


class Dws:
    """``mnist_png_{training,testing}_<label>_<id>/checkpoints/*.pth`` or ``{train,test}/model_<id>.pth``.

    One in twelve training networks becomes val, drawn with ``seed``, unless the published splits are given:
    ``{"train"|"val"|"test": {"path": [...], "label": [...]}}``. Networks that these do not name are left out.
    """

    def __init__(self, folder: Path, options: InrOptions, seed: int, split_file: Path | None) -> None:
        self.where = str(folder)
        self.files = sorted(_find(folder), key=lambda file: (file.source_split != "train", file.image))
        if not self.files:
            raise UserError(
                f"{folder} holds no zoo to import: neither weights.safetensors nor folders like "
                "mnist_png_training_<label>_<id>/checkpoints nor files like model_<id>.pth"
            )
        self.images = "mnist" if self.files[0].label is not None else "fashion-mnist"
        self.listed: dict[tuple[str, int], tuple[str, int]] | None = None
        if split_file is not None:
            self.listed = _read_splits(split_file)
            self.files = [file for file in self.files if (file.source_split, file.image) in self.listed]
            if not self.files:
                raise UserError(f"{split_file} names none of the networks in {folder}: is it that of another data set?")
            self.split = np.array([self.listed[file.source_split, file.image][0] for file in self.files], dtype=object)
        else:
            train = [i for i, file in enumerate(self.files) if file.source_split == "train"]
            val = np.random.default_rng(seed).permutation(train)[: len(train) // VAL_SHARE]
            self.split = np.array([file.source_split for file in self.files], dtype=object)
            self.split[val.astype(int)] = "val"
        self.stack = common_stack(
            folder, (file.path for file in self.files), lambda path: read_checkpoint(path)[0], options
        )
        self.meta = options.meta(folder, "dws", self.images, self.stack)
        self.request: dict[str, Any] = {"stack": self.stack.to_json()}

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, size: int) -> Iterator[Part]:
        return one_by_one((self._read(file, split) for file, split in zip(self.files, self.split, strict=True)), size)

    def _read(self, file: _File, split: str) -> Network | str:
        try:
            state, label = read_checkpoint(file.path)
            check_shapes(state, self.stack, file.path)
            if (label := file.label if file.label is not None else label) is None:
                raise UserError(f"{file.path} holds no label")
            if self.listed is not None and self.listed[file.source_split, file.image][1] not in (label, -1):
                raise UserError(f"{file.path} shows class {label}, the split file says another: a mixed-up layout")
        except UserError as error:
            return str(error)
        row = {"split": split, "label": label, "image": file.image, "source_split": file.source_split}
        return self.stack, state, row, str(file.path)


def _find(folder: Path) -> Iterator[_File]:
    for entry, folders, files in os.walk(folder):
        folders.sort()
        place = Path(entry)
        if match := _MNIST_FOLDER.search(place.name):
            checkpoints = sorted((place / "checkpoints").glob("*.pth"))
            if checkpoints:
                split = "train" if match["split"] == "training" else "test"
                yield _File(checkpoints[-1], int(match["image"]), split, int(match["label"]))
            folders.clear()
            continue
        for name in files:
            if match := _FASHION_FILE.match(name):
                yield _File(place / name, int(match["image"]), "test" if "test" in place.name else "train", None)


def _read_splits(path: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """(split of the image source, image) -> (split, label, -1 for none) out of the published JSON."""
    content = read_json(path)
    found: dict[tuple[str, int], tuple[str, int]] = {}
    if not isinstance(content, dict) or not set(SPLITS) <= content.keys():
        raise UserError(f"{path} is no split file: it must hold train, val and test")
    for split in SPLITS:
        paths = content[split].get("path") if isinstance(content[split], dict) else None
        if not isinstance(paths, list):
            raise UserError(f"{path} is no split file: {split} must hold a list called path")
        labels = content[split].get("label") or [-1] * len(paths)
        if len(labels) != len(paths):
            raise UserError(f"{path}: {split} has {len(paths)} paths and {len(labels)} labels")
        for text, label in zip(paths, labels, strict=True):
            key = _key(str(text))
            if key is None:
                raise UserError(f"{path} names {text!r}, which is no network of these corpora")
            if key in found:
                raise UserError(f"{path} names {text!r} twice")
            found[key] = (split, int(label))
    return found


def _key(text: str) -> tuple[str, int] | None:
    parts = Path(text).parts
    for part in parts:
        if match := _MNIST_FOLDER.search(part):
            return "train" if match["split"] == "training" else "test", int(match["image"])
    if parts and (match := _FASHION_FILE.match(parts[-1])):
        return "test" if len(parts) > 1 and "test" in parts[-2] else "train", int(match["image"])
    return None


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The layers' tensors (names from ``seq.`` on) and the label of a checkpoint, without running anything in it.

    Raises:
        UserError: one line for whatever is wrong with the file.
    """
    content = load_checkpoint(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict")
    label = content.get("label")
    inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    state: dict[str, Tensor] = {}
    for name, value in inner.items():
        found = re.search(r"seq\.\d+\.(weight|bias)$", name) if isinstance(name, str) else None
        if found:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
                raise UserError(f"{path}: {name} is no dense tensor of numbers")
            state[found[0]] = value.detach().to(torch.float32)
    if not state:
        raise UserError(f"{path} holds no tensors named seq.<layer>.weight")
    if isinstance(label, int) or (isinstance(label, Tensor) and label.numel() == 1):
        return state, int(label)
    return state, None
