"""Making zoos of implicit neural representations (INRs)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_graphs._progress import progress
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph._stack import Stack
from neural_graphs.zoo._inr import (
    FitOptions,
    check_fittable,
    compile_pays,
    fit_networks,
    initial_parameters,
    pixel_grid,
    psnr,
    worker_pool,
)
from neural_graphs.zoo._plan import Plan, make_plan
from neural_graphs.zoo._recipes import Recipe, diverse_stacks, find_recipe
from neural_graphs.zoo._store import Zoo
from neural_graphs.zoo._writer import ZooWriter, shard_name
from neural_graphs.zoo.images import ImageSet


def make_zoo(
    out: str | os.PathLike[str],
    images: str | ImageSet = "digits",
    recipe: str = "dws",
    size: int | None = None,
    views: int = 1,
    seed: int = 0,
    shard_size: int = 512,
    widths: Sequence[int] | None = None,
    activation: str | None = None,
    diverse: bool = False,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    data_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "cpu",
    steps: int | None = None,
    lr: float | None = None,
) -> Zoo:
    """Fit INRs to images and store them as a zoo; goes on where an earlier call with the same arguments was broken off.

    Initial weights and the order of images depend on ``seed`` and the choice of images alone, never on ``shard_size``,
    ``workers`` or where the work was interrupted; at the same ``shard_size`` on the same machine the fitted networks are
    bit-identical.

    Args:
        out: folder to write.
        images: a name that ``load_images`` knows, or an ``ImageSet`` of your own.
        recipe: ``"dws"`` (Navon et al. 2023) or ``"nfn"`` (Zhou et al. 2023); see ``Recipe``.
        size: number of images, all by default; the zoo has ``size * views`` networks.
        views: networks per image, each from its own initial weights; all in the image's split.
        seed: non-negative.
        shard_size: networks per file, and the most that a kill can lose.
        widths: sizes of the hidden layers in place of the recipe's (32, 32).
        activation: in place of the recipe's ``"sine:30"``.
        diverse: draw each network's architecture from ``diverse_stacks`` instead.
        splits: shares of train, val and test, or three numbers of images. Test images come from the source's test set.
        data_dir: where to look for image files first.
        workers: chunks of networks fitted side by side, one thread each; by default one per core.
        device: ``"cpu"`` or ``"cuda"``.
        steps: optimiser steps in place of the recipe's.
        lr: learning rate of Adam in place of the recipe's.

    Raises:
        UserError: impossible arguments; ``out`` holds something else, or a zoo made with other arguments.
        RunError: the disk is full or a download failed. Finished shards are safe.
        KeyboardInterrupt: with a message that says how to go on. Finished shards are safe.
    """
    if seed < 0 or shard_size < 1 or (workers is not None and workers < 1):
        raise UserError(f"seed {seed}, shard size {shard_size}, workers {workers}: the last two must be positive")
    check_device(device)
    if diverse and (widths is not None or activation is not None):
        raise UserError("a diverse zoo draws widths and activations itself: leave them out")
    chosen = find_recipe(recipe, widths, activation, steps, lr)
    plan = make_plan(images, size, splits, views, seed, None if data_dir is None else os.fspath(data_dir))
    height, width, channels = plan.sources[0].image_shape
    stacks = diverse_stacks(chosen, channels) if diverse else [chosen.stack(channels)]
    for stack in stacks:
        check_fittable(stack)
    architectures = {f"a{number}": stack for number, stack in enumerate(stacks)}
    meta = _describe(plan, chosen, architectures, diverse=diverse, views=views, seed=seed, shard_size=shard_size)
    pays = compile_pays(max(stacks, key=lambda stack: stack.num_parameters), height * width, len(plan), chosen.steps)
    options = FitOptions(chosen.steps, chosen.lr, device, workers, compile=pays)
    with ZooWriter(out, architectures, meta) as writer:
        try:
            _fit_missing(writer, plan, chosen, _assign(len(stacks), len(plan), seed), seed, shard_size, options)
            return writer.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {len(writer)} of {len(plan)} networks are safe in {Path(out)}; "
                "run the same command again to go on"
            ) from None


def check_device(device: str) -> None:
    """Raises ``UserError`` for a device that this machine or torch does not have."""
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}: use cpu or cuda") from None
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch sees no GPU here; use cpu")


def _describe(
    plan: Plan,
    recipe: Recipe,
    architectures: dict[str, Stack],
    *,
    diverse: bool,
    views: int,
    seed: int,
    shard_size: int,
) -> dict[str, Any]:
    first = plan.sources[0]
    height, width, channels = first.image_shape
    splits, counts = np.unique(plan.split.astype(str), return_counts=True)
    steps = asdict(recipe) | {"hidden": list(recipe.hidden), "pixel_range": list(recipe.pixel_range)}
    return {
        "name": f"{first.name}-inr-{recipe.name}" + ("-diverse" if diverse else ""),
        "recipe": steps | {"diverse": diverse},
        "seed": seed,
        "networks": len(plan),
        "source": {
            "images": first.name,
            "height": height,
            "width": width,
            "channels": channels,
            "classes": list(first.class_names),
            "files": [images.source for images in plan.sources],
            "note": first.note,
        },
        # What makes two calls the same work; compared before a half-made zoo is continued.
        "request": {
            "images": first.name,
            "recipe": steps,
            "views": views,
            "seed": seed,
            "shard_size": shard_size,
            "diverse": diverse,
            "architectures": [str(stack) for stack in architectures.values()],
            "splits": dict(zip(splits.tolist(), (counts // views).tolist(), strict=True)),
        },
    }


def _assign(architectures: int, networks: int, seed: int) -> np.ndarray:
    """Architecture of every network, uniform."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    return rng.integers(architectures, size=networks)


def _shards(architecture_of: np.ndarray, shard_size: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """(architecture, number, networks) of every shard, in the order of making.

    Shards of different architectures alternate, so that a zoo that is still being made already mixes them.
    """
    found = []
    for kind in np.unique(architecture_of):
        members = np.flatnonzero(architecture_of == kind)
        for number, start in enumerate(range(0, len(members), shard_size)):
            found.append((number, int(kind), members[start : start + shard_size]))
    for number, kind, networks in sorted(found, key=lambda shard: shard[:2]):
        yield f"a{kind}", number, networks


def _fit_missing(
    writer: ZooWriter,
    plan: Plan,
    recipe: Recipe,
    architecture_of: np.ndarray,
    seed: int,
    shard_size: int,
    options: FitOptions,
) -> None:
    height, width, _ = plan.sources[0].image_shape
    coords = pixel_grid(height, width)
    low, high = recipe.pixel_range
    done = writer.done
    missing = [shard for shard in _shards(architecture_of, shard_size) if shard_name(*shard[:2]) not in done]
    begun, fitted = time.monotonic(), 0
    with worker_pool(options) as pool, progress("fitting INRs", sum(len(shard[2]) for shard in missing)) as bar:

        def advance(count: int) -> None:
            nonlocal fitted
            fitted += count
            bar.describe(f"fitting INRs ({fitted / (time.monotonic() - begun):.1f} INR/s)")
            bar.advance(count)

        for architecture, number, networks in missing:
            stack = writer.architectures[architecture]
            assert isinstance(stack, Stack)
            pixels = torch.from_numpy(plan.pixels(networks)).flatten(1, 2).transpose(1, 2)
            targets = (low + (high - low) * pixels).contiguous()
            start = initial_parameters(stack, recipe.init, seed, networks)
            weights, errors = fit_networks(stack, start, coords, targets, options, advance, pool)
            if not bool(torch.isfinite(errors).all()):
                network = int(networks[int((~torch.isfinite(errors)).nonzero()[0, 0])])
                raise RunError(f"the fit of network {network} ({stack}) diverged: use a smaller learning rate")
            columns = plan.columns(networks) | {"psnr_db": psnr(errors, high - low).numpy()}
            writer.append(architecture, number, weights, columns)
