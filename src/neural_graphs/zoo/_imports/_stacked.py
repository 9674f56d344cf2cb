"""Folders of stacked tensors: one safetensors file with all networks, and a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open

from neural_graphs.errors import UserError
from neural_graphs.graph import stack_from_shapes
from neural_graphs.zoo._imports._inr import InrOptions
from neural_graphs.zoo._imports._source import Part, part_size
from neural_graphs.zoo._store import SPLITS

WEIGHTS, TABLE = "weights.safetensors", "networks.parquet"
_RENAMED = {"image_index": "image", "image_source": "source_split"}


class Stacked:
    """``weights.safetensors`` (tensors ``[N, *shape]``, torch layout) and ``networks.parquet``, one row per network."""

    def __init__(self, folder: Path, options: InrOptions) -> None:
        self.where = str(folder)
        self.path = folder / WEIGHTS
        try:
            with safe_open(self.path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{folder} has no {WEIGHTS}") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path} is broken or truncated ({str(error).splitlines()[0]})") from None
        counts = {shape[:1] for shape in shapes.values()}
        if len(counts) != 1 or counts == {()}:
            raise UserError(f"{self.path}: the tensors are not stacked over the same number of networks")
        ((self.count,),) = counts
        self.stack = stack_from_shapes(
            {name: shape[1:] for name, shape in shapes.items()}, options.activation, options.shift
        )
        self.table = self._read_table(folder / TABLE)
        self.meta = options.meta(folder, "stacked", None, self.stack)
        self.request: dict[str, Any] = {"stack": self.stack.to_json()}

    def __len__(self) -> int:
        return self.count

    def _read_table(self, path: Path) -> pa.Table:
        try:
            table = pq.read_table(path, memory_map=False)
        except FileNotFoundError:
            raise UserError(f"{path.parent} has no {path.name}") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; it may be truncated") from None
        if table.num_rows != self.count:
            raise UserError(f"{path} has {table.num_rows} rows, but {self.path.name} holds {self.count} networks")
        if "split" not in table.column_names or not set(table["split"].unique().to_pylist()) <= set(SPLITS):
            raise UserError(f"{path} needs a column split that holds train, val or test")
        if "row" in table.column_names:
            table = table.sort_by("row")
            if table["row"].to_pylist() != list(range(self.count)):
                raise UserError(f"{path}: column row does not number the networks 0 to {self.count - 1}")
        kept = [name for name in table.column_names if name not in ("row", "network", "architecture", "shard")]
        return table.select(kept).rename_columns([_RENAMED.get(name, name) for name in kept])

    def parts(self, size: int) -> Iterator[Part]:
        size = part_size(self.stack, size)
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            with safe_open(self.path, framework="pt") as file:
                tensors = {
                    name: file.get_slice(name)[start:stop].to(torch.float32) for name in self.stack.parameter_shapes()
                }
            rows = self.table.slice(start, stop - start)
            columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.column_names}
            names = [f"row {row} of {self.path}" for row in range(start, stop)]
            yield Part(self.stack, stop - start, tensors, columns, names)
