"""Tracing any module: what comes out, and that it is the same on every road."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_graphs as ng
from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph
from neural_graphs.graph._activation import Activation, ActivationModule
from neural_graphs.graph._trace import trace_module
from neural_graphs.testing import random_inputs, random_stack


def stack_of_kind(kind: str, seed: int) -> tuple[nn.Module, Tensor]:
    stack = random_stack(seed, kind)  # type: ignore[arg-type]
    module = stack.module()
    if (
        kind == "siren"
    ):  # a stack's own module has the frequencies on the parameters, which is what the tracer would see
        pairs = [(nn.Linear(a.inputs, a.outputs, bias=a.bias), a.activation.module()) for a in stack.layers]
        module = nn.Sequential(*(step for pair in pairs for step in pair))
    return module.eval(), random_inputs(stack, 5, torch.float32)


@pytest.mark.parametrize("kind", ["mlp", "siren", "cnn"])
@pytest.mark.parametrize("seed", range(4))
def test_recording_and_reading_layers_agree(kind: str, seed: int) -> None:
    """The fast builder for plain stacks is the twin: node sets, blocks, group and every tensor."""
    module, inputs = stack_of_kind(kind, seed)
    fast = ng.trace(module)
    recorded = trace_module(module, inputs)
    assert fast.stack is not None and recorded.stack is None
    assert recorded.symmetries.axes == fast.symmetries.axes
    assert recorded.symmetries.activations == fast.symmetries.activations
    assert recorded.symmetries.rescalings == fast.symmetries.rescalings
    for ours, theirs in zip(recorded.spec.node_sets, fast.spec.node_sets, strict=True):
        assert (ours.size, ours.role, ours.depth, ours.activation) == (
            theirs.size,
            theirs.role,
            theirs.depth,
            theirs.activation,
        )
        assert ours.parameters == theirs.parameters
    for ours, theirs in zip(recorded.spec.blocks, fast.spec.blocks, strict=True):
        assert (ours.source, ours.target, ours.parameter, ours.features) == (
            theirs.source,
            theirs.target,
            theirs.parameter,
            theirs.features,
        )
    for a, b in zip((*recorded.nodes, *recorded.edges), (*fast.nodes, *fast.edges), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bias", [True, False])
def test_recording_and_reading_layers_agree_on_phases(bias: bool) -> None:
    sines = [ActivationModule(Activation("sine", omega)) for omega in (30.0, 1.0, 2.5)]
    module = nn.Sequential(
        nn.Linear(2, 4), sines[0], nn.Linear(4, 3, bias=bias), sines[1], nn.Linear(3, 2), sines[2], nn.Linear(2, 1)
    ).eval()
    fast, recorded = ng.trace(module), trace_module(module, torch.rand(5, 2))
    assert fast.stack is not None
    assert recorded.symmetries == fast.symmetries
    kinds = [r.kind for r in fast.symmetries.rescalings]
    assert kinds == (["phase", "sign"] * 3 if bias else ["phase", "sign", "sign", "phase", "sign"])


@pytest.mark.parametrize("kind", ["mlp", "siren", "cnn"])
@pytest.mark.parametrize("seed", range(4))
def test_rescalings_of_stacks_hold(kind: str, seed: int) -> None:
    """Each kind on the running network: maxima pass on scales, not signs; averages pass on both."""
    stack = random_stack(seed, kind)  # type: ignore[arg-type]
    module, inputs = stack.module().double().eval(), random_inputs(stack, 5)
    graph = ng.trace(module)
    for found in {r.kind for r in graph.symmetries.rescalings}:
        report = graph.check(module, inputs, kinds=(found,), samples=2)
        assert report.passed and report.error <= 1e-10, (found, report)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_small_network(name: str) -> None:
    """The group holds on the module, the graph holds every tensor exactly, no operator is unknown."""
    module, example = SMALL[name]()
    graph = ng.trace(module, example)
    report = graph.check(module, example, samples=2)
    assert report.error <= 1e-10, report
    assert report.control > 1e-4, report
    state, found = module.state_dict(), graph.to_state_dict()
    assert list(found) == list(state)
    for key, value in state.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype, key
    if graph.trace is not None:
        assert graph.trace.frozen == {}


@pytest.mark.parametrize("name", ["resnet-batchnorm", "vit-qkv", "gpt-tied-sdpa", "lstm-2-layers", "llama-like"])
def test_meta_gives_the_same_graph(name: str) -> None:
    module, example = SMALL[name]()
    real = trace_module(module, example)
    hollow = copy.deepcopy(module).to("meta")
    for alias, own in real.spec.tied:  # moving to meta unties
        owner, _, leaf = alias.rpartition(".")
        setattr(hollow.get_submodule(owner), leaf, hollow.get_parameter(own))
    meta = trace_module(hollow, torch.utils._pytree.tree_map(to_meta, example))
    assert meta.spec == real.spec
    assert all(value.is_meta for value in meta.edges)


def to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def test_weights_are_not_copied() -> None:
    module, example = SMALL["vit-qkv"]()
    graph = trace_module(module, example)
    ours = {value.untyped_storage().data_ptr() for value in graph.edges if value.numel()}
    theirs = {value.untyped_storage().data_ptr() for value in module.state_dict().values()}
    assert ours <= theirs


def test_edited_weights_run() -> None:
    """Halving a block halves what the module's layer computes from it."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)).eval()
    x = torch.rand(6, 4)
    graph = trace_module(module, x)
    last = next(k for k, block in enumerate(graph.spec.blocks) if block.parameter == "3.weight")
    edges = tuple(value / 2 if k == last else value for k, value in enumerate(graph.edges))
    edited = NeuralGraph(graph.spec, graph.nodes, edges, None, graph.rest, graph.narrow, graph.trace)
    with torch.no_grad():
        before = module(x)
        module.load_state_dict(edited.to_state_dict())
        after = module(x)
    torch.testing.assert_close(after, before / 2)
    torch.testing.assert_close(edited.run(x)[0], after)


def test_memory_of_a_large_graph() -> None:
    """Node features are copied, weights are not: a network of 20 million parameters costs far less than half again."""
    module = nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.GELU()) for _ in range(20)))
    graph = trace_module(module.eval(), torch.rand(2, 1024))
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.state_dict().values()}
    tensors = (*graph.edges, *graph.nodes, *graph.rest)
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    total = sum(size for place, size in extra.items() if place not in own)
    assert total < 0.05 * sum(own.values())


def test_an_example_is_needed() -> None:
    with pytest.raises(UserError, match="GRU is no plain stack.* with an example input"):
        ng.trace(nn.GRU(3, 4))


def test_operators_without_a_rule_are_listed() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.fft.rfft(self.first(x)).abs()
            return self.last(torch.relu(self.second(torch.cat([y, y[..., :2]], -1))))

    module = Spectrum().eval()
    graph = ng.trace(module, torch.rand(3, 4))
    assert graph.trace is not None and sum(graph.trace.frozen.values()) >= 1
    assert str(graph.symmetries) == "S6"  # the second layer's units; the first's are taken for fixed
    assert graph.check(module, torch.rand(3, 4)).passed
