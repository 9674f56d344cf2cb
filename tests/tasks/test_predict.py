"""Network files: good ones are classified, bad ones get a line of their own and stop nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.graph._files import read_state_dict
from neural_graphs.tasks import Classifier, predict
from neural_graphs.tasks import _predict as predict_module
from neural_graphs.zoo import Zoo


@pytest.fixture
def state(zoo: Zoo) -> dict[str, torch.Tensor]:
    return zoo.test.batch().buckets[0][4].to_state_dict()


def test_good_files(trained: Path, zoo: Zoo, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    files = {
        "a.safetensors": lambda path: save_file({k: v.contiguous() for k, v in state.items()}, path),
        "b.pt": lambda path: torch.save(state, path),
        "c.pth": lambda path: torch.save({"state_dict": state, "epoch": 3}, path),
        "d.pt": lambda path: torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path),
        "e.pt": lambda path: torch.save({k: torch.nn.Parameter(v.clone()) for k, v in state.items()}, path),
        "f.pt": lambda path: torch.save({k: v.double() for k, v in state.items()}, path),
    }
    for name, save in files.items():
        save(tmp_path / name)
    results = predict(trained, [tmp_path / name for name in files])
    expected = Classifier.from_pretrained(trained).predict_proba(zoo.test)[4]
    for name, result in zip(files, results, strict=True):
        assert result["file"] == str(tmp_path / name) and "error" not in result
        assert result["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)
        assert result["class"] == int(expected.argmax())
        assert result["label"] == ("low", "mid", "high")[result["class"]]
        assert result["architecture"] == "2-8-1 sine:30"


def test_an_architecture_never_seen(trained: Path, tmp_path: Path) -> None:
    torch.save(Stack.mlp((2, 5, 7, 1)).module().state_dict(), tmp_path / "new.pt")
    (result,) = predict(trained, [tmp_path / "new.pt"])
    assert result["architecture"] == "2-5-7-1 sine:30" and sum(result["probabilities"]) == pytest.approx(1)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_bad_files_stop_nothing(trained: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    good, victim = tmp_path / "good.pt", tmp_path / "executed"
    torch.save(state, good)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-40])
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:700])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weight": Hostile(victim)}, tmp_path / "hostile.pt")
    (tmp_path / "hostile2.pt").write_bytes(pickle.dumps(Hostile(victim)))
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save({k: v * float("nan") for k, v in state.items()}, tmp_path / "nan.pt")
    torch.save(Stack.mlp((2, 8, 3)).module().state_dict(), tmp_path / "rgb.pt")
    torch.save({"weight_ih": torch.zeros(3, 3)}, tmp_path / "rnn.pt")
    torch.save({"seq.0.weight": torch.eye(8).to_sparse()}, tmp_path / "sparse.pt")
    (tmp_path / "notes.txt").write_text("hello")
    expected = {
        "cut.safetensors": "cannot read .*truncated",
        "cut.pt": "cannot read .*truncated",
        "empty.pt": "cannot read .*truncated",
        "hostile.pt": "was refused, because loading it could run code",
        "hostile2.pt": "was refused, because loading it could run code",
        "none.pt": "holds no state dict",
        "nan.pt": "NaN or infinite values in seq.0.weight",
        "rgb.pt": "networks of 1 outputs, this one has 3",
        "rnn.pt": "no tensor named \\*.weight",
        "sparse.pt": "sparse",
        "notes.txt": "unknown kind of network file",
        "missing.pt": "there is no file",
    }
    results = predict(trained, [*(tmp_path / name for name in expected), good])
    for (name, message), result in zip(expected.items(), results, strict=False):
        assert set(result) == {"file", "error"}, name
        assert "\n" not in result["error"]
        with pytest.raises(UserError, match=message):
            raise UserError(result["error"])
    assert "class" in results[-1]
    assert not victim.exists()


def test_read_state_dict_keeps_values_and_dtypes(tmp_path: Path) -> None:
    values = {"a.weight": torch.randn(3, 2, dtype=torch.float64), "a.count": torch.tensor(7)}
    torch.save(values, tmp_path / "a.pt")
    save_file(values, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        found = read_state_dict(tmp_path / name)
        assert found.keys() == values.keys()
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in values.items())


def test_folders_and_zoos(
    trained: Path, zoo: Zoo, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK", 7)
    (tmp_path / "some").mkdir()
    for name in ("b.pt", "a.pt"):
        torch.save(state, tmp_path / "some" / name)
    results = predict(trained, [tmp_path / "some", zoo.path])
    assert [Path(result["file"]).name for result in results[:2]] == ["a.pt", "b.pt"]
    assert results[0]["probabilities"] == pytest.approx(results[1]["probabilities"], abs=1e-6)
    assert [result["network"] for result in results[2:]] == list(range(len(zoo)))
    expected = Classifier.from_pretrained(trained).predict(zoo.all)
    assert [result["class"] for result in results[2:]] == expected.tolist()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        predict(tmp_path / "nowhere", [])
