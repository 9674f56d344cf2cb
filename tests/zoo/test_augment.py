"""Augmentations against their meaning: what the changed networks render, one network at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Layer, NeuralGraph, Stack, trace
from neural_graphs.zoo._augment import augment

SIREN = Stack.mlp((2, 16, 16, 1), "sine:30", shift=0.5)
OFF = {"translation": 0.0, "rotation": 0.0, "scaling": 0.0, "noise": 0.0, "dropout": 0.0}


def networks(count: int = 12, stack: Stack = SIREN, same: bool = False, seed: int = 0) -> NeuralGraph:
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in stack.parameter_shapes().items():
        value = torch.randn(1 if same else count, *shape, generator=generator, dtype=torch.float64) * 0.1
        values[name] = value.expand(count, *shape).contiguous()
    return NeuralGraph.from_state_dict(values, stack=stack, batched=True)


def changed(graph: NeuralGraph, seed: int = 0, **strengths: float) -> NeuralGraph:
    return augment(graph, torch.Generator().manual_seed(seed), **{**OFF, **strengths})


def weight(graph: NeuralGraph, layer: int) -> Tensor:
    return graph.edges[layer][..., 0]


def bias(graph: NeuralGraph, layer: int) -> Tensor:
    return graph.nodes[layer + 1][..., 0]


def render(graph: NeuralGraph, index: int, x: Tensor) -> Tensor:
    """One network through its own module."""
    module = SIREN.module().double()
    module.load_state_dict(graph[index].to_state_dict())
    return module(x).detach()


POINTS = torch.rand(50, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 1


def test_rotated_networks_render_rotated_images() -> None:
    graph = networks()
    out = changed(graph, rotation=45.0)
    angles = []
    for b in range(12):
        matrix = torch.linalg.lstsq(weight(graph, 0)[b], weight(out, 0)[b]).solution
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(2, dtype=torch.float64))
        assert torch.linalg.det(matrix) == pytest.approx(1)
        angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
        torch.testing.assert_close(render(out, b, POINTS), render(graph, b, POINTS @ matrix.T), atol=1e-6, rtol=0)
    assert max(map(abs, angles)) <= 45 and max(angles) > 15 and min(angles) < -15
    for layer in (1, 2):
        assert torch.equal(weight(out, layer), weight(graph, layer))


def test_exactly_translated_networks_render_translated_images() -> None:
    graph = networks()
    out = changed(graph, translation=0.25, exact_translation=True)
    shifts = []
    for b in range(12):
        added = (bias(out, 0) - bias(graph, 0))[b]
        shift = torch.linalg.lstsq(weight(graph, 0)[b], added[:, None]).solution[:, 0]
        torch.testing.assert_close(render(out, b, POINTS), render(graph, b, POINTS + shift), atol=1e-6, rtol=0)
        shifts.append(shift)
    assert torch.stack(shifts).abs().max() <= 0.25 and torch.stack(shifts).std(0).min() > 0.05


def test_translation_goes_into_one_bias_at_random_depth() -> None:
    graph = networks(60)
    out = changed(graph, translation=0.25)
    depths = []
    for b in range(60):
        moved = [k for k in range(3) if not torch.equal(bias(out, k)[b], bias(graph, k)[b])]
        assert len(moved) == 1
        depths += moved
        through = torch.eye(2, dtype=torch.float64)
        for layer in range(moved[0] + 1):  # what the first layers make of a shift, without their sines
            through = weight(graph, layer)[b] @ through
        added = (bias(out, moved[0]) - bias(graph, moved[0]))[b]
        shift = torch.linalg.lstsq(through, added[:, None]).solution
        torch.testing.assert_close((through @ shift)[:, 0], added, atol=1e-9, rtol=0)
    assert [depths.count(k) > 8 for k in range(3)] == [True] * 3


def test_scaled_networks_render_scaled_images() -> None:
    graph = networks()
    out = changed(graph, scaling=0.2)
    factors = weight(out, 0)[:, 0, 0] / weight(graph, 0)[:, 0, 0]
    assert ((factors - 1).abs() <= 0.2).all() and factors.std() > 0.05
    for b, factor in enumerate(factors):
        torch.testing.assert_close(render(out, b, POINTS), render(graph, b, POINTS * factor), atol=1e-6, rtol=0)


def test_noise_is_random_and_sized_by_each_tensor() -> None:
    graph = networks(40).map(lambda t: t * torch.linspace(1, 5, 40, dtype=t.dtype).view(-1, *(1,) * (t.dim() - 1)))
    out = changed(graph, noise=0.1)
    for before, after in zip((*graph.edges, *graph.nodes[1:3]), (*out.edges, *out.nodes[1:3]), strict=True):
        for b in range(40):
            z = (after[b] - before[b]) / (0.1 * before[b].std())
            assert z.unique().numel() == z.numel()  # the public code adds one and the same value everywhere
        pooled = (after - before) / (0.1 * torch.stack([t.std() for t in before]).view(-1, *(1,) * (before.dim() - 1)))
        assert abs(pooled.mean()) < 0.15 and abs(pooled.std() - 1) < 0.1
    assert torch.equal(out.nodes[3], graph.nodes[3])  # a single bias has no standard deviation


def test_dropout_zeroes_some_entries_and_rescales_the_others() -> None:
    graph = networks(50)
    out = changed(graph, dropout=0.1)
    before, after = weight(graph, 1), weight(out, 1)
    dropped = after == 0
    assert abs(float(dropped.double().mean()) - 0.1) < 0.02
    torch.testing.assert_close(after[~dropped], before[~dropped] / 0.9)
    assert (bias(out, 0) == 0).any()


@pytest.mark.parametrize("kind", list(OFF))
def test_every_network_has_draws_of_its_own_that_repeat_with_the_seed(kind: str) -> None:
    graph = networks(same=True)
    strength = {"rotation": 45.0, "dropout": 0.3}.get(kind, 0.2)
    out, again, other = (changed(graph, seed, **{kind: strength}) for seed in (0, 0, 1))
    flat, same, different = (torch.cat([t.flatten(1) for t in (*g.edges, *g.nodes)], 1) for g in (out, again, other))
    assert torch.equal(flat, same) and not torch.equal(flat, different)
    assert flat.unique(dim=0).shape[0] == 12


def test_off_is_off_and_the_input_stays() -> None:
    graph = networks()
    before = [t.clone() for t in (*graph.edges, *graph.nodes)]
    out = changed(graph)
    assert all(torch.equal(a, b) for a, b in zip((*out.edges, *out.nodes), before, strict=True))
    augment(graph, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((*graph.edges, *graph.nodes), before, strict=True))


def test_mixed_batches_keep_their_order() -> None:
    other = networks(3, Stack.mlp((2, 4, 1), "relu"))
    batch = GraphBatch.of([networks(2), other])
    out = augment(batch, torch.Generator().manual_seed(0))
    assert [g.batch_size for g in out.buckets] == [2, 3] and out.index is batch.index
    assert [g.dtype for g in out.buckets] == [torch.float64] * 2


def test_networks_without_coordinates_are_refused() -> None:
    volume = networks(2, Stack.mlp((3, 4, 1), "sine:30"))
    with pytest.raises(UserError, match="3: set augment.rotation=0"):
        changed(volume, rotation=10.0)
    assert changed(volume, translation=0.1, scaling=0.1, noise=0.1).batch_size == 2
    image = networks(2, Stack((Layer("0", 3, 4, (3, 3)), Layer("1", 4, 2))))
    with pytest.raises(UserError, match="coordinate network"):
        changed(image, scaling=0.1)
    assert changed(image, noise=0.1, dropout=0.01).batch_size == 2


class Residual(torch.nn.Module):
    """A tensor in two places, a normalisation with statistics, and one parameter used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.last = torch.nn.BatchNorm2d(6), torch.nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = x + self.second(self.second(x).relu())
        return self.last(x.mean((2, 3)))


def strange(kind: str) -> NeuralGraph:
    """Networks whose tensors are no plain entries of the graph."""
    if kind == "cut by residuals":
        convs = [
            Layer(f"c{k}", a, b, (3, 3), padding=1, residual=r) for k, (a, b, r) in enumerate(((2, 4, -1), (4, 6, 0)))
        ]
        return networks(30, Stack((*convs, Layer("head", 6, 5, positions=16))))
    torch.manual_seed(0)
    graph = trace(Residual().double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64))
    state = {name: value.unsqueeze(0) for name, value in graph.to_state_dict().items()}
    many = {name: value.repeat(30, *(1,) * (value.dim() - 1)) for name, value in state.items()}
    return graph.like(many, batched=True)


@pytest.mark.parametrize("kind", ["cut by residuals", "traced"])
def test_weights_of_any_network_are_jittered_tensor_by_tensor(kind: str) -> None:
    graph = strange(kind)
    noisy, dropped = (changed(graph, **{name: 0.1}) for name in ("noise", "dropout"))
    before = graph.to_state_dict(batched=True)
    assert noisy.trace is graph.trace and noisy.stack is graph.stack
    for name, value in before.items():
        noise, kept = (g.to_state_dict(batched=True)[name] for g in (noisy, dropped))
        if "running" in name or "num_batches" in name:
            assert torch.equal(noise, value) and torch.equal(kept, value)
            continue
        spread = value.flatten(1).std(1).view(-1, *(1,) * (value.dim() - 1))
        if float(spread.min()) > 0:
            z = (noise - value) / (0.1 * spread)
            assert z.unique().numel() == z.numel() and abs(z.std() - 1) < 0.2 and abs(z.mean()) < 0.3
        else:
            assert torch.equal(noise, value)
        zero = kept == 0
        assert (value == 0).all() or (zero.any() or value.numel() < 100)
        assert (value == 0).all() or zero.double().mean() < 0.2
        torch.testing.assert_close(kept[~zero], value[~zero] / 0.9)
