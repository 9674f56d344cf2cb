"""What every importer shares: parts of networks as they are read, splits by run, tables with one-line errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture
from neural_graphs.zoo._store import SPLITS

ACCURACIES = ("train_accuracy", "test_accuracy")
BUFFER = 128 * 2**20  # bytes of weights in memory at once


@dataclass
class Part:
    """Networks of one architecture: stacked tensors ``[n, *shape]``, columns ``[n]``, and what each is called in messages.

    ``read`` counts the networks of the source that this part accounts for; ``problems`` has a line for each that could not
    be read. ``places`` says where the networks stand in the order of the source, behind all before them by default.
    """

    architecture: Architecture | None
    read: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    places: np.ndarray | None = None


class Source(Protocol):
    """A foreign zoo: how many networks it has, what ``zoo.json`` says of them, and the networks, a part at a time."""

    where: str
    meta: dict[str, Any]
    request: dict[str, Any]

    def __len__(self) -> int: ...

    def parts(self, size: int) -> Iterator[Part]:
        """Parts of ``size`` networks at most."""


def part_size(architecture: Architecture, size: int) -> int:
    """How many networks of an architecture to read at once: ``size``, or fewer when they are large."""
    return max(1, min(size, BUFFER // (4 * architecture.num_parameters)))


def split_by_run(runs: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """``"train"``, ``"val"`` or ``"test"`` for each of ``runs`` runs (object ``[runs]``), drawn with ``seed``.

    ``shares`` are the three parts of one; each that is not zero gets a run at least, where there are three.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"splits {','.join(map(str, shares))}: give three shares that add up to 1, such as 0.8,0.1,0.1")
    counts = [round(share * runs) for share in shares]
    for i in (1, 2):
        if runs >= 3 and shares[i] > 0 and counts[i] == 0:
            counts[i] = 1
    counts[0] = runs - counts[1] - counts[2]
    split = np.repeat(np.array(SPLITS, dtype=object), counts)
    return split[np.random.default_rng(seed).permutation(runs)]


Network = tuple[Architecture, dict[str, Tensor], dict[str, Any], str]
"""Architecture, tensors, row of the table, and what it is called in messages."""


def one_by_one(networks: Iterable[Network | str], size: int) -> Iterator[Part]:
    """Parts out of single networks, and of lines that say why one is left out.

    A part ends when the architecture changes or it holds ``size`` networks, so networks keep their order.
    """
    held: list[Network] = []
    problems: list[str] = []
    read = 0

    def part() -> Part:
        columns = {key: _column([row[key] for _, _, row, _ in held]) for key in (held[0][2] if held else {})}
        tensors = {key: torch.stack([state[key] for _, state, _, _ in held]) for key in (held[0][1] if held else {})}
        return Part(held[0][0] if held else None, read, tensors, columns, [name for *_, name in held], problems)

    for network in networks:
        if isinstance(network, str):
            problems.append(network)
        else:
            if held and (held[0][0] != network[0] or len(held) == part_size(held[0][0], size)):
                yield part()
                held, problems, read = [], [], 0
            held.append(network)
        read += 1
    if read:
        yield part()


def _column(values: list[Any]) -> np.ndarray:
    """One type per column whatever the values, so that the tables of single shards fit together."""
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    whole = all(isinstance(value, (int, np.integer)) for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float32)


def state_of(state: dict[str, Tensor], architecture: Architecture, where: object) -> dict[str, Tensor]:
    """The tensors of ``architecture`` out of a state dict whose tensors come in the same order, under its names.

    Raises:
        UserError: there are more or fewer tensors, or one has another shape.
    """
    shapes = architecture.parameter_shapes()
    if len(shapes) != len(state):
        raise UserError(f"{where} has {len(state)} tensors, but {architecture} has {len(shapes)}")
    found = {}
    for (name, shape), (old, value) in zip(shapes.items(), state.items(), strict=True):
        if tuple(value.shape) != shape:
            raise UserError(f"{where}: {old} has shape {tuple(value.shape)}, but {architecture} has {shape} there")
        found[name] = value.detach().to(torch.float32)
    return found


def activations_of(architecture: Architecture) -> str:
    """The hidden activation, or ``"mixed"`` where there are several."""
    kinds = architecture.activations_used or ("none",)
    return kinds[0] if len(kinds) == 1 else "mixed"


def number(value: Any) -> float:
    """A number out of foreign data, NaN for whatever is none."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else float("nan")


def classifier_meta(where: Path, kind: str, images: str | None) -> dict[str, Any]:
    """``recipe`` and ``source`` of ``zoo.json`` for a zoo of image classifiers."""
    found = image_source(images) if images else {}
    return {"recipe": {"name": kind}, "source": found | {"imported_from": where.resolve().name, "kind": kind}}


def image_source(name: str, channels: int | None = None) -> dict[str, Any]:
    from neural_graphs.zoo.images import IMAGE_SOURCES

    if name not in IMAGE_SOURCES:
        raise UserError(f"unknown images {name!r}: choose one of {', '.join(IMAGE_SOURCES)}")
    source = IMAGE_SOURCES[name]
    height, width, own = source.image_shape
    if channels is None:
        channels = 1 if source.grayscale else own
    size = {"height": height, "width": width, "channels": channels}
    return {"images": name, **size, "classes": list(source.class_names)}


def guess_images(text: str, grey: bool = False) -> str | None:
    """The image source that a folder or data set is named after; ``grey`` prefers the grey ones of CIFAR-10 and SVHN."""
    text = text.lower().replace("_", "-")
    for source, pattern in {
        "fashion-mnist": r"fashion|\bf-?mnist",
        "mnist": r"mnist",
        "cifar10": r"cifar(?!-?100)",
        "svhn": r"svhn",
    }.items():
        if re.search(pattern, text):
            return f"{source}-gs" if grey and source in ("cifar10", "svhn") else source
    return None


def walk(folder: Path, name: str) -> list[Path]:
    """All files of a name below a folder, sorted."""
    found = sorted(folder.rglob(name))
    return [path for path in found if path.is_file()]


# -- tables ---------------------------------------------------------------------------------------------------------------


def read_csv(path: Path, needed: Sequence[str] = ()) -> pa.Table:
    """A CSV file, also a compressed one.

    Raises:
        UserError: it is missing, no CSV, or lacks one of the columns ``needed``.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        table = pv.read_csv(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; it may be truncated") from None
    if missing := [name for name in needed if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}: its columns are {', '.join(table.column_names)}"
        )
    return table


def floats(table: pa.Table, name: str, where: object) -> np.ndarray:
    """A column as float32, NaN for empty cells; NaN throughout when there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    column = table[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise UserError(f"{where}: column {name} does not hold numbers (its first value is {column[0].as_py()!r})")
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy().astype(np.float32)


def texts(table: pa.Table, name: str) -> np.ndarray:
    """A column as text (object), empty for empty cells."""
    if pa.types.is_null(table[name].type):
        return np.full(table.num_rows, "", dtype=object)
    return table[name].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)


def refuse_percentages(where: object, name: str, values: np.ndarray) -> None:
    """Raise ``UserError`` when a column of shares holds percentages: most values lie between 1 and 100."""
    known = values[np.isfinite(values)]
    if len(known) and np.mean((known > 1) & (known <= 100)) > 0.5:
        raise UserError(
            f"{where}: {name} is given in percent (up to {known.max():g}), but must lie in [0, 1]: divide it by 100"
        )
