"""Editing networks that lie in files: a network file in, an edited network file of the same kind out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import Architecture, GraphBatch, NeuralGraph, Stack, render
from neural_graphs.graph._files import PICKLES
from neural_graphs.graph._rewrite import rewrite
from neural_graphs.tasks._edit_picture import Panel, draw, save
from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._networks import SUFFIXES, Found, find, one_line, printable
from neural_graphs.tasks._predict import Network, answer_all

LARGEST = 4096
"""Pixels along one side of the largest image that is drawn."""


@dataclass(frozen=True)
class Place:
    """Where an edited network goes, and its picture."""

    out: Path
    picture: Path | None


def edit_files(
    model: str | os.PathLike[str] | Editor,
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    edit: str | None = None,
    strength: float = 1.0,
    activation: str | None = None,
    picture: bool = True,
    size: int | None = None,
    force: bool = False,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Edit the networks in ``files`` (``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``) and write them to ``out``.

    One file becomes the file ``out``; several, or folders (read at any depth), the folder ``out`` with the same relative
    names. Each edited network is written in the format of its file, with the same names, dtypes and metadata; the editor's
    copies (``Editor``) become one wider network, which a ``.safetensors`` file then states. Beside it a PNG shows what the
    network draws before and after the edit, and what it should draw: the edit of the image before. Inputs are only read,
    every output is complete or absent.

    Args:
        model: an editor, or the folder of its run.
        edit: one of the editor's edits; needed where there are several.
        strength: from 0, no change, to 1.
        activation: ``"sine:30"``; needed where a file does not state its non-linearity and the editor knows several.
        picture: write the PNG.
        size: pixels along the longer side of the pictures' images before and after (default: the editor's).
        force: replace files that exist.
        quiet: show no progress.

    Returns:
        A result per file: ``file``, ``out``, ``picture`` (None: none), ``edit``, ``strength``, ``architecture`` (of the
        edited network), ``seconds`` (the edit's, without reading and writing), and ``mse`` and ``no_edit_mse``, the mean
        squared error of the image after, and of the one before, against the target at the editor's size, white being 1 (None
        where there is no target). A file that cannot be edited has ``file`` and ``error``, and stops none of the others.

    Raises:
        UserError: no editor there; an unknown edit, a strength or size out of range; an output that exists, is an input,
            lies in an input's folder or in another's place.
        RunError: an output cannot be written; those before it are complete.
    """
    editor = model if isinstance(model, Editor) else Editor.from_pretrained(model)
    name = editor.edits[editor.check_edit(edit, strength)]
    picture = picture and editor.size is not None
    if size is not None and not 1 <= size <= LARGEST:
        raise UserError(f"size {size} is out of range: images of 1 to {LARGEST} pixels along one side are drawn")
    found, places = _plan(files, Path(out), picture, force)
    session = _Session(editor, name, strength, size, places)
    return answer_all(editor, found, session.answer, activation, quiet)


class _Session:
    """What is done with every few networks that have been read."""

    def __init__(self, editor: Editor, edit: str, strength: float, size: int | None, places: dict[str, Place]) -> None:
        self.editor, self.edit, self.strength, self.places = editor, edit, strength, places
        self.own = editor.size
        self.shown = self.own
        if size is not None and self.own is not None:
            height, width = (max(1, round(side * size / max(self.own))) for side in self.own)
            self.shown = (height, width)

    def answer(self, members: Sequence[Network], batch: GraphBatch) -> list[dict[str, Any]]:
        """Edit all, then write one by one: whatever is wrong with one of them, the others are written."""
        start = time.perf_counter()
        edited = self.editor.edit(batch, self.edit, self.strength)
        seconds = (time.perf_counter() - start) / len(members)
        images = None
        if self.own is not None:
            images = self._draw(batch, self.own), self._draw(edited, self.own)
        before, after = _singles(batch), _singles(edited)
        rows: list[dict[str, Any]] = []
        for place, member in enumerate(members):
            drawn = None if images is None else (images[0][place], images[1][place])
            try:
                row = self._write(member, before[place], after[place], drawn)
            except RunError:
                raise
            except Exception as error:
                rows.append({"error": one_line(error)})
            else:
                rows.append({**row, "seconds": seconds})
        return rows

    def _write(
        self, member: Network, before: NeuralGraph, after: NeuralGraph, drawn: tuple[np.ndarray, np.ndarray] | None
    ) -> dict[str, Any]:
        place = self.places[member.path]
        target = sheet = None
        if drawn is not None:
            _check_drawn(*drawn)
            target = _target(drawn[0], self.edit)
            if place.picture is not None:
                sheet = draw(self._panels(before, after, drawn, target))
        architecture = after.stack or member.architecture
        rewrite(member.path, place.out, *_as_in_file(member, architecture, after))
        if sheet is not None and place.picture is not None:
            save(sheet, place.picture)
        return {
            "out": printable(str(place.out)),
            "picture": printable(str(place.picture)) if place.picture else None,
            "edit": self.edit,
            "strength": self.strength,
            "architecture": str(architecture),
            "mse": _mse(drawn[1], target) if drawn is not None and target is not None else None,
            "no_edit_mse": _mse(drawn[0], target) if drawn is not None and target is not None else None,
        }

    def _panels(
        self,
        before: NeuralGraph,
        after: NeuralGraph,
        drawn: tuple[np.ndarray, np.ndarray],
        target: np.ndarray | None,
    ) -> list[Panel]:
        assert self.own is not None and self.shown is not None
        first, last = drawn
        if self.shown != self.own:
            first, last = (self._draw(graph, self.shown)[0] for graph in (before, after))
            _check_drawn(first, last)
        title = f"after {self.edit}" if self.strength == 1 else f"after {self.edit}, strength {self.strength:g}"
        if target is None:
            return [Panel("before", _size(first), first), Panel(title, _size(last), last)]
        at = "" if self.shown == self.own else f" at {_size(target)}"
        return [
            Panel("before", f"MSE {_mse(drawn[0], target):.4f}{at}", first),
            Panel(f"target: {self.edit}", _size(target), target),
            Panel(title, f"MSE {_mse(drawn[1], target):.4f}{at}", last),
        ]

    def _draw(self, networks: NeuralGraph | GraphBatch, size: tuple[int, int]) -> np.ndarray:
        with torch.no_grad():
            return render(networks, *size, self.editor.pixel_range).numpy()


def _singles(batch: GraphBatch) -> dict[int, NeuralGraph]:
    """Every network of a batch on its own, by its place."""
    return {
        place: graph[row]
        for graph, index in zip(batch.buckets, batch.index, strict=True)
        for row, place in enumerate(index.tolist())
    }


def _target(image: np.ndarray, edit: str) -> np.ndarray | None:
    """What ``image`` [H, W, C] should become; None of an edit that is not registered here (a user's, of another program) and
    of colours that no edit is for."""
    from neural_graphs.zoo.edits import edit_images, list_edits

    if edit not in list_edits() or image.shape[2] not in (1, 3):
        return None
    return edit_images(np.clip(image, 0, 1)[None], edit)[0]


def _mse(image: np.ndarray, target: np.ndarray) -> float:
    return float(np.square(image.astype(np.float64) - target).mean())


def _check_drawn(before: np.ndarray, after: np.ndarray) -> None:
    if not np.isfinite(before).all():
        raise UserError("the image that this network draws has NaN or infinite values, so there is nothing to edit")
    if not np.isfinite(after).all():
        raise UserError("the edited network would draw NaN or infinite values, so it was not written")


def _as_in_file(
    member: Network, architecture: Architecture, after: NeuralGraph
) -> tuple[dict[str, Tensor], Architecture | None]:
    """The edited tensors under the file's names, and what the file must state now: None where it need not be changed."""
    names, state = member.names, after.to_state_dict()
    if architecture == member.architecture:
        return {given: state[name] for name, given in names.items()}, None
    assert isinstance(architecture, Stack)
    layers = {name.rpartition(".")[0]: given.rpartition(".")[0] for name, given in names.items()}
    renamed = (replace(layer, name=layers.get(layer.name, layer.name)) for layer in architecture.layers)
    values = {names.get(name, name): value for name, value in state.items()}
    return values, Stack(tuple(renamed), architecture.shift)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


# -- where everything goes --------------------------------------------------------------------------------------------


def _plan(
    files: Sequence[str | os.PathLike[str]], out: Path, picture: bool, force: bool
) -> tuple[list[Found], dict[str, Place]]:
    """The inputs, and the outputs by input; ``UserError`` for whatever must not be written."""
    given = [os.fspath(file) for file in files]
    found: list[tuple[Found, str]] = []  # with the name under ``out``
    seen: set[str] = set()
    for top in given:
        folder = os.path.isdir(top)
        if folder and _inside(out, top):
            raise UserError(f"{out} lies in the input folder {top}: give another place for what is edited")
        for entry in find([top]):
            if (where := os.path.abspath(entry.path)) in seen:
                continue
            seen.add(where)
            if entry.zoo:
                error = f"{entry.path} is a zoo: give network files; in Python, Editor.edit(zoo.all) edits its networks"
                entry = Found(entry.path, error=error)
            found.append((entry, os.path.relpath(entry.path, top) if folder else os.path.basename(entry.path)))
    inputs = [entry for entry, _ in found if entry.error is None]
    one = len(given) == 1 and not os.path.isdir(given[0]) and not out.is_dir()
    if one:
        _check_suffix(given[0], out)
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder for several networks")
    outs = {entry.path: out if one else out / name for entry, name in found if entry.error is None}
    places = _with_pictures(outs, picture)
    _check_places(places, [entry.path for entry in inputs], force)
    return [entry for entry, _ in found], places


def _inside(out: Path, folder: str) -> bool:
    place, top = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    return place == top or top in place.parents


def _check_suffix(source: str, out: Path) -> None:
    suffix = Path(source).suffix
    if suffix not in SUFFIXES or not os.path.isfile(source):
        return  # a mistake that reading it will tell
    fitting = (suffix,) if suffix not in PICKLES else PICKLES
    if out.suffix not in fitting:
        raise UserError(
            f"{out} must end in {' or '.join(fitting)}, like the network that is edited: its format is kept"
        )


def _with_pictures(outs: dict[str, Path], picture: bool) -> dict[str, Place]:
    """``net.pt`` gets ``net.png``; ``net.pt.png`` where ``net.pth`` beside it would get the same."""
    count = Counter(out.with_suffix("") for out in outs.values())
    return {
        path: Place(
            out,
            None if not picture else out.with_suffix(".png") if count[out.with_suffix("")] == 1 else Path(f"{out}.png"),
        )
        for path, out in outs.items()
    }


def _check_places(places: dict[str, Place], inputs: Iterable[str], force: bool) -> None:
    """No output in the place of an input, of another output, or (but for ``force``) of a file that exists."""
    originals = {identity: path for path in inputs if (identity := _identity(path))}
    taken: dict[str, str] = {}
    for path, place in places.items():
        for out in filter(None, (place.out, place.picture)):
            if (original := originals.get(_identity(out) or (-1, -1))) is not None:
                raise UserError(f"{out} is the input {original}, which is never written to: give another place")
            if (other := taken.setdefault(os.path.abspath(out), path)) != path:
                raise UserError(f"both {other} and {path} would become {out}: edit them one after the other")
            if blocking := next((above for above in out.parents if above.exists() and not above.is_dir()), None):
                raise UserError(f"{blocking} is a file, so {out} cannot be written: give another place")
            if out.is_dir():
                raise UserError(f"{out} is a folder, where a file would be written: give another place")
            if os.path.lexists(out) and not force:
                raise UserError(f"{out} exists: --force replaces it, or give another place")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The same for all names of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
