"""The experiment on adaptation: which rows come of it, and that a change for all networks is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neural_graphs._io import read_json
from neural_graphs.bench import _adapt, _classification, adaptation, read_results
from neural_graphs.bench._adapt import Scales, fit_scales
from neural_graphs.bench._tables import tables
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.tasks import TrainConfig, load_config, train
from neural_graphs.tasks._adapt_images import adapt_images
from neural_graphs.zoo import Zoo, ZooWriter


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Untrained classifiers of digits, of two non-linearities, two checkpoints each."""
    stacks = {}
    for name, kind in (("a0", "relu"), ("a1", "tanh")):
        first = Layer("conv", 1, 6, (3, 3), activation=Activation.parse(kind), stride=2)
        stacks[name] = Stack((first, Layer("head", 6, 10, positions=9)))
    meta = {
        "source": {"images": "digits", "height": 8, "width": 8, "channels": 1},
        "recipe": {"name": "drawn", "side": 0, "train_images": 1000, "test_images": 100},
    }
    with ZooWriter(tmp_path_factory.mktemp("zoos") / "digits", stacks, meta) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            generator = torch.Generator().manual_seed(k)
            shapes = stack.parameter_shapes().items()
            values = {key: 0.4 * torch.randn(24, *shape, generator=generator) for key, shape in shapes}
            runs = np.arange(12) + 12 * k
            columns: dict[str, np.ndarray] = {
                "network": np.arange(24) + 24 * k,
                "run": np.repeat(runs, 2),
                "epoch": np.tile(np.array([1, 3], np.float32), 12),
                "split": np.repeat(np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 4, object), 2),
            }
            writer.append(name, 0, values, columns)
        return writer.finish()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(config: TrainConfig, quiet: bool = False) -> dict[str, object]:
        return dict(train(config, resume=True, quiet=True).metrics)

    monkeypatch.setattr(_classification, "_train_apart", here)
    small = {name: {**entry.encoder, "width": 8, "layers": 1} for name, entry in _adapt.ADAPTERS.items()}
    for name, entry in list(_adapt.ADAPTERS.items()):
        monkeypatch.setitem(
            _adapt.ADAPTERS, name, _adapt.Entry(entry.method, entry.variant, small[name], entry.settings)
        )


def test_rows(digits: Zoo, tmp_path: Path, in_process: None) -> None:
    out = tmp_path / "results" / "edit-adapt.json"
    out.parent.mkdir()
    few = ["optimizer.epochs=1", "optimizer.batch_size=6"]
    rows = adaptation(digits.path, seeds=(0, 1), out=out, runs=tmp_path / "runs", overrides=few)
    assert read_results(out)["rows"] == rows
    keys = [(r["method"], r["variant"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    found = {key: r for key, r in zip(keys, rows, strict=True)}
    for corruption in ("noise", "blur"):
        before = found["no edit", corruption, "test_accuracy"]["values"]
        for method, variant in (
            ("scales", corruption),
            ("ng-gnn", f"trained on corrupted images, {corruption}"),
            ("ng-gnn", f"trained on clean images, {corruption}"),
        ):
            after, gain = (found[method, variant, metric]["values"] for metric in ("test_accuracy", "accuracy_gain"))
            assert len(after) == 2 and gain == pytest.approx([a - before[0] for a in after])
    assert len(found["no edit", "clean images", "test_accuracy"]["values"]) == 1
    metrics = read_json(tmp_path / "runs" / "ng-gnn-seed1" / "metrics.json")
    means = [
        found["ng-gnn", f"trained on corrupted images, {c}", "test_accuracy"]["values"][1] for c in ("noise", "blur")
    ]
    assert metrics["test_accuracy"] == pytest.approx(np.mean(means))
    assert metrics["networks"] == {"train": 12, "val": 4, "test": 8}  # of the last epoch alone
    assert "points against no edit" in tables(out.parent)
    assert (
        adaptation(digits.path, seeds=(0, 1), out=out, runs=tmp_path / "runs", overrides=few) == rows
    )  # nothing again
    with pytest.raises(UserError, match="unknown 'trees'"):
        adaptation(digits.path, ["trees"], out=out, runs=tmp_path / "runs")


def test_scales_are_one_change_for_all(digits: Zoo) -> None:
    torch.manual_seed(0)
    scales = Scales(list(digits.architectures.values()))
    graph = digits.test.batch().buckets[0]
    before = graph.to_state_dict()
    assert all(torch.equal(value, before[name]) for name, value in scales(graph).to_state_dict().items())
    assert len(scales.factors) == 8
    for factor in scales.factors.values():
        factor.data = torch.rand(())
    after = scales(graph).to_state_dict()
    for name, value in after.items():
        ratio = value / before[name]
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)
    stack = Stack.mlp((2, 3, 1), "relu")
    other = stack.graph({name: torch.ones(1, *shape) for name, shape in stack.parameter_shapes().items()})
    assert torch.equal(scales(other).edges[0], other.edges[0])


def test_scales_lower_the_loss(digits: Zoo) -> None:
    config = load_config("adapt", ["edits=[invert]", "optimizer.epochs=20", "optimizer.batch_size=12"])
    images = adapt_images(digits)
    scales = fit_scales(digits.train, images, config)
    graph = digits.train.batch().buckets[0]
    x, labels = images.held_out.corrupted("invert"), images.held_out.labels
    with torch.no_grad():
        before, after = (_adapt.answered(g, 1, x, labels)[:, 0].mean() for g in (graph, scales(graph)))
    assert after < before - 0.05
