"""Plain stacks: ``nn.Sequential`` (nested ones too) of Linear, Conv2d, activations, pooling and Flatten, modules of this
library, and bare state dicts. What is no plain stack is refused in one line, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._stack import Layer, Stack, StackModule


def stack_from_module(module: nn.Module) -> Stack:
    """The ``Stack`` that ``module`` is; raises ``UserError`` when it is not one."""
    if isinstance(module, StackModule):
        return module.stack
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        raise UserError(
            f"{type(module).__name__} is no plain stack: give an nn.Sequential of Linear, Conv2d, activations, pooling and "
            "Flatten, or a Stack's module"
        )
    layers: list[Layer] = []
    flattened = False
    seen: set[int] = set()
    for name, child in _leaves(module):
        if any(id(parameter) in seen for parameter in child.parameters()):
            raise UserError(f"{name} shares its weights with a layer before: that is no plain stack")
        seen.update(map(id, child.parameters()))
        if isinstance(child, (nn.Linear, nn.Conv2d)):
            layers.append(_layer(name, child, layers[-1] if layers else None, flattened))
            flattened = False
            continue
        activation = Activation.of_module(child)
        if activation is not None:
            if activation.kind != "none":
                _set_activation(layers, name, activation)
        elif isinstance(child, nn.Flatten) and (child.start_dim, child.end_dim) == (1, -1):
            flattened = True
        elif isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            _set_pool(layers, name, "global")
        elif isinstance(child, nn.MaxPool2d) and _plain_max_pool(child):
            _set_pool(layers, name, f"max:{child.kernel_size}")
        elif not isinstance(child, nn.Dropout):
            raise UserError(
                f"{name} ({type(child).__name__}) has no place in a plain stack; a sine is known as "
                "neural_graphs.graph.Activation.parse('sine:30').module()"
            )
    if not layers:
        raise UserError("this module has no Linear or Conv2d layer")
    return Stack(tuple(layers))


def _leaves(module: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    found = []
    for name, child in module._modules.items():  # named_children leaves out repetitions
        path = f"{prefix}{name}"
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            found += _leaves(child, f"{path}.")
        else:
            found.append((path, child))
    return found


def _layer(name: str, child: nn.Linear | nn.Conv2d, before: Layer | None, flattened: bool) -> Layer:
    bias = child.bias is not None
    if isinstance(child, nn.Conv2d):
        if child.groups != 1 or child.dilation != (1, 1) or child.padding_mode != "zeros":
            raise UserError(f"{name}: only plain convolutions (no groups, no dilation, zero padding) form a stack")
        padding: tuple[int, ...] | str = child.padding
        if padding == "same" and child.stride == (1, 1) and all(k % 2 for k in child.kernel_size):
            padding = tuple(k // 2 for k in child.kernel_size)
        elif padding == "valid":
            padding = (0, 0)
        if isinstance(padding, str) or len(set(child.stride)) != 1 or len(set(padding)) != 1:
            raise UserError(f"{name}: stride and padding must be the same on both axes")
        kernel = tuple(child.kernel_size)
        return Layer(
            name,
            child.in_channels,
            child.out_channels,
            kernel,
            1,
            bias,
            stride=child.stride[0],
            padding=padding[0],
        )
    positions = 1
    inputs = child.in_features
    if before is not None and before.kernel:
        if before.pool != "global" and not flattened:
            raise UserError(f"{name} reads a feature map that is neither flattened nor pooled")
        if inputs % before.outputs:
            raise UserError(f"{name} reads {inputs} features, no multiple of {before.outputs} channels")
        positions, inputs = inputs // before.outputs, before.outputs
    return Layer(name, inputs, child.out_features, (), positions, bias)


def _set_activation(layers: list[Layer], name: str, activation: Activation) -> None:
    if not layers or layers[-1].activation.kind != "none" or (layers[-1].pool and activation.kind != "none"):
        raise UserError(f"{name}: an activation must follow its Linear or Conv2d layer directly")
    layers[-1] = replace(layers[-1], activation=activation)


def _set_pool(layers: list[Layer], name: str, pool: str) -> None:
    if not layers or not layers[-1].kernel or layers[-1].pool:
        raise UserError(f"{name}: pooling must follow a convolution and its activation")
    layers[-1] = replace(layers[-1], pool=pool)


def _plain_max_pool(child: nn.MaxPool2d) -> bool:
    plain = child.padding == 0 and child.dilation == 1 and not child.ceil_mode
    return plain and isinstance(child.kernel_size, int) and child.stride == child.kernel_size


def stack_from_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    activation: str | Activation | Sequence[str | Activation] | None,
    shift: float = 0.0,
) -> Stack:
    """The plain stack whose state dict has these names and shapes, layers in the order of the names' numbers.

    ``activation`` is that of every hidden layer, or one per hidden layer. Convolutions are taken as stride 1 with "same"
    padding, the last one's map as globally pooled when the next linear layer reads one feature per channel. Raises
    ``UserError`` when the tensors form no chain of layers.
    """
    weights = [name for name in shapes if name.rpartition(".")[2] == "weight"]
    if not weights:
        raise UserError("no tensor named *.weight: this is no state dict of Linear or Conv layers")
    weights.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    if activation is None:
        if len(weights) > 1:
            raise UserError(
                "a bare state dict does not say its non-linearity: give activation, such as 'sine:30' or 'relu'"
            )
        activation = []
    if isinstance(activation, (str, Activation)):
        activation = [activation] * (len(weights) - 1)
    if len(activation) != len(weights) - 1:
        raise UserError(f"{len(weights) - 1} hidden layers need as many activations, got {len(activation)}")
    kinds = [*map(Activation.parse, activation), Activation()]

    layers: list[Layer] = []
    used: set[str] = set()
    for weight, kind in zip(weights, kinds, strict=True):
        shape, name = shapes[weight], weight.rpartition(".")[0]
        if len(shape) not in (2, 4):
            raise UserError(f"{weight} has {len(shape)} axes: plain stacks hold Linear (2) and Conv2d (4) weights only")
        bias = f"{name}.bias"
        used |= {weight, bias}
        if bias in shapes and shapes[bias] != (shape[0],):
            raise UserError(f"{bias} has shape {shapes[bias]}, expected {(shape[0],)}")
        inputs, positions, kernel = shape[1], 1, tuple(shape[2:])
        if layers and layers[-1].kernel and not kernel:
            if inputs % layers[-1].outputs:
                raise UserError(f"{weight} reads {inputs} features, no multiple of {layers[-1].outputs} channels")
            inputs, positions = layers[-1].outputs, inputs // layers[-1].outputs
            if positions == 1:
                layers[-1] = replace(layers[-1], pool="global")
        padding = kernel[0] // 2 if kernel else 0
        layers.append(Layer(name, inputs, shape[0], kernel, positions, bias in shapes, kind, padding=padding))
    if extra := [name for name in shapes if name not in used]:
        raise UserError(f"{extra[0]} belongs to no Linear or Conv layer of a plain stack")
    return Stack(tuple(layers), shift)
