"""Steps with layers: linear, convolutions, normalisation, recurrent ones, gates."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.testing._steps import Draw, Saved, Step, step

Padding = Literal["zeros", "reflect", "circular"]
PADDING: tuple[Padding, ...] = ("zeros", "zeros", "zeros", "circular", "reflect")


def plain(layer: nn.Module) -> Step:
    return Step(lambda own, x, saved: own.layer(x), layer=layer)


def activation(draw: Draw) -> nn.Module:
    return draw.choice((
        *(nn.ReLU(), nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.2), nn.ELU()),
        *(nn.Softplus(), nn.Hardswish(), nn.Mish(), nn.ReLU6(), nn.Softsign(), nn.SELU(), nn.Hardtanh()),
        *(nn.Softshrink(0.1), nn.Hardshrink(0.1), nn.Threshold(0.1, 0.05), nn.LogSigmoid(), nn.CELU(0.5)),
    ))  # fmt: skip


def _channels(x: Tensor) -> int:
    if x.ndim not in (3, 4):
        raise ValueError("no feature map")
    return x.shape[1]


# -- linear and convolutions -------------------------------------------------------------------------------------------


@step("layers")
def linear(draw: Draw, x: Tensor, saved: Saved) -> Step:
    return plain(nn.Linear(x.shape[-1], draw.width(), bias=draw.maybe(0.7)))


@step("layers")
def perceptron(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Two layers, as in every block: the hidden one is free."""
    inputs, hidden = x.shape[-1], draw.width()
    layers = nn.Sequential(nn.Linear(inputs, hidden), activation(draw), nn.Linear(hidden, inputs, bias=draw.maybe()))
    residual = draw.maybe()
    return Step(lambda own, x, saved: x + own.layers(x) if residual else own.layers(x), layers=layers)


@step("layers")
def along_axis(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A linear layer along another axis than the last."""
    dim = draw.dim(x)
    layer = nn.Linear(x.shape[dim], draw.width(), bias=draw.maybe())
    return Step(lambda own, x, saved: own.layer(x.transpose(dim, -1)).transpose(dim, -1), layer=layer)


@step("layers")
def convolution(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Plain or grouped, with stride, dilation and all kinds of padding."""
    inputs = _channels(x)
    kernel, dilation = draw.choice((1, 2, 3)), draw.choice((1, 1, 2))
    groups = draw.divisor(inputs) if draw.maybe(0.4) else 1
    return plain((nn.Conv1d if x.ndim == 3 else nn.Conv2d)(
        inputs, groups * draw.choice((1, 2, 3)) if groups > 1 else draw.width(), kernel, draw.choice((1, 1, 2)),
        padding=dilation * (kernel // 2), dilation=dilation, groups=groups, bias=draw.maybe(0.7),
        padding_mode=draw.choice(PADDING),
    ))  # fmt: skip


@step("layers")
def depthwise(draw: Draw, x: Tensor, saved: Saved) -> Step:
    inputs, many, kernel = _channels(x), draw.choice((1, 1, 2)), draw.choice((1, 3))
    kind = nn.Conv1d if x.ndim == 3 else nn.Conv2d
    layer = kind(inputs, inputs * many, kernel, padding=kernel // 2, groups=inputs, bias=draw.maybe())
    pointwise = kind(inputs * many, draw.width(), 1) if draw.maybe() else nn.Identity()
    return plain(nn.Sequential(layer, activation(draw), pointwise))


@step("layers")
def transposed_convolution(draw: Draw, x: Tensor, saved: Saved) -> Step:
    inputs = _channels(x)
    groups = draw.divisor(inputs) if draw.maybe(0.5) else 1
    outputs = groups * draw.choice((1, 2, 3)) if groups > 1 else draw.width()
    kind = nn.ConvTranspose1d if x.ndim == 3 else nn.ConvTranspose2d
    kernel, stride = draw.choice((1, 2, 3)), draw.choice((1, 2))
    return plain(kind(inputs, outputs, kernel, stride, padding=kernel // 3, groups=groups, bias=draw.maybe()))


@step("layers")
def conv_3d(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim != 4:
        raise ValueError
    layers = nn.Conv3d(1, draw.width(), (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(1, 1, 1)
    hidden = layers[0].out_channels
    last = nn.Conv3d(hidden, 1, 1)
    return Step(
        lambda own, x, saved: own.last(torch.relu(own.first(x.unsqueeze(1)))).squeeze(1), first=layers[0], last=last
    )


@step("layers")
def bilinear(draw: Draw, x: Tensor, saved: Saved) -> Step:
    other = draw.choice([x, *(s for s in saved if s.shape[:-1] == x.shape[:-1])])
    place = next((k for k, s in enumerate(saved) if s is other), None)
    layer = nn.Bilinear(x.shape[-1], other.shape[-1], draw.width())
    return Step(lambda own, x, saved: own.layer(x, x if place is None else saved[place]), layer=layer)


@step("layers")
def one_layer_twice(draw: Draw, x: Tensor, saved: Saved) -> Step:
    layer, act = nn.Linear(x.shape[-1], x.shape[-1]), activation(draw)
    return Step(lambda own, x, saved: own.layer(own.act(own.layer(x))), layer=layer, act=act)


@step("layers")
def tied_autoencoder(draw: Draw, x: Tensor, saved: Saved) -> Step:
    layer, act = nn.Linear(x.shape[-1], draw.width()), activation(draw)
    return Step(
        lambda own, x, saved: F.linear(own.act(own.layer(x)), own.layer.weight.t(), own.bias),
        **{"layer": layer, "act": act, "bias": draw.parameter(x.shape[-1])},
    )


@step("layers")
def parallel(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Two layers beside each other, added, multiplied or joined."""
    width, how = draw.width(), draw.randrange(4)
    layers = [nn.Linear(x.shape[-1], width, bias=draw.maybe()) for _ in range(2)]
    act = activation(draw)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        a, b = own.first(x), own.act(own.second(x))  # type: ignore[operator]
        return (a + b, a * b, torch.cat([a, b], -1), torch.stack([a, b], 1).flatten(1, 2))[how]

    return Step(forward, first=layers[0], second=layers[1], act=act)


# -- normalisation -----------------------------------------------------------------------------------------------------


@step("norms")
def batch_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return plain(kinds[x.ndim](x.shape[1], affine=draw.maybe(0.8), track_running_stats=draw.maybe(0.8)))


@step("norms")
def layer_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    count = draw.choice((1, 1, 2)) if x.ndim > 2 else 1
    return plain(nn.LayerNorm(x.shape[-count:], elementwise_affine=draw.maybe(0.8), bias=draw.maybe(0.8)))


@step("norms")
def rms_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    return plain(nn.RMSNorm(x.shape[-1], elementwise_affine=draw.maybe(0.8), eps=1e-5))


@step("norms")
def group_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x[0].numel() == x.shape[1]:
        raise ValueError
    return plain(nn.GroupNorm(draw.divisor(x.shape[1]), x.shape[1], affine=draw.maybe(0.8)))


@step("norms")
def instance_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}[x.ndim]
    return plain(kind(_channels(x), affine=draw.maybe(0.8), track_running_stats=draw.maybe()))


@step("norms")
def own_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A root-mean-square norm written out, with a gain."""
    dim, gain = draw.dim(x), draw.parameter(x.shape[-1])
    return Step(lambda own, x, saved: x * (x.square().mean(dim, keepdim=True) + 1e-3).rsqrt() * own.gain, gain=gain)


@step("norms")
def unit_vectors(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim = draw.dim(x)
    return Step(lambda own, x, saved: F.normalize(x, dim=dim))


# -- gates -------------------------------------------------------------------------------------------------------------


@step("layers")
def glu(draw: Draw, x: Tensor, saved: Saved) -> Step:
    half, how, act = draw.width(), draw.randrange(4), activation(draw)
    layer = nn.Linear(x.shape[-1], 2 * half, bias=draw.maybe())

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        y = own.layer(x)  # type: ignore[operator]
        if how == 0:
            return F.glu(y, -1)
        if how == 1:
            a, b = y[..., ::2], y[..., 1::2]
        elif how == 2:
            a, b = y.unflatten(-1, (2, half)).unbind(-2)
        else:
            a, b = y.chunk(2, -1)
        return a * own.act(b)  # type: ignore[operator]

    return Step(forward, layer=layer, act=act)


@step("layers")
def squeeze_excite(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim < 3:
        raise ValueError
    width, rest = draw.width(), tuple(range(2, x.ndim))
    gate = nn.Sequential(nn.Linear(x.shape[1], width), activation(draw), nn.Linear(width, x.shape[1]))
    ones = (1,) * len(rest)
    return Step(lambda own, x, saved: x * own.gate(x.mean(rest)).sigmoid().unflatten(-1, (-1, *ones)), gate=gate)


@step("layers")
def film(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Scale and shift from a pooled branch."""
    if x.ndim < 3:
        raise ValueError
    layer = nn.Linear(x.shape[-1], 2 * x.shape[-1])
    hidden = nn.Linear(x.shape[-1], x.shape[-1])

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        pooled = x.mean(list(range(1, x.ndim - 1)), keepdim=True)
        scale, shift = own.layer(torch.tanh(own.hidden(pooled))).chunk(2, -1)  # type: ignore[operator]
        return x * (1 + scale) + shift

    return Step(forward, layer=layer, hidden=hidden)


# -- recurrence --------------------------------------------------------------------------------------------------------


@step("attention")
def recurrent(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim != 3:
        raise ValueError
    kind, first = draw.choice((nn.GRU, nn.LSTM, nn.RNN)), draw.maybe(0.8)
    options = {"num_layers": draw.choice((1, 1, 2)), "bidirectional": draw.maybe(0.3), "bias": draw.maybe(0.8)}
    if kind is nn.LSTM and draw.maybe(0.3):
        options["proj_size"] = 2
    layer = kind(x.shape[-1], draw.choice((3, 4)), batch_first=first, **options)
    end = draw.maybe(0.3)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        outputs, state = own.layer(x)  # type: ignore[operator]
        if not end:
            return outputs
        state = state[0] if isinstance(state, tuple) else state
        return state.transpose(0, 1).flatten(1)

    return Step(forward, layer=layer)


@step("attention")
def cell(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A recurrent cell in a loop, with a start that is learned."""
    if x.ndim != 3:
        raise ValueError
    width = draw.choice((3, 4))
    layer = draw.choice((nn.GRUCell, nn.RNNCell, nn.LSTMCell))(x.shape[-1], width)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        start = own.start.expand(x.shape[0], -1)  # type: ignore[operator]
        state = (start, start) if isinstance(own.layer, nn.LSTMCell) else start
        found = []
        for t in range(x.shape[1]):
            state = own.layer(x[:, t], state)  # type: ignore[operator]
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)

    return Step(forward, layer=layer, start=draw.parameter(width))
