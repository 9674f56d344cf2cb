"""The compiled kernel of ``render`` draws what each network by itself does, in float64, gradients included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, _image_kernel, _native, _rendering, pixel_grid, render

needs_compiler = pytest.mark.skipif(_image_kernel._function() is None, reason="no C++ compiler")

STACKS = {
    "siren": Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5),
    "narrow": Stack.mlp((2, 5, 1), "sine:30"),
    "wide": Stack.mlp((2, 48, 48, 3), "sine:10"),
    "deep": Stack.mlp((2, 8, 5, 33, 7, 3), "sine:5"),
    "mixed": Stack.mlp((2, 7, 5, 6, 3), ["sine:30", "relu", "tanh"], output_activation="tanh"),
    "relu first": Stack.mlp((2, 7, 5, 6, 1), ["relu", "sine:3", "none"], output_activation="sine:3"),
    "no bias": Stack.mlp((2, 9, 5, 2), "sine:6", bias=False),
    "many outputs": Stack.mlp((2, 17, 9, 18), "tanh", shift=-1.0),
    "one sine": Stack.mlp((2, 3), output_activation="sine:4"),
    "linear": Stack.mlp((2, 3)),
}
SIZES = [(1, 1), (7, 5), (28, 28), (113, 64), (3, 300), (41, 1)]


@pytest.fixture
def drawn_natively(monkeypatch: pytest.MonkeyPatch) -> list[Stack]:
    """Even single pixels are; the list gets the architectures that were."""
    calls: list[Stack] = []
    draw = _rendering.draw_natively

    def draw_natively(stack: Stack, *rest: object) -> Tensor:
        calls.append(stack)
        return draw(stack, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(_rendering, "draw_natively", draw_natively)
    monkeypatch.setattr(_rendering, "NATIVE", 0)
    monkeypatch.setattr(_rendering, "NATIVE_WITH_GRADIENT", 0)
    return calls


def networks(stack: Stack, n: int, seed: int = 0, scale: float = 1.0) -> tuple[NeuralGraph, list[Tensor]]:
    """In float32, and their parameters."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: ((torch.rand(n, *shape, generator=generator) * 2 - 1) * scale / shape[-1] ** 0.5).requires_grad_()
        for name, shape in stack.parameter_shapes().items()
    }
    return stack.graph(state), list(state.values())


def twin(graph: NeuralGraph, height: int, width: int) -> tuple[Tensor, list[Tensor]]:
    """Every network by itself in float64, and the parameters."""
    state = {
        name: value.detach().double().requires_grad_() for name, value in graph.to_state_dict(batched=True).items()
    }
    exact = graph.to(torch.float64).like(state, batched=True)
    grid = pixel_grid(height, width, torch.float64)
    images = [exact[b].run(grid)[0].unflatten(0, (height, width)) for b in range(len(graph))]
    return torch.stack(images), list(state.values())


def difference(found: Tensor, expected: Tensor, least: float = 1.0) -> float:
    """The largest, relative to the largest value or to ``least``: of images the distance from black to white."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=least))


@needs_compiler
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", STACKS)
def test_images_and_gradients(name: str, height: int, width: int, drawn_natively: list[Stack]) -> None:
    graph, parameters = networks(STACKS[name], 3)
    images = render(graph, height, width)
    expected, exact = twin(graph, height, width)
    assert drawn_natively == [STACKS[name]]
    assert images.dtype == torch.float32 and images.shape == expected.shape
    assert difference(images, expected) < 1e-5
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((images * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and difference(a, b, 1e-6) < 1e-4


@needs_compiler
def test_neither_threads_nor_networks_beside_matter(drawn_natively: list[Stack]) -> None:
    found = []
    for threads, chosen in ((1, slice(0, 7)), (2, slice(0, 7)), (1, slice(4, 5))):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            graph, parameters = networks(STACKS["siren"], 7)
            images = render(graph[chosen], 20, 30)
            gradients = torch.autograd.grad(images.square().sum(), parameters)
        finally:
            torch.set_num_threads(before)
        found.append([images[4 - chosen.start], *(gradient[4] for gradient in gradients)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize("slope", [False, True])
def test_sines_of_all_sizes(slope: bool, drawn_natively: list[Stack]) -> None:
    """One neuron over a row of pixels, its angles as large as the weight; and in a second layer, without tables."""
    for size in (1e-6, 1.0, 30.0, 1e3, 8191.9, 8192.1, 1e5, 1e12, 3e38):
        for stack in (
            Stack.mlp((2, 1), output_activation="sine:1"),
            Stack.mlp((2, 1, 1), "none", output_activation="sine:1"),
        ):
            state = {name: torch.zeros(1, *shape) for name, shape in stack.parameter_shapes().items()}
            (first, _), *rest = zip(list(state.values())[::2], list(state.values())[1::2], strict=True)
            first[0, 0, 0] = size
            for weight, _ in rest:
                weight.fill_(1)
            bias = list(state.values())[-1].requires_grad_()
            images = render(stack.graph(state), 1, 1001).flatten()
            angles = (first[0, 0, 0] * pixel_grid(1, 1001)[:, 0]).double()
            tolerance = 1e-6 if size < 1e4 else 1e-5
            if not slope:
                torch.testing.assert_close(images.double(), angles.sin(), rtol=0, atol=tolerance)
                continue
            upwards = torch.rand(1001, generator=torch.Generator().manual_seed(0))
            (gradient,) = torch.autograd.grad((images * upwards).sum(), bias)
            torch.testing.assert_close(
                gradient.double().flatten()[0], (angles.cos() * upwards).sum(), rtol=0, atol=1e-3
            )


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_broken_weights_give_broken_images_and_leave_others_alone(value: float, drawn_natively: list[Stack]) -> None:
    for name in ("siren", "mixed", "relu first"):
        graph, parameters = networks(STACKS[name], 3)
        healthy = render(graph, 9, 9).detach()
        with torch.no_grad():
            parameters[2][1] = value
        graph = graph.like(dict(zip(graph.to_state_dict(batched=True), parameters, strict=True)), batched=True)
        images = render(graph, 9, 9)
        assert torch.equal(images[[0, 2]], healthy[[0, 2]])
        if value != value:
            assert images[1].isnan().all()
        (gradient,) = torch.autograd.grad(images.sum(), parameters[0])
        assert gradient[[0, 2]].isfinite().all()


@needs_compiler
def test_mixed_architectures_and_empty_batches(drawn_natively: list[Stack]) -> None:
    gelu = Stack.mlp((2, 6, 1), "gelu")
    stacks = [STACKS["siren"], gelu, STACKS["narrow"]]
    graphs = [networks(stack, 2, seed)[0] for seed, stack in enumerate(stacks)]
    images = render(GraphBatch.of(graphs), 4, 6, (0.25, 0.75))
    expected = torch.cat([twin(graph, 4, 6)[0] for graph in graphs])
    assert difference(images, (expected - 0.25) / 0.5) < 1e-5
    assert drawn_natively == [STACKS["siren"], STACKS["narrow"]]
    assert render(graphs[0][:0], 4, 5).shape == (0, 4, 5, 1)


@needs_compiler
def test_gradients_of_gradients_are_refused(drawn_natively: list[Stack]) -> None:
    graph, parameters = networks(STACKS["siren"], 2)
    (gradient, *_) = torch.autograd.grad(render(graph, 5, 5).square().sum(), parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_compiler
def test_few_pixels_are_not_worth_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("asked for")

    monkeypatch.setattr(_rendering, "can_draw_natively", never)
    render(networks(STACKS["siren"], 1)[0].to(torch.float32), 8, 8)
    with pytest.raises(AssertionError, match="asked for"):
        render(networks(STACKS["siren"], 64)[0], 28, 28)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drawn_natively: list[Stack]) -> None:
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(_native, "compiled", _native.compile_function)
    graph, _ = networks(STACKS["siren"], 2)
    expected, _ = twin(graph, 6, 7)
    for name in ("no-such-compiler", str(broken)):
        monkeypatch.setenv("CXX", name)
        assert difference(render(graph, 6, 7), expected) < 1e-5
    assert not drawn_natively
