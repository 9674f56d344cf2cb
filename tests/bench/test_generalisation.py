"""The experiment on predicting accuracy: what is trained on, what is tested on, and which rows come of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from neural_graphs.bench import _classification, _generalisation, read_results
from neural_graphs.bench._generalisation import generalisation, probe_shape, subsets, wide_architectures
from neural_graphs.errors import UserError
from neural_graphs.tasks import train
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._ranking import kendall_tau
from neural_graphs.tasks._run import read_config
from neural_graphs.zoo import Zoo, make_cnn_zoo


@pytest.fixture(scope="module")
def park(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_cnn_zoo(
        tmp_path_factory.mktemp("zoos") / "park", "wild-park", "digits", 80, 2, (1, 2), side=4, train_images=160,
        test_images=100, splits=(0.5, 0.25, 0.25), workers=1,
    )  # fmt: skip


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(config: TrainConfig, quiet: bool = False) -> dict[str, object]:
        return dict(train(config, resume=True, quiet=True).metrics)

    monkeypatch.setattr(_classification, "_train_apart", here)


def test_rows(park: Zoo, tmp_path: Path, in_process: None) -> None:
    out = tmp_path / "tau.json"
    few = ["optimizer.epochs=1", "encoder.width=8"]
    rows = generalisation(
        park.path, ["boosted-trees", "statnn"], (0, 1), out, tmp_path / "runs", few, transfer=park.path
    )
    assert read_results(out)["rows"] == rows
    taus = {(r["method"], r["variant"]): r for r in rows if r["metric"] == "kendall_tau"}
    for method in ("boosted-trees", "statnn"):
        assert {v for m, v in taus if m == method} == {"", "last epoch", "park"}
        whole, again = taus[method, ""], taus[method, "park"]
        assert whole["networks"] == len(park.test) and len(whole["values"]) == 2
        assert whole["values"] == pytest.approx(again["values"])  # transfer to itself
        assert taus[method, "last epoch"]["networks"] == len(park.test) // 2
    metrics = Path(tmp_path / "runs" / "statnn-seed1" / "metrics.json").read_text()
    assert f'"test_kendall_tau": {taus["statnn", ""]["values"][1]:.6f}'[:-2] in metrics.replace("\n", "")


def test_wider_trains_on_the_narrow_half(park: Zoo, tmp_path: Path, in_process: None) -> None:
    wide = wide_architectures(park)
    sizes = {str(a): sum(a.widths[1:-1]) for a in park.architectures.values()}  # type: ignore[union-attr]
    assert 0 < len(wide) < len(sizes)
    assert min(sizes[name] for name in wide) > max(size for name, size in sizes.items() if name not in wide)
    rows = generalisation(
        park.path, ["boosted-trees", "statnn"], (0,), tmp_path / "tau.json", tmp_path / "runs", ["optimizer.epochs=1"],
        wider=True,
    )  # fmt: skip
    assert read_config(tmp_path / "runs" / "statnn-seed0").hold_out == wide
    parts = {r["variant"]: r["networks"] for r in rows if r["metric"] == "kendall_tau" and r["method"] == "statnn"}
    assert parts["wide networks, never seen"] + parts["narrow networks, trained on"] == len(park.test)


def test_subsets_are_of_the_networks_that_they_name(park: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(subsets(park.test)) == {"", "last epoch"}  # too few networks have one non-linearity alone
    monkeypatch.setattr(_generalisation, "FEWEST", 1)
    masks = subsets(park.test)
    assert masks[""].all() and "mixed networks" not in masks
    assert set(park.test.column("epoch")[masks["last epoch"]]) == {2.0}
    for name, mask in masks.items():
        if name.endswith("networks"):
            assert set(park.test.column("activation")[mask]) == {name.split()[0]}


def test_probe_images_are_as_the_zoos(park: Zoo) -> None:
    assert probe_shape(park) == [1, 4, 4] and probe_shape(park, 9) == [1, 9, 9]
    filled = _generalisation._with_probes(_generalisation.GENERALISATION["combined"].encoder, (1, 4, 4))
    assert filled["parts"][1]["probe_shape"] == [1, 4, 4] and "probe_shape" not in filled["parts"][0]


def test_unknown_method(park: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose among statnn"):
        generalisation(park.path, ["nope"], (0,), tmp_path / "tau.json", tmp_path / "runs")


def test_trees_beat_chance_on_their_own_training_networks(park: Zoo) -> None:
    from neural_graphs.tasks._trees import BoostedTrees

    model = BoostedTrees().fit(park.train, park.val)
    true = park.train.column("test_accuracy")
    assert kendall_tau(true, model.predict(park.train)) > 0.5
    assert np.isfinite(model.predict(park.test)).all()


def test_a_zoo_without_accuracies_is_refused_before_anything_is_trained(park: Zoo, tmp_path: Path) -> None:
    copied = tmp_path / "zoo"
    shutil.copytree(park.path, copied)
    pq.write_table(
        pq.read_table(copied / "networks.parquet").drop_columns("test_accuracy"), copied / "networks.parquet"
    )
    with pytest.raises(UserError, match="no column 'test_accuracy'"):
        generalisation(copied, ["statnn"], (0,), tmp_path / "tau.json", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
