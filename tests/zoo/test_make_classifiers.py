"""Zoos of classifiers: made, broken off, gone on with; splits by run; wrong arguments in one line."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.zoo import ImageSet, Zoo, make_cnn_zoo
from neural_graphs.zoo import _make_classifiers as making
from neural_graphs.zoo._classifier_recipes import assign_splits


def _sets(side: int = 16, count: int = 160, channels: int = 1) -> tuple[ImageSet, ImageSet]:
    rng = np.random.default_rng(0)
    found = []
    for split in ("train", "test"):
        labels = rng.integers(4, size=count)
        shape = (count, side, side) if channels == 1 else (count, side, side, 3)
        images = rng.integers(0, 120, size=shape, dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label * 4 : label * 4 + 4] += 120
        found.append(ImageSet(images, labels, "bars", split, tuple("abcd"), "drawn"))
    return found[0], found[1]


def _make(out: Path, **options: Any) -> Zoo:
    chosen = {
        "images": _sets(),
        "size": 6,
        "epochs": 2,
        "checkpoints": (1, 2),
        "batch_size": 16,
        "workers": 1,
    } | options
    return make_cnn_zoo(out, **chosen)


def _equal(one: Zoo, other: Zoo) -> None:
    for a, b in zip(one.all.state_dicts(), other.all.state_dicts(), strict=True):
        for name in a[2]:
            assert torch.equal(a[2][name], b[2][name])
    assert one.table.drop_columns(["shard", "row"]).equals(other.table.drop_columns(["shard", "row"]))


def test_small_cnn_zoo(tmp_path: Path) -> None:
    zoo = _make(tmp_path / "zoo", size=20)
    assert len(zoo) == 40 and zoo.complete
    whole = zoo.all
    assert whole.column("run").tolist() == np.repeat(np.arange(20), 2).tolist()
    assert whole.column("epoch").tolist() == [1.0, 2.0] * 20
    for run in range(20):  # checkpoints of one run stay together
        assert len(set(whole.column("split")[whole.column("run") == run])) == 1
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [28, 4, 8]
    for name in ("train_accuracy", "test_accuracy", "train_fraction", "dropout"):
        assert ((whole.column(name) >= 0) & (whole.column(name) <= 1)).all()
    assert set(whole.column("activation")) == {"relu", "tanh"}
    kinds = {name: str(stack).rsplit(" ")[-1] for name, stack in zoo.architectures.items()}
    assert [kinds[a] for a in whole.column("architecture")] == whole.column("activation").tolist()
    assert zoo.meta["training"]["image_visits"] > 0
    _equal(zoo, _make(tmp_path / "zoo", size=20))  # complete: opened, not made again


def test_recorded_figures_are_those_of_the_stored_weights(tmp_path: Path) -> None:
    zoo = _make(tmp_path / "zoo", size=4)
    data = making.prepare_images(*_sets())
    assert float(data.train.mean()) == pytest.approx(0, abs=1e-5) and float(data.train.std()) == pytest.approx(
        1, rel=1e-4
    )
    accuracy = zoo.all.column("test_accuracy")
    for name, places, values in zoo.all.state_dicts():
        logits = zoo.architectures[name].forward(values, data.test)
        found = (logits.argmax(-1) == data.test_labels).float().mean(1)
        assert found.tolist() == pytest.approx(accuracy[places.numpy()].tolist(), abs=1e-6)


def test_wild_park_keeps_shapes_in_one_split_and_activations_apart(tmp_path: Path) -> None:
    zoo = _make(tmp_path / "zoo", recipe="wild-park", images=_sets(8, channels=3), size=24, side=4)
    whole = zoo.all
    assert len(zoo.architectures) > 20
    for first in range(0, 24, 4):
        mine = (whole.column("run") // 4) == first // 4
        shapes = {zoo.architectures[a].widths for a in whole.column("architecture")[mine]}
        assert len(shapes) == 1
        assert len(set(whole.column("split")[mine])) == 1
    assert zoo.meta["source"]["height"] == 4
    batch = whole.batch(slice(0, 8))
    assert len(batch) == 8


def test_broken_off_and_gone_on_with_is_the_same_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _make(tmp_path / "whole", size=12, chunk=2)
    real, calls = making.train_chunk, threading.Semaphore(2)

    def breaks(*args: Any, **kwargs: Any) -> Any:
        if not calls.acquire(blocking=False):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(making, "train_chunk", breaks)
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        _make(tmp_path / "broken", size=12, chunk=2)
    monkeypatch.setattr(making, "train_chunk", real)
    begun = Zoo.load(tmp_path / "broken")
    assert not begun.complete and 0 < len(begun) < 24
    _equal(_make(tmp_path / "broken", size=12, chunk=2), expected)


def test_workers_and_size_change_no_network(tmp_path: Path) -> None:
    few, many = _make(tmp_path / "few", size=5, chunk=4), _make(tmp_path / "many", size=11, chunk=4, workers=2)
    for run in range(5):
        for k in range(2):
            ((_, _, a),) = few.all.select([2 * run + k]).state_dicts()
            ((_, _, b),) = many.all.select([2 * run + k]).state_dicts()
            for name in a:  # chunks differ, and with them the last bits
                torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nope"}, "choose one of small-cnn-zoo, wild-park"),
        ({"images": _sets(8)}, "too small"),
        ({"side": 5}, "divisor"),
        ({"checkpoints": (2, 1)}, "ascending"),
        ({"checkpoints": (1,)}, "the last is 2"),
        ({"splits": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"batch_size": 4096}, "fewer than that"),
        ({"train_images": 10**6}, "has 160 train images"),
        ({"size": 0}, "must be positive"),
        ({"precision": "fp8"}, "fp32 or bf16"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _make(tmp_path / "zoo", **options)
    assert not (tmp_path / "zoo").exists()


def test_other_arguments_do_not_overwrite(tmp_path: Path) -> None:
    _make(tmp_path / "zoo", size=2)
    with pytest.raises(UserError, match="runs is 2 there and 3 here"):
        _make(tmp_path / "zoo", size=3)


def test_splits_are_drawn_by_group() -> None:
    split = assign_splits(40, 4, (0.5, 0.2, 0.3), 0)
    assert [int((split == name).sum()) for name in ("train", "val", "test")] == [20, 8, 12]
    assert (split.reshape(10, 4) == split.reshape(10, 4)[:, :1]).all()
    assert split.tolist() != assign_splits(40, 4, (0.5, 0.2, 0.3), 1).tolist()


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    full, half = _make(tmp_path / "full", size=8), _make(tmp_path / "half", size=8, precision="bf16")
    gap = full.all.column("test_loss") - half.all.column("test_loss")
    assert np.abs(gap).max() > 0 and np.abs(gap).mean() < 0.1


@pytest.mark.parametrize(("side", "expected"), [(8, 0), (16, 0), (28, 14), (32, 16)])
def test_images_are_averaged_down_to_what_divides_them(side: int, expected: int) -> None:
    assert making._side(16, _sets(side, 4)[0]) == expected
    assert making._side(0, _sets(side, 4)[0]) == 0


def test_a_recipe_takes_images_smaller_than_its_own(tmp_path: Path) -> None:
    zoo = _make(tmp_path / "zoo", recipe="wild-park", images=_sets(8), size=4)
    assert (zoo.meta["source"]["height"], zoo.meta["recipe"]["side"]) == (8, 0)
