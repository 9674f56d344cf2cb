"""PyTorch checkpoints that hold objects besides tensors, read without the power to run code.

A pickle names the functions and classes that rebuild its values. Here no such name is ever looked up: each becomes a
stand-in made on the spot. A stand-in for a class records what the pickle puts into its instances; calling one is refused,
except for the few names in ``_CALLABLE``, which map to functions of this file that build inert values. So a file reaches no
code outside this one, whatever is in it. Tensors are remembered as places in the file and read only when asked for.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError

MAX_VALUES = 10_000  # of a configuration: a small file can spell a list with more entries than there are atoms
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Record:
    """An instance of a class that is not here: what the pickle gave it, and nothing else."""

    name = ""  # of the class, with its module

    def __new__(cls, *arguments: Any, **_: Any) -> Record:
        self = object.__new__(cls)
        self.__dict__.update(arguments=arguments, state=None, items=[])
        return self

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def append(self, item: Any) -> None:
        self.__dict__["items"].append(item)

    add = append

    def extend(self, items: Any) -> None:
        self.__dict__["items"].extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"].append((key, value))


def printable(text: str) -> str:
    """Foreign text in one line of bounded length, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])


class _Name(type):
    """The kind of stand-ins for names: a pickle may make instances without a call, and may call none."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise UserError(f"asks to run {printable(cls.name)}, which was refused")  # type: ignore[attr-defined]


class _Function:
    """A function of this file as the pickle sees it: it can be called, and has nothing that could be set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UserError("changes what rebuilds its values, which was refused")


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Ordered(dict[Any, Any]):
    """Stands for ``collections.OrderedDict``; the attributes that modules hang on it are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise UserError("holds a tensor without values")
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered(*arguments: Any) -> _Ordered:
    return _Ordered(*arguments)


def _reconstructed(kind: Any, *_: Any) -> Record:
    """``copyreg._reconstructor``, by which the oldest protocols make instances."""
    if not isinstance(kind, _Name):
        raise UserError("asks for an instance of something that is no class")
    return Record.__new__(kind)  # type: ignore[arg-type]


def _recorded(*arguments: Any) -> Record:
    """Values of the standard library and NumPy that hyper-parameters hold: kept as what they were made from."""
    return Record.__new__(Record, *arguments)


_CALLABLE: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    **dict.fromkeys(
        (
            "collections.defaultdict",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "numpy.dtype",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "_codecs.encode",
        ),
        _recorded,
    ),
}


class _Unpickler(pickle._Unpickler):
    """The one written in Python: the one in C trusts sizes that a file states, and can be made to take all memory."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _CALLABLE:
            return _Function(_CALLABLE[full])
        return _Name("Named", (Record,), {"name": full})

    def persistent_load(self, identifier: Any) -> _Storage:
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise UserError("refers to objects outside the file")
        kind, key, _, count = identifier[1:5]
        name = kind.name if isinstance(kind, _Name) else ""  # type: ignore[attr-defined]
        package, _, short = name.rpartition(".")
        if package not in ("torch", "torch.cuda") or short not in _DTYPES:
            raise UserError(f"holds a tensor of an unknown type ({printable(name) or 'none'})")
        return _Storage(_DTYPES[short], str(key), int(count))

    def get_extension(self, code: int) -> None:
        raise UserError("uses registered extensions, which were refused")


class Checkpoint:
    """A checkpoint file. ``content`` is what it holds: containers, numbers, text, ``Record`` and ``StoredTensor``.

    Raises:
        UserError: one line, for files that are truncated, no checkpoints, or ask for anything to be run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
            self._bytes: dict[str, memoryview] = {}
            self._zip: zipfile.ZipFile | None = None
            self.content = self._read_zip(data) if data[:2] == b"PK" else self._read_legacy(data)
        except UserError as error:
            raise UserError(f"{path} {error}") from None
        except Exception as error:  # a malformed pickle raises anything at all
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read {path}: {reason}; it may be truncated or no checkpoint") from None

    def _read_zip(self, data: bytes) -> Any:
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        infos = self._zip.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise UserError("is compressed, which PyTorch's files never are")
        (pickled,) = (info.filename for info in infos if info.filename.endswith("/data.pkl"))
        self._prefix = pickled.removesuffix("data.pkl")
        orders = [info for info in infos if info.filename == f"{self._prefix}byteorder"]
        if orders and self._zip.read(orders[0]) != b"little":
            raise UserError("was written on a big-endian machine")
        return _Unpickler(io.BytesIO(self._zip.read(pickled))).load()

    def _read_legacy(self, data: bytes) -> Any:
        """The format before PyTorch 1.6: pickles in a row, then the storages one after another."""
        file = io.BytesIO(data)
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise UserError("is no checkpoint of PyTorch")
        _Unpickler(file).load()  # version of the protocol
        _Unpickler(file).load()  # the machine it was written on
        reader = _Unpickler(file)
        storages: dict[str, _Storage] = {}

        def remember(identifier: Any) -> _Storage:
            storage = _Unpickler.persistent_load(reader, identifier)
            return storages.setdefault(storage.key, storage)

        reader.persistent_load = remember  # type: ignore[method-assign]
        content = reader.load()
        view = memoryview(data)
        for key in _Unpickler(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            size = count * storages[key].dtype.itemsize
            if count < 0 or file.tell() + size > len(data):
                raise UserError("is truncated")
            self._bytes[key] = view[file.tell() : file.tell() + size]
            file.seek(size, io.SEEK_CUR)
        return content

    def tensor(self, stored: StoredTensor) -> Tensor:
        """The values of a tensor.

        Raises:
            UserError: the file does not hold all of them.
        """
        try:
            key, dtype = stored.storage.key, stored.storage.dtype
            if math.prod(stored.shape) > stored.storage.count:
                raise UserError("it is larger than what is stored of it")
            if not math.prod(stored.shape):
                return torch.empty(stored.shape, dtype=dtype)
            data: Any = self._zip.read(f"{self._prefix}data/{key}") if self._zip is not None else self._bytes[key]
            flat = torch.frombuffer(bytearray(data), dtype=dtype)
            return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read a tensor of {self.path}: {reason}; it may be truncated") from None

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """The tensors under key ``name`` of the content.

        Raises:
            UserError: there are none, or something else is among them.
        """
        state = self.content.get(name) if isinstance(self.content, Mapping) else None
        if not isinstance(state, Mapping) or not state:
            raise UserError(f"{self.path} holds no state dict called {name}")
        if bad := [printable(str(key)) for key, value in state.items() if not isinstance(value, StoredTensor)]:
            raise UserError(f"{self.path}: {bad[0]} of {name} is no dense tensor")
        return {str(key): self.tensor(value) for key, value in state.items()}


def plain(value: Any) -> Any:
    """Recorded instances as plain data: dictionaries, lists, numbers and text.

    A class with attributes becomes a dictionary of them; OmegaConf's containers and nodes, which keep their content in
    ``_content`` and ``_val``, become that.

    Raises:
        UserError: the data is nested without end, or has more values than any configuration.
    """
    left = MAX_VALUES

    def of(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > 20 or left < 0:
            raise UserError("holds a configuration that is nested without end")
        if isinstance(value, Record):
            state = value.__dict__["state"]
            if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # of a class with slots
                state = {**(state[0] if isinstance(state[0], dict) else {}), **state[1]}
            if isinstance(state, dict):
                for inner in ("_content", "_val"):
                    if inner in state:
                        return of(state[inner], depth + 1)
            return of(state, depth + 1)
        if isinstance(value, dict):
            return {key: of(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
        if isinstance(value, (list, tuple)):
            return [of(item, depth + 1) for item in value]
        return value if isinstance(value, (str, int, float, bool)) else None

    return of(value, 0)
