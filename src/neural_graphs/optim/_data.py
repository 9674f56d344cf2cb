"""Image classification data of inner tasks: small, standardised, split once and for all."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.zoo.images import IMAGE_SOURCES, load_images

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

DATA_SETS = ("digits", "fashion-mnist", "mnist", "cifar10")
_HELD = {"fashion-mnist": 10_000, "mnist": 10_000, "cifar10": 5_000}  # last training images, for validation
_DIGITS_SPLIT = (0.6, 0.8)
_SUBSET = 5_000


@dataclass(frozen=True, eq=False)
class InnerData:
    """Images of one data set at one size, on one device.

    ``pixels`` per split are ``[N, c, side, side]``: uint8 where the images have that size already, so that the largest sets
    stay small, else float32 in [0, 255]. ``labels`` are int64 ``[N]``. ``shift`` and ``factor`` ``[c, 1, 1]`` make the
    pixels' mean 0 and standard deviation 1 on the training split, per channel.
    """

    pixels: dict[Split, Tensor]
    labels: dict[Split, Tensor]
    shift: Tensor
    factor: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.pixels["train"].shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.labels["train"])

    def take(self, split: Split, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Standardised images ``[n, c, h, w]`` float32 and labels ``[n]`` at ``index`` (integers or a slice)."""
        pixels, labels = self.pixels[split], self.labels[split]
        if isinstance(index, slice):
            x, y = pixels[index], labels[index]
        else:
            x, y = pixels.index_select(0, index), labels.index_select(0, index)
        if x.dtype == torch.uint8:
            x = (x.float() - self.shift) * self.factor
        return x, y

    @functools.cached_property
    def train_subset(self) -> Tensor:
        """Indices of the fixed training images (5,000, or all of fewer) on which training losses are compared."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(5_000))
        return order[:_SUBSET].sort().values.to(self.shift.device)


@functools.lru_cache(maxsize=16)
def images(name: str, side: int, device: str = "cpu") -> InnerData:
    """``InnerData`` of ``name`` (one of ``DATA_SETS``) with images resampled to ``side`` x ``side`` pixels by area.

    Validation images are the last 10,000 training images of MNIST and Fashion-MNIST, the last 5,000 of CIFAR-10; digits are
    split 60/20/20 by a fixed permutation. Raises ``UserError`` for an unknown name or size, and where no folder holds the
    images (nothing is downloaded).
    """
    if name not in DATA_SETS:
        raise UserError(f"unknown images {name!r}: choose one of {', '.join(DATA_SETS)}")
    full = IMAGE_SOURCES[name].image_shape[0]
    if not 1 <= side <= max(full, 32):
        raise UserError(f"images of {side}x{side} pixels cannot be made from {name}, whose images are {full}x{full}")
    pixels: dict[Split, Tensor] = {}
    labels: dict[Split, Tensor] = {}
    for split, (x, y) in _splits(name).items():
        pixels[split], labels[split] = _resampled(x, side).to(device), y.to(device)
    mean, factor = _statistics(pixels["train"])
    if pixels["train"].is_floating_point():
        for x in pixels.values():
            x.sub_(mean).mul_(factor)
    return InnerData(pixels, labels, mean, factor, len(IMAGE_SOURCES[name].class_names))


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal of the standard deviation per channel, each ``[c, 1, 1]``, without a float copy of all pixels."""
    count = pixels.numel() / pixels.shape[1]
    total, square = torch.zeros(2, pixels.shape[1], dtype=torch.float64, device=pixels.device)
    for part in pixels.split(2048):
        values = part.double()
        total += values.sum((0, 2, 3))
        square += values.square_().sum((0, 2, 3))
    mean, square = total / count, square / count
    std = (square - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float().view(-1, 1, 1), (1 / std).float().view(-1, 1, 1)


def _splits(name: str) -> dict[Split, tuple[Tensor, Tensor]]:
    if name == "digits":
        x, y = _loaded(name, "all")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        first, second = (round(part * len(x)) for part in _DIGITS_SPLIT)
        cuts: dict[Split, Tensor] = {"train": order[:first], "val": order[first:second], "test": order[second:]}
        return {split: (x[index], y[index]) for split, index in cuts.items()}
    x, y = _loaded(name, "train")
    kept = len(x) - _HELD[name]
    return {"train": (x[:kept], y[:kept]), "val": (x[kept:], y[kept:]), "test": _loaded(name, "test")}


def _loaded(name: str, split: str) -> tuple[Tensor, Tensor]:
    """uint8 ``[N, c, h, w]`` and int64 ``[N]``."""
    found = load_images(name, split, download=False)
    pixels = torch.from_numpy(found.images)
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(found.labels)


def _resampled(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-1] == side:
        # a copy, lest a view keep the whole of a larger set alive; digits are few and float32 spares a conversion a batch
        return pixels.float() if side <= 8 else pixels.clone()
    mode = "area" if side < pixels.shape[-1] else "bilinear"
    parts = [F.interpolate(part.float(), (side, side), mode=mode) for part in pixels.split(4096)]
    return torch.cat(parts)
