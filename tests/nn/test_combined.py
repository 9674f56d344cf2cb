"""Encoders side by side."""

from __future__ import annotations

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.nn import create_encoder
from neural_graphs.testing import random_graph

GNN = {"name": "ng-gnn", "probes": 4, "width": 6, "layers": 2}
PROBING = {"name": "probing", "probes": 5, "width": 7, "layers": 1}


def test_it_is_the_parts_side_by_side(stack: Stack) -> None:
    encoder = create_encoder("combined", parts=[GNN, PROBING]).double().eval()
    graph = random_graph(stack, 3)
    encoder.fit_normalization([graph])
    gnn, probing = encoder.parts
    expected = [gnn(graph, reads="outputs").nodes[0][-1].flatten(1), probing(graph).vector]
    expected = [torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in expected]
    assert encoder.width == 13
    assert torch.allclose(encoder(graph).vector, torch.cat(expected, 1), rtol=0, atol=1e-12)


def test_shared_arguments_reach_the_parts_that_take_them() -> None:
    encoder = create_encoder("combined", parts=[{"name": "ng-gnn"}, PROBING], width=6, layers=2, inputs=3, outputs=2)
    gnn, probing = encoder.parts
    assert (gnn.width, len(gnn.layers), probing.width, probing.inputs, probing.outputs) == (6, 2, 7, 3, 2)
    assert encoder.width == 2 * 6 + 7
    encoder.edge_dtype = torch.bfloat16
    assert gnn.edge_dtype == torch.bfloat16 == encoder.edge_dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": []}, "at least one encoder"),
        ({"parts": [{"name": "gnn"}]}, "unknown encoder 'gnn'"),
        ({"parts": [{"width": 3}]}, "unknown encoder None"),
        ({"parts": [{**GNN, "depth": 3}]}, "no argument 'depth'"),
    ],
)
def test_wrong_parts(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_encoder("combined", **arguments)


def test_wrong_outputs() -> None:
    encoder = create_encoder("combined", parts=[GNN, PROBING]).double()
    with pytest.raises(UserError, match="of 1 outputs, this one has 3"):
        encoder(random_graph(Stack.mlp((2, 4, 3), "relu"), 2))


def test_invariant_only_if_all_parts_are() -> None:
    assert create_encoder("combined", parts=[GNN, PROBING]).invariant
    assert not create_encoder("combined", parts=[GNN, {"name": "mlp"}]).invariant
