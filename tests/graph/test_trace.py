"""From modules to graphs: plain stacks are read, everything else is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, Stack, trace
from neural_graphs.testing import random_inputs, random_stack


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["mlp", "siren", "cnn"])
def test_stack_modules_are_traced(kind: Any, seed: int) -> None:
    stack = random_stack(seed, kind)
    module = stack.module()
    graph = trace(module, random_inputs(stack, 2, torch.float32))
    assert graph.stack == stack
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in graph.to_state_dict().items())


def test_a_sequential_equals_its_bare_state_dict() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    traced = trace(module, torch.randn(3, 2))
    bare = NeuralGraph.from_state_dict(module.state_dict(), ["relu", "tanh"])
    assert traced.stack == bare.stack and traced.spec == bare.spec
    assert all(torch.equal(a, b) for a, b in zip(traced.edges, bare.edges, strict=True))
    assert str(traced.symmetries) == "S4 × S3"


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 2)], (2, 3, 5, 5)),
        ([nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)], (2, 3, 5, 5)),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)], (2, 1, 6, 6)),
        ([nn.Conv2d(1, 4, 3, padding="same"), nn.SiLU(), nn.Conv2d(4, 2, 3, stride=2), nn.Flatten(), nn.Linear(8, 1)],
         (2, 1, 5, 5)),
        ([nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), nn.Dropout(), nn.Sequential(nn.Linear(3, 1))], (2, 2)),
    ],
    ids=["flatten", "global", "max", "stride", "nested"],
)  # fmt: skip
def test_plain_sequentials_are_read(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    module = nn.Sequential(*layers).double().train()
    inputs = torch.randn(shape, dtype=torch.float64)
    graph = trace(module, inputs)
    assert module.training
    torch.testing.assert_close(graph.run(inputs)[0], module.eval()(inputs), rtol=1e-12, atol=1e-12)
    assert graph.check(module, inputs).passed


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Residual(), "Residual is no plain stack"),
        (nn.Sequential(nn.Linear(2, 2), Residual()), "Residual.* has no place"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), "BatchNorm1d.* has no place"),
        (nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.3), nn.Linear(2, 1)), "LeakyReLU"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), "no groups"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2)), "no dilation"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, stride=(1, 2))), "same on both axes"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 1)), "neither flattened nor pooled"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(6, 1)), "no multiple of 4 channels"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), "must follow"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 1)), "must follow"),
        (nn.Sequential(nn.Linear(2, 3), nn.MaxPool2d(2)), "pooling must follow a convolution"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, stride=2)), "has no place"),
        (nn.Sequential(), "no Linear or Conv2d layer"),
    ],
)
def test_everything_else_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace(module)


def test_a_changed_forward_is_noticed() -> None:
    class Doubled(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    module = Doubled(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(UserError, match="no plain stack"):
        trace(module)
    inputs = torch.randn(4, 2)
    graph = trace(module, inputs)  # recorded as it runs
    assert graph.stack is None
    torch.testing.assert_close(graph.run(inputs)[0], module(inputs))


def test_a_hook_is_noticed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    module[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    inputs = torch.randn(4, 2)
    graph = trace(module, inputs)
    assert graph.stack is None
    torch.testing.assert_close(graph.run(inputs)[0], module(inputs))


def test_tied_layers_are_no_plain_stack() -> None:
    shared = nn.Linear(2, 2)
    module = nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), nn.Linear(2, 1))
    with pytest.raises(UserError, match="2 shares its weights with a layer before"):
        trace(module)
    inputs = torch.randn(4, 2)
    assert trace(module, inputs).check(module, inputs).passed
    tied = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    with pytest.raises(UserError, match="shares its weights"):
        trace(tied)


def test_state_dicts_in_any_order_and_naming() -> None:
    module = Stack.mlp((2, *[3] * 11, 1), "tanh", prefix="net.{}").module()
    state = dict(reversed(list(module.state_dict().items())))  # net.10 sorts after net.2 by number, not by letter
    graph = NeuralGraph.from_state_dict(state, "tanh")
    inputs = torch.randn(3, 2)
    torch.testing.assert_close(graph.run(inputs)[0], module(inputs))
