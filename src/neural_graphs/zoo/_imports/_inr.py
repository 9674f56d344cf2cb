"""What importers of implicit neural representations share: how the networks were fitted, and reading checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack, stack_from_shapes
from neural_graphs.zoo._imports._source import guess_images, image_source
from neural_graphs.zoo._recipes import RECIPES

LOOK_AT = 16  # checkpoints that decide which architecture a corpus has


@dataclass(frozen=True)
class InrOptions:
    """How the networks were fitted: a recipe's values where nothing else is asked for."""

    recipe: str
    activation: str
    shift: float
    images: str | None

    @classmethod
    def of(cls, recipe: str, activation: str | None, shift: float | None, images: str | None) -> InrOptions:
        if recipe not in RECIPES:
            raise UserError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
        chosen = RECIPES[recipe]
        return cls(recipe, activation or chosen.activation, chosen.shift if shift is None else shift, images)

    def meta(self, folder: Path, kind: str, images: str | None, stack: Stack) -> dict[str, Any]:
        """``recipe`` and ``source`` of ``zoo.json``; ``images`` is what the layout tells of their source."""
        name = self.images or images or guess_images(folder.resolve().name)
        source = image_source(name, stack.widths[-1]) if name else {}
        return {
            "recipe": {"name": self.recipe, "pixel_range": list(RECIPES[self.recipe].pixel_range)},
            "source": source | {"imported_from": folder.resolve().name, "kind": kind},
        }


def common_stack(
    folder: Path, files: Iterable[Path], read: Callable[[Path], Mapping[str, Tensor]], options: InrOptions
) -> Stack:
    """The most frequent architecture among the first readable checkpoints; the others are skipped.

    Raises:
        UserError: not one of ``files`` can be read.
    """
    found: Counter[Stack] = Counter()
    problem, tried = "", 0
    for file in files:
        tried += 1
        try:
            shapes = {name: tuple(value.shape) for name, value in read(file).items()}
            found[stack_from_shapes(shapes, options.activation, options.shift)] += 1
        except UserError as error:
            problem = problem or str(error)
        if found.total() == LOOK_AT:
            break
    if not found:
        raise UserError(f"{folder}: none of {tried} checkpoints can be read; the first: {problem}")
    return found.most_common(1)[0][0]


def check_shapes(state: Mapping[str, Tensor], stack: Stack, where: object) -> None:
    """Raise ``UserError`` unless the tensors are those of ``stack``."""
    if {name: tuple(value.shape) for name, value in state.items()} != stack.parameter_shapes():
        raise UserError(f"{where} is a network of another architecture than {stack}")
