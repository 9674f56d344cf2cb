"""Networks that a user names: files, folders of files and zoos, found first, then read one by one and recognised."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Stack
from neural_graphs.graph._files import PICKLES, check_finite, read_state_dict, stated_architecture
from neural_graphs.tasks._architecture import recognise
from neural_graphs.zoo._store import META

SUFFIXES = (".safetensors", *PICKLES)
LARGEST = 2 << 30
"""Bytes of the largest file, and of the largest network in float32, that is read: one network never fills the memory."""


@dataclass(frozen=True)
class Found:
    """A file that may hold a network, or a zoo's folder (``zoo``), or what cannot be looked into and why (``error``)."""

    path: str
    zoo: bool = False
    error: str | None = None


def find(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Found]:
    """The files that ``paths`` name, and those with a known suffix in the folders among them, at any depth, sorted.

    A folder that holds a zoo is one entry. Hidden files and folders are passed over, links are followed, and no folder is
    entered twice, so a link to a folder above ends nowhere. A file is given once, however often it is named.
    """
    seen: set[str] = set()
    for path in map(os.fspath, paths):
        for found in _walk(path) if os.path.isdir(path) else (Found(path),):
            place = os.path.abspath(found.path)
            if place not in seen:
                seen.add(place)
                yield found


def _walk(top: str) -> Iterator[Found]:
    entered: set[tuple[int, int]] = set()
    broken: list[OSError] = []
    empty = True
    for folder, folders, files in os.walk(top, onerror=broken.append, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:
            broken.append(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        if META in files:
            folders.clear()
            empty = False
            yield Found(folder, zoo=True)
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                empty = False
                yield Found(os.path.join(folder, name))
    for error in broken:
        yield Found(str(error.filename), error=f"cannot look into the folder: {error.strerror}")
    if empty and not broken:
        yield Found(top, error=f"the folder holds no zoo and no network files ({', '.join(SUFFIXES)})")


def read_network(
    path: str, known: Sequence[Stack], activation: str | Activation | None = None
) -> tuple[Stack, dict[str, Tensor]]:
    """The architecture of the network in a file and its float32 tensors, under the architecture's names.

    The architecture is the one that the file states, else one of ``known`` with these names and shapes, else one with these
    shapes in this order, whatever the names, else a guess (see ``recognise``). ``activation`` overrules what the file
    states and tells ``known`` ones apart.

    Raises:
        UserError: the file is missing, broken, hostile or huge, holds NaN, or its architecture cannot be told.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a link that leads nowhere")
    if os.path.isfile(path) and (size := os.path.getsize(path)) > LARGEST:
        raise UserError(f"{path} has {size / 1e9:.1f} GB, files of more than {LARGEST / 1e9:.1f} GB are not read")
    state = _real(read_state_dict(path))
    check_finite(state)
    if activation is None and (stated := stated_architecture(Path(path))) is not None:
        if stated.parameter_shapes() != _shapes(state):
            raise UserError(f"{path} states an architecture ({stated}) that its tensors do not have")
        return stated, state
    state = _renamed(state, known)
    return recognise(state, known, activation), state


def _real(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 tensors, without the counters of normalisation layers; ``UserError`` for what no network of floats holds."""
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for name, value in kept.items():
        if value.is_complex() or value.is_meta:
            raise UserError(f"{name} is a tensor of {'complex numbers' if value.is_complex() else 'no values'}")
    # A few bytes can describe a tensor of any size: one number, repeated.
    if 4 * sum(value.numel() for value in kept.values()) > LARGEST:
        raise UserError(f"the network has more than {LARGEST // 4:,} parameters, so many are not read")
    return {name: value.float() for name, value in kept.items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _renamed(state: dict[str, Tensor], known: Sequence[Stack]) -> dict[str, Tensor]:
    """``state`` under the names of the known architecture whose layers have the same shapes in the same order.

    The order is the file's, or that of the numbers in the names: safetensors sorts by name. As it is where names and shapes
    fit already, where no architecture fits, and where those that fit have different names.
    """
    shapes = _shapes(state)
    candidates = {tuple(stack.parameter_shapes().items()) for stack in known}
    if tuple(sorted(shapes.items())) in {tuple(sorted(names)) for names in candidates}:
        return state
    for layers in (_layers(shapes), dict(sorted(_layers(shapes).items(), key=lambda entry: _natural(entry[0])))):
        fitting = [
            names
            for names in candidates
            if list(_layers(dict(names)).values()) == list(layers.values()) and len(names) == len(shapes)
        ]
        if len(fitting) == 1:
            places = dict(zip(_layers(dict(fitting[0])), layers, strict=True))
            return {name: state[_joined(places[_split(name)[0]], _split(name)[1])] for name, _ in fitting[0]}
    return state


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Per layer, in the order in which they come, the shapes of its ``weight``, ``bias``, ..."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, tensor = _split(name)
        found.setdefault(layer, {})[tensor] = shape
    return found


def _split(name: str) -> tuple[str, str]:
    layer, _, tensor = name.rpartition(".")
    return layer, tensor


def _joined(layer: str, tensor: str) -> str:
    return f"{layer}.{tensor}" if layer else tensor


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``conv2`` before ``conv10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def num_bytes(state: Mapping[str, Tensor]) -> int:
    """What the tensors take in memory."""
    return sum(value.element_size() * math.prod(value.shape) for value in state.values())


def one_line(error: BaseException) -> str:
    """What went wrong with one network, for a list of them: never empty, never more than a line."""
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"cannot be read: {error.strerror}"
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        text = "there is not enough memory for it"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
