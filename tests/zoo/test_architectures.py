"""Zoos whose networks are no plain stacks, alone and beside some that are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, ModuleArchitecture, _architecture, register_architecture
from neural_graphs.testing import random_stack
from neural_graphs.zoo import Zoo, ZooWriter, render
from neural_graphs.zoo._loader import Loader


class Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_shape = (3, 8, 8)
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_architecture, "_FACTORIES", {})
    register_architecture("normed")(Normed)
    yield
    _architecture._facts.cache_clear()


def make(path: Path) -> tuple[Zoo, dict[str, dict[str, Tensor]]]:
    architectures: dict[str, Architecture] = {
        "a0": ModuleArchitecture("normed", (("width", 4),)),
        "a1": random_stack(3, "wild-park"),
        "a2": ModuleArchitecture("normed", (("width", 6),)),
    }
    weights = {
        name: {key: torch.rand(4, *shape) for key, shape in architecture.parameter_shapes().items()}
        for name, architecture in architectures.items()
    }
    with ZooWriter(path, architectures, {"name": "mixed", "request": 1}) as writer:
        for number, (name, tensors) in enumerate(weights.items()):
            ids = np.arange(4 * number, 4 * number + 4)
            writer.append(name, 0, tensors, {"network": ids, "split": np.array(["train"] * 4), "label": ids % 3})
        return writer.finish(), weights


def test_zoos_of_modules_and_stacks(tmp_path: Path) -> None:
    zoo, weights = make(tmp_path / "zoo")
    assert [str(architecture) for architecture in zoo.architectures.values()][::2] == [
        "normed(width=4)",
        "normed(width=6)",
    ]
    x = torch.rand(2, 3, 8, 8)
    order = [11, 0, 6, 5, 1, 8]
    names = [name for name in weights for _ in range(4)]
    expected = [
        zoo.architectures[names[i]].forward({k: v[i % 4, None] for k, v in weights[names[i]].items()}, x)[0]
        for i in order
    ]
    for batch in (
        zoo.train.batch(order),
        Loader(zoo.train, 4).sample(torch.tensor(order)).batch,
        Loader(zoo.train, 4, cache_bytes=0).sample(torch.tensor(order)).batch,
    ):
        found = batch.restore([graph.run(x) for graph in batch.buckets])
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_zoos_of_unknown_modules_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "zoo")
    monkeypatch.setattr(_architecture, "_FACTORIES", {})
    with pytest.raises(UserError, match="no architecture named 'normed' is registered"):
        Zoo.load(tmp_path / "zoo")


def test_classifiers_are_no_images(tmp_path: Path) -> None:
    zoo, _ = make(tmp_path / "zoo")
    with pytest.raises(UserError, match="is no image"):
        render(zoo.train, height=4, width=4)
