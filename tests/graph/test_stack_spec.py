"""The graph of a stack, read off its layers, against the tracer's, found by recording the stack's module."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import Activation, GraphSpec, Layer, PermutationSpec, Rescaling, Stack, spec_of_stack
from neural_graphs.graph._trace import trace_module
from neural_graphs.testing import random_graph, random_inputs, random_stack


def conv(number: int, before: int, after: int, kind: str = "relu", residual: int = -1, pool: str = "") -> Layer:
    activation = Activation.parse(kind)
    return Layer(f"c{number}", before, after, (3, 3), 1, True, activation, 1, 1, pool=pool, residual=residual)


STACKS = {
    # c2 is tied to 16 channels of c0, of which c1 cuts off 8 and c3, through c2, 4
    "cut through others": Stack(
        (conv(0, 3, 32), conv(1, 32, 8, residual=0), conv(2, 8, 16, residual=0), conv(3, 16, 4, residual=2, pool="global"),
         Layer("head", 4, 10))
    ),
    "wider and wider": Stack(
        (conv(0, 1, 4), conv(1, 4, 8, residual=0), conv(2, 8, 16, residual=1), Layer("head", 16, 3, (), 64))
    ),
    "mixed units": Stack(
        (conv(0, 3, 4, "none"), conv(1, 4, 4, "tanh"), conv(2, 4, 8, "relu", 0), conv(3, 8, 8, "none", 1, "global"),
         Layer("head", 8, 10))
    ),
    "maximum": Stack(
        (conv(0, 3, 8, "none"), conv(1, 8, 4, "tanh"), conv(2, 4, 4, "none", 1, "max:2"), Layer("head", 4, 3, (), 16))
    ),
    "vectors": Stack(
        (Layer("a", 3, 8, (), 1, False, Activation("relu")), Layer("b", 8, 5, activation=Activation("tanh"), residual=0),
         Layer("c", 5, 7, activation=Activation("none"), residual=1), Layer("d", 7, 3))
    ),
    "into the output": Stack(
        (Layer("a", 3, 8, activation=Activation("relu")), Layer("b", 8, 6, activation=Activation("relu"), residual=0),
         Layer("c", 6, 4, residual=0))
    ),
}  # fmt: skip


def inputs(stack: Stack) -> Tensor:
    return torch.rand(2, stack.layers[0].inputs, *((8, 8) if stack.layers[0].kernel else ()), dtype=torch.float64)


def plain(spec: PermutationSpec) -> list[Any]:
    """The group, with sums of axes that are written differently but mean the same made equal."""
    return [(name, [axis.pieces for axis in axes]) for name, axes in spec.axes]


def agree(own: GraphSpec, traced: GraphSpec) -> None:
    assert [replace(nodes, axis=None) for nodes in own.node_sets] == [  # type: ignore[arg-type]
        replace(nodes, axis=None)  # type: ignore[arg-type]
        for nodes in traced.node_sets
    ]
    assert [nodes.axis.pieces for nodes in own.node_sets] == [nodes.axis.pieces for nodes in traced.node_sets]
    assert own.blocks == traced.blocks
    assert plain(own.symmetries) == plain(traced.symmetries)
    assert own.symmetries.activations == traced.symmetries.activations
    assert own.symmetries.rescalings == traced.symmetries.rescalings
    assert (own.rest, own.tied, own.symmetries.over) == (traced.rest, traced.tied, traced.symmetries.over)


@pytest.mark.parametrize("name", STACKS)
def test_the_graph_is_the_one_that_the_tracer_finds(name: str) -> None:
    stack = STACKS[name]
    agree(spec_of_stack(stack), trace_module(stack.module().double(), inputs(stack)).spec)


@pytest.mark.parametrize("seed", range(14))
def test_graphs_of_wild_park_networks_are_those_that_the_tracer_finds(seed: int) -> None:
    stack = random_stack(seed, "wild-park")
    agree(spec_of_stack(stack), trace_module(stack.module(), torch.rand(2, 3, 8, 8)).spec)


@pytest.mark.parametrize("name", STACKS)
def test_packing_and_symmetries_are_exact(name: str) -> None:
    stack = STACKS[name]
    graph = random_graph(stack, 3)
    state = graph.to_state_dict()
    assert list(state) == list(stack.parameter_shapes())
    again = stack.graph({key: value.clone() for key, value in state.items()}).map(torch.clone).to_state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert graph.check(inputs=inputs(stack), kinds=("permutation", "scale", "sign", "phase")).passed


@pytest.mark.parametrize("seed", range(8))
def test_symmetries_of_wild_park_networks_hold(seed: int) -> None:
    stack = random_stack(seed, "wild-park")
    graph = random_graph(stack, 1)
    for kinds in (("permutation",), ("permutation", "scale", "sign")):
        assert graph.check(inputs=random_inputs(stack, 4), kinds=kinds, samples=1, controls=4).passed


def test_tied_sines_keep_their_signs_and_the_others_their_phases() -> None:
    sine = Activation("sine", 3.0)
    stack = Stack((Layer("a", 2, 6, activation=sine), Layer("b", 6, 4, activation=sine, residual=0), Layer("c", 4, 1)))
    graph = random_graph(stack, 1)
    found: tuple[Rescaling, ...] = graph.symmetries.rescalings
    assert [(r.kind, r.symmetry) for r in found] == [("sign", "P0"), ("phase", "P1"), ("sign", "P1")]
    assert graph.check(inputs=inputs(stack), kinds=("sign", "phase")).passed


def test_node_sets_of_residual_networks() -> None:
    graph = random_graph(STACKS["cut through others"], 1)
    names = {nodes.name: (nodes.size, nodes.symmetry) for nodes in graph.spec.node_sets}
    assert names == {
        "input": (3, None), "c0.0": (4, "P0"), "c0.1": (4, "P1"), "c0.2": (8, "P2"), "c0.3": (16, "P3"), "c1.0": (4, "P0"),
        "c1.1": (4, "P1"), "c2.0": (4, "P0"), "c2.1": (4, "P1"), "c2.2": (8, "P2"), "c3": (4, "P0"), "head": (10, None),
    }  # fmt: skip
    order = list(names)
    joined = [(order[b.source], order[b.target], b.groups) for b in graph.spec.blocks if b.kind == "identity"]
    assert joined == [
        ("c0.0", "c1.0", 4), ("c0.1", "c1.1", 4), ("c0.0", "c2.0", 4), ("c0.1", "c2.1", 4), ("c0.2", "c2.2", 8),
        ("c2.0", "c3", 4),
    ]  # fmt: skip


# -- responses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in STACKS if name != "into the output"])
def test_responses_are_those_of_the_traced_module(name: str) -> None:
    """Means over the positions of a map, node set by node set; a linear layer's before or after its residual is added."""
    stack = STACKS[name]
    module, x = stack.module().double(), inputs(stack)
    graph = stack.graph({key: value.detach()[None] for key, value in module.state_dict().items()})
    right = trace_module(module, x).responses(x)
    for nodes, found, expected in zip(graph.spec.node_sets, graph.responses(x), right, strict=True):
        assert found is not None and expected is not None and found.shape == (1, 2, nodes.size)
        if nodes.activation.kind != "none" or nodes.role != "hidden":
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_values_of_node_sets_are_those_of_the_layers_in_parts() -> None:
    stack = STACKS["cut through others"]
    graph, x = random_graph(stack, 2), inputs(stack)
    layers = iter(stack.activations(graph.to_state_dict(), x))
    found = graph.activations(x)
    assert [value.shape[2] for value in found] == [nodes.size for nodes in graph.spec.node_sets]
    for parts in ([0], [1, 2, 3, 4], [5, 6], [7, 8, 9], [10], [11]):
        assert torch.equal(torch.cat([found[k] for k in parts], 2), next(layers))


def test_graphs_of_stacks_are_made_once() -> None:
    stacks = [random_stack(seed, "wild-park") for seed in range(50)]
    for stack in stacks:
        spec_of_stack(stack)
    again = [Stack.from_json(stack.to_json()) for stack in stacks]
    start = time.process_time()
    assert all(spec_of_stack(stack) is spec_of_stack(other) for stack, other in zip(stacks, again, strict=True))
    assert (time.process_time() - start) / 100 < 1e-3


def test_equal_structures_are_found_as_one_in_other_processes_too() -> None:
    """Hashes are kept, and texts hash differently in every process: what is sent to another must not take its own along."""
    spec = spec_of_stack(STACKS["mixed units"])
    twin = copy.deepcopy(replace(spec))
    assert hash(twin) == hash(spec) and twin == spec and twin in {spec: 1}
    code = (
        "import pickle, sys; spec = pickle.load(sys.stdin.buffer); from dataclasses import replace; "  # trusted: our own
        "assert hash(spec) == hash(replace(spec)) and replace(spec) in {spec: 1}; print(hash(spec))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(spec), env=environment, capture_output=True, check=True
    )
    assert int(found.stdout) != hash(spec)
