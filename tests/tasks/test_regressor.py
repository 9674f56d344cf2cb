"""Regressors learn a number that is a function of the weights, and say how sure they are of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neural_graphs as ng
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Layer, Stack
from neural_graphs.graph._activation import Activation
from neural_graphs.tasks import AugmentConfig, OptimConfig, Regressor, TrainConfig, evaluate, load_model, train
from neural_graphs.tasks._loop import Loop
from neural_graphs.testing import assert_invariant, random_graph
from neural_graphs.zoo import Zoo, ZooWriter

RELU = Activation.parse("relu")


def cnn(*channels: int, kernel: int = 3) -> Stack:
    """Convolutions, the last of them pooled globally, and a linear layer to 4 outputs."""
    layers = [
        Layer(f"conv{k}", a, b, (kernel, kernel), activation=RELU, padding=kernel // 2, pool="global" if last else "")
        for k, (a, b, last) in enumerate(
            (a, b, k == len(channels) - 2) for k, (a, b) in enumerate(zip(channels, channels[1:], strict=False))
        )
    ]
    return Stack((*layers, Layer("head", channels[-1], 4)))


SMALL, LARGE = cnn(1, 4, 4), cnn(1, 3, 5, 4, kernel=5)


def write(path: Path, stacks: dict[str, Stack], count: int, **more: np.ndarray) -> Zoo:
    """Networks whose ``test_accuracy`` is a function of the size of their first and last weights."""
    numbers = np.arange(count)
    run = numbers // 2
    split = np.array([("train", "train", "train", "val", "test")[r % 5] for r in run], dtype=object)
    with ZooWriter(path, stacks, {"name": "small"}) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            mine = numbers[numbers % len(stacks) == k]
            generator = torch.Generator().manual_seed(k)
            sizes = torch.rand(len(mine), 2, generator=generator) + 0.5
            tensors = {}
            for place, (key, shape) in enumerate(stack.parameter_shapes().items()):
                size = sizes[:, int(place >= len(stack.parameter_shapes()) - 2)]
                value = torch.randn(len(mine), *shape, generator=generator)
                tensors[key] = 0.3 * value * size.view(-1, *(1,) * len(shape))
            first, last = (tensors[layer.weight].flatten(1).std(1) / 0.3 - 1 for layer in (stack.layers[0], stack.layers[-1]))
            accuracy = torch.sigmoid(3 * first + 2 * last).numpy()
            columns: dict[str, Any] = {
                "network": mine,
                "split": split[mine],
                "run": run[mine],
                "test_accuracy": accuracy.astype(np.float32),
                "optimizer": np.where(mine % 3 == 0, "adam", "sgd").astype(object),
                "learning_rate": np.where(mine % 3 == 0, 0.1, 0.01).astype(np.float32),
                **{key: value[mine] for key, value in more.items()},
            }
            writer.append(name, 0, tensors, columns)
        return writer.finish()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write(tmp_path_factory.mktemp("zoo") / "cnns", {"a0": SMALL}, 400)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write(tmp_path_factory.mktemp("zoo") / "mixed", {"a0": SMALL, "a1": LARGE}, 400)


def configure(zoo: Zoo, out: Path, encoder: str = "statnn", epochs: int = 12, **changes: Any) -> TrainConfig:
    encoders = {
        "statnn": {"name": "statnn", "width": 16},
        "ng-gnn": {"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 4},
    }
    return TrainConfig(
        task="regress",
        zoo=str(zoo.path),
        out=str(out),
        label="test_accuracy",
        encoder=encoders[encoder],
        optimizer=OptimConfig(epochs=epochs, batch_size=16, lr=1e-2, warmup_steps=4),
        threads=1,
        **changes,
    )


@pytest.fixture(scope="module")
def trained(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(configure(zoo, tmp_path_factory.mktemp("run") / "run"), quiet=True).run_dir


@pytest.mark.parametrize("loss", ["mse", "bce", "ranking"])
def test_statistics_tell_a_number_that_depends_on_them(zoo: Zoo, tmp_path: Path, loss: str) -> None:
    result = train(configure(zoo, tmp_path / "run", loss=loss), quiet=True)
    assert result.test_kendall_tau is not None and result.test_kendall_tau > 0.8
    assert result.metrics["test_mae"] < 0.06  # the standard deviation is 0.17
    assert result.metrics["test_interval_coverage"] > 0.8
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    best = max(row["val_kendall_tau"] for row in result.history)
    assert result.metrics["val_kendall_tau"] == pytest.approx(best, abs=1e-3)


def test_mixed_architectures(mixed: Zoo, tmp_path: Path) -> None:
    augment = AugmentConfig(noise=0.1, dropout=0.01)
    result = train(configure(mixed, tmp_path / "run", "ng-gnn", augment=augment), quiet=True)
    assert result.test_kendall_tau is not None and result.test_kendall_tau > 0.5
    about = result.metrics["per_architecture"]
    assert set(about) == {str(SMALL), str(LARGE)} and all(entry["mae"] < 0.2 for entry in about.values())
