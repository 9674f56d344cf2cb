"""A folder of anyone's checkpoints with a CSV file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import import_zoo


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def mlp(seed: int, width: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)).state_dict())


def cnn(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*body)


def write_folder(folder: Path, head: str, lines: list[str]) -> Path:
    (folder / "nets").mkdir(parents=True, exist_ok=True)
    for number in range(4):
        torch.save({"state_dict": mlp(number), "epoch": 3}, folder / "nets" / f"{number}.pt")
    for number in range(4, 8):
        save_file(mlp(number, width=7), folder / "nets" / f"{number}.safetensors")
    for number in range(8, 12):
        torch.save(cnn(number).state_dict(), folder / "nets" / f"{number}.pth")
    (folder / "scores.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder


def files() -> list[str]:
    return [f"nets/{n}{'.pt' if n < 4 else '.safetensors' if n < 8 else '.pth'}" for n in range(12)]


def lines(*columns: Any) -> list[str]:
    return [",".join([file, *(str(column(n)) for column in columns)]) for n, file in enumerate(files())]


def test_networks_and_columns(tmp_path: Path) -> None:
    head = "file,test_accuracy,run,split,note,width,lr"
    split = ("train", "val", "test")
    rows = lines(
        lambda n: n / 12, lambda n: n // 2, lambda n: split[n // 4], lambda n: f"n{n}", lambda n: n, lambda n: 0.5
    )
    write_folder(tmp_path / "mine", head, rows)
    zoo = import_zoo(tmp_path / "mine", tmp_path / "zoo", kind="folder", activation="relu", images="digits")
    assert len(zoo) == 12 and len(zoo.architectures) == 3 and zoo.meta["skipped"] == 0
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [4, 4, 4]
    assert np.allclose(zoo.all.column("test_accuracy"), np.arange(12) / 12)
    assert zoo.all.column("run").tolist() == [n // 2 for n in range(12)]
    assert zoo.all.column("note").tolist() == [f"n{n}" for n in range(12)]
    assert zoo.all.column("width").tolist() == list(range(12)) and set(zoo.all.column("lr")) == {0.5}
    assert set(zoo.all.column("activation")) == {"relu"} and zoo.meta["source"]["classes"][0] == "0"
    for number in range(12):
        ((name, _, values),) = zoo.all.state_dicts([number])
        expected = mlp(number) if number < 4 else mlp(number, 7) if number < 8 else cnn(number).state_dict()
        assert all(torch.equal(values[key][0], value) for key, value in expected.items())
        if number >= 8:
            images = torch.randn(2, 1, 6, 6)
            assert torch.allclose(zoo.architectures[name].forward(values, images)[0], cnn(number)(images), atol=1e-6)


def test_activation_per_network(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", "path,accuracy,activation", lines(lambda n: 0.5, lambda n: ("relu", "tanh")[n % 2]))
    zoo = import_zoo(tmp_path / "mine" / "scores.csv", tmp_path / "zoo", kind="folder")
    assert len(zoo.architectures) == 6
    assert zoo.all.column("activation").tolist() == ["relu", "tanh"] * 6
    assert sorted(zoo.all.column("split")) == ["test"] + ["train"] * 10 + ["val"]


def test_stated_architecture(tmp_path: Path) -> None:
    from neural_graphs.graph._files import ARCHITECTURE

    stack = Stack.mlp((4, 5, 3), ["sine:20"])
    state = {name: torch.randn(shape) for name, shape in stack.parameter_shapes().items()}
    (tmp_path / "mine").mkdir()
    import json

    save_file(state, tmp_path / "mine" / "a.safetensors", {ARCHITECTURE: json.dumps(stack.to_json())})
    (tmp_path / "mine" / "scores.csv").write_text("file,accuracy\na.safetensors,0.5\n")
    zoo = import_zoo(tmp_path / "mine", tmp_path / "zoo", kind="folder")
    assert zoo.all.sole_architecture == stack


def test_bad_networks_are_skipped_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines(lambda n: 0.5)
    rows[0] = "nets/0.pt,"
    rows[1] = "nets/1.pt,1.5"
    rows[2] = "nets/missing.pt,0.5"
    folder = write_folder(tmp_path / "mine", "file,test_accuracy", rows)
    harm = tmp_path / "harm"
    torch.save({"state_dict": mlp(3), "x": Hostile(harm)}, folder / "nets" / "3.pt")
    for number, change in {4: {"0.bias": torch.full((7,), float("inf"))}, 5: {"extra": torch.ones(2, 2, 2)}}.items():
        save_file(mlp(number, 7) | change, folder / "nets" / f"{number}.safetensors")
    save_file(mlp(7, 7), folder / "nets" / "6.safetensors")
    (folder / "nets" / "8.pth").write_bytes((folder / "nets" / "9.pth").read_bytes()[:700])
    zoo = import_zoo(folder, tmp_path / "zoo", kind="folder", activation="relu")
    out = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert not harm.exists() and len(zoo) == 4 and zoo.meta["skipped"] == 7 and zoo.meta["copies"] == 1
    for file, said in {
        "0.pt": "has no test_accuracy",
        "1.pt": "has test_accuracy 1.5, which is not in [0, 1]",
        "missing.pt": "there is no file",
        "3.pt": "more than tensors",
        "4.safetensors": "NaN or infinite",
        "5.safetensors": "extra belongs to no Linear or Conv layer",
        "7.safetensors": "is an exact copy of",
        "8.pth": "cannot read",
    }.items():
        assert sum(f"nets/{file}" in line and said in line for line in out) >= 1, file


def test_tables_that_do_not_do(tmp_path: Path) -> None:
    def fails(head: str, rows: list[str], said: str, **arguments: Any) -> None:
        write_folder(tmp_path / "mine", head, rows)
        with pytest.raises(UserError, match=said) as caught:
            import_zoo(tmp_path / "mine", tmp_path / "zoo", kind="folder", **arguments)
        assert "\n" not in str(caught.value)

    half = lines(lambda n: 0.5)
    fails("file,score", half, r"no column of test accuracies \(test_accuracy, accuracy.*its columns are file, score")
    fails("name,test_accuracy", half, r"no column of file \(or path\)")
    fails("file,test_accuracy", lines(lambda n: 30 + n), "given in percent.*divide it by 100", activation="relu")
    fails("file,test_accuracy", lines(lambda n: "good"), "does not hold numbers", activation="relu")
    fails("file,accuracy,split", lines(lambda n: 0.5, lambda n: "training"), "give train, val or test")
    torn = lines(lambda n: 0.5, lambda n: "a", lambda n: ("train", "test")[n % 2])
    fails("file,accuracy,run,split", torn, "run a is in test and in train: one run, one split")
    fails("file,accuracy", half, "none of 12 networks can be read; the first: .*give activation")
    fails("file,accuracy", half, "unknown activation", activation="swoosh")
    fails("file,accuracy", half, "give three shares", activation="relu", splits=(0.5, 0.1, 0.1))
    (tmp_path / "mine" / "other.csv").write_text("a\n1\n")
    fails("file,accuracy", half, "holds 2 CSV files", activation="relu")
    (tmp_path / "mine" / "other.csv").unlink()
    (tmp_path / "mine" / "scores.csv").unlink()
    with pytest.raises(UserError, match="holds no CSV file"):
        import_zoo(tmp_path / "mine", tmp_path / "zoo", kind="folder")


def test_runs_stay_together_and_small_splits_are_not_empty(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", "file,accuracy,run", lines(lambda n: 0.5, lambda n: f"run{n // 3}"))
    zoo = import_zoo(tmp_path / "mine", tmp_path / "zoo", kind="folder", activation="relu")
    assert sorted(map(len, (zoo.train, zoo.val, zoo.test))) == [3, 3, 6]
    for run in range(4):
        assert len(set(zoo.all.column("split")[zoo.all.column("run") == run])) == 1
