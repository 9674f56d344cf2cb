"""The permutation symmetries of a network, as an immutable value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation

Element = dict[str, Tensor]
"""A group element: one index tensor per symmetry class, ``[n]`` or, one per network, ``[B, n]``. Position k of the
permuted network holds what stood at position ``element[class][k]`` before."""


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter as a product of factors ``(symmetry class or None, size)``, outermost first.

    A plain axis has one factor. The input axis of a linear layer that reads a flattened ``[c, h, w]`` map has two: the
    channels' class and a fixed factor of size ``h * w``.
    """

    factors: tuple[tuple[str | None, int], ...]

    @classmethod
    def fixed(cls, size: int) -> Axis:
        return cls(((None, size),))

    @classmethod
    def of(cls, name: str | None, size: int, positions: int = 1) -> Axis:
        return cls(((name, size),) if positions == 1 else ((name, size), (None, positions)))

    @property
    def size(self) -> int:
        return math.prod(size for _, size in self.factors)

    @property
    def moves(self) -> bool:
        return any(name is not None for name, _ in self.factors)

    def index(self, element: Element) -> Tensor:
        """Where each position of the permuted axis comes from: ``[size]`` or ``[B, size]``."""
        parts = [element[name] if name is not None else torch.arange(size) for name, size in self.factors]
        index = parts[0]
        for part, (_, size) in zip(parts[1:], self.factors[1:], strict=True):
            part = part.to(index.device)
            index = (index.unsqueeze(-1) * size + part.unsqueeze(-2)).flatten(-2)
        return index

    def __str__(self) -> str:
        return "·".join(name if name is not None else str(size) for name, size in self.factors)


@dataclass(frozen=True)
class PermutationSpec:
    """For every parameter and buffer of a network, the symmetry class of each axis.

    The group is the product of the symmetric groups of its classes: permuting every axis of a class by the same
    permutation leaves the network's function unchanged. ``activations`` records the non-linearity behind each class, from
    which scale, sign and phase symmetries follow.

    Immutable, hashable, JSON-able; ``str(spec)`` prints the group, for example ``S32 × S32``.
    """

    axes: tuple[tuple[str, tuple[Axis, ...]], ...]
    activations: tuple[tuple[str, Activation], ...] = ()

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for parameter, axes in self.axes:
            for axis in axes:
                for name, size in axis.factors:
                    if name is not None and sizes.setdefault(name, size) != size:
                        raise UserError(f"class {name} has size {sizes[name]}, but {size} in {parameter}")

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> dict[str, int]:
        """Symmetry classes and their sizes, in order of appearance."""
        return {name: size for _, axes in self.axes for axis in axes for name, size in axis.factors if name is not None}

    @property
    def parameters(self) -> dict[str, tuple[Axis, ...]]:
        return dict(self.axes)

    @property
    def log10_order(self) -> float:
        """log10 of the number of group elements."""
        return sum(math.lgamma(size + 1) for size in self.classes.values()) / math.log(10)

    def __str__(self) -> str:
        return " × ".join(f"S{size}" for size in self.classes.values()) or "trivial"

    def describe(self) -> str:
        """A line per parameter: name, shape, class of every axis."""
        width = max((len(name) for name, _ in self.axes), default=0)
        kinds = dict(self.activations)
        lines = [f"{self}   (10^{self.log10_order:.0f} elements)"]
        for name, size in self.classes.items():
            lines.append(f"  {name}: {size} neurons, {kinds.get(name, Activation())}")
        for name, axes in self.axes:
            lines.append(f"  {name:<{width}}  [{', '.join(map(str, axes))}]")
        return "\n".join(lines)

    # -- the group ----------------------------------------------------------------------------------------------------

    def identity(self) -> Element:
        return {name: torch.arange(size) for name, size in self.classes.items()}

    def sample(self, generator: torch.Generator | int | None = None, batch: int | None = None) -> Element:
        """A uniformly random group element; with ``batch``, an independent one per network."""
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        shape = () if batch is None else (batch,)
        return {
            name: torch.rand(*shape, size, generator=generator, dtype=torch.float64).argsort(-1)
            for name, size in self.classes.items()
        }

    def compose(self, second: Element, first: Element) -> Element:
        """The element that acts like ``first``, then ``second``."""
        return {name: first[name].gather(-1, second[name]) for name in self.classes}

    def invert(self, element: Element) -> Element:
        return {name: element[name].argsort(-1) for name in self.classes}

    def apply(self, state_dict: Mapping[str, Tensor], element: Element, batched: bool = False) -> dict[str, Tensor]:
        """The permuted state dict. Tensors carry a leading network axis when ``batched``.

        Elements ``[n]`` act on every network alike, elements ``[B, n]`` on each its own (``batched`` only). Names that the
        spec does not know pass through unchanged. Raises ``UserError`` when a shape does not fit.
        """
        known = self.parameters
        out = {}
        for name, value in state_dict.items():
            out[name] = self._apply_one(name, value, known[name], element, batched) if name in known else value
        return out

    def _apply_one(self, name: str, value: Tensor, axes: tuple[Axis, ...], element: Element, batched: bool) -> Tensor:
        offset = int(batched)
        if tuple(value.shape[offset:]) != tuple(axis.size for axis in axes):
            raise UserError(f"{name} has shape {tuple(value.shape)}, expected {[axis.size for axis in axes]}")
        for position, axis in enumerate(axes):
            if not axis.moves:
                continue
            dim = position + offset
            index = axis.index(element).to(value.device)
            if index.dim() == 1:
                value = value.index_select(dim, index)
                continue
            if not batched:
                raise UserError("an element with a batch axis needs a batched state dict")
            shape = [1] * value.dim()
            shape[0], shape[dim] = index.shape
            value = value.take_along_dim(index.view(shape), dim)
        return value

    # -- exchange -----------------------------------------------------------------------------------------------------

    def to_axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """The dictionary that git re-basin (Ainsworth et al., 2023) calls ``axes_to_perm``.

        Raises ``UserError`` for an axis that mixes a class with fixed positions, which that format cannot say.
        """
        out = {}
        for name, axes in self.axes:
            if any(len(axis.factors) > 1 and axis.moves for axis in axes):
                raise UserError(f"{name} has a flattened axis ({axes[-1]}), which axes_to_perm cannot express")
            out[name] = tuple(axis.factors[0][0] for axis in axes)
        return out

    @classmethod
    def from_axes_to_perm(
        cls, axes_to_perm: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, tuple[int, ...]]
    ) -> PermutationSpec:
        """Inverse of ``to_axes_to_perm``; ``shapes`` gives every parameter's shape."""
        axes = []
        for name, classes in axes_to_perm.items():
            if name not in shapes or len(shapes[name]) != len(classes):
                raise UserError(f"axes_to_perm names {len(classes)} axes for {name}, its shape is {shapes.get(name)}")
            axes.append((name, tuple(Axis.of(c, n) for c, n in zip(classes, shapes[name], strict=True))))
        return cls(tuple(axes))

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": {name: [[list(f) for f in axis.factors] for axis in axes] for name, axes in self.axes},
            "activations": {name: str(kind) for name, kind in self.activations},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PermutationSpec:
        try:
            axes = tuple(
                (name, tuple(Axis(tuple((c, int(n)) for c, n in factors)) for factors in entry))
                for name, entry in data["axes"].items()
            )
            kinds = tuple((name, Activation.parse(kind)) for name, kind in data.get("activations", {}).items())
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the description of a symmetry group is broken: {error}") from None
        return cls(axes, kinds)
