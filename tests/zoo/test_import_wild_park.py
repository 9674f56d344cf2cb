"""The CNN Wild Park, on checkpoints pickled with classes that are gone when they are read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.zoo import Zoo, import_zoo

FUNCTIONS: dict[str, Any] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "none": lambda x: x,
}
CLASSES = """
import copy
from dataclasses import dataclass

@dataclass(frozen=True)
class CNNConfig:
    n_layers: int
    n_classes: int
    channels: list
    kernel_size: list
    stride: list
    padding: list
    residual: list
    activation: list

class Metadata:  # as OmegaConf's: refers to classes, and to functions that make containers
    def __init__(self):
        from collections import defaultdict
        self.ref_type, self.object_type, self.resolver_cache = dict, CNNConfig, defaultdict(dict)

class Node:
    def __init__(self, value, parent): self._metadata, self._parent, self._val = Metadata(), parent, value

class Container:
    def __init__(self, parent, content):
        self._metadata, self._parent = Metadata(), parent
        self._content = content
    def __getstate__(self): return copy.copy(self.__dict__)
    def __setstate__(self, state): raise RuntimeError("foreign code ran")

def wrap(value, parent=None):
    node = Container(parent, None) if isinstance(value, (dict, list)) else Node(value, parent)
    if isinstance(value, dict): node._content = {k: wrap(v, node) for k, v in value.items()}
    if isinstance(value, list): node._content = [wrap(v, node) for v in value]
    return node
"""
CONFIGS: list[dict[str, Any]] = [
    {
        "channels": [3, 8, 4, 6],
        "kernel_size": [3, 5, 7],
        "residual": [-1, -1, 0],
        "activation": ["relu", "gelu", "tanh"],
    },
    {"channels": [3, 4, 8], "kernel_size": [5, 3], "residual": [-1, -1], "activation": ["leaky_relu", "sigmoid"]},
    {
        "channels": [3, 4, 4, 8, 16, 4],
        "kernel_size": [3, 3, 3, 3, 3],
        "residual": [-1, -1, 0, 1, 0],
        "activation": ["relu"] * 5,
    },
    {"channels": [3, 8, 4], "kernel_size": [7, 3], "residual": [-1, -1], "activation": ["none", "tanh"]},
]


def complete(config: dict[str, Any]) -> dict[str, Any]:
    depth = len(config["kernel_size"])
    padding = [size // 2 for size in config["kernel_size"]]
    return {"n_layers": depth, "n_classes": 10, "stride": [1] * depth, "padding": padding} | config


class Cnn(nn.Module):
    """The published network, written out."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        sizes = zip(config["channels"], config["channels"][1:], config["kernel_size"], config["padding"], strict=False)
        self.layers = nn.ModuleList([nn.Conv2d(i, o, k, padding=p) for i, o, k, p in sizes])
        self.fc = nn.Linear(config["channels"][-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            source = self.config["residual"][i]
            if source >= 0:
                shared = min(values[source].shape[1], x.shape[1])
                x = torch.cat([x[:, :shared] + values[source][:, :shared], x[:, shared:]], 1)
            x = FUNCTIONS[self.config["activation"][i]](x)
            values.append(x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def classes() -> Any:
    module = ModuleType("a_throw_away_sampler")
    sys.modules["a_throw_away_sampler"] = module
    exec(CLASSES, module.__dict__)
    yield module
    sys.modules.pop("a_throw_away_sampler", None)


def write_park(
    folder: Path, classes: Any, runs: int = 8, steps: tuple[int, ...] = (10, 20), unit: float = 1
) -> dict[str, Cnn]:
    """A park in the published layout; returns the networks by path. Every second run has OmegaConf-like configurations."""
    written = {}
    for run in range(runs):
        config = complete(CONFIGS[run % len(CONFIGS)])
        inert = classes.CNNConfig(**config)
        for step in steps:
            torch.manual_seed(100 * run + step)
            network = Cnn(config)
            optimizer = torch.optim.AdamW(network.parameters())
            network(torch.randn(2, 3, 8, 8)).sum().backward()
            optimizer.step()
            place = folder / "cifar10_zooV2" / f"NN_tune_trainable_{run:03d}" / f"checkpoint_{step:06d}"
            place.mkdir(parents=True)
            content = {
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "config": classes.wrap({"model": config})._content["model"] if run % 2 else inert,
                "iteration": step,
                "last_result": {
                    "test/acc": unit * (0.1 + 0.01 * run + 0.001 * step),
                    "test/loss": 2.0,
                    "config": {"model": inert, "path": Path("/data")},
                },
            }
            torch.save(content, place / "checkpoint.pt", _use_new_zipfile_serialization=run % 3 != 2)
            written[str(place / "checkpoint.pt")] = network.eval()
    return written


def test_networks_compute_the_same(tmp_path: Path, classes: Any) -> None:
    written = write_park(tmp_path / "park", classes)
    sys.modules.pop("a_throw_away_sampler")  # unpickling by name would fail from here on
    zoo = import_zoo(tmp_path / "park", tmp_path / "zoo", kind="wild-park")
    assert "a_throw_away_sampler" not in sys.modules
    assert len(zoo) == 16 and len(zoo.architectures) == 4 and zoo.meta["skipped"] == 0
    images = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    networks = [written[path].double() for path in sorted(written)]
    for architecture, places, values in zoo.all.state_dicts():
        params = {name: value.double() for name, value in values.items()}
        found = zoo.architectures[architecture].forward(params, images)
        for output, place in zip(found, places.tolist(), strict=True):
            assert (output - networks[place](images)).abs().max() < 1e-10


def test_columns(tmp_path: Path, classes: Any) -> None:
    write_park(tmp_path / "park", classes)
    zoo = import_zoo(tmp_path / "park", tmp_path / "zoo", kind="wild-park")
    runs = [run for run in range(8) for _ in range(2)]
    assert zoo.all.column("run").tolist() == runs and zoo.all.column("epoch").tolist() == [10, 20] * 8
    accuracies = [0.1 + 0.01 * run + 0.001 * step for run in range(8) for step in (10, 20)]
    assert np.allclose(zoo.all.column("test_accuracy"), accuracies)
    assert zoo.all.column("activation").tolist() == [("mixed", "mixed", "relu", "mixed")[run % 4] for run in runs]
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [12, 2, 2]
    for run in range(8):
        assert len(set(zoo.all.column("split")[zoo.all.column("run") == run])) == 1
    assert zoo.meta["source"]["images"] == "cifar10" and zoo.meta["source"]["channels"] == 3
    last = import_zoo(tmp_path / "park", tmp_path / "last", kind="wild-park", steps="last")
    assert last.all.column("epoch").tolist() == [20] * 8


def write_splits(path: Path, **runs: list[int]) -> Path:
    content = {
        split: {
            "path": [f"somewhere/cifar10_zooV2/NN_tune_trainable_{run:03d}/checkpoint_{step:06d}/checkpoint.pt"
                     for run in numbers for step in (10, 20)],
            "score": [0.5] * 2 * len(numbers),
            "step": [10, 20] * len(numbers),
        }
        for split, numbers in runs.items()
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_published_splits(tmp_path: Path, classes: Any) -> None:
    write_park(tmp_path / "park", classes)
    file = write_splits(tmp_path / "splits.json", train=[5, 0, 2], val=[3], test=[6, 1])
    zoo = import_zoo(tmp_path / "park", tmp_path / "zoo", kind="wild-park", split_file=file)
    for split, runs in {"train": {0, 2, 5}, "val": {3}, "test": {1, 6}}.items():
        assert set(zoo.split(split).column("run")) == runs
    assert len(zoo) == 12
    write_splits(file, train=[0, 1], val=[2], test=[1])
    with pytest.raises(UserError, match="NN_tune_trainable_001 in train and in test: one run, one split"):
        import_zoo(tmp_path / "park", tmp_path / "zoo1", kind="wild-park", split_file=file)
    write_splits(file, train=[50], val=[60], test=[70])
    with pytest.raises(UserError, match="names none of the checkpoints"):
        import_zoo(tmp_path / "park", tmp_path / "zoo1", kind="wild-park", split_file=file)
    for text in ("[]", '{"train": {}}', '{"train": {"path": 3}, "val": {}, "test": {}}'):
        file.write_text(text)
        with pytest.raises(UserError, match="no split file"):
            import_zoo(tmp_path / "park", tmp_path / "zoo1", kind="wild-park", split_file=file)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_bad_checkpoints_are_skipped_never_run(
    tmp_path: Path, classes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [Path(path) for path in sorted(write_park(tmp_path / "park", classes, steps=(10, 20, 30)))]
    harm = tmp_path / "harm"
    state = {"layers.0.weight": torch.ones(2, 3, 3, 3)}

    def change(number: int, **changes: Any) -> None:
        network = Cnn(complete(CONFIGS[1]))
        content = {
            "model": network.state_dict(),
            "config": complete(CONFIGS[1]),
            "iteration": 1,
            "last_result": {"test/acc": 0.5},
        }
        torch.save({key: value for key, value in (content | changes).items() if value is not None}, paths[number])

    config = complete(CONFIGS[1])
    nan = Cnn(config)
    nan.fc.bias.data[3] = float("nan")
    cases: dict[int, tuple[dict[str, Any], str]] = {
        0: ({"extra": Hostile(harm)}, "asks to run posix.system, which was refused"),
        1: ({"config": None}, "no config that describes"),
        2: ({"config": config | {"residual": [0, -1]}}, "describes no network"),
        3: ({"config": config | {"activation": ["relu", "swoosh"]}}, "unknown activation 'swoosh'"),
        4: ({"config": config | {"channels": [3, 4]}}, "entries for 1 layers"),
        5: ({"model": state}, "has 1 tensors, but"),
        6: ({"last_result": {"test/acc": 45.0}}, "if it is a percentage, divide it by 100"),
        7: ({"last_result": None}, "has no test_accuracy"),
        8: ({"model": nan.state_dict()}, "NaN or infinite"),
        9: ({"config": config | {"kernel_size": [True, 3]}}, "kernel_size of its config is"),
        10: ({"model": nan.state_dict() | {"fc.weight": nan.fc.weight.data.t()}}, "has shape"),
        11: ({"config": {key: value for key, value in config.items() if key != "stride"}}, "no list called stride"),
    }  # fmt: skip
    for number, (changes, _) in cases.items():
        change(number, **changes)
    paths[12].write_bytes(paths[12].read_bytes()[:-3000])
    paths[13].write_bytes(paths[14].read_bytes())
    zoo = import_zoo(tmp_path / "park", tmp_path / "zoo", kind="wild-park")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert not harm.exists() and len(zoo) == 24 - 14 and len(lines) == 14
    assert zoo.meta["skipped"] == 13 and zoo.meta["copies"] == 1
    said = {**{number: text for number, (_, text) in cases.items()}, 12: "cannot read", 14: "is an exact copy of"}
    for number, text in said.items():
        assert sum(str(paths[number]) in line and text in line for line in lines) == 1, text
    reopened = Zoo.load(tmp_path / "zoo")
    assert sum(len(places) for _, places, _ in reopened.all.state_dicts()) == 10


def test_percentages_are_told_apart(tmp_path: Path, classes: Any) -> None:
    write_park(tmp_path / "park", classes, runs=4, unit=100)
    with pytest.raises(UserError, match="test_accuracy is given in percent.*divide it by 100"):
        import_zoo(tmp_path / "park", tmp_path / "zoo", kind="wild-park")


def test_many_architectures_in_little_memory(tmp_path: Path, classes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_park(tmp_path / "park", classes)
    whole = import_zoo(tmp_path / "park", tmp_path / "whole", kind="wild-park")
    monkeypatch.setattr("neural_graphs.zoo._imports._write.BUFFER", 20_000)
    parts = import_zoo(tmp_path / "park", tmp_path / "parts", kind="wild-park")
    assert len(list((tmp_path / "parts" / "weights").iterdir())) > len(list((tmp_path / "whole" / "weights").iterdir()))
    assert len(whole) == len(parts) == len(written)
    for position in range(len(whole)):
        ((one, _, a),), ((other, _, b),) = whole.all.state_dicts([position]), parts.all.state_dicts([position])
        assert whole.architectures[one] == parts.architectures[other]
        assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no wild park"):
        import_zoo(tmp_path, tmp_path / "zoo", kind="wild-park")
