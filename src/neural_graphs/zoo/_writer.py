"""Writing a zoo shard by shard, so that a kill at any moment loses at most the shard in work."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from neural_graphs import __version__
from neural_graphs._io import atomic_write, write_json
from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture
from neural_graphs.zoo._store import (
    FORMAT,
    META,
    TABLE,
    WEIGHTS,
    Zoo,
    fragments,
    is_begun,
    open_shard,
    read_meta,
    read_table,
)

LOCK = ".lock"


class ZooWriter:
    """Appends shards to a zoo folder, new or half made.

    Use as a context manager. ``meta["request"]`` identifies the work: an existing folder is continued only when it was
    begun with an equal request. Every shard, then a table of its networks beside it, is written under a temporary name and
    moved into place; a shard without its table does not exist. ``finish`` joins the tables into one, so that neither memory
    nor time per shard grows with the zoo.

    Raises:
        UserError: the folder holds something else, another zoo, or is being written by another process.
        RunError: the disk is full or not writable; what was written before is intact.
    """

    def __init__(
        self, path: str | os.PathLike[str], architectures: Mapping[str, Architecture], meta: Mapping[str, Any]
    ) -> None:
        self.path = Path(path)
        self.architectures = dict(architectures)
        self.meta: dict[str, Any] = {
            "format": FORMAT,
            **meta,
            "architectures": {name: architecture.to_json() for name, architecture in architectures.items()},
            "versions": {
                "neural_graphs": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": False,
        }
        self._counts: dict[str, int] = {}  # finished shard -> its networks
        self._lock: IO[str] | None = None

    def __enter__(self) -> ZooWriter:
        self._refuse_foreign_folder()
        fresh = not (self.path / META).is_file()
        if fresh:
            write_json(self.path / META, self.meta)  # also makes the folder
        self._lock = _lock(self.path)
        try:
            if not fresh:
                self._resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
            self._lock.close()

    # -- resuming -----------------------------------------------------------------------------------------------------

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a folder for the zoo")
        if self.path.is_dir() and not (self.path / META).is_file():
            found = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
            if found:
                raise UserError(f"{self.path} is not empty and holds no zoo: give a new folder")

    def _resume(self) -> None:
        there = read_meta(self.path)
        mine, theirs = self.meta.get("request"), there.get("request")
        if mine is None or mine != theirs:
            raise UserError(
                f"{self.path} holds another zoo ({_difference(mine, theirs)}): give a new folder or the same options"
            )
        self.meta = there
        for leftover in (*self.path.glob(".*.tmp*"), *self.path.glob(f"{WEIGHTS}/.*.tmp*")):
            leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote
        if not is_begun(self.path):
            return
        table = read_table(self.path)
        for shard in table["shard"].unique().to_pylist():
            rows = table.filter(pc.equal(table["shard"], shard))
            if self._intact(shard, rows["architecture"][0].as_py(), rows.num_rows):
                self._counts[shard] = rows.num_rows

    def _intact(self, shard: str, architecture: str, count: int) -> bool:
        """Whether a shard that was finished still is: a damaged one is made again."""
        try:
            tensors = open_shard(self.path / WEIGHTS / shard, self.architectures[architecture])
        except (UserError, KeyError):
            return False
        return len(next(iter(tensors.values()))) == count

    def start_over(self) -> None:
        """Remove the networks that an earlier run wrote."""
        self._counts = {}
        self.meta["complete"] = False
        write_json(self.path / META, self.meta)
        for file in (self.path / TABLE, *fragments(self.path), *(self.path / WEIGHTS).glob("[!.]*.safetensors")):
            file.unlink(missing_ok=True)

    def add_architectures(self, architectures: Mapping[str, Architecture]) -> None:
        """Make known architectures that were met on the way, before the first shard of each."""
        self.architectures |= architectures
        self.meta["architectures"] |= {name: architecture.to_json() for name, architecture in architectures.items()}
        write_json(self.path / META, self.meta)

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished the zoo."""
        return bool(self.meta["complete"])

    @property
    def done(self) -> set[str]:
        """File names of the shards that are finished."""
        return set(self._counts)

    def __len__(self) -> int:
        """Networks written so far."""
        return sum(self._counts.values())

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self, architecture: str, number: int, tensors: Mapping[str, Tensor], columns: Mapping[str, np.ndarray]
    ) -> None:
        """Write shard ``<architecture>-<number>``.

        ``tensors`` are stacked over its networks, ``[n, *shape]``; ``columns`` must hold ``network`` and ``split`` and may
        hold anything else, each ``[n]``.
        """
        shard = shard_name(architecture, number)
        count = len(columns["network"])
        contiguous = {
            name: tensors[name].to("cpu", torch.float32).contiguous()
            for name in self.architectures[architecture].parameter_shapes()
        }
        with atomic_write(self.path / WEIGHTS / shard) as temporary:
            save_file(contiguous, temporary)
            temporary.chmod(0o644)  # safetensors makes files that nobody else may read
        rows = {
            "network": np.asarray(columns["network"], np.int64),
            "architecture": np.full(count, architecture, dtype=object),
            "shard": np.full(count, shard, dtype=object),
            "row": np.arange(count, dtype=np.int64),
            **{name: value for name, value in columns.items() if name != "network"},
        }
        with atomic_write((self.path / WEIGHTS / shard).with_suffix(".parquet")) as temporary:
            pq.write_table(pa.table(rows), temporary)
        self._counts[shard] = count

    def finish(self, renumber: bool = False) -> Zoo:
        """Mark the zoo as complete and open it; ``renumber`` closes the gaps in the numbers of its networks."""
        if not self._counts:
            raise UserError(f"{self.path}: no networks to write")
        table = read_table(self.path)
        table = table.filter(pc.is_in(table["shard"], pa.array(self._counts)))
        if renumber:
            place = table.column_names.index("network")
            table = table.set_column(place, "network", pa.array(np.arange(table.num_rows, dtype=np.int64)))
        with atomic_write(self.path / TABLE) as temporary:
            pq.write_table(table, temporary)
        self.meta["complete"] = True
        write_json(self.path / META, self.meta)
        for fragment in fragments(self.path):
            fragment.unlink()
        return Zoo.load(self.path)


def shard_name(architecture: str, number: int) -> str:
    return f"{architecture}-{number:05d}.safetensors"


def _difference(mine: Any, theirs: Any) -> str:
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return "made in another way"
    for key in sorted({*mine, *theirs}):
        if mine.get(key) != theirs.get(key):
            return f"{key} is {_short(theirs.get(key))} there and {_short(mine.get(key))} here"
    return "made in another way"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lock(path: Path) -> IO[str] | None:
    """Hold the folder until this process ends, however it ends; None where the platform has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    file = open(path / LOCK, "w")  # noqa: SIM115 - held open as long as the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{path} is being written by another process: wait for it or stop it") from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file
