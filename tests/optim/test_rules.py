"""Update rules: compiled walks against torch in float64, symmetries, networks that do not know of each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neural_graphs.bench._trace_nets import ConvTranspose, Separable, Unet
from neural_graphs.graph import trace
from neural_graphs.optim import Wiring, _native_edges, create_rule
from neural_graphs.optim._native_edges import NativeEdges, edges_of
from neural_graphs.optim._places import places

needs_compiler = pytest.mark.skipif(_native_edges._function("measure") is None, reason="no C++ compiler")

NETS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), None),
    "flattened map": lambda: (
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 3)),
        None,
    ),
    "depthwise": lambda: (Separable(), torch.rand(2, 3, 6, 6)),
    "transposed and grouped": lambda: (ConvTranspose(), torch.rand(1, 3, 3, 3)),
    "transposed": lambda: (Unet(), torch.rand(1, 1, 4, 4)),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        torch.rand(2, 4, 8),
    ),
    "split into tiles": lambda: (nn.Sequential(nn.Linear(300, 260), nn.ReLU(), nn.Linear(260, 2)), None),
}
RULES = ("graph", "lstm", "ff")
_traced = {}


def traced(net):
    """Graph structure, wiring and shapes of the parameters."""
    if net not in _traced:
        module, example = NETS[net]()
        spec = trace(module, example).spec
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        _traced[net] = spec, Wiring.of(spec, shapes), shapes
    return _traced[net]


def normal(shapes, networks, seed, scale=1.0):
    """Standard normal numbers in float64, the same for every number of networks before the last."""
    generator = torch.Generator().manual_seed(seed)
    draws = [
        {name: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(networks)
    ]
    return {name: torch.stack([draw[name] for draw in draws]) for name in shapes}


def rule_weights(rule, networks, seed=5, scale=0.2):
    """Weights of trained size, heads included, for every network its own."""
    return normal({name: value.shape for name, value in rule.named_parameters()}, networks, seed, scale)


def to(values, dtype):
    return {name: value.to(dtype) for name, value in values.items()}


def run(net, rule, weights, networks=2, steps=3, dtype=torch.float64, rows=slice(None), act=None, act_grads=None):
    """Proposals of a few steps, with gradients that have a direction and noise; those of the last step are returned."""
    _, wiring, shapes = traced(net)
    weights = {name: value[rows].to(dtype) for name, value in weights.items()}
    act = act or (lambda values: values)
    params = act(normal(shapes, networks, 1, 0.3))
    params = {name: value[rows].to(dtype) for name, value in params.items()}
    state = rule.new_state(params)
    for step in range(1, steps + 1):
        drift, noise = normal(shapes, networks, 2), normal(shapes, networks, 10 + step)
        grads = (act_grads or act)({name: 1e-2 * (drift[name] + noise[name]) for name in shapes})
        grads = {name: value[rows].to(dtype) for name, value in grads.items()}
        proposal = rule.propose(wiring, params, grads, state, dict.fromkeys(shapes, step), weights)
        params = {name: value - 0.01 * proposal.updates[name] for name, value in params.items()}
    return proposal, state


def largest_error(found, wanted):
    """Relative to the largest update of each tensor."""
    errors = [(found[name].double() - wanted[name].double()).abs().max() / wanted[name].abs().max() for name in wanted]
    return float(torch.stack(errors).max())


@needs_compiler
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["graph", "ff"])
def test_compiled_walks_equal_torch(net, name):
    rule = create_rule(name)
    weights = rule_weights(rule, 2)
    reference, state64 = run(net, rule, weights)
    found, state32 = run(net, rule, weights, dtype=torch.float32)
    # Sums of 1e5 float32 numbers in vectors, a polynomial exp, and gains up to e^5 on features within 5.
    assert largest_error(found.updates, reference.updates) < 2e-4
    for name in state64:
        for key in state64[name]:
            torch.testing.assert_close(state32[name][key].double(), state64[name][key], rtol=1e-5, atol=1e-9)
    for key in ("step", "nominal", "cosine"):
        torch.testing.assert_close(found.summary[key].double(), reference.summary[key], rtol=2e-4, atol=2e-5)
    assert not found.summary["replaced"].any()


@needs_compiler
@pytest.mark.parametrize("net", NETS)
def test_the_compiled_walks_are_the_ones_taken(net):
    _, wiring, shapes = traced(net)
    rule = create_rule("graph")
    params = to(normal(shapes, 1, 0), torch.float32)
    state = rule.new_state(params)
    at = places(wiring, torch.device("cpu"), torch.float32)
    # Joined with its group, the outer axis of a grouped transposed weight is no view.
    views = net != "transposed and grouped"
    assert isinstance(edges_of(wiring, at, params, params, state), NativeEdges) == views
    assert not isinstance(edges_of(wiring, at, params, params, state, differentiable=True), NativeEdges)


@pytest.mark.parametrize("net", ["flattened map", "depthwise", "transposed and grouped", "transformer"])
@pytest.mark.parametrize("name", RULES)
def test_permuting_neurons_permutes_the_proposal(net, name):
    spec, _, _ = traced(net)
    rule = create_rule(name)
    weights = rule_weights(rule, 3)
    element = spec.symmetries.sample(7, batch=3)
    moved = lambda values: spec.symmetries.apply(values, element, batched=True)  # noqa: E731
    wanted = moved(run(net, rule, weights, 3)[0].updates)
    found = run(net, rule, weights, 3, act=moved)[0].updates
    assert largest_error(found, wanted) < 1e-10
    unmoved = run(net, rule, weights, 3, act=moved, act_grads=lambda values: values)[0].updates
    assert largest_error(unmoved, wanted) > 1e-3  # gradients left where they were: the test can fail


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_do_not_know_of_each_other(name, dtype):
    rule = create_rule(name)
    weights = rule_weights(rule, 3)
    together, _ = run("transformer", rule, weights, 3, dtype=dtype)
    alone, _ = run("transformer", rule, weights, 3, dtype=dtype, rows=slice(1, 2))
    for parameter, update in alone.updates.items():
        if name == "lstm":  # torch's sigmoid rounds differently at the end of a vector
            bound = 1e-5 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(update[0], together.updates[parameter][1], rtol=bound, atol=bound)
        else:
            assert torch.equal(update[0], together.updates[parameter][1])
    assert not torch.equal(together.updates["linear1.weight"][0], together.updates["linear1.weight"][1])


@needs_compiler
def test_the_number_of_threads_does_not_matter(monkeypatch):
    monkeypatch.setattr(_native_edges, "_PER_THREAD", 1 << 10)
    rule = create_rule("graph")
    weights = rule_weights(rule, 2)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(run("split into tiles", rule, weights, dtype=torch.float32, steps=2)[0].updates)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_shuffled_neurons_say_something_else_and_nothing_that_moves_with_them():
    graph, shuffled = create_rule("graph"), create_rule("graph", shuffled=True)
    spec, _, _ = traced("transformer")
    weights = rule_weights(graph, 2)
    connected = run("transformer", graph, weights)[0].updates
    found = run("transformer", shuffled, weights)[0].updates
    assert largest_error(found, connected) > 1e-3
    element = spec.symmetries.sample(1, batch=2)
    moved = lambda values: spec.symmetries.apply(values, element, batched=True)  # noqa: E731
    assert largest_error(run("transformer", shuffled, weights, act=moved)[0].updates, moved(found)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_direction_only_has_the_size_of_adams_step(dtype):
    rule = create_rule("graph", magnitude=False)
    weights = rule_weights(rule, 2)
    adam = create_rule("adam")
    _, wiring, _ = traced("flattened map")
    nominal, _ = run("flattened map", adam, rule_weights(adam, 2, scale=0.0), steps=1, dtype=dtype)
    found, _ = run("flattened map", rule, weights, steps=1, dtype=dtype)
    for piece in wiring.pieces:
        sizes = [
            piece.read(each.updates[piece.parameter]).double().square().mean((1, 2, 3)).sqrt()
            for each in (nominal, found)
        ]
        torch.testing.assert_close(sizes[1], sizes[0], rtol=1e-5, atol=0)
    assert largest_error(found.updates, nominal.updates) > 1e-2
    assert float(found.summary["cosine"].max()) < 0.9999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head", [0, 1])
def test_proposals_that_are_not_finite_become_adams(dtype, head):
    rule, adam = create_rule("graph"), create_rule("adam")
    weights = rule_weights(rule, 2)
    weights["heads"][1, head] = float("nan")
    found, _ = run("transformer", rule, weights, steps=1, dtype=dtype)
    wanted, _ = run("transformer", adam, rule_weights(adam, 2, scale=0.0), steps=1, dtype=dtype)
    _, wiring, _ = traced("transformer")
    assert found.summary["replaced"].tolist() == [[0] * len(wiring.pieces), [p.numel for p in wiring.pieces]]
    for name, update in found.updates.items():
        torch.testing.assert_close(update[1], wanted.updates[name][1], rtol=1e-6, atol=1e-6)
        assert update.isfinite().all() and not torch.allclose(update[0], wanted.updates[name][0], atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_gradients_of_the_weights_are_those_of_finite_differences(name):
    _, wiring, shapes = traced("flattened map")
    rule = create_rule(name)
    weights = rule_weights(rule, 1)
    params, grads, towards = (normal(shapes, 1, seed) for seed in (1, 2, 3))
    state = rule.new_state(params)

    def loss(values):
        found = rule.propose(wiring, params, grads, copy.deepcopy(state), dict.fromkeys(shapes, 3), values)
        return sum((found.updates[key] * towards[key]).sum() for key in shapes)

    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    derivatives = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    for number, key in enumerate(weights):
        direction = normal({key: weights[key].shape[1:]}, 1, 20 + number)[key]
        ends = [float(loss({**weights, key: weights[key] + shift * direction})) for shift in (1e-6, -1e-6)]
        slope = float((derivatives[key] * direction).sum())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-6)
        assert derivatives[key].abs().max() > 1e-8, f"{key} has no influence"
