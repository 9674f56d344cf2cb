"""Reading checkpoints with foreign objects: values exact, and no name in a file is ever looked up, let alone run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.zoo._imports._inert import Checkpoint, Record, plain


def make_module(name: str, code: str) -> ModuleType:
    module = ModuleType(name)
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module


def forget(name: str) -> None:
    sys.modules.pop(name, None)


CLASSES = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Config:
    channels: list
    activation: list
    rate: float
class Slots:
    __slots__ = ("a", "b")
class Stateful:
    def __init__(self, value): self.value = value
    def __getstate__(self): return (self.value, 3)
    def __setstate__(self, state): raise RuntimeError("foreign code ran")
class Items(list): pass
class Fields(dict): pass
"""


def write(path: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    """A checkpoint of which the pickle is ``data``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_are_exact(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        plain=torch.randn(3, 5),
        double=torch.randn(7, dtype=torch.float64),
        half=torch.randn(4).to(torch.float16),
        brain=torch.randn(4).to(torch.bfloat16),
        integers=torch.tensor([1, 2, 3]),
        transposed=base.t(),
        shared=base[1:3, 2:5],
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )
    checkpoint = Checkpoint(write(tmp_path / "net.pt", {"model": state, "epoch": 3}, legacy))
    found = checkpoint.state_dict("model")
    assert list(found) == list(state) and checkpoint.content["epoch"] == 3
    for name, value in state.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value.detach())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_foreign_classes_become_data(tmp_path: Path, legacy: bool) -> None:
    module = make_module("throw_away", CLASSES)
    slots = module.Slots()
    slots.a, slots.b = 1, [2]
    content = {
        "config": module.Config([3, 8], ["relu"], 0.5),
        "slots": slots,
        "items": module.Items([1, 2]),
        "fields": module.Fields(a=1),
        "path": Path("/data/x"),
        "number": np.float64(0.25),
        "class": module.Config,
        "function": os.system,
    }
    path = write(tmp_path / "net.pt", content, legacy)
    forget("throw_away")
    found = Checkpoint(path).content
    assert "throw_away" not in sys.modules
    assert isinstance(found["config"], Record) and type(found["config"]).name == "throw_away.Config"
    assert plain(found["config"]) == {"channels": [3, 8], "activation": ["relu"], "rate": 0.5}
    assert plain(found["slots"]) == {"a": 1, "b": [2]}
    assert found["items"].__dict__["items"] == [1, 2] and found["fields"].__dict__["items"] == [("a", 1)]
    assert found["function"] is not os.system and isinstance(found["function"], type)
    assert plain(found["path"]) is None and plain(found["function"]) is None


def test_foreign_setstate_never_runs(tmp_path: Path) -> None:
    module = make_module("throw_away", CLASSES)
    path = write(tmp_path / "net.pt", {"x": module.Stateful(7), "model": {"w": torch.ones(2)}})
    try:  # even while the class can be imported
        checkpoint = Checkpoint(path)
        assert checkpoint.content["x"].__dict__["state"] == (7, 3)
    finally:
        forget("throw_away")


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def hostile(harm: Path) -> dict[str, Any]:
    command = f"touch {harm}"
    code = f"open({str(harm)!r}, 'w')"
    return {
        "system": Call(os.system, command),
        "exec": Call(exec, code),
        "eval": Call(eval, code),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "open": Call(open, str(harm), "w"),
        "nested": {"a": [{"b": (Call(os.system, command),)}]},
        "in a state": Call(OrderedDict, [("a", Call(os.system, command))]),
        "torch.load": Call(torch.load, str(harm)),
        "map": Call(list, Call(map, os.system, [command])),
        "argument of a recorded call": Call(Path, Call(os.system, command)),
    }


@pytest.mark.parametrize("name", list(hostile(Path())))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_calls_are_refused(tmp_path: Path, name: str, legacy: bool) -> None:
    harm = tmp_path / "harm"
    path = write(tmp_path / "net.pt", {"model": {"w": torch.ones(2)}, "config": hostile(harm)[name]}, legacy)
    with pytest.raises(UserError, match=r"net.pt asks to run \S+, which was refused") as caught:
        Checkpoint(path)
    assert "\n" not in str(caught.value) and not harm.exists()


def test_opcodes_that_call_are_refused(tmp_path: Path) -> None:
    """Hand-written pickles: every opcode that can call something."""
    harm = tmp_path / "harm"
    text = f"touch {harm}".encode()
    unicode_ = b"X" + len(text).to_bytes(4, "little") + text
    for data in (
        b"(S'" + text + b"'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\n" + unicode_ + b"o.",  # OBJ
        b"cos\nsystem\n(" + unicode_ + b"tR.",  # REDUCE
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + unicode_ + b"\x85R.",  # STACK_GLOBAL, REDUCE
        b"\x80\x02cbuiltins\neval\n(" + unicode_ + b"t}\x92.",  # NEWOBJ_EX without a name that may be called
        b"\x80\x02ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR.",  # makes an inert instance
        b"\x80\x02\x82\x01.",  # EXT1
        b"Q.",  # BINPERSID
    ):
        try:
            found = Checkpoint(with_pickle(tmp_path / "net.pt", data)).content
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(found, Record)
        assert not harm.exists()


def test_state_cannot_reach_the_reader(tmp_path: Path) -> None:
    """BUILD on whatever a pickle can get hold of changes nothing outside what it made."""
    before = {name: dict(vars(value)) for name, value in {"Record": Record, "Checkpoint": Checkpoint}.items()}
    for data in (
        b"\x80\x02cmodule\nName\n}X\x04\x00\x00\x00nameX\x01\x00\x00\x00ysb.",  # on a class
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__Nsb.",  # on a function of the reader
        b"\x80\x02cmodule\nName\n)\x81}X\x09\x00\x00\x00__class__Nsb.",  # on an instance
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__Nstb.",  # the same, by setattr
        b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.",  # on a dictionary
    ):
        if b"torch" in data:
            with pytest.raises(UserError, match="changes what rebuilds its values, which was refused"):
                Checkpoint(with_pickle(tmp_path / "net.pt", data))
            continue
        try:
            Checkpoint(with_pickle(tmp_path / "net.pt", data))
        except UserError as error:
            assert "\n" not in str(error)
    assert {name: dict(vars(value)) for name, value in {"Record": Record, "Checkpoint": Checkpoint}.items()} == before
    test_tensors_are_exact(tmp_path, False)


def test_find_class_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = builtins.__import__

    def spy(name: str, *arguments: Any, **keywords: Any) -> Any:
        asked.append(name)
        return real(name, *arguments, **keywords)

    path = with_pickle(tmp_path / "net.pt", b"\x80\x02cantigravity\nfly\n.")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", spy)
        found = Checkpoint(path).content
    assert "antigravity" not in sys.modules and "antigravity" not in asked and found.name == "antigravity.fly"


def test_sizes_that_a_file_states_are_not_believed(tmp_path: Path) -> None:
    huge = (2**31 - 1).to_bytes(4, "little")
    memo = b"\x80\x02Nr" + huge + b"."  # LONG_BINPUT: the reader in C makes room for all numbers below
    assert Checkpoint(with_pickle(tmp_path / "memo.pt", memo)).content is None
    for name, data in {
        "text": b"\x80\x02X" + huge + b"abc.",
        "bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    }.items():
        with pytest.raises(UserError, match="cannot read"):
            Checkpoint(with_pickle(tmp_path / f"{name}.pt", data))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_anywhere(tmp_path: Path, legacy: bool) -> None:
    whole = write(tmp_path / "net.pt", {"model": {"w": torch.randn(50)}, "n": 1}, legacy).read_bytes()
    for length in range(0, len(whole) - 1, 37):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(UserError) as caught:
            Checkpoint(tmp_path / "cut.pt").state_dict("model")
        assert "\n" not in str(caught.value) and "cut.pt" in str(caught.value)


def test_tensors_outside_their_storage(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt", {"model": {"w": torch.randn(4)}})
    with zipfile.ZipFile(path) as file:
        parts = {info.filename: file.read(info) for info in file.infolist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    # a size, an offset, and a stride of 0 that makes a large tensor of one number
    changes = {
        b"K\x04\x85": b"K\x09\x85",
        b"K\x00K\x04\x85": b"K\x03K\x04\x85",
        b"K\x04\x85q": b"J\xff\xff\xff\x7f\x85q",
    }
    for old, new in changes.items():
        assert old in parts[name]
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_STORED) as file:
            for entry, data in parts.items():
                file.writestr(entry, data.replace(old, new) if entry == name else data)
        with pytest.raises(UserError, match="cannot read a tensor"):
            Checkpoint(tmp_path / "bad.pt").state_dict("model")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"N.")
    for data, said in {
        b"": "cannot read",
        b"hello": "cannot read",
        pickle.dumps({"a": 1}): "is no checkpoint of PyTorch",
        buffer.getvalue(): "is compressed",
    }.items():
        (tmp_path / "net.pt").write_bytes(data)
        with pytest.raises(UserError, match=said):
            Checkpoint(tmp_path / "net.pt")
    with pytest.raises(UserError, match="cannot read"):
        Checkpoint(tmp_path / "missing.pt")
    for content, said in {"a": "holds no state dict", "b": "no dense tensor"}.items():
        wrong = {"a": [1, 2], "b": {"model": {"w": torch.ones(2), "x": "text"}}}[content]
        with pytest.raises(UserError, match=said):
            Checkpoint(write(tmp_path / "net.pt", wrong)).state_dict("model")


def test_plain_ends(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    found = Checkpoint(write(tmp_path / "net.pt", {"config": endless})).content
    with pytest.raises(UserError, match="nested without end"):
        plain(found["config"])
    many: list[Any] = [1] * 100
    for _ in range(10):  # 10^22 numbers in a file of 4 kB
        many = [many] * 100
    found = Checkpoint(write(tmp_path / "net.pt", {"config": many})).content
    with pytest.raises(UserError, match="nested without end"):
        plain(found["config"])


def test_names_with_control_characters(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x02os\x8c\x0bsy\nst\x1b[2Jem\x93)R."
    with pytest.raises(UserError, match=r"asks to run os.sy\?st\?\[2Jem"):
        Checkpoint(with_pickle(tmp_path / "net.pt", data))
