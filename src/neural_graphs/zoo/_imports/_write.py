"""The one writer of all importers: it leaves out what cannot be used, says why, and streams the rest into a zoo."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs._io import atomic_write
from neural_graphs._progress import progress
from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture
from neural_graphs.zoo._imports._inert import printable
from neural_graphs.zoo._imports._source import ACCURACIES, BUFFER, Part, Source
from neural_graphs.zoo._store import Zoo
from neural_graphs.zoo._writer import ZooWriter

SHARD = 4096  # networks per shard at most
SHOWN = 20  # lines on stderr; all of them are in SKIPPED
SKIPPED = "skipped.txt"


def write_zoo(source: Source, out: Path, meta: dict[str, Any]) -> Zoo:
    """Copy a foreign zoo into the folder ``out``; memory does not grow with it.

    Left out, each with a line on stderr (the first ``SHOWN``) and in ``skipped.txt``: networks that the source cannot
    read, with NaN or infinite weights, without a test accuracy or with one outside [0, 1] where the source has that
    column, and exact copies of networks before them. ``zoo.meta["skipped"]`` and ``["copies"]`` count them.

    Raises:
        UserError: not one network is left, or most accuracies are percentages.
        RunError: the disk is full or not writable.
    """
    with ZooWriter(out, {}, {**meta, "networks": len(source)}) as writer:
        if writer.complete:
            return Zoo.load(out)
        writer.meta["architectures"] = {}
        writer.start_over()
        (out / SKIPPED).unlink(missing_ok=True)
        report, sieve, buffers = _Report(), _Sieve(source.where), _Buffers(writer)
        with progress("importing networks", len(source)) as bar:
            for part in source.parts(SHARD):
                for line in part.problems:
                    report.skip(line)
                if part.names:
                    buffers.add(part, sieve.keep(part, report))
                bar.advance(part.read)
        sieve.refuse_percentages(enough=1)
        buffers.flush()
        if not len(writer):
            first = f"; the first: {report.lines[0]}" if report.lines else ""
            raise UserError(f"{source.where}: none of {len(source)} networks can be read{first}")
        report.save(out / SKIPPED)
        writer.meta.update(networks=len(writer), skipped=report.skipped, copies=report.copies)
        return writer.finish(renumber=True)


class _Report:
    """What was left out and why."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.skipped = self.copies = 0

    def skip(self, line: str) -> None:
        self.skipped += 1
        self._say(line)

    def copy(self, line: str) -> None:
        self.copies += 1
        self._say(line)

    def _say(self, line: str) -> None:
        line = printable(line)  # names in foreign files may hold anything
        self.lines.append(line)
        if len(self.lines) <= SHOWN:
            print(f"skipped: {line}", file=sys.stderr)

    def save(self, path: Path) -> None:
        if len(self.lines) > SHOWN:
            print(f"skipped: {len(self.lines) - SHOWN} more, see {path}", file=sys.stderr)
        if self.lines:
            with atomic_write(path) as temporary:
                temporary.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


class _Sieve:
    """Decides which networks of a part are kept."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.seen: dict[bytes, str] = {}
        self.percentages = self.checked = 0

    def keep(self, part: Part, report: _Report) -> np.ndarray:
        """Bool ``[n]``; each network that is left out gets its line in ``report``."""
        keep = np.ones(len(part.names), dtype=bool)

        def skip(places: np.ndarray, why: list[str]) -> None:
            for place, reason in zip(places.tolist(), why, strict=True):
                if keep[place]:
                    keep[place] = False
                    report.skip(f"{part.names[place]} {reason}")

        finite = torch.ones(len(part.names), dtype=torch.bool)
        for value in part.tensors.values():
            finite &= torch.isfinite(value).flatten(1).all(1)
        broken = np.flatnonzero(~finite.numpy())
        skip(broken, ["has NaN or infinite weights"] * len(broken))
        for name in ACCURACIES:
            if name in part.columns:
                values = part.columns[name]
                bad = np.flatnonzero(
                    ~((values >= 0) & (values <= 1)) & (np.isfinite(values) | (name == "test_accuracy"))
                )
                skip(bad, [_complaint(name, value) for value in values[bad].tolist()])
                if name == "test_accuracy":
                    self.checked += len(values)
                    self.percentages += int(np.sum((values > 1) & (values <= 100)))
        self.refuse_percentages(enough=100)
        for place, digest in zip(np.flatnonzero(keep).tolist(), _digests(part, keep), strict=True):
            if digest in self.seen:
                keep[place] = False
                report.copy(f"{part.names[place]} is an exact copy of {self.seen[digest]}, which is kept")
            else:
                self.seen[digest] = part.names[place]
        return keep

    def refuse_percentages(self, enough: int) -> None:
        """Raise ``UserError`` once most of ``enough`` accuracies are between 1 and 100: small ones would pass unnoticed."""
        if self.checked >= enough and self.percentages > self.checked / 2:
            raise UserError(
                f"{self.where}: test_accuracy is given in percent, but must lie in [0, 1]: divide it by 100"
            )


def _complaint(name: str, value: float) -> str:
    if value != value:
        return f"has no {name}"
    hint = "; if it is a percentage, divide it by 100" if 1 < value <= 100 else ""
    return f"has {name} {value:g}, which is not in [0, 1]{hint}"


def _digests(part: Part, keep: np.ndarray) -> list[bytes]:
    """What tells the kept networks apart: the architecture and every bit of the weights."""
    chosen = torch.from_numpy(np.flatnonzero(keep))
    if not len(chosen):
        return []
    flat = torch.cat([value[chosen].flatten(1).to(torch.float32) for value in part.tensors.values()], 1).numpy()
    start = hashlib.blake2b(repr(part.architecture).encode(), digest_size=16)
    digests = []
    for row in np.ascontiguousarray(flat):
        this = start.copy()
        this.update(row)
        digests.append(this.digest())
    return digests


class _Buffers:
    """Networks by architecture, until a shard is full or memory is: then all are written."""

    def __init__(self, writer: ZooWriter) -> None:
        self.writer = writer
        self.names: dict[Architecture, str] = {}
        self.shards: dict[Architecture, int] = {}
        self.waiting: dict[Architecture, list[tuple[dict[str, Tensor], dict[str, np.ndarray]]]] = {}
        self.read = self.bytes = 0

    def add(self, part: Part, keep: np.ndarray) -> None:
        self.read += part.read
        if not keep.any():
            return
        assert part.architecture is not None
        chosen = torch.from_numpy(np.flatnonzero(keep))
        tensors = {name: value[chosen].to(torch.float32) for name, value in part.tensors.items()}
        columns = {name: value[keep] for name, value in part.columns.items()}
        # Numbered by their order in the source, not as they are written: the order of a published split is kept.
        places = self.read - part.read + np.arange(len(keep)) if part.places is None else part.places
        columns["network"] = places[keep]
        self.bytes += sum(value.nbytes for value in tensors.values())
        waiting = self.waiting.setdefault(part.architecture, [])
        waiting.append((tensors, columns))
        if self.bytes >= BUFFER:
            self.flush()
        elif sum(len(columns["network"]) for _, columns in waiting) >= SHARD:
            self.flush(part.architecture)

    def flush(self, *architectures: Architecture) -> None:
        """Write what waits of these architectures, of all by default."""
        architectures = architectures or tuple(self.waiting)
        if fresh := [architecture for architecture in architectures if architecture not in self.names]:
            self.names |= {architecture: f"a{len(self.names) + i}" for i, architecture in enumerate(fresh)}
            self.writer.add_architectures({self.names[architecture]: architecture for architecture in fresh})
        for architecture in architectures:
            waiting = self.waiting.pop(architecture)
            self.bytes -= sum(value.nbytes for tensors, _ in waiting for value in tensors.values())
            tensors = {name: torch.cat([part[name] for part, _ in waiting]) for name in waiting[0][0]}
            columns = {name: np.concatenate([part[name] for _, part in waiting]) for name in waiting[0][1]}
            shard = self.shards.get(architecture, 0)
            self.writer.append(self.names[architecture], shard, tensors, columns)
            self.shards[architecture] = shard + 1
