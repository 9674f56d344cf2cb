"""Training learns, says what it did, refuses what it must, and reports the test split for the best model only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from neural_graphs.errors import RunError, UserError
from neural_graphs.tasks import AugmentConfig, Classifier, evaluate, train
from neural_graphs.zoo import Zoo


@pytest.mark.parametrize("encoder", ["plain", "probes", "mlp"])
def test_learns_an_easy_label(zoo: Zoo, tmp_path: Path, config: Any, encoder: str) -> None:
    encoders = {
        "plain": {"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0, "dropout": 0.0},
        "probes": {"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0, "dropout": 0.0, "probes": 4},
        "mlp": {"name": "mlp", "width": 32},
    }
    result = train(config(zoo, tmp_path / "run", epochs=25, encoder=encoders[encoder]), quiet=True)
    assert result.test_accuracy is not None and result.test_accuracy >= 0.8  # chance is a third
    assert result.val_accuracy == max(row["val_accuracy"] for row in result.history)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_run_folder(trained: Path, zoo: Zoo) -> None:
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert metrics["best_epoch"] == best["epoch"] and metrics["val_accuracy"] == best["val_accuracy"]
    assert metrics["networks"] == {"train": 64, "val": 16, "test": 16}
    assert yaml.safe_load((trained / "config.yaml").read_text())["optimizer"]["epochs"] == 8
    # The reported test accuracy is that of the saved model.
    model = Classifier.from_pretrained(trained)
    assert model.score(zoo.test) == metrics["test_accuracy"] == evaluate(trained)["accuracy"]
    assert model.score(zoo.val) == metrics["val_accuracy"] == evaluate(trained, "val")["accuracy"]
    assert model.class_names == ("low", "mid", "high")


def test_evaluate(trained: Path, zoo: Zoo) -> None:
    found = evaluate(trained, "train")
    assert found["n"] == 64 and sum(map(sum, found["confusion"])) == 64
    assert found["accuracy"] == sum(found["confusion"][c][c] for c in range(3)) / 64
    assert found["per_architecture"] == {"2-8-1 sine:30": {"accuracy": found["accuracy"], "n": 64, "seen": True}}
    moved = evaluate(trained, "train", zoo=zoo.path)
    assert moved["loss"] == found["loss"]


def test_statistics_are_of_the_training_networks_used(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    train(config(zoo, tmp_path / "run", epochs=1, limit_train=20), quiet=True)
    found = Classifier.from_pretrained(tmp_path / "run").encoder.normalization
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    from neural_graphs.tasks._data import subset

    ((_, _, values),) = subset(zoo.train, 20, 0).state_dicts()
    mean, std = found.bias["2/2"]
    assert mean == pytest.approx(float(values["seq.1.bias"].mean()), abs=1e-6)
    assert std == pytest.approx(float(values["seq.1.bias"].std(correction=0)), abs=1e-6)


def test_same_seed_same_weights_whatever_happened_before(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for name in ("a", "b"):
        train(config(zoo, tmp_path / name, epochs=2, augment=AugmentConfig(noise=0.1, rotation=45.0)), quiet=True)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        before = torch.get_rng_state()
    train(config(zoo, tmp_path / "c", epochs=2, augment=AugmentConfig(noise=0.1, rotation=45.0), seed=1), quiet=True)
    a, b, c = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_accelerate_changes_nothing(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    """Its obvious twin: a plain loop in torch alone."""
    from neural_graphs.tasks._changes import DROPOUT, seed_of
    from neural_graphs.tasks._train import build
    from neural_graphs.zoo._loader import Loader

    settings = config(zoo, tmp_path / "run", epochs=2, clip=0.5)
    train(settings, quiet=True)
    model = build(settings, zoo, zoo.train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=5e-4, amsgrad=True, fused=True)
    step = 0
    with torch.random.fork_rng(devices=()):
        for epoch in range(2):
            for sample in Loader(zoo.train, 16).epoch(epoch):
                torch.manual_seed(seed_of(0, DROPOUT, step, 0))
                optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 4)
                model.train()
                loss = torch.nn.functional.cross_entropy(model(sample.batch), sample.labels)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                step += 1
    saved = load_file(tmp_path / "run" / "last" / "state.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            saved[f"model.{name}"], value, rtol=1e-4, atol=1e-5
        )  # sums of other numbers of threads


def test_torch_threads_are_given_back(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train(config(zoo, tmp_path / "run", epochs=1), quiet=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_bf16_trains_and_is_scored_in_float32(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    result = train(config(zoo, tmp_path / "run", epochs=20, precision="bf16"), quiet=True)
    assert result.test_accuracy is not None and result.test_accuracy >= 0.8
    model = Classifier.from_pretrained(tmp_path / "run")
    assert model.encoder.edge_dtype is None and model.score(zoo.test) == result.test_accuracy


def test_cosine_and_step_validation_and_patience(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    cosine = train(
        config(zoo, tmp_path / "a", epochs=3, schedule="cosine", eval_every=5, eval_unit="steps"), quiet=True
    )
    assert [row["step"] for row in cosine.history] == [5, 10, 12]
    rates = [row["lr"] for row in cosine.history]
    assert rates[0] > rates[1] > rates[2] > 0
    stopped = train(config(zoo, tmp_path / "b", epochs=50, lr=1e-30, patience=2), quiet=True)
    assert len(stopped.history) < 50
    best = stopped.history.index(next(row for row in stopped.history if row["epoch"] == stopped.best_epoch))
    assert len(stopped.history) == best + 3


def test_mixed_architectures(mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    result = train(config(mixed_zoo, tmp_path / "run", epochs=12), quiet=True)
    assert result.test_accuracy is not None and result.test_accuracy >= 0.6
    assert set(evaluate(tmp_path / "run")["per_architecture"]) == {"2-8-1 sine:30", "2-5-6-1 sine:30"}
    with pytest.raises(UserError, match="one architecture, this zoo holds 2"):
        train(config(mixed_zoo, tmp_path / "mlp", encoder={"name": "mlp"}), quiet=True)


def test_refusals(zoo: Zoo, trained: Path, tmp_path: Path, config: Any) -> None:
    with pytest.raises(UserError, match="no column 'colour'.*label, score"):
        train(config(zoo, tmp_path / "run", label="colour"), quiet=True)
    with pytest.raises(UserError, match="'score' .* no class numbers"):
        train(config(zoo, tmp_path / "run", label="score"), quiet=True)
    with pytest.raises(UserError, match="unknown encoder 'gnn': choose one of .*ng-gnn"):
        train(config(zoo, tmp_path / "run", encoder={"name": "gnn"}), quiet=True)
    with pytest.raises(UserError, match="encoder ng-gnn has no argument .depth.*"):
        train(config(zoo, tmp_path / "run", encoder={"name": "ng-gnn", "depth": 3}), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"finished run of another configuration \(seed\)"):
        train(config(zoo, trained, epochs=8, seed=5), quiet=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no training run"):
        train(config(zoo, tmp_path / "other"), quiet=True)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "precious"


def test_nan_weights_in_the_zoo_name_the_network(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    import shutil

    broken = tmp_path / "zoo"
    shutil.copytree(zoo.path, broken)
    shard = broken / "weights" / "a0-00000.safetensors"
    tensors = load_file(shard)
    tensors["seq.0.bias"][7, 2] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(UserError, match="network 7 has NaN or infinite values in seq.0.bias"):
        train(config(Zoo.load(broken), tmp_path / "run"), quiet=True)


def test_divergence_is_one_line(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    with pytest.raises(RunError, match="NaN or infinite at step .*lower optimizer.lr"):
        train(config(zoo, tmp_path / "run", lr=1e30, warmup_steps=0, clip=0.0, epochs=20), quiet=True)


def test_configuration_needs_no_torch() -> None:
    code = (
        "import sys; from neural_graphs.tasks import load_config, list_presets; "
        "load_config('inr-cpu', ['zoo=x']); print(list_presets()); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "inr-paper-probes" in done.stdout
