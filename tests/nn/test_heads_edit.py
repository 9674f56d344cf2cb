"""Heads that say something of every neuron or parameter: equivariance, the slow twin, what is left alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import DeltaHead, Encoding, NodeHead, list_encoders
from neural_graphs.nn import _registry as registry
from neural_graphs.nn._embedding import crop_kernel, pad_kernel
from neural_graphs.testing import assert_equivariant, random_graph, random_inputs, random_stack

# Encoders that embed neurons and edges; the others give one vector per network.
ENCODERS = [name for name in list_encoders() if not registry._ENCODERS[name].vectors]
SIREN = Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5)
STACKS = {
    "siren": SIREN,
    "mixed": Stack.mlp((2, 5, 4, 6, 2), ["relu", "tanh", "gelu"]),
    "no bias": Stack.mlp((2, 5, 4, 1), "relu", bias=False),
    "no hidden": Stack.mlp((2, 3), "relu"),
    "pooled": random_stack(2, "cnn"),
    "flattened": random_stack(4, "cnn"),
}

every_encoder = pytest.mark.parametrize("name", ENCODERS)


def head_for(encoder: Any, graph: NeuralGraph, kernel: tuple[int, int] = (1, 1), scale: float = 1.0) -> DeltaHead:
    """A head that fits ``encoder``, its changes ``scale`` times as large as at the start of training."""
    torch.manual_seed(2)
    encoding = encoder(graph)
    both = len(encoding.edges[0]) == 2 * len(graph.spec.blocks)
    head = DeltaHead(encoder.width, encoder.edge_width, kernel, both, encoding.rescaled).double()
    with torch.no_grad():
        for parameter in (*head.weight_scale.values(), *head.bias_scale.values()):
            parameter *= scale
    return head


def built(build: Any, name: str, graph: NeuralGraph, **arguments: Any) -> Any:
    encoder = build(name, max_io=16, inputs=graph.spec.num_inputs, kernel=(8, 8), **arguments)
    encoder.fit_normalization([graph])
    return encoder


def same(found: NeuralGraph, right: NeuralGraph) -> None:
    for (name, a), b in zip(found.to_state_dict(True).items(), right.to_state_dict(True).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


# -- a change of every parameter -------------------------------------------------------------------------------------------


@every_encoder
@pytest.mark.parametrize("which", STACKS)
def test_edits_move_with_the_neurons(name: str, which: str, build: Any) -> None:
    """Changes, edited networks and what these compute, biases included; the change is as large as the parameters."""
    stack = STACKS[which]
    graph = random_graph(stack, 3)
    encoder = built(build, name, graph)
    head = head_for(encoder, graph, (8, 8), 100.0)
    kinds = ("permutation", "scale", "sign", "phase") if head.rescaled else ("permutation",)
    (change,), (edited,) = head.deltas(encoder(graph)), head(encoder(graph))
    for parameter, value in change.to_state_dict(True).items():
        assert value.abs().amin(0).max() > 1e-6, f"{parameter} does not change"
    if which != "no hidden":
        assert assert_equivariant(lambda batch: head.deltas(encoder(batch))[0], graph, kinds=kinds) < 1e-10
        assert assert_equivariant(lambda batch: head(encoder(batch))[0], graph, kinds=kinds, values="networks") < 1e-10
    x, element = random_inputs(stack), graph.symmetries.sample(torch.Generator().manual_seed(1), 3, kinds)
    (moved,) = head(encoder(graph.permute(element)))
    torch.testing.assert_close(moved.run(x), edited.run(x), rtol=1e-9, atol=1e-11)
    assert (edited.run(x) - graph.run(x)).abs().max() > 1e-6


@every_encoder
def test_each_network_of_a_mixture_is_edited_as_if_alone(name: str, build: Any) -> None:
    networks = [random_graph(stack, 1, seed=k) for k, stack in enumerate([SIREN, STACKS["mixed"], SIREN])]
    encoder = built(build, name, networks[0])
    head = head_for(encoder, networks[0], (8, 8))
    first, second = head(encoder(GraphBatch.of(networks)))
    for found, network in ((first[0], networks[0]), (first[1], networks[2]), (second, networks[1])):
        same(found, head(encoder(network))[0])
    assert head(encoder(GraphBatch.of([]))) == ()
    assert head(encoder(networks[0][:0]))[0].batch_size == 0


@every_encoder
@pytest.mark.parametrize("which", ["siren", "pooled", "flattened"])
@torch.no_grad()
def test_edits_equal_the_slow_twin(name: str, which: str, build: Any) -> None:
    """One network, one block, one edge at a time; kernels are cut out tap by tap."""
    graph = random_graph(STACKS[which], 2)
    encoder = built(build, name, graph)
    head, encoding = head_for(encoder, graph, (8, 8)), encoder(graph)
    (change,), (edited,) = head.deltas(encoding), head(encoding)
    nodes, edges = encoding.nodes[0], encoding.edges[0]
    spec, last = graph.spec, graph.spec.depth

    def role(depth: int) -> str:
        return {1: "first", last: "last"}.get(depth, "hidden")

    def form(x: Tensor, ends: tuple[int, ...]) -> Tensor:
        for node_set in (spec.node_sets[s] for s in ends):
            if node_set.role == "hidden" and node_set.activation.scale:
                x = x / x.square().mean().sqrt()
            if node_set.role == "hidden" and node_set.activation.sign:
                x = x.abs()
        return x

    def value(module: Any, parts: list[Tensor], *ends: int) -> Tensor:
        if head.rescaled:
            forms = [form(part, ends) for part in parts]
            return module.last(parts[0] * module.gate(module.first(torch.cat(forms)).relu()))
        return module.last(module.first(torch.cat(parts)).relu())

    for b in range(graph.batch_size):
        for k, block in enumerate(spec.blocks):
            height, width = block.kernel or (round(block.features**0.5),) * 2
            top, left = (8 - height) // 2, (8 - width) // 2
            scale = head.weight_scale[role(spec.node_sets[block.target].depth)]
            for i in range(edges[k].shape[1]):
                for j in range(edges[k].shape[2]):
                    parts = [edges[k][b, i, j]]
                    if head.reverse_edges:
                        parts.append(edges[k + len(spec.blocks)][b, i, j])
                    taps = value(head.edge, parts, block.source, block.target).view(8, 8)
                    right = [scale * taps[top + r, left + c] for r in range(height) for c in range(width)]
                    torch.testing.assert_close(change.edges[k][b, i, j], torch.stack(right), rtol=1e-10, atol=1e-14)
        for s, node_set in enumerate(spec.node_sets):
            for i in range(node_set.size if node_set.columns else 0):
                right_bias = head.bias_scale[role(node_set.depth)] * value(head.node, [nodes[s][b, i]], s)
                torch.testing.assert_close(change.nodes[s][b, i], right_bias, rtol=1e-10, atol=1e-14)
    changes = change.to_state_dict(True)
    for key, before in graph.to_state_dict(True).items():
        torch.testing.assert_close(edited.to_state_dict(True)[key], before + changes[key], rtol=0, atol=1e-15)


@every_encoder
def test_gradients_reach_every_parameter(name: str, build: Any) -> None:
    graph = random_graph(SIREN, 4)
    encoder = build(name)
    head = head_for(encoder, graph)
    head(encoder(graph))[0].run(random_inputs(SIREN)).square().sum().backward()
    for key, parameter in (*head.named_parameters(), *encoder.named_parameters()):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_scales_are_learned_by_role_so_that_any_depth_is_edited(build: Any) -> None:
    graph = random_graph(Stack.mlp((2, 3, 3, 3, 3, 1), "relu"), 2)
    encoder = build("ng-gnn")
    head = head_for(encoder, graph)
    for scale in (*head.weight_scale.values(), *head.bias_scale.values()):
        torch.testing.assert_close(scale.detach().float(), torch.tensor(0.01))
    weights, biases = [f"seq.{k}.weight" for k in range(5)], [f"seq.{k}.bias" for k in range(5)]
    layers = {"first": [0], "hidden": [1, 2, 3], "last": [4]}
    for scales, names in ((head.weight_scale, weights), (head.bias_scale, biases)):
        for role, own in layers.items():
            with torch.no_grad():
                before = scales[role].clone()
                scales[role].zero_()
                (change,) = head.deltas(encoder(graph))
                scales[role].copy_(before)
            still = {key for key, value in change.to_state_dict(True).items() if not value.any()}
            assert still == {names[k] for k in own}


def test_cropping_undoes_padding() -> None:
    for kernel, largest in (((2, 3), (5, 5)), ((1, 1), (3, 3)), ((3, 3), (3, 3)), ((3, 1), (4, 7))):
        features = kernel[0] * kernel[1]
        edges = torch.randn(2, 4, 3, features)
        assert torch.equal(crop_kernel(pad_kernel(edges, features, kernel, largest), features, kernel, largest), edges)


# -- networks that are no chain of dense blocks ----------------------------------------------------------------------------


class Grouped(torch.nn.Module):
    """A grouped and a depthwise convolution, a residual, a layer without bias, and a counter that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 6, 3, padding=1)
        self.grouped = torch.nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.depthwise = torch.nn.Conv2d(6, 6, (1, 3), padding=(0, 1), groups=6, bias=False)
        self.last = torch.nn.Linear(6, 2)
        self.register_buffer("count", torch.tensor([7, 8, 9]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.tanh(self.depthwise(torch.relu(self.grouped(x))))
        return self.last(x.mean((2, 3)))


@every_encoder
def test_traced_networks_are_edited(name: str, build: Any) -> None:
    torch.manual_seed(0)
    modules = [Grouped().double().eval() for _ in range(3)]
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    single = trace(modules[0], x)
    states = [module.state_dict() for module in modules]
    graph = single.like({key: torch.stack([state[key] for state in states]) for key in states[0]}, batched=True)
    assert {block.groups for block in graph.spec.blocks} >= {1, 3, 6} and graph.spec.rest
    assert not all(block.features for block in graph.spec.blocks)
    try:
        encoder = built(build, name, graph)
        head = head_for(encoder, graph, (8, 8), 10.0)
    except UserError as error:
        pytest.skip(f"this encoder does not read it: {error}")
    assert assert_equivariant(lambda batch: head(encoder(batch))[0], graph) < 1e-10
    (edited,), (change,) = head(encoder(graph)), head.deltas(encoder(graph))
    for key, value in change.to_state_dict(True).items():
        assert bool(value.any()) == (key != "count"), key
    state = edited.to_state_dict(True)
    assert torch.equal(state["count"], graph.to_state_dict(True)["count"])
    modules[1].load_state_dict({key: value[1] for key, value in state.items()})
    torch.testing.assert_close(edited.run(x)[1], modules[1](x), rtol=1e-10, atol=1e-12)
    (moved,) = head(encoder(graph.permute(graph.symmetries.sample(3, 3))))
    torch.testing.assert_close(moved.run(x), edited.run(x), rtol=1e-9, atol=1e-11)


class Twice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = (torch.nn.Linear(a, b) for a, b in ((2, 4), (4, 4), (4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))


def test_what_cannot_be_edited_is_one_line(build: Any) -> None:
    graph = random_graph(SIREN, 2)
    encoder = build("ng-gnn")
    head = head_for(encoder, graph)
    shared = trace(Twice().double().eval(), torch.zeros(3, 2, dtype=torch.float64))
    normed = trace(
        torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double().eval(),
        torch.zeros(3, 2, dtype=torch.float64),
    )
    for network, message in ((shared, "uses a parameter in several places"), (normed, "changes one value per neuron")):
        batch = GraphBatch.of(network)
        nodes = tuple(torch.zeros(1, s.size, 12, dtype=torch.float64) for s in network.spec.node_sets)
        edges = tuple(torch.zeros(1, *e.shape[1:3], 12, dtype=torch.float64) for e in network.edges * 2)
        with pytest.raises(UserError, match=message):
            head(Encoding(batch, (nodes,), (edges,)))
    wide = random_graph(STACKS["flattened"], 1)
    with pytest.raises(UserError, match="do not fit this model's kernel 1x1"):
        head(built(build, "ng-gnn", wide)(wide))
    with pytest.raises(UserError, match="reads=head.reads"):
        head(encoder(graph, reads="nodes"))
    plain = build("ng-gnn", reverse_edges=False)
    with pytest.raises(UserError, match="make the head with reverse_edges=False"):
        head(plain(graph))
    assert DeltaHead(12, 12, reverse_edges=False).double()(plain(graph))[0].batch_size == 2
    with pytest.raises(UserError, match="not rescaled: make the head with rescaled=False"):
        DeltaHead(12, 12, rescaled=True).double()(encoder(graph))
    vectors = build("mlp", parameters=59)
    for head_of_nodes in (head, NodeHead(12, 1)):
        with pytest.raises(UserError, match="one vector per network and embeds no neurons"):
            head_of_nodes(vectors(graph))


# -- rescaled embeddings ---------------------------------------------------------------------------------------------------


def rescaled_pair(both: bool) -> tuple[Encoding, Encoding, NeuralGraph, dict[str, Tensor]]:
    """An encoding of two networks of ReLU-like and odd units, the same rescaled, and the factor of each parameter."""
    stack = Stack.mlp((2, 6, 5, 4, 2), ["relu", "tanh", "sine:30"])
    graph = random_graph(stack, 2)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    nodes = [draw(2, n, 7) for n in stack.widths]
    edges = [draw(2, m, n, 9) for n, m in zip(stack.widths, stack.widths[1:], strict=False)]
    edges += [draw(*e.shape) for e in edges] if both else []
    q = [torch.ones(2, 2), (3 * draw(2, 6)).exp(), draw(2, 5).sign(), draw(2, 4).sign(), torch.ones(2, 2)]
    ratios = [(b[:, :, None] / a[:, None, :]) for a, b in itertools.pairwise(q)]
    moved_nodes = [x * f[..., None] for x, f in zip(nodes, q, strict=True)]
    factors = ratios + [1 / r for r in ratios]
    moved_edges = [e * f[..., None] for e, f in zip(edges, factors, strict=False)]
    batch = GraphBatch.of(graph)
    plain, moved = (
        Encoding(batch, (tuple(n),), (tuple(e),), rescaled=True)
        for n, e in ((nodes, edges), (moved_nodes, moved_edges))
    )
    known = {f"seq.{k}.weight": r for k, r in enumerate(ratios)} | {f"seq.{k}.bias": f for k, f in enumerate(q[1:])}
    return plain, moved, graph, known


@pytest.mark.parametrize("both", [True, False])
def test_rescaled_edits(both: bool) -> None:
    """The change of a parameter is multiplied by what the parameter is, over six orders of magnitude and with signs."""
    plain, moved, _, factors = rescaled_pair(both)
    torch.manual_seed(0)
    head = DeltaHead(7, 9, reverse_edges=both, rescaled=True).double()
    before, after = (head.deltas(e)[0].to_state_dict(True) for e in (plain, moved))
    for name, value in before.items():
        assert value.abs().max() > 1e-6
        torch.testing.assert_close(after[name], value * factors[name], rtol=1e-10, atol=0, msg=name)
    with pytest.raises(UserError, match="are rescaled: make the head with rescaled=True"):
        DeltaHead(7, 9, reverse_edges=both).double()(plain)


def test_rescaled_changes_know_more_than_their_own_embedding_times_a_constant() -> None:
    """The invariant factor depends on the embedding, and on that of the other direction."""
    plain, _, graph, _ = rescaled_pair(True)
    head = DeltaHead(7, 9, rescaled=True).double()
    before = head.deltas(plain)[0].edges
    assert plain.edges is not None and plain.nodes is not None
    own, other = plain.edges[0][: len(graph.edges)], plain.edges[0][len(graph.edges) :]
    backwards = Encoding(
        plain.batch, plain.nodes, (own + tuple(e.flip(-1) for e in other if e is not None),), rescaled=True
    )
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(before, head.deltas(backwards)[0].edges, strict=True))


def test_rescaled_values_of_neurons_are_invariant() -> None:
    plain, moved, _, _ = rescaled_pair(False)
    head = NodeHead(7, 3).double()
    for a, b in zip(head(plain)[0], head(moved)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- values of every neuron ------------------------------------------------------------------------------------------------


@every_encoder
def test_values_of_neurons(name: str, build: Any) -> None:
    """Each neuron's from its own embedding alone, moving with it, in the batch of several architectures."""
    networks = [random_graph(SIREN, 2), random_graph(STACKS["mixed"], 3)]
    encoder = built(build, name, networks[0])
    torch.manual_seed(0)
    head = NodeHead(encoder.width, 2).double()
    encoding = encoder(networks, reads=head.reads)
    found = head(encoding)
    assert [[tuple(x.shape) for x in sets] for sets in found] == [
        [(2, n, 2) for n in (2, 6, 5, 1)],
        [(3, n, 2) for n in (2, 5, 4, 6, 2)],
    ]
    if not encoding.rescaled:
        right = [head.mlp(row) for row in encoding.nodes[1][2][1]]
        torch.testing.assert_close(found[1][2][1], torch.stack(right), rtol=1e-10, atol=1e-12)

    def biases(batch: Any) -> dict[str, Tensor]:
        values = head(encoder(batch, reads=head.reads))[0]
        return {f"seq.{k}.bias": x[..., 0] for k, x in enumerate(values[1:])}

    assert assert_equivariant(biases, networks[0]) < 1e-10
    with pytest.raises(UserError, match="reads=head.reads"):
        head(encoder(networks, reads="outputs"))
