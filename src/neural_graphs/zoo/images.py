"""Image sources for implicit neural representations: digits, MNIST, Fashion-MNIST, CIFAR-10 and SVHN.

`load_images("mnist")` looks for the files in `data_dir`, in the folder that the environment variable
`NEURAL_GRAPHS_DATA` names, where Debian's package `dataset-fashion-mnist` puts them, and in the user's cache;
else it downloads them from the official place and checks their MD5. `docs/images.md` lists the layouts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neural_graphs.errors import RunError, UserError
from neural_graphs.zoo._download import download as _download
from neural_graphs.zoo._image_files import Read, find

__all__ = ["IMAGE_SOURCES", "ImageSet", "ImageSource", "load_images"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one split, in the order of their source.

    Attributes:
        images: uint8 `[N, H, W]` (grey) or `[N, H, W, 3]` (RGB), from 0 to `max_value`.
        labels: int64 `[N]`, indices into `class_names`.
        name: the name it was loaded by, such as `"mnist"`.
        split: `"train"`, `"test"` or `"all"`.
        class_names: one name per label.
        source: layout and file that it came from, such as `"npz: mnist.npz"`.
        note: how the pixels differ from the original data set (`"JPEG-compressed"`), else empty.
        max_value: the value of white: 255, or 16 for digits.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    split: str
    class_names: tuple[str, ...]
    source: str
    note: str = ""
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels (1 or 3)."""
        return self.images.shape[1], self.images.shape[2], 1 if self.images.ndim == 3 else 3

    def as_float(self) -> np.ndarray:
        """The images as float32 `[N, H, W, C]` in [0, 1]: pixel value / `max_value`."""
        return self.images.reshape(len(self), *self.image_shape).astype(np.float32) / np.float32(self.max_value)


@dataclass(frozen=True)
class ImageSource:
    """A data set that `load_images` knows.

    Attributes:
        family: the data set whose files hold the images (`"cifar10"` for `"cifar10-gs"`).
        image_shape: height, width, channels as the files hold them.
        class_names: one name per label.
        url: folder of the official files; empty for digits, which come with scikit-learn.
        files: for each split, (file name, published MD5) of what to download.
        folders: names of a folder that belongs to this data set alone.
        grayscale: the colours are turned into luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B).
    """

    family: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    url: str = ""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    grayscale: bool = False


_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_FILES = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}


def _cifar10(grayscale: bool) -> ImageSource:
    return ImageSource(
        "cifar10",
        (32, 32, 3),
        _THINGS,
        "https://www.cs.toronto.edu/~kriz",
        {"train": _CIFAR_FILES, "test": _CIFAR_FILES},
        ("cifar10", "cifar-10"),
        grayscale,
    )


def _svhn(grayscale: bool) -> ImageSource:
    return ImageSource(
        "svhn",
        (32, 32, 3),
        _DIGITS,
        "http://ufldl.stanford.edu/housenumbers",
        {
            "train": {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"},
            "test": {"test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
        },
        ("svhn", "SVHN"),
        grayscale,
    )


IMAGE_SOURCES: dict[str, ImageSource] = {
    "digits": ImageSource("digits", (8, 8, 1), _DIGITS),
    "mnist": ImageSource(
        "mnist",
        (28, 28, 1),
        _DIGITS,
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train": {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        },
        ("mnist", "MNIST", "MNIST/raw"),
    ),
    "fashion-mnist": ImageSource(
        "fashion-mnist",
        (28, 28, 1),
        _CLOTHES,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train": {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        },
        ("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
    ),
    "cifar10": _cifar10(grayscale=False),
    "cifar10-gs": _cifar10(grayscale=True),
    "svhn": _svhn(grayscale=False),
    "svhn-gs": _svhn(grayscale=True),
}
_DEBIAN = Path("/usr/share/datasets")  # dataset-fashion-mnist installs the IDX files in fashion-mnist/ there


def load_images(
    name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None, download: bool = True
) -> ImageSet:
    """Load the images of one split.

    Digits (1,797 images of 8x8, bundled with scikit-learn, values 0 to 16) have no official split: here every
    fifth image of each class is `"test"` (355 images), the others are `"train"` (1,442), and `"all"` is both
    in the original order.

    Args:
        name: one of `IMAGE_SOURCES`; `-gs` stands for grey scale.
        split: `"train"`, `"test"`; for digits also `"all"`.
        data_dir: folder to look in first. IDX files may lie in it or in a folder named after the data set.
        download: whether to download what no folder holds.

    Raises:
        UserError: an unknown name or split, a damaged file, or nothing found and `download` is false.
        RunError: the download failed.
    """
    if name not in IMAGE_SOURCES:
        raise UserError(f"unknown images {name!r}: choose one of {', '.join(IMAGE_SOURCES)}")
    splits = ("train", "test", "all") if name == "digits" else ("train", "test")
    if split not in splits:
        raise UserError(f"unknown split {split!r} of {name}: choose one of {', '.join(splits)}")
    source = IMAGE_SOURCES[name]
    if name == "digits":
        read = _read_digits(split)
    else:
        read = _find_local(source, split, data_dir) or _fetch(name, source, split, download)
    _verify(read, source)
    images = _luma(read.images) if source.grayscale else read.images
    return ImageSet(
        images,
        read.labels,
        name,
        split,
        source.class_names,
        read.source,
        read.note,
        max_value=16 if name == "digits" else 255,
    )


def _read_digits(split: str) -> Read:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    # Position of each image among those of its class, so that both splits hold every class in the same share.
    rank = np.empty_like(labels)
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    is_test = rank % 5 == 4
    keep = {"train": ~is_test, "test": is_test, "all": np.ones_like(is_test)}[split]
    return Read(images[keep], labels[keep], "scikit-learn: load_digits")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "neural-graphs" / "images"


def _folders(source: ImageSource, data_dir: str | os.PathLike[str] | None) -> Iterator[tuple[Path, bool]]:
    """Folders to look in, in order, and whether each belongs to this data set alone."""
    roots = [_DEBIAN, _cache()]
    named = {"NEURAL_GRAPHS_DATA": os.environ.get("NEURAL_GRAPHS_DATA"), "data_dir": data_dir}
    for origin, value in named.items():
        if value:
            if not Path(value).is_dir():
                raise UserError(f"{origin} is {os.fspath(value)!r}, which is no folder")
            roots.insert(0, Path(value))
    for root in roots:
        yield root, (data_dir is not None and root == Path(data_dir)) or root.name in source.folders
        for folder in source.folders:
            yield root / folder, True


def _find_local(source: ImageSource, split: str, data_dir: str | os.PathLike[str] | None) -> Read | None:
    for folder, is_family_folder in _folders(source, data_dir):
        if read := find(source.family, split, folder, is_family_folder):
            return read
    return None


def _fetch(name: str, source: ImageSource, split: str, download: bool) -> Read:
    folder = _cache() / source.family
    files = source.files[split]
    by_hand = f"put {' and '.join(files)} of {source.url} in {folder}"
    if not download:
        raise UserError(f"no {name} images found: {by_hand}")
    for file, md5 in files.items():
        if not (folder / file).exists():
            try:
                _download(f"{source.url}/{file}", folder / file, md5)
            except RunError as error:
                raise RunError(f"{error}; or {by_hand}") from error
    read = find(source.family, split, folder, is_family_folder=True)
    assert read is not None, "what was downloaded is a layout that `find` reads"
    return read


def _verify(read: Read, source: ImageSource) -> None:
    height, width, channels = source.image_shape
    shape = (height, width) if channels == 1 else (height, width, channels)
    if read.images.dtype != np.uint8 or read.images.shape[1:] != shape or not len(read.images):
        found = f"{read.images.dtype} {list(read.images.shape)}"
        raise UserError(f"{read.source} holds {found}, expected uint8 [N, {', '.join(map(str, shape))}]")
    if read.labels.shape != read.images.shape[:1]:
        raise UserError(f"{read.source} holds {len(read.images)} images but labels {list(read.labels.shape)}")
    if read.labels.min() < 0 or read.labels.max() >= len(source.class_names):
        raise UserError(f"{read.source} holds labels outside 0..{len(source.class_names) - 1}")


def _luma(images: np.ndarray) -> np.ndarray:
    """RGB uint8 `[N, H, W, 3]` -> uint8 `[N, H, W]`, ITU-R BT.601 in Pillow's fixed-point form."""
    grey = np.empty(images.shape[:3], np.uint8)
    weights = np.array([19595, 38470, 7471], np.uint32)  # of 65536
    for start in range(0, len(images), 4096):  # the products take 4 bytes a value: keep them few
        piece = images[start : start + 4096].astype(np.uint32)
        grey[start : start + 4096] = (piece @ weights + 0x8000) >> 16
    return grey
