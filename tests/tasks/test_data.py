"""Which networks a run trains on, and what it says of architectures that it did not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.tasks import Classifier, evaluate, train
from neural_graphs.tasks._data import check_splits, limit_views, training_networks
from neural_graphs.tasks._train import build
from neural_graphs.zoo import Zoo

SEEN, UNSEEN = "2-8-1 sine:30", "2-5-6-1 sine:30"  # the second is deeper


def ids(zoo: Zoo, split: Any) -> set[str]:
    return {str(zoo.architectures[name]) for name in split.column("architecture")}


def test_held_out_architectures_are_neither_trained_on_nor_validated_with(
    mixed_zoo: Zoo, tmp_path: Path, config: Any
) -> None:
    settings = config(mixed_zoo, tmp_path / "run", epochs=2, hold_out=[UNSEEN])
    chosen, val = training_networks(settings, mixed_zoo)
    assert ids(mixed_zoo, chosen) == ids(mixed_zoo, val) == {SEEN}
    expected = [i for i in mixed_zoo.train.rows if mixed_zoo.table["architecture"][int(i)].as_py() == "a0"]
    assert chosen.rows.tolist() == expected and 0 < len(val) < len(mixed_zoo.val)

    train(settings, quiet=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["networks"] == {"train": len(chosen), "val": len(val), "test": len(mixed_zoo.test)}
    found = evaluate(tmp_path / "run")
    assert metrics["per_architecture"] == found["per_architecture"]
    entries = found["per_architecture"]
    assert {name: entry["seen"] for name, entry in entries.items()} == {SEEN: True, UNSEEN: False}
    assert sum(entry["n"] for entry in entries.values()) == found["n"] == len(mixed_zoo.test)
    model = Classifier.from_pretrained(tmp_path / "run")
    for name, entry in entries.items():
        mine = mixed_zoo.test.select(
            [i for i, a in enumerate(mixed_zoo.test.column("architecture")) if str(mixed_zoo.architectures[a]) == name]
        )
        assert model.score(mine) == entry["accuracy"] and len(mine) == entry["n"]
    assert list(map(str, model.architectures)) == [SEEN]


def test_statistics_are_those_of_the_architectures_trained_on(mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    settings = config(mixed_zoo, tmp_path / "run", hold_out=[UNSEEN])
    model = build(settings, mixed_zoo, training_networks(settings, mixed_zoo)[0])
    assert set(model.encoder.normalization.weight) == {"1/2", "2/2", "first", "last"}  # none of depth 3
    assert model.logits(mixed_zoo.test).isfinite().all()


def test_without_hold_out_every_architecture_is_seen(mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    train(config(mixed_zoo, tmp_path / "run", epochs=1), quiet=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [entry["seen"] for entry in metrics["per_architecture"].values()] == [True, True]


def test_refusals_of_hold_out(zoo: Zoo, mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    with pytest.raises(UserError, match=f"holds no architecture '2-9-1 relu', it holds {SEEN}; {UNSEEN}"):
        train(config(mixed_zoo, tmp_path / "run", hold_out=[SEEN, "2-9-1 relu"]), quiet=True)
    with pytest.raises(UserError, match="no train networks of other architectures than those in hold_out"):
        train(config(zoo, tmp_path / "run", hold_out=[SEEN]), quiet=True)
    assert not (tmp_path / "run").exists()


def test_networks_that_are_only_tested_are_refused_before_training(mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    encoder = {"name": "mlp", "parameters": Stack.mlp((2, 8, 1)).num_parameters}
    with pytest.raises(UserError, match="reads networks of 33 parameters, this one has 58"):
        train(config(mixed_zoo, tmp_path / "run", hold_out=[UNSEEN], encoder=encoder), quiet=True)
    assert not (tmp_path / "run").exists()


def test_views_keeps_so_many_networks_of_every_image(make_zoo: Any, tmp_path: Path, config: Any) -> None:
    """The second source has images of the same numbers; splits repeat every 6 networks, and so do images."""
    numbers = np.arange(96)
    image, source = numbers % 24, np.where(numbers < 48, "train", "test").astype(object)
    zoo = make_zoo(tmp_path / "zoo", {"a0": Stack.mlp((2, 3, 1))}, more={"image": image, "source_split": source})
    assert Counter(zip(image[zoo.train.rows], source[zoo.train.rows], strict=True)).most_common(1)[0][1] == 2
    kept, _ = training_networks(config(zoo, tmp_path / "run", views=1), zoo)
    first = {}
    for row in zoo.train.rows.tolist():
        first.setdefault((image[row], source[row]), row)
    assert kept.rows.tolist() == sorted(first.values()) and len(kept) == len(zoo.train) // 2
    for views in (0, 2, 5):
        assert limit_views(zoo.train, views).rows.tolist() == zoo.train.rows.tolist()
    limited, _ = training_networks(config(zoo, tmp_path / "run", views=1, limit_train=9), zoo)
    assert len(limited) == 9 and set(limited.rows) <= set(kept.rows)


def test_an_image_in_two_splits_is_refused(zoo: Zoo, make_zoo: Any, tmp_path: Path, config: Any) -> None:
    stacks, numbers = {"a0": Stack.mlp((2, 3, 1))}, np.arange(96)
    check_splits(zoo)  # it does not say which image a network is of
    image = numbers % 48
    check_splits(make_zoo(tmp_path / "good", stacks, more={"image": image}))
    image[[51, 60]] = 1000  # networks of val and train
    bad = make_zoo(tmp_path / "bad", stacks, more={"image": image})
    with pytest.raises(UserError, match=r"networks 51 \(val\) and 60 \(train\) are of one image"):
        train(config(bad, tmp_path / "run"), quiet=True)
    source = np.where(numbers == 60, "test", "train").astype(object)  # images of two sources, of the same number
    check_splits(make_zoo(tmp_path / "apart", stacks, more={"image": image, "source_split": source}))
    with pytest.raises(UserError, match="views: .* no column image"):
        training_networks(config(zoo, tmp_path / "run", views=1), zoo)
