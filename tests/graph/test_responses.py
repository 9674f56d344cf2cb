"""Probe features of traced modules, against hooks on the real modules, one network at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph
from neural_graphs.graph._trace import trace_module


def networks(module: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """State dicts of the same architecture with other weights."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        state = {}
        for name, value in module.state_dict().items():
            noise = torch.rand(value.shape, generator=generator) * 0.4 + 0.8
            state[name] = value * noise.to(value.dtype) if value.is_floating_point() else value
        found.append(state)
    return found


def batch_of(graph: NeuralGraph, states: list[dict[str, Tensor]]) -> NeuralGraph:
    return graph.like({name: torch.stack([state[name] for state in states]) for name in states[0]}, batched=True)


def run(module: nn.Module, state: dict[str, Tensor], example: Any) -> Tensor:
    module.load_state_dict(state)
    args = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        found = module(**example) if isinstance(example, dict) else module(*args)
    return torch.utils._pytree.tree_leaves(found)[0]


@pytest.mark.parametrize("name", list(SMALL))
def test_outputs_of_a_batch_are_those_of_its_networks(name: str) -> None:
    module, example = SMALL[name]()
    graph = trace_module(module, example)
    if graph.trace is not None and graph.trace.route == "make_fx":
        pytest.skip("the path taken depends on the weights")
    states = networks(module, 3)
    if graph.spec.tied:
        for state in states:
            state.update({alias: state[own] for alias, own in graph.spec.tied})
    found = batch_of(graph, states).run(example)
    for b, state in enumerate(states):
        torch.testing.assert_close(found[b], run(module, state, example), rtol=2e-4, atol=2e-5)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        return self.last((x + self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("samples", [1, 3, 4, 7])
def test_responses_are_what_hooks_see(samples: int) -> None:
    """Channel means for feature maps; any number of samples, whatever the example had."""
    torch.manual_seed(0)
    module = Convolutional().eval()
    graph = trace_module(module, torch.rand(3, 2, 6, 6))
    states = networks(module, 2)
    x = torch.rand(samples, 2, 6, 6)
    found = batch_of(graph, states).responses(x)
    names = [nodes.name for nodes in graph.spec.node_sets]
    seen: dict[str, Tensor] = {}
    for layer in ("second", "last"):
        module.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.__setitem__(layer, output)
        )
    for b, state in enumerate(states):
        output = run(module, state, x)
        value = found[names.index("last")]
        assert value is not None and value.shape == (2, samples, 3)
        torch.testing.assert_close(value[b], output)
        value = found[names.index("second")]
        assert value is not None
        torch.testing.assert_close(value[b], seen["second"].mean((2, 3)))
        value = found[0]
        assert value is not None and graph.spec.node_sets[0].role == "input"
        torch.testing.assert_close(value[b], x.mean((2, 3)))


def test_responses_do_not_depend_on_the_company() -> None:
    module, example = SMALL["vit-module"]()
    graph = trace_module(module, example)
    states = networks(module, 3)
    together = batch_of(graph, states).responses(example)
    for b, state in enumerate(states):
        for one, all_ in zip(graph.like(state).responses(example), together, strict=True):
            assert (one is None) == (all_ is None)
            if one is not None and all_ is not None:
                torch.testing.assert_close(one[0], all_[b], rtol=2e-4, atol=2e-5)


def test_responses_follow_a_permutation() -> None:
    """Permuting the neurons of a network permutes its responses in the same way."""
    torch.manual_seed(0)
    module = Convolutional().double().eval()
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    graph = trace_module(module, x)
    element = graph.symmetries.sample(0)
    before, after = graph.responses(x), graph.permute(element).responses(x)
    moved = 0
    for nodes, a, b in zip(graph.spec.node_sets, before, after, strict=True):
        if a is not None and b is not None:
            index = element[nodes.symmetry] if nodes.symmetry else torch.arange(nodes.size)
            torch.testing.assert_close(b, a[..., index])
            moved += not torch.equal(a, b)
    assert moved >= 2


def test_gradients_reach_the_weights() -> None:
    module = Convolutional().eval()
    x = torch.rand(3, 2, 6, 6)
    graph = trace_module(module, x)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["first.weight"].requires_grad_(True)
    graph.like(state).run(x).square().sum().backward()
    grad = state["first.weight"].grad
    assert grad is not None and bool(grad.abs().sum() > 0)


def test_wrong_inputs_are_named() -> None:
    graph = trace_module(Convolutional().eval(), torch.rand(3, 2, 6, 6))
    with pytest.raises(UserError, match=r"give inputs of shape \[K, 2, 6, 6\]"):
        graph.responses(torch.rand(3, 1, 6, 6))
    with pytest.raises(UserError, match="takes 1 input tensors, not 2"):
        graph.run((torch.rand(3, 2, 6, 6), torch.rand(1)))
