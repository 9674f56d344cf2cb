"""The classification experiment: every method and seed once, whatever happens in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_graphs.bench import _classification as module
from neural_graphs.bench import encoder_ablation, inr_classification, option_ablation, read_results
from neural_graphs.bench._ablation import ENCODERS, OPTIONS
from neural_graphs.errors import RunError, UserError
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import load_config
from neural_graphs.tasks._run import read_config
from neural_graphs.zoo import ImageSet, make_zoo

CONFIG = """
encoder: {{name: {encoder}, width: 8, layers: 2}}
optimizer: {{epochs: 2, batch_size: 8, warmup_steps: 2}}
threads: 1
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    images = ImageSet(pixels, np.arange(40) % 10, "random", "all", tuple("0123456789"), "random")
    make_zoo(folder / "tiny", images, steps=2, workers=1)
    return folder / "tiny"


@pytest.fixture
def methods(tmp_path: Path) -> list[str]:
    for encoder in ("mlp", "ng-gnn"):
        (tmp_path / f"{encoder}.yaml").write_text(CONFIG.format(encoder=encoder))
    return [str(tmp_path / "mlp.yaml"), str(tmp_path / "ng-gnn.yaml")]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process instead of a fresh one, and say which runs there were."""
    trained: list[str] = []

    def train_here(config: Any, quiet: bool = False) -> Any:
        trained.append(Path(config.out).name)
        module.train(config, resume=True, quiet=True)
        return module._metrics(config)

    monkeypatch.setattr(module, "_train_apart", train_here)
    return trained


def test_rows_and_resuming(zoo: Path, methods: list[str], tmp_path: Path, in_process: list[str]) -> None:
    arguments = {"zoo": zoo, "out": tmp_path / "out.json", "runs": tmp_path / "runs", "command": "c"}
    inr_classification(methods=methods[:1], seeds=(0,), **arguments)
    assert in_process == ["mlp-seed0"]
    rows = inr_classification(methods=methods, seeds=(0, 1), **arguments)
    assert in_process == ["mlp-seed0", "mlp-seed1", "ng-gnn-seed0", "ng-gnn-seed1"]
    data = read_results(tmp_path / "out.json")
    assert data["rows"] == rows and data["dataset"]["train"] == 32 and data["threads"] == 1
    found = {(r["method"], r["metric"]): r for r in rows}
    assert set(found) == {(m, f"{s}_accuracy") for m in ("mlp", "ng-gnn") for s in ("test", "val")}
    entry = found["ng-gnn", "test_accuracy"]
    assert entry["seeds"] == [0, 1] and len(entry["values"]) == 2 and entry["epochs"] == 2
    assert all(0 <= v <= 1 for v in entry["values"]) and entry["parameters"] > 1000 and entry["peak_memory_mb"] > 0
    assert found["mlp", "test_accuracy"]["parameters"] != entry["parameters"]


def test_another_configuration_is_not_taken_for_the_same(
    zoo: Path, methods: list[str], tmp_path: Path, in_process: list[str]
) -> None:
    arguments = {"zoo": zoo, "methods": methods[:1], "seeds": (0,), "out": tmp_path / "o.json", "runs": tmp_path / "r"}
    inr_classification(**arguments)
    with pytest.raises(UserError, match="another configuration"):
        inr_classification(overrides=["encoder.width=16"], **arguments)


def test_runs_have_processes_of_their_own(
    zoo: Path, methods: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = {"zoo": zoo, "methods": methods[:1], "out": tmp_path / "o.json"}
    rows = inr_classification(seeds=(3,), runs=tmp_path / "runs", **arguments)
    assert rows[0]["seeds"] == [3]
    with pytest.raises(RunError, match="mlp-seed4 failed"):
        inr_classification(seeds=(4,), runs=tmp_path / "other", overrides=["label=colour"], **arguments)
    assert "error: " in capfd.readouterr().err


def test_encoders_are_trained_alike(zoo: Path, tmp_path: Path, in_process: list[str]) -> None:
    arguments = {"zoo": zoo, "out": tmp_path / "encoders.json", "runs": tmp_path / "runs", "seeds": (0,)}
    short = ["optimizer.epochs=1", "optimizer.batch_size=16"]
    rows = encoder_ablation(methods=("mlp", "ng-gnn"), overrides=short, **arguments)
    assert sorted(in_process) == ["mlp-seed0", "ng-gnn-seed0"]
    assert [(r["method"], r["metric"]) for r in rows[::2]] == [("mlp", "test_accuracy"), ("ng-gnn", "test_accuracy")]
    configs = [read_config(tmp_path / "runs" / name) for name in in_process]
    assert configs[0].augment == configs[1].augment and configs[0].optimizer.epochs == configs[1].optimizer.epochs == 1
    assert all(r["seconds_per_epoch"] == r["seconds"] for r in rows)
    with pytest.raises(UserError, match="unknown 'nonsense': choose among mlp"):
        encoder_ablation(methods=("nonsense",), **arguments)


def test_options_differ_in_nothing_else(zoo: Path, tmp_path: Path, in_process: list[str]) -> None:
    short = ["optimizer.epochs=1", "optimizer.batch_size=16"]
    rows = option_ablation(
        zoo, ("mlp",), ("none", "ema"), (0,), tmp_path / "options.json", tmp_path / "runs", overrides=short
    )
    assert [r["variant"] for r in rows[::2]] == ["none", "ema"] and len(in_process) == 2
    plain, ema = (read_config(tmp_path / "runs" / name) for name in in_process)
    assert ema.optimizer.ema == 0.99 and plain.optimizer == replace(ema.optimizer, ema=0.0)
    assert replace(plain, out="", optimizer=ema.optimizer) == replace(ema, out="")
    assert all(load_config("inr-cpu", settings) for settings in OPTIONS.values())


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_of_the_ablation_exists(name: str) -> None:
    encoder = ENCODERS[name].encoder
    assert sum(p.numel() for p in create_encoder(**encoder).parameters()) > 1000


def test_accuracy_by_architecture(tmp_path: Path) -> None:
    config = load_config("inr-mlp", [f"out={tmp_path}", "encoder.name=ng-gnn"])
    tables = [
        {"a": {"accuracy": x, "n": 4, "seen": True}, "b": {"accuracy": 0.5, "n": 2, "seen": False}} for x in (0, 1)
    ]
    about = {"test_accuracy": 0.5, "val_accuracy": 0.5, "parameters": 1, "seconds": 1.0, "peak_memory_mb": 1.0}
    configs = tuple(replace(config, out=str(tmp_path / str(k))) for k in (0, 1))
    found = {c.out: {**about, "per_architecture": table} for c, table in zip(configs, tables, strict=True)}
    rows = {r["variant"]: r for r in module._rows(module.Method("m", "v", configs), found) if "networks" in r}
    assert {name: (r["mean"], r["networks"]) for name, r in rows.items()} == {
        "v, 1 architectures trained on": (0.5, 4),
        "v, 1 architectures never seen": (0.5, 2),
        "v, a": (0.5, 4),
        "v, b, never seen": (0.5, 2),
    }
    assert rows["v, a"]["values"] == [0.0, 1.0]
    single = {out: {**m, "per_architecture": {"a": m["per_architecture"]["a"]}} for out, m in found.items()}
    assert not [r for r in module._rows(module.Method("m", "v", configs), single) if "networks" in r]
