from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.graph import Stack
from neural_graphs.tasks import OptimConfig, TrainConfig
from neural_graphs.zoo import Zoo, ZooWriter

os.environ["NEURAL_GRAPHS_NO_PROGRESS"] = "1"

SMALL = Stack.mlp((2, 8, 1), "sine:30", shift=0.5)
DEEP = Stack.mlp((2, 5, 6, 1), "sine:30", shift=0.5)


def networks(stack: Stack, labels: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Random networks whose class is easy to see: it is in the size of all weights, and in the output's bias."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: torch.randn(len(labels), *shape, generator=generator) * 0.1
        for name, shape in stack.parameter_shapes().items()
    }
    last = stack.layers[-1]
    classes = torch.from_numpy(labels).float()
    values[f"{last.name}.bias"] += (classes - 1)[:, None]
    return {name: value * (1 + 2 * classes).view(-1, *(1,) * (value.dim() - 1)) for name, value in values.items()}


def write_zoo(
    path: Path,
    stacks: dict[str, Stack],
    count: int = 96,
    shard: int = 40,
    more: dict[str, np.ndarray] | None = None,
) -> Zoo:
    """``more`` are further columns, an entry per network."""
    numbers = np.arange(count)
    split = np.array([("train", "train", "train", "val", "test", "train")[i % 6] for i in numbers], dtype=object)
    label = (numbers // 6) % 3
    with ZooWriter(path, stacks, {"name": "easy", "source": {"classes": ["low", "mid", "high"]}}) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            mine = numbers[(numbers // 18) % len(stacks) == k]
            tensors = networks(stack, label[mine], seed=k)
            for number, first in enumerate(range(0, len(mine), shard)):
                part = mine[first : first + shard]
                columns = {"network": part, "split": split[part], "label": label[part], "score": part / count}
                columns |= {key: value[part] for key, value in (more or {}).items()}
                here = {key: value[first : first + shard] for key, value in tensors.items()}
                writer.append(name, number, here, columns)
        return writer.finish()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("zoos") / "one", {"a0": SMALL})


@pytest.fixture(scope="session")
def mixed_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("zoos") / "two", {"a0": SMALL, "a1": DEEP})


def configure(zoo: Zoo, out: Path, **changes: Any) -> TrainConfig:
    """A run of seconds; ``changes`` of the optimizer's fields and of the configuration's."""
    base = TrainConfig(
        zoo=str(zoo.path),
        out=str(out),
        encoder={"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0, "dropout": 0.1},
        optimizer=OptimConfig(
            epochs=4, batch_size=16, lr=1e-2, warmup_steps=4, amsgrad=True, schedule="constant", clip=10.0
        ),
        threads=1,
    )
    optimizer = {key: changes.pop(key) for key in list(changes) if hasattr(base.optimizer, key)}
    return replace(base, optimizer=replace(base.optimizer, **optimizer), **changes)


@pytest.fixture(scope="session")
def make_zoo() -> Any:
    return write_zoo


@pytest.fixture(scope="session")
def config() -> Any:
    return configure


@pytest.fixture(scope="session")
def trained(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    from neural_graphs.tasks import train

    return train(configure(zoo, tmp_path_factory.mktemp("runs") / "trained", epochs=8), quiet=True).run_dir
