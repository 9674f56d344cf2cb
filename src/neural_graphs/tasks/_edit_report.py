"""What is said of an editor on a split of a zoo."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo._image_metrics import mse, psnr, ssim
from neural_graphs.zoo._store import ZooSplit


def edit_report(model: Editor, split: ZooSplit, source: str = "image", refit: bool = True) -> dict[str, Any]:
    """Errors of the edited networks' images against the edited images, and of the networks as they are."""
    wanted = edit_targets(split, model.edits, source)
    before = model.render(split, model.edits[0], 0.0).numpy()
    per_edit: dict[str, Any] = {}
    begun = time.perf_counter()
    for edit in model.edits:
        model.edit(split, edit)
    seconds = (time.perf_counter() - begun) / (len(split) * len(model.edits))
    for style, edit in enumerate(model.edits):
        target = wanted[style].numpy()
        per_edit[edit] = {**_figures(model.render(split, edit).numpy(), target), "no_edit": _figures(before, target)}
    means = {key: float(np.mean([entry[key] for entry in per_edit.values()])) for key in ("mse", "psnr", "ssim")}
    return {**means, "per_edit": per_edit, "seconds_per_network": seconds, "n": len(split)}


def _figures(images: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {
        name: float(metric(images, target).mean()) for name, metric in (("mse", mse), ("psnr", psnr), ("ssim", ssim))
    }
