"""Making zoos of image classifiers, many trained at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs._memory import keep_buffers
from neural_graphs._progress import progress
from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.graph._convolution import map_sizes
from neural_graphs.zoo._bulk import Checkpoint, Course, Run, TrainingImages, train_chunk
from neural_graphs.zoo._classifier_recipes import ClassifierRecipe, assign_splits, find_classifier_recipe
from neural_graphs.zoo._make import check_device
from neural_graphs.zoo._store import Zoo
from neural_graphs.zoo._writer import ZooWriter, shard_name
from neural_graphs.zoo.images import ImageSet, load_images

if TYPE_CHECKING:
    from neural_graphs.graph import Architecture


def make_cnn_zoo(
    out: str | os.PathLike[str],
    recipe: str = "small-cnn-zoo",
    images: str | tuple[ImageSet, ImageSet] | None = None,
    size: int = 1000,
    epochs: int | None = None,
    checkpoints: Sequence[int] | None = None,
    batch_size: int | None = None,
    side: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
    splits: Sequence[float] = (0.7, 0.1, 0.2),
    chunk: int | None = None,
    precision: str = "fp32",
    data_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "cpu",
) -> Zoo:
    """Train classifiers by a recipe and store them as a zoo; goes on where an earlier call with the same arguments was
    broken off.

    What a network becomes follows from ``seed`` and its number, not from ``size``, ``workers`` or where the work was
    interrupted; on the same machine at the same ``chunk`` bit for bit. A row per network and checkpoint: ``run``, ``epoch``,
    losses and accuracies, ``diverged``, and the hyper-parameters. All checkpoints of a run stand in one split.

    Args:
        out: folder to write.
        recipe: ``"small-cnn-zoo"`` (Unterthiner et al. 2020), ``"wild-park"`` (Kofinas et al. 2024) or ``"transformer"``.
        images: a name that ``load_images`` knows, or training and test set of your own; the recipe's by default.
        size: number of runs.
        epochs: passes over the training images; by default the recipe's.
        checkpoints: epochs after which networks are kept; by default the recipe's, or the last where ``epochs`` is given.
        batch_size: images per step.
        side: average images down to ``side x side``, a divisor of their size; 0: as they are. By default the largest that is
            not above the recipe's.
        train_images: use so many training images only.
        test_images: measure test (and training) figures on so many images.
        seed: non-negative.
        splits: shares of the runs: train, val, test.
        chunk: networks trained at once.
        precision: of training, ``"fp32"`` or ``"bf16"`` (automatic mixed precision).
        data_dir: where to look for image files first.
        workers: chunks trained side by side, one thread each; by default one per core.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: impossible arguments; ``out`` holds something else, or a zoo made with other arguments.
        RunError: the disk is full or a download failed. Finished chunks are safe.
        KeyboardInterrupt: with a message that says how to go on. Finished chunks are safe.
    """
    name = images[0].name if isinstance(images, tuple) else images
    chosen = _settings(find_classifier_recipe(recipe), name, epochs, checkpoints, batch_size, side, chunk)
    if seed < 0:
        raise UserError(f"seed {seed}: give 0 or more")
    if size < 1 or (workers is not None and workers < 1):
        raise UserError(f"size {size}, workers {workers}: both must be positive")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r}: choose fp32 or bf16")
    check_device(device)
    keep_buffers()
    folder = None if data_dir is None else os.fspath(data_dir)
    given = (
        images if isinstance(images, tuple) else tuple(load_images(chosen.images, s, folder) for s in ("train", "test"))
    )
    sources = [_first(part, count) for part, count in zip(given, (train_images, test_images), strict=True)]
    if side is None:
        chosen = replace(chosen, side=_side(chosen.side, sources[0]))
    data = prepare_images(sources[0], sources[1], chosen.side).to(device)
    channels, height, width = data.train.shape[1:]
    runs = chosen.runs(seed, size, (channels, height, width), len(sources[0].class_names))
    _check(runs, data, chosen)
    split = assign_splits(size, chosen.shared_shape, splits, seed)
    work = Work(
        runs, split, chosen, Course(chosen.epochs, chosen.checkpoints, chosen.batch_size, seed, precision), seed
    )
    with ZooWriter(out, work.architectures, _describe(work, sources, splits, data)) as writer:
        if writer.complete:
            return Zoo.load(out)
        try:
            _train_missing(writer, work, data, workers or os.cpu_count() or 1, device)
            return writer.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {len(writer) // len(chosen.checkpoints)} of {size} runs are safe in {Path(out)}; "
                "run the same command again to go on"
            ) from None


def prepare_images(train: ImageSet, test: ImageSet, side: int = 0) -> TrainingImages:
    """Both sets as float32 ``[N, c, h, w]`` with mean 0 and standard deviation 1 per channel over the training images.

    ``side`` averages square patches down to ``side x side``. Raises ``UserError`` where that does not divide the size.
    """
    height, width, _ = train.image_shape
    if side and (height % side or width % side or height // side != width // side):
        raise UserError(f"side {side}: {train.name} images are {height}x{width}, give a divisor of that size")
    found = []
    for images in (train, test):
        x = torch.from_numpy(images.as_float()).permute(0, 3, 1, 2)
        found.append(F.avg_pool2d(x, height // side) if side and side != height else x)
    mean = found[0].mean((0, 2, 3), keepdim=True)
    std = found[0].std((0, 2, 3), keepdim=True)
    x, x_test = (((x - mean) / std).contiguous(memory_format=torch.channels_last) for x in found)
    return TrainingImages(x, torch.from_numpy(train.labels), x_test, torch.from_numpy(test.labels))


@dataclass(frozen=True, eq=False)
class Work:
    """All runs of a zoo, their splits, and how they are trained."""

    runs: Sequence[Run]
    split: np.ndarray
    recipe: ClassifierRecipe
    course: Course
    seed: int

    @cached_property
    def ids(self) -> dict[Architecture, str]:
        """Architecture -> its name in the zoo."""
        found: dict[Architecture, str] = {}
        for run in self.runs:
            found.setdefault(run.architecture, f"a{len(found)}")
        return found

    @property
    def architectures(self) -> dict[str, Architecture]:
        return {name: architecture for architecture, name in self.ids.items()}

    def chunks(self) -> Iterator[tuple[int, list[Run]]]:
        """Runs that are trained together, and a number for each such group."""
        yield from enumerate(self.recipe.chunks(self.runs))

    def shards(self, number: int, runs: Sequence[Run]) -> dict[str, list[int]]:
        """Shard name -> positions in the chunk, one shard per architecture."""
        found: dict[str, list[int]] = {}
        for place, run in enumerate(runs):
            found.setdefault(shard_name(self.ids[run.architecture], number), []).append(place)
        return found


def _settings(
    recipe: ClassifierRecipe,
    images: str | None,
    epochs: int | None,
    checkpoints: Sequence[int] | None,
    batch_size: int | None,
    side: int | None,
    chunk: int | None,
) -> ClassifierRecipe:
    kept = tuple(checkpoints) if checkpoints is not None else (epochs,) if epochs is not None else recipe.checkpoints
    given: dict[str, Any] = {"images": images, "epochs": epochs, "batch_size": batch_size, "side": side, "chunk": chunk}
    chosen = replace(recipe, **{k: v for k, v in given.items() if v is not None}, checkpoints=kept)
    if list(kept) != sorted(set(kept)) or not kept or kept[0] < 1 or kept[-1] != chosen.epochs:
        raise UserError(f"checkpoints {kept}: give ascending epochs of which the last is {chosen.epochs}, as in 1,2,4")
    if min(chosen.epochs, chosen.batch_size, chosen.chunk) < 1 or chosen.side < 0:
        raise UserError("epochs, batch size and chunk must be positive, side not negative")
    return chosen


def _side(most: int, images: ImageSet) -> int:
    """The largest size of at most ``most`` pixels that square images can be averaged down to; 0 where that is their own."""
    height, width, _ = images.image_shape
    if not most or height != width or height <= most:
        return 0
    return max(side for side in range(1, most + 1) if height % side == 0)


def _first(images: ImageSet, count: int | None) -> ImageSet:
    """The first ``count`` images (sources are shuffled); all, if None."""
    if count is None or count == len(images):
        return images
    if not 0 < count <= len(images):
        raise UserError(f"{images.name} has {len(images)} {images.split} images, not {count}")
    return replace(images, images=images.images[:count], labels=images.labels[:count])


def _check(runs: Sequence[Run], data: TrainingImages, recipe: ClassifierRecipe) -> None:
    """Raise ``UserError`` where images are too small, or too few for a single step."""
    smallest = min(run.hyper.train_fraction for run in runs)
    if round(len(data.train) * smallest) < recipe.batch_size:
        raise UserError(
            f"batch size {recipe.batch_size}: some networks see {smallest:g} of {len(data.train)} training images, "
            "fewer than that: give a smaller one or more images"
        )
    for architecture in dict.fromkeys(run.architecture for run in runs):
        if isinstance(architecture, Stack):
            channels, height, width = data.train.shape[1:]
            map_sizes(architecture, (channels, height, width))
        else:
            architecture.parameter_shapes()  # modules are recorded here: two threads cannot do that at once


def _describe(work: Work, sources: Sequence[ImageSet], splits: Sequence[float], data: TrainingImages) -> dict[str, Any]:
    recipe, first = work.recipe, sources[0]
    channels, height, width = data.train.shape[1:]
    about = {
        "name": recipe.name,
        "epochs": recipe.epochs,
        "checkpoints": list(recipe.checkpoints),
        "batch_size": recipe.batch_size,
        "precision": work.course.precision,
        "side": recipe.side,
        "train_images": len(data.train),
        "test_images": len(data.test),
    }
    source = {"images": first.name, "height": height, "width": width, "channels": channels}
    return {
        "name": f"{first.name}-{recipe.name}",
        "recipe": about,
        "seed": work.seed,
        "networks": len(work.runs) * len(recipe.checkpoints),
        "source": source
        | {"classes": list(first.class_names), "files": [images.source for images in sources], "note": first.note},
        "request": {**about, **source, "runs": len(work.runs), "seed": work.seed, "splits": list(splits)}
        | {"chunk": recipe.chunk},
    }


def _train_missing(writer: ZooWriter, work: Work, data: TrainingImages, workers: int, device: str) -> None:
    done = writer.done
    missing = [(n, runs) for n, runs in work.chunks() if not set(work.shards(n, runs)) <= done]
    size = work.course.batch_size
    visits = [
        work.course.epochs * size * len(runs) * (round(len(data.train) * runs[0].hyper.train_fraction) // size)
        for _, runs in missing
    ]
    stop, lock, begun, visited = threading.Event(), threading.Lock(), time.monotonic(), 0
    # Long chunks first, so that no worker ends with one while the others wait.
    order = sorted(range(len(missing)), key=lambda i: -visits[i] * missing[i][1][0].architecture.num_parameters)
    with progress("training networks", sum(visits)) as bar:

        def advance(count: int) -> None:
            nonlocal visited
            with lock:
                visited += count
                rate = visited / len(data.train) / (time.monotonic() - begun)
                bar.describe(f"training networks ({rate:.2f} network-epochs/s)")
                bar.advance(count)

        def train(number: int, runs: list[Run]) -> tuple[int, list[Run], list[Checkpoint]]:
            torch.set_num_threads(1)
            start = [work.recipe.initial(run, work.seed) for run in runs]
            stacked = {name: torch.stack([state[name] for state in start]) for name in start[0]}
            return number, runs, list(train_chunk(runs, stacked, data, work.course, advance, stop))

        outside = torch.get_num_threads()
        with ThreadPoolExecutor(workers if torch.device(device).type == "cpu" else 1) as pool:
            waiting = [pool.submit(train, *missing[i]) for i in order]
            try:
                for future in as_completed(waiting):
                    _write(writer, work, *future.result())
            except BaseException:
                stop.set()
                for future in waiting:
                    future.cancel()
                wait(waiting)
                raise
            finally:
                torch.set_num_threads(outside)
    seconds = time.monotonic() - begun
    if visited:
        spent = writer.meta.get("training", {"seconds": 0.0, "image_visits": 0})
        seconds += spent["seconds"]
        total = {"seconds": round(seconds, 1), "image_visits": spent["image_visits"] + visited}
        rate = round(total["image_visits"] / len(data.train) / seconds, 3)
        writer.meta["training"] = {**total, "network_epochs_per_second": rate, "workers": workers, "device": device}


def _write(writer: ZooWriter, work: Work, number: int, runs: Sequence[Run], kept: Sequence[Checkpoint]) -> None:
    """A chunk's networks, one shard per architecture, checkpoints of a run side by side."""
    count = len(work.recipe.checkpoints)
    for name, places in work.shards(number, runs).items():
        if name in writer.done:
            continue
        rows = [(place, k) for place in places for k in range(count)]
        tensors: dict[str, Tensor] = {
            key: torch.stack([kept[k].params[key][place] for place, k in rows]) for key in kept[0].params
        }
        mine = [runs[place] for place, _ in rows]
        columns: dict[str, np.ndarray] = {
            "network": np.array([run.number * count + k for run, (_, k) in zip(mine, rows, strict=True)]),
            "split": work.split[[run.number for run in mine]],
            "run": np.array([run.number for run in mine]),
            "epoch": np.array([kept[k].epoch for _, k in rows], np.float32),
        }
        for column in kept[0].columns:
            columns[column] = np.array([kept[k].columns[column][place] for place, k in rows])
        about = [run.columns() for run in mine]
        for column, value in about[0].items():
            kind = object if isinstance(value, str) else np.float32
            columns[column] = np.array([entry[column] for entry in about], kind)
        columns["images"] = np.full(len(rows), work.recipe.images, dtype=object)
        writer.append(name.rpartition("-")[0], number, tensors, columns)
