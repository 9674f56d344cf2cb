"""Importing networks that others made: folders of stacked tensors, and the published INR corpora of checkpoints."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neural_graphs._progress import progress
from neural_graphs.errors import UserError
from neural_graphs.graph import Stack, stack_from_shapes
from neural_graphs.graph._files import load_checkpoint
from neural_graphs.zoo._recipes import RECIPES
from neural_graphs.zoo._store import SPLITS, Zoo
from neural_graphs.zoo._writer import ZooWriter

SHARD = 4096  # networks per shard, and in memory at once
LOOK_AT = 16  # checkpoints that decide which architecture a corpus has
KINDS = ("auto", "stacked", "dws")
STACKED_WEIGHTS, STACKED_TABLE = "weights.safetensors", "networks.parquet"
VAL_SHARE = 12  # the published splits hold out 5,000 of 60,000 training networks
_RENAMED = {"image_index": "image", "image_source": "source_split"}
_MNIST_FOLDER = re.compile(r"(?P<split>training|testing)_(?P<label>\d+)_(?P<image>\d+)$")
_FASHION_FILE = re.compile(r"model_(?P<image>\d+)\.pth$")


def import_zoo(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    kind: str = "auto",
    recipe: str = "dws",
    activation: str | None = None,
    shift: float | None = None,
    images: str | None = None,
    seed: int = 0,
) -> Zoo:
    """Copy networks made elsewhere into a zoo. Nothing in the files is executed.

    ``kind``:

    - ``"stacked"``: a folder with ``weights.safetensors`` (tensors ``[N, *shape]``, torch layout) and
      ``networks.parquet`` with one row per network, in order or with a column ``row``; a column ``split`` holds train, val
      or test, all other columns are kept.
    - ``"dws"``: a folder of the INR corpora of Navon et al. 2023, extracted: MNIST's
      ``mnist_png_{training,testing}_<label>_<id>/checkpoints/*.pth`` or Fashion-MNIST's ``{train,test}/model_<id>.pth``. One
      in twelve training networks becomes val, drawn with ``seed`` (the published split is a list of its own).
    - ``"auto"``: whichever of the two is found.

    Networks that are truncated, hostile, of another architecture, or hold NaN are skipped, each with a line on stderr, and
    counted in ``zoo.meta["skipped"]``.

    Args:
        path: folder to read.
        out: folder to write, ``<name of path>-zoo`` in the working directory by default. A finished import of the same
            folder is opened as it is, an unfinished one starts over.
        kind: see above.
        recipe: how the networks were fitted; gives ``activation``, ``shift`` and the range of the pixels.
        activation: hidden non-linearity, in place of the recipe's.
        shift: constant added to the output, in place of the recipe's.
        images: name of the image source, guessed from the layout or the folder's name by default.
        seed: for the choice of val networks.

    Raises:
        UserError: nothing to import, tensors that form no plain network, or not one network that can be read.
        RunError: the disk is full or not writable.
    """
    folder = Path(path)
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if kind == "auto":
        kind = "stacked" if (folder / STACKED_WEIGHTS).is_file() else "dws"
    chosen = RECIPES[recipe]
    activation = activation or chosen.activation
    shift = chosen.shift if shift is None else shift
    reader = _Stacked(folder, activation, shift) if kind == "stacked" else _Checkpoints(folder, activation, shift, seed)
    target = Path(out) if out is not None else Path(f"{folder.resolve().name}-zoo")
    name = images or reader.images or _guess(folder)
    channels = reader.stack.widths[-1]
    meta: dict[str, Any] = {
        "name": folder.resolve().name,
        "recipe": {"name": recipe, "pixel_range": list(chosen.pixel_range)},
        "networks": len(reader),
        "source": _image_source(name, channels) | {"imported_from": folder.resolve().name, "kind": kind},
        "request": {"import": folder.resolve().name, "kind": kind, "stack": reader.stack.to_json(), "seed": seed},
    }
    skipped = 0
    with ZooWriter(target, {"a0": reader.stack}, meta) as writer:
        if writer.complete:
            return Zoo.load(target)
        writer.start_over()
        with progress("importing networks", len(reader)) as bar:
            for number, part in enumerate(_whole(reader.shards())):
                for line in part.problems:
                    print(f"skipped: {line}", file=sys.stderr)
                skipped += len(part.problems)
                if part.tensors:
                    columns = dict(part.columns)
                    columns["network"] = len(writer) + np.arange(len(columns["split"]))
                    writer.append("a0", number, part.tensors, columns)
                bar.advance(part.read)
        if not len(writer):
            raise UserError(f"{folder}: none of {len(reader)} networks can be read")
        writer.meta["networks"] = len(writer)
        writer.meta["skipped"] = skipped
        return writer.finish()


@dataclass
class _Part:
    """Networks read from the source: stacked tensors, their columns, and one line for each that was left out."""

    read: int
    tensors: dict[str, Tensor]
    columns: dict[str, np.ndarray]
    problems: list[str]
    names: list[str]


def _whole(parts: Iterator[_Part]) -> Iterator[_Part]:
    """Leave out networks with NaN or infinite weights."""
    for part in parts:
        finite = torch.ones(len(part.names), dtype=torch.bool)
        for value in part.tensors.values():
            finite &= torch.isfinite(value).flatten(1).all(1)
        if not bool(finite.all()):
            part.problems += [
                f"{part.names[i]} has NaN or infinite weights" for i in (~finite).nonzero().flatten().tolist()
            ]
            part.tensors = {name: value[finite] for name, value in part.tensors.items()} if finite.any() else {}
            part.columns = {name: value[finite.numpy()] for name, value in part.columns.items()}
        yield part


def _image_source(name: str | None, channels: int) -> dict[str, Any]:
    from neural_graphs.zoo.images import IMAGE_SOURCES

    if name is None:
        return {}
    if name not in IMAGE_SOURCES:
        raise UserError(f"unknown images {name!r}: choose one of {', '.join(IMAGE_SOURCES)}")
    source = IMAGE_SOURCES[name]
    height, width, _ = source.image_shape
    size = {"height": height, "width": width, "channels": channels}
    return {"images": name, **size, "classes": list(source.class_names)}


def _guess(folder: Path) -> str | None:
    """The image source that a folder's name speaks of."""
    name = folder.resolve().name.lower()
    for source, words in {"fashion-mnist": ("fmnist", "fashion"), "mnist": ("mnist",), "cifar10": ("cifar",)}.items():
        if any(word in name for word in words):
            return source
    return None


# -- stacked tensors ----------------------------------------------------------------------------------------------


class _Stacked:
    """One safetensors file with all networks and a table."""

    images: str | None = None

    def __init__(self, folder: Path, activation: str, shift: float) -> None:
        self.path = folder / STACKED_WEIGHTS
        try:
            with safe_open(self.path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{folder} has no {STACKED_WEIGHTS}") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path} is broken or truncated ({str(error).splitlines()[0]})") from None
        counts = {shape[:1] for shape in shapes.values()}
        if len(counts) != 1 or counts == {()}:
            raise UserError(f"{self.path}: the tensors are not stacked over the same number of networks")
        ((self.count,),) = counts
        self.stack = stack_from_shapes({name: shape[1:] for name, shape in shapes.items()}, activation, shift)
        self.table = self._read_table(folder / STACKED_TABLE)

    def __len__(self) -> int:
        return self.count

    def _read_table(self, path: Path) -> pa.Table:
        try:
            table = pq.read_table(path, memory_map=False)
        except FileNotFoundError:
            raise UserError(f"{path.parent} has no {path.name}") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; it may be truncated") from None
        if table.num_rows != self.count:
            raise UserError(f"{path} has {table.num_rows} rows, but {self.path.name} holds {self.count} networks")
        if "split" not in table.column_names or not set(table["split"].unique().to_pylist()) <= set(SPLITS):
            raise UserError(f"{path} needs a column split that holds train, val or test")
        if "row" in table.column_names:
            table = table.sort_by("row")
            if table["row"].to_pylist() != list(range(self.count)):
                raise UserError(f"{path}: column row does not number the networks 0 to {self.count - 1}")
        kept = [name for name in table.column_names if name not in ("row", "network", "architecture", "shard")]
        return table.select(kept).rename_columns([_RENAMED.get(name, name) for name in kept])

    def shards(self) -> Iterator[_Part]:
        for start in range(0, self.count, SHARD):
            stop = min(start + SHARD, self.count)
            with safe_open(self.path, framework="pt") as file:
                tensors = {
                    name: file.get_slice(name)[start:stop].to(torch.float32) for name in self.stack.parameter_shapes()
                }
            rows = self.table.slice(start, stop - start)
            columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.column_names}
            names = [f"row {row} of {self.path}" for row in range(start, stop)]
            yield _Part(stop - start, tensors, columns, [], names)


# -- one checkpoint per network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    path: Path
    image: int
    source_split: str
    label: int | None  # None: the checkpoint holds it


class _Checkpoints:
    """The published DWS corpora: one ``.pth`` per network."""

    def __init__(self, folder: Path, activation: str, shift: float, seed: int) -> None:
        self.files = sorted(_find_checkpoints(folder), key=lambda file: (file.source_split != "train", file.image))
        if not self.files:
            raise UserError(
                f"{folder} holds no zoo to import: neither {STACKED_WEIGHTS} nor folders like "
                "mnist_png_training_<label>_<id>/checkpoints nor files like model_<id>.pth"
            )
        self.images: str | None = "mnist" if self.files[0].label is not None else "fashion-mnist"
        train = [i for i, file in enumerate(self.files) if file.source_split == "train"]
        val = np.random.default_rng(seed).permutation(train)[: len(train) // VAL_SHARE]
        self.split = np.array([file.source_split for file in self.files], dtype=object)
        self.split[val.astype(int)] = "val"
        self.stack = self._common_stack(folder, activation, shift)

    def __len__(self) -> int:
        return len(self.files)

    def _common_stack(self, folder: Path, activation: str, shift: float) -> Stack:
        """The most frequent architecture among the first readable checkpoints; the others are skipped."""
        found: Counter[Stack] = Counter()
        problem = ""
        for file in self.files:
            try:
                state, _ = _load_checkpoint(file.path)
                shapes = {name: tuple(value.shape) for name, value in state.items()}
                found[stack_from_shapes(shapes, activation, shift)] += 1
            except UserError as error:
                problem = problem or str(error)
            if found.total() == LOOK_AT:
                break
        if not found:
            raise UserError(f"{folder}: none of {len(self.files)} checkpoints can be read; the first: {problem}")
        return found.most_common(1)[0][0]

    def shards(self) -> Iterator[_Part]:
        shapes = self.stack.parameter_shapes()
        for start in range(0, len(self.files), SHARD):
            states, kept, labels, problems = [], [], [], []
            files = self.files[start : start + SHARD]
            for position, file in enumerate(files, start):
                try:
                    state, label = _load_checkpoint(file.path)
                    if {name: tuple(value.shape) for name, value in state.items()} != shapes:
                        raise UserError(f"{file.path} is a network of another architecture than {self.stack}")
                    if (label := file.label if file.label is not None else label) is None:
                        raise UserError(f"{file.path} holds no label")
                except UserError as error:
                    problems.append(str(error))
                    continue
                states.append(state)
                kept.append(position)
                labels.append(label)
            mine = [self.files[position] for position in kept]
            tensors = {name: torch.stack([state[name] for state in states]) for name in shapes} if states else {}
            columns = {
                "split": self.split[kept],
                "label": np.array(labels, np.int64),
                "image": np.array([file.image for file in mine], np.int64),
                "source_split": np.array([file.source_split for file in mine], dtype=object),
            }
            yield _Part(len(files), tensors, columns, problems, [str(file.path) for file in mine])


def _find_checkpoints(folder: Path) -> Iterator[_File]:
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
                split = "test" if "test" in place.name else "train"
                yield _File(place / name, int(match["image"]), split, None)


def _load_checkpoint(path: Path) -> tuple[dict[str, Tensor], int | None]:
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
    number = (
        int(label)
        if isinstance(label, (int, Tensor)) and (not isinstance(label, Tensor) or label.numel() == 1)
        else None
    )
    return state, number
