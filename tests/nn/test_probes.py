"""Probes: where they come from, and what is read of their responses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neural_graphs.bench._edge_list_twin import EdgeListTwin
from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.nn import ProbeFeatures, create_encoder
from neural_graphs.nn._probes import DeepLinearProbes, probe_source
from neural_graphs.testing import random_graph

STACK = Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("inputs", [1, 2, 7])
def test_generated_probes_start_uniform(inputs: int, depth: int) -> None:
    torch.manual_seed(0)
    probes = DeepLinearProbes(4096, inputs, depth)
    points = probes.points.detach()
    assert points.shape == (4096, inputs)
    assert points.abs().max() <= 1 + 1e-5
    for value in points.T:  # the quantiles of U(-1, 1)
        levels = torch.linspace(0.05, 0.95, 10)
        assert torch.allclose(value.quantile(levels), 2 * levels - 1, atol=0.06)
    assert (torch.corrcoef(points.T) - torch.eye(inputs)).abs().max() < 0.08


def test_generated_probes_of_many_inputs_have_their_scale() -> None:
    torch.manual_seed(0)
    points = DeepLinearProbes(512, 100).points.detach()
    assert abs(points.std() * 3**0.5 - 1) < 0.05
    assert torch.linalg.matrix_rank(points) == 32


def test_generated_probes_are_the_chain_of_maps() -> None:
    torch.manual_seed(0)
    probes = DeepLinearProbes(5, 2, depth=3).double()
    slow = []
    for latent in probes.latents:
        for linear in probes.maps:
            latent = linear.weight @ latent + linear.bias
        slow.append(latent)
    assert torch.allclose(probes.points, torch.stack(slow), atol=1e-12)


@pytest.mark.parametrize("reads", ["neurons", "outputs"])
@pytest.mark.parametrize("generator", ["points", "deep-linear"])
def test_encoders_equal_their_twin(generator: str, reads: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder("ng-gnn", width=8, layers=2, probes=5, probe_generator=generator, probe_reads=reads)
    encoder = encoder.double().eval()
    graph = random_graph(STACK, 3)
    found, right = encoder(graph), EdgeListTwin(encoder)(graph)
    for mine, its in zip(found.nodes[0], right.nodes[0], strict=True):
        assert torch.allclose(mine, its, atol=1e-10)


@pytest.mark.parametrize("generator", ["points", "deep-linear"])
def test_features_are_single_networks_responses(generator: str) -> None:
    torch.manual_seed(0)
    features = ProbeFeatures(7, 2, 4, generator, "outputs").double()
    graph = random_graph(STACK, 3)
    *others, output = features(graph)
    assert others == [None, None, None]
    for b in range(3):
        module = STACK.module().double()
        module.load_state_dict(graph[b].to_state_dict())
        assert torch.allclose(output[b], features.projections["output"](module(features.points).T), atol=1e-10)
    output.square().sum().backward()
    for name, parameter in features.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_mistakes_are_said(build: Any) -> None:
    with pytest.raises(UserError, match="unknown generator of probes 'uniform': choose one of points, deep-linear"):
        probe_source("uniform", 4, 2)
    with pytest.raises(UserError, match="cannot read 'all': choose one of neurons, outputs"):
        build("ng-gnn", probes=4, probe_reads="all")
    with pytest.raises(UserError, match="at least one linear map"):
        DeepLinearProbes(4, 2, depth=0)
    with pytest.raises(UserError, match="probes networks of 2 inputs, this one has 3"):
        ProbeFeatures(4, 2, 8)(random_graph(Stack.mlp((3, 4, 1)), 2))
