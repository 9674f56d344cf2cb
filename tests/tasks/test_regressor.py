"""Regressors learn a number that is a function of the weights, and say how sure they are of it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import neural_graphs as ng
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Layer, ModuleArchitecture, Stack
from neural_graphs.graph._activation import Activation
from neural_graphs.nn._card import model_card
from neural_graphs.tasks import AugmentConfig, OptimConfig, Regressor, TrainConfig, evaluate, load_model, train
from neural_graphs.tasks._data import check_distinct, fingerprints
from neural_graphs.tasks._loop import Loop
from neural_graphs.testing import assert_invariant, random_graph
from neural_graphs.zoo import Zoo, ZooWriter

RELU = Activation.parse("relu")


def cnn(*channels: int, kernel: int = 3) -> Stack:
    """Convolutions, the last of them pooled globally, and a linear layer to 4 outputs."""
    layers = [
        Layer(f"conv{k}", a, b, (kernel, kernel), activation=RELU, padding=kernel // 2, pool="global" if last else "")
        for k, (a, b, last) in enumerate((a, b, k == len(channels) - 2) for k, (a, b) in enumerate(pairwise(channels)))
    ]
    return Stack((*layers, Layer("head", channels[-1], 4)))


SMALL, LARGE = cnn(1, 4, 4), cnn(1, 3, 5, 4, kernel=5)


def write(path: Path, stacks: dict[str, Stack], count: int, **more: np.ndarray) -> Zoo:
    """Networks whose ``test_accuracy`` follows from the size of their first weights and the mean of their last biases."""
    numbers = np.arange(count)
    run = numbers // 2
    split = np.array([("train", "train", "train", "val", "test")[r % 5] for r in run], dtype=object)
    with ZooWriter(path, stacks, {"name": "small"}) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            mine = numbers[numbers % len(stacks) == k]
            generator = torch.Generator().manual_seed(k)
            tensors = {
                key: 0.3 * torch.randn(len(mine), *shape, generator=generator)
                for key, shape in stack.parameter_shapes().items()
            }
            tensors[stack.layers[0].weight] *= torch.rand(len(mine), 1, 1, 1, 1, generator=generator) + 0.5
            size = tensors[stack.layers[0].weight].flatten(1).std(1)
            accuracy = torch.sigmoid(5 * (size - 0.3) + 5 * tensors["head.bias"].mean(1)).numpy()
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
        "ng-gnn": {"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0},
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
    assert result.metrics["test_mae"] < 0.08  # the standard deviation is 0.2
    assert result.metrics["test_interval_coverage"] > 0.8
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    best = max(row["val_kendall_tau"] for row in result.history)
    assert result.metrics["val_kendall_tau"] == pytest.approx(best, abs=1e-3)


def test_mixed_architectures(mixed: Zoo, tmp_path: Path) -> None:
    augment = AugmentConfig(noise=0.1, dropout=0.01)
    result = train(configure(mixed, tmp_path / "run", "ng-gnn", epochs=5, augment=augment), quiet=True)
    assert result.test_kendall_tau is not None and result.test_kendall_tau > 0.4
    about = result.metrics["per_architecture"]
    assert set(about) == {str(SMALL), str(LARGE)} and all(entry["mae"] < 0.2 for entry in about.values())


@pytest.mark.parametrize("encoder", ["statnn", "ng-gnn"])
def test_networks_that_are_no_plain_stacks(tmp_path: Path, encoder: str) -> None:
    sizes = {"channels": 1, "height": 4, "width": 4, "classes": 3, "patch": 2, "features": 4, "heads": 2, "blocks": 1}
    vit = ModuleArchitecture("vit", tuple({**sizes, "hidden": 5}.items()))
    numbers = np.arange(40)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(40, *shape, generator=generator) for name, shape in vit.parameter_shapes().items()}
    split = np.array([("train", "train", "val", "test")[k % 4] for k in numbers], dtype=object)
    with ZooWriter(tmp_path / "zoo", {"a0": vit}, {"name": "vits"}) as writer:
        writer.append("a0", 0, tensors, {"network": numbers, "split": split, "test_accuracy": numbers / 40})
        zoo = writer.finish()
    config = configure(zoo, tmp_path / "run", encoder, epochs=1, augment=AugmentConfig(noise=0.1, dropout=0.01))
    train(config, quiet=True)
    model = Regressor.from_pretrained(tmp_path / "run")
    assert model.architectures == (vit,)
    assert evaluate(tmp_path / "run")["predicted"] == model.predict(zoo.test).tolist()


# -- runs ------------------------------------------------------------------------------------------------------------------


def test_run_folder_and_evaluation(zoo: Zoo, trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    found = evaluate(trained)
    model = Regressor.from_pretrained(trained)
    for key in ("kendall_tau", "r2", "mae", "rmse", "interval_coverage", "interval_width"):
        assert found[key] == metrics[f"test_{key}"] and f"val_{key}" in metrics
    assert found["n"] == metrics["networks"]["test"] == len(zoo.test) and found["target"] == "test_accuracy"
    assert (
        found["calibration"] == metrics["calibration"] and sum(part["n"] for part in found["calibration"]) == found["n"]
    )
    assert found["network"] == zoo.test.column("network").tolist() and set(found["architectures"]) == {str(SMALL)}
    assert found["predicted"] == model.predict(zoo.test).tolist()
    assert found["true"] == zoo.test.column("test_accuracy").tolist()
    assert [found["lower"], found["upper"]] == model.predict_interval(zoo.test).T.tolist()
    assert found["novelty"] == model.novelty(zoo.test).tolist()
    assert model.score(zoo.test) == found["kendall_tau"]
    # What is said of validation holds there by construction.
    on_val = evaluate(trained, "val")
    assert on_val["interval_coverage"] >= 0.9 and np.mean(np.array(on_val["novelty"]) <= 1) >= 0.98


def test_interrupted_and_resumed_it_is_the_same_run(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(out: Path) -> TrainConfig:
        changed = AugmentConfig(noise=0.1, dropout=0.01, symmetry=True)
        config = configure(zoo, out, "ng-gnn", epochs=2, augment=changed, limit_train=64, loss="ranking")
        return replace(config, optimizer=replace(config.optimizer, ema=0.9))

    train(settings(tmp_path / "straight"), quiet=True)
    original = Loop._step

    def press(loop: Any, sample: Any) -> None:
        original(loop, sample)
        if loop.course.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", press)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(settings(tmp_path / "run"), quiet=True)
    monkeypatch.undo()
    train(settings(tmp_path / "run"), resume=True, quiet=True)
    for file in ("model/model.safetensors", "last/state.safetensors"):
        left, right = (load_file(tmp_path / name / file) for name in ("straight", "run"))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left), file
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("straight", "run")]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs]
    assert rows[0] == rows[1] and len(rows[0]) == 2


def test_killed_before_the_calibrated_model_is_written(
    zoo: Zoo, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Regressor, "calibrate", die)
    with pytest.raises(MemoryError):
        train(configure(zoo, tmp_path / "run"), quiet=True)
    monkeypatch.undo()
    train(configure(zoo, tmp_path / "run"), resume=True, quiet=True)
    left, right = (load_file(run / "model" / "model.safetensors") for run in (trained, tmp_path / "run"))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_where_chooses_networks_of_every_split(zoo: Zoo, tmp_path: Path) -> None:
    where = {"optimizer": "adam", "learning_rate": 0.1}
    result = train(configure(zoo, tmp_path / "run", epochs=1, where=where), quiet=True)
    for split in ("train", "val", "test"):
        assert result.metrics["networks"][split] == (zoo.split(split).column("optimizer") == "adam").sum()
    assert evaluate(tmp_path / "run")["n"] == result.metrics["networks"]["test"]
    assert evaluate(tmp_path / "run", where={"optimizer": "sgd"})["n"] == (zoo.test.column("optimizer") == "sgd").sum()
    for wrong, message in (
        ({"colour": 1}, "no column 'colour': its columns are .*optimizer"),
        ({"optimizer": "lion"}, "no train networks with optimizer = lion"),
        ({"learning_rate": "high"}, "learning_rate is 'high', but the column holds float32"),
    ):
        with pytest.raises(UserError, match=message):
            train(configure(zoo, tmp_path / "other", where=wrong), quiet=True)


def test_held_out_architectures_are_tested(mixed: Zoo, tmp_path: Path) -> None:
    held_out = train(configure(mixed, tmp_path / "run", epochs=1, hold_out=[str(LARGE)]), quiet=True)
    seen = {name: about["seen"] for name, about in held_out.metrics["per_architecture"].items()}
    assert seen == {str(SMALL): True, str(LARGE): False}
    assert Regressor.from_pretrained(tmp_path / "run").architectures == (SMALL,)


# -- the model -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["statnn", "ng-gnn", "ng-t"])
def test_reordered_neurons_change_nothing(encoder: str) -> None:
    torch.manual_seed(0)
    arguments = {"kernel": [3, 3]} if encoder != "statnn" else {}
    model = Regressor(ng.create_encoder(encoder, width=16, **arguments), 4).double().eval()
    graph = random_graph(SMALL, 5)
    model.encoder.fit_normalization([graph])
    assert_invariant(model, graph, control="networks")


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-3.0, 5.0), (0.0, 1.5)])
def test_answers_lie_in_bounds_and_intervals_hold_them(zoo: Zoo, bounds: tuple[float, float]) -> None:
    torch.manual_seed(0)
    model = Regressor(ng.create_encoder("statnn", width=8), 4, bounds=bounds)
    with pytest.raises(UserError, match="has not been fitted"):
        model.novelty(zoo.test)
    model.fit(zoo.train, zoo.val, epochs=2, lr=1e-2, threads=1, quiet=True)
    value, interval = model.predict(zoo.test), model.predict_interval(zoo.test)
    assert bounds[0] <= interval[:, 0].min() and interval[:, 1].max() <= bounds[1]
    assert (interval[:, 0] <= value).all() and (value <= interval[:, 1]).all() and value.std() > 0
    (lower, upper), true = model.predict_interval(zoo.val).T, zoo.val.targets("test_accuracy")
    assert ((lower <= true) & (true <= upper)).double().mean() >= 0.9
    whole = model.assess(zoo.test)
    torch.testing.assert_close(whole.value, value)
    torch.testing.assert_close(torch.stack([whole.lower, whole.upper], 1), interval)
    loud = GraphBatch(tuple(graph.map(lambda t: 20 * t) for graph in zoo.test.batch().buckets), zoo.test.batch().index)
    assert model.novelty(loud).min() > model.novelty(zoo.test).median()
    one = zoo.test.batch([3]).buckets[0]
    for x in (one, [one], one.to_state_dict()):
        torch.testing.assert_close(model.predict(x), value[3:4])


def test_quantiles_do_not_disturb_the_number(zoo: Zoo) -> None:
    model = Regressor(ng.create_encoder("statnn", width=8), 4)
    model(zoo.train.batch(range(8)))[:, 1:].sum().backward()
    last = model.head.mlp[-1]
    for parameter in model.parameters():
        if parameter is last.weight or parameter is last.bias:
            assert not parameter.grad[0].any() and parameter.grad[1:].any()
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_save_and_load(zoo: Zoo, trained: Path, tmp_path: Path) -> None:
    model = Regressor.from_pretrained(trained)
    model.save(tmp_path / "copy")
    for source in (trained, tmp_path / "copy"):
        other = load_model(source)
        assert isinstance(other, Regressor) and other.bounds == (0, 1) and other.target == "test_accuracy"
        for a, b in zip(other.assess(zoo.test), model.assess(zoo.test), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(UserError, match="describes no classifier"):
        ng.Classifier.from_pretrained(trained)
    encoder = ng.nn.Encoder.from_pretrained(trained)
    batch = zoo.test.batch(range(4))
    torch.testing.assert_close(encoder(batch).vector, model.encoder(batch).vector)
    assert "Regressor.from_pretrained" in model_card("me/it", model.config(), 1, {"tau": 0.9}, {})


def test_mistakes_are_one_line(zoo: Zoo, tmp_path: Path) -> None:
    encoder = ng.create_encoder("statnn", width=8)
    for arguments, message in (
        ({"loss": "mae"}, "unknown loss 'mae': choose one of mse, bce, ranking"),
        ({"bounds": (1, 0)}, "bounds are .*the smaller one first"),
    ):
        with pytest.raises(UserError, match=message):
            Regressor(encoder, 4, **arguments)
    with pytest.raises(UserError, match="unknown option bounds"):
        Regressor(encoder, 4).fit(zoo.train, bounds=(0, 1))
    accuracy = zoo.all.column("test_accuracy").copy()
    for place, value, message in (
        (17, 1.5, r"test_accuracy of network 17 of .* is 1.5, outside 0 to 1"),
        (399, np.nan, "test_accuracy of network 399 of .* is missing or not finite"),
    ):
        broken = accuracy.copy()
        broken[place] = value
        bad = write(tmp_path / str(place), {"a0": SMALL}, 400, test_accuracy=broken)
        with pytest.raises(UserError, match=message) as caught:
            train(configure(bad, tmp_path / "run"), quiet=True)
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no column 'accuracy': its columns are .*test_accuracy"):
        train(replace(configure(zoo, tmp_path / "run"), label="accuracy"), quiet=True)
    with pytest.raises(UserError, match="column 'optimizer' of .* holds no numbers"):
        train(replace(configure(zoo, tmp_path / "run"), label="optimizer"), quiet=True)


def test_runs_and_duplicates_do_not_cross_splits(zoo: Zoo, tmp_path: Path) -> None:
    run = zoo.all.column("run").copy()
    run[[0, 8]] = 1000  # of train and test
    bad = write(tmp_path / "run", {"a0": SMALL}, 400, run=run)
    with pytest.raises(UserError, match=r"networks 0 \(train\) and 8 \(test\) are of one run"):
        train(configure(bad, tmp_path / "out"), quiet=True)
    bad = write(tmp_path / "same", {"a0": SMALL}, 400)
    shard = next((bad.path / "weights").glob("*.safetensors"))
    tensors = load_file(shard)
    for value in tensors.values():
        value[8] = value[4]  # once more in training: no harm
        value[9], value[3] = value[5], value[1]
    save_file(tensors, shard)
    with pytest.raises(UserError, match=r"networks 4 \(train\) and 8 \(test\) have the same weights"):
        train(configure(Zoo.load(bad.path), tmp_path / "out"), quiet=True)
    check_distinct([zoo.train, zoo.val, zoo.test])


def test_fingerprints_tell_networks_apart() -> None:
    values = {"w": torch.randn(50, 3, 4), "b": torch.randn(50, 3)}
    values["w"][7], values["b"][7] = values["w"][3], values["b"][3]
    values["w"][9], values["b"][9] = values["w"][3], values["b"][3].flip(0)
    keys = fingerprints(values).tolist()
    assert keys[7] == keys[3] and len(set(keys)) == 49


def test_public_names() -> None:
    assert ng.Regressor is ng.tasks.Regressor is Regressor and "Regressor" in dir(ng)
