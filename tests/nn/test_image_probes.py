"""Probes that are images, against networks made of ``nn.Conv2d`` and run one at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs import trace
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, GraphBatch, Layer, NeuralGraph, Stack
from neural_graphs.nn import Encoder, ProbeFeatures, create_encoder
from neural_graphs.nn._probes import DeepLinearImages, probe_source, smooth_images
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph

RELU, TANH, GELU = (Activation(kind) for kind in ("relu", "tanh", "gelu"))  # type: ignore[arg-type]
SMALL = Stack(  # the Small CNN Zoo's, narrower
    (
        Layer("0", 2, 5, (3, 3), 1, True, RELU, 2),
        Layer("1", 5, 4, (3, 3), 1, True, RELU, 2, 1, "global"),
        Layer("2", 4, 3),
    )
)
PARK = Stack(  # the CNN Wild Park's, narrower: kernels and activations of all kinds, a residual
    (
        Layer("0", 2, 4, (3, 3), 1, True, GELU, 1, 1),
        Layer("1", 4, 6, (5, 5), 1, True, TANH, 1, 2, "max:2"),
        Layer("2", 6, 3, (3, 3), 1, True, RELU, 1, 1),
        Layer("3", 3, 6, (3, 3), 1, False, TANH, 1, 1, "global", 2),
        Layer("4", 6, 3),
    )
)
FLAT = Stack((Layer("0", 2, 4, (3, 3), 1, True, TANH, 1, 0), Layer("1", 4, 3, (), 30)))
STACKS = (SMALL, PARK, FLAT)
SHAPE = (2, 7, 8)
ARGUMENTS: dict[str, Any] = {"inputs": 2, "kernel": [5, 6], "width": 12, "layers": 2, "probe_shape": list(SHAPE)}
ENCODERS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"name": "ng-gnn", "probes": 4, "fourier": 8},
    "ng-gnn, outputs": {"name": "ng-gnn", "probes": 4, "fourier": 8, "probe_reads": "outputs"},
    "ng-t": {"name": "ng-t", "probes": 4, "fourier": 8, "probe_generator": "deep-linear", "heads": 2},
    "scale-gmn": {"name": "scale-gmn", "probes": 4},
    "probing": {"name": "probing", "probes": 5, "outputs": 3},
    "probing, neurons": {"name": "probing", "probes": 5, "outputs": 3, "probe_reads": "neurons"},
}
ENCODERS["combined"] = {"name": "combined", "outputs": 3, "parts": [ENCODERS["ng-gnn"], ENCODERS["probing, neurons"]]}
each_encoder = pytest.mark.parametrize("arguments", ENCODERS.values(), ids=ENCODERS.keys())


def with_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    shared = {key: value for key, value in ARGUMENTS.items() if key != "kernel" or arguments["name"] != "probing"}
    return {**shared, **arguments}


def build(arguments: dict[str, Any], dtype: torch.dtype = torch.float64) -> Encoder:
    torch.manual_seed(0)
    encoder = create_encoder(**with_defaults(arguments))
    encoder.fit_normalization([random_graph(stack, 3, torch.float32, seed=9) for stack in STACKS])
    return encoder.to(dtype).eval()


def module_of(stack: Stack, state: dict[str, Tensor]) -> nn.ModuleList:
    """Plain layers with one network's weights."""
    layers: list[nn.Module] = []
    for layer in stack.layers:
        own = layer.name + "."
        if layer.kernel:
            size = (layer.kernel[0], layer.kernel[1])
            made: nn.Module = nn.Conv2d(
                layer.inputs, layer.outputs, size, layer.stride, layer.padding, bias=layer.bias, dtype=torch.float64
            )
        else:
            made = nn.Linear(layer.inputs * layer.positions, layer.outputs, dtype=torch.float64)
        made.load_state_dict({name.removeprefix(own): x for name, x in state.items() if name.startswith(own)})
        layers.append(made)
    return nn.ModuleList(layers)


def responses(stack: Stack, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """``[K, n]`` of the inputs and every layer: the mean of a map behind its activation."""
    h, maps = x, []
    found = [x.mean((2, 3))]
    for layer, module in zip(stack.layers, module_of(stack, state), strict=True):
        h = module(h.flatten(1) if not layer.kernel else h)
        if layer.residual >= 0:
            added = maps[layer.residual]
            width = min(added.shape[1], h.shape[1])
            h = torch.cat([h[:, :width] + added[:, :width], h[:, width:]], 1)
        h = layer.activation(h)
        maps.append(h)
        found.append(h.mean((2, 3)) if layer.kernel else h)
        if layer.pool == "global":
            h = nn.AdaptiveAvgPool2d(1)(h)
        elif layer.pool:
            h = nn.MaxPool2d(2)(h)
    return found


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_features_are_single_networks_responses(stack: Stack, generator: str) -> None:
    torch.manual_seed(0)
    features = ProbeFeatures(6, 2, 4, generator, shape=SHAPE).double()
    graph = random_graph(stack, 3)
    found = [x for x in features(graph) if x is not None]
    assert [tuple(x.shape) for x in found] == [(3, nodes.size, 4) for nodes in graph.spec.node_sets]
    roles = ["input", *["hidden"] * (len(stack.layers) - 1), "output"]
    right = []
    for b in range(3):
        each = responses(stack, graph[b].to_state_dict(), features.points)
        right.append(torch.cat([features.projections[role](x.T) for role, x in zip(roles, each, strict=True)]))
    mine, its = torch.cat(found, 1), torch.stack(right)
    torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)
    weights = torch.randn(its.shape, dtype=its.dtype)
    parameters = list(features.parameters())
    gradients = [torch.autograd.grad((x * weights).sum(), parameters) for x in (mine, its)]
    for (name, _), f, r in zip(features.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(f, r, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
def test_probing_is_a_perceptron_on_single_networks_outputs(generator: str) -> None:
    encoder: Any = build({**ENCODERS["probing"], "probe_generator": generator})
    graphs = [random_graph(stack, 2) for stack in STACKS]
    rows = []
    for graph in graphs:
        for b in range(2):
            assert graph.stack is not None
            answers = responses(graph.stack, graph[b].to_state_dict(), encoder.probes.points)[-1]
            rows.append(encoder.net(((answers - encoder.mean) / encoder.std).flatten()))
    found = encoder(GraphBatch.of(graphs)).vector
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-10, atol=1e-10)


@each_encoder
def test_invariance_and_equivariance(arguments: dict[str, Any]) -> None:
    encoder = build(arguments)
    graphs = [random_graph(stack, 2, seed=k) for k, stack in enumerate(STACKS)]
    if encoder(graphs[0]).nodes is None:
        assert_invariant(encoder, graphs)
    else:
        for graph in graphs:
            assert_equivariant(encoder, graph)


@each_encoder
def test_mixed_architectures_equal_one_by_one(arguments: dict[str, Any]) -> None:
    encoder = build(arguments)
    networks = [random_graph(STACKS[k % 3], 1, seed=k) for k in range(5)]
    together = encoder(GraphBatch.of(networks))
    single = [encoder(network) for network in networks]
    if together.vector is not None:
        torch.testing.assert_close(together.vector, torch.cat([x.vector for x in single]), rtol=1e-9, atol=1e-9)
        return
    for graph, place, nodes in zip(together.batch.buckets, together.batch.index, together.nodes, strict=True):
        for row, number in enumerate(place.tolist()):
            for s in range(len(graph.spec.node_sets)):
                torch.testing.assert_close(nodes[s][row], single[number].nodes[0][s][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
@each_encoder
def test_gradients_reach_the_probes(arguments: dict[str, Any], generator: str) -> None:
    if "parts" not in arguments:
        arguments = {**arguments, "probe_generator": generator}
    encoder = build(arguments, torch.float32)
    encoding = encoder(GraphBatch.of([random_graph(stack, 2, torch.float32) for stack in STACKS]))
    values = [encoding.vector] if encoding.nodes is None else [x for nodes in encoding.nodes for x in nodes]
    torch.stack([x.square().sum() for x in values]).sum().backward()
    probes = [p for name, p in encoder.named_parameters() if "latents" in name or "points" in name or "maps" in name]
    assert probes
    for parameter in probes:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_saved_arguments_make_the_same_encoder() -> None:
    encoder = build(ENCODERS["combined"])
    other = create_encoder(**json.loads(json.dumps(encoder.config))).double().eval()
    other.load_state_dict(encoder.state_dict())
    other.load_extra_state(json.loads(json.dumps(encoder.extra_state())))
    graph = random_graph(PARK, 2)
    assert torch.equal(other(graph).vector, encoder(graph).vector)


class Normalised(nn.Module):
    """No plain stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).mean((2, 3)))


@pytest.mark.parametrize("reads", ["outputs", "neurons"])
def test_traced_modules_are_read_beside_stacks(reads: str) -> None:
    encoder: Any = build({**ENCODERS["probing"], "probe_reads": reads})
    torch.manual_seed(1)
    modules = [Normalised().double().eval() for _ in range(2)]
    graph = trace(modules[0], torch.zeros(2, *SHAPE, dtype=torch.float64))
    states = [module.state_dict() for module in modules]
    traced = graph.like({name: torch.stack([state[name] for state in states]) for name in states[0]}, batched=True)
    plain = random_graph(PARK, 2)
    found = encoder(GraphBatch.of([plain, traced])).vector
    assert torch.allclose(found, torch.cat([encoder(plain).vector, encoder(traced).vector]), atol=1e-12)
    if reads == "outputs":
        answers = torch.stack([module(encoder.probes.points) for module in modules])
        right = encoder.net(((answers - encoder.mean) / encoder.std).flatten(1))
        assert torch.allclose(found[2:], right, atol=1e-12)
    with pytest.raises(UserError, match="inputs of 2x7x8, this one reads 2x9x9"):
        encoder(trace(modules[0], torch.zeros(2, 2, 9, 9, dtype=torch.float64)))


# -- where probes start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 12), (3, 5, 17)], ids=str)
def test_images_start_smooth_and_in_the_range_of_normalised_ones(generator: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    images = probe_source(generator, 64, shape[0], shape=shape).points.detach()
    assert images.shape == (64, *shape)
    assert abs(images.mean()) < 0.25 and 0.8 < images.std() < 1.4
    steps = torch.cat([images.diff(dim=2).flatten(), images.diff(dim=3).flatten()])
    assert steps.std() < 0.75 * images.std()  # white noise: 1.41
    assert torch.linalg.matrix_rank(images.flatten(1)) > 16  # they differ


def test_generated_images_are_linear_in_their_latents_but_for_the_tanh() -> None:
    torch.manual_seed(0)
    source = DeepLinearImages(4, (3, 10, 7), depth=3).double()
    assert [tuple(layer.weight.shape) for layer in source.maps] == [(32, 32, 3, 2), (32, 16, 4, 4), (16, 3, 4, 4)]
    with torch.no_grad():
        source.latents.mul_(0.1)  # away from the ends of tanh
        first, second = torch.atanh(source.points / 2), source.latents.flip(0)
        source.latents.copy_(2 * source.latents + 3 * second)
        assert torch.allclose(
            torch.atanh(source.points / 2), 2 * first + 3 * first.flip(0), atol=1e-9
        )  # biases start at 0
        source.latents.mul_(1000)
    assert source.points.shape == (4, 3, 10, 7) and 1.9 < source.points.abs().max() <= 2


def test_octaves_have_equal_power() -> None:
    torch.manual_seed(0)
    spectrum = torch.fft.rfft2(smooth_images(2000, (1, 32, 32))).abs().square().mean((0, 1))
    # an octave of twice the frequency has four times as many waves
    powers = [k * k * spectrum[0, k] for k in (1, 2, 4)]
    assert max(powers) < 2 * min(powers), powers


# -- mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "arguments", "message"),
    [
        (SMALL, {"probe_shape": [3, 8, 8]}, "images of 3x8x8 cannot be read by networks of 2 input channels"),
        (FLAT, {"probe_shape": [2, 8, 8]}, "images of 2x8x8 have another size than those that layer 1 was made for"),
        (SMALL, {"probe_shape": [2, 2, 8]}, "images of 2x2x8 are too small for layer 0"),
        (SMALL, {"probe_shape": []}, r"reads images: create the encoder with probe_shape=\[2, height, width\]"),
        (Stack.mlp((2, 4, 3)), {}, "cannot be read by networks that read vectors"),
        (SMALL, {"probe_shape": [2, 8]}, "channels, height and width of an image, not"),
        (SMALL, {"probe_shape": [2, 0, 8]}, "channels, height and width of an image, not"),
        (SMALL, {"probe_generator": "uniform"}, "unknown generator of probes 'uniform'"),
    ],
)
@pytest.mark.parametrize("name", ["ng-gnn", "scale-gmn", "probing"])
def test_mistakes_are_said(name: str, stack: Stack, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create_encoder(**with_defaults({**ENCODERS[name], **arguments}))(random_graph(stack, 2, torch.float32))
    assert "\n" not in str(caught.value)


def test_empty_batches() -> None:
    graph: NeuralGraph = random_graph(PARK, 2)
    for arguments in ENCODERS.values():
        encoder = build(arguments)
        encoding = encoder(graph[:0])
        assert (encoding.vector if encoding.nodes is None else encoding.nodes[0][-1]).shape[0] == 0
