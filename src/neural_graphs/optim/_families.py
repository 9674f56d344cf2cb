"""Families of inner tasks: those that meta-training draws from, and the fixed ones on which rules are evaluated."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

import neural_graphs.zoo._transformers  # noqa: F401  (registers "vit")
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Layer, ModuleArchitecture, Stack
from neural_graphs.optim._task import InnerTask
from neural_graphs.zoo.images import load_images

T = TypeVar("T")

FAMILIES = ("mlp", "cnn", "transformer", "mixed")
ACTIVATIONS = ("relu", "tanh", "gelu", "silu")
_MIXED = {"mlp": 0.7, "cnn": 0.2, "transformer": 0.1}
_STREAM = 71


def sample_task(family: str, seed: int, augment: bool = False) -> InnerTask:
    """A task drawn from (family, seed) alone, on Fashion-MNIST or digits; hidden widths are multiples of 4.

    ``"mlp"``: 8x8 images (14x14 one time in eight), 1 to 4 hidden layers, widths log-uniform from 8 to 64, one of
    ``ACTIVATIONS``. ``"cnn"``: 8x8 to 14x14 images, 1 to 3 convolutions of 3x3 with 8 to 32 channels. ``"transformer"``: 8x8
    images, patches of 4x4 or 2x2, 1 or 2 blocks. ``"mixed"``: these in the shares .7, .2 and .1, with some perceptrons on
    28x28 images. Minibatches of 32, 64 or 128; horizons log-uniform from 100 to 1000. With ``augment`` also the scale of
    inputs (.5 to 2) and of initial weights (.7 to 1.4) is drawn, and classes are renamed.

    Without Fashion-MNIST on this machine all tasks are on digits, which one warning says. Raises ``UserError`` for an
    unknown family.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family of tasks {family!r}: choose one of {', '.join(FAMILIES)}")
    rng = np.random.default_rng([_STREAM, FAMILIES.index(family), seed])
    kind = str(rng.choice(list(_MIXED), p=list(_MIXED.values()))) if family == "mixed" else family
    data = "fashion-mnist" if rng.random() < 0.85 else "digits"
    batch_size = _pick(rng, (32, 64, 128))
    steps = round(_log_uniform(rng, 100, 1000))
    draws: dict[str, Callable[[np.random.Generator], tuple[int, Stack | ModuleArchitecture]]]
    draws = {"mlp": _draw_mlp, "cnn": _draw_cnn, "transformer": _draw_transformer}
    side, architecture = draws[kind](rng)
    if family == "mixed" and kind == "mlp" and rng.random() < 0.125:
        side, architecture = 28, _for_side(architecture, side, 28)
    if data == "digits" or not has_fashion():
        data, side, architecture = "digits", 8, _for_side(architecture, side, 8)
    task = InnerTask(f"{family}-{seed}", architecture, data, side, batch_size, steps)
    if not augment:
        return task
    return replace(
        task,
        input_scale=_log_uniform(rng, 0.5, 2.0),
        init_scale=_log_uniform(rng, 0.7, 1.4),
        label_order=tuple(rng.permutation(10).tolist()),
    )


@functools.cache
def has_fashion() -> bool:
    """Whether Fashion-MNIST is found on this machine; warns once if not."""
    try:
        load_images("fashion-mnist", "test", download=False)
    except UserError as error:
        warnings.warn(f"tasks are drawn on digits alone, because of {error}", stacklevel=3)
        return False
    return True


def _draw_mlp(rng: np.random.Generator) -> tuple[int, Stack]:
    side = 14 if rng.random() < 0.125 else 8
    depth = int(rng.integers(1, 5))
    widths = [4 * max(2, round(_log_uniform(rng, 8, 64) / 4)) for _ in range(depth)]
    if rng.random() < 0.5:
        widths = widths[:1] * depth
    return side, mlp(side, widths, _pick(rng, ACTIVATIONS))


def _draw_cnn(rng: np.random.Generator) -> tuple[int, Stack]:
    side = _pick(rng, (8, 8, 8, 12, 14))
    depth = int(rng.integers(1, 4))
    # channels of 16 and 32 without padding and with these two activations take the compiled step
    plain = rng.random() < 0.7
    channels = [_pick(rng, (16, 32) if plain else (8, 12, 16, 24)) for _ in range(depth)]
    activation = _pick(rng, ("relu", "relu", "tanh") if plain else ACTIVATIONS)
    return side, cnn(channels, 1, activation, first_stride=1 if side == 8 else 2, padding=0 if plain else 1)


def _draw_transformer(rng: np.random.Generator) -> tuple[int, ModuleArchitecture]:
    patch = 2 if rng.random() < 0.25 else 4
    features = _pick(rng, (16, 16, 24, 32))
    blocks = 1 if patch == 2 else int(rng.integers(1, 3))
    activation = _pick(rng, ("relu", "gelu"))
    return 8, vit(8, patch, features, _pick(rng, (1, 2, 4)), blocks, activation=activation)


def _for_side(architecture: Stack | ModuleArchitecture, side: int, wanted: int) -> Stack | ModuleArchitecture:
    """The same hidden layers on images of another size."""
    if side == wanted or not isinstance(architecture, Stack):
        return architecture
    first = architecture.layers[0]
    if not first.kernel:
        return mlp(wanted, architecture.widths[1:-1], first.activation)
    channels = [layer.outputs for layer in architecture.layers[:-1]]
    return cnn(channels, first.inputs, first.activation, 1, first.padding)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


# -- architectures ---------------------------------------------------------------------------------------------------------


def mlp(side: int, hidden: Sequence[int], activation: str | Activation = "relu", channels: int = 1) -> Stack:
    """A perceptron on ``side`` x ``side`` images with 10 classes."""
    return Stack.mlp((channels * side * side, *hidden, 10), activation)


def cnn(
    channels: Sequence[int],
    inputs: int = 1,
    activation: str | Activation = "relu",
    first_stride: int = 1,
    padding: int = 1,
    first_padding: int | None = None,
) -> Stack:
    """Convolutions of 3x3, of which only the first may stride, the mean over positions, and a linear layer to 10 classes."""
    kind = Activation.parse(activation)
    layers, read = [], inputs
    for number, written in enumerate(channels):
        last = number == len(channels) - 1
        padded = first_padding if number == 0 and first_padding is not None else padding
        stride = first_stride if number == 0 else 1
        layers.append(
            Layer(
                f"seq.{number}", read, written, (3, 3), activation=kind, stride=stride, padding=padded,
                pool="global" if last else "",
            )
        )  # fmt: skip
        read = written
    return Stack((*layers, Layer(f"seq.{len(channels)}", read, 10)))


def paper_cnn(width: int = 16, inputs: int = 1) -> Stack:
    """The network of Kofinas et al. 2024, section 4.4: three convolutions, the first with stride 2 and unpadded.

    ``paper_cnn(16)`` has 14,378 parameters (Fashion-MNIST), ``paper_cnn(32, 3)`` 56,970 (CIFAR-10).
    """
    return cnn((width, 2 * width, 2 * width), inputs, "relu", 2, 1, 0)


def vit(
    side: int, patch: int, features: int, heads: int, blocks: int, channels: int = 1, activation: str = "gelu"
) -> ModuleArchitecture:
    """A small vision transformer; its perceptrons are twice as wide as its features."""
    sizes = {"channels": channels, "height": side, "width": side, "classes": 10, "patch": patch}
    shape = {"features": features, "heads": heads, "blocks": blocks, "hidden": 2 * features}
    return ModuleArchitecture("vit", tuple({**sizes, **shape, "activation": activation}.items()))


# -- held out --------------------------------------------------------------------------------------------------------------


def _task(name: str, architecture: Stack | ModuleArchitecture, side: int, steps: int, **others: object) -> InnerTask:
    return InnerTask(name, architecture, side=side, steps=steps, **others)  # type: ignore[arg-type]


HELD_OUT: dict[str, tuple[InnerTask, ...]] = {
    "in-distribution": (
        _task("fashion 8x8, 30-30 relu", mlp(8, (30, 30)), 8, 500),
        _task("fashion 8x8, 18 tanh", mlp(8, (18,), "tanh"), 8, 300, batch_size=32),
        _task("fashion 8x8, 54-54-54 gelu", mlp(8, (54,) * 3, "gelu"), 8, 700),
        _task("fashion 8x8, 42-42 silu", mlp(8, (42, 42), "silu"), 8, 1000, batch_size=128),
        _task("fashion 8x8, 22-22-22-22 relu", mlp(8, (22,) * 4), 8, 1000),
        _task("fashion 8x8, 62-30-14 tanh", mlp(8, (62, 30, 14), "tanh"), 8, 600),
        _task("fashion 8x8, 14-14 relu", mlp(8, (14, 14)), 8, 400, batch_size=128),
        _task("fashion 8x8, 58 gelu", mlp(8, (58,), "gelu"), 8, 800, batch_size=32),
        _task("fashion 14x14, 26-26 relu", mlp(14, (26, 26)), 14, 600),
        _task("fashion 8x8, 34-34-34-34 silu", mlp(8, (34,) * 4, "silu"), 8, 500, batch_size=32),
        _task("digits, 26-26 relu", mlp(8, (26, 26)), 8, 300, data="digits"),
        _task("digits, 46-46-46 tanh", mlp(8, (46,) * 3, "tanh"), 8, 500, data="digits", batch_size=32),
    ),
    "width": (
        _task("width 128", mlp(8, (128, 128)), 8, 500),
        _task("width 256", mlp(8, (256, 256)), 8, 500),
    ),
    "depth": (
        _task("5 hidden layers", mlp(8, (32,) * 5), 8, 500),
        _task("6 hidden layers", mlp(8, (32,) * 6), 8, 500),
    ),
    "image-size": (
        _task("fashion 12x12", mlp(12, (32, 32)), 12, 500),
        _task("fashion 28x28", mlp(28, (32, 32)), 28, 500),
    ),
    "mnist": (
        _task("mnist 8x8", mlp(8, (32, 32)), 8, 500, data="mnist"),
        _task("mnist 28x28", mlp(28, (32, 32)), 28, 500, data="mnist"),
    ),
    "cnn": (
        _task("cnn 16-16, 8x8", cnn((16, 16), padding=0), 8, 500),
        _task("cnn 16-32-32, 8x8", cnn((16, 32, 32), padding=0), 8, 500, batch_size=32),
        _task("cnn 16-32, 14x14", cnn((16, 32), first_stride=2, padding=0), 14, 500),
    ),
    "transformer": (_task("transformer 24, 8x8", vit(8, 4, 24, 2, 2), 8, 500),),
    "horizon": (
        _task("3000 steps, 32-32", mlp(8, (32, 32)), 8, 3000),
        _task("5000 steps, 16", mlp(8, (16,)), 8, 5000),
    ),
    "paper-fashion": (_task("paper, fashion", paper_cnn(16), 28, 1000, batch_size=128),),
    "paper-cifar10": (_task("paper, cifar10", paper_cnn(32, 3), 32, 1000, data="cifar10", batch_size=128),),
}
"""Fixed tasks by what they have that those of ``sample_task`` lack, each used for nothing but evaluation.

Those "in-distribution" are within the ranges of ``sample_task("mlp")``, but with widths that it cannot draw. The paper's two
train on 50,000 and 45,000 images, the others of their training splits being held for validation.
"""


def held_out(group: str, steps: int | None = None, device: str = "cpu") -> tuple[InnerTask, ...]:
    """The tasks of a group of ``HELD_OUT``, with another horizon if ``steps`` is given; ``UserError`` for an unknown one."""
    if group not in HELD_OUT:
        raise UserError(f"unknown group of tasks {group!r}: choose one of {', '.join(HELD_OUT)}")
    found = (task if device == "cpu" else task.to(device) for task in HELD_OUT[group])
    return tuple(task.with_steps(steps) if steps is not None else task for task in found)
