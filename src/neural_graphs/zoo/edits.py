"""Edits of images, by name: the targets that editors of networks learn.

A new one takes a few lines::

    from neural_graphs.zoo import edits


    @edits.register_edit("halve")
    def halve(image):  # float64 [H, W, C] in [0, 1]
        return image / 2

What an edit returns is clipped to [0, 1]. SciPy and scikit-image are imported where an edit uses them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from neural_graphs.errors import UserError
from neural_graphs.zoo._clahe import clahe

__all__ = ["edit_images", "list_edits", "register_edit"]

BATCH = 2**17  # values edited at once, to stay in the cache

EditFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Edit:
    function: EditFunction
    batched: bool


_EDITS: dict[str, _Edit] = {}


def register_edit(name: str, *, batched: bool = False) -> Callable[[EditFunction], EditFunction]:
    """Function decorator: makes an edit available by name.

    The function reads an image, float64 ``[H, W, C]`` in [0, 1] (black is 0, C is 1 or 3), and returns a new one of the same
    shape; values outside of [0, 1] are clipped. With ``batched`` it reads and returns many, ``[n, H, W, C]``, and must
    edit each as if it were alone.

    Raises:
        UserError: the name is taken.
    """

    def register(function: EditFunction) -> EditFunction:
        if name in _EDITS:
            raise UserError(f"an edit named {name!r} is registered already")
        _EDITS[name] = _Edit(function, batched)
        return function

    return register


def list_edits() -> list[str]:
    """Names of all registered edits, sorted."""
    return sorted(_EDITS)


def edit_images(images: np.ndarray, name: str) -> np.ndarray:
    """Edit every image: floats ``[n, H, W, C]`` in [0, 1], C 1 (grey) or 3 (RGB), to float32 of the same shape.

    An image's edit does not depend on the others. ``images`` are not changed.

    Raises:
        UserError: there is no such edit; the images have another shape, are no floats, or have pixels that are NaN or
            outside of [0, 1]; the edit cannot edit images of this shape, or returned something else than it should.
    """
    if name not in _EDITS:
        raise UserError(f"unknown edit {name!r}: choose one of {', '.join(list_edits())}")
    images = np.asarray(images)
    _check(images)
    edited = np.empty(images.shape, np.float32)
    step = max(1, BATCH // max(1, images[:1].size))
    for start in range(0, len(images), step):
        part = images[start : start + step].astype(np.float64)
        edited[start : start + step] = np.clip(_apply(name, part), 0, 1)
    return edited


def _check(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise UserError(
            f"images of shape {list(images.shape)} cannot be edited: give [n, height, width, channels], "
            "channels 1 (grey) or 3 (RGB)"
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images of {images.dtype} cannot be edited: give floats from 0 to 1 (divide by white's value)")
    # Minimum and maximum carry NaN along and need no copy.
    low, high = images.min(initial=0), images.max(initial=0)
    if np.isnan(low) or np.isnan(high):
        number = int(np.isnan(images).any((1, 2, 3)).argmax())
        raise UserError(f"image {number} has NaN pixels: leave it out")
    if low < 0 or high > 1:
        raise UserError(f"pixels range from {low:.4g} to {high:.4g}: scale or clip them to [0, 1] before editing")


def _apply(name: str, images: np.ndarray) -> np.ndarray:
    edit = _EDITS[name]
    results = [edit.function(images)] if edit.batched else [edit.function(image) for image in images]
    shape = images.shape if edit.batched else images.shape[1:]
    for result in map(np.asarray, results):
        if result.shape != shape:
            raise UserError(f"edit {name} turned {list(shape)} into {list(result.shape)}: it must keep the shape")
        if not np.isfinite(result).all():
            raise UserError(f"edit {name} returned pixels that are not finite: mend it")
    return np.asarray(results[0]) if edit.batched else np.stack(results)


# -- the edits ----------------------------------------------------------------------------------------------------


@register_edit("dilate", batched=True)
def _dilate(images: np.ndarray) -> np.ndarray:
    """Maximum over 3 x 3 pixels, beyond the border nothing: OpenCV's ``dilate(image, ones((3, 3)))``, once."""
    from scipy.ndimage import maximum_filter

    # Repeating the border's pixels is leaving out what lies beyond: the window holds them anyway.
    return maximum_filter(images, (1, 3, 3, 1), mode="nearest")


@register_edit("erode", batched=True)
def _erode(images: np.ndarray) -> np.ndarray:
    """Minimum over 3 x 3 pixels, beyond the border nothing: OpenCV's ``erode(image, ones((3, 3)))``, once."""
    from scipy.ndimage import minimum_filter

    return minimum_filter(images, (1, 3, 3, 1), mode="nearest")


@register_edit("gradient", batched=True)
def _gradient(images: np.ndarray) -> np.ndarray:
    """Morphological gradient: dilated minus eroded."""
    return _dilate(images) - _erode(images)


@register_edit("blur", batched=True)
def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian of standard deviation 1 pixel; the image is mirrored at its border."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0, 1, 1, 0))


@register_edit("sharpen", batched=True)
def _sharpen(images: np.ndarray) -> np.ndarray:
    """Unsharp masking: the image plus what blurring takes away from it."""
    return 2 * images - _blur(images)


@register_edit("contrast", batched=True)
def _contrast(images: np.ndarray) -> np.ndarray:
    """CLAHE of 3 x 3 tiles with clip limit 1 on 256 levels, of grey or of the lightness of LAB (Zhou et al. 2023).

    Grey images of 256 levels become what OpenCV makes of them, to the bit. Of colours only the lightness is rounded to 256
    levels; OpenCV's 8-bit LAB rounds all, and differs by that.
    """
    if images.shape[3] == 1:
        return clahe(np.rint(images[..., 0] * 255).astype(np.uint8))[..., None] / 255
    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(images)
    lab[..., 0] = clahe(np.rint(lab[..., 0] * 2.55).astype(np.uint8)) / 2.55
    with warnings.catch_warnings():  # of colours that no screen shows, which lab2rgb moves to the nearest one
        warnings.filterwarnings("ignore", "Conversion from CIE-LAB", UserWarning)
        return lab2rgb(lab)


@register_edit("invert", batched=True)
def _invert(images: np.ndarray) -> np.ndarray:
    """Black to white: 1 - image."""
    return 1 - images


@register_edit("rotate", batched=True)
def _rotate(images: np.ndarray) -> np.ndarray:
    """A quarter turn against the clock; square images only."""
    height, width = images.shape[1:3]
    if height != width:
        raise UserError(f"edit rotate needs square images, these have {height} x {width} pixels: leave it out")
    return np.rot90(images, axes=(1, 2))


@register_edit("mask", batched=True)
def _mask(images: np.ndarray) -> np.ndarray:
    """The central square, of half the (shorter) side, set to black."""
    height, width = images.shape[1:3]
    side = min(height, width) // 2
    top, left = (height - side) // 2, (width - side) // 2
    masked = images.copy()
    masked[:, top : top + side, left : left + side] = 0
    return masked


@register_edit("noise")
def _noise(image: np.ndarray) -> np.ndarray:
    """Gaussian noise of standard deviation 0.1, seeded by the image itself: equal images get equal noise."""
    digest = hashlib.sha256(image.astype("<f8").tobytes()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, "<u4"))
    return image + 0.1 * rng.standard_normal(image.shape)
