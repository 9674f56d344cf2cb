"""Contrast-limited adaptive histogram equalisation of many images at once."""

from __future__ import annotations

import numpy as np

LEVELS = 256


def clahe(images: np.ndarray, clip_limit: float = 1.0, tiles: int = 3) -> np.ndarray:
    """Equalise uint8 images ``[n, H, W]``, each as OpenCV's ``createCLAHE(clip_limit, (tiles, tiles)).apply`` does.

    Zuiderveld 1994: every one of ``tiles`` x ``tiles`` tiles has a histogram, whose entries are cut at ``clip_limit`` times
    their mean (at least 1) and what is cut off is spread evenly; its cumulative sum maps levels to levels, and a pixel is
    mapped by the four nearest tiles, interpolated between their centres. scikit-image's ``equalize_adapthist`` is no
    substitute: it stretches every image to the full range before and after, and spreads what is cut off in another way.
    """
    count, height, width = images.shape
    # Both sides are extended as soon as one is no multiple, as OpenCV does; mirrored without repeating the border.
    extend = (0, 0) if height % tiles == width % tiles == 0 else (tiles - height % tiles, tiles - width % tiles)
    extended = np.pad(images, ((0, 0), (0, extend[0]), (0, extend[1])), mode="reflect")
    tile = extended.shape[1] // tiles, extended.shape[2] // tiles
    maps = _maps(extended, tile, clip_limit, tiles).reshape(count, -1)

    above, below, rows = _neighbours(height, tile[0], tiles)
    left, right, columns = _neighbours(width, tile[1], tiles)
    rows = rows[:, None]

    def mapped(vertical: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
        places = (vertical[:, None] * tiles + horizontal) * LEVELS + images
        return np.take_along_axis(maps, places.reshape(count, -1), 1).reshape(images.shape)

    upper = mapped(above, left) * (1 - columns) + mapped(above, right) * columns
    lower = mapped(below, left) * (1 - columns) + mapped(below, right) * columns
    return np.rint(upper * (1 - rows) + lower * rows).clip(0, LEVELS - 1).astype(np.uint8)


def _maps(images: np.ndarray, tile: tuple[int, int], clip_limit: float, tiles: int) -> np.ndarray:
    """What every tile maps each level to: float32 ``[n * tiles * tiles, LEVELS]``, whole numbers."""
    area = tile[0] * tile[1]
    pixels = images.reshape(len(images), tiles, tile[0], tiles, tile[1]).swapaxes(2, 3).reshape(-1, area)
    places = pixels + LEVELS * np.arange(len(pixels))[:, None]
    histogram = np.bincount(places.ravel(), minlength=len(pixels) * LEVELS).reshape(-1, LEVELS)

    limit = max(1, int(clip_limit * area / LEVELS))
    excess = (histogram - limit).clip(0).sum(1)
    share, rest = np.divmod(excess, LEVELS)
    step = LEVELS // rest.clip(1)
    levels = np.arange(LEVELS)
    # Of the rest, one each for every step-th level, until it is used up.
    ones = (levels % step[:, None] == 0) & (levels // step[:, None] < rest[:, None])
    histogram = histogram.clip(max=limit) + share[:, None] + ones
    scale = np.float32(LEVELS - 1) / np.float32(area)
    return np.rint(histogram.cumsum(1).astype(np.float32) * scale)


def _neighbours(size: int, tile: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel along a side the two tiles whose centres it lies between, and the second one's share (float32)."""
    place = np.arange(size, dtype=np.float32) * (np.float32(1) / np.float32(tile)) - np.float32(0.5)
    first = np.floor(place).astype(np.int64)
    return first.clip(0), (first + 1).clip(max=tiles - 1), place - first.astype(np.float32)
