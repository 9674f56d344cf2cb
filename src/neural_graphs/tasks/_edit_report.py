"""What is said of an editor on a split of a zoo: how close it comes, how long it takes, and what else could be done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from neural_graphs.errors import UserError
from neural_graphs.tasks._data import by_architecture
from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._model import EVAL_BATCH
from neural_graphs.tasks._refit import Refit
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo._image_metrics import mse, psnr, ssim
from neural_graphs.zoo._render import render as draw
from neural_graphs.zoo._store import ZooSplit

REFITTED = 256
"""Networks that are fitted anew; of more, so many are drawn by lot with a fixed seed."""

FINER = 4
MOST_DB = 120.0  # PSNR of images that are equal
TIMED = 4  # batches
FIGURES = ("mse", "psnr", "ssim")


def edit_report(
    model: Editor, split: ZooSplit, source: str = "image", refit: bool = True, examples: int = 24
) -> dict[str, Any]:
    """How close the images of edited networks come to the edited images (``edit_targets``), beside two references.

    Returns ``mse`` (white is 1), ``psnr`` (dB), ``ssim`` (of images clipped to [0, 1]) and ``no_edit_mse``, means over
    networks and edits; ``n``; ``seconds_per_network`` as the function of this name; ``per_architecture`` (see
    ``by_architecture``); and ``per_edit``, for every edit:

    - ``mse``, ``psnr``, ``ssim``, and the same of the networks as they are (``no_edit``);
    - ``refit``: the networks themselves fitted to the edited images, from their own weights, for as many ``steps`` as the
      editor's time allows, at least one, at the better one of two learning rates (``lr``): ``mse``, ``psnr``, ``ssim``,
      ``seconds`` per network, ``n`` networks (at most ``REFITTED``), and ``editor_mse``, the editor's on these;
    - ``reach``: after how many ``steps`` and ``seconds`` per network that fitting is as good as the editor; None where 1,000
      steps are not enough.

    Both are None without ``refit``, and for networks that ``fit_networks`` cannot fit. ``gallery`` has, for every edit, the
    networks with the smallest, median and largest errors (``kind``), ``examples`` for all edits together, yet 3 of each at
    least: ``network`` numbers; ``mse``; images ``before``, ``target``, ``after``, ``finer`` (the edited network drawn
    ``FINER`` times finer) and ``refit`` (or None), float32 ``[m, H, W, C]``; and the ``curve`` of errors while fitting,
    pairs of seconds per network and mean error.

    Raises:
        UserError: as in ``edit_targets`` and ``Editor.edit``; networks of another range of pixels than the editor learned;
            a network, edited or not, that draws NaN.
    """
    _check_range(model, split)
    wanted = edit_targets(split, model.edits, source).numpy()
    height, width = wanted.shape[2:4]
    seconds = seconds_per_network(model, split)
    before = _finite(draw(split, None, height, width), split, "")
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:REFITTED])
    reference = _reference(split.select(rows), height, width, model) if refit else None
    per_step = reference.seconds_per_step() if reference else 1.0
    share = max(1, examples // (3 * len(model.edits)))
    per_edit: dict[str, Any] = {}
    gallery: dict[str, Any] = {}
    every: list[dict[str, np.ndarray]] = []
    for target, edit in zip(wanted, model.edits, strict=True):
        drawn = model.render(split, edit, height=height, width=width).numpy()
        after = _finite(drawn, split, f" after edit {edit}")
        errors = _figures(after, target)
        every.append(errors)
        found: dict[str, Any] = {
            **_means(errors),
            "no_edit": _means(_figures(before, target)),
            "refit": None,
            "reach": None,
        }
        kinds, chosen = _examples(errors["mse"], share)
        networks = split.select(chosen)
        shown = {
            "network": networks.column("network").tolist(),
            "kind": kinds,
            "mse": errors["mse"][chosen].tolist(),
            "before": before[chosen],
            "target": target[chosen],
            "after": after[chosen],
            "finer": model.render(networks, edit, height=FINER * height, width=FINER * width).numpy(),
            "refit": None,
            "curve": [],
        }
        if reference is not None:
            own = float(errors["mse"][rows].mean())
            found |= _compare(reference, target[rows], own, seconds, per_step, shown)
            best = found["refit"]
            again = _reference(networks, height, width, model)
            assert again is not None
            shown["refit"] = again.images(torch.from_numpy(target[chosen]), best["steps"], best["lr"])
        per_edit[edit], gallery[edit] = found, shown

    def figures(mask: np.ndarray) -> dict[str, float]:
        return {name: float(np.mean([errors[name][mask].mean() for errors in every])) for name in FIGURES}

    return {
        **figures(np.ones(len(split), bool)),
        "no_edit_mse": float(np.mean([entry["no_edit"]["mse"] for entry in per_edit.values()])),
        "seconds_per_network": seconds,
        "n": len(split),
        "per_edit": per_edit,
        "per_architecture": by_architecture(split, figures, model.architectures),
        "gallery": gallery,
    }


def seconds_per_network(model: Editor, split: ZooSplit) -> float:
    """The time that ``Editor.edit`` takes per network: encoding and editing, of networks that are in memory, in batches of
    ``EVAL_BATCH``, without rendering, on torch's present number of threads.

    That of the fastest of ``TIMED`` batches: other work on the machine is no time of the editor's.
    """
    found = []
    for number in range(max(1, min(TIMED, len(split) // EVAL_BATCH))):
        batch = split.batch(slice(number * EVAL_BATCH, (number + 1) * EVAL_BATCH))
        if not number:
            model.edit(batch, model.edits[0])  # what is done once is left out
        begun = time.perf_counter()
        model.edit(batch, model.edits[0])
        found.append((time.perf_counter() - begun) / len(batch))
    return min(found)


def _reference(split: ZooSplit, height: int, width: int, model: Editor) -> Refit | None:
    """None for networks that bulk fitting does not know."""
    try:
        return Refit(split, height, width, str(next(model.parameters()).device))
    except UserError:
        return None


def _compare(
    reference: Refit, target: np.ndarray, own: float, seconds: float, per_step: float, shown: dict[str, Any]
) -> dict[str, Any]:
    """``refit`` and ``reach`` for an editor with error ``own`` that takes ``seconds`` per network; the curve goes to
    ``shown``."""
    images, steps = torch.from_numpy(target), max(1, round(seconds / per_step))
    curves = reference.curves(images, own, steps)
    best = min(curves, key=lambda curve: float(curve.errors[steps]))
    refit = {
        **_means(_figures(reference.images(images, steps, best.lr), target)),
        "steps": steps,
        "lr": best.lr,
        "seconds": steps * per_step,
        "n": len(target),
        "editor_mse": own,
    }
    reached = [(count, curve) for curve in curves if (count := curve.steps_to(own)) is not None]
    count, shortest = min(reached, key=lambda pair: pair[0]) if reached else (None, best)
    shown["curve"] = [(step * per_step, float(error)) for step, error in enumerate(shortest.errors)]
    reach = None if count is None else {"steps": count, "seconds": count * per_step, "lr": shortest.lr}
    return {"refit": refit, "reach": reach}


def _check_range(model: Editor, split: ZooSplit) -> None:
    theirs = tuple((split.zoo.meta.get("recipe") or {}).get("pixel_range", (0.0, 1.0)))
    if theirs != model.pixel_range:
        raise UserError(
            f"the networks of {split.zoo.path} say {list(theirs)} for black and white, this editor learned from networks "
            f"that say {list(model.pixel_range)}: evaluate it on a zoo of the same recipe"
        )


def _finite(images: np.ndarray, split: ZooSplit, when: str) -> np.ndarray:
    fine = np.isfinite(images).all((1, 2, 3))
    if not fine.all():
        number = split.column("network")[int(fine.argmin())]
        raise UserError(f"network {number} of {split.zoo.path} draws NaN or infinite pixels{when}")
    return images


def _figures(images: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Float64 ``[n]`` each."""
    return {
        "mse": mse(images, target),
        "psnr": np.minimum(psnr(images, target), MOST_DB),
        "ssim": ssim(np.clip(images, 0, 1), target),
    }


def _means(figures: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in figures.items()}


def _examples(errors: np.ndarray, share: int) -> tuple[list[str], np.ndarray]:
    """``share`` networks each, or a third of all, with the smallest, the middle and the largest errors."""
    order = np.argsort(errors, kind="stable")
    share = max(1, min(share, len(order) // 3))
    first = (len(order) - share) // 2
    parts: Sequence[tuple[str, np.ndarray]] = (
        ("best", order[:share]),
        ("median", order[first : first + share]),
        ("worst", order[::-1][:share]),
    )
    return [kind for kind, _ in parts for _ in range(share)], np.concatenate([part for _, part in parts])
