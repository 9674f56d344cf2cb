"""The model zoos of Schuerholt et al., on folders of Ray Tune in their layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.zoo import import_zoo

WORDS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": nn.LeakyReLU,
    "gelu": nn.GELU,
}


class Published(nn.Module):
    """The published small (``CNN``) and large (``CNN3``) networks, written out."""

    def __init__(self, word: str, dropout: float, channels: int, large: bool) -> None:
        super().__init__()
        f = WORDS[word]
        drop = [nn.Dropout(dropout)] if dropout or large else []
        if large:
            body = [
                nn.Conv2d(channels, 16, 3), nn.MaxPool2d(2, 2), f(), *drop,
                nn.Conv2d(16, 32, 3), nn.MaxPool2d(2, 2), f(), *drop,
                nn.Conv2d(32, 15, 3), nn.MaxPool2d(2, 2), f(), *drop,
                nn.Flatten(), nn.Linear(60, 20), f(), *drop, nn.Linear(20, 10),
            ]  # fmt: skip
        else:
            body = [
                nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2, 2), f(), *drop,
                nn.Conv2d(8, 6, 5), nn.MaxPool2d(2, 2), f(), *drop,
                nn.Conv2d(6, 4, 2), f(),
                nn.Flatten(), nn.Linear(36, 20), f(), *drop, nn.Linear(20, 10),
            ]  # fmt: skip
        self.module_list = nn.ModuleList(body)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.module_list:
            x = layer(x)
        return x


def write_zoo(folder: Path, words: tuple[str, ...] = ("tanh", "relu", "sigmoid", "leakyrelu"), large: bool = False,
              epochs: tuple[int, ...] = (0, 1, 2), name: str = "checkpoint_{:06d}") -> dict[Path, Published]:  # fmt: skip
    channels = 3 if large else 1
    written = {}
    for number in range(2 * len(words)):
        word, dropout = words[number // 2], (0.0, 0.5)[number % 2]
        run = folder / f"NN_tune_trainable_{number:05d}_{number}_dropout={dropout},nlin={word}_2021-08-01"
        run.mkdir(parents=True)
        params = {
            "model::type": "CNN3" if large else "CNN",
            "model::channels_in": channels,
            "model::nlin": word,
            "model::dropout": dropout,
            "model::init_type": "kaiming_uniform",
            "optim::optimizer": "adam",
            "optim::lr": 1e-3,
            "optim::wd": 1e-4,
            "seed": number,
            "dataset::dump": "/netscratch/zoos/MNIST/tune_zoo_mnist/dataset.pt",
        }
        (run / "params.json").write_text(json.dumps(params))
        lines = []
        for epoch in epochs:
            torch.manual_seed(10 * number + epoch)
            network = Published(word, dropout, channels, large)
            place = run / name.format(epoch)
            place.mkdir()
            torch.save(network.state_dict(), place / "checkpoints")
            torch.save({"state": {}}, place / "optimizer")
            written[place / "checkpoints"] = network.eval()
            first = epoch == 0
            lines.append(
                {
                    "train_loss": -999 if first else 1.0,
                    "train_acc": -999 if first else 0.5,
                    "test_loss": 2.0,
                    "test_acc": 0.1 + 0.01 * number + 0.02 * epoch,
                    "training_iteration": epoch,
                    "config": params,
                }
            )
        (run / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return written


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_networks_compute_the_same(tmp_path: Path, large: bool) -> None:
    written = write_zoo(tmp_path / "tune_zoo", tuple(WORDS), large)
    zoo = import_zoo(tmp_path / "tune_zoo", tmp_path / "zoo", kind="model-zoos", steps="all")
    assert len(zoo) == 30 and len(zoo.architectures) == 5  # with and without dropout is one architecture
    side = 32 if large else 28
    assert zoo.meta["source"]["height"] == side and zoo.meta["source"]["images"] == "mnist"
    images = torch.randn(3, 3 if large else 1, side, side, dtype=torch.float64)
    networks = [written[path].double() for path in sorted(written)]
    for architecture, places, values in zoo.all.state_dicts():
        params = {name: value.double() for name, value in values.items()}
        found = zoo.architectures[architecture].forward(params, images)
        graph = zoo.architectures[architecture].graph(values)
        assert graph.batch_size == len(places)
        for output, place in zip(found, places.tolist(), strict=True):
            assert (output - networks[place](images)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["checkpoint_{:06d}", "checkpoint_{}"])
def test_columns(tmp_path: Path, name: str) -> None:
    write_zoo(tmp_path / "tune_zoo", epochs=(0, 3, 12), name=name)
    zoo = import_zoo(tmp_path / "tune_zoo", tmp_path / "zoo", kind="model-zoos", steps="all")
    assert zoo.all.column("epoch").tolist() == [0, 3, 12] * 8
    assert zoo.all.column("run").tolist() == [run for run in range(8) for _ in range(3)]
    accuracies = [0.1 + 0.01 * run + 0.02 * epoch for run in range(8) for epoch in (0, 3, 12)]
    assert np.allclose(zoo.all.column("test_accuracy"), accuracies)
    assert np.isnan(zoo.all.column("train_accuracy").reshape(8, 3)[:, 0]).all()  # -999: not trained yet
    words = ["tanh", "relu", "sigmoid", "leaky_relu"]
    assert zoo.all.column("activation").tolist() == [words[run // 2] for run in range(8) for _ in range(3)]
    assert set(zoo.all.column("optimizer")) == {"adam"} and set(zoo.all.column("init")) == {"kaiming_uniform"}
    assert np.allclose(zoo.all.column("dropout").reshape(8, 3)[:, 0], [0, 0.5] * 4)
    for run in range(8):
        assert len(set(zoo.all.column("split")[zoo.all.column("run") == run])) == 1
    last = import_zoo(tmp_path / "tune_zoo", tmp_path / "last", kind="model-zoos")
    assert last.all.column("epoch").tolist() == [12] * 8


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_bad_runs_are_skipped_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(write_zoo(tmp_path / "tune_zoo", epochs=(1,)))
    harm = tmp_path / "harm"
    state = Published("tanh", 0.0, 1, False).state_dict()
    torch.save(dict(state) | {"x": Hostile(harm)}, paths[0])
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, paths[1])  # a ResNet
    (paths[2].parent.parent / "params.json").write_text("{")
    (paths[3].parent.parent / "result.json").write_text('{"training_iteration": 7}\n{"training_it')
    torch.save({name: value for name, value in state.items() if "9." not in name}, paths[4])
    paths[5].write_bytes(paths[6].read_bytes()[:500])
    zoo = import_zoo(tmp_path / "tune_zoo", tmp_path / "zoo", kind="model-zoos")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert not harm.exists() and len(zoo) == 2 and len(lines) == 6
    for number, said in enumerate(
        ("more than tensors", "conv1.weight, which no CNN of this zoo has", "not a JSON file",
         "no line for training_iteration 1", "none of the CNNs of this zoo: its weights are", "cannot read")
    ):  # fmt: skip
        run = str(paths[number].parent.parent)
        assert sum(run in line and said in line for line in lines) == 1, said


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model zoo"):
        import_zoo(tmp_path, tmp_path / "zoo", kind="model-zoos")
