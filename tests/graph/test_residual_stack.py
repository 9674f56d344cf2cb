"""Stacks with residuals between layers of any widths: what they compute, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack


def conv(number: int, before: int, after: int, kind: str = "relu", residual: int = -1, **more: Any) -> Layer:
    return Layer(
        f"conv{number}", before, after, (3, 3), 1, True, Activation.parse(kind), 1, 1, residual=residual, **more
    )


def wide_and_narrow() -> Stack:
    """A residual onto fewer channels, one onto more, and one from a layer that is itself a sum."""
    return Stack(
        (
            conv(0, 2, 5, "tanh"),
            conv(1, 5, 3),
            conv(2, 3, 2, "gelu", residual=0),
            conv(3, 2, 4, "sigmoid", residual=2, pool="global"),
            Layer("head", 4, 10),
        )
    )


def run_slowly(stack: Stack, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """One network, channel by channel."""
    kept: list[Tensor] = []
    for layer in stack.layers:
        if not layer.kernel:
            x = x.flatten(1) @ state[layer.weight].T + state[f"{layer.name}.bias"]
        else:
            x = F.conv2d(x, state[layer.weight], state[f"{layer.name}.bias"], padding=1)
        for channel in range(x.shape[1]):
            if layer.residual >= 0 and channel < kept[layer.residual].shape[1]:
                x[:, channel] += kept[layer.residual][:, channel]
        x = layer.activation(x)
        kept.append(x)
        if layer.pool:
            x = x.mean((2, 3)) if layer.pool == "global" else F.max_pool2d(x, int(layer.pool[4:]))
    return x


def random_state(stack: Stack, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(batch, *shape, generator=generator, dtype=torch.float64) / 2
        for name, shape in stack.parameter_shapes().items()
    }


STACKS = {
    "widths": wide_and_narrow(),
    "before pooling": Stack(
        (conv(0, 1, 3, pool="max:2"), conv(1, 3, 4), conv(2, 4, 3, residual=1), Layer("head", 3, 2, (), 9))
    ),
    "vectors": Stack(
        (
            Layer("a", 3, 4, activation=Activation("sine", 30.0)),
            Layer("b", 4, 6, activation=Activation("sine", 5.0), residual=0),
            Layer("c", 6, 5, residual=1),
        )
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_residuals_are_added_channel_by_channel(name: str) -> None:
    stack = STACKS[name]
    state = random_state(stack, 3)
    first = stack.layers[0]
    x = torch.randn(4, first.inputs, *((6, 6) if first.kernel else ()), dtype=torch.float64)
    right = torch.stack([run_slowly(stack, {k: v[n] for k, v in state.items()}, x) for n in range(3)])
    torch.testing.assert_close(stack.forward(state, x), right, rtol=1e-12, atol=1e-12)
    module = stack.module().double()
    module.load_state_dict({key: value[1] for key, value in state.items()})
    torch.testing.assert_close(module(x), right[1], rtol=1e-12, atol=1e-12)
    without = Stack(tuple(replace(layer, residual=-1) for layer in stack.layers))
    assert (without.forward(state, x) - right).abs().max() > 1e-3


def test_residuals_are_part_of_the_description() -> None:
    stack = wide_and_narrow()
    assert str(stack) == "2-5k3x3-3k3x3-2k3x3+0-4k3x3+2-10 tanh,relu,gelu,sigmoid"
    assert Stack.from_json(json.loads(json.dumps(stack.to_json()))) == stack
    old = Stack.mlp((2, 4, 3)).to_json()
    for entry in old["layers"]:
        del entry["residual"]  # as written before there were any
    assert Stack.from_json(old) == Stack.mlp((2, 4, 3))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((conv(0, 1, 2), conv(1, 2, 2, residual=1)), "conv1 adds layer number 1: only those before it"),
        ((conv(0, 1, 2), conv(1, 2, 2, residual=-2)), "conv1 adds layer number -2: only those before it"),
        (
            (conv(0, 1, 2, pool="max:2"), conv(1, 2, 2, residual=0)),
            "conv1 adds the values of conv0, which differ in size",
        ),
        (
            (conv(0, 1, 2, pool="global"), Layer("head", 2, 2, residual=0)),
            "head adds the values of conv0, which differ",
        ),
        (
            (conv(0, 1, 2), replace(conv(1, 2, 2, residual=0), padding=0)),
            "conv1 adds the values of conv0, which differ",
        ),
    ],
)
def test_residuals_that_do_not_fit_are_refused(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stack(layers)


def test_facts_about_architectures() -> None:
    stack = wide_and_narrow()
    assert (stack.num_outputs, stack.input_shape) == (10, (2, None, None))
    assert stack.activations_used == ("tanh", "relu", "gelu", "sigmoid")
    siren = Stack.mlp((2, 8, 8, 3), "sine:30")
    assert (siren.num_outputs, siren.input_shape, siren.activations_used) == (3, (2,), ("sine:30",))


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (16, 24), (24, 32)])
@pytest.mark.parametrize(
    ("stride", "padding", "pool"), [(1, 1, ""), (2, 1, ""), (2, 0, ""), (1, 0, "max:2"), (2, 1, "max:2")]
)
def test_flattened_maps_say_which_inputs_fit(size: tuple[int, int], stride: int, padding: int, pool: str) -> None:
    """The size found is one with which the network runs; it is the square one that the network was made for."""
    first = replace(conv(0, 3, 4), stride=stride, padding=padding, pool=pool)
    wide = Stack((first, conv(1, 4, 2)))
    h, w = wide.forward(random_state(wide, 1), torch.zeros(1, 3, *size, dtype=torch.float64)).shape[-2:]
    stack = Stack((*wide.layers, Layer("head", 2, 5, (), h * w)))
    found: tuple[Any, ...] = stack.input_shape
    assert stack.forward(random_state(stack, 1), torch.zeros(1, *found, dtype=torch.float64)).shape == (1, 1, 5)
    if size == (32, 32):
        assert found == (3, 32, 32)
