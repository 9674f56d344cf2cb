"""Zoos on disk: stacked weights in safetensors shards, one table of networks, read lazily through memory maps.

zoo.json          format, architectures, recipe, seed, versions, source of the images
networks.parquet  one row per network: where its weights are, its split, labels and whatever else is known of it
weights/          <architecture>-<number>.safetensors, tensors stacked over networks, [n, *shape]
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, architecture_from_json

if TYPE_CHECKING:
    from neural_graphs.graph import GraphBatch

FORMAT = 1
META, TABLE, WEIGHTS = "zoo.json", "networks.parquet", "weights"
SPLITS = ("train", "val", "test")
REQUIRED = ("network", "architecture", "shard", "row", "split")

Indices = Sequence[int] | np.ndarray | Tensor | slice | None


class Zoo:
    """A collection of networks: ``Zoo.load(path)``.

    Opening reads the description and the table only; weights are mapped into memory when asked for. ``table`` is a
    ``pyarrow.Table`` with one row per network, ordered by network number.
    """

    def __init__(
        self, path: Path, meta: dict[str, Any], architectures: dict[str, Architecture], table: pa.Table
    ) -> None:
        self.path, self.meta, self.architectures, self.table = path, meta, architectures, table
        self._shards: dict[str, dict[str, Tensor]] = {}
        self._shard_names, self._shard_of = _codes(table["shard"])
        architecture_names, self._architecture_of = _codes(table["architecture"])
        self._split_names, self._split_of = _codes(table["split"])
        self._row_of = table["row"].to_numpy(zero_copy_only=False).astype(np.int64)
        first = np.unique(self._shard_of, return_index=True)[1]
        self._shard_architecture = {
            shard: architecture_names[self._architecture_of[row]]
            for shard, row in zip(self._shard_names, first, strict=True)
        }
        self._architecture_names = architecture_names

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Zoo:
        """Open a zoo folder.

        Raises:
            UserError: the folder holds no zoo, a zoo of a newer format, a broken description or table, or lacks shards.
        """
        folder = Path(path)
        if not (folder / META).is_file():
            raise UserError(
                f"{folder} is no zoo: it has no {META}; make one with `neural-graphs zoo make` or `zoo import`"
            )
        meta = read_meta(folder)
        try:
            architectures = {name: architecture_from_json(value) for name, value in meta["architectures"].items()}
        except (KeyError, AttributeError):
            raise UserError(f"{folder / META} does not describe its architectures") from None
        zoo = cls(folder, meta, architectures, read_table(folder))
        for shard, architecture in zoo._shard_architecture.items():
            if architecture not in architectures:
                raise UserError(f"{folder / TABLE} names architecture {architecture!r}, which {META} does not describe")
            if not (folder / WEIGHTS / shard).is_file():
                raise UserError(f"{folder} lacks the shard {WEIGHTS}/{shard}: copy it there or make the zoo again")
        return zoo

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def complete(self) -> bool:
        """False while the zoo is being made, or when making it was broken off."""
        return bool(self.meta.get("complete", True))

    @property
    def all(self) -> ZooSplit:
        return ZooSplit(self, np.arange(len(self)), "all")

    @property
    def train(self) -> ZooSplit:
        return self.split("train")

    @property
    def val(self) -> ZooSplit:
        return self.split("val")

    @property
    def test(self) -> ZooSplit:
        return self.split("test")

    def split(self, name: str) -> ZooSplit:
        """The networks of one split, ``"train"``, ``"val"`` or ``"test"``; may be empty."""
        if name not in SPLITS:
            raise UserError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
        code = self._split_names.index(name) if name in self._split_names else -1
        return ZooSplit(self, np.flatnonzero(self._split_of == code), name)

    def __repr__(self) -> str:
        kinds = ", ".join(map(str, list(self.architectures.values())[:3]))
        more = f" and {len(self.architectures) - 3} more" if len(self.architectures) > 3 else ""
        splits = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        return f"Zoo({self.path}: {len(self)} networks [{kinds}{more}], {splits})"

    # -- weights --------------------------------------------------------------------------------------------------

    def _shard(self, name: str) -> dict[str, Tensor]:
        """Memory-mapped tensors of a shard."""
        if name not in self._shards:
            architecture = self.architectures[self._shard_architecture[name]]
            self._shards[name] = open_shard(self.path / WEIGHTS / name, architecture)
        return self._shards[name]

    def _gather(self, rows: np.ndarray) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Weights of table rows, grouped by architecture: (id, positions into ``rows``, stacked tensors)."""
        shard_of = self._shard_of[rows]
        order = np.argsort(shard_of, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(shard_of[order]) != 0]) if len(rows) else np.empty(0, int)
        groups: dict[str, list[tuple[np.ndarray, str]]] = {}
        for positions in np.split(order, starts[1:]) if len(rows) else []:
            shard = self._shard_names[shard_of[positions[0]]]
            groups.setdefault(self._shard_architecture[shard], []).append((positions, shard))
        found = []
        for architecture, members in groups.items():
            count = sum(len(positions) for positions, _ in members)
            shapes = self.architectures[architecture].parameter_shapes()
            values = {name: torch.empty(count, *shape) for name, shape in shapes.items()}
            start = 0
            for positions, shard in members:
                tensors = self._shard(shard)
                picked = torch.from_numpy(self._row_of[rows[positions]])
                for name, value in values.items():
                    part = value[start : start + len(positions)]
                    try:
                        torch.index_select(tensors[name], 0, picked, out=part)
                    except (IndexError, RuntimeError):
                        raise UserError(f"{self.path / TABLE} points behind the end of {shard}") from None
                start += len(positions)
            order_here = np.concatenate([positions for positions, _ in members])
            self._check_finite(values, rows[order_here])
            # Back to the order in which the networks were asked for.
            back = torch.from_numpy(np.argsort(order_here, kind="stable"))
            if not bool((back == torch.arange(count)).all()):
                values = {name: value[back] for name, value in values.items()}
            found.append((architecture, torch.from_numpy(np.sort(order_here)), values))
        return found

    def _check_finite(self, values: Mapping[str, Tensor], rows: np.ndarray) -> None:
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value).flatten(1).all(1)).nonzero()[0, 0])
                row = int(rows[bad])
                raise UserError(
                    f"network {self.table['network'][row].as_py()} has NaN or infinite values in {name} "
                    f"(row {self._row_of[row]} of {self.path / WEIGHTS / self._shard_names[self._shard_of[row]]})"
                )


class ZooSplit:
    """Some networks of a zoo in a fixed order; positions 0..len-1 address them."""

    def __init__(self, zoo: Zoo, rows: np.ndarray, name: str = "selection") -> None:
        self.zoo, self.rows, self.name = zoo, rows, name

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def architectures(self) -> dict[str, Architecture]:
        """The architectures that occur in this split."""
        used = {self.zoo._architecture_names[code] for code in np.unique(self.zoo._architecture_of[self.rows])}
        return {name: self.zoo.architectures[name] for name in self.zoo.architectures if name in used}

    @property
    def sole_architecture(self) -> Architecture:
        """The one architecture that all networks share; ``UserError`` when they are mixed (or there are none)."""
        found = list(self.architectures.values())
        if len(found) != 1:
            raise UserError(
                f"this needs networks of one architecture, but {self.zoo.path} ({self.name}) holds {len(found)}"
            )
        return found[0]

    def column(self, name: str) -> np.ndarray:
        """A column of the table for the networks of this split.

        Raises:
            UserError: there is no such column; the message lists those there are.
        """
        if name not in self.zoo.table.column_names:
            raise UserError(
                f"{self.zoo.path} has no column {name!r}: its columns are {', '.join(self.zoo.table.column_names)}"
            )
        values: np.ndarray = self.zoo.table[name].to_numpy(zero_copy_only=False)
        return values[self.rows]

    def labels(self, name: str = "label") -> Tensor:
        """An integer column as int64 ``[len]``.

        Raises:
            UserError: there is no such column, or it does not hold non-negative integers.
        """
        values = self.column(name)
        if not np.issubdtype(values.dtype, np.integer) or (len(values) and values.min() < 0):
            raise UserError(f"column {name!r} of {self.zoo.path} holds no class numbers (integers from 0)")
        return torch.from_numpy(values.astype(np.int64))

    def targets(self, name: str, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Tensor:
        """A column of numbers as float32 ``[len]``.

        Raises:
            UserError: there is no such column, or it holds no numbers; a network's is missing, NaN, infinite, or lies
                outside ``bounds`` (the message names the network).
        """
        values = self.column(name)
        if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
            raise UserError(f"column {name!r} of {self.zoo.path} holds no numbers")
        wrong = ~np.isfinite(values) | (values < bounds[0]) | (values > bounds[1])
        if wrong.any():
            first = int(wrong.argmax())
            number, value = self.column("network")[first], values[first]
            what = (
                f"{value:.6g}, outside {bounds[0]:g} to {bounds[1]:g}"
                if np.isfinite(value)
                else "missing or not finite"
            )
            more = f" (and of {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
            raise UserError(f"{name} of network {number}{more} of {self.zoo.path} is {what}")
        return torch.from_numpy(values.astype(np.float32))

    def select(self, indices: Indices) -> ZooSplit:
        """A smaller split: the networks at these positions, in this order."""
        return ZooSplit(self.zoo, self._rows(indices), self.name)

    def state_dicts(self, indices: Indices = None) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Weights of the networks at these positions (all by default), grouped by architecture.

        Returns, per architecture that occurs: its id, the places (int64) of its networks within ``indices``, ascending,
        and its float32 tensors ``{name: [n, *shape]}`` in the order of those places.

        Raises:
            UserError: a shard is missing, truncated or holds other tensors; a network has NaN or infinite weights.
        """
        return self.zoo._gather(self._rows(indices))

    def batch(self, indices: Indices = None) -> GraphBatch:
        """The networks at these positions (all by default) as a ``GraphBatch``; errors as in ``state_dicts``."""
        from neural_graphs.graph import GraphBatch

        parts = self.state_dicts(indices)
        graphs = tuple(self.zoo.architectures[name].graph(values) for name, _, values in parts)
        return GraphBatch(graphs, tuple(places for _, places, _ in parts))

    def _rows(self, indices: Indices) -> np.ndarray:
        if indices is None or isinstance(indices, slice):
            return self.rows[indices or slice(None)]
        return self.rows[np.asarray(indices, dtype=np.int64)]

    def __repr__(self) -> str:
        return f"ZooSplit({self.zoo.path}, {self.name}: {len(self)} networks)"


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct words of a text column, sorted, and each row's number among them; no Python object per row."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    order = sorted(range(len(words)), key=words.__getitem__)
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    return [words[i] for i in order], rank[encoded.indices.to_numpy(zero_copy_only=False)]


# -- files --------------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict[str, Any]:
    """``zoo.json``, checked for a format that this version reads."""
    meta = read_json(folder / META)
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        raise UserError(f"{folder / META} is not the description of a zoo")
    if meta["format"] > FORMAT:
        raise UserError(
            f"{folder} was made by a newer version of neural-graphs (format {meta['format']}, this version reads up to "
            f"{FORMAT}): upgrade with `pip install --upgrade neural-graphs`"
        )
    return meta


def fragments(folder: Path) -> list[Path]:
    """Tables of single shards, of a zoo that is not finished."""
    return sorted((folder / WEIGHTS).glob("[!.]*.parquet"))


def is_begun(folder: Path) -> bool:
    """Whether any network of the zoo is finished."""
    return (folder / TABLE).is_file() or bool(fragments(folder))


def read_table(folder: Path) -> pa.Table:
    """The table of networks, from ``networks.parquet`` and, while the zoo is being made, the tables of single shards.

    Checked for the columns that locate networks, and ordered by network number.
    """
    if not is_begun(folder):
        raise UserError(f"{folder} has no {TABLE}: no network of this zoo is finished")
    whole = [_read_parquet(folder / TABLE)] if (folder / TABLE).is_file() else []
    known = set(whole[0]["shard"].unique().to_pylist()) if whole else set()
    parts = [_read_parquet(path) for path in fragments(folder) if path.with_suffix(".safetensors").name not in known]
    try:
        table = pa.concat_tables([*whole, *parts])
    except pa.ArrowInvalid:
        raise UserError(f"the tables in {folder} have different columns: make the zoo again in a new folder") from None
    return table.sort_by("network")


def _read_parquet(path: Path) -> pa.Table:
    try:
        # Read outright, not memory-mapped: making a zoo replaces files while others may be reading them.
        table = pq.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; it may be truncated") from None
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: it is no table of a zoo")
    return table


def open_shard(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Memory-mapped tensors of a shard, checked against the architecture.

    Raises:
        UserError: the file is missing, truncated, or holds other tensors than the architecture has.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except FileNotFoundError:
        raise UserError(f"the shard {path} is missing: copy it there or make the zoo again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"the shard {path} is broken or truncated ({str(error).splitlines()[0]})") from None
    counts = set()
    for name, shape in architecture.parameter_shapes().items():
        if name not in found or tuple(found[name].shape[1:]) != shape:
            raise UserError(f"the shard {path} has no tensor {name} of shape [n, {', '.join(map(str, shape))}]")
        if found[name].dtype != torch.float32:
            raise UserError(f"the shard {path} holds {name} as {found[name].dtype}, expected float32")
        counts.add(found[name].shape[0])
    if len(counts) != 1:
        raise UserError(f"the shard {path} stacks different numbers of networks")
    return found
