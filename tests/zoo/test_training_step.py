"""The compiled training step: what the grouped convolutions and autograd compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.graph import Activation, Layer, Stack, _native
from neural_graphs.zoo import _training_step as compiled
from neural_graphs.zoo._bulk import Course, Hyper, Run, TrainingImages, per_network, train_chunk
from neural_graphs.zoo._classifier_recipes import initial_stack, small_cnn
from neural_graphs.zoo._grouped import grouped_logits
from neural_graphs.zoo._training_step import TrainingStep

needs_compiler = pytest.mark.skipif(compiled._function() is None, reason="no C++ compiler")

RELU, TANH = Activation.parse("relu"), Activation.parse("tanh")


def _stack(channels: int, convolutions: list[tuple[int, tuple[int, int], int]], classes: int = 5) -> Stack:
    """Of (outputs, kernel, stride) each."""
    layers, inputs = [], channels
    for number, (outputs, kernel, stride) in enumerate(convolutions):
        pool = "global" if number == len(convolutions) - 1 else ""
        layers.append(Layer(f"c{number}", inputs, outputs, kernel, activation=TANH, stride=stride, pool=pool))
        inputs = outputs
    return Stack((*layers, Layer("head", inputs, classes)))


def _mixed(stack: Stack, count: int) -> list[Stack]:
    """With relu in place of some tanh, differently in each."""
    return [
        Stack(
            tuple(
                replace(layer, activation=RELU) if layer.kernel and (place + number) % 3 else layer
                for place, layer in enumerate(stack.layers)
            )
        )
        for number in range(count)
    ]


@needs_compiler
@pytest.mark.parametrize(
    ("stack", "side", "batch"),
    [
        (_stack(1, [(16, (3, 3), 2), (16, (3, 3), 2), (16, (3, 3), 2)]), 32, 16),
        (_stack(3, [(16, (3, 3), 2), (32, (2, 3), 1)]), 12, 11),  # a last block of three images
        (_stack(2, [(32, (5, 5), 3), (16, (3, 2), 1), (16, (1, 1), 1)]), 17, 3),
        (_stack(1, [(16, (7, 5), 1)], classes=3), 9, 8),
        (_stack(1, [(16, (2, 2), 3), (16, (3, 3), 1)]), 16, 9),  # positions that no kernel reads
    ],
)
def test_losses_and_gradients_equal_autograd(stack: Stack, side: int, batch: int) -> None:
    g, count = torch.Generator().manual_seed(0), 4
    stacks = _mixed(stack, count)
    params = {n: 0.3 * torch.randn(count, *s, generator=g) for n, s in stack.parameter_shapes().items()}
    images = torch.randn(20, stack.layers[0].inputs, side, side, generator=g)
    labels = torch.randint(0, stack.num_outputs, (20,), generator=g)
    picked, rates = torch.randperm(20, generator=g)[:batch], torch.tensor([0.0, 0.2, 0.5, 0.7])
    assert TrainingStep.takes(stacks, images, labels)
    step = TrainingStep(stacks, images, labels, params, rates)
    noise: list[Tensor | None] = [
        torch.rand(shape, generator=g) if layer else None for layer, shape in enumerate(step.noise_shapes(batch))
    ]
    flat = torch.cat([value.flatten() for value in params.values()])
    found = torch.full_like(flat, torch.nan)
    losses = step(picked, noise, flat, found)

    def drop(layer: int, h: Tensor) -> Tensor:
        part, rate = noise[layer], rates.double().unsqueeze(1)
        return h if part is None else h * ((part >= rates.unsqueeze(1)) / (1 - rate))

    leaves = {name: value.double().requires_grad_() for name, value in params.items()}
    expected = per_network(grouped_logits(stacks, leaves, images[picked].double(), drop), labels[picked])
    slopes = torch.autograd.grad(expected.sum(), list(leaves.values()))
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for slope, part in zip(slopes, found.split([value.numel() for value in slopes]), strict=True):
        assert float(slope.abs().max()) > 1e-3
        torch.testing.assert_close(part.double(), slope.flatten(), rtol=1e-4, atol=1e-6)


def _images() -> TrainingImages:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 1, 15, 15, generator=g), torch.randint(0, 3, (96,), generator=g)
    x[:, :, 0] += y.view(-1, 1, 1)
    return TrainingImages(x, y, x[:32], y[:32])


def _runs() -> list[Run]:
    return [Run(n, small_cnn("tanh", 1, 3), Hyper("adam", 1e-3, 1e-3, dropout=0.2 * n)) for n in range(3)]


def _stacked(runs: list[Run]) -> dict[str, Tensor]:
    states = [initial_stack(run, 0) for run in runs]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _trained(runs: list[Run]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    *_, last = train_chunk(runs, _stacked(runs), _images(), Course(3, (3,), batch_size=24))
    return last.params, last.columns


@needs_compiler
def test_training_with_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout's noise included, which either draws."""
    found, figures = _trained(_runs())
    monkeypatch.setattr(compiled, "_function", lambda: None)
    expected, columns = _trained(_runs())
    for name, value in expected.items():
        assert not torch.equal(value, _stacked(_runs())[name])
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    assert figures["test_loss"] == pytest.approx(columns["test_loss"], rel=1e-4)


@needs_compiler
def test_neighbours_change_nothing_to_the_bit() -> None:
    together, _ = _trained(_runs())
    for place, run in enumerate(_runs()):
        alone, _ = _trained([run])
        assert all(torch.equal(value[0], together[name][place]) for name, value in alone.items())


@needs_compiler
def test_a_network_that_diverges_is_frozen_and_flagged() -> None:
    for activation in ("relu", "tanh"):
        good, bad = Hyper("sgd", 1e-3), Hyper("sgd", float("inf"))
        runs = [Run(n, small_cnn(activation, 1, 3), hyper) for n, hyper in enumerate((good, bad))]
        params, columns = _trained(runs)
        assert columns["diverged"].tolist() == [False, True]
        for name, value in _trained(runs[:1])[0].items():
            assert torch.equal(params[name][0], value[0])
            assert torch.equal(params[name][1], _stacked(runs)[name][1])


def _takes(stack: Stack, channels: int = 1, side: int = 15, dtype: torch.dtype = torch.float32, label: int = 2) -> bool:
    return TrainingStep.takes([stack], torch.zeros(2, channels, side, side, dtype=dtype), torch.tensor([0, label]))


def _changed(place: int, **changes: object) -> Stack:
    layers = list(small_cnn("relu", 1, 3).layers)
    layers[place] = replace(layers[place], **changes)  # type: ignore[arg-type]
    return Stack(tuple(layers))


@needs_compiler
def test_other_networks_and_images_are_left_to_the_grouped_convolutions() -> None:
    assert _takes(small_cnn("relu", 1, 3))
    for changes in ({"padding": 1}, {"bias": False}, {"activation": Activation.parse("gelu")}, {"pool": "max:2"}):
        assert not _takes(_changed(1, **changes))
    same = Layer("b", 16, 16, (1, 1), activation=RELU, pool="global")
    narrow = (Layer("a", 1, 16, (3, 3), activation=RELU), same, Layer("head", 16, 3))
    assert _takes(Stack(narrow))
    assert not _takes(Stack((narrow[0], replace(same, residual=0), narrow[2])))
    assert not _takes(Stack((Layer("c", 1, 8, (3, 3), activation=RELU, pool="global"), Layer("head", 8, 3))))
    assert not _takes(
        Stack((*small_cnn("relu", 1, 3).layers[:3], Layer("a", 16, 4, activation=RELU), Layer("b", 4, 3)))
    )
    assert not _takes(Stack.mlp((3, 16, 3), "relu"))
    assert not _takes(small_cnn("relu", 1, 3), channels=3)
    assert not _takes(small_cnn("relu", 1, 3), side=14)
    assert not _takes(small_cnn("relu", 1, 3), dtype=torch.float64)
    assert not _takes(small_cnn("relu", 1, 3), label=3)
    assert not _takes(small_cnn("relu", 1, 3), label=-1)


def test_without_a_compiler_nothing_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for name in ("no-such-compiler", str(broken)):
        monkeypatch.setenv("CXX", name)
        monkeypatch.setattr(_native, "compiled", _native.compile_function)
        assert compiled._function() is None
        assert not _takes(small_cnn("relu", 1, 3))
