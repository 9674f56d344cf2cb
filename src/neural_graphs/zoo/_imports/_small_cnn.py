"""The Small CNN Zoo of Unterthiner et al. 2020: one matrix of flattened weights, a table, and a layout of the columns.

Facts of the published files (``dnn_predict_accuracy``): Keras convolutions 3x3 with ``strides=2`` and Keras's default
``padding="valid"``, global average pooling, a dense layer; 9 checkpoints per run, the last at step 86.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.zoo._imports._source import (
    Part,
    classifier_meta,
    floats,
    guess_images,
    part_size,
    read_csv,
    refuse_percentages,
    split_by_run,
    texts,
)

WEIGHTS, METRICS, LAYOUT = "weights.npy", "metrics.csv.gz", "layout.csv"
STRIDE = 2
_NUMBERS = {
    "epoch": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_accuracy",
    "test_loss": "test_loss",
    "test_accuracy": "test_accuracy",
    "learning_rate": "config.learning_rate",
    "weight_decay": "config.l2reg",
    "dropout": "config.dropout",
    "init_scale": "config.init_std",
    "train_fraction": "config.train_fraction",
}
_TEXTS = {"optimizer": "config.optimizer", "init": "config.w_init", "activation": "config.activation"}


@dataclass(frozen=True)
class _Tensor:
    """Columns ``start`` to ``stop`` of the matrix: one tensor, in TensorFlow's order of axes."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def take(self, rows: np.ndarray) -> Tensor:
        """``[n, columns]`` -> ``[n, *shape]`` in PyTorch's order: kernels HWIO -> OIHW, dense (in, out) -> (out, in)."""
        value = torch.from_numpy(rows[:, self.start : self.stop].reshape(len(rows), *self.shape))
        if len(self.shape) == 4:
            return value.permute(0, 4, 3, 1, 2).contiguous()
        return value.transpose(1, 2).contiguous() if len(self.shape) == 2 else value.contiguous()


class SmallCnnZoo:
    """``weights.npy`` [n, 4970], ``metrics.csv.gz`` and ``layout.csv``.

    ``steps`` ``"last"`` keeps the final checkpoint of every run, ``"all"`` each. Splits are drawn by run (``modeldir``)
    with ``seed``, or are the published ones when ``split_file`` is NFN's list of indices: the final checkpoints in that
    order, the second half test, the first half shuffled by ``random.Random(0)`` and divided 80/20 into train and val. The
    published code reads the header of that file, ``0``, as one more index; ``split_order="published"`` does the same,
    ``"clean"`` leaves the header out. They differ where network 0 is a final checkpoint. With ``steps="all"`` earlier
    checkpoints follow the final one of their run.
    """

    def __init__(
        self,
        folder: Path,
        images: str | None,
        activation: str | None,
        steps: str,
        shares: Sequence[float],
        seed: int,
        split_file: Path | None,
        split_order: str,
    ) -> None:
        self.where = str(folder)
        self.path = folder / WEIGHTS
        count, width = _open_matrix(self.path).shape
        self.layout = read_layout(folder / LAYOUT, width)
        needed = ["step", "test_accuracy", "modeldir"] + ([] if activation else ["config.activation"])
        table = read_csv(folder / METRICS, needed)
        if table.num_rows != count:
            raise UserError(
                f"{folder / METRICS} has {table.num_rows} rows, but {WEIGHTS} holds {count} networks: "
                "the files do not belong together"
            )
        self.columns = {name: floats(table, column, folder / METRICS) for name, column in _NUMBERS.items()}
        for name in ("train_accuracy", "test_accuracy"):
            refuse_percentages(folder / METRICS, name, self.columns[name])
        for name, column in _TEXTS.items():
            if column in table.column_names:
                self.columns[name] = texts(table, column)
        if activation:
            self.columns["activation"] = np.full(table.num_rows, activation, dtype=object)
        data_sets = set(texts(table, "config.dataset")) if "config.dataset" in table.column_names else set()
        guess = guess_images(" ".join([folder.resolve().name, *data_sets]), grey=True) if len(data_sets) < 2 else None
        self.meta = classifier_meta(folder, "small-cnn-zoo", images or guess)
        if images or guess:
            self.columns["images"] = np.full(table.num_rows, images or guess, dtype=object)
        runs, self.columns["run"] = np.unique(texts(table, "modeldir"), return_inverse=True)
        last = self.columns["epoch"].max()
        chosen = np.ones(table.num_rows, dtype=bool) if steps == "all" else self.columns["epoch"] == last
        if split_file is None:
            self.rows = np.flatnonzero(chosen)
            self.split = split_by_run(len(runs), shares, seed)[self.columns["run"][self.rows]]
        else:
            order = read_order(split_file, count, split_order)
            self.rows, self.split = published_split(order[self.columns["epoch"][order] == last])
            if steps == "all":
                self._add_earlier()
        self.stacks = {
            str(word): self._stack(str(word), folder) for word in np.unique(self.columns["activation"][self.rows])
        }
        self.request: dict[str, Any] = {
            "steps": steps,
            "split": split_order if split_file else list(shares),
            "activation": activation,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def _add_earlier(self) -> None:
        """Put the earlier checkpoints of each run behind, in the split of its final one."""
        run = self.columns["run"]
        of_run = np.full(int(run.max()) + 1, "", dtype=object)
        of_run[run[self.rows]] = self.split
        others = np.setdiff1d(np.flatnonzero(of_run[run] != ""), self.rows)
        self.rows = np.concatenate([self.rows, others])
        self.split = np.concatenate([self.split, of_run[run[others]]])

    def _stack(self, activation: str, folder: Path) -> Stack:
        kernels = [tensor for tensor in self.layout if len(tensor.shape) > 1]
        kind = Activation.parse(activation)
        names = [f"conv{i}" for i in range(len(kernels) - 1)] + ["head"]
        layers = []
        for i, (name, tensor) in enumerate(zip(names, kernels, strict=True)):
            *kernel, inputs, outputs = tensor.shape
            last = i == len(kernels) - 1
            layers.append(
                Layer(
                    name, inputs, outputs, tuple(kernel), activation=Activation() if last else kind,
                    stride=STRIDE if kernel else 1, pool="global" if i == len(kernels) - 2 else "",
                )
            )  # fmt: skip
        try:
            return Stack(tuple(layers))
        except UserError as error:
            raise UserError(
                f"{folder / LAYOUT}: {error}; are the kernels not in TensorFlow's order (height, width, in, out)?"
            ) from None

    def parts(self, size: int) -> Iterator[Part]:
        pairs = _pairs(self.layout)
        size = part_size(next(iter(self.stacks.values())), size)
        for start in range(0, len(self.rows), size):
            rows, split = self.rows[start : start + size], self.split[start : start + size]
            words = self.columns["activation"][rows]
            for word, stack in self.stacks.items():
                mine = np.flatnonzero(words == word)
                if not len(mine):
                    continue
                # Only these rows are read; mapped anew each time, so that pages read before do not count as this process's.
                values = np.asarray(_open_matrix(self.path)[rows[mine]], dtype=np.float32)
                tensors = {}
                for layer, (kernel, bias) in zip(stack.layers, pairs, strict=True):
                    tensors[layer.weight] = kernel.take(values)
                    tensors[f"{layer.name}.bias"] = bias.take(values)
                columns = {name: value[rows[mine]] for name, value in self.columns.items()}
                columns["split"] = split[mine]
                names = [f"row {row} of {self.where}/{WEIGHTS}" for row in rows[mine]]
                yield Part(stack, len(mine), tensors, columns, names, places=start + mine)


def _open_matrix(path: Path) -> np.ndarray:
    """The matrix, mapped into memory; object arrays, which would be pickles, are refused by NumPy."""
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; it may be truncated") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise UserError(f"{path} is no matrix of numbers, one row per network")
    return matrix


def read_layout(path: Path, columns: int) -> list[_Tensor]:
    """The tensors that the columns of the matrix form, in order.

    Raises:
        UserError: the sizes do not add up, there are gaps, or the names are not those of kernels and biases.
    """
    table = read_csv(path, ("varname", "start_idx", "end_idx", "shape"))
    found = []
    for row in table.select(["varname", "start_idx", "end_idx", "shape"]).to_pylist():
        name, start, stop = str(row["varname"]), row["start_idx"], row["end_idx"]
        shape = tuple(int(size) for size in re.findall(r"\d+", str(row["shape"])))
        if not isinstance(start, int) or not isinstance(stop, int) or stop - start != math.prod(shape):
            raise UserError(f"{path}: {name} spans columns {start} to {stop}, which shape {row['shape']} does not fill")
        if not name.endswith(("kernel:0", "bias:0")) or len(shape) not in ((2, 4) if "kernel" in name else (1,)):
            raise UserError(f"{path}: {name} of shape {row['shape']} is neither a kernel nor a bias")
        found.append(_Tensor(name, start, stop, shape))
    found.sort(key=lambda tensor: tensor.start)
    ends = [0, *(tensor.stop for tensor in found)]
    if [tensor.start for tensor in found] != ends[:-1] or ends[-1] != columns:
        raise UserError(f"{path}: the tensors do not fill the {columns} columns of {WEIGHTS} one after another")
    _pairs(found)
    return found


def _pairs(layout: Sequence[_Tensor]) -> list[tuple[_Tensor, _Tensor]]:
    """(kernel, bias) of every layer, in the order of the kernels."""
    biases = {tensor.name.rpartition("/")[0]: tensor for tensor in layout if len(tensor.shape) == 1}
    pairs = []
    for kernel in layout:
        if len(kernel.shape) > 1:
            bias = biases.get(kernel.name.rpartition("/")[0])
            if bias is None or bias.shape != kernel.shape[-1:]:
                raise UserError(
                    f"{LAYOUT}: {kernel.name} of shape {kernel.shape} has no bias of size {kernel.shape[-1]}; kernels must "
                    "be in TensorFlow's order (height, width, in, out)"
                )
            pairs.append((kernel, bias))
    if 2 * len(pairs) != len(layout) or not pairs or len(pairs[-1][0].shape) != 2:
        raise UserError(f"{LAYOUT}: convolutions and a dense layer, each with a kernel and a bias, are expected")
    return pairs


def read_order(path: Path, count: int, order: str) -> np.ndarray:
    """Row numbers in the order of a split file, with (``"published"``) or without (``"clean"``) its header."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        rows = np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no list of row numbers: {str(error).splitlines()[0]}") from None
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        bad = int(rows[(rows < 0) | (rows >= count)][0])
        raise UserError(f"{path} names row {bad}, but there are {count} networks: is it that of another zoo?")
    header = len(rows) > 1 and rows[0] == 0 and bool((rows[1:] == 0).any())
    distinct = rows[1:] if header else rows
    if len(np.unique(distinct)) != len(distinct):
        raise UserError(f"{path} names rows twice: it is no order of the networks")
    if order not in ("published", "clean"):
        raise UserError(f"unknown order {order!r}: choose published or clean")
    return distinct if order == "clean" else rows


def published_split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their splits in the published order: train, val, test (NFN, ``ZooDataset._split_indices_iid``)."""
    half = int(0.5 * len(rows))
    first = list(range(half))
    cut = int(0.8 * half)
    random.Random(0).shuffle(first)
    order = np.array([*first, *range(half, len(rows))], dtype=np.int64)
    split = np.repeat(np.array(["train", "val", "test"], dtype=object), [cut, half - cut, len(rows) - half])
    return rows[order], split
