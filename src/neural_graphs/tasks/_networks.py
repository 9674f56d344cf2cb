"""Networks that a user names: files, folders of files and zoos, found first, then read one by one and recognised."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Stack
from neural_graphs.graph._files import PICKLES, check_finite, read_state_dict, stated_architecture
from neural_graphs.tasks._architecture import recognise
from neural_graphs.zoo._store import META

if TYPE_CHECKING:
    from neural_graphs.graph import Architecture

SUFFIXES = (".safetensors", *PICKLES)
LARGEST = 2 << 30
"""Bytes of the largest file, and of the largest network in float32, that is read: one network never fills the memory."""

Shape = tuple[int, ...]
Layout = tuple[frozenset[tuple[str, Shape]], ...]
"""The shapes of every layer's tensors, layers in order."""


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
    for given in paths:
        path = os.fspath(given)
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
    for failure in broken:
        yield Found(str(failure.filename), error=f"cannot look into the folder: {failure.strerror}")
    if empty and not broken:
        yield Found(top, error=f"{top} holds no zoo and no network files ({', '.join(SUFFIXES)})")


class Reader:
    """Reads network files for a model that was trained on the architectures ``known``.

    ``activation`` is the hidden non-linearity of networks whose file states none.
    """

    def __init__(self, known: Sequence[Architecture], activation: str | Activation | None = None) -> None:
        self.known, self.activation = known, activation
        self._exact: dict[frozenset[tuple[str, Shape]], list[Architecture]] = {}
        self._similar: dict[Layout, dict[tuple[str, ...], Architecture]] = {}
        for architecture in dict.fromkeys(known):
            shapes = architecture.parameter_shapes()
            self._exact.setdefault(frozenset(shapes.items()), []).append(architecture)
            self._similar.setdefault(_layout(_layers(shapes).values()), {})[tuple(shapes)] = architecture

    def read(self, path: str) -> tuple[Architecture, dict[str, Tensor], dict[str, str]]:
        """The architecture of the network in a file, its float32 tensors under the architecture's names, and for each of
        these names the file's.

        The architecture is the one that the file states, else a known one with these names and shapes, else one whose
        layers have these shapes in this order, whatever their names, else a guess (see ``recognise``).

        Raises:
            UserError: the file is missing, broken, hostile or huge, holds NaN, or its architecture cannot be told.
        """
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"{path} is a link that leads nowhere")
        if os.path.isfile(path) and (size := os.path.getsize(path)) > LARGEST:
            raise UserError(f"{path} has {size / 1e9:.1f} GB, files of more than {LARGEST / 1e9:.1f} GB are not read")
        state = read_state_dict(path)
        _check_sums(path)
        state = _real(state)
        check_finite(state)
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        if (stated := stated_architecture(Path(path))) is not None:
            if not isinstance(stated, Stack) and frozenset(shapes.items()) not in self._exact:
                _check_modest(stated, 4 * sum(value.numel() for value in state.values()))
            if stated.parameter_shapes() != shapes:
                raise UserError(f"{path} states an architecture ({stated}) that its tensors do not have")
            return stated, state, {name: name for name in state}
        names = self._names(shapes)
        state = {own: state[given] for own, given in names.items()}
        fitting = self._exact.get(frozenset((own, shapes[given]) for own, given in names.items()))
        # all known ones are asked only for a guess: there may be thousands
        return recognise(state, fitting or self.known, self.activation), state, names

    def _names(self, shapes: Mapping[str, Shape]) -> dict[str, str]:
        """For every name that the architecture has, the file's: the same, or those of the layers in the same places.

        The order of layers is the file's, or that of the numbers in their names: safetensors sorts by name. Names are left
        as they are where no architecture fits, or several that differ in their names.
        """
        given = _layers(shapes)
        if frozenset(shapes.items()) not in self._exact:
            for order in (list(given), sorted(given, key=_natural)):
                fitting = self._similar.get(_layout(given[layer] for layer in order), {})
                if len(fitting) == 1:
                    (names,) = fitting
                    places = dict(zip(_layers(dict.fromkeys(names, ())), order, strict=True))
                    return {name: _joined(places[_split(name)[0]], _split(name)[1]) for name in names}
        return {name: name for name in shapes}


def _check_modest(stated: Architecture, most: int) -> None:
    """Raise ``UserError`` when a module that a file states has more than ``most`` numbers: it must not be built then."""
    if not _modest(stated.to_json()):
        raise UserError("the file states an architecture that is too large")
    with torch.device("meta"):
        size = sum(value.numel() for value in stated.module().state_dict().values())
    if size > most:
        raise UserError("the file states an architecture that is larger than its tensors")


def _modest(value: Any) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return len(value) < 1000 and all(map(_modest, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, (int, float)) or abs(value) < 10_000


def _check_sums(path: str) -> None:
    """Raise ``UserError`` when a PyTorch file is not as it was written: PyTorch itself does not look at the checksums."""
    if not path.endswith(PICKLES) or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} in it is wrong; copy the file again")


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


def _layers(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Per layer, in the order in which they come, the shapes of its ``weight``, ``bias``, ..."""
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        layer, tensor = _split(name)
        found.setdefault(layer, {})[tensor] = shape
    return found


def _layout(layers: Iterable[Mapping[str, Shape]]) -> Layout:
    return tuple(frozenset(layer.items()) for layer in layers)


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
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """``text`` with the bytes of a file's name that are no UTF-8 as ``\\udcff``: those cannot be written to a terminal."""
    return text.encode("utf-8", "backslashreplace").decode()
