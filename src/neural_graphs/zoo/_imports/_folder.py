"""A folder of anyone's checkpoints with a CSV file that says how well each network does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, stack_from_shapes
from neural_graphs.graph._files import read_state_dict, stated_architecture
from neural_graphs.zoo._imports._source import (
    Network,
    Part,
    activations_of,
    classifier_meta,
    floats,
    one_by_one,
    read_csv,
    refuse_percentages,
    split_by_run,
    texts,
)
from neural_graphs.zoo._store import SPLITS

FILES = ("file", "path")
SCORES = ("test_accuracy", "accuracy", "test_acc", "acc")
_OWN = {"network", "architecture", "shard", "row", "split", "run", "activation", "test_accuracy", *FILES}


class Folder:
    """A CSV file with a column ``file`` (or ``path``), relative to it, and one of test accuracies; the networks beside it.

    Columns ``split``, ``run`` (checkpoints of one run share a split) and ``activation`` are used where they are there; all
    others are kept. Networks are plain stacks recognised by their tensors' shapes: convolutions are taken as stride 1 with
    "same" padding. ``path`` is the CSV file, or the folder when it holds one alone.
    """

    def __init__(
        self, path: Path, images: str | None, activation: str | None, shares: Sequence[float], seed: int
    ) -> None:
        self.csv = path if path.is_file() else _sole_csv(path)
        self.where = str(self.csv)
        table = read_csv(self.csv)
        names = table.column_names
        file = next((name for name in FILES if name in names), None)
        score = next((name for name in SCORES if name in names), None)
        if file is None or score is None:
            wanted = "file (or path)" if file is None else f"test accuracies ({', '.join(SCORES)})"
            raise UserError(f"{self.csv} has no column of {wanted}: its columns are {', '.join(names)}")
        self.files = texts(table, file)
        self.activation = np.full(len(self.files), activation or "", dtype=object)
        if activation is None and "activation" in names:
            self.activation = texts(table, "activation")
        self.columns = {"test_accuracy": floats(table, score, self.csv)}
        refuse_percentages(self.csv, score, self.columns["test_accuracy"])
        for name in names:
            if name not in {*_OWN, file, score}:
                self.columns[name] = _column(table, name, self.csv)
        if images:
            self.columns["images"] = np.full(len(self.files), images, dtype=object)
        runs, run = np.unique(texts(table, "run") if "run" in names else self.files, return_inverse=True)
        self.columns["run"] = run.astype(np.int64)
        if "split" in names:
            self.split = texts(table, "split")
            if unknown := set(self.split) - set(SPLITS):
                raise UserError(f"{self.csv}: column split holds {sorted(unknown)[0]!r}; give train, val or test")
            for number in range(len(runs)):
                if len(found := set(self.split[run == number])) > 1:
                    raise UserError(
                        f"{self.csv}: run {runs[number]} is in {' and in '.join(sorted(found))}: one run, one split"
                    )
        else:
            self.split = split_by_run(len(runs), shares, seed)[run]
        self.meta = classifier_meta(self.csv.parent, "folder", images)
        self.request: dict[str, Any] = {"split": list(shares), "activation": activation}

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, size: int) -> Iterator[Part]:
        return one_by_one((self._read(i) for i in range(len(self.files))), size)

    def _read(self, place: int) -> Network | str:
        path = self.csv.parent / self.files[place]
        try:
            state = read_state_dict(path)
            stack = self._stack(
                path, {name: tuple(value.shape) for name, value in state.items()}, self.activation[place]
            )
            if bad := [name for name, value in state.items() if not value.is_floating_point()]:
                raise UserError(f"{path}: {bad[0]} does not hold floating point numbers")
        except UserError as error:
            return str(error)
        row = {name: value[place] for name, value in self.columns.items()}
        row |= {"split": self.split[place], "activation": activations_of(stack)}
        return stack, {name: state[name].float() for name in stack.parameter_shapes()}, row, str(path)

    @staticmethod
    def _stack(path: Path, shapes: dict[str, tuple[int, ...]], activation: str) -> Architecture:
        stated = stated_architecture(path)
        if stated is not None:
            if stated.parameter_shapes() != shapes:
                raise UserError(f"{path} holds other tensors than the architecture that it states")
            return stated
        try:
            return stack_from_shapes(shapes, activation or None)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _column(table: pa.Table, name: str, where: Path) -> np.ndarray:
    """Text, whole numbers as int64 where none is missing, other numbers as float32."""
    column = table[name]
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.cast(pa.int64()).to_numpy()
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return floats(table, name, where) if numeric else texts(table, name)


def _sole_csv(folder: Path) -> Path:
    found = sorted(folder.glob("*.csv")) + sorted(folder.glob("*.csv.gz"))
    if len(found) != 1:
        raise UserError(
            f"{folder} holds {len(found) or 'no'} CSV files: give the one that lists the networks as PATH"
            if found
            else f"{folder} holds no CSV file that lists the networks (columns file and test_accuracy)"
        )
    return found[0]
