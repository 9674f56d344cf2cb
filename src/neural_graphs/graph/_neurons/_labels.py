"""Which neuron each entry of a tensor belongs to, followed through a recorded graph.

A *label* is an int64 tensor that broadcasts to the shape of a value: the neuron at each index, or the coordinate along one
axis of an input or parameter that has no neurons yet. Axes along which it does not vary have size 1, so that labels stay
small, and operators that only move entries (reshape, permute, slice, ...) are executed on them by torch itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NOBODY = -1
"""Stands in a label where an entry belongs to no neuron."""

Key = tuple[str, int]
"""An axis of a placeholder: its node name, and the number of the axis."""


@dataclass(frozen=True, eq=False)
class Label:
    """``ids`` broadcasts to the value's shape; ``key`` names the axis whose coordinates they are, None for neurons."""

    ids: Tensor
    key: Key | None = None

    @property
    def axes(self) -> frozenset[int]:
        """The axes of the value along which the label varies."""
        return frozenset(dim for dim, size in enumerate(self.ids.shape) if size > 1)


@dataclass(frozen=True, eq=False)
class Crowd:
    """Neurons that influence a value without standing along one of its axes."""

    ids: Tensor
    role: str = "other"


@dataclass(frozen=True, eq=False)
class Value:
    """What is known about one tensor of the recorded graph.

    ``given`` tells whether it depends on an input; if not, it is computed from parameters and constants alone.
    ``scale`` is the number that neurons were multiplied with since their layer (the frequency of a sine).
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...] = ()
    loose: tuple[Crowd, ...] = ()
    given: bool = True
    scale: float = 1.0
    parameters: frozenset[str] = field(default_factory=frozenset)


def collapse(ids: Tensor) -> Tensor:
    """The label without the axes along which it does not vary."""
    for dim, size in enumerate(ids.shape):
        if size > 1 and (ids.stride(dim) == 0 or bool((ids == ids.narrow(dim, 0, 1)).all())):
            ids = ids.narrow(dim, 0, 1)
    return ids.clone() if ids.numel() < ids.untyped_storage().nbytes() // 8 else ids


def lift(label: Label, rank: int) -> Label:
    """The label of a value that is broadcast to ``rank`` axes."""
    missing = rank - label.ids.dim()
    return Label(label.ids.reshape(*(1,) * missing, *label.ids.shape), label.key) if missing > 0 else label


def executed(value: Value, function: Callable[[Tensor], Any]) -> list[Any]:
    """What ``function``, which only moves entries, makes of the labels: ``(label, result)`` with results not collapsed."""
    return [(label, function(label.ids.expand(value.shape))) for label in value.labels]


def moved(value: Value, function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Value:
    """The value after an operator that only moves entries."""
    labels = tuple(Label(collapse(result), label.key) for label, result in executed(value, function))
    return Value(tuple(shape), labels, value.loose, value.given, value.scale, value.parameters)


def without_axes(value: Value, dims: Iterable[int]) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """The labels that do not vary along ``dims``, and those that do."""
    gone = {dim % len(value.shape) for dim in dims} if value.shape else set()
    kept = tuple(label for label in value.labels if not label.axes & gone)
    return kept, tuple(label for label in value.labels if label.axes & gone)


def project(label: Tensor, coordinates: dict[int, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """The neurons of ``label`` on the index space of a parameter of ``shape``.

    ``coordinates[j]`` says for every entry of the value where on axis j of the parameter it comes from. The result has
    size 1 on axes on which it does not depend, and ``NOBODY`` where the parameter is not used. None when the label varies
    in ways that the parameter's coordinates do not tell apart.
    """
    axes = {dim for dim, size in enumerate(label.shape) if size > 1}
    used = {j: c for j, c in coordinates.items() if c.numel() == 1 or any(c.shape[dim] > 1 for dim in axes)}
    covered = {dim for c in used.values() for dim, size in enumerate(c.shape) if size > 1}
    if not axes <= covered:
        return None
    found = torch.full([shape[j] if j in used else 1 for j in range(len(shape))], NOBODY)
    grid = torch.broadcast_shapes(label.shape, *(c.shape for c in used.values()))
    if math.prod(grid) > 1 << 26:
        return None
    index = tuple(
        used[j].expand(grid).flatten() if j in used else torch.zeros(1, dtype=torch.int64) for j in range(len(shape))
    )
    values = label.expand(grid).flatten()
    if not index:  # a parameter without axes
        return label.reshape(()) if label.numel() == 1 else None
    found[index] = values
    return found if bool((found[index] == values).all()) else None
