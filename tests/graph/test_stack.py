"""Architectures as values, and networks of one architecture run together."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.testing import random_graph, random_inputs, random_stack

KINDS = ("none", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "sine")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["mlp", "siren", "cnn"])
def test_batched_forward_equals_one_by_one(kind: Any, seed: int) -> None:
    """The batched run against each network's own module, for shared inputs and for inputs of each network its own."""
    stack = random_stack(seed, kind)
    graph, inputs = random_graph(stack, 3), random_inputs(stack, 4)
    modules = [stack.module().double() for _ in range(3)]
    for network, module in enumerate(modules):
        assert list(module.state_dict()) == list(stack.parameter_shapes())
        module.load_state_dict(graph[network].to_state_dict())
    right = torch.stack([module(inputs) for module in modules])
    torch.testing.assert_close(graph.run(inputs), right, rtol=1e-12, atol=1e-12)
    own = torch.stack([inputs, inputs.flip(0), 2 * inputs])
    right = torch.stack([module(x) for module, x in zip(modules, own, strict=True)])
    torch.testing.assert_close(graph.run(own), right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", ["", "max:2", "global"])
def test_convolutional_stacks_equal_plain_torch(pool: str) -> None:
    positions = {"": 36, "max:2": 9, "global": 1}[pool]
    relu = Activation("relu")
    stack = Stack(
        (
            Layer("0", 2, 4, (3, 3), 1, True, relu, stride=1, padding=1),
            Layer("1", 4, 3, (3, 3), 1, False, Activation("tanh"), stride=2, padding=1, pool=pool),
            Layer("2", 3, 5, (), positions),
        )
    )
    graph, inputs = random_graph(stack, 2), torch.randn(3, 2, 12, 12, dtype=torch.float64)
    pooling = {"": torch.nn.Identity(), "max:2": torch.nn.MaxPool2d(2), "global": torch.nn.AdaptiveAvgPool2d(1)}[pool]
    for network in range(2):
        state = graph[network].to_state_dict()
        plain = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False),
            torch.nn.Tanh(),
            pooling,
            torch.nn.Flatten(),
            torch.nn.Linear(3 * positions, 5),
        ).double()
        names = {"0": "0", "1": "2", "2": "6"}
        plain.load_state_dict({names[key[0]] + key[1:]: value for key, value in state.items()})
        torch.testing.assert_close(graph[network].run(inputs)[0], plain(inputs), rtol=1e-12, atol=1e-12)


def test_activations_are_those_of_every_node_set() -> None:
    stack = Stack.mlp((2, 4, 3, 1), "sine:30", shift=0.5)
    graph, inputs = random_graph(stack, 2), random_inputs(stack, 5)
    values = graph.activations(inputs)
    assert [tuple(v.shape) for v in values] == [(2, 5, n) for n in (2, 4, 3, 1)]
    state = graph.to_state_dict()
    first = torch.sin(30 * (inputs @ state["seq.0.weight"][1].T + state["seq.0.bias"][1]))
    torch.testing.assert_close(values[1][1], first, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(values[-1], graph.run(inputs), rtol=0, atol=0)
    last = values[2] @ state["seq.2.weight"].transpose(1, 2) + state["seq.2.bias"][:, None] + 0.5
    torch.testing.assert_close(values[-1], last, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_json_round_trip(seed: int) -> None:
    stack = random_stack(seed)
    found = Stack.from_json(json.loads(json.dumps(stack.to_json())))
    assert found == stack and hash(found) == hash(stack)


@pytest.mark.parametrize("broken", [{}, {"kind": "graph"}, {"kind": "stack", "layers": [{"name": "a"}]}, 3, None])
def test_broken_json_is_refused(broken: Any) -> None:
    with pytest.raises(UserError):
        Stack.from_json(broken)


def test_description() -> None:
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    assert str(stack) == "2-32-32-1 sine:30"
    assert stack.widths == (2, 32, 32, 1) and stack.num_parameters == 1185
    assert stack.parameter_shapes()["seq.1.weight"] == (32, 32)
    assert str(Stack.mlp((2, 4, 3, 1), ["relu", "tanh"])) == "2-4-3-1 relu,tanh"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stack(()), "at least one layer"),
        (lambda: Stack((Layer("a", 2, 3), Layer("b", 4, 1))), "layer b reads 4 features but a writes 3"),
        (lambda: Stack.mlp((2,)), "at least an input and an output"),
        (lambda: Stack.mlp((2, 0, 1)), "all positive"),
        (lambda: Stack.mlp((2, 3, 1), ["relu", "relu"]), "1 hidden layers need 1 activations, got 2"),
        (lambda: Activation.parse("swish"), "unknown activation 'swish'"),
        (lambda: Activation.parse("sine:fast"), "must be a number"),
        (lambda: Activation.parse("relu:3"), "only a sine"),
    ],
)
def test_wrong_architectures_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_activation_symmetries_are_true(kind: Any) -> None:
    """Scale, sign and phase are claimed exactly where they hold."""
    f = Activation(kind, 7.0 if kind == "sine" else 1.0)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert f.scale == torch.allclose(f(3 * x), 3 * f(x))
    assert f.sign == torch.allclose(f(-x), -f(x))
    assert f.phase == torch.allclose(f(x + torch.pi / f.omega), -f(x))
    assert Activation.parse(str(f)) == f and Activation.parse(f) is f
    assert Activation.of_module(f.module()) == f
    assert torch.equal(f.module()(x), f(x))


def test_activations_of_torch_modules() -> None:
    x = torch.linspace(-2, 2, 41)
    for module in (torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.Sigmoid(), torch.nn.GELU(), torch.nn.SiLU()):
        found = Activation.of_module(module)
        assert found is not None and torch.equal(found(x), module(x))
    assert Activation.of_module(torch.nn.LeakyReLU(0.2)) is None
    assert Activation.of_module(torch.nn.GELU("tanh")) is None
    assert Activation.of_module(torch.nn.Softplus()) is None
