"""Encoders on graphs that are no chain of dense blocks: groups, residuals, shared parameters, several node features."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, Block, GraphSpec, NeuralGraph, NodeFeature, NodeSet, PermutationSpec, trace
from neural_graphs.nn import GraphHead, create_encoder
from neural_graphs.testing import assert_equivariant, assert_invariant
from neural_graphs.zoo._augment import augment

P, GI, GO = Axis.of("P", 6), Axis(((("G", 3), ("I", 2)),)), Axis(((("G", 3), ("O", 2)),))
SIZES = {"x": Axis.fixed(2), "a": P, "b": GI, "c": GO, "d": P, "y": Axis.fixed(1)}
WEIGHTS = {
    "wa": (P, SIZES["x"]),
    "wb": (GI, P),
    "wc": (GO, Axis.of("I", 2)),
    "wd": (P, GO),
    "s": (P,),
    "wy": (SIZES["y"], P),
}


def grouped() -> GraphSpec:
    """x -> a -> b -> (three groups) c -> d -> y; a residual and a scaled residual from a to d."""
    roles: dict[str, Any] = {"x": "input", "y": "output"}
    sets = tuple(
        NodeSet(name, axis.size, roles.get(name, "hidden"), depth, features=(NodeFeature(f"{name}.b"),), axis=axis)
        for depth, (name, axis) in enumerate(SIZES.items())
    )
    blocks = (
        Block(0, 1, "wa", (6, 2)),
        Block(1, 2, "wb", (6, 6)),
        Block(2, 3, "wc", (6, 2), groups=3),
        Block(3, 4, "wd", (6, 6)),
        Block(1, 4, None, features=0, kind="identity", groups=6),
        Block(1, 4, "s", (6,), groups=6, kind="other"),
        Block(4, 5, "wy", (1, 6)),
    )
    axes = (*WEIGHTS.items(), *((f"{name}.b", (axis,)) for name, axis in SIZES.items()))
    return GraphSpec(sets, blocks, PermutationSpec(axes, over=(("I", ("G",)), ("O", ("G",)))))


SMALL: dict[str, Any] = {"edge_width": 6, "attention_width": 12, "hidden": 10, "edge_hidden": 7, "heads": 3}
KINDS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"name": "ng-gnn"},
    "ng-t blocks": {"name": "ng-t", "attention": "blocks", **SMALL},
    "ng-t all": {"name": "ng-t", "attention": "all", **SMALL},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def draw(spec: GraphSpec, batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        for name, shape in spec.shapes.items()
    }


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@each_kind
def test_equivariance(kind: dict[str, Any], reverse: bool, kernel: tuple[int, int], build: Any, with_head: Any) -> None:
    spec = grouped()
    graph = NeuralGraph.pack(spec, draw(spec))
    encoder = build(**kind, reverse_edges=reverse, kernel=kernel)
    encoder.fit_normalization([graph])
    assert_equivariant(encoder, graph)
    assert_invariant(with_head(encoder), graph)
    (edges,) = encoder(graph).edges
    assert encoder(graph[:0]).nodes[0][3].shape == (0, 6, encoder.width)
    assert [tuple(e.shape[1:3]) for e in edges[:7]] == [(6, 2), (6, 6), (6, 2), (6, 6), (6, 1), (6, 1), (1, 6)]


def test_the_order_of_neurons_is_noticed(build: Any) -> None:
    """An encoder that reads the order of neurons fails: the assertion above can."""
    spec = grouped()
    graph = NeuralGraph.pack(spec, draw(spec))
    encoder = build("ng-gnn")
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda batch: encoder(batch.buckets[0].map(lambda t: t.cumsum(1))), graph)


@each_kind
def test_groups_equal_separate_node_sets(kind: dict[str, Any], build: Any) -> None:
    """The twin: every group is a node set of its own, joined by dense blocks."""
    spec = grouped()
    state = draw(spec)
    encoder = build(**kind, layers=4)
    encoder.normalization = type(encoder.normalization)()  # weights times sqrt(fan_in), which the twin makes up for
    found = encoder(NeuralGraph.pack(spec, state))

    def part(name: str, k: int, features: tuple[NodeFeature, ...]) -> NodeSet:
        whole = next(s for s in spec.node_sets if s.name == name)
        return replace(whole, name=f"{name}{k}", size=2, features=features, axis=Axis.fixed(2))

    x, a, _, _, d, y = spec.node_sets
    sets = [x, a, d, y]
    sets += [part(name, k, (NodeFeature(f"{name}{k}.b"),)) for name in "bc" for k in range(3)]
    blocks = [Block(0, 1, "wa", (6, 2)), Block(2, 3, "wy", (1, 6))]
    blocks += [replace(spec.blocks[k], target=2) for k in (4, 5)]
    twin = {name: state[name] for name in ("wa", "wy", "s", "x.b", "a.b", "d.b", "y.b")}
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        blocks += [
            Block(1, 4 + k, f"wb{k}", (2, 6)),
            Block(4 + k, 7 + k, f"wc{k}", (2, 2)),
            Block(7 + k, 2, f"wd{k}", (6, 2)),
        ]
        twin |= {f"wb{k}": state["wb"][:, rows], f"wc{k}": state["wc"][:, rows]}
        twin |= {f"wd{k}": state["wd"][:, :, rows] * math.sqrt(3)}
        twin |= {f"{name}{k}.b": state[f"{name}.b"][:, rows] for name in "bc"}
    axes = tuple((name, tuple(map(Axis.fixed, value.shape[1:]))) for name, value in twin.items())
    other = encoder(NeuralGraph.pack(GraphSpec(tuple(sets), tuple(blocks), PermutationSpec(axes)), twin))

    nodes, nodes_twin = found.nodes[0], other.nodes[0]
    for s, parts in enumerate(((0,), (1,), (4, 5, 6), (7, 8, 9), (2,), (3,))):
        torch.testing.assert_close(nodes[s], torch.cat([nodes_twin[t] for t in parts], 1), rtol=1e-10, atol=1e-12)
    for offset, offset_twin in ((0, 0), (len(spec.blocks), len(blocks))):
        edges = torch.cat([other.edges[0][offset_twin + 4 + 3 * k + 1] for k in range(3)], 1)
        torch.testing.assert_close(found.edges[0][offset + 2], edges, rtol=1e-10, atol=1e-12)


@each_kind
def test_a_residual_is_a_weight_of_one(kind: dict[str, Any], build: Any) -> None:
    spec = grouped()
    state = draw(spec)
    encoder = build(**kind, kernel=(3, 3))
    encoder.normalization = type(encoder.normalization)()
    blocks = tuple(Block(1, 4, "one", (6,), groups=6) if b.kind == "identity" else b for b in spec.blocks)
    symmetries = replace(spec.symmetries, axes=(*spec.symmetries.axes, ("one", (P,))))
    weighted = GraphSpec(spec.node_sets, blocks, symmetries)
    graph = NeuralGraph.pack(weighted, state | {"one": torch.ones(3, 6, dtype=torch.float64)})
    found, right = encoder(NeuralGraph.pack(spec, state)), encoder(graph)
    for a, b in zip(found.nodes[0] + found.edges[0], right.nodes[0] + right.edges[0], strict=True):
        assert torch.equal(a, b)


@each_kind
def test_gradients_through_groups(kind: dict[str, Any], build: Any) -> None:
    """Numerical derivatives of a scalar of all embeddings with respect to grouped weights."""
    spec = grouped()
    graph = NeuralGraph.pack(spec, draw(spec, 1))
    encoder = build(**kind, width=4, layers=2, fourier=4, sigma=0.1)
    direction = torch.Generator().manual_seed(1)

    def value(wc: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        edges = list(graph.edges)
        edges[2], edges[5] = wc, s
        encoding = encoder(replace(graph, edges=tuple(edges)))
        direction.manual_seed(1)
        parts = (*encoding.nodes[0], *encoding.edges[0])
        return sum((t * torch.randn(t.shape, generator=direction, dtype=t.dtype)).sum() for t in parts)

    inputs = [graph.edges[k].clone().requires_grad_() for k in (2, 5)]
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-4, atol=1e-6)


def test_what_encoders_refuse(build: Any) -> None:
    """One line that says what stands in the way."""
    spec = grouped()
    encoder, state = build("ng-gnn"), draw(spec)
    sets = list(spec.node_sets)
    sets[1] = replace(sets[1], features=(*sets[1].features, NodeFeature("scale", "scale")))
    symmetries = replace(spec.symmetries, axes=(*spec.symmetries.axes, ("scale", (P,))))
    scaled = NeuralGraph.pack(
        replace(spec, node_sets=tuple(sets), symmetries=symmetries), state | {"scale": state["a.b"]}
    )
    with pytest.raises(UserError, match=r"one value per neuron, its bias: a has 2 \(a.b, scale\)"):
        encoder(scaled)
    attention = replace(spec, blocks=(*spec.blocks, Block(1, 4, None, features=0, kind="attention", groups=6)))
    with pytest.raises(UserError, match="no attention without parameters"):
        encoder(NeuralGraph.pack(attention, state))
    graph = NeuralGraph.pack(spec, state)
    with pytest.raises(UserError, match="no executable architecture"):
        build("ng-gnn", probes=4)(graph)
    tied = NeuralGraph.pack(replace(spec, blocks=(*spec.blocks, Block(3, 4, "wb", (6, 6), copy_of=1))), state)
    with pytest.raises(UserError, match="in several places"):
        create_encoder("mlp", parameters=100)(tied)
    with pytest.raises(UserError, match="augment: translation"):
        augment(graph, torch.Generator(), translation=0.1)


def test_the_baseline_reads_every_parameter(build: Any) -> None:
    spec = grouped()
    graph = NeuralGraph.pack(spec, draw(spec))
    count = sum(value[0].numel() for value in graph.to_state_dict().values())
    encoder = create_encoder("mlp", parameters=count, width=8).double().eval()
    encoder.fit_normalization([graph])
    assert encoder(graph).vector.shape == (3, 8)


class Residual(torch.nn.Module):
    """A residual network on vectors, no plain stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (torch.nn.Linear(a, b) for a, b in ((2, 6), (6, 6), (6, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(x + torch.tanh(self.inner(x)))


def test_probes_run_through_traced_modules() -> None:
    """Learned probe inputs are read at every neuron of a traced network, invariantly, with gradients."""
    torch.manual_seed(0)
    modules = [Residual().double().eval() for _ in range(3)]
    graph = trace(modules[0], torch.zeros(4, 2, dtype=torch.float64))
    states = [module.state_dict() for module in modules]
    batch = graph.like({name: torch.stack([state[name] for state in states]) for name in states[0]}, batched=True)
    encoder = create_encoder("ng-gnn", width=8, layers=2, probes=5, inputs=2).double().eval()
    head = GraphHead(8, 3, 2).double().eval()
    assert assert_invariant(lambda networks: head(encoder(networks, "outputs")), batch) < 1e-10
    head(encoder(batch, "outputs")).square().sum().backward()
    grad = encoder.embedding.probes.points.grad
    assert grad is not None and bool((grad != 0).any())
