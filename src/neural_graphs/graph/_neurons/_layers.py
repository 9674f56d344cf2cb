"""What layers do to neurons: convolutions, normalisation, embeddings, recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._neurons._labels import Crowd, Label, Value, collapse, moved
from neural_graphs.graph._neurons._moves import concatenated
from neural_graphs.graph._neurons._products import layer_name
from neural_graphs.graph._neurons._reader import Reader, rule, unknown
from neural_graphs.graph._neurons._sites import Site

# -- convolutions -----------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def _conv(reader: Reader, node: Node) -> Value:
    ledger = reader.ledger
    x, w = reader.value(node, "input"), reader.value(node, "weight")
    assert x is not None and w is not None
    transposed = "transpose" in reader.name(node) or bool(reader.arg(node, "transposed", False))
    groups, spatial = int(reader.arg(node, "groups", 1)), len(w.shape) - 2
    channel = len(x.shape) - spatial - 1
    if w.given or not w.parameters:
        return unknown(reader, node)
    x_node: Any = node.args[0]
    ids, loose = ledger.reading(x, [channel], [], x_node.name)
    ledger.event(ids)
    shape = reader.shape(node)
    n = shape[channel]
    site = ledger.site(n, layer_name(reader, w, node), "layer", (node.name, channel))
    inputs = ids.flatten().reshape(groups, -1)
    ones = (1,) * spatial
    if transposed:  # the weight is [inputs, outputs of a group, *kernel]
        source = inputs.reshape(-1, 1, *ones)
        per = site.ids.reshape(groups, 1, -1).expand(groups, inputs.shape[1], -1)
        target = per.reshape(source.shape[0], -1, *ones)
    else:
        target = site.ids.reshape(-1, 1, *ones)
        source = inputs.repeat_interleave(n // groups, 0).reshape(n, -1, *ones)
    ledger.parametric(w, collapse(target), collapse(source), "conv", tuple(w.shape[2:]))
    ledger.join(loose, site.ids)
    kept = [Label(site.ids.reshape([n if d == channel else 1 for d in range(len(shape))]))]
    taken = set(range(channel, len(shape)))
    kept += [label for label in x.labels if label.axes and not label.axes & taken]
    reader.mingle(kept[1:], site.ids)
    return with_channel_bias(reader, Value(shape, tuple(kept)), reader.value(node, "bias"), channel, "bias")


def with_channel_bias(reader: Reader, x: Value, bias: Value | None, channel: int, kind: str) -> Value:
    """A parameter ``[channels]`` that acts along axis ``channel`` of ``x``."""
    if bias is None:
        return x
    rank = len(x.shape)
    shape = tuple(x.shape[channel] if d == channel else 1 for d in range(rank))
    place = moved(bias, lambda t: t.reshape(shape), shape) if bias.labels else bias
    place = Value(shape if bias.labels else bias.shape, place.labels, (), bias.given, parameters=bias.parameters)
    return reader.elementwise([x, place], x.shape, kind)


@rule("prelu")
def _prelu(reader: Reader, node: Node) -> Value:
    x, slope = (reader.env[arg] for arg in node.args[:2])  # type: ignore[index]
    found = with_channel_bias(reader, x, slope, 1 if len(x.shape) > 1 else 0, "slope")
    reader.activate(node, found, Activation("other"))
    return found


# -- normalisation ----------------------------------------------------------------------------------------------------------


def normalised(reader: Reader, node: Node, x: Value, dims: Sequence[int], tensors: dict[str, Value | None]) -> Value:
    """``x`` after a normalisation layer, whose parameters act along ``dims`` and belong to the neurons it normalises."""
    ledger = reader.ledger
    present = {kind: value for kind, value in tensors.items() if value is not None and value.parameters}
    wanted = {d for d in dims if x.shape[d] > 1}
    neurons = [label for label in ledger.neurons(x) if label.axes & wanted or not (wanted or label.axes)]
    fitting = [label for label in neurons if label.axes <= wanted]
    if present and not fitting:
        x_node: Any = node.args[0]
        last = [max(wanted)] if wanted else []
        ids, _ = ledger.reading(x, last, [], x_node.name)
        fitting = [Label(ids)]
        x = Value(x.shape, (*x.labels, *fitting), x.loose, x.given)
    rank = len(x.shape)
    for kind, value in present.items():
        shape = tuple(x.shape[d] if d in dims else 1 for d in range(rank))
        place = moved(value, lambda t, s=shape: t.reshape(s), shape)  # type: ignore[misc]
        alone = Value(shape, place.labels, parameters=value.parameters)
        ledger.feature(alone, fitting, kind)
    for label in fitting:
        ledger.event(label.ids)
    return Value(x.shape, x.labels, x.loose, x.given)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(reader: Reader, node: Node) -> Any:
    x = reader.env[node.args[0]]  # type: ignore[index]
    names = {"scale": "weight", "shift": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    found = normalised(reader, node, x, [1], {kind: reader.value(node, name) for kind, name in names.items()})
    return found if isinstance(node.meta["val"], Tensor) else [found, *(Value(()) for _ in node.meta["val"][1:])]


@rule("group_norm")
def _group_norm(reader: Reader, node: Node) -> Value:
    x = reader.env[node.args[0]]  # type: ignore[index]
    return normalised(
        reader, node, x, [1], {"scale": reader.value(node, "weight"), "shift": reader.value(node, "bias")}
    )


@rule("layer_norm", "rms_norm", "native_layer_norm")
def _layer_norm(reader: Reader, node: Node) -> Any:
    x = reader.env[node.args[0]]  # type: ignore[index]
    shape: Any = reader.arg(node, "normalized_shape")
    dims = list(range(len(x.shape) - len(shape), len(x.shape)))
    tensors = {"scale": reader.value(node, "weight"), "shift": reader.value(node, "bias")}
    found = normalised(reader, node, x, dims, tensors)
    return found if isinstance(node.meta["val"], Tensor) else [found, Value(()), Value(())]


# -- embeddings -------------------------------------------------------------------------------------------------------------


@rule("embedding")
def _embedding(reader: Reader, node: Node) -> Value:
    ledger = reader.ledger
    w, index = (reader.env[arg] for arg in node.args[:2])  # type: ignore[index]
    shape = reader.shape(node)
    name = layer_name(reader, w, node)
    w_node: Any = node.args[0]
    if w.given or not w.parameters:
        return unknown(reader, node)
    own = ledger.own.get((w_node.name, (0,)))
    if own is None:
        kind = "input" if index.given else "tensor"
        own = ledger.site(w.shape[0], f"{name}.tokens" if index.given else f"{name}.positions", kind)
        ledger.own[w_node.name, (0,)] = own
    last = len(shape) - 1
    site = ledger.site(w.shape[1], name, "layer", (node.name, last))
    ledger.parametric(w, site.ids.reshape(1, -1), own.ids.reshape(-1, 1), "embedding" if index.given else "position")
    ledger.join(index.loose, site.ids)
    return Value(shape, (Label(site.ids.reshape(*(1,) * last, -1)),))


# -- recurrence -------------------------------------------------------------------------------------------------------------


@rule("gru", "lstm", "rnn_tanh", "rnn_relu")
def _recurrent(reader: Reader, node: Node) -> Any:
    name = reader.name(node)
    if str(node.target).endswith(".data"):  # packed sequences
        return unknown(reader, node)
    x = reader.env[node.args[0]]  # type: ignore[index]
    params: Any = reader.arg(node, "params")
    layers, both = int(reader.arg(node, "num_layers")), bool(reader.arg(node, "bidirectional"))
    biased, first = bool(reader.arg(node, "has_biases")), bool(reader.arg(node, "batch_first"))
    weights = [reader.env[p] for p in params]
    states: Any = reader.arg(node, "hx")
    loose = tuple(
        crowd
        for state in (states if isinstance(states, (list, tuple)) else [states])
        for crowd in (*reader.env[state].loose, *reader.ledger.crowds(reader.env[state].labels))
    )
    width = 4 if biased else 2
    gates = {"gru": 3, "lstm": 4}.get(name, 1)
    projected = len(weights) == layers * (1 + both) * (width + 1)
    width += projected
    current, source_node = x, str(node.args[0])
    finals: list[Value] = []
    time = 0 if first is False and len(x.shape) == 3 else len(x.shape) - 2
    for layer in range(layers):
        outs = []
        for direction in range(1 + both):
            own = weights[(layer * (1 + both) + direction) * width :][:width]
            last = layer == layers - 1
            outs.append(
                _cell_layer(reader, node, current, own, gates, biased, projected, source_node, last, direction, loose)
            )
            source_node = f"{node.name}.{layer}"
        current = outs[0]
        if both:
            shape = (*outs[0].shape[:-1], 2 * outs[0].shape[-1])
            current = concatenated(reader, outs, shape, len(shape) - 1)
        finals += [moved(out, lambda t: t.narrow(time, 0, 1).squeeze(time).unsqueeze(0), ()) for out in outs]
    results = node.meta["val"]
    out = Value(tuple(results[0].shape), current.labels, current.loose)
    end = tuple(results[1].shape)
    finals = [Value((1, *end[1:]), value.labels, value.loose) for value in finals]
    state = concatenated(reader, finals, end, 0) if len(finals) == 1 else _stacked(finals, end)
    return [
        out,
        *(Value(tuple(r.shape), state.labels if tuple(r.shape) == end else (), state.loose) for r in results[1:]),
    ]


def _stacked(values: list[Value], shape: tuple[int, ...]) -> Value:
    """Final states of several layers: the neurons vary along the first axis too."""
    ids = torch.cat([value.labels[0].ids.expand(1, *(1,) * (len(shape) - 2), shape[-1]) for value in values], 0)
    return Value(shape, (Label(ids),))


def _cell_layer(
    reader: Reader,
    node: Node,
    x: Value,
    weights: Sequence[Value],
    gates: int,
    biased: bool,
    projected: bool,
    source_node: str,
    last: bool,
    direction: int,
    loose: tuple[Crowd, ...],
) -> Value:
    ledger = reader.ledger
    w_in, w_own = weights[:2]
    hidden = w_in.shape[0] // gates
    inputs, rejected = ledger.reading(x, [len(x.shape) - 1], [], source_node)
    ledger.event(inputs)
    name = min(w_in.parameters)
    getitem = next((user for user in node.users if user.args[1] == 0), None)
    plain = last and direction == 0 and getitem is not None and node.meta["val"][0].shape[-1] == hidden
    rank = len(x.shape)
    response = (getitem.name, rank - 1) if plain and getitem is not None and not projected else None
    site = ledger.site(hidden, name.replace("weight_ih_", ""), "layer", response)
    rows = site.ids.repeat(gates).unsqueeze(-1)
    ledger.parametric(w_in, rows, inputs.reshape(1, -1), "linear")
    out: Site = site
    if projected:
        w_out = weights[-1]
        out = ledger.site(w_out.shape[0], min(w_out.parameters).replace("weight_hr_", "projected_"), "layer")
        ledger.parametric(w_out, out.ids.reshape(-1, 1), site.ids.reshape(1, -1), "linear")
    ledger.parametric(w_own, rows, out.ids.reshape(1, -1), "recurrent")
    if biased:
        for bias in weights[2:4]:
            ledger.feature(bias, [Label(rows.flatten())], "bias")
    ledger.join((*rejected, *loose), site.ids)
    ledger.activations.append((site.ids, Activation("relu" if "relu" in reader.name(node) else "tanh"), None))
    shape = (*x.shape[:-1], out.size)
    return Value(shape, (Label(out.ids.reshape(*(1,) * (rank - 1), -1)),))


@rule("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(reader: Reader, node: Node) -> Any:
    return unknown(reader, node)
