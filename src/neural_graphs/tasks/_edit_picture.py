"""The picture of one edit: images side by side with captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PANEL = 256
"""Pixels that an image is magnified to, by a whole number."""

_PAPER, _INK, _DIM, _LINE = (255, 255, 255), (29, 35, 48), (102, 108, 122), (201, 201, 195)


@dataclass(frozen=True)
class Panel:
    """An image, float ``[H, W, C]`` with black 0 and white 1, its name and a line about it."""

    title: str
    detail: str
    image: np.ndarray


def draw(panels: Sequence[Panel]) -> Image.Image:
    """Images side by side, each under its title and over its detail.

    Small images are magnified so that every pixel becomes a square, those smaller than the largest to its size; values are
    clipped to [0, 1].

    Raises:
        UserError: images of colours that are neither grey nor red, green and blue.
    """
    from PIL import Image, ImageDraw, ImageFont

    if any(panel.image.shape[2] not in (1, 3) for panel in panels):
        raise UserError(
            f"an image of {panels[0].image.shape[2]} colours cannot be drawn, only of 1 (grey) or 3: leave the picture out"
        )
    largest = max(max(panel.image.shape[:2]) for panel in panels)
    height = max(panel.image.shape[0] * _times(panel, largest) for panel in panels)
    size = max(15, max(largest, PANEL) // 20)
    font, small = ImageFont.load_default(size), ImageFont.load_default(size * 5 / 6)
    gap, line = size, round(1.6 * size)
    widths = [
        max(panel.image.shape[1] * _times(panel, largest), font.getlength(panel.title), small.getlength(panel.detail))
        for panel in panels
    ]
    sheet = Image.new("RGB", (round(sum(widths)) + gap * (len(panels) + 1), height + 2 * line + 2 * gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = float(gap)
    for panel, width in zip(panels, widths, strict=True):
        tile = Image.fromarray(_pixels(panel, _times(panel, largest)))
        middle, top = left + width / 2, gap + line
        corner = (round(middle - tile.width / 2), top)
        draw.text((middle, gap), panel.title, _INK, font, anchor="ma")
        sheet.paste(tile, corner)
        draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + tile.width, corner[1] + tile.height), outline=_LINE)
        draw.text((middle, top + height + line // 3), panel.detail, _DIM, small, anchor="ma")
        left += width + gap
    return sheet


def save(sheet: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG, the same bytes for the same picture. Raises ``RunError`` when it cannot be written."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _times(panel: Panel, largest: int) -> int:
    """How many pixels of the picture one of the panel's is wide."""
    return max(1, max(largest, PANEL) // max(panel.image.shape[:2]))


def _pixels(panel: Panel, times: int) -> np.ndarray:
    """uint8 ``[h, w, 3]``."""
    values = np.rint(np.clip(panel.image, 0, 1) * 255).astype(np.uint8)
    values = values.repeat(times, 0).repeat(times, 1)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
