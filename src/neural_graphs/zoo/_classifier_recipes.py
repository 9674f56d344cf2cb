"""Which classifiers a zoo holds: architectures, hyper-parameters and initial weights, drawn per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, Stack
from neural_graphs.zoo._bulk import Hyper, Run, chunk_key, deviation, log_uniform
from neural_graphs.zoo._transformers import initial_transformer, transformer_runs

Shape = tuple[int, int, int]
"""Channels, height and width of the images."""


@dataclass(frozen=True)
class ClassifierRecipe:
    """How the classifiers of a zoo are drawn and trained.

    ``runs(seed, count, shape, classes)`` draws them, ``initial(run, seed)`` their first weights, from (seed, number) alone.
    ``checkpoints`` are the epochs after which networks are kept, ``side`` the size that larger images are averaged down to
    (0: as they are), ``chunk`` how many networks are trained at once. ``shared_shape`` says how many consecutive runs have
    layers of one shape and stand in one split.
    """

    name: str
    images: str
    runs: Callable[[int, int, Shape, int], list[Run]] = field(compare=False, repr=False)
    initial: Callable[[Run, int], dict[str, Tensor]] = field(compare=False, repr=False)
    epochs: int = 6
    checkpoints: tuple[int, ...] = (1, 3, 6)
    batch_size: int = 32
    side: int = 0
    chunk: int = 8
    shared_shape: int = 1

    def chunks(self, runs: Iterable[Run]) -> Iterator[list[Run]]:
        """``runs`` in groups that are trained together."""
        groups: dict[Any, list[Run]] = {}
        for run in runs:
            # Those that share shapes but not activations are put together only where they are drawn so.
            own = run.number // self.shared_shape if self.shared_shape > 1 else run.architecture
            groups.setdefault((chunk_key(run), own), []).append(run)
        for members in groups.values():
            for first in range(0, len(members), self.chunk):
                yield members[first : first + self.chunk]


# -- Small CNN Zoo (Unterthiner et al. 2020) --------------------------------------------------------------------------

INITS = ("normal", "truncated-normal", "orthogonal", "glorot", "he")
FRACTIONS = (0.1, 0.25, 0.5, 1.0)


def small_cnn(activation: str, channels: int, classes: int) -> Stack:
    """Three 3x3 convolutions of 16 channels and stride 2, the average over all positions, a linear layer."""
    kind = Activation.parse(activation)
    widths = (channels, 16, 16, 16)
    layers = [
        Layer(f"conv{i}", widths[i], widths[i + 1], (3, 3), activation=kind, stride=2, pool="global" if i == 2 else "")
        for i in range(3)
    ]
    return Stack((*layers, Layer("head", 16, classes)))


def small_cnn_runs(seed: int, count: int, shape: Shape, classes: int) -> list[Run]:
    runs = []
    for number in range(count):
        rng = np.random.default_rng([seed, 5, number])
        init = INITS[rng.integers(len(INITS))]
        spread = (1e-3, 0.5) if "normal" in init else (0.5, 2.0)
        hyper = Hyper(
            optimizer=("adam", "sgd", "rmsprop")[rng.integers(3)],
            learning_rate=log_uniform(rng, 5e-4, 5e-2),
            weight_decay=log_uniform(rng, 1e-8, 1e-2),
            dropout=float(rng.uniform(0.0, 0.7)),
            init=init,
            init_scale=log_uniform(rng, *spread),
            train_fraction=FRACTIONS[rng.integers(len(FRACTIONS))],
        )
        runs.append(Run(number, small_cnn(("relu", "tanh")[rng.integers(2)], shape[0], classes), hyper))
    return runs


def initial_stack(run: Run, seed: int) -> dict[str, Tensor]:
    """Weights by ``hyper.init`` and ``init_scale`` (the standard deviation of the normal kinds, else a factor); biases 0.

    ``"torch"`` is PyTorch's default for convolutions and linear layers, biases included.
    """
    rng = np.random.default_rng([seed, 6, run.number])
    assert isinstance(run.architecture, Stack)
    found = {}
    for layer in run.architecture.layers:
        bound = 1 / math.sqrt(layer.fan_in)
        if run.hyper.init == "torch":
            found[layer.weight] = rng.uniform(-bound, bound, layer.weight_shape)
        else:
            found[layer.weight] = _draw(rng, layer, run.hyper.init) * run.hyper.init_scale
        if layer.bias_name:
            torch_like = run.hyper.init == "torch"
            found[layer.bias_name] = (
                rng.uniform(-bound, bound, layer.outputs) if torch_like else np.zeros(layer.outputs)
            )
    return {name: torch.from_numpy(value).float() for name, value in found.items()}


def _draw(rng: np.random.Generator, layer: Layer, init: str) -> np.ndarray:
    shape = layer.weight_shape
    if init == "truncated-normal":
        from scipy.stats import truncnorm

        return np.asarray(truncnorm.rvs(-2, 2, size=shape, random_state=rng))
    if init == "orthogonal":
        rows, columns = layer.outputs, layer.fan_in
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.sign(np.diag(r))
        return (q if rows >= columns else q.T).reshape(shape)
    return rng.standard_normal(shape) * deviation(init, layer.fan_in, layer.outputs * math.prod(layer.kernel))


# -- CNN Wild Park (Kofinas et al. 2024) ------------------------------------------------------------------------------

PARK_CHANNELS = (4, 8, 16, 32)
PARK_KERNELS = (3, 5, 7)
PARK_ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid", "leaky_relu")
SHARED_SHAPE = 4


def wild_park_runs(seed: int, count: int, shape: Shape, classes: int) -> list[Run]:
    """2 to 5 convolutions of stride 1 with channels, kernel, activation and the source of a residual drawn per layer.

    ``SHARED_SHAPE`` consecutive runs have the same channels, kernels and residuals, so that they can be trained at once;
    each has activations of its own.
    """
    hyper = Hyper("adamw", 1e-3, init="torch")
    runs = []
    for number in range(count):
        shared = np.random.default_rng([seed, 7, number // SHARED_SHAPE])
        own = np.random.default_rng([seed, 8, number])
        depth = int(shared.integers(2, 6))
        widths = [shape[0], *(int(shared.choice(PARK_CHANNELS)) for _ in range(depth))]
        layers = []
        for i in range(depth):
            kernel = int(shared.choice(PARK_KERNELS))
            source = -1 if i == 0 else int(shared.choice([-1, *range(i - 1)]))
            kind = Activation.parse(str(own.choice(PARK_ACTIVATIONS)))
            pool = "global" if i == depth - 1 else ""
            layers.append(
                Layer(
                    f"conv{i}", widths[i], widths[i + 1], (kernel, kernel), activation=kind, padding=kernel // 2,
                    pool=pool, residual=source,
                )
            )  # fmt: skip
        runs.append(Run(number, Stack((*layers, Layer("head", widths[-1], classes))), hyper))
    return runs


# -- all --------------------------------------------------------------------------------------------------------------

CLASSIFIER_RECIPES: dict[str, ClassifierRecipe] = {
    "small-cnn-zoo": ClassifierRecipe("small-cnn-zoo", "cifar10-gs", small_cnn_runs, initial_stack),
    "wild-park": ClassifierRecipe(
        "wild-park", "cifar10", wild_park_runs, initial_stack, epochs=2, checkpoints=(1, 2), side=16, chunk=4,
        shared_shape=SHARED_SHAPE,
    ),
    "transformer": ClassifierRecipe(
        "transformer", "mnist", transformer_runs, initial_transformer, epochs=4, checkpoints=(1, 2, 4), batch_size=64,
        chunk=8,
    ),
}  # fmt: skip


def find_classifier_recipe(name: str) -> ClassifierRecipe:
    """Raises ``UserError`` for an unknown name."""
    if name not in CLASSIFIER_RECIPES:
        raise UserError(f"unknown recipe {name!r}: choose one of {', '.join(CLASSIFIER_RECIPES)}")
    return CLASSIFIER_RECIPES[name]


def assign_splits(count: int, group: int, splits: Sequence[float], seed: int) -> np.ndarray:
    """``"train"``, ``"val"`` or ``"test"`` for every run; ``group`` consecutive runs stand in one split."""
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"splits {tuple(splits)}: give three shares that add up to 1, such as 0.7,0.1,0.2")
    groups = -(-count // group)
    order = np.random.default_rng([seed, 9]).permutation(groups)
    bounds = np.rint(np.cumsum(splits) * groups).astype(int)
    split = np.empty(groups, dtype=object)
    for name, begin, end in zip(("train", "val", "test"), (0, *bounds[:2]), bounds, strict=True):
        split[order[begin:end]] = name
    return np.repeat(split, group)[:count]
