"""What an edited network should draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neural_graphs._progress import progress
from neural_graphs.errors import UserError
from neural_graphs.tasks._data import images as image_numbers
from neural_graphs.zoo._render import original_images, render
from neural_graphs.zoo.edits import edit_images, list_edits

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit

SOURCES = ("image", "render")
BATCH = 1024  # images edited between two steps of the progress bar


def edit_targets(split: ZooSplit, edits: Sequence[str], source: str = "image") -> Tensor:
    """The edited images of all networks of ``split``: float32 ``[S, n, H, W, C]`` in [0, 1], S edits in the given order.

    What is edited is, for ``source="image"``, the image that a network was fitted to, as in Zhou et al. 2023 and the later
    work on editing; for ``"render"``, the image that it draws, clipped to [0, 1]. An image that several networks were
    fitted to is edited once. Nothing is kept between calls.

    Raises:
        UserError: unknown source or edit; the images are not at hand, or have another size or other colours than the
            networks draw; a network draws NaN; an edit cannot edit images of this shape.
    """
    if source not in SOURCES:
        raise UserError(f"unknown targets {source!r}: choose one of {', '.join(SOURCES)}")
    if not edits:
        raise UserError(f"no edits are given: choose some of {', '.join(list_edits())}")
    if unknown := [name for name in edits if name not in list_edits()]:
        raise UserError(f"unknown edit {unknown[0]!r}: choose one of {', '.join(list_edits())}")
    images, place_of = _fitted(split) if source == "image" else (_drawn(split), np.arange(len(split)))
    targets = np.empty((len(edits), len(split), *images.shape[1:]), np.float32)
    moved = not np.array_equal(place_of, np.arange(len(images)))  # some are shared, or they stand in another order
    with progress("editing images", len(edits) * len(images)) as bar:
        for target, name in zip(targets, edits, strict=True):
            edited = np.empty_like(images) if moved else target
            for start in range(0, len(images), BATCH):
                edited[start : start + BATCH] = edit_images(images[start : start + BATCH], name)
                bar.advance(len(images[start : start + BATCH]))
            if moved:
                np.take(edited, place_of, 0, out=target)
    return torch.from_numpy(targets)


def _fitted(split: ZooSplit) -> tuple[np.ndarray, np.ndarray]:
    """The images that the networks were fitted to, each once, ``[m, H, W, C]``, and where every network's is, ``[n]``."""
    meta, drawn = split.zoo.meta.get("source", {}), _drawn_shape(split)
    if not len(split):
        return np.empty((0, *drawn), np.float32), np.empty(0, np.int64)
    if "image" not in split.zoo.table.column_names:
        raise UserError(f"{split.zoo.path} does not say which image each network was fitted to: set targets=render")
    first, place_of = np.unique(image_numbers(split), return_index=True, return_inverse=True)[1:]
    images = original_images(split.select(first))
    if images is None:
        raise UserError(
            f"the images ({meta.get('images', 'of unknown name')}) that the networks of {split.zoo.path} were fitted to are "
            "not at hand: set targets=render, or put them where NEURAL_GRAPHS_DATA points"
        )
    if images.shape[1:] != drawn:
        raise UserError(
            f"the networks of {split.zoo.path} draw {_text(drawn)}, their images are {_text(images.shape[1:])}: "
            "set targets=render"
        )
    return images, place_of


def _drawn(split: ZooSplit) -> np.ndarray:
    """The images that the networks draw, ``[n, H, W, C]``, clipped to [0, 1]."""
    images = np.empty((len(split), *_drawn_shape(split)), np.float32)
    with progress("drawing networks", len(split)) as bar:
        for start in range(0, len(split), BATCH):
            part = images[start : start + BATCH]
            np.clip(render(split, slice(start, start + BATCH)), 0, 1, out=part)
            if np.isnan(part).any():
                number = split.column("network")[start + int(np.isnan(part).any((1, 2, 3)).argmax())]
                raise UserError(f"network {number} of {split.zoo.path} draws NaN: leave it out of the zoo")
            bar.advance(len(part))
    return images


def _drawn_shape(split: ZooSplit) -> tuple[int, int, int]:
    """Height, width and channels of what the networks draw."""
    source, stacks = split.zoo.meta.get("source", {}), list(split.zoo.architectures.values())
    outputs = {stack.num_outputs for stack in stacks}
    if any(stack.input_shape != (2,) for stack in stacks):
        raise UserError(
            f"{split.zoo.path} holds networks that draw no image: only networks with 2 inputs can be edited"
        )
    if len(outputs) > 1:
        raise UserError(f"the networks of {split.zoo.path} have different numbers of outputs: edit them apart")
    if not source.get("height") or not source.get("width"):
        raise UserError(f"{split.zoo.path} does not say at which resolution its networks draw: make or import it again")
    return source["height"], source["width"], outputs.pop()


def _text(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]} with {shape[2]} channels"
