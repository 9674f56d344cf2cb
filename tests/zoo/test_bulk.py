"""Training many classifiers at once: each becomes what it becomes alone, trained by plain PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.zoo._bulk import Course, Hyper, Run, TrainingImages, batch_order, chunk_key, train_chunk
from neural_graphs.zoo._classifier_recipes import initial_stack, small_cnn, small_cnn_runs, wild_park_runs
from neural_graphs.zoo._grouped import grouped_logits

Params = dict[str, Tensor]


def _images(side: int = 15, channels: int = 1, count: int = 96) -> TrainingImages:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, side, side, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=g)
    x[:, :, 0] += y.view(-1, 1, 1)  # something to learn
    return TrainingImages(x, y, x[:32], y[:32])


def _stacked(runs: list[Run], dtype: torch.dtype = torch.float64) -> Params:
    states = [initial_stack(run, 0) for run in runs]
    return {name: torch.stack([state[name] for state in states]).to(dtype) for name in states[0]}


def _alone(run: Run, start: Params, images: TrainingImages, course: Course) -> nn.Module:
    """The obvious way: a module, an optimiser of torch's, a loop."""
    module = run.architecture.module().double()
    module.load_state_dict(start)
    hyper, parameters = run.hyper, module.parameters()
    options = {"lr": hyper.learning_rate, "weight_decay": hyper.weight_decay}
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, momentum=0.9, **options),
        "adam": lambda: torch.optim.Adam(parameters, **options),
        "adamw": lambda: torch.optim.AdamW(parameters, **options),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, alpha=0.9, **options),
    }[hyper.optimizer]()
    for epoch in range(course.epochs):
        order = batch_order(len(images.train), hyper.train_fraction, course.seed, epoch)
        for picked in order.split(course.batch_size):
            if len(picked) == course.batch_size:
                optimizer.zero_grad()
                F.cross_entropy(module(images.train[picked]), images.train_labels[picked]).backward()
                optimizer.step()
    return module


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_chunk_equals_training_one_by_one(optimizer: str) -> None:
    rng = np.random.default_rng(0)
    runs = [
        Run(n, small_cnn("tanh", 1, 3), Hyper(optimizer, float(rng.uniform(1e-3, 1e-2)), 1e-3 * n, train_fraction=0.5))
        for n in range(3)
    ]
    images, course = _images(), Course(2, (1, 2), batch_size=16)
    start = _stacked(runs)
    last = list(train_chunk(runs, start, images, course))[-1]
    for place, run in enumerate(runs):
        module = _alone(run, {name: value[place] for name, value in start.items()}, images, course)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(last.params[name][place].double(), value, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            logits = module(images.test)
        assert last.columns["test_loss"][place] == pytest.approx(
            float(F.cross_entropy(logits, images.test_labels)), 1e-5
        )
        accuracy = float((logits.argmax(1) == images.test_labels).double().mean())
        assert last.columns["test_accuracy"][place] == pytest.approx(accuracy)
    assert last.columns["train_loss"].shape == (3,)
    assert last.columns["train_loss"].mean() < 1.1  # it learns: chance is log 3


def test_grouped_logits_equal_the_stacks_own() -> None:
    """Mixed activations, kernels, partial residuals."""
    compared = 0
    for first in range(0, 40, 4):
        runs = wild_park_runs(1, 40, (3, 9, 9), 5)[first : first + 4]
        assert len({chunk_key(run) for run in runs}) == 1
        assert len({run.architecture for run in runs}) > 1
        params, x = _stacked(runs), torch.randn(6, 3, 9, 9, dtype=torch.float64)
        got = grouped_logits([run.architecture for run in runs], params, x)  # type: ignore[misc]
        for place, run in enumerate(runs):
            one = {name: value[place : place + 1] for name, value in params.items()}
            torch.testing.assert_close(got[place], run.architecture.forward(one, x)[0], rtol=1e-10, atol=1e-12)
            compared += any(layer.residual >= 0 for layer in run.architecture.layers)  # type: ignore[union-attr]
    assert compared > 4


def test_pooled_and_flattened_stacks_are_grouped_too() -> None:
    from neural_graphs.graph import Activation, Layer, Stack

    relu = Activation.parse("relu")
    stack = Stack(
        (
            Layer("a", 2, 4, (3, 3), activation=relu, pool="max:2", bias=False),
            Layer("b", 4, 6, (2, 2), activation=relu, stride=2),
            Layer("c", 6, 5, positions=4, activation=relu),
            Layer("d", 5, 3),
        )
    )
    params = {n: torch.randn(3, *s, dtype=torch.float64) for n, s in stack.parameter_shapes().items()}
    x = torch.randn(4, 2, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(grouped_logits([stack] * 3, params, x), stack.forward(params, x), rtol=1e-10, atol=1e-12)


def test_neighbours_in_a_chunk_change_nothing() -> None:
    runs = [Run(n, small_cnn("relu", 1, 3), Hyper("adam", 3e-3, dropout=0.2 * n)) for n in range(4)]
    images, course = _images(), Course(1, (1,), batch_size=16)
    together = next(iter(train_chunk(runs, _stacked(runs), images, course)))
    for part in (runs[:1], runs[1:2], runs[2:]):
        apart = next(iter(train_chunk(part, _stacked(part), images, course)))
        for place, run in enumerate(part):
            for name, value in apart.params.items():
                torch.testing.assert_close(value[place], together.params[name][run.number], rtol=1e-6, atol=1e-8)


def test_dropout_takes_its_share_and_keeps_the_mean() -> None:
    runs = [
        Run(n, small_cnn("relu", 1, 3), Hyper("adam", 1e-3, dropout=rate)) for n, rate in enumerate((0.0, 0.3, 0.6))
    ]
    from neural_graphs.zoo._bulk import _Chunk

    chunk = _Chunk(runs, _stacked(runs), _images(), Course(1, (1,)))
    h = torch.ones(50, 7, 7, 3, 16, dtype=torch.float64)
    dropped = chunk._drop(1, h)
    zero = (dropped == 0).double().mean((0, 1, 2, 4))
    torch.testing.assert_close(zero, torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(dropped.mean((0, 1, 2, 4)), torch.ones(3, dtype=torch.float64), atol=0.02, rtol=0)
    assert torch.equal(chunk._drop(0, h), h)


def test_a_network_that_diverges_is_frozen_and_flagged() -> None:
    good, bad = Hyper("sgd", 1e-3), Hyper("sgd", 1e200)
    runs = [Run(0, small_cnn("relu", 1, 3), good), Run(1, small_cnn("relu", 1, 3), bad)]
    images, start = _images(), _stacked(runs)
    kept = list(train_chunk(runs, start, images, Course(2, (1, 2), batch_size=16)))
    alone = list(train_chunk(runs[:1], _stacked(runs[:1]), images, Course(2, (1, 2), batch_size=16)))
    for one, lone in zip(kept, alone, strict=True):
        assert one.columns["diverged"].tolist() == [False, True]
        for name, value in one.params.items():
            assert bool(torch.isfinite(value).all())
            torch.testing.assert_close(
                value[1].double(), start[name][1], rtol=1e-6, atol=1e-7
            )  # as before the checkpoint
            torch.testing.assert_close(value[0], lone.params[name][0], rtol=1e-6, atol=1e-8)
        assert np.isfinite(one.columns["test_loss"]).all()


def test_larger_shares_contain_smaller_ones() -> None:
    parts = [set(batch_order(200, fraction, 3, 5).tolist()) for fraction in (0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [20, 100, 200]
    assert parts[0] < parts[1] < parts[2]
    assert batch_order(200, 0.5, 3, 5).tolist() != batch_order(200, 0.5, 3, 6).tolist()


def test_runs_follow_from_seed_and_number_alone() -> None:
    few, many = small_cnn_runs(4, 20, (1, 32, 32), 10), small_cnn_runs(4, 60, (1, 32, 32), 10)
    assert few == many[:20]
    assert few != small_cnn_runs(5, 20, (1, 32, 32), 10)
    assert many[0].architecture.num_parameters == 4970  # the published networks
    for run in many:
        assert 5e-4 <= run.hyper.learning_rate <= 5e-2
        assert 0 <= run.hyper.dropout <= 0.7
    assert {run.hyper.init for run in many} == {"normal", "truncated-normal", "orthogonal", "glorot", "he"}
    for init in ("normal", "truncated-normal", "orthogonal", "glorot", "he"):
        run = dataclasses.replace(many[0], hyper=dataclasses.replace(many[0].hyper, init=init, init_scale=2.0))
        state, again = initial_stack(run, 0), initial_stack(run, 0)
        assert all(torch.equal(state[name], again[name]) for name in state)
        weight = state["conv1.weight"].flatten(1)
        if init == "orthogonal":
            torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(16), atol=1e-5, rtol=0)
        else:
            expected = {"normal": 2.0, "truncated-normal": 2 * 0.8796, "glorot": 2 / 12, "he": 2 * (2 / 144) ** 0.5}[
                init
            ]
            assert float(weight.std()) == pytest.approx(expected, rel=0.06)
        assert not bool(state["conv1.bias"].any())
