"""The layouts in which the image data sets are handed around: npz, IDX, pickled batches, Parquet, MATLAB.

Each reader returns images uint8 `[N, H, W]` or `[N, H, W, C]` and labels int64 `[N]`. A damaged file raises a
UserError that names it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_graphs._progress import track
from neural_graphs.errors import UserError
from neural_graphs.zoo._cifar_pickle import read_batch


@dataclass(frozen=True)
class Read:
    """What a reader found. `source` names layout and file, `note` how the pixels differ from the original."""

    images: np.ndarray
    labels: np.ndarray
    source: str
    note: str = ""


def find(family: str, split: str, folder: Path, is_family_folder: bool) -> Read | None:
    """Read the images of `family` from the first layout that `folder` holds, lossless ones first; else None.

    `is_family_folder` says that the folder belongs to this data set alone. Only then are IDX files read:
    MNIST and Fashion-MNIST give theirs the same names.
    """
    if family in ("mnist", "fashion-mnist"):
        if (path := folder / f"{family.replace('-', '_')}.npz").is_file():
            return _read_npz(path, split)
        if is_family_folder and (pair := _idx_pair(folder, split)):
            return _read_idx(*pair)
    elif family == "cifar10":
        if (path := folder / "cifar-10-batches-py").is_dir():
            return _read_batches(path, split)
        if (path := folder / "cifar-10-python.tar.gz").is_file():
            return _read_batches_archive(path, split)
        if (path := folder / f"cifar10_{split}.parquet").is_file():
            return _read_parquet(path)
    elif family == "svhn" and (path := folder / f"{split}_32x32.mat").is_file():
        return _read_mat(path)
    return None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Each format's library has its own errors for damaged files: make them one line that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"cannot read {path}: {reason} (is the file truncated, or of another kind?)") from error


def _read_npz(path: Path, split: str) -> Read:
    # Opened here: np.load leaves a damaged file open.
    with _reading(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Read(arrays[f"x_{split}"], arrays[f"y_{split}"].astype(np.int64), f"npz: {path.name}")


def _idx_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The images and labels files of a split, compressed or not."""
    part = {"train": "train", "test": "t10k"}[split]
    found = [
        path
        for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        for path in (folder / stem, folder / f"{stem}.gz")
        if path.is_file()
    ]
    images = next((path for path in found if "images" in path.name), None)
    labels = next((path for path in found if "labels" in path.name), None)
    return (images, labels) if images and labels else None


def _read_idx(images: Path, labels: Path) -> Read:
    return Read(_idx_array(images, 3), _idx_array(labels, 1).astype(np.int64), f"IDX: {images.name}, {labels.name}")


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """IDX: two zero bytes, the element type (8: bytes), the number of axes, big-endian lengths, data."""
    with _reading(path):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        header = 4 + 4 * dimensions
        if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
            raise UserError(f"no IDX file of bytes with {dimensions} axes")
        shape = [int(n) for n in np.frombuffer(data, ">u4", dimensions, 4)]
        if len(data) != header + math.prod(shape):
            expected = header + math.prod(shape)
            raise UserError(f"{len(data)} bytes where its header announces {expected}; the file is damaged")
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()  # writable


def _batch_names(split: str) -> list[str]:
    return ["test_batch"] if split == "test" else [f"data_batch_{number}" for number in range(1, 6)]


def _read_batches(folder: Path, split: str) -> Read:
    parts = []
    for name in _batch_names(split):
        with _reading(folder / name):
            parts.append(read_batch((folder / name).read_bytes()))
    return _join(parts, f"CIFAR-10 batches: {folder.name}")


def _read_batches_archive(path: Path, split: str) -> Read:
    """The members are read in memory: nothing is unpacked, so no member's name can reach outside a folder."""
    wanted = _batch_names(split)
    parts = {}
    with _reading(path), tarfile.open(path, "r:gz") as archive:
        for member in track(archive, f"reading {path.name}"):
            name = member.name.rpartition("/")[2]
            if name in wanted and (file := archive.extractfile(member)):
                parts[name] = read_batch(file.read())
            if len(parts) == len(wanted):
                break
        if missing := [name for name in wanted if name not in parts]:
            raise UserError(f"it lacks {', '.join(missing)}; the archive is damaged")
    return _join([parts[name] for name in wanted], f"CIFAR-10 batches: {path.name}")


def _join(parts: list[tuple[np.ndarray, np.ndarray]], source: str) -> Read:
    images, labels = zip(*parts, strict=True)
    return Read(np.concatenate(images), np.concatenate(labels), source)


def _read_parquet(path: Path) -> Read:
    """Columns `img` (struct with the bytes of a JPEG or PNG file) and `label`."""
    import pyarrow.parquet as pq
    from PIL import Image

    with _reading(path):
        table = pq.read_table(path, columns=["img", "label"])
        files = [value["bytes"] for value in table.column("img").to_pylist()]
        images = np.empty((len(files), 32, 32, 3), np.uint8)
        for index, file in enumerate(track(files, f"decoding {path.name}")):
            with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as image:
                if image.size != (32, 32):
                    raise UserError(f"image {index} is {image.width}x{image.height}, not 32x32")
                images[index] = np.asarray(image.convert("RGB"))
        labels = table.column("label").to_numpy().astype(np.int64)
    lossy = any(file.startswith(b"\xff\xd8") for file in files)
    return Read(images, labels, f"Parquet: {path.name}", "JPEG-compressed" if lossy else "")


def _read_mat(path: Path) -> Read:
    """SVHN cropped digits: `X` uint8 `[32, 32, 3, N]`, `y` `[N, 1]`, where 10 stands for the digit zero."""
    from scipy.io import loadmat

    with _reading(path):
        arrays = loadmat(path, variable_names=["X", "y"])
        images = np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2))
        return Read(images, arrays["y"].ravel().astype(np.int64) % 10, f"MATLAB: {path.name}")
