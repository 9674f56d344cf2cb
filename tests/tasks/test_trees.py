"""Boosted trees on weight statistics: they find an order that statistics show, in zoos of mixed architectures too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.nn._statnn import statistics
from neural_graphs.tasks import BoostedTrees, _trees
from neural_graphs.zoo import Zoo, ZooWriter

STACKS = {"a0": Stack.mlp((2, 6, 1), "relu"), "a1": Stack.mlp((2, 5, 4, 1), "tanh")}
SETTINGS = ({"learning_rate": 0.1, "max_leaf_nodes": 8}, {"learning_rate": 0.3, "max_leaf_nodes": 4})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "MAX_ITERATIONS", 60)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """240 networks whose "accuracy" is the spread of their first weight."""
    generator = torch.Generator().manual_seed(0)
    with ZooWriter(tmp_path_factory.mktemp("zoo") / "zoo", STACKS, {"name": "t", "request": {}}) as writer:
        for number, (name, stack) in enumerate(STACKS.items()):
            spread = torch.rand(120, generator=generator)
            shapes = stack.parameter_shapes()
            values = {key: torch.randn(120, *shape, generator=generator) for key, shape in shapes.items()}
            values["seq.0.weight"] *= spread.view(-1, 1, 1)
            networks = np.arange(120) + 120 * number
            true = values["seq.0.weight"].flatten(1).std(1).clamp(max=1)
            columns = {
                "network": networks,
                "split": np.array(["train", "train", "val", "test"], dtype=object)[networks % 4],
                "test_accuracy": true.numpy(),
            }
            writer.append(name, 0, values, columns)
        return writer.finish()


def test_fit_and_predict(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "CHUNK", 7)  # many chunks, the last one incomplete
    model = BoostedTrees(settings=SETTINGS).fit(zoo.train, zoo.val)
    predicted = model.predict(zoo.test)
    assert predicted.shape == (60,) and predicted.min() >= 0 and predicted.max() <= 1
    assert model.score(zoo.test) > 0.5
    assert model.score(zoo.test) == pytest.approx(kendalltau(predicted, zoo.test.column("test_accuracy")).statistic)
    np.testing.assert_array_equal(model.predict(zoo.test.select([5, 3])), predicted[[5, 3]])
    table = model._table(zoo.test)
    np.testing.assert_array_equal(table, statistics(zoo.test.batch(), 3).double().numpy())


def test_the_best_on_validation_is_kept(zoo: Zoo) -> None:
    model = BoostedTrees(settings=SETTINGS).fit(zoo.train, zoo.val)
    x, y = model._table(zoo.train), model._targets(zoo.train)
    scores = {}
    for setting in SETTINGS:  # the slow twin: every candidate fitted anew
        for iterations in (20, 40, 60):
            twin = model._regressor(setting, iterations).fit(x, y)
            tau = kendalltau(twin.predict(model._table(zoo.val)), model._targets(zoo.val)).statistic
            scores[setting["max_leaf_nodes"], iterations] = tau
    chosen = model.chosen["max_leaf_nodes"], model.chosen["max_iter"]
    assert max(scores.values()) == scores[chosen] == pytest.approx(model.score(zoo.val))


def test_seeds_differ_and_repeat(zoo: Zoo) -> None:
    first, again, other = (
        BoostedTrees(seed=seed, settings=SETTINGS[:1]).fit(zoo.train, zoo.val).predict(zoo.test) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_errors(zoo: Zoo) -> None:
    with pytest.raises(UserError, match="call fit before"):
        BoostedTrees().predict(zoo.test)
    with pytest.raises(UserError, match="there are no networks"):
        BoostedTrees().fit(zoo.train, zoo.val.select([]))
    with pytest.raises(UserError, match="no column 'tau'"):
        BoostedTrees("tau").fit(zoo.train, zoo.val)
    with pytest.raises(UserError, match="network"):
        BoostedTrees(bounds=(0.0, 0.5)).fit(zoo.train, zoo.val)
