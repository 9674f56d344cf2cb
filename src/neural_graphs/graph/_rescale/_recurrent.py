"""Recurrent layers: the sign of a hidden unit of tanh, GRU and LSTM layers, the scale of one with ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._rescale._pass import Pass, Value, rank_of, rule, shape_of
from neural_graphs.graph._rescale._pointwise import still
from neural_graphs.graph._rules import Call, rule_name

GATES = {"gru": "rzn", "lstm": "ifgo", "rnn_tanh": "n", "rnn_relu": "n"}
"""The gates in order. Those named n and g are odd (or, with ReLU, homogeneous) in what they read, others do not scale."""


def _row(value: Value, dim: int, size: int) -> Tensor:
    """The unknowns along one axis of a weight, int64 ``[size]``."""
    return value[dim].reshape(-1).expand(size) if dim in value else torch.zeros(size, dtype=torch.int64)


def _cancel(p: Pass, a: Tensor, b: Tensor) -> None:
    p.zero({0: p.sum([(1, a), (1, b)])})


def _step(p: Pass, kind: str, read: Tensor, weights: list[Node], has_biases: bool) -> tuple[Tensor, Tensor]:
    """Exponents of the hidden units and of the memory cells of one cell that reads entries with exponents ``read``."""
    w_in, w_rec, *rest = weights
    rows, inputs = shape_of(w_in)
    units = rows // len(GATES[kind])
    outputs = shape_of(w_rec)[1]
    _cancel(p, read, _row(p.of(w_in), 1, inputs))
    added = [_row(p.of(n), 0, rows).reshape(-1, units) for n in (w_in, w_rec, *(rest[:2] if has_biases else ()))]
    for gate, parts in zip(GATES[kind], zip(*added, strict=True), strict=True):
        if gate in "ng":
            memory = p.same(*({0: part} for part in parts))[0]
        else:
            for part in parts:
                p.zero({0: part})
    hidden = memory
    if len(rest) > (2 if has_biases else 0):  # a projection behind the cell
        _cancel(p, memory, _row(p.of(rest[-1]), 1, units))
        hidden = _row(p.of(rest[-1]), 0, outputs)
    _cancel(p, hidden, _row(p.of(w_rec), 1, outputs))
    return hidden, memory


def _input(p: Pass, x: Node) -> Tensor | None:
    """The exponents along the last axis of what is read."""
    last = rank_of(x) - 1
    value = p.of(x)
    if p.hot(x, range(last)):
        return None
    return _row(p.level(value, range(last)), last, shape_of(x)[last])


def _follows(p: Pass, kind: str) -> bool:
    return kind == "rnn_relu" if p.scale else kind != "rnn_relu"


@rule(*GATES)
def recurrent(p: Pass, call: Call) -> list[Value]:
    x = call["input"]
    blank: list[Value] = [{} for _ in call.value]
    read = _input(p, x) if _follows(p, call.name) and "batch_sizes" not in call.arguments else None
    if read is None:
        still(p, call)
        return blank
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    params, per_cell = list(call["params"]), len(call["params"]) // shape_of(states[0])[0]
    directions = 2 if call["bidirectional"] else 1
    ends: list[list[Tensor]] = [[] for _ in states]
    for layer in range(int(call["num_layers"])):
        written = []
        for direction in range(directions):
            cell = layer * directions + direction
            own = params[cell * per_cell : (cell + 1) * per_cell]
            hidden, memory = _step(p, call.name, read, own, call["has_biases"])
            for end, found in zip(ends, (hidden, memory), strict=False):
                end.append(found)
            written.append(hidden)
        read = torch.cat(written)
    for state, end in zip(states, ends, strict=True):
        if not _is_zero(state):
            p.zero(p.of(state))
            for row in end:
                p.zero({0: row})
    rank = rank_of(x)
    results = [_at(p, call, 0, read.reshape([1] * (rank - 1) + [-1]))]
    for part, end in enumerate(ends, 1):
        results.append(_at(p, call, part, torch.stack(end).reshape([len(end)] + [1] * (rank - 2) + [-1])))
    return results


def _at(p: Pass, call: Call, part: int, array: Tensor) -> Value:
    last = array.dim() - 1
    if p.dims(call.node, part) in ([last], []):
        return {last: array} if bool(array.any()) else {}
    p.zero({last: array})
    return {}


_FILLS = ("zeros", "zeros_like", "new_zeros", "zero")
_COPIES = ("expand", "reshape", "view", "to", "_to_copy", "clone", "contiguous", "unsqueeze")


def _is_zero(node: Any) -> bool:
    while isinstance(node, Node) and node.op == "call_function":
        name = rule_name(node.target)
        if name in _FILLS:
            return True
        if name in ("full", "full_like", "new_full"):
            return bool(node.args[-1] == 0)
        if name not in _COPIES:
            return False
        node = node.args[0]
    return False


@rule("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(p: Pass, call: Call) -> Value | list[Value]:
    kind = call.name.removesuffix("_cell")
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    biased = call.has("b_ih")
    weights = [call[name] for name in ("w_ih", "w_hh", *(("b_ih", "b_hh") if biased else ()))]
    read = _input(p, call["input"]) if _follows(p, kind) else None
    before = [_input(p, state) for state in states]
    if read is None or any(row is None for row in before):
        still(p, call)
        return {} if isinstance(call.value, Tensor) else [{} for _ in call.value]
    found = []
    for state, start, row in zip(states, before, _step(p, kind, read, weights, biased), strict=False):
        last = rank_of(state) - 1
        if not _is_zero(state) and start is not None:
            p.same({0: start}, {0: row})
        found.append({last: row.reshape([1] * last + [-1])})
    return found[0] if isinstance(call.value, Tensor) else found
