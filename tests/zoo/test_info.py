"""Describing zoos: statistics, the comparison with published ones, rendering, the contact sheet."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import (
    Zoo,
    ZooWriter,
    compare_statistics,
    contact_sheet,
    layer_statistics,
    make_zoo,
    print_zoo_info,
    published_statistics,
    render,
    zoo_info,
)
from neural_graphs.zoo import _statistics as statistics_module

TINY: dict[str, Any] = {"images": "digits", "size": 60, "steps": 80, "lr": 5e-3, "shard_size": 25, "workers": 1}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("info") / "zoo", **TINY)


def test_statistics_are_those_of_the_training_networks(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "BATCH", 7)
    found = layer_statistics(zoo)
    ((_, _, values),) = zoo.train.state_dicts()
    assert list(found) == list(values)
    for name, value in values.items():
        exact = value.double().numpy()
        assert found[name].mean == pytest.approx(exact.mean(), abs=1e-9)
        assert found[name].std == pytest.approx(exact.std(), rel=1e-9)
    ((_, _, others),) = zoo.all.state_dicts()
    assert layer_statistics(zoo.all)["seq.0.weight"].std == pytest.approx(float(others["seq.0.weight"].std()), rel=1e-3)


def gaussian_zoo(path: Path, factor: float) -> Zoo:
    """800 networks with ``factor`` times the published standard deviations of MNIST INRs."""
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    published = published_statistics("dws", "mnist")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: published[name].std * factor * torch.randn(800, *shape, generator=generator)
        for name, shape in stack.parameter_shapes().items()
    }
    meta = {"recipe": {"name": "dws"}, "source": {"images": "mnist"}, "request": {}}
    columns = {"network": np.arange(800), "split": np.full(800, "train", dtype=object)}
    with ZooWriter(path, {"a0": stack}, meta) as writer:
        writer.append("a0", 0, tensors, columns)
        return writer.finish()


@pytest.mark.parametrize(("factor", "within"), [(1.0, True), (1.3, False), (0.7, False)])
def test_comparison_with_published_statistics(tmp_path: Path, factor: float, within: bool) -> None:
    rows = compare_statistics(gaussian_zoo(tmp_path / "zoo", factor))
    assert [row.tensor for row in rows] == [f"seq.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")]
    assert [row.within for row in rows] == [within] * 6
    assert all(row.ratio == pytest.approx(factor, rel=0.1) for row in rows)


def test_no_comparison_where_nothing_is_published(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no published statistics for recipe 'dws' of 'digits'"):
        compare_statistics(zoo)
    assert zoo_info(zoo)["statistics"] == []
    narrow = make_zoo(tmp_path / "zoo", **(TINY | {"steps": 1, "widths": (8, 8)}))
    with pytest.raises(UserError, match="hidden layers 32-32"):
        compare_statistics(narrow, images="mnist")


def test_info(zoo: Zoo, tmp_path: Path) -> None:
    info = zoo_info(zoo)
    assert info["networks"] == 60 and info["splits"] == {"train": 48, "val": 6, "test": 6} and info["complete"]
    assert sum(info["labels"].values()) == 60 and set(info["labels"].values()) <= {4, 5, 6, 7, 8}
    assert info["architectures"] == [
        {"id": "a0", "architecture": "2-32-32-1 sine:30", "parameters": 1185, "networks": 60}
    ]
    assert info["psnr_db"]["min"] <= info["psnr_db"]["mean"] <= info["psnr_db"]["max"]
    json.dumps(zoo_info(gaussian_zoo(tmp_path / "zoo", 1.0)), allow_nan=False)


def test_printed_info(zoo: Zoo, tmp_path: Path) -> None:
    text = io.StringIO()
    print_zoo_info(zoo_info(zoo), Console(file=text, width=90))
    print_zoo_info(zoo_info(gaussian_zoo(tmp_path / "zoo", 1.3)), Console(file=text, width=90))
    for word in (
        "digits-inr-dws",
        "48 train",
        "2-32-32-1 sine:30",
        "1,185",
        "dB",
        "seq.1.weight",
        "0.01827",
        "1.3",
        "no",
    ):
        assert word in text.getvalue()


def test_rendering_shows_the_images(zoo: Zoo) -> None:
    """At the fitted resolution, the PSNR of the rendered images is the one that making the zoo measured."""
    from neural_graphs.zoo._render import original_images

    rendered, images = render(zoo.all), original_images(zoo.all)
    assert images is not None and rendered.shape == images.shape == (60, 8, 8, 1)
    psnr = -10 * np.log10(((rendered - images) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(psnr, zoo.all.column("psnr_db"), atol=0.01)
    assert np.array_equal(render(zoo.all, [7, 3]), rendered[[7, 3]])
    assert render(zoo.test, height=20, width=30).shape == (6, 20, 30, 1)
    assert render(zoo.test, []).shape[0] == 0


def test_rendering_mixed_architectures_in_order(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", **(TINY | {"diverse": True, "steps": 20}))
    together = render(zoo.all)
    for position in (0, 17, 59):
        np.testing.assert_allclose(render(zoo.all, [position])[0], together[position], atol=1e-5)


def test_contact_sheet(zoo: Zoo, tmp_path: Path) -> None:
    sheet = contact_sheet(zoo, tmp_path / "sheet.png", per_class=3)
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape[1] >= 600 and pixels.std() > 20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sheet.png"]


def test_contact_sheet_without_images_or_labels(tmp_path: Path) -> None:
    zoo = gaussian_zoo(tmp_path / "zoo", 1.0)
    with pytest.raises(UserError, match="resolution"):
        contact_sheet(zoo, tmp_path / "sheet.png")
    zoo.meta["source"] |= {"height": 9, "width": 9}
    assert contact_sheet(zoo, tmp_path / "sheet.png").stat().st_size > 1000


def test_contact_sheet_on_a_full_disk(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        contact_sheet(zoo, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("NEURAL_GRAPHS_DATA" not in os.environ, reason="needs NEURAL_GRAPHS_DATA with MNIST")
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dws", "nfn"])
def test_recipes_reproduce_the_published_statistics(tmp_path: Path, recipe: str) -> None:
    """Real MNIST. The last layer has one bias per network: too few here to compare within 10 %."""
    zoo = make_zoo(tmp_path / "zoo", "mnist", recipe, splits=(32, 0, 0))
    rows = compare_statistics(zoo)
    assert [row.tensor for row in rows if not row.within and row.tensor != "seq.2.bias"] == []
    if recipe == "dws":
        assert zoo.all.column("psnr_db").mean() == pytest.approx(24, abs=1)
