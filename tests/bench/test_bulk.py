"""The benchmark of bulk training: all sides do the same work, and its figures mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neural_graphs.bench import read_results
from neural_graphs.bench._bulk import bench_chunks, bulk, module_of, step_flops, train_by_vmap, train_one_by_one
from neural_graphs.bench._step import count_flops
from neural_graphs.errors import UserError
from neural_graphs.zoo._bulk import Course, TrainingImages, train_chunk
from neural_graphs.zoo._classifier_recipes import find_classifier_recipe


def _images(channels: int, side: int) -> TrainingImages:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, channels, side, side, generator=generator)
    y = torch.randint(0, 10, (24,), generator=generator)
    return TrainingImages(x, y, x[:4], y[:4])


@pytest.mark.parametrize(("name", "channels", "side"), [("small-cnn-zoo", 1, 16), ("wild-park", 3, 6)])
def test_all_sides_train_the_same_networks(name: str, channels: int, side: int) -> None:
    recipe = find_classifier_recipe(name)
    (runs, *_) = bench_chunks(recipe, (channels, side, side), 3, 0)
    runs = [replace(run, hyper=replace(run.hyper, dropout=0.0)) for run in runs]
    images, course = _images(channels, side), Course(1, (1,), 8)
    states = [recipe.initial(run, 0) for run in runs]
    start = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    ours = next(iter(train_chunk(runs, start, images, course))).params
    modules = train_one_by_one(runs, images, course, recipe, 0)
    for place, module in enumerate(modules):
        for value, expected in zip(ours.values(), module.parameters(), strict=True):
            torch.testing.assert_close(value[place], expected.detach(), rtol=2e-3, atol=2e-4)
    twins = [replace(run, hyper=replace(runs[0].hyper, optimizer="adam", weight_decay=0.0)) for run in runs[:1] * 2]
    params = train_by_vmap(twins, images, course, recipe, 0)
    for value, expected in zip(params.values(), train_one_by_one(twins[:1], images, course, recipe, 0)[0].parameters(),
                               strict=True):  # fmt: skip
        torch.testing.assert_close(value[1].detach(), expected.detach(), rtol=2e-3, atol=2e-4)


def test_flop_formula_is_what_a_step_runs() -> None:
    recipe = find_classifier_recipe("small-cnn-zoo")
    ((run, *_), *_) = bench_chunks(recipe, (1, 32, 32), 1, 0)
    module, x = module_of(run), torch.randn(5, 1, 32, 32)
    assert count_flops(lambda: module(x).sum().backward()) == 5 * step_flops(run.architecture, (1, 32, 32))


def test_rows(tmp_path: Path) -> None:
    rows = bulk(tmp_path / "bulk.json", networks=4, steps=2, side=16, rounds=2, thread_count=1)
    assert read_results(tmp_path / "bulk.json")["rows"] == rows
    found = {(entry["method"], entry["metric"]): entry["values"] for entry in rows}
    ours, alone = (found[name, "network_epochs_per_second"] for name in ("bulk training", "one by one"))
    assert found["bulk training", "speedup"] == pytest.approx([a / b for a, b in zip(ours, alone, strict=True)])


def test_a_recipe_that_is_not_measured_is_refused() -> None:
    with pytest.raises(UserError, match="choose small-cnn-zoo or wild-park"):
        bulk(None, recipe="transformer", networks=2, side=28)
