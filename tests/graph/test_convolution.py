"""Many networks' convolutions at once, against each network's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.graph import _graph as graph_module
from neural_graphs.graph._convolution import channels_last, convolve, map_sizes, mean_over_positions
from neural_graphs.testing import random_graph

RELU, TANH = Activation("relu"), Activation("tanh")
POOLED = Stack(
    (
        Layer("a", 2, 4, (3, 3), 1, True, RELU, padding=1),
        Layer("b", 4, 5, (3, 3), 1, False, TANH, padding=1, residual=0, pool="max:2"),
        Layer("c", 5, 3, (5, 5), 1, True, RELU, stride=2, padding=2, pool="global"),
        Layer("d", 3, 6),
    )
)
FLAT = Stack((Layer("a", 1, 4, (3, 3), 1, True, RELU, stride=2), Layer("b", 4, 3, (), 9)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_each_networks_own_convolution(batch: int, channels: int, shared: bool) -> None:
    """Values, and gradients to images, weights and biases."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, channels, 9, 8), (batch, 5, channels, 3, 2), (batch, 5)]
    if not shared:
        shapes[0] = (batch, *shapes[0])
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    h, weight, bias = given
    found = convolve(h, weight, bias, 2, 1)
    right = torch.stack(
        [torch.nn.functional.conv2d(h if shared else h[b], weight[b], bias[b], 2, 1) for b in range(batch)]
    )
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    seeds = torch.randn(right.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * seeds).sum(), given) for x in (found, right)]
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_stay_in_channels_last_memory(channels: int) -> None:
    """What makes it fast: a layer finds its input as it needs it, behind an activation and for grey images too."""
    x = torch.randn(6, channels, 12, 12)
    assert channels_last(x).stride() == (144 * channels, 1, 12 * channels, channels)
    assert torch.equal(channels_last(x), x)
    state = random_graph(POOLED, 3, torch.float32).to_state_dict(batched=True)
    h = torch.tanh(convolve(x, torch.randn(3, 4, channels, 3, 3), None, 1, 1))
    h = torch.tanh(convolve(h, state["b.weight"], None, 1, 1))
    stacked = h.transpose(0, 1).flatten(1, 2)
    assert stacked.data_ptr() == h.data_ptr() and stacked.is_contiguous(memory_format=torch.channels_last)


def slowly(stack: Stack, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """One network, plain torch: the mean of every map behind its activation, the vectors as they are."""
    values, found, h = [], [x.mean((2, 3))], x
    for layer in stack.layers:
        weight, bias = state[layer.weight], state.get(layer.bias_name or "")
        if layer.kernel:
            h = torch.nn.functional.conv2d(h, weight, bias, layer.stride, layer.padding)
        else:
            h = torch.nn.functional.linear(h.flatten(1), weight, bias)
        if layer.residual >= 0:
            shared = min(layer.outputs, stack.layers[layer.residual].outputs)
            h = torch.cat([h[:, :shared] + values[layer.residual][:, :shared], h[:, shared:]], 1)
        h = layer.activation(h)
        values.append(h)
        found.append(h.mean((2, 3)) if h.dim() == 4 else h)
        if layer.pool == "global":
            h = h.mean((2, 3))
        elif layer.pool:
            h = torch.nn.functional.max_pool2d(h, 2)
    return found


@pytest.mark.parametrize("chunk", [1, 3000, 1 << 20])
@pytest.mark.parametrize("stack", [POOLED, FLAT], ids=str)
def test_responses_to_images_are_single_networks(stack: Stack, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK", chunk)
    graph = random_graph(stack, 5)
    x = torch.randn(4, stack.layers[0].inputs, 8, 8, dtype=torch.float64, requires_grad=True)
    found = graph.responses(x)
    single = [slowly(stack, graph[b].to_state_dict(), x) for b in range(5)]
    right = [torch.stack(parts) for parts in zip(*single, strict=True)]
    # side by side, because a layer that a residual joins to another in part is several node sets
    torch.testing.assert_close(torch.cat(found, 2), torch.cat(right, 2), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(sum(v.square().sum() for v in values), x)[0] for values in (found, right)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    assert [tuple(v.shape) for v in graph[:0].responses(x)] == [(0, *v.shape[1:]) for v in found]


def test_mean_over_positions() -> None:
    h = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(mean_over_positions(h), h.mean((3, 4)), rtol=1e-14, atol=1e-14)


def test_sizes_of_maps_are_what_networks_write() -> None:
    for stack, side in ((POOLED, 8), (POOLED, 11), (FLAT, 8), (FLAT, 7)):
        x = torch.zeros(1, stack.layers[0].inputs, side, side, dtype=torch.float64)
        state = random_graph(stack, 1).to_state_dict(batched=True)
        written = [v[0, 0].numel() for v in stack.activations(state, x)[1:-1]]
        assert map_sizes(stack, (x.shape[1], side, side)) == written


@pytest.mark.parametrize(
    ("stack", "shape", "message"),
    [
        (POOLED, (1, 8, 8), "images of 1x8x8 cannot be read by networks of 2 input channels"),
        (POOLED, (2, 1, 8), "images of 2x1x8 are too small for layer b"),
        (FLAT, (1, 9, 9), "images of 1x9x9 have another size than those that layer b was made for"),
        (FLAT, (1, 2, 2), "images of 1x2x2 are too small for layer a"),
        (Stack.mlp((2, 3, 1)), (2, 8, 8), "cannot be read by networks that read vectors"),
    ],
)
def test_images_that_do_not_fit_are_refused(stack: Stack, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        map_sizes(stack, shape)
