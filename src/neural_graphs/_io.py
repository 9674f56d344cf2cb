"""Files that are either complete or absent, and JSON with one-line errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neural_graphs.errors import RunError, UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends, remove it if that raises.

    Missing parent folders are made. The temporary name starts with a dot and keeps the suffix (`.npz`),
    which several writers look at. A reader sees the old file or the whole new one, also after a crash.

    Raises:
        RunError: the folder cannot be made or written, or the disk is full. `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if reason := _write_failure(error):
            raise RunError(f"cannot write {path}: {reason}") from error
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_failure(error: BaseException) -> str | None:
    """Why a write failed, or None where `error` is no failed write (a Ctrl-C, a mistake in the block)."""
    if isinstance(error, RunError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    safetensors = sys.modules.get("safetensors")
    if safetensors is not None and isinstance(error, safetensors.SafetensorError):
        return str(error)  # safetensors reports a full disk as an error of its own kind
    return None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is not a JSON file ({error}); it may be truncated") from error


def file_digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes, read in pieces. `algorithm` is any name that hashlib knows."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
