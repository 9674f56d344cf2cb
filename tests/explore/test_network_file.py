"""Network files that state their architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs.errors import RunError, UserError
from neural_graphs.explore import load_network, save_network
from neural_graphs.explore._network_file import ARCHITECTURE
from neural_graphs.graph import Stack

STACK = Stack.mlp((2, 4, 3, 1), ["sine:7", "relu"], shift=0.5)


def test_round_trip(tmp_path: Path) -> None:
    state = STACK.module().state_dict()
    save_network(tmp_path / "n.safetensors", state, STACK)
    graph = load_network(tmp_path / "n.safetensors")
    assert graph.stack == STACK
    for name, value in graph.to_state_dict().items():
        assert torch.equal(value, state[name])
    assert load_file(tmp_path / "n.safetensors").keys() == state.keys()


def test_stated_architecture_can_be_overruled(tmp_path: Path) -> None:
    save_network(tmp_path / "n.safetensors", STACK.module().state_dict(), STACK)
    graph = load_network(tmp_path / "n.safetensors", "tanh", shift=2.0)
    assert graph.stack == Stack.mlp((2, 4, 3, 1), "tanh", shift=2.0)


@pytest.mark.parametrize("stated", ["{", "[]", '{"kind": "stack"}', '{"kind": "other"}'])
def test_broken_statement(stated: str, tmp_path: Path) -> None:
    save_file(STACK.module().state_dict(), tmp_path / "n.safetensors", {ARCHITECTURE: stated})
    with pytest.raises(UserError, match="n.safetensors"):
        load_network(tmp_path / "n.safetensors")
    assert load_network(tmp_path / "n.safetensors", "relu").batch_size == 1


def test_statement_that_does_not_fit_the_tensors(tmp_path: Path) -> None:
    save_network(tmp_path / "n.safetensors", Stack.mlp((2, 9, 1)).module().state_dict(), STACK)
    with pytest.raises(UserError, match="shape"):
        load_network(tmp_path / "n.safetensors")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        save_network(tmp_path / "file" / "n.safetensors", STACK.module().state_dict(), STACK)
