"""Heads that edit networks, with several copies and edits: equivariance, the slow twin, strength, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import DeltaHead, Encoder, Encoding, FlatDeltaHead, create_encoder, delta_head, list_encoders
from neural_graphs.nn import _registry as registry
from neural_graphs.nn._embedding import crop_kernel
from neural_graphs.testing import assert_equivariant, random_graph, random_inputs, random_module, random_stack

SIREN = Stack.mlp((2, 5, 4, 1), "sine:30", shift=0.5)
STACKS = {
    "siren": SIREN,
    "mixed": Stack.mlp((2, 5, 4, 3, 2), ["relu", "tanh", "gelu"]),
    "pooled": random_stack(2, "cnn"),
    "flattened": random_stack(4, "cnn"),
    "residual": random_stack(3, "wild-park"),
}
ALL = ("permutation", "scale", "sign", "phase")
OPTIONS: dict[str, Sequence[dict[str, Any]]] = {
    "ng-gnn": [{}, {"reverse_edges": False}, {"probes": 4}, {"probes": 4, "reverse_edges": False}],
    "ng-t": [{"edge_width": 8}, {"probes": 4, "attention": "all"}, {"reverse_edges": False}],
    "scale-gmn": [{"bidirectional": False}, {"bidirectional": True}, {"bidirectional": True, "probes": 4}],
}
READERS = [
    (name, options)
    for name in list_encoders()
    if not registry._ENCODERS[name].vectors
    for options in OPTIONS.get(name, [{}])
]
COPIES_AND_STYLES = list(itertools.product((1, 3), (0, 2)))

every_reader = pytest.mark.parametrize(("name", "options"), READERS, ids=lambda x: x if isinstance(x, str) else str(x))


def reader(name: str, options: dict[str, Any], graphs: Sequence[NeuralGraph], needed: Any, **more: Any) -> Encoder:
    """A small encoder that reads these networks."""
    torch.manual_seed(0)
    arguments = needed(graphs) | {"width": 12, "layers": 2, **options, **more}
    if name == "ng-t":
        arguments |= {"heads": 2, "attention_width": 8, "hidden": 8, "edge_hidden": 8}
    stack = graphs[0].stack
    if arguments.get("probes") and stack is not None:
        arguments["inputs"] = graphs[0].spec.num_inputs
        arguments["probe_shape"] = list(random_inputs(stack).shape[1:]) if stack.layers[0].kernel else []
    encoder = create_encoder(name, **arguments)
    encoder.fit_normalization(graphs)
    return encoder.double().eval()


def head_of(encoder: Encoder, copies: int = 1, styles: int = 0, scale: float = 100.0) -> Any:
    """Its head, with changes ``scale`` times as large as at the start, and edits that differ."""
    torch.manual_seed(2)
    head = delta_head(encoder, copies, styles).double()
    with torch.no_grad():
        for parameter in (*head.weight_scale.values(), *head.bias_scale.values()):
            parameter *= scale
        for module in head.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(std=0.7)
    return head


def of_copy(encoder: Encoder, edit: Any, style: Tensor | None, copy: int, count: int) -> Callable[[GraphBatch], Any]:
    """What ``edit`` makes of the ``count`` networks of a batch in one copy."""
    return lambda batch: edit(encoder(batch), style)[0][copy * count : (copy + 1) * count]


def styles_for(count: int, styles: int) -> Tensor | None:
    return torch.arange(count) % styles if styles else None


# -- equivariance ----------------------------------------------------------------------------------------------------------


@every_reader
@pytest.mark.parametrize(("copies", "styles"), COPIES_AND_STYLES)
def test_edits_move_with_the_neurons(name: str, options: dict[str, Any], copies: int, styles: int, needed: Any) -> None:
    """Each copy's changes and edited networks, biases included; copies and edits differ."""
    which = "mixed" if name == "scale-gmn" else "siren"
    for stack in (SIREN, STACKS[which]):
        graph = random_graph(stack, 3)
        encoder = reader(name, options, [graph], needed)
        head, style = head_of(encoder, copies, styles), styles_for(3, styles)
        kinds = ALL if encoder.rescaled else ("permutation",)
        (changes,), (edited,) = head.deltas(encoder(graph), style), head(encoder(graph), style)
        assert edited.batch_size == changes.batch_size == 3 * copies
        for parameter, value in changes.to_state_dict(True).items():
            each = value.unflatten(0, (copies, 3))
            assert each.abs().amax((0, 1)).min() > 1e-6, f"{parameter} does not change"
            assert copies == 1 or (each[0] - each[1]).abs().max() > 1e-3, f"{parameter} changes alike in all copies"
        for j in range(copies):
            deltas, networks = (of_copy(encoder, edit, style, j, 3) for edit in (head.deltas, head))
            assert assert_equivariant(deltas, graph, samples=1, kinds=kinds) < 1e-10
            assert assert_equivariant(networks, graph, samples=1, kinds=kinds, values="networks") < 1e-10
        if styles:
            other = head.deltas(encoder(graph), 1 - style)[0].to_state_dict(True)
            for parameter, value in changes.to_state_dict(True).items():
                assert (value - other[parameter]).abs().max() > 1e-4, f"{parameter} changes alike in all edits"


@pytest.mark.parametrize("which", STACKS)
@pytest.mark.parametrize(("name", "options"), [READERS[0], READERS[-2]], ids=str)
def test_what_edited_networks_compute_does_not_depend_on_the_order_of_neurons(
    name: str, options: dict[str, Any], which: str, needed: Any
) -> None:
    graph = random_graph(STACKS[which], 2)
    encoder = reader(name, options, [graph], needed)
    head, style, x = head_of(encoder, 3, 2), styles_for(2, 2), random_inputs(STACKS[which])
    kinds = ALL if encoder.rescaled else ("permutation",)
    moved = graph.permute(graph.symmetries.sample(torch.Generator().manual_seed(1), 2, kinds))
    (before,), (after,) = head(encoder(graph), style), head(encoder(moved), style)
    torch.testing.assert_close(after.run(x), before.run(x), rtol=1e-9, atol=1e-11)
    assert (before.run(x)[:2] - graph.run(x)).abs().max() > 1e-4


@pytest.mark.parametrize("which", ["normed", "vit", "causal text"])
@pytest.mark.parametrize(("name", "options"), [READERS[0], ("ng-t", {}), READERS[-2]], ids=str)
def test_traced_modules(name: str, options: dict[str, Any], which: str, traced: Any, needed: Any) -> None:
    """Normalisation, attention and tables; variances stay positive in every copy, at any strength."""
    graph = traced(which)
    encoder = reader(name, options, [graph], needed)
    head, style = head_of(encoder, 2, 2, 300.0), styles_for(3, 2)
    for j in range(2):
        assert assert_equivariant(of_copy(encoder, head, style, j, 3), graph, samples=1, values="networks") < 1e-10
    before = {key: torch.cat([value, value]) for key, value in graph.to_state_dict(True).items()}
    for strength in (0.5, 1.0, 3.0):
        after = head(encoder(graph), style, strength)[0].to_state_dict(True)
        for key, value in before.items():
            assert torch.equal(value, after[key]) != value.is_floating_point(), key
            assert "running_var" not in key or after[key].min() > 0


def test_random_modules(needed: Any) -> None:
    """What encoders read of any modules is edited exactly, or refused in one line."""
    edited = 0
    for seed in range(14):
        module, example = random_module(seed)
        graph = trace(module, example)
        if not graph.symmetries.classes or graph.spec.shares:
            continue
        name, options = READERS[seed % len(READERS)]
        options = {key: value for key, value in options.items() if key != "probes"}
        try:
            encoder = reader(name, options, [graph], needed)
            encoder.check_readable(graph)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        head = head_of(encoder, 2, 2)
        second = of_copy(encoder, head, torch.tensor([1]), 1, 1)
        assert assert_equivariant(second, graph, samples=1, values="networks") < 1e-10
        edited += 1
    assert edited >= 5


# -- the slow twin ---------------------------------------------------------------------------------------------------------


def slow(head: DeltaHead, encoding: Encoding, style: Tensor | None, copy: int, network: int) -> dict[str, Tensor]:
    """The changes of one network of a batch of one architecture in one copy, from everything side by side."""
    graph, spec = encoding.batch.buckets[0], encoding.batch.buckets[0].spec
    assert encoding.nodes is not None and encoding.edges is not None

    def role(depth: int) -> str:
        return {1: "first", spec.depth: "last"}.get(depth, "hidden")

    def form(x: Tensor, ends: set[int]) -> Tensor:
        for node_set in (spec.node_sets[s] for s in ends):
            if node_set.role == "hidden" and node_set.activation.scale:
                x = x / x.square().mean(-1, keepdim=True).sqrt()
            if node_set.role == "hidden" and node_set.activation.sign:
                x = x.abs()
        return x

    def value(module: Any, parts: list[Tensor], ends: set[int]) -> Tensor:
        x = module.first(torch.cat([form(p, ends) if head.rescaled else p for p in parts], -1))
        if style is not None:
            factor, shift = module.style.weight[style[network]].chunk(2)
            x = (1 + factor) * x + shift
        x = module.last(parts[0] * module.gate(x.relu()) if head.rescaled else x.relu())
        return x.chunk(head.copies, -1)[copy]

    edges = []
    for k, block in enumerate(spec.blocks):
        parts = [encoding.edges[0][k][network]]  # type: ignore[index]
        if head.reverse_edges:
            parts.append(encoding.edges[0][k + len(spec.blocks)][network])  # type: ignore[index]
        taps = value(head.edge, parts, {block.source, block.target})
        taps = crop_kernel(taps, block.features, block.kernel, head.kernel)
        edges.append(head.weight_scale[role(spec.node_sets[block.target].depth)] * taps)
    nodes = []
    for s, node_set in enumerate(spec.node_sets):
        found = value(head.node, [encoding.nodes[0][s][network]], {s})  # type: ignore[index]
        nodes.append(head.bias_scale[role(node_set.depth)] * found[:, : node_set.columns])
    single = NeuralGraph(spec, tuple(n[None] for n in nodes), tuple(e[None] for e in edges), graph.stack)
    return single.to_state_dict(False)


@every_reader
@pytest.mark.parametrize(("copies", "styles"), COPIES_AND_STYLES)
@torch.no_grad()
def test_changes_equal_the_slow_twin(name: str, options: dict[str, Any], copies: int, styles: int, needed: Any) -> None:
    for which in ("siren", "flattened"):
        graph = random_graph(STACKS[which], 2)
        encoder = reader(name, options, [graph], needed, kernel=[8, 8])
        head, style, encoding = head_of(encoder, copies, styles), styles_for(2, styles), encoder(graph)
        changes = head.deltas(encoding, style)[0].to_state_dict(True)
        for j, b in itertools.product(range(copies), range(2)):
            for key, right in slow(head, encoding, style, j, b).items():
                torch.testing.assert_close(changes[key][2 * j + b], right, rtol=1e-10, atol=1e-13, msg=key)
        edited, before = head(encoding, style, 0.25)[0].to_state_dict(True), graph.to_state_dict(True)
        for key, change in changes.items():
            right = before[key].repeat(copies, *[1] * (change.dim() - 1)) + 0.25 * change
            torch.testing.assert_close(edited[key], right, rtol=1e-12, atol=1e-14, msg=key)


@every_reader
def test_each_network_of_a_mixture_is_edited_as_if_alone(name: str, options: dict[str, Any], needed: Any) -> None:
    """Styles are given in the batch's order, whatever buckets that makes."""
    networks = [random_graph(stack, 1, seed=k) for k, stack in enumerate([SIREN, Stack.mlp((2, 4, 1)), SIREN, SIREN])]
    encoder = reader(name, options, networks, needed)
    head, style = head_of(encoder, 2, 3), torch.tensor([2, 0, 1, 2])
    first, second = head(encoder(networks), style)
    assert (first.batch_size, second.batch_size) == (6, 2)
    places = [(first, 0, 3), (second, 0, 1), (first, 1, 3), (first, 2, 3)]
    for k, (bucket, place, size) in enumerate(places):
        alone = head(encoder(networks[k]), style[k : k + 1])[0].to_state_dict(True)
        for j in range(2):
            for key, value in bucket[size * j + place].to_state_dict(False).items():
                torch.testing.assert_close(value, alone[key][j], rtol=1e-10, atol=1e-12, msg=key)
    assert head(encoder(GraphBatch.of([])), style[:0]) == ()
    assert head(encoder(networks[0][:0]), style[:0])[0].batch_size == 0


# -- strength --------------------------------------------------------------------------------------------------------------


def same_bits(graph: NeuralGraph, other: NeuralGraph, copies: int) -> bool:
    """Whether ``other`` holds ``copies`` of the networks, signs of zeros included."""
    pairs = zip(graph.to_state_dict(True).values(), other.to_state_dict(True).values(), strict=True)
    return all(torch.equal(torch.cat([a] * copies).view(torch.int64), b.view(torch.int64)) for a, b in pairs)


@pytest.mark.parametrize(("copies", "styles"), COPIES_AND_STYLES)
def test_no_strength_gives_the_same_bits(copies: int, styles: int, needed: Any) -> None:
    graph = random_graph(SIREN, 2).map(lambda t: torch.where(t.abs() < 0.2, -0.0, t))
    assert any(bool((t == 0).any() and t[t == 0].signbit().all()) for t in graph.edges)
    encoder = reader("ng-gnn", {}, [graph], needed)
    flat = create_encoder("mlp", parameters=SIREN.num_parameters, width=8).double().eval()
    for model in (encoder, flat):
        head, style = head_of(model, copies, styles), styles_for(2, styles)
        assert same_bits(graph, head(model(graph), style, 0.0)[0], copies)
        assert not same_bits(graph, head(model(graph), style)[0], copies)
        with torch.no_grad():
            for scale in head.weight_scale.values():
                scale.fill_(torch.nan)  # even a change that is no number is none
        assert same_bits(graph, head(model(graph), style, 0.0)[0], copies)


# -- training and files ----------------------------------------------------------------------------------------------------


@every_reader
def test_gradients_reach_every_parameter(name: str, options: dict[str, Any], needed: Any) -> None:
    graph = random_graph(SIREN, 4)
    encoder = reader(name, options, [graph], needed)
    head = delta_head(encoder, 3, 2).double()
    edited = head(encoder(graph), styles_for(4, 2))[0]
    edited.run(random_inputs(SIREN)).square().sum().backward()
    for key, parameter in (*head.named_parameters(), *encoder.named_parameters()):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@every_reader
@pytest.mark.parametrize(("copies", "styles"), [(1, 0), (3, 2)])
def test_gradients_are_those_of_the_slow_twin(
    name: str, options: dict[str, Any], copies: int, styles: int, needed: Any
) -> None:
    graph = random_graph(SIREN, 2)
    encoder = reader(name, options, [graph], needed)
    head, style = head_of(encoder, copies, styles), styles_for(2, styles)
    found = head.deltas(encoder(graph), style)[0].to_state_dict(True)
    torch.manual_seed(3)
    weights = {key: torch.randn_like(value) for key, value in found.items()}
    sum((weights[key] * value).sum() for key, value in found.items()).backward()  # type: ignore[union-attr]
    parameters = [*head.named_parameters(), *encoder.named_parameters()]
    gradients = {key: p.grad for key, p in parameters}
    for _, p in parameters:
        p.grad = None
    encoding = encoder(graph)
    total = torch.zeros((), dtype=torch.float64)
    for j, b in itertools.product(range(copies), range(2)):
        for key, value in slow(head, encoding, style, j, b).items():
            total = total + (weights[key][2 * j + b] * value).sum()
    total.backward()
    for key, p in parameters:
        torch.testing.assert_close(gradients[key], p.grad, rtol=1e-8, atol=1e-10, msg=key)


def test_several_edits_start_alike_and_one_head_of_one_edit_is_what_it_was() -> None:
    """State dicts of heads without copies and styles load as they did, and hold nothing more."""
    torch.manual_seed(0)
    scales = {f"{kind}_scale.{role}" for kind in ("weight", "bias") for role in ("first", "hidden", "last")}
    plain = {f"{of}.{map_}.{t}" for of in ("edge", "node") for map_ in ("first", "last") for t in ("weight", "bias")}
    assert set(DeltaHead(12, 10).state_dict()) == scales | plain
    gated = {f"{of}.{k}" for of in ("edge", "node") for k in ("first.weight", "first.bias", "gate.weight", "gate.bias")}
    gated |= {"edge.last.weight", "node.last.weight"}
    assert set(DeltaHead(12, 10, rescaled=True).state_dict()) == scales | gated
    graph = random_graph(SIREN, 2)
    encoder = create_encoder("ng-gnn", width=12, layers=2).double()
    single, several = DeltaHead(12, 12).double(), DeltaHead(12, 12, styles=2).double()
    several.load_state_dict(single.state_dict(), strict=False)
    right = single(encoder(graph))[0].to_state_dict(True)
    for key, value in several(encoder(graph), torch.tensor([0, 1]))[0].to_state_dict(True).items():
        torch.testing.assert_close(value, right[key], rtol=1e-12, atol=1e-14)


# -- the baseline ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("copies", "styles"), COPIES_AND_STYLES)
def test_the_baseline_changes_every_parameter_from_one_vector(copies: int, styles: int) -> None:
    graph = random_graph(SIREN, 3)
    torch.manual_seed(0)
    encoder = create_encoder("mlp", parameters=SIREN.num_parameters, width=16, layers=1).double().eval()
    head, style = head_of(encoder, copies, styles), styles_for(3, styles)
    assert isinstance(head, FlatDeltaHead)
    batch = GraphBatch((graph[[2, 0]], graph[[1]]), (torch.tensor([2, 0]), torch.tensor([1])))
    encoding = encoder(batch)
    x = head.map.first(encoding.vector)
    if style is not None:
        factor, shift = head.map.style(style).chunk(2, -1)
        x = (1 + factor) * x + shift
    values = head.map.last(x.relu()).unflatten(1, (copies, -1))
    # Weights in order, then biases, as the encoder reads them; each layer in its own scale.
    names = [f"seq.{k}.weight" for k in range(3)] + [f"seq.{k}.bias" for k in range(3)]
    scales = [s[role] for s in (head.weight_scale, head.bias_scale) for role in ("first", "hidden", "last")]
    shapes, start = SIREN.parameter_shapes(), 0
    edited = GraphBatch(head(encoding, style), batch.index)
    for name, scale in zip(names, scales, strict=True):
        size = torch.Size(shapes[name]).numel()
        right = scale * values[:, :, start : start + size].unflatten(2, shapes[name])
        start += size
        for bucket, index in zip(edited.buckets, batch.index, strict=True):
            found = bucket.to_state_dict(True)[name].unflatten(0, (copies, len(index)))
            own = graph.to_state_dict(True)[name][index]
            torch.testing.assert_close(found, own + right[index].transpose(0, 1), rtol=1e-12, atol=1e-14, msg=name)
    assert start == SIREN.num_parameters
    sum(t.square().sum() for bucket in edited.buckets for t in bucket.to_state_dict(True).values()).backward()  # type: ignore[union-attr]
    for key, parameter in (*head.named_parameters(), *encoder.named_parameters()):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


# -- what is refused -------------------------------------------------------------------------------------------------------


def test_what_is_refused_is_one_line(needed: Any) -> None:
    graph = random_graph(SIREN, 2)
    encoder = reader("ng-gnn", {}, [graph], needed)
    encoding, head, one = encoder(graph), head_of(encoder, 1, 3), head_of(encoder)
    known = "this head knows 3 edits: give style, one of 0 to 2 for each network"
    for style, message in (
        (None, known),
        (torch.tensor([0, 3]), f"{known}, not 0 to 3"),
        (torch.tensor([-1, 2]), f"{known}, not -1 to 2"),
        (torch.tensor([0]), rf"{known}; it is torch.int64 \[1\] for 2 networks"),
        (torch.tensor([0.0, 1.0]), f"{known}; it is torch.float32"),
    ):
        for call in (head, head.deltas):
            with pytest.raises(UserError, match=message):
                call(encoding, style)
    with pytest.raises(UserError, match="knows a single edit: leave out style"):
        one(encoding, torch.tensor([0, 0]))
    with pytest.raises(UserError, match="at least 1 copy and knows 0 styles or more, not 0 and 0"):
        DeltaHead(12, 12, copies=0)
    for name in ("statnn", "combined", "probing"):
        with pytest.raises(UserError, match=r"embeds no edges, .* choose one that does, such as ng-gnn"):
            delta_head(create_encoder(name))
    flat = FlatDeltaHead(8, SIREN.num_parameters).double()
    with pytest.raises(UserError, match="reads one vector per network, and this encoder embeds neurons"):
        flat(encoding)
    other = random_graph(Stack.mlp((2, 3, 1)), 1)
    mlp = create_encoder("mlp", parameters=13, width=8).double()
    with pytest.raises(UserError, match="changes networks of 44 parameters, this one has 13: train one for it"):
        flat(mlp(other))
    with pytest.raises(UserError, match="one vector per network and embeds no neurons"):
        one(mlp(other))
