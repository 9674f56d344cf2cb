"""Describing zoos of classifiers: runs, accuracies, hyper-parameters."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from neural_graphs.cli import main
from neural_graphs.graph import Stack
from neural_graphs.zoo import Zoo, ZooWriter, print_zoo_info, zoo_info

NETWORKS = 24


def write(path: Path, changes: dict[str, Any], stacks: int = 1) -> Zoo:
    numbers = np.arange(NETWORKS)
    columns: dict[str, Any] = {
        "network": numbers,
        "split": np.where(numbers < 16, "train", "test").astype(object),
        "run": numbers // 3,
        "epoch": (numbers % 3 + 1).astype(np.float32),
        "test_accuracy": np.linspace(0.1, 0.6, NETWORKS).astype(np.float32),
        "learning_rate": np.float32(10.0) ** -(numbers % 4),
        "dropout": np.zeros(NETWORKS, np.float32),
        "activation": np.where(numbers % 3 == 0, "tanh", "relu").astype(object),
    } | changes
    architectures = {f"a{k}": Stack.mlp((4, 3 + k, 2), "relu") for k in range(stacks)}
    source = {"images": "cifar10-gs", "height": 32, "width": 32, "channels": 1}
    with ZooWriter(
        path, architectures, {"name": "cnns", "recipe": {"name": "small-cnn-zoo"}, "source": source}
    ) as writer:
        for k, (name, stack) in enumerate(architectures.items()):
            mine = numbers[numbers % stacks == k]
            tensors = {key: torch.randn(len(mine), *shape) for key, shape in stack.parameter_shapes().items()}
            writer.append(name, 0, tensors, {key: value[mine] for key, value in columns.items()})
        return writer.finish()


def test_classifiers(tmp_path: Path) -> None:
    info = zoo_info(write(tmp_path / "zoo", {}))["classifiers"]
    assert (info["runs"], info["checkpoints"], info["epochs"]) == (8, 24, {"min": 1, "max": 3})
    accuracy = np.linspace(0.1, 0.6, NETWORKS)
    for name, share in {"min": 0, "quartile_1": 0.25, "median": 0.5, "quartile_3": 0.75, "max": 1}.items():
        assert info["accuracy"][name] == pytest.approx(np.quantile(accuracy, share), abs=1e-6)
    assert sum(info["histogram"]["counts"]) == 24 and len(info["histogram"]["edges"]) == 11
    found = info["hyper_parameters"]
    assert list(found) == ["learning_rate", "dropout", "activation"]
    assert found["learning_rate"] == {"min": pytest.approx(1e-3), "max": 1, "distinct": 4}
    assert found["activation"] == {"counts": {"relu": 16, "tanh": 8}, "distinct": 2}


def test_printed_classifiers(tmp_path: Path) -> None:
    text = io.StringIO()
    info = zoo_info(write(tmp_path / "zoo", {}, stacks=24))
    print_zoo_info(info, Console(file=text, width=100))
    printed = text.getvalue()
    for words in (
        "cifar10-gs 32x32x1",
        "8 with 3 checkpoints each, epochs 1 to 3",
        "10.0% to 60.0%, median 35.0%, half of them 22.5% to 47.5%",
        "relu 16, tanh 8",
        "0.001 to 1 (4 values)",
        "and 4 others",
    ):
        assert words in " ".join(printed.split()), words
    bars = [line for line in printed.splitlines() if "%  " in line and ("#" in line or "█" in line)]
    assert len(bars) == 10


def test_accuracies_and_values_that_are_missing(tmp_path: Path) -> None:
    accuracy = np.linspace(0.1, 0.6, NETWORKS).astype(np.float32)
    accuracy[3] = np.nan
    zoo = write(tmp_path / "some", {"test_accuracy": accuracy, "dropout": np.full(NETWORKS, np.nan, np.float32)})
    info = zoo_info(zoo)
    assert info["classifiers"]["accuracy"]["missing"] == 1
    assert "dropout" not in info["classifiers"]["hyper_parameters"]
    json.dumps(info, allow_nan=False)
    text = io.StringIO()
    print_zoo_info(zoo_info(write(tmp_path / "none", {"test_accuracy": accuracy * np.nan})), Console(file=text))
    assert "24 networks have none" in text.getvalue()


def test_the_command_draws_no_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "zoo", {})
    assert main(["zoo", "info", str(tmp_path / "zoo"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sheet"] is None and found["classifiers"]["runs"] == 8
    assert main(["zoo", "info", str(tmp_path / "zoo")]) == 0
    assert "contact sheet" not in capsys.readouterr().out
