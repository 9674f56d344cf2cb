"""How the INRs of the published corpora were fitted, and the architectures of a diverse zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._stack import Stack


@dataclass(frozen=True)
class Recipe:
    """Architecture, initialisation and optimisation of an INR.

    The network maps pixel coordinates (column, row) in [-1, 1] to ``channels`` colours. Images, in [0, 1], are fitted as
    ``low + (high - low) * image`` with ``(low, high) = pixel_range``; ``shift`` is a constant added to the output.
    """

    name: str
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "sine:30"
    shift: float = 0.0
    init: str = "siren"
    steps: int = 1000
    lr: float = 1e-3
    pixel_range: tuple[float, float] = (0.0, 1.0)

    def stack(self, channels: int) -> Stack:
        return Stack.mlp((2, *self.hidden, channels), self.activation, shift=self.shift)


RECIPES: dict[str, Recipe] = {
    # Navon et al. 2023 (DWSNets): no special first layer, zero biases in the sine layers, +0.5 at the output.
    "dws": Recipe("dws", shift=0.5, init="dws"),
    # Zhou et al. 2023 (NFN): SIREN initialisation, images in [-1, 1].
    "nfn": Recipe("nfn", init="siren", lr=5e-4, pixel_range=(-1.0, 1.0)),
}

# (hidden layers, activation) of a diverse zoo: 2 to 4 hidden layers, 16 to 64 neurons wide, two frequencies and three other
# activations. Each reaches 23 dB or more on MNIST in 1000 steps; one hidden layer, or a narrow net without sines, does not.
DIVERSE: tuple[tuple[tuple[int, ...], str], ...] = (
    *(
        (hidden, activation)
        for hidden in (
            (32, 32),
            (48, 16),
            (16, 48),
            (64, 64),
            (24, 24, 24),
            (48, 32, 16),
            (16, 16, 16, 16),
            (32, 32, 32, 32),
        )
        for activation in ("sine:30", "sine:20")
    ),
    ((64, 64, 64), "relu"),
    ((64, 64, 64), "tanh"),
    ((64, 64, 64), "gelu"),
)


def find_recipe(
    name: str,
    widths: Sequence[int] | None = None,
    activation: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
) -> Recipe:
    """A recipe with some of its settings replaced; ``widths`` are those of the hidden layers."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if widths is not None:
        if not widths or any(int(width) < 1 for width in widths):
            raise UserError(f"widths {tuple(widths)}: give the hidden layers' sizes, such as 32,32")
        recipe = replace(recipe, hidden=tuple(int(width) for width in widths))
    if activation is not None:
        recipe = replace(recipe, activation=str(Activation.parse(activation)))
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    if lr is not None:
        recipe = replace(recipe, lr=lr)
    if recipe.steps < 0 or not recipe.lr > 0:
        raise UserError(f"steps {recipe.steps}, learning rate {recipe.lr}: both must be positive")
    return recipe


def diverse_stacks(recipe: Recipe, channels: int) -> list[Stack]:
    """The architectures that a diverse zoo mixes, with the recipe's output shift."""
    return [replace(recipe, hidden=hidden, activation=activation).stack(channels) for hidden, activation in DIVERSE]
