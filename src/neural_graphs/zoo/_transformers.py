"""Small vision transformers: the module, many of them at once, and how the runs of a zoo are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import ModuleArchitecture, register_architecture
from neural_graphs.graph._architecture import Drop
from neural_graphs.zoo._bulk import Hyper, Run, deviation, log_uniform

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@register_architecture("vit")
class VisionTransformer(nn.Module):
    """A pre-norm vision transformer (Dosovitskiy et al. 2021) with a class token and learned positions.

    Images ``[K, channels, height, width]`` are cut into patches of ``patch`` x ``patch``; ``blocks`` blocks of attention
    with ``heads`` heads and a perceptron of ``hidden`` neurons follow; the class token gives ``classes`` logits.
    """

    def __init__(
        self,
        channels: int = 1,
        height: int = 28,
        width: int = 28,
        classes: int = 10,
        *,
        patch: int = 7,
        features: int = 32,
        heads: int = 2,
        blocks: int = 2,
        hidden: int = 64,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if height % patch or width % patch:
            raise UserError(f"vit: images of {height}x{width} cannot be cut into patches of {patch}x{patch}")
        if features % heads:
            raise UserError(f"vit: {features} features cannot be shared out to {heads} heads")
        if activation not in ACTIVATIONS:
            raise UserError(f"vit: unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.input_shape = (channels, height, width)
        self.heads, self.activation = heads, activation
        tokens = (height // patch) * (width // patch) + 1
        self.class_token = nn.Parameter(torch.randn(1, 1, features) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, features) * 0.02)
        self.patches = nn.Conv2d(channels, features, patch, patch)
        self.blocks = nn.ModuleList(_Block(features, heads, hidden, activation) for _ in range(blocks))
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.class_token.expand(len(h), -1, -1), h], 1) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])

    def forward_many(self, params: Mapping[str, Tensor], x: Tensor, drop: Drop | None = None) -> Tensor:
        """``vit_forward`` of networks like this one."""
        return vit_forward(params, x, heads=self.heads, activation=self.activation, drop=drop)


class _Block(nn.Module):
    def __init__(self, features: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)
        self.norm2 = nn.LayerNorm(features)
        self.up = nn.Linear(features, hidden)
        self.down = nn.Linear(hidden, features)

    def forward(self, h: Tensor) -> Tensor:
        samples, tokens, features = h.shape
        qkv = self.qkv(self.norm1(h)).view(samples, tokens, 3, self.heads, features // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(samples, tokens, features)
        h = h + self.out(attended)
        return h + self.down(self.activation(self.up(self.norm2(h))))


# -- many at once ----------------------------------------------------------------------------------------------------------


def vit_forward(
    params: Mapping[str, Tensor],
    x: Tensor,
    *,
    heads: int,
    activation: str,
    drop: Drop | None = None,
) -> Tensor:
    """Logits ``[B, K, classes]`` of B ``VisionTransformer``s from stacked parameters, on images ``[K, c, h, w]`` for all.

    What a layer norm multiplies and adds is moved into the linear layer behind it, and the last block computes the class
    token alone, because nothing else is read from it. ``drop`` is called behind a block's perceptron's activation and on
    what the block adds to its input.
    """
    act = ACTIVATIONS[activation]
    blocks = 1 + max(int(name.split(".")[1]) for name in params if name.startswith("blocks."))
    h = _tokens(params, x)
    networks, samples, tokens, features = h.shape
    h = h.flatten(1, 2)
    for block in range(blocks):
        own = {name: params[f"blocks.{block}.{name}"] for name in _BLOCK}
        weight, bias = _behind_norm(own, "norm1", "qkv")
        z = F.layer_norm(h, (features,))
        if block == blocks - 1:
            z_first = z.view(networks, samples, tokens, features)[:, :, 0]
            q = _heads(_linear(z_first, weight[:, :features], bias[:, :features]), samples, 1, heads)[0]
            k, v = _heads(_linear(z, weight[:, features:], bias[:, features:]), samples, 2, heads)
            h = h.view(networks, samples, tokens, features)[:, :, 0]
        else:
            q, k, v = _heads(_linear(z, weight, bias), samples, 3, heads)
        # Fused attention is no faster for so few tokens, and cannot be fused with what stands around it.
        mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        attended = mixed.transpose(1, 2).reshape(h.shape)
        h = h + _dropped(drop, 3 * block + 1, _linear(attended, own["out.weight"], own["out.bias"]))
        z = act(_linear(F.layer_norm(h, (features,)), *_behind_norm(own, "norm2", "up")))
        z = _linear(_dropped(drop, 3 * block + 2, z), own["down.weight"], own["down.bias"])
        h = h + _dropped(drop, 3 * block + 3, z)
    return _linear(F.layer_norm(h, (features,)), *_behind_norm(params, "norm", "head"))


_BLOCK = tuple(
    f"{layer}.{kind}" for layer in ("norm1", "qkv", "out", "norm2", "up", "down") for kind in ("weight", "bias")
)


def _tokens(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``[B, K, tokens, features]``: class token and patches, with positions."""
    weight = params["patches.weight"]
    networks, features = weight.shape[:2]
    samples, size = len(x), weight.shape[-1]
    pieces = F.unfold(x, size, stride=size).transpose(1, 2).flatten(0, 1)
    # One product for all networks: they see the same patches.
    body = (pieces @ weight.flatten(2).flatten(0, 1).t()).view(samples, -1, networks, features).permute(2, 0, 1, 3)
    positions = params["positions"].view(networks, 1, -1, features)
    body = body + (positions[:, :, 1:] + params["patches.bias"].view(networks, 1, 1, features))
    first = positions[:, :, :1] + params["class_token"].view(networks, 1, 1, features)
    return torch.cat([first.expand(-1, samples, -1, -1), body], 2)


def _linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))


def _behind_norm(params: Mapping[str, Tensor], norm: str, layer: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer that reads a layer norm, with the norm's own in them."""
    weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
    shift = torch.bmm(weight, params[f"{norm}.bias"].unsqueeze(-1)).squeeze(-1)
    return weight * params[f"{norm}.weight"].unsqueeze(1), bias + shift


def _heads(h: Tensor, samples: int, parts: int, heads: int) -> Tensor:
    """``[B, K * t, parts * features]`` as ``[parts, B * K, heads, t, features / heads]``."""
    return h.reshape(len(h) * samples, h.shape[1] // samples, parts, heads, -1).permute(2, 0, 3, 1, 4)


def _dropped(drop: Drop | None, place: int, h: Tensor) -> Tensor:
    return h if drop is None else drop(place, h)


# -- which runs ------------------------------------------------------------------------------------------------------------

# (patches, features, heads, blocks, activation): few of about 4 x 4, or many of about 7 x 7.
VITS: tuple[tuple[str, int, int, int, str], ...] = (
    ("few", 16, 2, 1, "gelu"),
    ("few", 16, 4, 3, "relu"),
    ("few", 24, 3, 2, "gelu"),
    ("few", 32, 2, 2, "gelu"),
    ("few", 32, 4, 2, "relu"),
    ("few", 48, 4, 1, "relu"),
    ("many", 16, 2, 2, "relu"),
    ("many", 24, 2, 1, "gelu"),
)
INITS = ("normal", "glorot", "he")


def vit_architectures(shape: tuple[int, int, int], classes: int) -> list[ModuleArchitecture]:
    """The transformers that a zoo mixes, for images of ``shape`` (channels, height, width)."""
    channels, height, width = shape
    sizes = {kind: _patch(height, width, count) for kind, count in (("few", 16), ("many", 49))}
    images = {"channels": channels, "height": height, "width": width, "classes": classes}
    found = []
    for kind, features, heads, blocks, activation in VITS:
        size = {"patch": sizes[kind], "features": features, "heads": heads, "blocks": blocks, "hidden": 2 * features}
        found.append(ModuleArchitecture("vit", tuple({**images, **size, "activation": activation}.items())))
    return found


def _patch(height: int, width: int, count: int) -> int:
    """The size of square patches of which an image has about ``count``, at least 4."""
    common = math.gcd(height, width)
    sizes = [size for size in range(1, common + 1) if common % size == 0 and height * width // size**2 >= 4]
    if not sizes:
        raise UserError(f"images of {height}x{width} cannot be cut into square patches for a transformer")
    return min(sizes, key=lambda size: abs(math.log(height * width / size**2 / count)))


def transformer_runs(seed: int, count: int, shape: tuple[int, int, int], classes: int) -> list[Run]:
    """Runs 0..count-1, each drawn from (seed, number) alone: one of ``vit_architectures`` and hyper-parameters."""
    architectures = vit_architectures(shape, classes)
    runs = []
    for number in range(count):
        rng = np.random.default_rng([seed, 10, number])
        architecture = architectures[rng.integers(len(architectures))]
        optimizer = ("adam", "adamw", "sgd")[rng.integers(3)]
        slow, fast = (1e-2, 5e-1) if optimizer == "sgd" else (2e-4, 2e-2)
        low, high = (1e-3, 5e-1) if optimizer == "adamw" else (1e-7, 1e-3)
        init = INITS[rng.integers(len(INITS))]
        hyper = Hyper(
            optimizer=optimizer,
            learning_rate=log_uniform(rng, slow, fast),
            weight_decay=log_uniform(rng, low, high),
            dropout=float(rng.uniform(0.0, 0.5)),
            init=init,
            init_scale=log_uniform(rng, 1e-2, 0.3) if init == "normal" else log_uniform(rng, 0.3, 2.0),
            train_fraction=(0.1, 0.3, 1.0)[rng.integers(3)],
        )
        runs.append(Run(number, architecture, hyper))
    return runs


def initial_transformer(run: Run, seed: int) -> dict[str, Tensor]:
    """First weights of a run, float32, from (seed, number) alone.

    Weights are normal with standard deviation ``init_scale`` (``"normal"``) or ``init_scale`` times Glorot's or He's;
    the class token and the positions with .02; biases are 0 and layer norms start as the identity.
    """
    rng = np.random.default_rng([seed, 11, run.number])
    found = {}
    for name, shape in run.architecture.parameter_shapes().items():
        noise = rng.standard_normal(shape)
        if name in ("class_token", "positions"):
            noise *= 0.02
        elif len(shape) == 1:
            noise = np.full(shape, float("norm" in name and name.endswith("weight")))
        else:
            noise *= run.hyper.init_scale * deviation(run.hyper.init, math.prod(shape[1:]), shape[0])
        found[name] = torch.from_numpy(noise).float()
    return found
