"""One network that computes the mean of several."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._stack import Layer, Stack


def average_networks(graph: NeuralGraph, copies: int) -> NeuralGraph:
    """``B`` networks that compute the mean of the outputs of ``copies`` networks each, exactly (output ensembles, OCE, arXiv
    2602.01083).

    ``graph`` holds ``copies * B`` networks of one plain stack, copy j of network b as number ``j * B + b``. Hidden layers
    stand side by side, ``copies`` times as wide, with zeros between copies; the last layer reads all copies and divides by
    their number. Where outputs have an activation, one layer more takes their mean. The result has an architecture of its
    own (``stack``) with the names of the given one, and gradients pass through. A single copy is returned as it is.

    Raises:
        UserError: the number of networks is no multiple of ``copies``; several copies of a network with residuals, or of one
            that is no plain stack.
    """
    if copies == 1:
        return graph
    stack = graph.stack
    if copies < 1 or graph.batch_size % copies:
        raise UserError(
            f"{graph.batch_size} networks are not {copies} copies of each: give all copies of every network"
        )
    if stack is None or any(layer.residual >= 0 for layer in stack.layers):
        raise UserError(
            "only plain stacks of linear and convolutional layers without residuals are merged into one network: edit this "
            "one with copies=1"
        )
    merged = _merged(stack, copies)
    state = {name: t.unflatten(0, (copies, -1)) for name, t in graph.to_state_dict(batched=True).items()}
    found: dict[str, Tensor] = {}
    for layer, wide in zip(stack.layers, merged.layers, strict=False):
        weight = state[layer.weight]
        bias = state[layer.bias_name] if layer.bias_name else None
        first, last = layer is stack.layers[0], wide is merged.layers[-1]
        if last:
            found[wide.weight] = weight.mean(0) if first else weight.movedim(0, 2).flatten(2, 3) / copies
        else:
            found[wide.weight] = weight.transpose(0, 1).flatten(1, 2) if first else _block_diagonal(weight)
        if bias is not None and wide.bias_name:
            found[wide.bias_name] = bias.mean(0) if last else bias.transpose(0, 1).flatten(1)
    if len(merged.layers) > len(stack.layers):
        mean, like = merged.layers[-1], state[stack.layers[-1].weight]
        each = torch.eye(mean.outputs, dtype=like.dtype, device=like.device).repeat(1, copies) / copies
        found[mean.weight] = each.view(mean.weight_shape).repeat(like.shape[1], *[1] * len(mean.weight_shape))
    return merged.graph(found)


def _merged(stack: Stack, copies: int) -> Stack:
    """The architecture of the mean of ``copies`` networks."""
    before, last = stack.layers[:-1], stack.layers[-1]
    layers = [replace(layer, outputs=copies * layer.outputs) for layer in before]
    if last.activation.kind == "none":
        layers.append(last)
    else:
        kernel = (1,) * len(last.kernel)
        names = {layer.name for layer in stack.layers}
        name = next(name for name in ("mean", *(f"mean{k}" for k in range(len(names)))) if name not in names)
        layers += [
            replace(last, outputs=copies * last.outputs),
            Layer(name, copies * last.outputs, last.outputs, kernel, bias=False, activation=Activation()),
        ]
    for k in range(1, len(layers)):
        layers[k] = replace(layers[k], inputs=layers[k - 1].outputs)
    return Stack(tuple(layers), stack.shift)


def _block_diagonal(weight: Tensor) -> Tensor:
    """``[copies, B, n_out, n_in, ...]`` -> ``[B, copies * n_out, copies * n_in, ...]`` with zeros between copies."""
    copies, batch, rows, columns, *rest = weight.shape
    out = weight.new_zeros(batch, copies, rows, copies, columns, *rest)
    out.diagonal(dim1=1, dim2=3).copy_(weight.movedim(0, -1))
    return out.flatten(3, 4).flatten(1, 2)
