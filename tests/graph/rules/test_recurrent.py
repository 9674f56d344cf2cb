"""Recurrent layers and cells: given states, both directions, projections, unbatched input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

H = 6


def layer(module: nn.Module, out: int = H, **more: Any) -> dict[str, Any]:
    """A recurrent layer behind a dense one of 5 units and before another."""
    return {"first": nn.Linear(4, 5), "rnn": module, "v": (out, 2), **more}


def run(s: Any, x: Any) -> Any:
    """Three steps of one sequence."""
    x = x[None] if s.rnn.batch_first else x[:, None]
    return s.rnn(s.first(x).relu())[0] @ s.v


def unbatched(s: Any, x: Any) -> Any:
    return s.rnn(s.first(x).relu())[0] @ s.v


def last_state(s: Any, x: Any) -> Any:
    state = s.rnn(s.first(x[None]).relu())[1]
    return (state[0] if isinstance(state, tuple) else state)[-1].relu() @ s.v


def given(s: Any, x: Any) -> Any:
    return s.rnn(s.first(x[:, None]).relu(), s.h[:, None])[0] @ s.v


def given_two(s: Any, x: Any) -> Any:
    out, (h, c) = s.rnn(s.first(x[:, None]).relu(), (s.h[:, None], s.c[:, None]))
    return out[:, 0] @ s.v + h[0] @ s.v + c[0].tanh() @ s.v


def every_state(s: Any, x: Any) -> Any:
    return s.rnn(s.first(x[None]).relu())[1].transpose(0, 1).flatten(1) @ s.v


def cell(s: Any, x: Any) -> Any:
    h = s.h.expand(3, -1)
    for _ in range(2):
        h = s.rnn(s.first(x).relu(), h)
    return h @ s.v


def lstm_cell(s: Any, x: Any) -> Any:
    h, c = s.rnn(s.first(x).relu())
    h, c = s.rnn(s.first(x + 1).relu(), (h, c))
    return h @ s.v + c.relu() @ s.v


CASES: dict[str, tuple[Any, ...]] = {
    "gru": (run, layer(nn.GRU(5, H, batch_first=True)), "S6 × S5"),
    "gru/plain": (run, layer(nn.GRU(5, H, bias=False)), "S6 × S5"),
    "gru/unbatched": (unbatched, layer(nn.GRU(5, H)), "S6 × S5"),
    "gru/layers": (run, layer(nn.GRU(5, H, num_layers=2)), "S6 × S5 × S6"),
    "gru/last-state": (last_state, layer(nn.GRU(5, H, num_layers=2, batch_first=True)), "S6 × S5 × S6"),
    "gru/all-states": (every_state, layer(nn.GRU(5, H, num_layers=2, batch_first=True), 2 * H), "S6 × S6 × S5"),
    "gru/bidirectional": (run, layer(nn.GRU(5, H, bidirectional=True), 2 * H), "S6 × S6 × S5"),
    "gru/given": (given, layer(nn.GRU(5, H), h=(1, H)), "S6 × S5"),
    "gru/given-layers": (given, layer(nn.GRU(5, H, num_layers=2), h=(2, H)), "S6 × S5"),
    "gru/residual": (lambda s, x: s.rnn(s.first(x[None]).relu())[0] + s.first(x) @ s.v,
                     {"first": nn.Linear(4, 5), "rnn": nn.GRU(5, 2), "v": (5, 2)}, "S5"),
    "lstm": (run, layer(nn.LSTM(5, H, batch_first=True)), "S6 × S5"),
    "lstm/given": (given_two, layer(nn.LSTM(5, H), h=(1, H), c=(1, H)), "S6 × S5"),
    "lstm/projected": (run, layer(nn.LSTM(5, H, proj_size=3, num_layers=2), 3), "S3 × S5 × S6 × S3 × S6"),
    "lstm/everything": (
        run,
        layer(nn.LSTM(5, H, proj_size=3, num_layers=2, bidirectional=True, bias=False), H),
        "S3 × S3 × S5 × S6 × S3 × S6 × S3 × S6 × S6",
    ),
    "lstm/last-state": (last_state, layer(nn.LSTM(5, H, batch_first=True)), "S6 × S5"),
    "rnn_tanh": (run, layer(nn.RNN(5, H)), "S6 × S5"),
    "rnn_relu": (run, layer(nn.RNN(5, H, nonlinearity="relu", bidirectional=True), 2 * H), "S6 × S6 × S5"),
    "gru_cell": (cell, layer(nn.GRUCell(5, H), h=(H,)), "S6 × S5"),
    "gru_cell/unbatched": (lambda s, x: s.rnn(s.first(x[0]).relu(), s.h) @ s.v, layer(nn.GRUCell(5, H), h=(H,)), "S6 × S5"),
    "lstm_cell": (lstm_cell, layer(nn.LSTMCell(5, H)), "S6 × S5"),
    "rnn_tanh_cell": (cell, layer(nn.RNNCell(5, H), h=(H,)), "S6 × S5"),
    "rnn_relu_cell": (cell, layer(nn.RNNCell(5, H, nonlinearity="relu", bias=False), h=(H,)), "S6 × S5"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_recurrent(name: str, hold: Callable[..., Any]) -> None:
    function, own, group, *blind = CASES[name]
    hold(name, function, own, group, blind=" ".join(blind))


def test_packed_sequences_freeze(sound: Callable[..., Any]) -> None:
    def packed(s: Any, x: Any) -> Any:
        lengths = torch.tensor([3])
        sequence = nn.utils.rnn.pack_padded_sequence(s.first(x[:, None]), lengths)
        return s.rnn(sequence)[1][0] @ s.v

    found = sound(packed, layer(nn.GRU(5, H)))
    assert "gru" in found.frozen_ops
