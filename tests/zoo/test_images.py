from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from neural_graphs.errors import RunError, UserError
from neural_graphs.zoo import images as module
from neural_graphs.zoo._download import download
from neural_graphs.zoo.images import IMAGE_SOURCES, load_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 3, 1, 7, 2])
REAL_DATA = os.environ.get("NEURAL_GRAPHS_DATA")


@pytest.fixture(autouse=True)
def no_other_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("NEURAL_GRAPHS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(module, "_DEBIAN", Path("/nonexistent"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def load(name: str, folder: Path, split: str = "train") -> module.ImageSet:
    return load_images(name, split, data_dir=folder, download=False)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, part: str = "train", compress: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", GREY), ("labels-idx1", LABELS.astype(np.uint8))):
        data = idx(array)
        name = f"{part}-{kind}-ubyte" + (".gz" if compress else "")
        (folder / name).write_bytes(gzip.compress(data) if compress else data)


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as the official files hold it: pickled by Python 2 (protocol 2), whose strings are bytes."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value  # BINSTRING

    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    empty_array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape) + b"\x86"
    array = empty_array + b"(K\x01" + shape + dtype + b"\x89" + string(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def write_batches(folder: Path, write: object = python2_batch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(python2_batch(COLOUR, (LABELS + number) % 10))
    (folder / "test_batch").write_bytes(python2_batch(COLOUR[::-1], LABELS[::-1]))


def test_digits_are_split_by_class_and_scaled() -> None:
    train, test, everything = (load_images("digits", split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1442, 355, 1797)
    assert train.image_shape == (8, 8, 1) and train.max_value == 16 and everything.images.max() == 16
    share = np.bincount(test.labels) / np.bincount(everything.labels)
    assert share.min() > 0.19 and share.max() <= 0.2
    as_float = everything.as_float()
    assert as_float.shape == (1797, 8, 8, 1) and as_float.dtype == np.float32 and as_float.max() == 1.0
    together = np.concatenate([train.images, test.images]).reshape(1797, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, everything.images.reshape(1797, -1)))


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "fashion_mnist.npz", x_train=GREY, y_train=LABELS, x_test=GREY[:2], y_test=LABELS[:2])
    found = load("fashion-mnist", tmp_path)
    assert np.array_equal(found.images, GREY) and np.array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.int64 and found.source == "npz: fashion_mnist.npz" and found.note == ""
    assert found.class_names[found.labels[1]] == "Ankle boot"
    assert np.array_equal(load("fashion-mnist", tmp_path, "test").images, GREY[:2])


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
def test_idx(tmp_path: Path, folder: str, compress: bool) -> None:
    write_idx(tmp_path / folder, "t10k", compress)
    found = load("mnist", tmp_path, "test")
    assert np.array_equal(found.images, GREY) and np.array_equal(found.labels, LABELS)
    assert found.images.flags.writeable and found.source.startswith("IDX: t10k-images-idx3-ubyte")


def test_idx_of_another_data_set_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path / "mnist")
    monkeypatch.setenv("NEURAL_GRAPHS_DATA", str(tmp_path))
    assert np.array_equal(load_images("mnist", download=False).images, GREY)
    with pytest.raises(UserError, match="no fashion-mnist images found: put train-images"):
        load_images("fashion-mnist", download=False)


def test_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "fashion-mnist")
    monkeypatch.setattr(module, "_DEBIAN", tmp_path)
    assert np.array_equal(load_images("fashion-mnist", download=False).images, GREY)


@pytest.mark.parametrize("archive", [True, False])
def test_cifar_batches(tmp_path: Path, archive: bool) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder)
    if archive:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(folder, "cifar-10-batches-py")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    train, test = load("cifar10", tmp_path), load("cifar10", tmp_path, "test")
    assert np.array_equal(train.images, np.concatenate([COLOUR] * 5)) and train.image_shape == (32, 32, 3)
    assert np.array_equal(train.labels, np.concatenate([(LABELS + n) % 10 for n in range(1, 6)]))
    assert np.array_equal(test.images, COLOUR[::-1]) and np.array_equal(test.labels, LABELS[::-1])


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batch_pickled_by_python_3(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    rows = np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)).reshape(len(COLOUR), -1)
    batch = pickle.dumps({b"data": rows, b"labels": LABELS.tolist()}, protocol=protocol)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(batch)
    assert np.array_equal(load("cifar10", tmp_path, "test").images, COLOUR)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    attack = pickle.dumps({b"data": Hostile(tmp_path / "owned"), b"labels": [0]})
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(attack)
    with pytest.raises(UserError, match=r"test_batch: it asks to run posix.mkdir|nt.mkdir, which was refused"):
        load("cifar10", tmp_path, "test")
    assert not (tmp_path / "owned").exists()
    pickle.loads(attack)
    assert (tmp_path / "owned").exists(), "the attack itself works, so the refusal is what stopped it"


def test_pickle_cannot_reach_inside_an_allowed_name(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    attack = b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93."
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(attack)
    with pytest.raises(UserError, match="asks to run numpy.ndarray.__new__"):
        load("cifar10", tmp_path, "test")


@pytest.mark.parametrize(("format", "note"), [("JPEG", "JPEG-compressed"), ("PNG", "")])
def test_cifar_parquet(tmp_path: Path, format: str, note: str) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (7, 32, 32, 3))
    cells = []
    for image in smooth:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, format)
        cells.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": cells, "label": LABELS}), tmp_path / "cifar10_test.parquet")
    found = load("cifar10", tmp_path, "test")
    assert np.abs(found.images.astype(int) - smooth).max() <= (4 if note else 0)
    assert np.array_equal(found.labels, LABELS) and found.note == note


def test_svhn_and_grey_scale(tmp_path: Path) -> None:
    digits = np.where(LABELS == 0, 10, LABELS)[:, None].astype(np.uint8)  # SVHN writes the digit zero as 10
    savemat(tmp_path / "train_32x32.mat", {"X": COLOUR.transpose(1, 2, 3, 0), "y": digits})
    found = load("svhn", tmp_path)
    assert np.array_equal(found.images, COLOUR) and np.array_equal(found.labels, LABELS)
    grey = load("svhn-gs", tmp_path)
    assert grey.image_shape == (32, 32, 1) and grey.as_float().shape == (7, 32, 32, 1)
    assert np.array_equal(grey.images, np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in COLOUR]))


def write_layout(name: str, folder: Path) -> list[Path]:
    """Tiny files in every layout of one data set."""
    if name == "npz":
        np.savez_compressed(folder / "mnist.npz", x_train=GREY, y_train=LABELS)
    elif name == "idx":
        write_idx(folder, compress=False)
    elif name == "idx.gz":
        write_idx(folder)
    elif name == "batches":
        write_batches(folder / "cifar-10-batches-py")
    elif name == "archive":
        write_batches(folder / "b")
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(folder / "b", "cifar-10-batches-py")
        return [folder / "cifar-10-python.tar.gz"]
    elif name == "parquet":
        buffer = io.BytesIO()
        Image.fromarray(COLOUR[0]).save(buffer, "JPEG")
        cells = [{"bytes": buffer.getvalue(), "path": None}] * 7
        pq.write_table(pa.table({"img": cells, "label": LABELS}), folder / "cifar10_train.parquet")
    else:
        savemat(folder / "train_32x32.mat", {"X": COLOUR.transpose(1, 2, 3, 0), "y": LABELS[:, None]})
    return [path for path in folder.rglob("*") if path.is_file()]


LAYOUTS = {
    "npz": "mnist",
    "idx": "mnist",
    "idx.gz": "mnist",
    "batches": "cifar10",
    "archive": "cifar10",
    "parquet": "cifar10",
    "mat": "svhn",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_damaged_file_gives_one_line(tmp_path: Path, layout: str, damage: str) -> None:
    for path in write_layout(layout, tmp_path):
        whole = path.read_bytes()
        garbage = bytes(RNG.integers(0, 256, 2000, dtype=np.uint8))
        path.write_bytes({"truncated": whole[: len(whole) * 2 // 3], "empty": b"", "garbage": garbage}[damage])
    with pytest.raises(UserError, match="cannot read .*") as error:
        load(LAYOUTS[layout], tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_missing_batch_is_named(tmp_path: Path) -> None:
    write_batches(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GREY[:, :8], LABELS, r"holds uint8 \[7, 8, 28\], expected uint8 \[N, 28, 28\]"),
        (GREY.astype(np.float32), LABELS, "holds float32"),
        (GREY[:0], LABELS[:0], r"holds uint8 \[0, 28, 28\]"),
        (GREY, LABELS[:3], "7 images but labels"),
        (GREY, LABELS + 1, "labels outside 0..9"),
    ],
)
def test_wrong_contents(tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels)
    with pytest.raises(UserError, match=message):
        load("mnist", tmp_path)


def test_pickled_npz_is_refused(tmp_path: Path) -> None:
    attack = np.empty(1, object)
    attack[0] = Hostile(tmp_path / "owned")
    np.savez(tmp_path / "mnist.npz", x_train=attack, y_train=LABELS)
    with pytest.raises(UserError, match="cannot read"):
        load("mnist", tmp_path)
    assert not (tmp_path / "owned").exists()


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown images 'imagenet': choose one of digits, mnist"):
        load_images("imagenet")
    with pytest.raises(UserError, match="unknown split 'val' of mnist: choose one of train, test$"):
        load_images("mnist", "val")
    with pytest.raises(UserError, match="data_dir is '.*', which is no folder"):
        load_images("mnist", data_dir=tmp_path / "missing")
    monkeypatch.setenv("NEURAL_GRAPHS_DATA", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="NEURAL_GRAPHS_DATA is '.*', which is no folder"):
        load_images("mnist")


def test_data_dir_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, images in (("first", GREY), ("second", GREY[::-1])):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "mnist.npz", x_train=images, y_train=LABELS)
    monkeypatch.setenv("NEURAL_GRAPHS_DATA", str(tmp_path / "second"))
    assert np.array_equal(load_images("mnist", data_dir=tmp_path / "first").images, GREY)
    assert np.array_equal(load_images("mnist").images, GREY[::-1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on the loopback interface and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", folder
        web.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_download_into_the_cache(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = server
    write_idx(folder)
    files = {path.name: md5(path) for path in sorted(folder.iterdir())}
    source = dataclasses.replace(IMAGE_SOURCES["mnist"], url=url, files={"train": files})
    monkeypatch.setitem(IMAGE_SOURCES, "mnist", source)
    assert np.array_equal(load_images("mnist").images, GREY)
    for path in folder.iterdir():
        path.unlink()
    assert np.array_equal(load_images("mnist").images, GREY), "the second call needs no server"


def test_bad_checksum_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    (folder / "file.bin").write_bytes(b"tampered")
    target = tmp_path / "cache" / "file.bin"
    with pytest.raises(RunError, match="is damaged"):
        download(f"{url}/file.bin", target, hashlib.md5(b"original").hexdigest())
    assert list(target.parent.iterdir()) == []
    download(f"{url}/file.bin", target, hashlib.md5(b"tampered").hexdigest())
    assert target.read_bytes() == b"tampered"


def test_failed_download_says_what_to_do(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = server
    monkeypatch.setitem(IMAGE_SOURCES, "svhn", dataclasses.replace(IMAGE_SOURCES["svhn"], url=url))
    with pytest.raises(RunError, match=r"cannot download .*404.*put train_32x32.mat of .* in .*svhn") as error:
        load_images("svhn")
    assert "\n" not in str(error.value)


def test_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot download"):
        download("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", "0" * 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL_DATA, reason="NEURAL_GRAPHS_DATA is not set")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10-gs"])
def test_real_images(name: str) -> None:
    assert REAL_DATA
    test = load_images(name, "test", data_dir=REAL_DATA, download=False)
    assert len(test) == 10_000 and np.bincount(test.labels).min() > 850
    mean = {"mnist": 0.1325, "fashion-mnist": 0.2868, "cifar10-gs": 0.4803}[name]  # widely published means
    assert test.as_float().mean() == pytest.approx(mean, abs=0.005)
