from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.tasks import _targets
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo import Zoo, ZooWriter, load_images, make_zoo, render
from neural_graphs.zoo.edits import edit_images


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("digits") / "zoo", "digits", size=20, views=2, steps=3, workers=1)


def other_zoo(
    path: Path, meta: dict[str, Any], outputs: tuple[int, ...] = (1,), inputs: int = 2, **columns: Any
) -> Zoo:
    """Three random networks of each number of outputs."""
    stacks = {f"a{k}": Stack.mlp((inputs, 4, out), "sine:30") for k, out in enumerate(outputs)}
    with ZooWriter(path, stacks, {"name": "other"} | meta) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            values = {key: torch.randn(3, *shape) for key, shape in stack.parameter_shapes().items()}
            rows = {"network": 3 * k + np.arange(3), "split": np.array(["train"] * 3, dtype=object)} | columns
            writer.append(name, 0, values, rows)
        return writer.finish()


def test_images_are_those_that_the_networks_were_fitted_to(digits: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_targets, "BATCH", 3)
    calls = []
    monkeypatch.setattr(_targets, "edit_images", lambda part, name: calls.append(len(part)) or edit_images(part, name))
    split = digits.all
    targets = edit_targets(split, ["dilate", "invert"])
    assert targets.dtype == torch.float32
    assert targets.shape == (2, 40, 8, 8, 1)
    assert sum(calls) == 2 * 20  # each image once, though two networks show it
    loaded = {name: load_images("digits", name).as_float() for name in ("train", "test")}
    for place in range(len(split)):
        image = loaded[split.column("source_split")[place]][split.column("image")[place]][None]
        for row, name in enumerate(("dilate", "invert")):
            assert np.array_equal(targets[row, place].numpy(), edit_images(image, name)[0])


def test_order_and_repeats_follow_the_split(digits: Zoo) -> None:
    split = digits.train
    whole = edit_targets(split, ["noise"])
    chosen = [5, 0, 5, 3]
    assert torch.equal(edit_targets(split.select(chosen), ["noise"]), whole[:, chosen])
    alone = np.unique(split.column("image"), return_index=True)[1][
        ::-1
    ].tolist()  # every image once, the last one first
    assert len(alone) > 2
    assert torch.equal(edit_targets(split.select(alone), ["noise"]), whole[:, alone])


def test_targets_of_what_networks_draw(digits: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_targets, "BATCH", 7)
    targets = edit_targets(digits.train, ["blur", "rotate"], "render")
    drawn = render(digits.train).clip(0, 1)
    for row, name in enumerate(("blur", "rotate")):
        assert np.allclose(targets[row].numpy(), edit_images(drawn, name), atol=1e-6)


@pytest.mark.parametrize("source", ["image", "render"])
def test_a_split_without_networks(digits: Zoo, source: str) -> None:
    empty = digits.train.select([])
    assert edit_targets(empty, ["dilate", "erode"], source).shape == (2, 0, 8, 8, 1)


def test_wrong_arguments(digits: Zoo) -> None:
    with pytest.raises(UserError, match="unknown targets 'images': choose one of image, render"):
        edit_targets(digits.train, ["dilate"], "images")
    with pytest.raises(UserError, match="unknown edit 'dilat': choose one of blur"):
        edit_targets(digits.train, ["blur", "dilat"])
    with pytest.raises(UserError, match="no edits are given"):
        edit_targets(digits.train, [])


def test_images_that_are_not_at_hand(tmp_path: Path) -> None:
    size = {"height": 8, "width": 8}
    unnamed = other_zoo(tmp_path / "a", {"source": size})
    with pytest.raises(UserError, match="does not say which image each network was fitted to: set targets=render"):
        edit_targets(unnamed.train, ["dilate"])
    assert edit_targets(unnamed.train, ["dilate"], "render").shape == (1, 3, 8, 8, 1)
    columns = {"image": np.arange(3), "source_split": np.array(["train"] * 3, dtype=object)}
    unknown = other_zoo(tmp_path / "b", {"source": size | {"images": "own"}}, **columns)
    with pytest.raises(UserError, match=r"the images \(own\) .* are not at hand: set targets=render"):
        edit_targets(unknown.train, ["dilate"])
    coloured = other_zoo(tmp_path / "c", {"source": size | {"images": "digits"}}, (3,), **columns)
    with pytest.raises(UserError, match="draw 8x8 with 3 channels, their images are 8x8 with 1 channels"):
        edit_targets(coloured.train, ["dilate"])


def test_networks_that_draw_no_image(tmp_path: Path) -> None:
    size = {"source": {"height": 8, "width": 8}}
    with pytest.raises(UserError, match="only networks with 2 inputs can be edited"):
        edit_targets(other_zoo(tmp_path / "a", size, inputs=3).train, ["dilate"], "render")
    with pytest.raises(UserError, match="different numbers of outputs: edit them apart"):
        edit_targets(other_zoo(tmp_path / "b", size, (1, 3)).train, ["dilate"], "render")
    with pytest.raises(UserError, match="does not say at which resolution"):
        edit_targets(other_zoo(tmp_path / "c", {}).train, ["dilate"], "render")


def test_a_network_that_draws_nan(digits: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_targets, "BATCH", 2)

    def broken(split: Any, indices: slice) -> np.ndarray:
        images = render(split, indices)
        if indices.start == 2:
            images[1, 0, 0] = np.nan
        return images

    monkeypatch.setattr(_targets, "render", broken)
    number = digits.train.column("network")[3]
    with pytest.raises(UserError, match=f"network {number} of .* draws NaN: leave it out"):
        edit_targets(digits.train, ["dilate"], "render")
