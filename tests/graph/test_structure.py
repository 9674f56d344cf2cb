"""Layouts, and graphs that are no plain chain: grouped, shared, parameter-free blocks, several node features, buffers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import (
    Axis,
    Block,
    GraphBatch,
    GraphSpec,
    Layout,
    NeuralGraph,
    NodeFeature,
    NodeSet,
    PermutationSpec,
    check_state_dict,
)
from neural_graphs.graph._export import edge_index, flat_features

# -- layouts --------------------------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], Layout]:
    """A tensor's shape and any layout of it: cut axes, axes split into factors, cut factors, any of them anywhere."""
    shape, part, factors = [], [], []
    for dim in range(draw(st.integers(1, 3))):
        inner = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
        kept, before, after = math.prod(inner), 0, 0
        if draw(st.booleans()):
            before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            part.append((dim, before, before + kept))
        shape.append(before + kept + after)
        factors += inner
    pick = []
    for factor, size in enumerate(factors):
        if draw(st.integers(0, 3)) == 0:
            start = draw(st.integers(0, size - 1))
            pick.append((factor, start, draw(st.integers(start + 1, size))))
    order = draw(st.permutations(range(len(factors))))
    first, second = sorted((draw(st.integers(0, len(order))), draw(st.integers(0, len(order)))))
    layout = Layout(tuple(part), tuple(factors), tuple(order[:first]), tuple(order[first:second]), tuple(pick))
    return tuple(shape), layout


def read_slowly(layout: Layout, value: Tensor) -> Tensor:
    """Entry by entry, from what a layout says about itself."""
    for dim, start, stop in layout.part:
        value = value.index_select(dim + 1, torch.arange(start, stop))
    value = value.reshape(len(value), *layout.factors)
    cuts = {factor: (start, stop) for factor, start, stop in layout.pick}
    ranges = [range(*cuts.get(factor, (0, size))) for factor, size in enumerate(layout.factors)]
    out = value.new_zeros(len(value), *layout.sizes)
    groups = (layout.target, layout.source, layout.rest)
    for rows in product(*(product(*(ranges[i] for i in group)) for group in groups)):
        place = dict(zip((i for group in groups for i in group), (x for row in rows for x in row), strict=True))
        position = []
        for group in groups:
            number = 0
            for i in group:
                number = number * len(ranges[i]) + place[i] - ranges[i].start
            position.append(number)
        out[:, *position] = value[:, *[place[i] for i in range(len(layout.factors))]]
    return out


@settings(max_examples=150, deadline=None)
@given(layouts(), st.integers(1, 2))
def test_reading_and_writing_are_inverse(drawn: tuple[tuple[int, ...], Layout], batch: int) -> None:
    shape, layout = drawn
    value = torch.arange(1, 1 + batch * math.prod(shape)).reshape(batch, *shape)
    edges = layout.read(value)
    assert torch.equal(edges, read_slowly(layout, value))
    out = torch.zeros_like(value)
    layout.write(out, edges)
    inside = torch.isin(value, edges.flatten())
    assert inside.sum() == edges.numel()
    assert torch.equal(out, value * inside)
    if not layout.part and not layout.pick:
        assert torch.equal(layout.whole(edges, shape), value)


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_writing_reaches_tensors_that_are_no_plain_memory(drawn: tuple[tuple[int, ...], Layout]) -> None:
    """Also where the tensor written to is a transposed view."""
    shape, layout = drawn
    value = torch.arange(1, 1 + math.prod(shape)).reshape(1, *shape)
    out = torch.zeros(*reversed(value.shape), dtype=value.dtype).permute(*reversed(range(value.dim())))
    edges = layout.read(value)
    layout.write(out, edges)
    assert torch.equal(out, value * torch.isin(value, edges.flatten()))


def test_the_tensor_around_a_part_is_found_in_memory() -> None:
    value = torch.randn(1, 12, 5)
    middle = Layout(((0, 4, 8),), (2, 2, 5), (0, 1), (2,))
    around = middle.surround(middle.read(value), (12, 5))
    assert around is not None and around.data_ptr() == value.data_ptr() and torch.equal(around, value)
    assert middle.surround(middle.read(value).clone(), (12, 5)) is None  # nothing lies before a copy
    assert middle.surround(middle.read(value[:, :8].clone()), (12, 5)) is None  # nor does memory reach so far


# -- networks whose structure is known ------------------------------------------------------------------------------------


def fixed(**shapes: tuple[int, ...]) -> PermutationSpec:
    return PermutationSpec(tuple((name, tuple(map(Axis.fixed, shape))) for name, shape in shapes.items()))


def rows(k: int, n: int, *others: int) -> Layout:
    """Rows ``k n`` to ``k n + n`` of a packed weight (or bias)."""
    return Layout(((0, k * n, k * n + n),), (n, *others), (0,), tuple(range(1, 1 + len(others))))


def attention(d: int = 6) -> GraphSpec:
    """A packed query-key-value projection with its bias."""
    kinds: Any = ("query", "key", "value")
    sets = [NodeSet("in", d, "input", 0)]
    sets += [
        NodeSet(kind, d, "output", 1, features=(NodeFeature("b", "bias", rows(k, d)),)) for k, kind in enumerate(kinds)
    ]
    blocks = [Block(0, k + 1, "w", (3 * d, d), kind=kind, layout=rows(k, d, d)) for k, kind in enumerate(kinds)]
    return GraphSpec(tuple(sets), tuple(blocks), fixed(w=(3 * d, d), b=(3 * d,)))


def gru(i: int = 4, h: int = 5) -> GraphSpec:
    """Three gates packed in each weight and in each bias, every gate a node set with both of its biases."""
    sets = [NodeSet("in", i, "input", 0), NodeSet("state", h, "hidden", 1)]
    blocks = []
    for k, gate in enumerate("rzn"):
        biases = tuple(NodeFeature(name, "bias", rows(k, h)) for name in ("b_ih", "b_hh"))
        sets.append(NodeSet(gate, h, "output", 2, features=biases))
        blocks.append(Block(0, 2 + k, "w_ih", (3 * h, i), kind="recurrent", layout=rows(k, h, i)))
        blocks.append(Block(1, 2 + k, "w_hh", (3 * h, h), kind="recurrent", layout=rows(k, h, h)))
    shapes = fixed(w_ih=(3 * h, i), w_hh=(3 * h, h), b_ih=(3 * h,), b_hh=(3 * h,))
    return GraphSpec(tuple(sets), tuple(blocks), shapes)


def convolutions() -> GraphSpec:
    """A convolution, a transposed one, and one in the reverse order of axes."""
    sets = [NodeSet(name, n, "hidden", k) for k, (name, n) in enumerate([("in", 3), ("a", 4), ("b", 5)])]
    up = Layout((), (4, 5, 6), (1,), (0,))
    blocks = [
        Block(0, 1, "conv", (4, 3, 3, 3), (3, 3), 9, "conv"),
        Block(1, 2, "up", (4, 5, 2, 3), (2, 3), 6, "conv", layout=up),
    ]
    return GraphSpec(tuple(sets), tuple(blocks), fixed(conv=(4, 3, 3, 3), up=(4, 5, 2, 3)))


def residual(vocabulary: int = 7, n: int = 6) -> GraphSpec:
    """Tied embedding, depthwise and grouped convolution, a residual, batch norm with buffers, a norm that is used twice."""
    tokens, channels = Axis.of(None, vocabulary), Axis.of("P", n)

    def norm(prefix: str, shared: bool = False) -> tuple[NodeFeature, ...]:
        kinds = {"weight": "scale", "bias": "bias", "running_mean": "running_mean"}
        return tuple(NodeFeature(f"{prefix}.{name}", kind, shared=shared) for name, kind in kinds.items())

    sets = (
        NodeSet("tokens", vocabulary, "input", 0),
        NodeSet("embedded", n, "hidden", 1, features=norm("bn"), axis=channels),
        NodeSet(
            "depthwise", n, "hidden", 2, features=(NodeFeature("depthwise.bias"), *norm("bn", True)), axis=channels
        ),
        NodeSet("grouped", n, "hidden", 3),
        NodeSet("logits", vocabulary, "output", 4),
    )
    blocks = (
        Block(0, 1, "embedding", (vocabulary, n), kind="embedding", layout=Layout((), (vocabulary, n), (1,), (0,))),
        Block(1, 2, "depthwise.weight", (n, 1, 3, 3), (3, 3), 9, "conv", groups=n),
        Block(2, 3, "grouped.weight", (n, 2, 1, 1), (1, 1), 1, "conv", groups=3),
        Block(1, 2, None, features=0, kind="identity", groups=n),
        Block(3, 4, "head", (vocabulary, n), copy_of=0),
    )
    axes: list[tuple[str, tuple[Axis, ...]]] = [("embedding", (tokens, channels))]
    axes += [(f"bn.{name}", (channels,)) for name in ("weight", "bias", "running_mean")]
    axes += [("bn.num_batches_tracked", ())]
    axes += [("depthwise.weight", (channels, *map(Axis.fixed, (1, 3, 3)))), ("depthwise.bias", (channels,))]
    axes += [("grouped.weight", tuple(map(Axis.fixed, (n, 2, 1, 1)))), ("head", (tokens, channels))]
    rest = (("bn.num_batches_tracked", ()),)
    return GraphSpec(sets, blocks, PermutationSpec(tuple(axes)), rest, (("head", "embedding"),))


def chain(layers: int) -> GraphSpec:
    names = [f"w{k}" for k in range(layers)]
    sets = tuple(NodeSet(f"s{k}", 3, "hidden", k, axis=Axis.of(f"P{k}", 3)) for k in range(layers + 1))
    axes = tuple((name, (sets[k + 1].axis, sets[k].axis)) for k, name in enumerate(names))
    return GraphSpec(sets, tuple(Block(k, k + 1, name, (3, 3)) for k, name in enumerate(names)), PermutationSpec(axes))


SPECS = {"attention": attention(), "gru": gru(), "convolutions": convolutions(), "residual": residual()}


def draw_state(spec: GraphSpec, seed: int = 0) -> dict[str, Tensor]:
    """One network; integers in ``rest``, tied names the same tensor."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}
    state |= {name: torch.tensor(2**24 + 1 + seed) for name, _ in spec.rest}
    return state | {alias: state[name] for alias, name in spec.tied}


def pack(spec: GraphSpec, *states: dict[str, Tensor]) -> NeuralGraph:
    if len(states) == 1:
        return NeuralGraph.pack(spec, {name: value.unsqueeze(0) for name, value in states[0].items()})
    return NeuralGraph.pack(spec, {name: torch.stack([state[name] for state in states]) for name in states[0]})


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> GraphSpec:
    return SPECS[request.param]


def test_round_trip(spec: GraphSpec) -> None:
    states = [draw_state(spec, seed) for seed in range(3)]
    assert_same(pack(spec, states[0]).to_state_dict(), states[0])
    graph = pack(spec, *states)
    assert [tuple(t.shape[1:]) for t in graph.edges] == [spec.edge_shape(k) for k in range(len(spec.blocks))]
    assert [tuple(t.shape[1:]) for t in graph.nodes] == [(s.size, s.columns) for s in spec.node_sets]
    for k in range(3):
        assert_same(graph[k].to_state_dict(), states[k])
    parts = NeuralGraph.cat([graph[torch.tensor([2, 0])], graph[1:2]])
    for k, source in enumerate((2, 0, 1)):
        assert_same(parts[k].to_state_dict(), states[source])
    assert len(GraphBatch.of([graph, graph[0]]).buckets) == 1
    double = graph.to(torch.float64)
    for name, value in double[1].to_state_dict().items():
        assert torch.equal(value, states[1][name].double() if value.is_floating_point() else states[1][name])
        assert value.dtype in (torch.float64, torch.int64)


def test_all_of_it_is_a_view(spec: GraphSpec) -> None:
    """Edges are the network's own memory, also out of packed gates and transposed kernels, and so is what comes back."""
    state = draw_state(spec)
    graph = pack(spec, state)
    back = graph.to_state_dict()
    for block, edges in zip(spec.blocks, graph.edges, strict=True):
        if block.parameter is not None:
            owner = state[block.parameter].untyped_storage()
            assert edges.untyped_storage().data_ptr() == owner.data_ptr(), block.parameter
            edges += 1
            assert torch.equal(back[block.parameter], state[block.parameter])
            assert back[block.parameter].data_ptr() == state[block.parameter].data_ptr(), block.parameter


def test_views_of_packed_biases() -> None:
    state = draw_state(SPECS["attention"])
    graph = pack(SPECS["attention"], state)
    before = state["b"].clone()
    graph.nodes[2].zero_()
    assert torch.equal(state["b"][6:12], torch.zeros(6)) and torch.equal(state["b"][:6], before[:6])
    assert graph.to_state_dict()["b"].data_ptr() == state["b"].data_ptr()


def test_editing_a_block_edits_the_network(spec: GraphSpec) -> None:
    """Replaced edges (no views any more) come back in their place, everything else as it was."""
    state = draw_state(spec)
    graph = pack(spec, state)
    for k, block in enumerate(spec.blocks):
        if block.parameter is None or block.copy_of is not None:
            continue
        edges = list(graph.edges)
        edges[k] = torch.full_like(edges[k], 5.0)
        found = replace(graph, edges=tuple(edges)).to_state_dict()
        names = {block.parameter, *(alias for alias, name in spec.tied if name == block.parameter)}
        for name, value in found.items():
            changed = (value != state[name]).sum()
            assert changed == (edges[k].numel() if name in names else 0), name
        again = pack(spec, found)
        assert torch.equal(again.edges[k], edges[k])


def test_shared_parameters_follow_their_owner() -> None:
    spec = SPECS["residual"]
    graph = pack(spec, *(draw_state(spec, seed) for seed in range(2)))
    noisy = graph.map(lambda t: t + torch.rand(t.shape))
    assert torch.equal(noisy.edges[4][..., 0].transpose(1, 2), noisy.edges[0][..., 0])
    assert torch.equal(noisy.nodes[2][..., 1:], noisy.nodes[1])
    found = noisy.to_state_dict()
    assert found["head"] is found["embedding"]
    assert torch.equal(found["depthwise.bias"], noisy.nodes[2][..., 0])
    assert torch.equal(found["bn.running_mean"], noisy.nodes[1][..., 2])
    again = NeuralGraph.pack(spec, found)
    assert all(torch.equal(a, b) for a, b in zip(again.nodes + again.edges, noisy.nodes + noisy.edges, strict=True))


def test_permuting_moves_tied_and_several_features() -> None:
    spec = SPECS["residual"]
    graph = pack(spec, *(draw_state(spec, seed) for seed in range(2)))
    element = spec.symmetries.sample(3)
    moved = graph.permute(element)
    index = element["P"]
    assert not torch.equal(index, torch.arange(6))
    assert torch.equal(moved.nodes[1], graph.nodes[1][:, index]) and torch.equal(
        moved.nodes[2], graph.nodes[2][:, index]
    )
    assert torch.equal(moved.edges[0], graph.edges[0][:, index])
    assert torch.equal(moved.edges[1], graph.edges[1][:, index])
    assert torch.equal(moved.edges[4], graph.edges[4][:, :, index])
    assert torch.equal(moved.rest[0], graph.rest[0])


def test_what_stands_where_in_grouped_blocks() -> None:
    spec = SPECS["residual"]
    state = draw_state(spec)
    graph = pack(spec, state)
    assert [tuple(t.shape[1:]) for t in graph.edges] == [(6, 7, 1), (6, 1, 9), (6, 2, 1), (6, 1, 0), (7, 6, 1)]
    assert torch.equal(graph.edges[1][0, 4, 0], state["depthwise.weight"][4, 0].flatten())
    assert torch.equal(graph.edges[2][0, 4, 1, 0], state["grouped.weight"][4, 1, 0, 0])
    assert spec.num_edges == 42 + 6 + 12 + 6 + 42 and spec.num_nodes == 32
    assert [s.symmetry for s in spec.node_sets] == [None, "P", "P", None, None]
    assert spec.node_sets[1].parameters == ("bn.weight", "bn.bias", "bn.running_mean")
    assert graph.dtype == torch.float32 and graph.batch_size == 1
    source, target = edge_index(spec)
    starts = {name: sum(s.size for s in spec.node_sets[:k]) for k, name in enumerate(s.name for s in spec.node_sets)}
    grouped = (target >= starts["grouped"]) & (target < starts["logits"])
    pairs = list(
        zip(
            (source[grouped] - starts["depthwise"]).tolist(),
            (target[grouped] - starts["grouped"]).tolist(),
            strict=True,
        )
    )
    assert pairs == [(2 * (o // 2) + j, o) for o in range(6) for j in range(2)]


def test_other_libraries_get_all_edges() -> None:
    spec = SPECS["residual"]
    graph = pack(spec, draw_state(spec))
    found = graph.to_networkx()
    assert isinstance(found, nx.MultiDiGraph) and found.number_of_edges() == spec.num_edges
    start = spec.node_sets[0].size
    both = found.get_edge_data(start + 2, start + 6 + 2)
    assert {edge["kind"] for edge in both.values()} == {"conv", "identity"}
    nodes, edges = flat_features(graph)
    assert nodes.shape == (1, 32, 4) and edges.shape == (1, spec.num_edges, 9)


def test_pyg_gets_the_kinds_of_edges() -> None:
    pytest.importorskip("torch_geometric")
    graph = pack(SPECS["residual"], draw_state(SPECS["residual"]))
    assert graph.to_pyg()[0].edge_type.bincount(minlength=8).tolist()[:8] == [42, 18, 42, 0, 0, 0, 0, 6]


def test_mixed_dtypes_survive() -> None:
    """Norm statistics in float32 beside half-precision weights; two dtypes in one node set."""
    spec = SPECS["residual"]
    state = draw_state(spec)
    half = ("embedding", "head", "bn.weight", "depthwise.weight", "depthwise.bias")
    state = {name: value.bfloat16() if name in half else value for name, value in state.items()}
    state["head"] = state["embedding"]
    graph = pack(spec, state)
    assert graph.edges[0].dtype == torch.bfloat16 and graph.edges[2].dtype == torch.float32
    assert_same(graph.to_state_dict(), state)
    assert_same(graph.map(lambda t: t.clone()).to_state_dict(), state)
    assert_same(NeuralGraph.cat([graph, graph])[1].to_state_dict(), state)
    assert all(
        v.dtype == torch.float64 for v in graph.to(torch.float64).to_state_dict().values() if v.is_floating_point()
    )


def test_gradients_reach_every_part_of_a_packed_weight() -> None:
    spec = SPECS["attention"]
    graph = pack(spec, draw_state(spec))
    edges = tuple(t.clone().requires_grad_() for t in graph.edges)
    weight = replace(graph, edges=edges).to_state_dict()["w"]
    factor = torch.randn(weight.shape)
    grads = torch.autograd.grad((weight * factor).sum(), edges)
    assert torch.equal(torch.cat([g[0, ..., 0] for g in grads]), factor)
    state = {name: value.unsqueeze(0).requires_grad_() for name, value in draw_state(spec).items()}
    back = NeuralGraph.pack(spec, state).to_state_dict()["w"]
    assert torch.equal(torch.autograd.grad((back * factor).sum(), state["w"])[0][0], factor)


def test_function_transforms() -> None:
    spec = SPECS["attention"]
    graph = pack(spec, *(draw_state(spec, seed) for seed in range(3)))

    def total(edges: tuple[Tensor, ...], nodes: tuple[Tensor, ...]) -> Tensor:
        one = replace(graph, edges=tuple(t[None] for t in edges), nodes=tuple(t[None] for t in nodes)).to_state_dict()
        return one["w"].square().sum() + one["b"].sum()

    grads = torch.func.vmap(torch.func.grad(total))(graph.edges, graph.nodes)
    assert all(torch.equal(grad, 2 * edges) for grad, edges in zip(grads, graph.edges, strict=True))


def test_on_the_meta_device(spec: GraphSpec) -> None:
    state = {name: value.to("meta") for name, value in draw_state(spec).items()}
    found = pack(spec, state).to_state_dict()
    assert {name: tuple(value.shape) for name, value in found.items()} == spec.shapes
    assert all(value.is_meta for value in found.values())


def test_a_large_network_is_not_copied() -> None:
    """20M parameters, packed and transposed: all tensors of graph and state dict lie in the memory of the weights."""
    d = 1280
    layer, head = attention(d), Layout((), (d, 8 * d), (1,), (0,))
    sets = (*layer.node_sets, NodeSet("up", 8 * d, "output", 2, features=(NodeFeature("gain"), NodeFeature("shift"))))
    blocks = (*layer.blocks, Block(3, 4, "up", (d, 8 * d), layout=head))
    shapes = {"w": (3 * d, d), "b": (3 * d,), "up": (d, 8 * d), "gain": (8 * d,), "shift": (8 * d,)}
    spec = GraphSpec(sets, blocks, fixed(**shapes))
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    weights = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    assert sum(weights.values()) > 4 * 18e6
    graph = pack(spec, state)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*graph.nodes, *graph.edges)}
    back = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in graph.to_state_dict().values()}
    assert sum(n for pointer, n in (held | back).items() if pointer not in weights) < 0.01 * sum(weights.values())


def test_printing_stays_short() -> None:
    spec = SPECS["attention"]
    assert repr(pack(spec, draw_state(spec))).startswith("NeuralGraph(1 x 6-6-6-6, 24 nodes, 108 edges")
    long = chain(200)
    text = repr(pack(long, draw_state(long)))
    assert len(text) < 160 and "201 node sets, 200 blocks" in text


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grouped.weight": None}, "has no tensor grouped.weight: its tensors are embedding, bn.weight, .*, head$"),
        ({"bn.num_batches_tracked": None}, "has no tensor bn.num_batches_tracked"),
        ({"embedding": None, "head": None}, "has no tensor embedding"),
        ({"extra": torch.zeros(2)}, "extra is no tensor of this network"),
        ({"bn.weight": torch.zeros(5)}, r"bn.weight has shape \(5,\), expected \(6,\)"),
        ({"bn.num_batches_tracked": torch.zeros(2)}, r"bn.num_batches_tracked has shape \(2,\), expected \(\)"),
        ({"bn.weight": [1.0] * 6}, "bn.weight is no tensor but a list"),
        ({"bn.weight": torch.zeros(6, dtype=torch.complex64)}, "bn.weight holds complex64 values"),
        ({"depthwise.weight": torch.zeros(6, 1, 3, 3, dtype=torch.int64)}, "depthwise.weight holds int64 values"),
        ({"head": torch.zeros(7, 6)}, "head and embedding are one tensor in this network, but their values differ"),
        ({"bn.weight": torch.zeros(6).to_sparse()}, "bn.weight is a sparse or quantised tensor"),
    ],
)
def test_one_error_that_names_the_tensor(changes: dict[str, Any], message: str) -> None:
    spec = SPECS["residual"]
    state = draw_state(spec) | changes
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        check_state_dict(spec, state)
    assert "\n" not in str(caught.value)
    stacked = {name: value.unsqueeze(0) if isinstance(value, Tensor) else value for name, value in state.items()}
    with pytest.raises(UserError, match=message):
        NeuralGraph.pack(spec, stacked, strict=True)
    if "extra" in changes:
        assert len(NeuralGraph.pack(spec, stacked)) == 1


def test_errors_about_long_networks_stay_short() -> None:
    with pytest.raises(UserError, match="has no tensor w200: its tensors are w0, w1, .*, w7, and 192 more$"):
        check_state_dict(chain(201), {f"w{k}": torch.zeros(3, 3) for k in range(200)})


def test_what_is_accepted() -> None:
    """Tied tensors under any of their names, dtypes that differ, NaN."""
    spec = SPECS["residual"]
    state = draw_state(spec)
    check_state_dict(spec, state)
    state["embedding"][0, 0] = float("nan")
    check_state_dict(spec, state | {"head": state["embedding"].clone(), "bn.weight": state["bn.weight"].half()})
    for missing in ("head", "embedding"):
        found = pack(spec, {name: value for name, value in state.items() if name != missing}).to_state_dict()
        assert list(found) == list(state) and torch.equal(found[missing][1:], state["head"][1:])


def test_a_scalar_where_a_stack_is_expected() -> None:
    spec = SPECS["residual"]
    stacked = {name: value.unsqueeze(0) for name, value in draw_state(spec).items()}
    with pytest.raises(UserError, match="bn.num_batches_tracked has shape"):
        NeuralGraph.pack(spec, stacked | {"bn.num_batches_tracked": torch.tensor(3)})


GOOD = SPECS["residual"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rest": ()}, "bn.num_batches_tracked stands in 0"),
        ({"tied": ()}, "block 4|copies a block of another tensor"),
        ({"rest": (("bn.num_batches_tracked", (2,)),)}, "in rest"),
        ({"rest": (*GOOD.rest, ("more", ()))}, "more is not among"),
        ({"blocks": (*GOOD.blocks, Block(1, 2, "depthwise.weight", (6, 1, 3, 3), features=9, groups=6))}, "two places"),
        ({"blocks": GOOD.blocks[1:4]}, "embedding stands in 0"),
        ({"blocks": (replace(GOOD.blocks[0], groups=3), *GOOD.blocks[1:])}, "uneven"),
        ({"blocks": (replace(GOOD.blocks[0], shape=(6, 7)), *GOOD.blocks[1:])}, "block 0 has shape"),
        (
            {"blocks": (replace(GOOD.blocks[0], layout=Layout((), (7, 6), (0,), (1,))), *GOOD.blocks[1:])},
            "does not fit edges",
        ),
        (
            {"blocks": (*GOOD.blocks[:3], replace(GOOD.blocks[3], features=1), GOOD.blocks[4])},
            "no parameter but features",
        ),
        ({"node_sets": (replace(GOOD.node_sets[0], size=8), *GOOD.node_sets[1:])}, "its axis differs"),
    ],
)
def test_structures_that_do_not_add_up(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (rows(0, 6, 6), rows(0, 6, 6), "two places that overlap"),
        (rows(0, 6, 6), Layout(((0, 5, 11),), (6, 6), (0,), (1,)), "two places that overlap"),
        (rows(0, 6, 6), Layout(((0, 13, 19),), (6, 6), (0,), (1,)), "does not fit it"),
        (rows(0, 6, 6), rows(1, 6, 6), "of 108 entries of w have a place"),
    ],
)
def test_parts_that_do_not_tile_the_tensor(first: Layout, second: Layout, message: str) -> None:
    spec = attention()
    blocks = (replace(spec.blocks[0], layout=first), replace(spec.blocks[1], layout=second))
    with pytest.raises(ValueError, match=message):
        replace(spec, blocks=blocks)


def test_interleaved_packing_is_told_apart_by_picks() -> None:
    """Query, key and value within each head: ``[heads, 3, d]``."""
    spec = attention()

    def place(k: int) -> Layout:
        return Layout((), (2, 3, 3, 6), (0, 1, 2), (3,), ((1, k, k + 1),))

    blocks = tuple(replace(block, layout=place(k)) for k, block in enumerate(spec.blocks))
    spec = replace(spec, blocks=blocks)
    state = draw_state(spec)
    graph = pack(spec, state)
    assert torch.equal(graph.edges[1][0, :, :, 0], state["w"].view(2, 3, 3, 6)[:, 1].reshape(6, 6))
    assert_same(graph.to_state_dict(), state)
