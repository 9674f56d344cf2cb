"""Packing into dense blocks and back, batches of mixed architectures, the same graph for other libraries."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, spec_of_stack
from neural_graphs.graph._export import edge_index, flat_features
from neural_graphs.testing import random_graph, random_stack

CNN = random_stack(3, "cnn")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_round_trip_is_exact(seed: int, dtype: torch.dtype) -> None:
    stack = random_stack(seed)
    graph = random_graph(stack, 3, dtype, seed)
    state = graph.to_state_dict()
    assert {name: tuple(value.shape[1:]) for name, value in state.items()} == stack.parameter_shapes()
    assert list(state) == list(stack.parameter_shapes())
    again = NeuralGraph.pack(graph.spec, state, stack).to_state_dict()
    assert all(torch.equal(again[name], state[name]) and again[name].dtype == dtype for name in state)


def test_linear_weights_are_views() -> None:
    """No copy on the way in or out: the graph reads and writes the network's own memory."""
    module = Stack.mlp((2, 4, 3, 1)).module()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    graph = NeuralGraph.from_state_dict(state, "sine:30")
    back = graph.to_state_dict()
    for name, value in state.items():
        assert back[name].data_ptr() == value.data_ptr(), name
    graph.edges[1][0, 2, 1, 0] = 7.0
    graph.nodes[2][0, 1, 0] = 8.0
    assert module.state_dict()["seq.1.weight"][2, 1] == 7.0
    assert module.state_dict()["seq.1.bias"][1] == 8.0


def test_what_stands_where() -> None:
    stack = Stack.mlp((2, 4, 3))
    graph = random_graph(stack, 2)
    state = graph.to_state_dict()
    assert [tuple(t.shape) for t in graph.nodes] == [(2, 2, 0), (2, 4, 1), (2, 3, 1)]
    assert [tuple(t.shape) for t in graph.edges] == [(2, 4, 2, 1), (2, 3, 4, 1)]
    assert torch.equal(graph.edges[1][1, 2, 3, 0], state["seq.1.weight"][1, 2, 3])
    assert torch.equal(graph.nodes[1][1, 2, 0], state["seq.0.bias"][1, 2])
    assert (graph.spec.num_nodes, graph.spec.num_edges, graph.spec.depth) == (9, 20, 2)
    assert (graph.spec.num_inputs, graph.spec.num_outputs) == (2, 3)
    assert [s.role for s in graph.spec.node_sets] == ["input", "hidden", "output"]
    assert [s.symmetry for s in graph.spec.node_sets] == [None, "P0", None]


def test_convolutions_and_flattened_maps() -> None:
    """A kernel is one edge feature; a linear layer on a flattened map has one feature per position, channel-major."""
    state = {
        "0.weight": torch.randn(4, 3, 3, 3),
        "0.bias": torch.randn(4),
        "2.weight": torch.randn(5, 4 * 6),
        "2.bias": torch.randn(5),
    }
    graph = NeuralGraph.from_state_dict(state, "relu")
    assert [tuple(t.shape) for t in graph.edges] == [(1, 4, 3, 9), (1, 5, 4, 6)]
    assert torch.equal(graph.edges[0][0, 2, 1], state["0.weight"][2, 1].flatten())
    assert torch.equal(graph.edges[1][0, 3, 2], state["2.weight"][3, 12:18])
    back = graph.to_state_dict()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    element = {"P0": torch.tensor([2, 0, 3, 1])}
    moved = graph.permute(element)
    assert torch.equal(moved.edges[1], graph.edges[1][:, :, element["P0"]])
    assert torch.equal(moved.edges[0], graph.edges[0][:, element["P0"]])


@pytest.mark.parametrize("seed", range(8))
def test_permuting_moves_nodes_and_edges(seed: int) -> None:
    graph = random_graph(random_stack(seed), 3)
    element = graph.symmetries.sample(seed, batch=3)
    moved = graph.permute(element)
    for s, nodes in enumerate(graph.spec.node_sets):
        for b in range(3):
            index = element[nodes.symmetry][b] if nodes.symmetry else torch.arange(nodes.size)
            assert torch.equal(moved.nodes[s][b], graph.nodes[s][b, index])
    for k, block in enumerate(graph.spec.blocks):
        for b in range(3):
            rows, columns = (
                element[n.symmetry][b] if n.symmetry else torch.arange(n.size)
                for n in (graph.spec.node_sets[block.target], graph.spec.node_sets[block.source])
            )
            assert torch.equal(moved.edges[k][b], graph.edges[k][b][rows][:, columns])


def test_indexing_and_joining() -> None:
    graph = random_graph(CNN, 4)
    parts = [graph[0], graph[1:3], graph[-1]]
    assert [len(p) for p in parts] == [1, 2, 1]
    joined = NeuralGraph.cat(parts)
    assert all(torch.equal(a, b) for a, b in zip(joined.edges + joined.nodes, graph.edges + graph.nodes, strict=True))
    assert len(graph[torch.tensor([3, 1, 1])]) == 3
    assert graph.to(torch.float32).dtype == torch.float32
    for index in (4, -5):
        with pytest.raises(IndexError):
            graph[index]
    with pytest.raises(UserError, match="one architecture"):
        NeuralGraph.cat([graph, random_graph(Stack.mlp((2, 3, 1)), 1)])


def test_equal_specs_are_shared() -> None:
    assert spec_of_stack(Stack.mlp((2, 3, 1))) is spec_of_stack(Stack.mlp((2, 3, 1)))


# -- refusals -------------------------------------------------------------------------------------------------------------


def state(**changes: Any) -> dict[str, torch.Tensor]:
    plain = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3), "b.weight": torch.zeros(1, 3)}
    return {name.replace("_", "."): value for name, value in {**plain, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "activation", "message"),
    [
        (state(), None, "give activation"),
        (state(), ["relu", "relu"], "1 hidden layers need as many activations, got 2"),
        (state(a_bias=torch.zeros(4)), "relu", "a.bias has shape"),
        (state(b_weight=torch.zeros(1, 4)), "relu", "reads 4 features but a writes 3"),
        (state(b_weight=torch.zeros(1, 3, 1)), "relu", "3 axes"),
        (state(bn_running=torch.zeros(3)), "relu", "belongs to no Linear or Conv layer"),
        ({"x": torch.zeros(3)}, "relu", "no tensor named"),
        ({}, "relu", "no tensor named"),
    ],
)
def test_bare_state_dicts_that_are_no_stack(tensors: Any, activation: Any, message: str) -> None:
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(UserError, match=message):
        NeuralGraph.from_state_dict(tensors, activation)


def test_a_wrong_state_dict_for_a_known_stack() -> None:
    stack = Stack.mlp((2, 3, 1))
    good = random_graph(stack, 1).to_state_dict()
    without = {name: value for name, value in good.items() if name != "seq.1.bias"}
    with pytest.raises(UserError, match=r"no tensor seq.1.bias: its tensors are seq.0.weight"):
        NeuralGraph.from_state_dict(without, stack=stack)
    with pytest.raises(UserError, match=r"seq.0.weight has shape \(3, 5\), expected \(3, 2\)"):
        NeuralGraph.from_state_dict({**good, "seq.0.weight": torch.zeros(3, 5)}, stack=stack)
    uneven = random_graph(stack, 2).to_state_dict()
    uneven["seq.0.bias"] = uneven["seq.0.bias"][:1]
    with pytest.raises(UserError, match="different numbers of networks"):
        NeuralGraph.from_state_dict(uneven, stack=stack, batched=True)
    with pytest.raises(UserError, match="no executable architecture"):
        NeuralGraph.pack(spec_of_stack(stack), {k: v[None] for k, v in good.items()}).run(torch.zeros(1, 2))


# -- batches --------------------------------------------------------------------------------------------------------------


def test_batches_keep_the_given_order() -> None:
    stacks = [Stack.mlp((2, 3, 1)), Stack.mlp((2, 4, 1)), CNN]
    order = [2, 0, 1, 0, 2, 2, 1]
    graphs = [random_graph(stacks[k], 1 + position % 3, seed=position) for position, k in enumerate(order)]
    batch = GraphBatch.of(graphs)
    assert len(batch) == sum(len(g) for g in graphs) and len(batch.buckets) == 3
    sums = batch.restore([bucket.edges[0].flatten(1).sum(1) for bucket in batch.buckets])
    assert torch.equal(sums, torch.cat([g.edges[0].flatten(1).sum(1) for g in graphs]))
    assert GraphBatch.of(batch) is batch
    assert batch.to(torch.float32).buckets[2].dtype == torch.float32
    with pytest.raises(UserError, match="2 tensors for 3 buckets"):
        batch.restore([sums, sums])


def test_one_architecture_with_two_activations_is_two_buckets() -> None:
    graphs = [random_graph(Stack.mlp((2, 3, 1), kind), 1) for kind in ("relu", "tanh", "relu")]
    assert [len(bucket) for bucket in GraphBatch.of(graphs).buckets] == [2, 1]


def test_small_batches() -> None:
    graph = random_graph(CNN, 2)
    assert len(GraphBatch.of([])) == 0
    assert len(GraphBatch.of(graph)) == 2
    assert len(GraphBatch.of([graph[:0]])) == 0
    assert torch.equal(GraphBatch.of([graph]).restore([graph.edges[0]]), graph.edges[0])


# -- other libraries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [Stack.mlp((2, 3, 1)), CNN], ids=["mlp", "cnn"])
def test_networkx_holds_the_same_numbers(stack: Stack) -> None:
    graph = random_graph(stack, 2)
    found = graph.to_networkx(1)
    assert isinstance(found, nx.DiGraph)
    assert (found.number_of_nodes(), found.number_of_edges()) == (graph.spec.num_nodes, graph.spec.num_edges)
    assert nx.is_directed_acyclic_graph(found)
    starts = [0]
    for nodes in graph.spec.node_sets:
        starts.append(starts[-1] + nodes.size)
    for block, edges in zip(graph.spec.blocks, graph.edges, strict=True):
        width = edges.shape[-1]
        for i in range(edges.shape[1]):
            for j in range(edges.shape[2]):
                value = found.edges[starts[block.source] + j, starts[block.target] + i]["features"]
                assert value[:width] == edges[1, i, j].tolist() and not any(value[width:])
    for s, nodes in enumerate(graph.spec.node_sets):
        for i in range(nodes.size):
            node = found.nodes[starts[s] + i]
            assert (node["layer"], node["role"]) == (nodes.name, nodes.role)
            assert node["features"] == (graph.nodes[s][1, i].tolist() or [0.0])


def test_pyg_holds_the_same_numbers() -> None:
    pytest.importorskip("torch_geometric")
    graph = random_graph(CNN, 2)
    nodes, edges = flat_features(graph)
    data = graph.to_pyg()
    assert len(data) == 2
    assert torch.equal(data[1].x, nodes[1]) and torch.equal(data[1].edge_attr, edges[1])
    assert torch.equal(data[0].edge_index, edge_index(graph.spec)) and data[0].num_edges == graph.spec.num_edges
    assert data[0].layer.tolist() == [s.depth for s in graph.spec.node_sets for _ in range(s.size)]


def test_edge_list_runs_the_network() -> None:
    """The exported edge list is enough to compute the network's outputs, node by node."""
    stack = Stack.mlp((2, 4, 3, 1), "tanh")
    graph = random_graph(stack, 1)
    nodes, edges = flat_features(graph)
    source, target = edge_index(graph.spec)
    inputs = torch.tensor([0.3, -0.7], dtype=torch.float64)
    values = torch.zeros(graph.spec.num_nodes, dtype=torch.float64)
    values[:2] = inputs
    for node in range(2, graph.spec.num_nodes):
        into = target == node
        total = (values[source[into]] * edges[0, into, 0]).sum() + nodes[0, node, 0]
        values[node] = total if node == graph.spec.num_nodes - 1 else torch.tanh(total)
    torch.testing.assert_close(values[-1:], graph.run(inputs[None])[0, 0])
