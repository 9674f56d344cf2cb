"""The INR corpora: NFN's, and the published splits of DWSNets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import import_zoo


class Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


class Siren(nn.Module):
    """NFN's network, whose state dict has names such as ``net.0.linear.weight`` and ``net.2.weight``."""

    def __init__(self, seed: int, channels: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(Sine(2, 32), Sine(32, 32), nn.Linear(32, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


NUMBERS = (0, 7, 44_999, 45_000, 49_999, 50_000, 59_999)


def write_nfn(folder: Path, channels: int = 3) -> dict[int, Siren]:
    networks = {number: Siren(number, channels) for number in NUMBERS}
    for number, network in networks.items():
        place = folder / f"randinit_smaller_{number % 10}s"
        place.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), place / f"net{number}.pth")
        place = folder / f"randinit_smaller_aug4_{number % 10}s"
        place.mkdir(parents=True, exist_ok=True)
        torch.save(Siren(number + 100_000, channels).state_dict(), place / f"net{number}.pth")
    return networks


def test_nfn(tmp_path: Path) -> None:
    networks = write_nfn(tmp_path / "siren_cifar_wts")
    zoo = import_zoo(tmp_path / "siren_cifar_wts", tmp_path / "zoo", kind="nfn")
    assert zoo.all.sole_architecture == Stack.mlp((2, 32, 32, 3), "sine:30")
    assert zoo.meta["recipe"] == {"name": "nfn", "pixel_range": [-1.0, 1.0]}
    assert zoo.meta["source"]["images"] == "cifar10"
    further = [0, 7, 44_999]  # of the further networks, those of training images alone
    assert zoo.train.column("image").tolist() == [0, 7, 44_999, *further]
    assert zoo.train.column("view").tolist() == [0, 0, 0, 5, 5, 5]
    assert zoo.val.column("image").tolist() == [45_000, 49_999]
    assert zoo.test.column("image").tolist() == [0, 9_999]
    assert zoo.test.column("source_split").tolist() == ["test", "test"]
    assert zoo.all.labels().tolist() == [0, 7, 9, 0, 9, 0, 9, 0, 7, 9]
    ((_, _, values),) = zoo.all.select(range(7)).state_dicts()
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 4), indexing="ij")
    theirs = torch.stack((rows.flatten(), columns.flatten()), 1)
    ours = torch.stack((columns.flatten(), rows.flatten()), 1)  # as all networks of this library read pixels
    found = zoo.all.sole_architecture.forward({name: value.double() for name, value in values.items()}, ours.double())
    for output, number in zip(found, NUMBERS, strict=True):
        assert (output - networks[number].double()(theirs.double())).abs().max() < 1e-10


def test_nfn_of_mnist(tmp_path: Path) -> None:
    write_nfn(tmp_path / "siren_mnist_wts", channels=1)
    zoo = import_zoo(tmp_path / "siren_mnist_wts", tmp_path / "zoo", kind="nfn")
    assert zoo.meta["source"]["images"] == "mnist"
    assert zoo.test.column("image").tolist() == [50_000, 59_999]  # MNIST has 60,000 training images
    assert set(zoo.test.column("source_split")) == {"train"}


def test_nfn_with_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nfn(tmp_path / "wts")
    place = tmp_path / "wts" / "randinit_smaller_7s"
    torch.save({"conv.weight": torch.ones(3)}, place / "net7.pth")
    torch.save(Siren(1, 1).state_dict(), place / "net17.pth")
    zoo = import_zoo(tmp_path / "wts", tmp_path / "zoo", kind="nfn")
    err = capsys.readouterr().err
    assert zoo.meta["skipped"] == 2 and "no tensor of a SIREN" in err and "another architecture" in err
    torch.save(Siren(1, 3).state_dict(), tmp_path / "wts" / "randinit_smaller_0s" / "net7.pth")
    with pytest.raises(UserError, match="are both network 7"):
        import_zoo(tmp_path / "wts", tmp_path / "zoo2", kind="nfn")
    with pytest.raises(UserError, match="holds no INRs of NFN"):
        import_zoo(tmp_path / "zoo", tmp_path / "zoo2", kind="nfn")


def write_dws(folder: Path) -> None:
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    for number in range(12):
        generator = torch.Generator().manual_seed(number)
        state = {name: torch.randn(shape, generator=generator) for name, shape in stack.parameter_shapes().items()}
        split = "testing" if number >= 9 else "training"
        place = folder / "mnist-inrs" / f"mnist_png_{split}_{number % 10}_{number}" / "checkpoints"
        place.mkdir(parents=True)
        torch.save(state, place / "model_final.pth")


def splits(**numbers: list[int]) -> dict[str, Any]:
    def path(number: int) -> str:
        split = "testing" if number >= 9 else "training"
        return f"dataset/mnist-inrs/mnist_png_{split}_{number % 10}_{number}/checkpoints/model_final.pth"

    return {
        split: {"path": [path(n) for n in chosen], "label": [str(n % 10) for n in chosen]}
        for split, chosen in numbers.items()
    }


def test_published_splits_of_dws(tmp_path: Path) -> None:
    write_dws(tmp_path / "data")
    file = tmp_path / "mnist_splits.json"
    file.write_text(json.dumps(splits(train=[8, 1, 2], val=[0, 5], test=[9, 11])))
    zoo = import_zoo(tmp_path / "data", tmp_path / "zoo", kind="dws", split_file=file)
    assert set(zoo.train.column("image")) == {1, 2, 8} and set(zoo.val.column("image")) == {0, 5}
    assert set(zoo.test.column("image")) == {9, 11} and len(zoo) == 7
    wrong = splits(train=[1], val=[2], test=[3])
    wrong["train"]["label"] = ["4"]
    file.write_text(json.dumps(wrong))
    zoo = import_zoo(tmp_path / "data", tmp_path / "zoo2", kind="dws", split_file=file)
    assert zoo.meta["skipped"] == 1 and "mixed-up layout" in (tmp_path / "zoo2" / "skipped.txt").read_text()
    for content, said in {
        "{}": "no split file",
        json.dumps(splits(train=[1], val=[1], test=[2])): "twice",
        json.dumps(splits(train=[50], val=[51], test=[52])): "names none of the networks",
        json.dumps({split: {"path": ["a/b.pth"]} for split in ("train", "val", "test")}): "no network of these corpora",
    }.items():
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            import_zoo(tmp_path / "data", tmp_path / "zoo3", kind="dws", split_file=file)
