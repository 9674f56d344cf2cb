"""One network that computes the mean of several: exactness against running each, its architecture, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Layer, NeuralGraph, Stack, average_networks, trace
from neural_graphs.graph._activation import KINDS, Activation
from neural_graphs.testing import random_graph, random_inputs, random_stack


def check(stack: Stack, copies: int = 3, x: Tensor | None = None) -> NeuralGraph:
    """The merged networks of two; what they compute is the mean of what the copies of each compute."""
    graph = random_graph(stack, 2 * copies)
    merged = average_networks(graph, copies)
    x = random_inputs(stack) if x is None else x
    each = [graph[b::2].run(x) for b in range(2)]  # copy j of network b stands at 2 j + b
    right = torch.stack([values.sum(0) / copies for values in each])
    torch.testing.assert_close(merged.run(x), right, rtol=0, atol=1e-12)
    assert (each[0] - each[0][:1]).abs().max() > 1e-3, "the copies are alike, so their mean proves nothing"
    assert merged.batch_size == 2 and merged.stack is not None
    shapes = merged.stack.parameter_shapes()
    assert {name: tuple(value.shape[1:]) for name, value in merged.to_state_dict(True).items()} == shapes
    module = merged.stack.module().double()
    module.load_state_dict(merged[1].to_state_dict(False))
    torch.testing.assert_close(module(x), right[1], rtol=0, atol=1e-12)
    rebuilt = Stack.from_json(merged.stack.to_json())
    assert rebuilt == merged.stack
    return merged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_mean_of_mlps(kind: str, bias: bool) -> None:
    for widths in ((2, 5, 4, 3), (3, 6, 1), (2, 3)):
        stack = Stack.mlp(widths, kind, shift=0.5, bias=bias)
        merged = check(stack).stack
        assert merged is not None
        assert merged.widths == (widths[0], *(3 * width for width in widths[1:-1]), widths[-1])
        assert [layer.name for layer in merged.layers] == [layer.name for layer in stack.layers]
        assert merged.shift == 0.5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_outputs_with_an_activation_are_averaged_behind_it(kind: str) -> None:
    merged = check(Stack.mlp((2, 5, 3), "relu", shift=-1.0, output_activation=kind)).stack
    assert merged is not None and merged.widths == (2, 15, 9, 3)
    check(Stack.mlp((2, 3), output_activation=kind, prefix="mean"))  # the name that a further layer would have


@pytest.mark.parametrize("seed", range(12))
def test_mean_of_cnns(seed: int) -> None:
    check(random_stack(seed, "cnn"), copies=1 + seed % 3 + 1)


@pytest.mark.parametrize("activation", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_strides_pooling_flattened_maps_and_convolutions_to_the_end(activation: str, bias: bool) -> None:
    kind = Activation.parse(activation)
    first = Layer("a", 2, 4, (3, 3), 1, bias, Activation("relu"), stride=2, padding=1, pool="max:2")
    second = Layer("b", 4, 3, (2, 1), 1, bias, Activation("gelu"))
    x = torch.randn(5, 2, 8, 10, dtype=torch.float64)  # 4 x 5 behind the stride, 2 x 2 pooled, 1 x 2 in the end
    flat = Layer("c", 3, 5, (), 2, bias, Activation("sine", 2.0))
    check(Stack((first, second, flat, Layer("d", 5, 2, bias=bias, activation=kind)), 0.25), x=x)
    check(Stack((first, replace(second, pool="global"), Layer("d", 3, 2, bias=bias, activation=kind))), x=x)
    check(Stack((first, Layer("e", 4, 2, (2, 2), 1, bias, kind)), 0.25), x=x)
    check(Stack((Layer("e", 2, 3, (3, 3), 1, bias, kind),)), x=x)


def test_one_copy_is_the_network_itself() -> None:
    graph = random_graph(random_stack(1, "wild-park"), 2)
    assert average_networks(graph, 1) is graph


def test_gradients_reach_every_copy() -> None:
    stack = Stack.mlp((2, 4, 3, 1), "tanh")
    state = {name: t.clone().requires_grad_() for name, t in random_graph(stack, 6).to_state_dict(True).items()}
    x = random_inputs(stack)
    average_networks(stack.graph(state), 3).run(x).square().sum().backward()
    found = {name: t.grad for name, t in state.items()}
    for t in state.values():
        t.grad = None
    stack.forward(state, x).unflatten(0, (3, 2)).mean(0).square().sum().backward()
    for name, t in state.items():
        torch.testing.assert_close(found[name], t.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_float32_stays_float32_and_empty_batches_stay_empty() -> None:
    for stack in (Stack.mlp((2, 4, 1), "relu"), Stack.mlp((2, 4, 1), "relu", output_activation="tanh")):
        merged = average_networks(random_graph(stack, 4, torch.float32), 2)
        assert {t.dtype for t in merged.to_state_dict().values()} == {torch.float32}
        assert average_networks(random_graph(stack, 2)[:0], 2).batch_size == 0


def test_what_cannot_be_merged_is_one_line() -> None:
    with pytest.raises(UserError, match="5 networks are not 2 copies of each"):
        average_networks(random_graph(Stack.mlp((2, 4, 1)), 5), 2)
    with pytest.raises(UserError, match="not 0 copies"):
        average_networks(random_graph(Stack.mlp((2, 4, 1)), 5), 0)
    plain = random_stack(1, "wild-park").layers
    residual = Stack((plain[0], replace(plain[1], outputs=plain[0].outputs, inputs=plain[0].outputs, residual=0)))
    module = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1)).eval()
    for graph in (random_graph(residual, 4), trace(module, torch.zeros(3, 2))):
        with pytest.raises(UserError, match=r"only plain stacks .* without residuals are merged .* copies=1") as error:
            average_networks(NeuralGraph.cat([graph, graph]), 2)
        assert "\n" not in str(error.value)
