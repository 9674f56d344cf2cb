"""The images that a zoo's classifiers were trained and tested on, corrupted, and then prepared as they read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import RunError, UserError
from neural_graphs.zoo.edits import edit_images, list_edits
from neural_graphs.zoo.images import IMAGE_SOURCES, ImageSet, load_images

if TYPE_CHECKING:
    from neural_graphs.zoo._store import Zoo

CLEAN = "clean"
"""Beside the names of edits: the images as they are."""

HELD_OUT = 1000
"""So many images of the training set (a tenth at most) are kept for validation."""


@dataclass(frozen=True, eq=False)
class ReadImages:
    """Images as a zoo's classifiers read them: averaged down to ``side`` (0: as they are), then standardised.

    ``images`` is uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` up to ``white``, ``labels`` int64 ``[N]``. ``mean`` and ``std``
    ``[1, c, 1, 1]`` are those of the clean images that the classifiers were trained on: a network that reads corrupted
    images was not told so.
    """

    images: np.ndarray
    labels: Tensor
    white: int
    side: int
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: slice) -> ReadImages:
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def corrupted(self, corruption: str, rows: np.ndarray | slice = slice(None)) -> Tensor:
        """Float32 ``[n, c, h, w]``: these rows after an edit (``neural_graphs.zoo.edits``), or ``"clean"``.

        The edit is applied to the image of the data set, in its own size, as whatever corrupts it comes before its reader.
        """
        pixels = _pixels(self.images[rows], self.white)
        if corruption != CLEAN:
            pixels = edit_images(pixels, corruption)
        return (_averaged(pixels, self.side) - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class AdaptImages:
    """``train`` are images that the classifiers were trained on (some saw a part of them only), ``held_out`` others of the
    training set, ``test`` images of the test set."""

    train: ReadImages
    held_out: ReadImages
    test: ReadImages

    def of(self, split: str) -> ReadImages:
        """Those that networks of a split are measured on: none that anything was learned from."""
        return self.test if split == "test" else self.held_out


def adapt_images(zoo: Zoo) -> AdaptImages:
    """The images of ``zoo``'s classifiers; the newest are kept in memory, for reading them can take a minute.

    ``held_out`` are images that no classifier saw, where the data set has more than they were trained on.

    Raises:
        UserError: the zoo does not say what its classifiers read; the images are not at hand (the message says what to do),
            or fewer than those that the zoo was made with.
    """
    source, recipe = zoo.meta.get("source") or {}, zoo.meta.get("recipe")
    name = source.get("images")
    recipe = recipe if isinstance(recipe, dict) else {}
    if name not in IMAGE_SOURCES or not {"side", "train_images", "test_images"} <= set(recipe):
        raise UserError(
            f"{zoo.path} does not say which images its networks were trained on and how they were prepared: task=adapt "
            "needs a zoo of classifiers made by `neural-graphs zoo make cnn` on images that `load_images` knows"
        )
    train, test = (_load(name, split, os.environ.get("NEURAL_GRAPHS_DATA")) for split in ("train", "test"))
    seen, side = int(recipe["train_images"]), int(recipe["side"])
    if seen > len(train) or recipe["test_images"] > len(test):
        raise UserError(
            f"{zoo.path} was made with {seen} and {recipe['test_images']} images of {name}; {train.source} and "
            f"{test.source} have {len(train)} and {len(test)}"
        )
    x = _averaged(_pixels(train.images[:seen], train.max_value), side)  # and standardised as `prepare_images` does
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    whole = ReadImages(train.images, torch.from_numpy(train.labels), train.max_value, side, mean, std)
    held = min(HELD_OUT, len(train) // 10)
    unseen = len(train) - seen >= held  # else the last of those that were seen
    parts = (slice(0, seen), slice(seen, seen + held)) if unseen else (slice(0, seen - held), slice(seen - held, seen))
    tested = replace(whole, images=test.images, labels=torch.from_numpy(test.labels))
    return AdaptImages(whole.select(parts[0]), whole.select(parts[1]), tested.select(slice(recipe["test_images"])))


def check_corruptions(names: Sequence[str]) -> None:
    """Raise ``UserError`` for a name that is neither an edit's nor ``"clean"``."""
    known = [CLEAN, *list_edits()]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"unknown edit {unknown[0]!r}: choose one of {', '.join(known)}")


def _pixels(images: np.ndarray, white: int) -> np.ndarray:
    return images.reshape(*images.shape[:3], -1).astype(np.float32) / np.float32(white)


def _averaged(pixels: np.ndarray, side: int) -> Tensor:
    """``[n, H, W, c]`` -> ``[n, c, h, w]``."""
    x, height = torch.from_numpy(pixels).permute(0, 3, 1, 2), pixels.shape[1]
    return F.avg_pool2d(x, height // side) if side and side != height else x


@lru_cache(maxsize=2)
def _load(name: str, split: str, folder: str | None) -> ImageSet:
    """``folder`` is where ``load_images`` looks: images of another are others."""
    try:
        return load_images(name, split, download=False)
    except RunError as error:  # a file that cannot be read
        raise UserError(f"the images of the classifiers are not at hand: {error}") from None
