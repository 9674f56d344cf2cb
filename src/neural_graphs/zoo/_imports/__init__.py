"""Importing networks that others made: published zoos and folders of checkpoints. Nothing in their files is executed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation
from neural_graphs.zoo._imports._dws import Dws
from neural_graphs.zoo._imports._folder import Folder
from neural_graphs.zoo._imports._inr import InrOptions
from neural_graphs.zoo._imports._model_zoos import ModelZoos
from neural_graphs.zoo._imports._nfn import Nfn
from neural_graphs.zoo._imports._small_cnn import SmallCnnZoo
from neural_graphs.zoo._imports._source import Source, image_source
from neural_graphs.zoo._imports._stacked import WEIGHTS, Stacked
from neural_graphs.zoo._imports._wild_park import WildPark
from neural_graphs.zoo._imports._write import write_zoo
from neural_graphs.zoo._store import Zoo

KINDS = ("auto", "stacked", "dws", "nfn", "small-cnn-zoo", "wild-park", "model-zoos", "folder")
STEPS = ("last", "all")
_TAKES = {  # options that only some kinds know
    "recipe": ("stacked", "dws", "nfn"),
    "shift": ("stacked", "dws", "nfn"),
    "activation": ("stacked", "dws", "nfn", "small-cnn-zoo", "folder"),
    "steps": ("small-cnn-zoo", "wild-park", "model-zoos"),
    "split_file": ("dws", "small-cnn-zoo", "wild-park"),
    "split_order": ("small-cnn-zoo",),
    "splits": ("small-cnn-zoo", "wild-park", "model-zoos", "folder"),
}


def import_zoo(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    kind: str = "auto",
    recipe: str | None = None,
    activation: str | None = None,
    shift: float | None = None,
    images: str | None = None,
    seed: int = 0,
    steps: str | None = None,
    splits: Sequence[float] | None = None,
    split_file: str | os.PathLike[str] | None = None,
    split_order: str | None = None,
) -> Zoo:
    """Copy networks made elsewhere into a zoo. Nothing in the files is executed, and memory does not grow with them.

    ``kind``:

    - ``"stacked"``: a folder with ``weights.safetensors`` (tensors ``[N, *shape]``, torch layout) and
      ``networks.parquet`` with one row per network, in order or with a column ``row``; a column ``split`` holds train, val
      or test, all other columns are kept.
    - ``"dws"``: a folder of the INR corpora of Navon et al. 2023, extracted: MNIST's
      ``mnist_png_{training,testing}_<label>_<id>/checkpoints/*.pth`` or Fashion-MNIST's ``{train,test}/model_<id>.pth``. One
      in twelve training networks becomes val, drawn with ``seed``, or ``split_file`` is the published list.
    - ``"nfn"``: INRs of Zhou et al. 2023, ``randinit_smaller_<class>s/net<image>.pth``, in the published splits.
    - ``"small-cnn-zoo"``: Unterthiner et al. 2020, ``weights.npy``, ``metrics.csv.gz`` and ``layout.csv``; ``split_file`` is
      NFN's list of indices.
    - ``"wild-park"``: Kofinas et al. 2024, ``<run>/checkpoint_<step>/checkpoint.pt``; ``split_file`` is its JSON of splits.
    - ``"model-zoos"``: Schuerholt et al. 2022, runs of Ray Tune with ``params.json``, ``result.json`` and
      ``checkpoint_<epoch>/checkpoints``.
    - ``"folder"``: checkpoints (``.pt``, ``.pth``, ``.safetensors``) and a CSV file with columns ``file`` and
      ``test_accuracy``; also ``split``, ``run`` and ``activation``.
    - ``"auto"``: stacked or dws, whichever is found.

    Networks that are truncated, hostile, of another architecture, hold NaN, have no accuracy or one outside [0, 1] are
    skipped, and of exact copies only the first is kept: each with a line on stderr and in ``skipped.txt``, and counted in
    ``zoo.meta["skipped"]`` and ``["copies"]``.

    Args:
        path: folder to read; for ``"folder"`` the CSV file, or a folder that holds one alone.
        out: folder to write, ``<name of path>-zoo`` in the working directory by default. A finished import of the same
            folder is opened as it is, an unfinished one starts over.
        kind: see above.
        recipe: how INRs were fitted (dws, nfn); gives ``activation``, ``shift`` and the range of the pixels.
        activation: hidden non-linearity, in place of the recipe's or of that which the files state.
        shift: constant added to an INR's output, in place of the recipe's.
        images: name of the image source, guessed from the files or the folder's name by default.
        seed: for the choice of val networks, or of the runs in each split.
        steps: ``"last"`` or ``"all"`` checkpoints of a run; by default all of the wild park, the last of the others.
        splits: shares of runs for training, validation and test, (0.8, 0.1, 0.1) by default; checkpoints of one run stay
            together.
        split_file: published splits, in place of drawn ones.
        split_order: ``"published"`` (default) or ``"clean"``: whether the header of NFN's list counts as an index.

    Raises:
        UserError: nothing to import, files that do not fit together, or not one network that can be read.
        RunError: the disk is full or not writable.
    """
    folder = Path(path)
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if not folder.is_dir() and not (kind == "folder" and folder.is_file()):
        raise UserError(f"{folder} is no folder")
    if kind == "auto":
        kind = "stacked" if (folder / WEIGHTS).is_file() else "dws"
    given = {
        "recipe": recipe, "shift": shift, "activation": activation, "steps": steps, "split_file": split_file,
        "split_order": split_order, "splits": splits,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and kind not in _TAKES[name]:
            raise UserError(f"{name} means nothing for {kind}: it is for {', '.join(_TAKES[name])}")
    if steps not in (None, *STEPS):
        raise UserError(f"unknown steps {steps!r}: choose last or all")
    if activation is not None:
        Activation.parse(activation)
    if images is not None:
        image_source(images)
    source = _open(folder, kind, given, images, seed)
    target = Path(out) if out is not None else Path(f"{folder.resolve().name}-zoo")
    name = folder.resolve().name
    request = {"import": name, "kind": kind, **source.request, "seed": seed}
    if split_file is not None:
        request["split_file"] = Path(split_file).name
    return write_zoo(source, target, {"name": name, **source.meta, "request": request})


def _open(folder: Path, kind: str, given: dict[str, Any], images: str | None, seed: int) -> Source:
    shares = tuple(given["splits"] or (0.8, 0.1, 0.1))
    split_file = Path(given["split_file"]) if given["split_file"] is not None else None
    if kind in ("stacked", "dws", "nfn"):
        recipe = given["recipe"] or ("nfn" if kind == "nfn" else "dws")
        options = InrOptions.of(recipe, given["activation"], given["shift"], images)
        if kind == "stacked":
            return Stacked(folder, options)
        return Nfn(folder, options) if kind == "nfn" else Dws(folder, options, seed, split_file)
    if kind == "small-cnn-zoo":
        steps, order = given["steps"] or "last", given["split_order"] or "published"
        return SmallCnnZoo(folder, images, given["activation"], steps, shares, seed, split_file, order)
    if kind == "wild-park":
        return WildPark(folder, images, given["steps"] or "all", shares, seed, split_file)
    if kind == "model-zoos":
        return ModelZoos(folder, images, given["steps"] or "last", shares, seed)
    return Folder(folder, images, given["activation"], shares, seed)
