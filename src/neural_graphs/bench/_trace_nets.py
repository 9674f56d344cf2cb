"""Small networks, one per thing that the tracer must understand: the first part of the table of architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.bench._randomise import randomise
from neural_graphs.bench._trace_attention import (
    TOKENS,
    BranchingExperts,
    Decoder,
    Encoder,
    FusedAttention,
    Llama,
    ModuleAttention,
    SplitAttention,
    StackedExperts,
    TiedGpt,
    VisionTransformer,
)

Factory = Callable[[], tuple[nn.Module, Any]]
"""Builds a module and an example input: a tensor, a tuple of positional or a dict of keyword arguments."""


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Siren(nn.Module):
    """Sine units whose frequencies differ from layer to layer."""

    def __init__(self, frequencies: tuple[float, ...] = (30.0, 30.0)) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.hidden = nn.ModuleList(nn.Linear(2 if k == 0 else 8, 8) for k in range(len(frequencies)))
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for frequency, layer in zip(self.frequencies, self.hidden, strict=True):
            x = torch.sin(frequency * layer(x))
        return self.out(x)


class ResNet(nn.Module):
    """A stem, a residual block, and one with stride and a projected shortcut."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(3, 8, bias=False), norm(8)
        self.conv1, self.norm1 = conv(8, 8, bias=False), norm(8)
        self.conv2, self.norm2 = conv(8, 8, bias=False), norm(8)
        self.down, self.down_norm = conv(8, 12, stride=2), norm(12)
        self.shortcut = conv(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        x = F.relu(self.shortcut(x) + self.down_norm(self.down(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Separable(nn.Module):
    """Depthwise-separable convolutions with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.depthwise, self.pointwise = conv(8, 8, groups=8), conv(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x + self.norm(self.pointwise(F.silu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


class Unet(nn.Module):
    """An encoder, a transposed convolution on the way back, and a skip connection by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.middle = conv(1, 4), conv(4, 8), conv(8, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.merge, self.out = conv(10, 5), conv(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.enter(x))
        coarse = F.relu(self.middle(F.relu(self.down(F.avg_pool2d(fine, 2)))))
        return self.out(F.relu(self.merge(torch.cat([fine, self.up(coarse)], 1))))


class ConvTranspose(nn.Module):
    """Grouped transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2)
        self.out = conv(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up2(F.relu(self.up1(x)))))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * k) for k in range(3))
        self.convs = nn.ModuleList(conv(6 + 4 * k, 4, bias=False) for k in range(3))
        self.last = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.last(torch.cat(features, 1))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = conv(3, 8), conv(8, 4, 1), conv(4, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head((x * torch.sigmoid(gate)).mean((2, 3)))


class Mixer(nn.Module):
    """An MLP over tokens, transposed, and one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, and a read-out of its mean over time."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(TOKENS, layer.input_size), layer
        self.out = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.tokens(x))[0].mean(1))


class Einsum(nn.Module):
    """Raw parameters, ``@`` and ``einsum``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,io->bo", torch.relu(x @ self.first), self.second)


class NormGatedMlp(nn.Module):
    """Spatial gating of gMLP: half of the units, normalised and mixed over tokens, gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(5, 16), nn.LayerNorm(8)
        self.mix, self.out = nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.gelu(self.enter(x)).chunk(2, -1)
        return self.out(value * self.mix(self.norm(gate).transpose(1, 2)).transpose(1, 2))


class TiedAutoencoder(nn.Module):
    """The decoder's matrices are the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.bias1, self.bias2 = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.second(torch.tanh(self.first(x))))
        return F.linear(
            torch.tanh(F.linear(code, self.second.weight.t(), self.bias1)), self.first.weight.t(), self.bias2
        )


class Shared(nn.Module):
    """One layer used twice in a row, as in a network of tied depth."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def _images(channels: int, size: int) -> Tensor:
    return torch.randn(2, channels, size, size)


def _tokens() -> Tensor:
    return torch.randint(0, TOKENS, (2, 6))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def _flat_cnn() -> nn.Module:
    return nn.Sequential(
        *(conv(1, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)),
    )


def _grouped() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8), nn.SiLU(), conv(8, 8, groups=8), nn.SiLU(), conv(8, 10, 1), nn.SiLU(), conv(10, 6, groups=2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def _pixel_shuffle() -> nn.Module:
    return nn.Sequential(conv(1, 16), nn.PixelShuffle(2), nn.ReLU(), conv(4, 1))


def _conv1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 3, padding=2, dilation=2), nn.BatchNorm1d(6), nn.ELU(), nn.Conv1d(6, 8, 4, stride=2)),
        *(nn.GELU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


def _conv3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(0.1), nn.AvgPool3d(2)),
        *(nn.Conv3d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)),
    )


def _group_norm(groups: int) -> Callable[[int], nn.Module]:
    return lambda channels: nn.GroupNorm(groups, channels)


def _instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


_NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": lambda: (_mlp(), torch.randn(2, 5)),
    "siren": lambda: (Siren(), torch.rand(4, 2) * 2 - 1),
    "siren-frequencies": lambda: (Siren((15.0, 6.0, 1.0)), torch.rand(4, 2) * 2 - 1),
    "resnet-batchnorm": lambda: (ResNet(nn.BatchNorm2d), _images(3, 8)),
    "resnet-groupnorm4": lambda: (ResNet(_group_norm(4)), _images(3, 8)),
    "resnet-groupnorm1": lambda: (ResNet(_group_norm(1)), _images(3, 8)),
    "resnet-instancenorm": lambda: (ResNet(_instance_norm), _images(3, 8)),
    "flat-cnn": lambda: (_flat_cnn(), _images(1, 8)),
    "grouped-conv": lambda: (_grouped(), _images(3, 8)),
    "separable-residual": lambda: (Separable(), _images(3, 8)),
    "conv1d": lambda: (_conv1d(), torch.randn(2, 2, 16)),
    "conv3d": lambda: (_conv3d(), torch.randn(2, 1, 4, 4, 4)),
    "conv-transpose": lambda: (ConvTranspose(), _images(3, 4)),
    "unet": lambda: (Unet(), _images(1, 8)),
    "dense-concat": lambda: (DenseNet(), _images(3, 8)),
    "squeeze-excite": lambda: (SqueezeExcite(), _images(3, 8)),
    "pixel-shuffle": lambda: (_pixel_shuffle(), _images(1, 4)),
    "mixer": lambda: (Mixer(), torch.randn(2, 4, 5)),
    "vit-module": lambda: (VisionTransformer(ModuleAttention(12, 3)), _images(3, 8)),
    "vit-qkv": lambda: (VisionTransformer(FusedAttention(12, 3)), _images(3, 8)),
    "vit-heads-first": lambda: (VisionTransformer(FusedAttention(12, 3, heads_first=True)), _images(3, 8)),
    "encoder": lambda: (Encoder(), torch.randn(2, 4, 5)),
    "encoder-norm-first": lambda: (Encoder(norm_first=True), torch.randn(2, 4, 5)),
    "decoder": lambda: (Decoder(), (torch.randn(2, 4, 5), torch.randn(2, 3, 7))),
    "gpt-tied": lambda: (TiedGpt(SplitAttention(12, 3)), _tokens()),
    "gpt-tied-sdpa": lambda: (TiedGpt(FusedAttention(12, 3, causal=True)), _tokens()),
    "llama-like": lambda: (Llama(), _tokens()),
    "rnn": lambda: (Recurrent(nn.RNN(6, 7, batch_first=True)), _tokens()),
    "gru": lambda: (Recurrent(nn.GRU(6, 7, batch_first=True)), _tokens()),
    "gru-2-layers": lambda: (Recurrent(nn.GRU(6, 7, num_layers=2, batch_first=True)), _tokens()),
    "lstm-2-layers": lambda: (Recurrent(nn.LSTM(6, 7, num_layers=2, batch_first=True)), _tokens()),
    "lstm-bidirectional": lambda: (Recurrent(nn.LSTM(6, 7, bidirectional=True, batch_first=True)), _tokens()),
    "einsum": lambda: (Einsum(), torch.randn(2, 5)),
    "glu": lambda: (nn.Sequential(nn.Linear(5, 16), nn.GLU(), nn.Linear(8, 3)), torch.randn(2, 5)),
    "norm-gated-mlp": lambda: (NormGatedMlp(), torch.randn(2, 4, 5)),
    "moe-branching": lambda: (BranchingExperts(), torch.randn(6, 5)),
    "moe-stacked": lambda: (StackedExperts(), torch.randn(4, 5)),
    "moe-topk": lambda: (StackedExperts(top=2), torch.randn(4, 5)),
    "autoencoder-tied": lambda: (TiedAutoencoder(), torch.randn(2, 6)),
    "shared-layer": lambda: (Shared(), torch.randn(2, 5)),
}


def _seeded(build: Factory, seed: int) -> Factory:
    def factory() -> tuple[nn.Module, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, example = build()
        return randomise(module, seed).eval(), example

    return factory


SMALL: dict[str, Factory] = {name: _seeded(build, seed) for seed, (name, build) in enumerate(_NETS.items())}
"""Name -> factory of a small network and its example input, the same at every call."""
