"""The INR corpora of Zhou et al. 2023 (NFN): standard SIRENs, the class in the folder's name, the image in the file's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._files import load_checkpoint
from neural_graphs.zoo._imports._inr import InrOptions, check_shapes, common_stack
from neural_graphs.zoo._imports._source import Network, Part, guess_images, one_by_one

TRAIN, VAL = 45_000, 50_000  # the published split: by number of the image, train below 45,000 and val below 50,000
_FOLDER = re.compile(r"(?P<prefix>.+?)(?:_aug(?P<copy>\d+))?_(?P<label>\d)s$")
_FILE = re.compile(r"net(?P<index>\d+)\.pth$")
_NAME = re.compile(r"net\.(?P<layer>\d+)\.(?:linear\.)?(?P<kind>weight|bias)$")


@dataclass(frozen=True)
class _File:
    path: Path
    index: int  # of the image in the source's training images followed by its test images
    label: int
    view: int


class Nfn:
    """``<prefix>_<class>s/net<image>.pth``; ``<prefix>_aug<k>_<class>s/`` holds further networks of the same images.

    Of these further networks those of training images are kept, as in the published protocol. The published networks read
    (row, column); the two input columns of the first layer are exchanged, so that here they read (column, row) as
    all others do, and compute the same image.
    """

    def __init__(self, folder: Path, options: InrOptions) -> None:
        self.where = str(folder)
        self.files = sorted(_find(folder), key=lambda file: (file.view, file.index))
        if not self.files:
            raise UserError(f"{folder} holds no INRs of NFN: there are no files like randinit_smaller_5s/net123.pth")
        seen: dict[tuple[int, int], Path] = {}
        for file in self.files:
            if (other := seen.setdefault((file.view, file.index), file.path)) != file.path:
                raise UserError(f"{other} and {file.path} are both network {file.index}: give a folder with one corpus")
        self.stack = common_stack(folder, (file.path for file in self.files), _read_checkpoint, options)
        guess = options.images or guess_images(f"{folder.resolve().parent.name} {folder.resolve().name}") or "cifar10"
        self.train_images = 50_000 if guess.startswith("cifar10") else 60_000
        self.meta = options.meta(folder, "nfn", guess, self.stack)
        self.request: dict[str, Any] = {"stack": self.stack.to_json()}

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, size: int) -> Iterator[Part]:
        return one_by_one((self._read(file) for file in self.files), size)

    def _read(self, file: _File) -> Network | str:
        try:
            state = _read_checkpoint(file.path)
            check_shapes(state, self.stack, file.path)
        except UserError as error:
            return str(error)
        first = self.stack.layers[0].weight
        state[first] = state[first].flip(1)
        test = file.index >= self.train_images
        row = {
            "split": "train" if file.index < TRAIN else "val" if file.index < VAL else "test",
            "label": file.label,
            "image": file.index - self.train_images if test else file.index,
            "source_split": "test" if test else "train",
            "view": file.view,
        }
        return self.stack, state, row, str(file.path)


def _find(folder: Path) -> Iterator[_File]:
    for path in folder.rglob("*.pth"):
        place, file = _FOLDER.match(path.parent.name), _FILE.match(path.name)
        if place and file:
            index, view = int(file["index"]), 0 if place["copy"] is None else int(place["copy"]) + 1
            if view == 0 or index < TRAIN:
                yield _File(path, index, int(place["label"]), view)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors as ``seq.<layer>.weight``; UserError for whatever is wrong with the file."""
    content = load_checkpoint(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict")
    state = {}
    for name, value in content.items():
        match = _NAME.match(name) if isinstance(name, str) else None
        if match is None:
            raise UserError(f"{path} holds {name!r}, which is no tensor of a SIREN (net.<layer>.linear.weight)")
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise UserError(f"{path}: {name} is no dense tensor of numbers")
        state[f"seq.{match['layer']}.{match['kind']}"] = value.detach().to(torch.float32)
    return state
