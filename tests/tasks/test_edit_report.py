"""What is said of an editor: its figures, the references beside it, their times, and which networks are shown."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, GraphBatch, Stack, pixel_grid
from neural_graphs.graph._stack import Layer
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Editor, _edit_report
from neural_graphs.tasks._edit_report import MOST_DB, edit_report, seconds_per_network
from neural_graphs.tasks._refit import CAPS, RATES, Curve, Refit
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo import Zoo, ZooSplit, ZooWriter, make_zoo
from neural_graphs.zoo._image_metrics import psnr, ssim

WIDE, DEEP = Stack.mlp((2, 8, 1), "sine:30", shift=0.5), Stack.mlp((2, 6, 5, 1), "sine:20")
SIZE = (12, 14)
META = {"source": {"height": SIZE[0], "width": SIZE[1]}, "recipe": {"pixel_range": [-1.0, 1.0], "lr": 2e-3}}


def write(path: Path, stacks: dict[str, Stack], count: int, meta: dict[str, Any] = META, scale: float = 0.15) -> Zoo:
    """Random networks, the architectures by turns."""
    numbers = np.arange(count) + 100
    generator = torch.Generator().manual_seed(0)
    with ZooWriter(path, stacks, {"name": "random"} | meta) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            mine = numbers[k :: len(stacks)]
            shapes = stack.parameter_shapes()
            values = {key: scale * torch.randn(len(mine), *s, generator=generator) for key, s in shapes.items()}
            writer.append(name, 0, values, {"network": mine, "split": np.full(len(mine), "test", dtype=object)})
        return writer.finish()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """30 networks of two architectures, black -1 and white 1."""
    return write(tmp_path_factory.mktemp("zoos") / "mixed", {"a0": WIDE, "a1": DEEP}, 30)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("digits")
    return make_zoo(folder / "zoo", "digits", size=20, widths=(8,), steps=40, lr=5e-3, splits=(4, 4, 12), workers=1)


def editor(**arguments: Any) -> Editor:
    """An untrained editor, its changes large enough to see."""
    torch.manual_seed(0)
    encoder = create_encoder("ng-gnn", width=8, layers=2)
    given = {"size": SIZE, "pixel_range": (-1, 1), "architectures": [WIDE], **arguments}
    made = Editor(encoder, **given)
    with torch.no_grad():
        for name, scale in made.head.named_parameters():
            if "scale" in name and "bias_scale" not in name:
                scale.fill_(0.1)
    return made.eval()


def fitted(split: ZooSplit, place: int, target: Tensor, steps: int, lr: float) -> tuple[list[float], Tensor]:
    """The twin of ``Refit``: one network in a loop of torch's Adam. Errors by step, and the image at the end."""
    low, high = split.zoo.meta["recipe"]["pixel_range"]
    module = split.batch([place]).buckets[0].stack.module()  # type: ignore[union-attr]
    module.load_state_dict(split.batch([place]).buckets[0].to_state_dict())
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    wanted = (low + (high - low) * target).flatten(0, 1)
    errors = []
    for step in range(steps + 1):
        loss = (module(pixel_grid(*target.shape[:2])) - wanted).square().mean()
        errors.append(loss.item() / (high - low) ** 2)
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return errors, ((module(pixel_grid(*target.shape[:2])) - low) / (high - low)).view_as(target)


# -- figures ---------------------------------------------------------------------------------------------------------------


def test_figures_are_means_over_networks_and_edits(mixed: Zoo) -> None:
    model, split = editor(edits=("invert", "blur"), copies=2), mixed.test
    found = edit_report(model, split, "render", refit=False)
    wanted = edit_targets(split, ["invert", "blur"], "render").numpy()
    errors: dict[str, list[float]] = {"2-8-1 sine:30": [], "2-6-5-1 sine:20": []}
    for row, edit in enumerate(("invert", "blur")):
        entry = found["per_edit"][edit]
        figures = []
        for place in range(len(split)):
            graph = split.batch([place])
            image, before = model.render(graph, edit).numpy(), model.render(graph, edit, 0.0).numpy()
            target = wanted[row, place][None]
            own, left = np.square(image - target).mean(), np.square(before - target).mean()
            similar = ssim(np.clip(image, 0, 1), target)[0]
            figures.append((own, psnr(image, target)[0], similar, left))
            errors[str(graph.buckets[0].stack)].append(own)
        mean = np.mean(figures, 0)
        assert [entry["mse"], entry["psnr"], entry["ssim"]] == pytest.approx(mean[:3], rel=1e-4)
        assert entry["no_edit"]["mse"] == pytest.approx(mean[3], rel=1e-4)
        assert entry["refit"] is None and entry["reach"] is None
    for key in ("mse", "psnr", "ssim"):
        assert found[key] == pytest.approx(np.mean([entry[key] for entry in found["per_edit"].values()]))
    assert found["no_edit_mse"] == pytest.approx(
        np.mean([entry["no_edit"]["mse"] for entry in found["per_edit"].values()])
    )
    assert found["n"] == 30
    kinds = found["per_architecture"]
    assert {name: (entry["n"], entry["seen"]) for name, entry in kinds.items()} == {
        "2-8-1 sine:30": (15, True),
        "2-6-5-1 sine:20": (15, False),
    }
    for name, values in errors.items():
        assert kinds[name]["mse"] == pytest.approx(np.mean(values), rel=1e-4)
    json.dumps({key: value for key, value in found.items() if key != "gallery"}, allow_nan=False)


def test_images_that_are_equal_have_finite_figures(mixed: Zoo) -> None:
    found = _edit_report._means(_edit_report._figures(np.full((2, 12, 12, 1), 0.5), np.full((2, 12, 12, 1), 0.5)))
    assert found == {"mse": 0.0, "psnr": MOST_DB, "ssim": pytest.approx(1.0)}


def test_images_of_another_zoo_are_drawn_at_its_size(digits: Zoo) -> None:
    model = editor(edits=("dilate",), pixel_range=(0, 1))
    found = edit_report(model, digits.test, refit=False)
    target = edit_targets(digits.test, ["dilate"])[0]
    assert target.shape[1:3] == (8, 8) != SIZE
    error = (model.render(digits.test, height=8, width=8) - target).square().mean()
    assert found["mse"] == pytest.approx(error.item(), rel=1e-5)


# -- which networks are shown ----------------------------------------------------------------------------------------------


def test_the_best_the_median_and_the_worst_are_shown(mixed: Zoo) -> None:
    model, split = editor(edits=("invert", "blur")), mixed.test
    shown = edit_report(model, split, "render", refit=False, examples=12)["gallery"]
    wanted = edit_targets(split, ["invert", "blur"], "render").numpy()
    for row, edit in enumerate(("invert", "blur")):
        entry = shown[edit]
        assert entry["kind"] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
        after = model.render(split, edit).numpy()
        errors = np.square(after - wanted[row]).mean((1, 2, 3))
        order = np.argsort(errors)
        places = [*order[:2], *order[14:16], *order[::-1][:2]]
        assert entry["network"] == split.column("network")[places].tolist()
        assert entry["mse"] == pytest.approx(errors[places], rel=1e-4)
        assert np.array_equal(entry["target"], wanted[row, places])
        assert np.allclose(entry["after"], after[places], atol=1e-5)
        assert np.allclose(entry["before"], model.render(split.select(places), edit, 0.0), atol=1e-5)
        assert entry["finer"].shape == (6, 48, 56, 1)
        # The corners of both grids are the same points.
        assert np.allclose(
            entry["finer"][:, [0, -1]][:, :, [0, -1]], after[places][:, [0, -1]][:, :, [0, -1]], atol=1e-5
        )
        assert entry["refit"] is None and entry["curve"] == []


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_few_networks_each_kind_shows_one(mixed: Zoo, count: int) -> None:
    shown = edit_report(editor(), mixed.test.select(np.arange(count)), "render", refit=False)["gallery"]["dilate"]
    assert shown["kind"] == ["best", "median", "worst"] and len(shown["after"]) == 3
    assert shown["mse"] == sorted(shown["mse"])


# -- fitting anew ----------------------------------------------------------------------------------------------------------


def test_fitting_is_adam_on_every_network(mixed: Zoo) -> None:
    split = mixed.test.select([0, 1, 2, 7])
    targets = edit_targets(split, ["invert"], "render")[0]
    reference = Refit(split, *SIZE)
    assert reference.lr == 2e-3
    first, second = reference.curves(targets, goal=0.0, steps=5)  # out of reach: all steps are used
    assert [first.lr, second.lr] == pytest.approx([rate * 2e-3 for rate in RATES])
    assert len(first.errors) == CAPS[-1] + 1
    twins = [fitted(split, place, targets[place], 30, 2e-3) for place in range(4)]
    assert first.errors[:31] == pytest.approx(np.mean([errors for errors, _ in twins], 0), rel=1e-3)
    images = reference.images(targets, 30, 2e-3)
    for place, (_, image) in enumerate(twins):
        assert np.abs(images[place] - image.numpy()).max() < 1e-3
    goal = float(first.errors[10])
    again = reference.curves(targets, goal)
    assert len(again[0].errors) == CAPS[0] + 1
    assert again[0].errors == pytest.approx(first.errors[: CAPS[0] + 1], rel=1e-4)


def test_steps_to_a_goal() -> None:
    curve = Curve(1e-3, np.array([4.0, 2.0, 3.0, 1.0]))
    assert [curve.steps_to(goal) for goal in (5, 4, 2.5, 1, 0.5)] == [0, 0, 1, 3, None]
    assert Curve(1.0, np.array([2.0, np.inf])).steps_to(1.0) is None


def test_a_step_takes_longer_for_larger_images(mixed: Zoo) -> None:
    split = mixed.test
    small, large = (Refit(split, side, side).seconds_per_step() for side in (4, 64))
    assert 0 < small < large


def test_refitting_gets_the_editors_time(mixed: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_edit_report, "seconds_per_network", lambda model, split: 0.0071)
    monkeypatch.setattr(Refit, "seconds_per_step", lambda self: 0.001)
    monkeypatch.setattr(_edit_report, "REFITTED", 6)
    model, split = editor(edits=("invert",)), mixed.test
    found = edit_report(model, split, "render", examples=3)
    target = edit_targets(split, ["invert"], "render")[0]
    rows = np.sort(np.random.default_rng(0).permutation(30)[:6])
    refit, reach = (found["per_edit"]["invert"][key] for key in ("refit", "reach"))
    assert (refit["steps"], refit["n"]) == (7, 6) and refit["seconds"] == pytest.approx(0.007)
    assert found["seconds_per_network"] == 0.0071
    own = np.square(model.render(split).numpy() - target.numpy()).mean((1, 2, 3))[rows].mean()
    assert refit["editor_mse"] == pytest.approx(own, rel=1e-4)
    by_rate = {
        rate * 2e-3: np.mean([fitted(split, place, target[place], 64, rate * 2e-3)[0] for place in rows], 0)
        for rate in RATES
    }
    assert refit["mse"] == pytest.approx(min(errors[7] for errors in by_rate.values()), rel=1e-3)
    assert refit["lr"] == pytest.approx(min(by_rate, key=lambda rate: float(by_rate[rate][7])))
    # An untrained editor is soon overtaken.
    first = min(int((errors <= own).argmax()) for errors in by_rate.values() if (errors <= own).any())
    assert 0 < reach["steps"] == first and reach["seconds"] == pytest.approx(first * 0.001)
    shown = found["gallery"]["invert"]
    seconds, error = np.array(shown["curve"]).T
    assert seconds == pytest.approx(0.001 * np.arange(65)) and error == pytest.approx(by_rate[reach["lr"]], rel=1e-3)
    places = [int(np.flatnonzero(split.column("network") == number)[0]) for number in shown["network"]]
    for image, place in zip(shown["refit"], places, strict=True):
        assert np.abs(image - fitted(split, place, target[place], 7, refit["lr"])[1].numpy()).max() < 1e-3


def test_one_step_at_least_and_none_where_all_are_not_enough(mixed: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_graphs.tasks._refit.CAPS", (2, 4))
    split = mixed.test.select([0, 1, 2])
    target = edit_targets(split, ["invert"], "render")[0].numpy()
    shown: dict[str, Any] = {}
    found = _edit_report._compare(Refit(split, *SIZE), target, 0.0, 1e-6, 0.001, shown)
    assert (found["refit"]["steps"], found["refit"]["seconds"]) == (1, 0.001)
    assert found["reach"] is None and len(shown["curve"]) == 5


def test_networks_that_bulk_fitting_does_not_know_have_no_reference(tmp_path: Path) -> None:
    layers = (Layer("0", 2, 4, bias=False, activation=Activation("sine", 30.0)), Layer("1", 4, 1))
    zoo = write(tmp_path / "zoo", {"a0": Stack(layers)}, 4)
    found = edit_report(editor(), zoo.test, "render")
    assert found["per_edit"]["dilate"]["refit"] is None and found["gallery"]["dilate"]["refit"] is None


# -- time ------------------------------------------------------------------------------------------------------------------


def test_time_is_that_of_batches_in_memory(mixed: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = editor(), []

    def edit(self: Editor, x: Any, *arguments: Any) -> GraphBatch:
        assert isinstance(x, GraphBatch)
        seen.append(len(x))
        time.sleep(0.03 if len(seen) != 1 else 0.3)  # the first time does not count
        return x

    def no_rendering(*_: Any) -> Tensor:
        raise AssertionError("rendering is no part of editing")

    monkeypatch.setattr(Editor, "edit", edit)
    monkeypatch.setattr(Editor, "render", no_rendering)
    monkeypatch.setattr(_edit_report, "EVAL_BATCH", 8)
    seconds = seconds_per_network(model, mixed.test)
    assert seen == [8, 8, 8, 8]  # a warm-up and three whole batches of 30 networks
    assert 0.03 <= 8 * seconds < 0.2


# -- errors ----------------------------------------------------------------------------------------------------------------


def test_networks_of_another_range_of_pixels_are_refused(mixed: Zoo) -> None:
    with pytest.raises(UserError, match=r"say \[-1.0, 1.0\] for black and white, this editor learned .* \[0.0, 1.0\]"):
        edit_report(editor(pixel_range=(0, 1)), mixed.test, "render")


def test_a_network_that_draws_nan_is_named(mixed: Zoo) -> None:
    model = editor()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UserError, match="^network 100 of .* draws NaN or infinite pixels after edit dilate$"):
        edit_report(model, mixed.test, "render", refit=False)
