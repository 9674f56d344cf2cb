"""GRU, LSTM and plain recurrent layers: per layer and direction one class of hidden units, shared by all gates."""

from __future__ import annotations

from neural_graphs.graph._axes import mix, narrow
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule
from neural_graphs.graph._space import freeze, unify
from neural_graphs.graph._var import Space, Var, cases, fixed, space_size

GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(call: Call) -> list[Axes]:
    if "batch_sizes" in call.arguments or "hx" not in call.arguments:
        raise Unsupported  # packed sequences
    if call["train"] and call["dropout"]:
        raise Unsupported  # chance tells positions apart
    gates, layers = GATES[call.name], call.integer("num_layers")
    directions = 2 if call["bidirectional"] else 1
    x = call.axes("input")
    batched = len(x) == 3
    time = (1 if call["batch_first"] else 0) if batched else 0
    freeze([x[time]])
    states = [call.axes(n) for n in (call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]])]
    params = [call.axes(n) for n in call["params"]]
    projected = call.name == "lstm" and len(states) == 2 and states[0][-1] != states[1][-1] and _sizes_differ(states)
    per_cell = (4 if call["has_biases"] else 2) + int(projected)
    read: Space = x[-1]
    ends: list[list[Space]] = [[] for _ in states]
    for layer in range(layers):
        written: list[Space] = []
        for direction in range(directions):
            cell = layer * directions + direction
            own = params[cell * per_cell : (cell + 1) * per_cell]
            w_in, w_rec = own[0], own[1]
            for weight in (w_in, w_rec, *own[per_cell - int(projected) :]):
                mix(weight, [0])  # a sum over the inputs, which are the same for all gates
            out = w_rec[1]
            hidden: Space = own[-1][1] if projected else out
            unify(read, w_in[1])
            for axes in own[: per_cell - int(projected)]:
                unify(axes[0], hidden * gates)
            if projected:
                unify(own[-1][0], out)
            for k, state in enumerate(states):
                mine = hidden if projected and k == 1 else out
                unify(narrow(state, 0, cell, cell + 1)[-1], mine)
                ends[k].append(mine)
            written.append(out)
        read = tuple(segment for space in written for segment in space)
    outputs: list[Axes] = [[*x[:-1], read]]
    for k, state in enumerate(states):
        count = layers * directions
        if count == 1:
            outputs.append([*state[:-1], ends[k][0]])
            continue
        pivot = Var(count)
        pivot.kind, pivot.parts = "sum", ((),) * count
        outputs.append([((pivot,),), *state[1:-1], cases(pivot, ends[k])])
    if batched:
        for axes in outputs[1:]:
            unify(axes[1], x[1 - time])
    outputs[0][time] = fixed(space_size(x[time]))
    return outputs


def _sizes_differ(states: list[Axes]) -> bool:
    return space_size(states[0][-1]) != space_size(states[1][-1])


@rule("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Axes | list[Axes]:
    x = call.axes("input")
    states = [call.axes(n) for n in (call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]])]
    gates = GATES[call.name.removesuffix("_cell")]
    w_in, w_rec = call.axes("w_ih"), call.axes("w_hh")
    for weight in (w_in, w_rec):
        mix(weight, [0])  # a sum over the inputs, which are the same for all gates
    hidden = w_rec[1]
    unify(x[-1], w_in[1])
    for axes in (w_in, w_rec, *(call.axes(name) for name in ("b_ih", "b_hh") if call.has(name))):
        unify(axes[0], hidden * gates)
    for state in states:
        unify(state[-1], hidden)
        for a, b in zip(state[:-1], x[:-1], strict=True):
            unify(a, b)
    found = [[*x[:-1], hidden] for _ in states]
    return found if call.name == "lstm_cell" else found[0]
