"""What `describe_graph` says, and that it can always be written as JSON."""

from __future__ import annotations

import json
import math

import pytest

from neural_graphs.explore import describe_graph
from neural_graphs.graph import NeuralGraph, Stack


def test_a_stack() -> None:
    stack = Stack.mlp((2, 4, 1), "tanh")
    graph = NeuralGraph.from_state_dict(stack.module().state_dict(), stack=stack)
    found = describe_graph(graph)
    json.dumps(found, allow_nan=False)
    assert found["architecture"] == "2-4-1 tanh"
    assert (found["nodes"], found["edges"], found["parameters"]) == (7, 12, stack.num_parameters)
    block = found["blocks"][0]
    weight = graph.edges[0].double()
    assert (block["parameter"], block["kind"], block["shape"]) == ("seq.0.weight", "linear", [4, 2])
    assert block["mean"] == pytest.approx(weight.mean().item())
    assert block["max"] == weight.max().item()
    hidden = found["node_sets"][1]
    assert (hidden["class"], hidden["parameters"]) == ("P0", ["seq.0.bias"])
    assert hidden["features"][0]["min"] == graph.nodes[1].min().item()


def test_residual_network(resnet: NeuralGraph) -> None:
    found = describe_graph(resnet)
    sizes = {name: value.numel() for name, value in resnet.to_state_dict().items()}
    assert found["parameters"] == sum(size for name, size in sizes.items() if "running" not in name)
    plain = [block for block in found["blocks"] if block["kind"] == "identity"]
    assert [(b["parameter"], b["mean"], b["parameters"]) for b in plain] == [(None, None, 0)] * 2
    depthwise = next(block for block in found["blocks"] if block["parameter"] == "mix.weight")
    assert (depthwise["edges"], depthwise["parameters"]) == (80, 720)
    assert [f["kind"] for f in found["node_sets"][1]["features"]] == ["bias", "scale", "running_mean", "running_var"]


def test_transformer_with_shared_weights(transformer: NeuralGraph) -> None:
    found = describe_graph(transformer)
    json.dumps(found, allow_nan=False)
    shared = found["blocks"][-1]
    first = found["blocks"][0]
    assert shared["copy_of"] == 0 and shared["parameter"] == first["parameter"] and shared["parameters"] == 0
    assert (shared["min"], shared["max"]) == (first["min"], first["max"])
    assert found["parameters"] == sum(value.numel() for value in transformer.to_state_dict().values())
    assert found["symmetries"]["over"]["h.1.qk"] == ["h.1.heads"]
    query = next(nodes for nodes in found["node_sets"] if nodes["name"] == "h.0.query")
    assert query["class"] is None and query["classes"] == ["h.0.heads", "h.0.qk"]


def test_weights_that_are_not_finite() -> None:
    graph = NeuralGraph.from_state_dict(Stack.mlp((2, 3, 1), "relu").module().state_dict(), "relu")
    graph.edges[0][0, 0, 0] = math.nan
    graph.edges[1].fill_(math.inf)
    found = describe_graph(graph)
    json.dumps(found, allow_nan=False)
    assert (found["blocks"][0]["nan"], found["blocks"][0]["inf"]) == (1, 0)
    assert math.isfinite(found["blocks"][0]["std"])
    assert (found["blocks"][1]["mean"], found["blocks"][1]["inf"]) == (None, 3)
