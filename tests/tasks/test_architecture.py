"""What a zoo's architectures say about an encoder's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, NeuralGraph, Stack, trace
from neural_graphs.nn import GraphHead, create_encoder
from neural_graphs.tasks._architecture import encoder_arguments, recognise, structure
from neural_graphs.testing import random_graph


def conv(name: str, inputs: int, outputs: int, kernel: int, activation: str = "relu", **more: Any) -> Layer:
    kind = Activation(activation)
    return Layer(name, inputs, outputs, (kernel, kernel), activation=kind, padding=kernel // 2, **more)


WILD = Stack(
    (
        conv("a", 3, 4, 3),
        conv("b", 4, 5, 5, "tanh"),
        conv("c", 5, 6, 7, "gelu", residual=0, pool="global"),
        Layer("d", 6, 20),
    )
)
FLAT = Stack((conv("a", 3, 4, 3), Layer("b", 4, 6, positions=20, activation=Activation("relu")), Layer("c", 6, 3)))


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(40, 4), nn.Embedding(5, 4)
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x) + self.places(torch.arange(x.shape[1]))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x.mean(1)))


class Traced:
    """An architecture that is no stack."""

    num_outputs, input_shape, activations_used = 20, (5,), ("none",)

    def __init__(self) -> None:
        self.traced = trace(Module().eval(), torch.zeros(1, 5, dtype=torch.int64))
        self.state = {k: v for k, v in Module().state_dict().items() if v.is_floating_point()}
        self.num_parameters = sum(value.numel() for value in self.state.values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.state.items()}

    def graph(self, params: Mapping[str, Tensor]) -> NeuralGraph:
        count = {"norm.num_batches_tracked": torch.zeros(len(next(iter(params.values()))), dtype=torch.int64)}
        return self.traced.like({**params, **count}, batched=True)


def test_convolutions() -> None:
    found = encoder_arguments({"name": "ng-gnn", "activations": "auto"}, [WILD, FLAT], seed=3)
    assert found["kernel"] == [7, 7] and found["max_io"] == 20 and found["inputs"] == 3
    assert found["activations"] == ["relu", "tanh", "gelu"]
    assert "node_features" not in found and "block_kinds" not in found  # the defaults are enough
    encoder = create_encoder(**found)
    for stack in (WILD, FLAT):
        encoder.check_readable(random_graph(stack, 1))
    assert encoder_arguments({"name": "ng-t"}, [FLAT], seed=3)["kernel"] == [4, 5]
    said = {"name": "ng-gnn", "activations": ["relu"], "kernel": [9, 9]}
    assert encoder_arguments(said, [FLAT], seed=3).items() >= said.items()


def test_activations_of_the_parts_of_a_combined_encoder_are_those_of_the_zoo() -> None:
    parts = [{"name": "ng-gnn", "width": 8, "activations": "auto"}, {"name": "probing", "probe_shape": [3, 8, 8]}]
    found = encoder_arguments({"name": "combined", "parts": parts}, [WILD], seed=0)
    alone = encoder_arguments({"name": "ng-gnn", "activations": "auto"}, [WILD], seed=0)
    assert found["parts"][0]["activations"] == alone["activations"] != []
    assert "activations" not in found["parts"][1] and parts[0]["activations"] == "auto"
    create_encoder(**found).check_readable(random_graph(WILD, 1))


@pytest.mark.parametrize("name", ["ng-gnn", "ng-t", "combined"])
def test_what_is_no_stack(name: str) -> None:
    """Tables of any size, attention, normalisation layers: found in the zoo, and then read."""
    other = Traced()
    architectures: list[Any] = [other, WILD]
    config = {"name": name, "activations": "auto", "inputs": 3}
    if name == "combined":
        config["parts"] = [{"name": "ng-gnn"}, {"name": "ng-t"}]
    found = encoder_arguments(config, architectures, seed=0)
    assert found["max_io"] == 20 and found["kernel"] == [7, 7]
    assert found["node_features"][0] == "bias"
    assert set(found["node_features"]) >= {"scale", "shift", "running_mean", "running_var"}
    assert {"attention", "embedding", "position", "query", "key", "value", "identity"} <= set(found["block_kinds"])
    encoder = create_encoder(**found)
    head = GraphHead(encoder.width, 1 if encoder.vectors else 20, 2)
    state = {key: value.expand(2, *value.shape) for key, value in other.state.items()}
    assert head(encoder([other.graph(state), random_graph(WILD, 1, torch.float32)])).shape == (3, 2)


PARTS = [{"name": "ng-gnn", "probes": 3}, {"name": "probing", "probes": 3}]


@pytest.mark.parametrize(
    "config", [{"name": "probing", "probes": 3}, {"name": "ng-gnn", "probes": 3}, {"name": "combined", "parts": PARTS}]
)
def test_probes_are_images_where_networks_read_images(config: dict[str, Any]) -> None:
    """Of the size that some networks fix, if the others read any."""
    last = replace(WILD.layers[-1], outputs=3)
    wild = Stack((*WILD.layers[:-1], last))
    found = encoder_arguments(config, [wild, FLAT], seed=0)
    assert found["probe_shape"] == [3, 4, 5]
    encoder = create_encoder(**found)
    encoder([random_graph(wild, 1, torch.float32), random_graph(FLAT, 2, torch.float32)], reads="outputs")
    assert "probe_shape" not in encoder_arguments(config, [wild], seed=0)


def test_the_baseline_reads_one_architecture() -> None:
    with pytest.raises(UserError, match="encoder mlp reads networks of one architecture, this zoo holds 2"):
        encoder_arguments({"name": "mlp"}, [WILD, FLAT], seed=0)
    assert encoder_arguments({"name": "mlp"}, [WILD], seed=0)["parameters"] == WILD.num_parameters


def test_structures() -> None:
    other: Any = Traced()
    assert structure(other) == other.traced.spec
    assert structure(WILD) == random_graph(WILD, 1).spec


def test_recognise_what_is_no_stack() -> None:
    other: Any = Traced()
    state = Module().state_dict()
    assert recognise(state, [WILD, other]) is other
    assert recognise(WILD.module().state_dict(), [other, WILD]) == WILD
    deeper = Stack.mlp((2, 4, 4, 1), "tanh")
    assert recognise(deeper.module().state_dict(), [other, Stack.mlp((2, 4, 1), "tanh")]) == deeper
    with pytest.raises(UserError, match="none that this model was trained on"):
        recognise(deeper.module().state_dict(), [other])
