"""The official CIFAR-10 batches are pickles. This reads them without the power to run code.

A pickle names the functions that rebuild its values. Here the names that a NumPy array needs map to inert
stand-ins, which only record what they are given, and every other name is refused: neither a foreign function
nor NumPy's own reconstruction (which trusts its input) is ever called.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn

import numpy as np

from neural_graphs.errors import UserError


def read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, 32, 32, 3]` and labels int64 `[N]` of one batch file.

    Raises:
        UserError: the pickle refers to anything but a NumPy array.
        Exception: of many kinds, for damaged data.
    """
    batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels = fields["data"].array()
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # rows are the red, green and blue planes
    return np.ascontiguousarray(images), np.array(fields["labels"], dtype=np.int64)


class _Array:
    """Stands for `numpy.ndarray` while unpickling: keeps the state that NumPy would restore."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, column_major, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", b"u1"):
            raise ValueError("pixels are not bytes")
        pixels = np.frombuffer(data, dtype=np.uint8)
        return pixels.reshape(shape, order="F" if column_major else "C")


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Encoded:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in the older pickle protocols."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"bytes encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UserError(f"it asks to run {module}.{name}, which was refused: this is no CIFAR-10 batch")
        return _STAND_INS[module, name]

    def persistent_load(self, identifier: Any) -> NoReturn:
        raise UserError("it refers to objects outside the file: this is no CIFAR-10 batch")
