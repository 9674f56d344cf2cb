"""From INRs back to images, and the contact sheet of a zoo."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from neural_graphs._io import atomic_write
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import render as draw
from neural_graphs.zoo._store import Indices, Zoo, ZooSplit
from neural_graphs.zoo.images import load_images

BATCH = 1024  # networks read at once


def render(
    networks: ZooSplit,
    indices: Indices = None,
    height: int | None = None,
    width: int | None = None,
) -> np.ndarray:
    """Images that INRs represent: float32 ``[n, height, width, channels]``, 0 black to 1 white, not clipped.

    By default at the resolution at which they were fitted.

    Raises:
        UserError: the zoo does not say the resolution and none is given, or its networks are no functions of two
            coordinates or have different numbers of outputs.
    """
    source = networks.zoo.meta.get("source", {})
    height, width = height or source.get("height"), width or source.get("width")
    if not height or not width:
        raise UserError(f"{networks.zoo.path} does not say at which resolution to render: give height and width")
    low, high = networks.zoo.meta.get("recipe", {}).get("pixel_range", (0.0, 1.0))
    chosen = networks.select(indices)
    images = np.empty((0, height, width, 1), np.float32)
    for start in range(0, len(chosen), BATCH):
        with torch.no_grad():
            drawn = draw(chosen.batch(slice(start, start + BATCH)), height, width, (low, high)).numpy()
        if not start:
            images = np.empty((len(chosen), *drawn.shape[1:]), np.float32)
        if drawn.shape[1:] != images.shape[1:]:
            raise UserError(f"the networks of {networks.zoo.path} have different numbers of outputs: render them apart")
        images[start : start + BATCH] = drawn
    return images


def original_images(networks: ZooSplit) -> np.ndarray | None:
    """The images that these INRs were fitted to, float32 ``[n, H, W, C]`` in [0, 1]; None where they are not at hand.

    Looks in local folders only; never downloads.
    """
    name = networks.zoo.meta.get("source", {}).get("images")
    if name is None or not {"image", "source_split"} <= set(networks.zoo.table.column_names):
        return None
    split_of, image_of = networks.column("source_split").astype(str), networks.column("image")
    found: np.ndarray | None = None
    for split in np.unique(split_of):
        try:
            images = load_images(name, str(split), download=False)
        except (UserError, RunError):
            return None
        mine = np.flatnonzero(split_of == split)
        if image_of[mine].max() >= len(images):
            return None
        if found is None:
            found = np.empty((len(networks), *images.image_shape), np.float32)
        picked = images.images[image_of[mine]].reshape(len(mine), *images.image_shape)
        found[mine] = picked.astype(np.float32) / images.max_value
    return found


def contact_sheet(zoo: Zoo, path: str | os.PathLike[str], per_class: int = 8, seed: int = 0) -> Path:
    """Write a PNG of rendered INRs, one row per class, each to the left of its image where that is at hand.

    Raises:
        UserError: as in ``render``.
        RunError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks, rows = _examples(zoo, per_class, seed)
    rendered, originals = np.clip(render(networks), 0, 1), original_images(networks)
    if originals is not None and originals.shape != rendered.shape:
        originals = None
    tiles = [rendered] if originals is None else [rendered, originals]
    _, height, width, channels = rendered.shape
    gap = max(1, width // 14)
    cell_width = len(tiles) * width + gap * len(tiles)
    sheet = np.ones((len(rows) * (height + gap) + gap, per_class * cell_width + gap, channels), np.float32)
    position = 0
    for row, (_, members) in enumerate(rows):
        top = gap + row * (height + gap)
        for column in range(members):
            left = gap + column * cell_width
            for part, tile in enumerate(tiles):
                x = left + part * (width + gap // 2)
                sheet[top : top + height, x : x + width] = tile[position]
            position += 1

    aspect = sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(8, 8 * aspect + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([gap + row * (height + gap) + height / 2 for row in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    pair = "INRs" if originals is None else "INRs (left of each pair) and the images they were fitted to"
    axes.set_title(f"{zoo.meta.get('name', zoo.path.name)}: {pair}", fontsize=9)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(os.fspath(temporary))
    return Path(path)


def _examples(zoo: Zoo, per_class: int, seed: int) -> tuple[ZooSplit, list[tuple[str, int]]]:
    """Random networks sorted by class, of the test split where it has some, and (class name, how many) per row."""
    split = next((part for part in (zoo.test, zoo.val, zoo.train) if len(part)), zoo.all)
    rng = np.random.default_rng(seed)
    if "label" not in zoo.table.column_names:
        picked = rng.permutation(len(split))[: per_class * 8]
        counts = [len(part) for part in np.array_split(picked, max(1, -(-len(picked) // per_class)))]
        return split.select(picked), [("", count) for count in counts]
    labels = split.labels().numpy()
    names = zoo.meta.get("source", {}).get("classes") or []
    chosen, rows = [], []
    for kind in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == kind))[:per_class]
        chosen.append(members)
        rows.append((names[kind] if kind < len(names) else str(kind), len(members)))
    return split.select(np.concatenate(chosen)), rows
