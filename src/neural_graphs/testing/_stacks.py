"""Random plain stacks, networks of them, and inputs for these."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from neural_graphs.graph import Layer, NeuralGraph, Stack
from neural_graphs.graph._activation import Activation

Kind = Literal["mlp", "siren", "cnn", "wild-park"]

_HIDDEN = ("relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu")


def random_stack(seed: int = 0, kind: Kind | None = None) -> Stack:
    """A small random architecture: 1 to 4 hidden layers of 2 to 8 neurons, any activations, with or without biases.

    ``kind`` is ``"mlp"``, ``"siren"`` or ``"cnn"`` (1 to 3 convolutions, pooled globally or flattened, then a linear
    layer); None draws one of them. ``"wild-park"`` is a larger CNN with residuals, as in the CNN Wild Park (Kofinas et al.
    2024): 2 to 5 convolutions of 4 to 32 channels. The same seed gives the same stack.
    """
    rng = random.Random(f"{seed}-{kind}")
    kind = kind or rng.choice(("mlp", "siren", "cnn"))
    bias = rng.random() < 0.8
    if kind == "cnn":
        return _random_cnn(rng, bias)
    if kind == "wild-park":
        return _random_wild_park(rng)
    hidden = [rng.randint(2, 8) for _ in range(rng.randint(1, 4))]
    widths = (rng.randint(1, 3), *hidden, rng.randint(1, 4))
    if kind == "siren":
        return Stack.mlp(widths, f"sine:{rng.choice((1, 10, 30))}", shift=0.5, bias=bias)
    return Stack.mlp(widths, [rng.choice(_HIDDEN) for _ in hidden], prefix="layers.{}", bias=bias)


def _random_cnn(rng: random.Random, bias: bool) -> Stack:
    channels = [rng.randint(1, 3)] + [rng.randint(2, 6) for _ in range(rng.randint(1, 3))]
    side = 4 * rng.choice((1, 2))
    layers = []
    flatten = rng.random() < 0.5
    for index, (before, after) in enumerate(pairwise(channels)):
        kernel = rng.choice((1, 3))
        last = index == len(channels) - 2
        pool = "" if last and flatten else "global" if last else rng.choice(("", "max:2")) if side > 2 else ""
        side = side // 2 if pool == "max:2" else side
        activation = Activation.parse(rng.choice(_HIDDEN))
        size = (kernel, kernel)
        layers.append(Layer(f"conv{index}", before, after, size, 1, bias, activation, padding=kernel // 2, pool=pool))
    layers.append(Layer("head", channels[-1], rng.randint(1, 4), (), side * side if flatten else 1, bias))
    return Stack(tuple(layers))


def _random_wild_park(rng: random.Random) -> Stack:
    channels = [3] + [rng.choice((4, 8, 16, 32)) for _ in range(rng.randint(2, 5))]
    layers = []
    for index, (before, after) in enumerate(pairwise(channels)):
        kernel = rng.choice((3, 5, 7))
        activation = Activation.parse(rng.choice(("none", "relu", "gelu", "tanh", "sigmoid", "leaky_relu")))
        layers.append(
            Layer(
                f"conv{index}",
                before,
                after,
                (kernel, kernel),
                activation=activation,
                padding=kernel // 2,
                pool="global" if index == len(channels) - 2 else "",
                residual=rng.choice((-1, *range(index - 1))),
            )
        )
    return Stack((*layers, Layer("head", channels[-1], 10)))


def random_graph(stack: Stack, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> NeuralGraph:
    """``batch`` networks of this architecture with random weights and biases, uniform at the usual initial scale."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for index, layer in enumerate(stack.layers):
        scale = (3 / layer.fan_in) ** 0.5 / (layer.activation.omega if index else 1.0)
        shapes = {layer.weight: layer.weight_shape}
        if layer.bias_name:
            shapes[layer.bias_name] = (layer.outputs,)
        for name, shape in shapes.items():
            value = torch.rand(batch, *shape, generator=generator, dtype=torch.float64) * 2 - 1
            state[name] = (value * scale).to(dtype)
    return NeuralGraph.from_state_dict(state, stack=stack, batched=True)


def random_inputs(stack: Stack, count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Inputs for networks of this architecture, ``[count, d]`` or ``[count, c, h, w]``, uniform in [-1, 1]."""
    shape: tuple[int, ...] = (count, stack.layers[0].inputs)
    if stack.layers[0].kernel:
        positions = max(layer.positions for layer in stack.layers)
        side = round(positions**0.5) if positions > 1 else 4
        for layer in stack.layers:
            side *= 2 if layer.pool == "max:2" else 1
        shape += (side, side)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 - 1
