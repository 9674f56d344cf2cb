"""The CNN Wild Park of Kofinas et al. 2024: CNNs of many architectures, each checkpoint with its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.zoo._imports._inert import Checkpoint, plain
from neural_graphs.zoo._imports._source import (
    Network,
    Part,
    activations_of,
    classifier_meta,
    guess_images,
    number,
    one_by_one,
    split_by_run,
    state_of,
    walk,
)
from neural_graphs.zoo._store import SPLITS

FILE = "checkpoint.pt"
_FOLDER = re.compile(r"checkpoint_(?P<step>\d+)$")


class WildPark:
    """``<zoo>/<run>/checkpoint_<step>/checkpoint.pt``, each a dictionary with ``model`` (a state dict), ``config``,
    ``last_result`` (``test/acc``, ``test/loss``) and ``iteration``.

    Splits are drawn by run with ``seed``, or are those of ``split_file``: ``{"train"|"val"|"test": {"path": [...]}}``.
    ``steps`` ``"last"`` keeps the last checkpoint of each run.
    """

    def __init__(
        self,
        folder: Path,
        images: str | None,
        steps: str,
        shares: Sequence[float],
        seed: int,
        split_file: Path | None,
    ) -> None:
        self.where = str(folder)
        files = [
            (path, int(match["step"])) for path in walk(folder, FILE) if (match := _FOLDER.match(path.parent.name))
        ]
        if not files:
            raise UserError(f"{folder} holds no wild park: there are no files like <run>/checkpoint_000010/{FILE}")
        runs = sorted({path.parent.parent for path, _ in files})
        run_of = {run: i for i, run in enumerate(runs)}
        if steps == "last":
            newest = {path.parent.parent: (path, step) for path, step in sorted(files, key=lambda file: file[1])}
            files = [newest[run] for run in runs]
        split: dict[Path, str] = {}
        if split_file is not None:
            listed = _read_splits(split_file)
            split = {path: listed[_key(path)] for path, _ in files if _key(path) in listed}
            files = [(path, step) for path, step in files if path in split]
            if not files:
                raise UserError(f"{split_file} names none of the checkpoints in {folder}: is it that of another zoo?")
        else:
            drawn = split_by_run(len(runs), shares, seed)
            split = {path: str(drawn[run_of[path.parent.parent]]) for path, _ in files}
        self.files = [(path, step, run_of[path.parent.parent], split[path]) for path, step in files]
        self.images = images or guess_images(" ".join(files[0][0].resolve().parts[-5:-3])) or "cifar10"
        self.meta = classifier_meta(folder, "wild-park", self.images)
        self.request: dict[str, Any] = {"steps": steps, "split": "file" if split_file else list(shares)}

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, size: int) -> Iterator[Part]:
        return one_by_one((self._read(*file) for file in self.files), size)

    def _read(self, path: Path, step: int, run: int, split: str) -> Network | str:
        try:
            checkpoint = Checkpoint(path)
            content = checkpoint.content
            if not isinstance(content, Mapping):
                raise UserError(f"{path} holds no dictionary with model, config and last_result")
            stack = stack_of_config(content.get("config"), path)
            state = state_of(_in_order(checkpoint.state_dict("model")), stack, path)
        except UserError as error:
            return str(error)
        result = content.get("last_result")
        result = result if isinstance(result, Mapping) else {}
        iteration = number(content.get("iteration"))
        row = {
            "split": split,
            "run": run,
            "epoch": iteration if np.isfinite(iteration) else float(step),
            "test_loss": number(result.get("test/loss")),
            "test_accuracy": number(result.get("test/acc")),
            "activation": activations_of(stack),
            "images": self.images,
        }
        return stack, state, row, str(path)


def stack_of_config(config: Any, where: object) -> Stack:
    """The architecture that a ``CNNConfig`` describes: convolutions with residuals, global average pooling, a linear layer.

    ``config`` is a plain dictionary or a recorded instance. ``residual[i]`` is the layer whose values, after its activation,
    are added before the activation of layer i, on the channels that both have; -1 for none.

    Raises:
        UserError: a field is missing, of the wrong length, or describes no network.
    """
    try:
        data = plain(config)
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"{where} holds no config that describes the network")
    lists: dict[str, list[Any]] = {}
    for name in ("channels", "kernel_size", "stride", "padding", "residual", "activation"):
        if not isinstance(data.get(name), list):
            raise UserError(f"{where}: its config has no list called {name}")
        lists[name] = data[name]
    depth = len(lists["channels"]) - 1
    kinds: dict[str, type] = {"activation": str}
    for name, values in lists.items():
        if len(values) != depth + (name == "channels") or depth < 1:
            raise UserError(f"{where}: {name} of its config has {len(values)} entries for {depth} layers")
        if not all(type(value) is kinds.get(name, int) for value in values):
            raise UserError(f"{where}: {name} of its config is {str(values)[:100]}")
    classes = data.get("n_classes")
    if type(classes) is not int or min(classes, *lists["channels"], *lists["kernel_size"], *lists["stride"]) < 1:
        raise UserError(f"{where}: its config has sizes that are not positive")
    try:
        layers = [
            Layer(
                f"conv{i}",
                lists["channels"][i],
                lists["channels"][i + 1],
                (lists["kernel_size"][i],) * 2,
                activation=Activation.parse(lists["activation"][i]),
                stride=lists["stride"][i],
                padding=lists["padding"][i],
                pool="global" if i == depth - 1 else "",
                residual=max(lists["residual"][i], -1),
            )
            for i in range(depth)
        ]
        return Stack((*layers, Layer("head", lists["channels"][-1], classes)))
    except UserError as error:
        raise UserError(f"{where}: its config describes no network: {error}") from None


def _in_order(state: dict[str, Any]) -> dict[str, Any]:
    """Convolutions by number, then the linear layer, each weight before its bias."""

    def place(name: str) -> tuple[int, bool]:
        match = re.search(r"layers\.(\d+)\.", name)
        return (int(match[1]) if match else len(state), name.endswith("bias"))

    return {name: state[name] for name in sorted(state, key=place)}


def _key(path: Path) -> tuple[str, str]:
    """Run and checkpoint: what stays the same wherever the zoo lies."""
    return path.parent.parent.name, path.parent.name


def _read_splits(path: Path) -> dict[tuple[str, str], str]:
    content = read_json(path)
    if not isinstance(content, dict) or not set(SPLITS) <= content.keys():
        raise UserError(f"{path} is no split file: it must hold train, val and test")
    found: dict[tuple[str, str], str] = {}
    run_split: dict[str, str] = {}
    for split in SPLITS:
        paths = content[split].get("path") if isinstance(content[split], dict) else None
        if not isinstance(paths, list):
            raise UserError(f"{path} is no split file: {split} must hold a list called path")
        for text in paths:
            key = _key(Path(str(text)))
            if run_split.setdefault(key[0], split) != split:
                raise UserError(
                    f"{path} puts checkpoints of run {key[0]} in {run_split[key[0]]} and in {split}: one run, one split"
                )
            found[key] = split
    return found
