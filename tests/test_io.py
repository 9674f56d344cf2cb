from __future__ import annotations

import errno
import hashlib
import math
from pathlib import Path

import pytest
import safetensors

from neural_graphs._io import atomic_write, read_json, sha256, write_json
from neural_graphs.errors import RunError, UserError


def test_write_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "table.npz"
    for text in ("one", "two"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".npz"
            temporary.write_text(text)
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), UserError("x"), RunError("x")])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), safetensors.SafetensorError("I/O: No space left on device")],
)
def test_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    message = r"^cannot write .*file: .*No space left on device$"
    with pytest.raises(RunError, match=message), atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot write"), atomic_write(tmp_path / "file" / "inner"):
        pass


def test_json(tmp_path: Path) -> None:
    value = {"name": "ω0", "values": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": math.nan})
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [b'{"name": "cut of', b"", b"\xff\xfe\x00"])
def test_bad_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="is not a JSON file") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read .*No such file"):
        sha256(tmp_path / "none")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
