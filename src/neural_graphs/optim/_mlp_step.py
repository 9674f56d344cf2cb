"""Losses and gradients of many perceptrons at once, written out: a few batched products, and nothing recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.graph import Stack

_ops = torch.ops.aten

Backward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(gradient of the values, pre-activations, values) -> gradient of the pre-activations``."""

_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Backward]] = {
    "relu": (torch.relu, lambda g, z, h: _ops.threshold_backward(g, h, 0)),
    "tanh": (torch.tanh, lambda g, z, h: _ops.tanh_backward(g, h)),
    "sigmoid": (torch.sigmoid, lambda g, z, h: _ops.sigmoid_backward(g, h)),
    "gelu": (F.gelu, lambda g, z, h: _ops.gelu_backward(g, z)),
    "silu": (F.silu, lambda g, z, h: _ops.silu_backward(g, z)),
    "leaky_relu": (F.leaky_relu, lambda g, z, h: _ops.leaky_relu_backward(g, z, 0.01, False)),
    "none": (lambda z: z, lambda g, z, h: g),
}


def takes(stack: Stack) -> bool:
    """Whether ``stack`` is a plain perceptron with biases whose non-linearities are known here."""
    hidden = [layer.activation.kind for layer in stack.layers[:-1]]
    plain = all(not layer.kernel and layer.bias and layer.residual < 0 for layer in stack.layers)
    return plain and str(stack.layers[-1].activation) == "none" and not stack.shift and set(hidden) <= set(_ACTIVATIONS)


def losses_and_grads(
    stack: Stack, params: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropies ``[P]`` and their gradients ``{name: [P, *shape]}`` of P perceptrons that ``takes`` takes.

    ``x`` is ``[n, d]`` with ``y`` ``[n]`` for all networks, or ``[P, n, d]`` with ``[P, n]``. Values stand as
    ``[P, neurons, n]``, so that the first layer of all networks is one product and no product needs a copy.
    """
    layers = stack.layers
    last = len(layers) - 1
    shared = x.dim() == 2
    columns = x.transpose(-1, -2)
    h = columns
    read, written = [], []
    for number, layer in enumerate(layers):
        weight, bias = params[layer.weight], params[layer.bias_name or ""]
        read.append(h)
        if number == 0 and shared:
            z = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, weight.shape[2]), h).view(*weight.shape[:2], -1)
        else:
            z = torch.baddbmm(bias.unsqueeze(2), weight, h)
        written.append(z)
        h = z if number == last else _ACTIVATIONS[layer.activation.kind][0](z)
    losses, g = cross_entropy(h, y)
    grads: dict[str, Tensor] = {}
    for number in range(last, -1, -1):
        layer, h = layers[number], read[number]
        if number == 0 and shared:
            grads[layer.weight] = torch.mm(g.view(-1, g.shape[2]), x).view(*g.shape[:2], -1)
        else:
            grads[layer.weight] = torch.bmm(g, h.transpose(1, 2))
        grads[layer.bias_name or ""] = g.sum(2)
        if number:
            g = torch.bmm(params[layer.weight].transpose(1, 2), g)
            g = _ACTIVATIONS[layers[number - 1].activation.kind][1](g, written[number - 1], h)
    return losses, {name: grads[name] for name in params}


def cross_entropy(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``[P]`` of the cross-entropies of ``logits`` ``[P, classes, n]`` with ``y`` (``[n]`` or ``[P, n]``), and the
    gradient of their sum by the logits."""
    classes, n = logits.shape[1:]
    if y.dim() == 1:
        hot = logits.new_zeros(classes, n).scatter_(0, y.unsqueeze(0), -1 / n)
    else:
        hot = torch.zeros_like(logits).scatter_(1, y.unsqueeze(1), -1 / n)
    logs = torch.log_softmax(logits, 1)
    losses = (logs * hot).sum((1, 2)) if hot.dim() == 3 else torch.mv(logs.view(len(logs), -1), hot.view(-1))
    return losses, torch.add(hot, logs.exp_(), alpha=1 / n)


def logits(stack: Stack, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``[P, n, classes]`` of P perceptrons on ``x`` ``[n, d]``."""
    h = x.t()
    for number, layer in enumerate(stack.layers):
        weight, bias = params[layer.weight], params[layer.bias_name or ""]
        if number == 0:
            h = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, weight.shape[2]), h).view(*weight.shape[:2], -1)
        else:
            h = torch.baddbmm(bias.unsqueeze(2), weight, h)
        if number < len(stack.layers) - 1:
            h = _ACTIVATIONS[layer.activation.kind][0](h)
    return h.transpose(1, 2)
