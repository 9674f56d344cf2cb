"""Weight statistics of a zoo, layer by layer, beside those of the published corpora."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo._store import Zoo, ZooSplit

BATCH = 4096  # networks in memory at once
TOLERANCE = 0.10


@dataclass(frozen=True)
class Moments:
    """Scalar mean and standard deviation over all networks and all entries of one tensor; mean is None where unknown."""

    mean: float | None
    std: float


@dataclass(frozen=True)
class Comparison:
    """One tensor of a zoo beside the same tensor of a published corpus."""

    tensor: str
    ours: Moments
    published: Moments

    @property
    def ratio(self) -> float:
        """Our standard deviation over the published one."""
        return self.ours.std / self.published.std

    @property
    def within(self) -> bool:
        """Whether the standard deviations agree within 10 %."""
        return abs(self.ratio - 1) <= TOLERANCE


def _moments(weights: list[float], biases: list[float], means: list[float] | None = None) -> dict[str, Moments]:
    stds = [std for pair in zip(weights, biases, strict=True) for std in pair]
    names = [f"seq.{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(len(stds))]
    known: list[float | None] = [*means] if means else [None] * len(stds)
    return {name: Moments(mean, std) for name, mean, std in zip(names, known, stds, strict=True)}


# (recipe, images) -> statistics over the training networks, as the normalisation constants of Kofinas et al. 2024 (code).
PUBLISHED: dict[tuple[str, str], dict[str, Moments]] = {
    ("dws", "mnist"): _moments(
        [0.0628113, 0.0182682, 0.1179117],
        [0.0213346, 0.0110044, 0.0998919],
        [-4.216e-5, 5.42e-6, -7.555e-7, 3.717e-6, 7.886e-5, -0.0123953],
    ),
    ("dws", "fashion-mnist"): _moments(
        [0.0782281, 0.0324019, 0.1345496],
        [0.0285615, 0.0167003, 0.0959561],
        [6.37e-6, 1.68e-7, 6.887e-6, -1.157e-5, 1.073e-5, -0.0202828],
    ),
    ("nfn", "mnist"): _moments([0.28682, 0.01711, 0.06391], [0.40905, 0.10409, 0.09695]),
    ("nfn", "cifar10"): _moments([0.28026, 0.01766, 0.05460], [0.40870, 0.10388, 0.08735]),
}


def published_statistics(recipe: str, images: str) -> dict[str, Moments]:
    """Published mean and standard deviation of every tensor of an INR corpus.

    Raises:
        UserError: no statistics are known for this recipe and these images.
    """
    if (recipe, images) not in PUBLISHED:
        known = ", ".join(f"{recipe} of {images}" for recipe, images in PUBLISHED)
        raise UserError(f"no published statistics for recipe {recipe!r} of {images!r}: there are {known}")
    return PUBLISHED[recipe, images]


def layer_statistics(networks: Zoo | ZooSplit) -> dict[str, Moments]:
    """Mean and standard deviation of every tensor, over all entries and all networks; one architecture only.

    Of a zoo, its training networks (all, where it has none). Reads a few thousand networks at a time.
    """
    if isinstance(networks, Zoo):
        networks = networks.train if len(networks.train) else networks.all
    stack = networks.sole_architecture
    totals = {name: torch.zeros(2, dtype=torch.float64) for name in stack.parameter_shapes()}
    for start in range(0, len(networks), BATCH):
        (_, _, values) = networks.state_dicts(slice(start, start + BATCH))[0]
        for name, value in values.items():
            exact = value.double()
            totals[name] += torch.stack((exact.sum(), exact.square().sum()))
    found = {}
    for name, shape in stack.parameter_shapes().items():
        mean, square = (totals[name] / (len(networks) * math.prod(shape))).tolist()
        found[name] = Moments(mean, math.sqrt(max(square - mean**2, 0.0)))
    return found


def compare_statistics(zoo: Zoo, recipe: str | None = None, images: str | None = None) -> list[Comparison]:
    """A zoo's statistics beside the published ones of its recipe and images (or of those named), tensor by tensor.

    Raises:
        UserError: nothing is published for them, or the zoo's architecture is another one.
    """
    recipe = recipe or str(zoo.meta.get("recipe", {}).get("name"))
    images = images or str(zoo.meta.get("source", {}).get("images"))
    published = published_statistics(recipe, images)
    ours = layer_statistics(zoo)
    stack = zoo.all.sole_architecture
    if list(ours) != list(published) or not isinstance(stack, Stack) or stack.widths[1:-1] != (32, 32):
        raise UserError(f"the published networks have hidden layers 32-32, those of {zoo.path} are other ones")
    return [Comparison(name, ours[name], published[name]) for name in published]
