"""ScaleGMN: exact under permutations, scales, signs and phases, and the same as neurons and edges in loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.graph._activation import Activation
from neural_graphs.nn import DeltaHead, Encoder, GraphHead, _edges, create_encoder
from neural_graphs.nn._canonical import canonical
from neural_graphs.nn._gated import gated, summed
from neural_graphs.nn._gauge import Unit, fix_gauge, units
from neural_graphs.nn._phase import fold
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph, random_stack

ALL = ("permutation", "scale", "sign", "phase")
STACKS = {
    "siren": Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5),
    "relu": Stack.mlp((2, 6, 5, 3), "relu"),
    "mixed": Stack.mlp((2, 5, 4, 4, 3, 2), ["tanh", "relu", "gelu", "sine:10"]),
    "mixed-2": Stack.mlp((2, 5, 4, 4, 3, 2), ["none", "sine:3", "leaky_relu", "tanh"]),
    "no-bias": Stack.mlp((2, 5, 4, 1), ["relu", "sine:3"], bias=False),
    "cnn": random_stack(0, "cnn"),
    "cnn-flattened": random_stack(3, "cnn"),
}


def encoder_for(*graphs: NeuralGraph, dtype: torch.dtype = torch.float64, **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = create_encoder("scale-gmn", **{"width": 10, "layers": 3, "edge_width": 6, "kernel": (4, 4), **arguments})
    encoder.fit_normalization(graphs)
    return encoder.to(dtype).eval()


class Model(torch.nn.Module):
    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        torch.manual_seed(1)
        self.head = GraphHead(encoder.width, outputs, 3).to(next(encoder.parameters()).dtype)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.encoder(batch, reads="outputs"))


# -- symmetries -----------------------------------------------------------------------------------------------------------
# Scales are drawn from 1e-3 to 1e3. The gauge divides them out before anything is computed, so what is left of them is the
# rounding of a few products: the project's bound of 1e-10 holds without allowance for the spread.


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_kind(name: str, bidirectional: bool) -> None:
    graph = random_graph(STACKS[name], 3, seed=1)
    encoder = encoder_for(graph, bidirectional=bidirectional)
    model = Model(encoder, graph.spec.num_outputs)
    for kind in ("permutation", *dict.fromkeys(r.kind for r in graph.symmetries.rescalings)):
        assert_equivariant(encoder, graph, kinds=(kind,), spread=1e3)
        assert_invariant(model, graph, kinds=(kind,), spread=1e3, samples=2)
    assert_equivariant(encoder, graph, kinds=ALL, spread=1e3)
    assert_invariant(model, graph, kinds=ALL, spread=1e3)


def test_mixed_architectures_together() -> None:
    graphs = [random_graph(STACKS[name], 2, seed=k) for k, name in enumerate(("siren", "relu", "mixed", "cnn"))]
    assert_equivariant(encoder_for(*graphs, bidirectional=True), GraphBatch.of(graphs), kinds=ALL, spread=1e3)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["siren", "relu", "mixed", "mixed-2"])
def test_responses_multiply_too(name: str, bidirectional: bool) -> None:
    graph = random_graph(STACKS[name], 3, seed=1)
    with_probes = encoder_for(graph, bidirectional=bidirectional, probes=7)
    assert_equivariant(with_probes, graph, kinds=ALL, spread=1e3)
    model = Model(with_probes, graph.spec.num_outputs)
    assert_invariant(model, graph, kinds=ALL, spread=1e3, control="networks")
    model(graph).square().sum().backward()
    for key, parameter in with_probes.named_parameters():
        if "probes" in key or "responses" in key:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_float32_at_large_scales() -> None:
    graph = random_graph(STACKS["relu"], 3, torch.float32)
    assert_equivariant(encoder_for(graph, dtype=torch.float32), graph, kinds=ALL, spread=1e3)


def test_a_wrong_claim_is_noticed() -> None:
    """Negative control: factors for units that have none, or a scale for signs, change the encoding."""
    tanh, relu = (random_graph(Stack.mlp((2, 5, 4, 1), kind), 3) for kind in ("tanh", "relu"))
    scales = relu.symmetries.rescalings
    spec = replace(tanh.spec, symmetries=replace(tanh.spec.symmetries, rescalings=scales))
    model = Model(encoder_for(tanh), 1)
    element = spec.symmetries.sample(0, 3, kinds=("scale",))
    moved = tanh.like(spec.symmetries.apply(tanh.to_state_dict(True), element, batched=True), batched=True)
    assert (model(moved) - model(tanh)).abs().max() > 1e-5
    with pytest.raises(AssertionError, match="not equivariant"):  # plain permutation-equivariant models are not enough
        torch.manual_seed(0)
        plain = create_encoder("ng-gnn", width=8, layers=2).double()
        plain.forward = wrong(plain)  # type: ignore[method-assign]
        assert_equivariant(plain, relu, kinds=("scale",))


def wrong(encoder: Encoder) -> Any:
    """The encoder, claiming to be what it is not."""
    before = encoder.forward
    return lambda batch, reads="edges": replace(before(batch, reads), rescaled=True)


def test_other_units_have_no_factor() -> None:
    graph = random_graph(Stack.mlp((2, 5, 4, 1), "gelu"), 3)
    with pytest.raises(UserError, match="no symmetry to test"):
        assert_equivariant(encoder_for(graph), graph, kinds=("scale", "sign", "phase"))


def test_changes_follow_the_linear_part() -> None:
    """A phase adds half a period to a bias, but nothing to its change."""
    graph = random_graph(STACKS["siren"], 2)

    def gradient(batch: GraphBatch) -> dict[str, Tensor]:
        state = {k: v.clone().requires_grad_() for k, v in batch.buckets[0].to_state_dict(True).items()}
        with torch.enable_grad():
            x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
            loss = STACKS["siren"].forward(state, x).square().sum()
        return dict(zip(state, torch.autograd.grad(loss, list(state.values())), strict=True))

    # Gradients transform by the inverse transpose, which for signs and phases is the linear part itself.
    assert_equivariant(gradient, graph, kinds=("permutation", "sign", "phase"))
    with pytest.raises(AssertionError, match="bias"):
        assert_equivariant(gradient, graph, kinds=("phase",), values="networks")
    assert_equivariant(lambda batch: batch.buckets[0], graph, kinds=ALL, values="networks", spread=1e3)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda batch: batch.buckets[0], graph, kinds=("phase",))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["siren", "relu", "mixed-2"])
def test_edits_are_equivariant(name: str, bidirectional: bool) -> None:
    """Networks that compute the same are edited to networks that compute the same."""
    graph = random_graph(STACKS[name], 3)
    encoder = encoder_for(graph, bidirectional=bidirectional, kernel=(1, 1))
    torch.manual_seed(2)
    head = DeltaHead(encoder.width, encoder.edge_width, reverse_edges=bidirectional, rescaled=True).double()
    assert_equivariant(lambda batch: head.deltas(encoder(batch))[0], graph, kinds=ALL, spread=1e3)
    assert_equivariant(lambda batch: head(encoder(batch))[0], graph, kinds=ALL, spread=1e3, values="networks")


# -- canonical forms ------------------------------------------------------------------------------------------------------


def test_canonical() -> None:
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for kind, factor in {"relu": 37.0, "tanh": -1.0, "sine": -1.0, "none": -0.01, "gelu": 1.0}.items():
        activation = Activation(kind)  # type: ignore[arg-type]
        assert torch.allclose(canonical(factor * x, activation), canonical(x, activation), rtol=1e-14)
    assert torch.equal(canonical(x, Activation("gelu")), x)
    zero = torch.zeros(2, 6, requires_grad=True)
    form = canonical(zero, Activation("relu"))
    form.sum().backward()
    assert form.abs().max() == 0 and zero.grad is not None and zero.grad.isfinite().all()


def test_fold() -> None:
    bias = torch.cat([torch.linspace(-20, 20, 999, dtype=torch.float64), torch.tensor([math.pi / 2, 0.0]).double()])
    bias.requires_grad_()
    folded, flip = fold(bias)
    assert folded.max() <= math.pi / 2 and folded.min() > -math.pi / 2
    z = torch.randn(7, 1, dtype=torch.float64)
    assert torch.allclose(flip * torch.sin(z + folded), torch.sin(z + bias), atol=1e-13)
    assert set(flip.tolist()) == {-1.0, 1.0}
    folded.sum().backward()
    assert torch.equal(bias.grad, torch.ones_like(bias))


@pytest.mark.parametrize("name", STACKS)
def test_the_gauge_computes_the_same(name: str) -> None:
    stack = STACKS[name]
    graph = random_graph(stack, 2, seed=3)
    element = graph.symmetries.sample(0, 2, kinds=("scale", "phase"), spread=1e3)
    first, second = fix_gauge(graph), fix_gauge(graph.permute(element))
    for a, b in zip((*first.graph.nodes, *first.graph.edges), (*second.graph.nodes, *second.graph.edges), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    layers = [replace(a, activation=replace(a.activation, omega=1.0)) for a in stack.layers]
    x = torch.rand(4, 2) * 2 - 1 if not stack.layers[0].kernel else torch.rand(4, stack.layers[0].inputs, 8, 8)
    if stack.layers[-1].positions > 1:
        x = x[..., :4, :4] if stack.layers[-1].positions == 4 else x
    x = x.double()
    right = graph.run(x)
    found = Stack(tuple(layers), stack.shift).forward(first.graph.to_state_dict(True), x)
    assert torch.allclose(found, right, rtol=1e-10, atol=1e-12)


def test_dead_neurons() -> None:
    """A ReLU without input is 0 whatever is multiplied by its value: so are its embedding and the edges from it."""
    graph = random_graph(Stack.mlp((2, 5, 4, 1), "relu"), 2)
    state = graph.to_state_dict(True)
    state["seq.0.weight"][:, 1] = 0
    state["seq.0.bias"][:, 1] = 0
    dead = graph.like(state, batched=True)
    encoder = encoder_for(graph, bidirectional=True)
    dead.edges[1].requires_grad_()
    encoding = encoder(dead)
    assert encoding.nodes[0][1][:, 1].abs().max() == 0 and encoding.edges[0][1][:, :, 1].abs().max() == 0
    encoding.nodes[0][3].sum().backward()
    assert dead.edges[1].grad.isfinite().all() and dead.edges[1].grad[:, :, 1].abs().max() == 0
    state["seq.1.weight"][:, :, 1] *= 7
    assert torch.allclose(encoder(graph.like(state, batched=True)).nodes[0][3], encoding.nodes[0][3], rtol=1e-12)


def test_units_are_read_off_the_claim() -> None:
    spec = random_graph(STACKS["mixed"], 1).spec
    assert units(spec) == (Unit(), Unit(sign=True), Unit(scale=True), Unit(), Unit(sign=True, phase=True), Unit())
    nothing = replace(spec, symmetries=replace(spec.symmetries, rescalings=()))
    assert set(units(nothing)) == {Unit()}
    halved = spec.symmetries.rescalings[1]
    other = replace(halved, terms=tuple(replace(t, exponent=t.exponent / 2) for t in halved.terms))
    assert units(replace(spec, symmetries=replace(spec.symmetries, rescalings=(other,))))[2] == Unit()


@pytest.mark.parametrize(("name", "kept"), [("unet", 5), ("squeeze-excite", 1), ("grouped-conv", 0), ("siren", 4)])
def test_traced_modules(name: str, kept: int) -> None:
    """Exact under what `units` takes from the claim; permutations of all neurons in any case."""
    module, example = SMALL[name]()
    graph = trace(module, example).map(lambda t: t.double())
    sets = graph.spec.node_sets
    taken = tuple(
        r
        for r in graph.symmetries.rescalings
        if any(
            getattr(unit, r.kind) and s.symmetry == r.symmetry for unit, s in zip(units(graph.spec), sets, strict=True)
        )
    )
    assert len(taken) == kept
    graph = replace(graph, spec=replace(graph.spec, symmetries=replace(graph.symmetries, rescalings=taken)))
    encoder = encoder_for(graph, bidirectional=True, width=6, layers=2, edge_width=4)
    assert_equivariant(encoder, graph, kinds=ALL, spread=1e3)


# -- fused operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 19])
def test_fused_operations(flag: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_edges, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    e, to, start = draw(3, 4, 5, 6), draw(3, 4, 7), draw(3, 5, 7)
    weights = draw(7, 6), draw(6, 7), draw(6), draw(6, 6)

    def slow_gate(
        e: Tensor, to: Tensor, start: Tensor, inner: Tensor, last: Tensor, bias: Tensor, map_: Tensor
    ) -> Tensor:
        hidden = F.linear(e.abs() if flag else e, inner) + to.unsqueeze(2) + start.unsqueeze(1)
        return F.linear(e, map_) * F.linear(F.silu(hidden), last, bias)

    same(lambda *given: gated(*given, flag), slow_gate, e, to, start, *weights)
    same(
        lambda *given: summed(*given, flag),
        lambda e, v, mix: torch.einsum("bijh,bif,hf->bjf" if flag else "bijh,bjf,hf->bif", e, v, mix),
        *(e, draw(3, 4 if flag else 5, 8), draw(6, 8)),
    )


def same(fast: Any, slow: Any, *given: Tensor) -> None:
    found, right = fast(*given), slow(*given)
    assert torch.allclose(found, right, rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    pairs = zip(torch.autograd.grad(found, given, weight), torch.autograd.grad(right, given, weight), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)


# -- the slow twin ----------------------------------------------------------------------------------------------------------


def twin(encoder: Any, graph: NeuralGraph) -> tuple[list[Tensor], list[Tensor]]:
    """Embeddings ``[n, F]`` per layer and ``[n_out, n_in, E]`` per block and way of one plain multilayer perceptron."""
    layers = graph.stack.layers
    state = graph.to_state_dict(batched=False)
    w = [state[layer.weight].clone() for layer in layers]
    b = [state[layer.bias_name].clone() if layer.bias_name else torch.zeros(layer.outputs).double() for layer in layers]
    last = len(layers)
    odd = [False] + [layer.activation.sign for layer in layers[:-1]] + [False]
    # the gauge: neuron by neuron
    scale = [torch.ones(n).double() for n in graph.stack.widths]
    flip = [torch.ones(n).double() for n in graph.stack.widths]
    for k, layer in enumerate(layers):
        w[k] = w[k] * layer.activation.omega
        b[k] = b[k] * layer.activation.omega
        for i in range(layer.outputs if k < last - 1 else 0):
            factor = 1.0
            if layer.activation.phase and layer.bias_name:
                while b[k][i] > math.pi / 2:
                    b[k][i] -= math.pi
                    flip[k + 1][i] *= -1
                while b[k][i] <= -math.pi / 2:
                    b[k][i] += math.pi
                    flip[k + 1][i] *= -1
                factor = flip[k + 1][i]
            if layer.activation.scale:
                factor = scale[k + 1][i] = (w[k][i].square().sum() + b[k][i].square()).sqrt()
                w[k][i] /= factor
                b[k][i] /= factor
            w[k + 1][:, i] *= factor
    # embeddings
    table = encoder.normalization
    bias_scale = [table.bias[f"{k + 1}/{last}"][1] if layers[k].bias_name else 1.0 for k in range(last)]
    weight_scale = [table.weight[f"{k + 1}/{last}"][1] / math.sqrt(layers[k].inputs) for k in range(last)]
    position = [encoder.position(graph.spec, s).expand(n, -1) for s, n in enumerate(graph.stack.widths)]
    probes = encoder.probes.points.double() if encoder.probes is not None else None
    x = []
    for s, n in enumerate(graph.stack.widths):
        rows = []
        for i in range(n):
            row = encoder.bias.weight[:, 0] * (b[s - 1][i] / bias_scale[s - 1] if s else 0.0)
            if probes is not None:
                z = graph.responses(probes)[s][0, :, i] * flip[s][i] / scale[s][i]
                row = row + short(encoder.responses[graph.spec.node_sets[s].role].weight @ z)
            rows.append(row * (1 + position[s][i]) if odd[s] else row + position[s][i])
        x.append(torch.stack(rows))
    e = []
    for k in range(last):
        depth = 1 + encoder.depth(k + 1, last - k - 1)
        pairs = [[encoder.weight.weight[:, 0] * depth * v / weight_scale[k] for v in row] for row in w[k]]
        e.append(torch.stack([torch.stack(row) for row in pairs]))
    # layers
    for layer, gate in zip(encoder.layers, encoder.gates, strict=True):
        h = [torch.stack([short(row) for row in rows]) for rows in x]
        c = [rows.abs() if odd[s] else rows for s, rows in enumerate(h)]
        hidden = gate.edge.weight.shape[0]
        for k in range(last):
            new = torch.zeros_like(e[k])
            for i in range(e[k].shape[0]):
                for j in range(e[k].shape[1]):
                    edge = e[k][i, j]
                    form = edge.abs() if odd[k] or odd[k + 1] else edge
                    inner = gate.ends(c[k + 1][i])[:hidden] + gate.ends(c[k][j])[hidden:] + gate.edge(form)
                    new[i, j] = gate.map(edge) * gate.last(F.silu(inner))
            e[k] = new
        ways = layer.mix.shape[0]
        after = []
        for s, n in enumerate(graph.stack.widths):
            rows = []
            for i in range(n):
                messages = []
                for way in range(ways):
                    other = s - 1 if way == 0 else s + 1
                    total = torch.zeros_like(x[s][i])
                    senders = range(len(x[other])) if 0 <= other <= last else range(0)
                    for j in senders:
                        value = layer.value(h[other][j]).chunk(ways)[way]
                        edge = e[s - 1][i, j] if way == 0 else e[s][j, i]
                        for channel in range(len(edge)):
                            total = total + layer.mix[way, channel] * edge[channel] * value
                    messages.append(short(total / math.sqrt(max(1, len(senders)))))
                z = torch.cat([h[s][i], *messages])
                rows.append(x[s][i] + (layer.gate if odd[s] else layer.plain)(z, position[s][i]))
            after.append(torch.stack(rows))
        x = after
    # outputs read all hidden neurons
    seen = []
    for s in range(1, last):
        for i in range(len(x[s])):
            form = short(x[s][i]).abs() if odd[s] else short(x[s][i])
            seen.append(encoder.summary(torch.cat([form, position[s][i]])))
    mean = sum(seen) / len(seen)
    x[last] = torch.stack([encoder.norm(row + encoder.readout(torch.cat([short(row), mean]))) for row in x[last]])
    nodes = [rows * scale[s].unsqueeze(-1) for s, rows in enumerate(x)]
    edges = []
    for way in range(2 if encoder.bidirectional else 1):
        for k in range(last):
            factor = scale[k + 1].unsqueeze(1) / scale[k].unsqueeze(0)
            factor = (factor if way == 0 else 1 / factor) * flip[k].unsqueeze(0)
            edges.append(e[k] * factor.unsqueeze(-1))
    return nodes, edges


def short(x: Tensor) -> Tensor:
    return x / torch.sqrt(1 + x.square().sum() / len(x))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "probes"), [("siren", 0), ("relu", 5), ("mixed", 0), ("mixed-2", 5), ("no-bias", 0)])
def test_against_the_twin(name: str, probes: int, bidirectional: bool) -> None:
    graph = random_graph(STACKS[name], 2, seed=4)
    encoder = encoder_for(
        graph, width=6, layers=2, edge_width=4, kernel=(1, 1), bidirectional=bidirectional, probes=probes
    )
    with torch.no_grad():
        found = encoder(graph)
        for network in range(2):
            nodes, edges = twin(encoder, graph[network])
            for fast, slow in zip((*found.nodes[0], *found.edges[0]), (*nodes, *edges), strict=True):
                assert torch.allclose(fast[network], slow, rtol=1e-11, atol=1e-12)
