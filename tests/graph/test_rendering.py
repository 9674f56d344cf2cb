"""Rendering networks in bulk is what running each of them by itself gives, gradients included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, _drawing, _rendering, pixel_grid, render, trace


def networks(stack: Stack, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> NeuralGraph:
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (torch.rand(n, *shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype) / shape[-1] ** 0.5
        for name, shape in stack.parameter_shapes().items()
    }
    return stack.graph(state)


def one_by_one(graph: NeuralGraph, height: int, width: int) -> Tensor:
    """The slow, obvious twin: every network by itself."""
    grid = pixel_grid(height, width, graph.dtype)
    return torch.stack([graph[b].run(grid)[0].unflatten(0, (height, width)) for b in range(len(graph))])


def learning(graph: NeuralGraph) -> tuple[NeuralGraph, list[Tensor]]:
    """The same networks with parameters of their own, and these."""
    state = {name: value.clone().requires_grad_() for name, value in graph.to_state_dict(batched=True).items()}
    return graph.like(state, batched=True), list(state.values())


STACKS = {
    "siren": Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5),
    "deep": Stack.mlp((2, 8, 8, 8, 8, 3), "sine:5"),
    "sine at the end": Stack.mlp((2, 6, 2), "sine:3", output_activation="sine:2"),
    "mixed": Stack.mlp((2, 7, 5, 6, 3), ["sine:30", "relu", "tanh"], output_activation="sigmoid"),
    "other first": Stack.mlp((2, 6, 5, 4, 1), ["leaky_relu", "sine:4", "none"], shift=-1.0),
    "no bias": Stack.mlp((2, 9, 5, 2), ["gelu", "sine:6"], bias=False),
    "no bias of sines": Stack.mlp((2, 9, 5, 2), ["sine:6", "silu"], bias=False),
    "linear": Stack.mlp((2, 3)),
    "one sine": Stack.mlp((2, 3), output_activation="sine:4"),
    "residual": replace(
        base := Stack.mlp((2, 6, 6, 1), "sine:4"),
        layers=(base.layers[0], replace(base.layers[1], residual=0), base.layers[2]),
    ),
}


@pytest.mark.parametrize("cache", [1 << 23, 20_000, 3_000], ids=["whole", "networks apart", "rows apart"])
@pytest.mark.parametrize("name", STACKS)
def test_images_and_gradients_are_those_of_networks_one_by_one(
    name: str, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_drawing, "CACHE_BYTES", cache)
    monkeypatch.setattr(_rendering, "CACHE_BYTES", cache)
    graph, parameters = learning(networks(STACKS[name], 5))
    drawn, expected = render(graph, 7, 9), one_by_one(graph, 7, 9)
    torch.testing.assert_close(drawn, expected, rtol=1e-10, atol=1e-11)
    weights = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((drawn * weights).sum(), parameters)
    twin = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    graph, parameters = learning(networks(Stack.mlp((2, 4, 3, 2), ["sine:3", "tanh"], shift=0.5), 2))
    names = list(graph.to_state_dict(batched=True))

    def draw(*values: Tensor) -> Tensor:
        return render(graph.like(dict(zip(names, values, strict=True)), batched=True), 3, 4, (-1.0, 2.0))

    assert torch.autograd.gradcheck(draw, parameters)


def test_no_network_depends_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rendering, "NATIVE", 1 << 60)
    graph = networks(STACKS["siren"], 50, dtype=torch.float32)
    alone = torch.cat([render(graph[b], 28, 28) for b in (0, 17, 49)])
    torch.testing.assert_close(render(graph, 28, 28)[[0, 17, 49]], alone, rtol=1e-5, atol=1e-5)


def test_single_precision_is_close_to_double() -> None:
    graph = networks(STACKS["siren"], 8)
    torch.testing.assert_close(
        render(graph.to(torch.float32), 28, 28).double(), render(graph, 28, 28), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siren", "no bias"])
def test_fused_is_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, parameters = learning(networks(STACKS[name], 5, dtype=torch.float32))
    drawn = []
    monkeypatch.setattr(_rendering, "NATIVE_WITH_GRADIENT", 1 << 60)
    for fused in (False, True):
        monkeypatch.setattr(_rendering, "FUSED_WITH_GRADIENT", 0 if fused else 1 << 60)
        images = render(graph, 11, 10)
        drawn.append((images, *torch.autograd.grad(images.square().sum(), parameters)))
    for a, b in zip(*drawn, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


def test_only_parameters_are_kept_for_the_backward_pass() -> None:
    graph, parameters = learning(networks(STACKS["siren"], 6))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        render(graph, 28, 28)
    assert max(kept) == parameters[2].numel()
    with torch.no_grad():
        assert not render(graph, 28, 28).requires_grad
    assert not render(networks(STACKS["siren"], 6), 28, 28).requires_grad


def test_parameters_that_are_given_need_no_gradient() -> None:
    graph = networks(STACKS["siren"], 3)
    state = graph.to_state_dict(batched=True)
    name, value = list(state.items())[3]
    value = value.clone().requires_grad_()
    (found,) = torch.autograd.grad(render(graph.like({**state, name: value}, batched=True), 5, 5).sum(), value)
    (twin,) = torch.autograd.grad(one_by_one(graph.like({**state, name: value}, batched=True), 5, 5).sum(), value)
    torch.testing.assert_close(found, twin, rtol=1e-9, atol=1e-10)


def test_mixed_architectures_keep_their_order() -> None:
    stacks = [STACKS["siren"], Stack.mlp((2, 5, 1), "relu"), STACKS["siren"]]
    graphs = [networks(stack, 2, seed) for seed, stack in enumerate(stacks)]
    drawn = render(GraphBatch.of(graphs), 4, 6, (0.25, 0.75))
    expected = torch.cat([one_by_one(graph, 4, 6) for graph in graphs])
    torch.testing.assert_close(drawn, (expected - 0.25) / 0.5, rtol=1e-10, atol=1e-10)


def test_traced_modules_are_drawn_and_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ELU(), nn.Linear(8, 3)).double()
    graph = trace(module, pixel_grid(3, 3, torch.float64))
    graph, parameters = learning(NeuralGraph.cat([graph] * 3))
    monkeypatch.setattr(_rendering, "CACHE_BYTES", 1)  # every network by itself
    drawn = render(graph, 4, 5)
    for image in drawn:
        torch.testing.assert_close(image.flatten(0, 1), module(pixel_grid(4, 5, torch.float64)))
    ours = torch.autograd.grad(drawn.square().sum(), parameters)
    twin = torch.autograd.grad(module(pixel_grid(4, 5, torch.float64)).square().sum(), list(module.parameters()))
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a, b.expand_as(a))


def test_half_precision_is_drawn() -> None:
    graph = networks(Stack.mlp((2, 6, 1), "tanh"), 3, dtype=torch.bfloat16)
    drawn = render(graph, 4, 4)
    assert drawn.dtype == torch.bfloat16
    torch.testing.assert_close(drawn.double(), render(graph.to(torch.float64), 4, 4), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("n", [2, 5])
def test_autocast_leaves_images_alone(n: int) -> None:
    for name in ("siren", "residual"):
        graph = networks(STACKS[name], n, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = render(graph, 6, 6)
        assert torch.equal(drawn, render(graph, 6, 6))


def test_empty_batches() -> None:
    assert render(networks(STACKS["deep"], 3)[:0], 4, 5).shape == (0, 4, 5, 3)
    assert render(GraphBatch((), ()), 4, 5).shape == (0, 4, 5, 1)


def test_refused() -> None:
    three = networks(Stack.mlp((3, 4, 1)), 1)
    with pytest.raises(UserError, match=r"3-4-1 sine:30 is no image: only networks with 2 inputs can be rendered"):
        render(three, 4, 4)
    with pytest.raises(UserError, match="only networks with 2 inputs"):
        render(trace(nn.Linear(3, 1), torch.zeros(2, 3)), 4, 4)
    colours = GraphBatch.of([networks(STACKS[name], 1) for name in ("siren", "deep")])
    with pytest.raises(UserError, match="different numbers of outputs"):
        render(colours, 4, 4)
    with pytest.raises(UserError, match="images need one axis of channels"):
        render(trace(nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (2, 2))), torch.zeros(3, 2)), 4, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", STACKS)
def test_cuda_draws_the_same(name: str) -> None:
    graph, parameters = learning(networks(STACKS[name], 5))
    far, moved = learning(graph.to("cuda"))
    drawn, expected = render(far, 6, 7), render(graph, 6, 7)
    torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(drawn.square().sum(), moved)
    twin = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-8)
