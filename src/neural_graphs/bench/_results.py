"""Results files: the one writer and reader of ``results/<experiment>.json``."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import neural_graphs
from neural_graphs._io import read_json, write_json
from neural_graphs.bench._machine import device_name
from neural_graphs.errors import UserError

Row = dict[str, Any]

FIELDS = ("experiment", "command", "commit", "created", "torch", "device", "threads", "dataset", "rows")
_KEY = ("method", "variant", "metric")


def row(method: str, metric: str, values: float | Sequence[float], variant: str = "", **extra: Any) -> Row:
    """One row: mean and standard deviation (over n - 1; 0 for a single value) of ``values``, and whatever else is known
    (``parameters``, ``seconds``, ``peak_memory_mb``, ``epochs``)."""
    numbers = [float(values)] if isinstance(values, (int, float)) else [float(v) for v in values]
    if not numbers:
        raise UserError(f"{method} {metric}: a row needs at least one value")
    std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    known = {"method": method, "variant": variant, "metric": metric}
    return {**known, "mean": statistics.fmean(numbers), "std": std, "values": numbers, **extra}


def write_results(
    path: str | os.PathLike[str],
    experiment: str,
    command: str,
    dataset: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    *,
    threads: int | None = None,
    device: str = "cpu",
    replaces: Sequence[str] = _KEY,
) -> dict[str, Any]:
    """Write ``rows`` to a results file, atomically, and return its content.

    Rows already there stay, unless they are of the same method, variant and metric (``replaces``) as a new one; they then
    carry their own ``commit`` and ``created`` where these differ from the file's. Raises ``UserError`` when the file is of
    another experiment or data set, whose figures do not belong in one table with the new ones.
    """
    fresh = [dict(entry) for entry in rows]
    for entry in fresh:
        if missing := [name for name in (*_KEY, "mean", "std", "values") if name not in entry]:
            raise UserError(f"a results row lacks {', '.join(missing)}: {entry}")
    header: dict[str, Any] = {
        "experiment": experiment,
        "command": command,
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__.partition("+")[0],
        "device": device_name(device),
        "threads": threads if threads is not None else torch.get_num_threads(),
        "dataset": dict(dataset),
    }
    kept = _kept_rows(path, header, replaces, fresh) if Path(path).exists() else []
    result = {**header, "rows": kept + fresh}
    write_json(path, result)
    return result


def _kept_rows(
    path: str | os.PathLike[str], header: Mapping[str, Any], replaces: Sequence[str], fresh: Iterable[Row]
) -> list[Row]:
    before = read_results(path)
    replaced = {_key(entry, replaces) for entry in fresh}
    for field in ("experiment", "dataset"):
        if before[field] != header[field]:
            raise UserError(f"{path} holds figures of another {field} ({before[field]}): remove it or write elsewhere")
    provenance = {
        name: before[name] for name in ("commit", "created", "device", "threads") if before[name] != header[name]
    }
    return [{**provenance, **entry} for entry in before["rows"] if _key(entry, replaces) not in replaced]


def _key(entry: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(entry.get(name, "")) for name in fields)


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a results file. Raises ``UserError`` when it is missing, broken, or no results file."""
    data = read_json(path)
    if not isinstance(data, dict) or any(field not in data for field in FIELDS) or not isinstance(data["rows"], list):
        raise UserError(f"{path} is no results file: it must hold {', '.join(FIELDS)}")
    return data


def commit() -> str:
    """The commit of the running source, with ``-dirty`` when it was changed since; the package's version without git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy inside some other repository fails here
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    return f"v{neural_graphs.__version__}"
