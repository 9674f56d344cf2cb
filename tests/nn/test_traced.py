"""Encoders read what the tracer produces: convolutions of all kinds, normalisation layers, residuals, transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import DeltaHead, Normalization, create_encoder
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph

SMALL: dict[str, Any] = {"edge_width": 6, "attention_width": 12, "hidden": 10, "edge_hidden": 7, "heads": 3}
KINDS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"name": "ng-gnn"},
    "ng-t blocks": {"name": "ng-t", "attention": "blocks", **SMALL},
    "ng-t all": {"name": "ng-t", "attention": "all", **SMALL},
    "scale-gmn": {"name": "scale-gmn", "edge_width": 6, "bidirectional": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture
def reader(build: Any, needed: Any) -> Any:
    def make(kind: dict[str, Any], *graphs: NeuralGraph, **arguments: Any) -> Any:
        encoder = build(**{"layers": 2, "fourier": 8, **kind, **needed(graphs), **arguments})
        encoder.fit_normalization(graphs)
        with torch.no_grad():  # those that start at 0
            for name, parameter in encoder.named_parameters():
                if name.endswith("kind.weight"):
                    parameter.normal_()
        return encoder

    return make


@each_kind
def test_equivariance(kind: dict[str, Any], architecture: str, with_head: Any, reader: Any, traced: Any) -> None:
    graph = traced(architecture)
    encoder = reader(kind, graph)
    assert_equivariant(encoder, graph, samples=2)
    assert_invariant(with_head(encoder, outputs=graph.spec.num_outputs), graph, samples=2)


@each_kind
def test_networks_of_all_kinds_in_one_batch(
    kind: dict[str, Any], reader: Any, traced: Any, architectures: list[str]
) -> None:
    """One model reads them all, each as alone; gradients reach every parameter."""
    graphs = [traced(name, 2) for name in architectures if name != "causal text"]  # as a graph the same as "text"
    graphs.append(random_graph(Stack.mlp((2, 4, 3), "tanh"), 2))  # with neurons that may change their sign
    encoder = reader(kind, *graphs)
    together = encoder(GraphBatch.of(graphs))
    for k, graph in enumerate(graphs):
        alone = encoder(graph[0])
        for one, many in zip(alone.nodes[0] + alone.edges[0], together.nodes[k] + together.edges[k], strict=True):
            torch.testing.assert_close(many[:1], one, rtol=1e-10, atol=1e-10)
    sum(x.square().mean() + x.mean() for parts in together.nodes + together.edges for x in parts).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@each_kind
def test_every_value_is_read(kind: dict[str, Any], reader: Any, traced: Any) -> None:
    """A change of any tensor of a transformer or a normed network shows in the outputs' embeddings."""
    for network in ("normed", "vit", "text"):
        graph = traced(network, 1)
        encoder = reader({**kind, "layers": 10}, graph, reverse_edges=True)
        leaves = [t.detach().clone().requires_grad_() for t in (*graph.nodes, *graph.edges)]
        count = len(graph.nodes)
        changed = replace(graph, nodes=tuple(leaves[:count]), edges=tuple(leaves[count:]))
        encoder(changed, reads="outputs").nodes[0][-1].square().sum().backward()
        for leaf in leaves:
            assert not leaf.numel() or (leaf.grad is not None and bool((leaf.grad != 0).any(1).all()))


# -- what tells networks apart --------------------------------------------------------------------------------------------


def seen(encoder: Any, graph: NeuralGraph) -> torch.Tensor:
    """All neurons' embeddings."""
    return torch.cat(encoder(graph, reads="nodes").nodes[0], 1).detach()


@each_kind
def test_activations_are_told_apart(kind: dict[str, Any], reader: Any, traced: Any) -> None:
    graph = traced("wild-park")
    sets = list(graph.spec.node_sets)
    sets[2] = replace(sets[2], activation=sets[4].activation)
    other = replace(graph, spec=replace(graph.spec, node_sets=tuple(sets)))
    assert graph.spec != other.spec
    blind = reader(kind, graph, other, activations=())
    assert torch.equal(seen(blind, graph), seen(blind, other))
    seeing = reader(kind, graph, other)
    assert (seen(seeing, graph) - seen(seeing, other)).abs().max() > 1e-4


@each_kind
def test_kinds_of_blocks_are_told_apart(kind: dict[str, Any], reader: Any, traced: Any) -> None:
    """Queries and keys exchanged; in a new model the embeddings of kinds are 0, and say nothing."""
    graph = traced("vit")
    turn = {"query": "key", "key": "query"}
    blocks = tuple(replace(block, kind=turn.get(block.kind, block.kind)) for block in graph.spec.blocks)
    other = replace(graph, spec=replace(graph.spec, blocks=blocks))
    encoder = reader(kind, graph)
    if kind.get("attention") != "all":  # where queries and keys of the same neurons are added up
        assert (seen(encoder, graph) - seen(encoder, other)).abs().max() > 1e-4
    torch.nn.init.zeros_(next(p for name, p in encoder.named_parameters() if name.endswith("kind.weight")))
    assert torch.equal(seen(encoder, graph), seen(encoder, other))
    removed = replace(graph.spec, blocks=tuple(b for b in graph.spec.blocks if b.kind != "identity"))
    cut = NeuralGraph.pack(removed, graph.to_state_dict(batched=True))
    assert (seen(encoder, graph) - seen(encoder, cut)).abs().max() > 1e-4


def test_rows_of_tables_are_told_apart(reader: Any, traced: Any) -> None:
    """Tokens and positions by their number, of which there are more than learned embeddings."""
    graph = traced("causal text", 2)
    assert graph.spec.num_inputs > 16
    encoder = reader(KINDS["ng-gnn"], graph)
    assert encoder.embedding.position.max_io < graph.spec.num_inputs
    for s, nodes in enumerate(graph.spec.node_sets):
        place = encoder.embedding.place(graph.spec, s)
        if nodes.name in ("tokens.tokens", "places.positions"):
            assert place.shape == (nodes.size, encoder.width)
            assert torch.pdist(place).min() > 0.1
        elif nodes.role == "hidden":
            assert place.shape == (1, encoder.width)


class TwoBiases(torch.nn.Module):
    """Neurons of three kinds, each with two values that its scale or sign multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in ((2, 4), (4, 3), (3, 4), (4, 2)))
        self.more = torch.nn.ParameterList(torch.randn(n) for n in (4, 3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, more, act in zip(self.layers, self.more, (torch.tanh, torch.relu, F.gelu), strict=False):
            x = act(layer(x) + more)
        return self.layers[3](x)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_scales_and_signs_of_several_values(bidirectional: bool, reader: Any) -> None:
    torch.manual_seed(0)
    graph = trace(TwoBiases().double().eval(), torch.zeros(1, 2, dtype=torch.float64))
    assert {rescaling.kind for rescaling in graph.symmetries.rescalings} == {"scale", "sign"}
    encoder = reader({**KINDS["scale-gmn"], "bidirectional": bidirectional}, graph)
    assert encoder.reading.node_features == ("bias", "bias#2")
    assert_equivariant(encoder, graph, kinds=("permutation", "scale", "sign"), spread=1e3)


# -- the twin of the embeddings -------------------------------------------------------------------------------------------


def test_node_features_by_slot(architecture: str, reader: Any, traced: Any) -> None:
    """Slots, kinds and statistics, one value at a time."""
    graph = traced(architecture)
    encoder = reader(KINDS["ng-gnn"], graph)
    found = encoder.embedding.nodes(graph, encoder.normalization)
    embedding = encoder.embedding
    features = (embedding.node_embedding, *embedding.more_features)
    read = {"running_var": lambda v: torch.log(v + 1e-5)}
    for s, nodes in enumerate(graph.spec.node_sets):
        values = dict.fromkeys(embedding.reading.node_features, torch.zeros(graph.batch_size, nodes.size).double())
        count: dict[str, int] = {}
        column = 0
        for feature in nodes.features:
            for _ in range(feature.columns):
                count[feature.kind] = count.get(feature.kind, 0) + 1
                slot = feature.kind + (f"#{count[feature.kind]}" if count[feature.kind] > 1 else "")
                same = torch.cat(
                    [
                        read.get(feature.kind, lambda v: v)(graph.nodes[t][..., k]).flatten()
                        for t, others in enumerate(graph.spec.node_sets)
                        if others.depth == nodes.depth
                        for k, kind in enumerate([f.kind for f in others.features for _ in range(f.columns)])
                        if kind == feature.kind
                    ]
                )
                value = read.get(feature.kind, lambda v: v)(graph.nodes[s][..., column])
                values[slot] = (value - same.mean()) / same.std(correction=0)
                column += 1
        right = sum(e(v.unsqueeze(-1)) for e, v in zip(features, values.values(), strict=True))
        right = embedding.node_in(right) + embedding.position(graph.spec, s)
        if nodes.role == "hidden":
            right = right + embedding.activation(nodes.activation.kind)
        torch.testing.assert_close(found[s], right, rtol=1e-9, atol=1e-9)


def test_one_bias_is_read_as_ever(build: Any, traced: Any, needed: Any) -> None:
    """Without the arguments there is no further parameter, and with them those there were have their names and values."""
    graph = traced("flattening")
    arguments = needed([graph])
    wide = {key: arguments[key] for key in ("kernel", "max_io")}
    for kind in list(KINDS.values())[:3]:
        plain, rich = build(**kind, **wide), build(**kind, **arguments | {"block_kinds": ["identity"]})
        more = set(rich.state_dict()) - set(plain.state_dict())
        assert more == {"embedding.kind.weight", "embedding.activation.weight"}
        assert not set(plain.state_dict()) - set(rich.state_dict())
        for key in ("embedding.node_embedding.frequencies", "embedding.edge_embedding.frequencies"):
            assert torch.equal(plain.state_dict()[key], rich.state_dict()[key])
        assert plain(graph).nodes[0][-1].shape == (3, 3, 12)


def test_statistics_are_kept_with_the_model(traced: Any) -> None:
    graph = traced("normed")
    statistics = Normalization.fit([graph])
    assert set(statistics.features) == {"scale", "shift", "running_mean", "running_var"}
    assert Normalization.from_json(statistics.to_json()) == statistics
    old = {"weight": {"1/2": [0.5, 2.0]}, "bias": {"1/2": [0.25, 4.0]}}
    assert Normalization.from_json(old).to_json() == old
    with pytest.raises(UserError, match="statistics of this model are broken"):
        Normalization.from_json({**old, "features": {"scale": 3}})
    spread = [value.std((0, 1), correction=0) for value in statistics.biases(graph) if value.any()]
    torch.testing.assert_close(torch.cat(spread), torch.ones(len(torch.cat(spread))).double())


# -- changes --------------------------------------------------------------------------------------------------------------


@each_kind
def test_changes(kind: dict[str, Any], architecture: str, reader: Any, traced: Any, needed: Any) -> None:
    """Every parameter has a change that moves with the neurons, and variances stay positive; or a reason why not."""
    graph = traced(architecture)
    encoder = reader(kind, graph)
    arguments = needed([graph])
    head = DeltaHead(
        encoder.width,
        encoder.edge_width,
        arguments["kernel"],
        len(encoder(graph).edges[0]) == 2 * len(graph.spec.blocks),
        encoder(graph).rescaled,
        node_features=arguments["node_features"],
    ).double()
    for scale in (*head.weight_scale.values(), *head.bias_scale.values()):
        torch.nn.init.constant_(scale, 5.0)

    def edited(batch: Any) -> NeuralGraph:
        return head(encoder(batch))[0]

    if graph.spec.shares:
        with pytest.raises(UserError, match="uses a parameter in several places"):
            edited(graph)
        return
    assert_equivariant(edited, graph, samples=2, values="networks")
    before, after = (g.to_state_dict(batched=True) for g in (graph, edited(graph)))
    for name, value in before.items():
        assert torch.equal(value, after[name]) != value.is_floating_point(), name
        if "running_var" in name:
            assert after[name].min() > 0


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "without", "message"),
    [
        ("normed", "node_features", r"bias: a has 5 \(.*\), create the encoder with scale, shift, .* in node_features"),
        ("vit", "block_kinds", "no attention without parameters: create the encoder with attention in block_kinds"),
        ("flattening", "kernel", r"9 values \(3x3\) do not fit this model's kernel 1x1: create .* a larger kernel"),
        ("tied text", "max_io", "up to 16 inputs and outputs, this one has 0 and 23: .* larger max_io"),
        (
            "wild-park",
            "activations",
            "knows the activations sine, a.*has relu: create the encoder with it in activations",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(name: str, without: str, message: str, traced: Any, needed: Any) -> None:
    graph = traced(name, 1)
    arguments = needed([graph])
    del arguments[without]
    if without == "activations":
        arguments["activations"] = ["sine"]
    for kind in ("ng-gnn", "ng-t", "scale-gmn"):
        encoder = create_encoder(kind, width=8, layers=1, **arguments).double()
        for call in (encoder.check_readable, encoder):
            with pytest.raises(UserError, match=message):
                call(graph)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": ["softsign"]}, "activations: unknown 'softsign', choose among none, relu"),
        ({"block_kinds": ["atention"]}, "block_kinds: unknown 'atention', choose among linear, conv"),
        ({"node_features": ["bias", "scale", "bias"]}, "node_features names bias twice"),
        ({"node_features": []}, "must name at least one kind"),
        ({"activations": "relu"}, r"activations is a list of names: write \[relu\]"),
    ],
)
def test_wrong_names_are_refused(arguments: dict[str, Any], message: str) -> None:
    for name in ("ng-gnn", "ng-t", "scale-gmn"):
        with pytest.raises(UserError, match=message):
            create_encoder(name, **arguments)
