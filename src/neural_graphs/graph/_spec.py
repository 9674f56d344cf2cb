"""The symmetry group of a network, as an immutable value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import _algebra
from neural_graphs.graph._action import AxisGroup, axis_groups, gather, sources
from neural_graphs.graph._action import Element as Element
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._axis import Axis as Axis
from neural_graphs.graph._rescaling import Rescaling, rescale
from neural_graphs.graph._spec_text import describe, group_text


@dataclass(frozen=True)
class PermutationSpec:
    """For every parameter and buffer of a network, the symmetry class of each axis.

    Permuting every axis of a class by the same permutation leaves the network's function unchanged. A class may depend on
    others (``over``: class -> the classes it depends on): it then has one permutation for each of their indices. The inner
    dimensions of attention heads are over the heads, the channels inside the groups of a grouped convolution over the
    groups. The group is a product of symmetric groups, and of wreath products where classes depend on others. It acts as
    ``x'[p, q] = x[pi[p], sigma[p, q]]``: a dependent class is indexed by the new place of what it depends on.

    ``activations`` records the non-linearity behind each class, ``rescalings`` the scale, sign and phase symmetries.

    Immutable, hashable, JSON-able; ``str(spec)`` prints the group, for example ``S32 × S32``. Raises ``UserError`` when the
    entries contradict each other.
    """

    axes: tuple[tuple[str, tuple[Axis, ...]], ...]
    activations: tuple[tuple[str, Activation], ...] = ()
    over: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rescalings: tuple[Rescaling, ...] = ()

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for parameter, axes in self.axes:
            for axis in axes:
                for name, size in axis.classes:
                    if sizes.setdefault(name, size) != size:
                        raise UserError(f"class {name} has size {sizes[name]}, but {size} in {parameter}")
        if len(self.parameters) != len(self.axes):
            raise UserError("a parameter is listed twice")
        _algebra.check_over(self.over, sizes)
        self._groups  # noqa: B018 (dependent classes must stand beside those they depend on)
        for rescaling in self.rescalings:
            rescaling.check(self.parameters)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> dict[str, int]:
        """Symmetry classes and their sizes, in order of appearance."""
        return {name: size for _, axes in self.axes for axis in axes for name, size in axis.classes}

    @property
    def parameters(self) -> dict[str, tuple[Axis, ...]]:
        return dict(self.axes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """For every class the shape of its entry in an element: ``(*sizes of the classes it depends on, size)``."""
        classes, over = self.classes, dict(self.over)
        return {name: (*(classes[o] for o in over.get(name, ())), size) for name, size in classes.items()}

    @cached_property
    def _groups(self) -> dict[str, tuple[AxisGroup, ...]]:
        over = dict(self.over)
        return {name: axis_groups(name, axes, over) for name, axes in self.axes}

    @property
    def log10_order(self) -> float:
        """log10 of the number of permutations in the group."""
        counts = ((math.prod(outer), size) for *outer, size in self.shapes.values())
        return sum(count * math.lgamma(size + 1) for count, size in counts) / math.log(10)

    def share_moved(self, parameters: Collection[str] | None = None) -> float:
        """The share of the entries of all parameters (or of those named) that some permutation of an axis can move."""
        total = still = 0
        for name, axes in self.axes:
            if parameters is None or name in parameters:
                total += math.prod(axis.size for axis in axes)
                still += math.prod(axis.still for axis in axes)
        return (total - still) / total if total else 0.0

    def __str__(self) -> str:
        return group_text(self.shapes.values())

    def describe(self, max_lines: int | None = None) -> str:
        """The group, a line per class, per rescaling and per parameter; ``max_lines`` of them at most."""
        return describe(self, max_lines)

    # -- the group ----------------------------------------------------------------------------------------------------

    def identity(self) -> Element:
        return {name: torch.arange(shape[-1]).expand(shape).clone() for name, shape in self.shapes.items()}

    def sample(
        self,
        generator: torch.Generator | int | None = None,
        batch: int | None = None,
        kinds: Collection[str] = ("permutation",),
        spread: float = 4.0,
    ) -> Element:
        """A uniformly random group element; with ``batch``, an independent one per network.

        ``kinds`` chooses among ``permutation``, ``scale``, ``sign`` and ``phase``; the scales are log-uniform in
        ``[1 / spread, spread]``, signs and phases are fair coins.
        """
        if wrong := set(kinds) - {"permutation", "scale", "sign", "phase"}:
            raise UserError(f"unknown kind {min(wrong)!r}: choose among permutation, scale, sign, phase")
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        lead = () if batch is None else (batch,)
        element = {}
        if "permutation" in kinds:
            for name, shape in self.shapes.items():
                keys = torch.rand((*lead, *shape), generator=generator, dtype=torch.float64)
                element[name] = keys.argsort(-1)
        for key, rescaling in self._keyed:
            if rescaling.kind in kinds:
                element[key] = rescaling.sample((*lead, *self.shapes[rescaling.symmetry]), generator, spread)
        return element

    def compose(self, second: Element, first: Element) -> Element:
        """The element that acts like ``first``, then ``second``. ``UserError`` for phases, which do not compose."""
        return _algebra.compose(self._check(second), self._check(first), dict(self.over), self._rescaled)

    def invert(self, element: Element) -> Element:
        """The element that undoes ``element``. ``UserError`` for phases."""
        return _algebra.invert(self._check(element), dict(self.over), self._rescaled)

    def apply(self, state_dict: Mapping[str, Tensor], element: Element, batched: bool = False) -> dict[str, Tensor]:
        """The permuted, then rescaled state dict. Tensors carry a leading network axis when ``batched``.

        Elements ``[n]`` act on every network alike, elements ``[B, n]`` on each its own (``batched`` only). Tensors that the
        element does not touch, and names that the spec does not know, pass through as they are. Tensors of whole numbers or
        truth values are permuted like any other. Raises ``UserError`` when a shape does not fit.
        """
        batch = self._batch_of(element)
        if batch is not None and not batched:
            raise UserError("an element with a batch axis needs a batched state dict")
        known = self.parameters
        out = dict(state_dict)
        for name, value in state_dict.items():
            if name not in known:
                continue
            if tuple(value.shape[int(batched) :]) != tuple(axis.size for axis in known[name]):
                raise UserError(
                    f"{name} has shape {tuple(value.shape)}, expected {[axis.size for axis in known[name]]}"
                )
            if batch is not None and value.shape[0] != batch:
                raise UserError(f"{name} holds {value.shape[0]} networks, the element is for {batch}")
            for group in self._groups[name]:
                index = sources(group, element)
                if index is not None:
                    out[name] = gather(out[name], group.dims, index, batched)
        for key, rescaling in self._keyed:
            for term in rescaling.terms if key in element else ():
                if term.parameter in out:
                    value, groups = out[term.parameter], self._groups[term.parameter]
                    out[term.parameter] = rescale(value, term, rescaling.symmetry, element[key], groups, batched)
        return out

    @cached_property
    def _keyed(self) -> tuple[tuple[str, Rescaling], ...]:
        return tuple((f"{rescaling.kind}:{k}", rescaling) for k, rescaling in enumerate(self.rescalings))

    @property
    def _rescaled(self) -> dict[str, str]:
        """The class of every rescaling that composes: all but the phases."""
        return {key: rescaling.symmetry for key, rescaling in self._keyed if rescaling.kind != "phase"}

    def _check(self, element: Element) -> Element:
        self._batch_of(element)
        return element

    def _batch_of(self, element: Element) -> int | None:
        """The number of networks that the element is for, if it has a batch axis. Raises ``UserError`` for misfits."""
        shapes = {**self.shapes, **{key: self.shapes[rescaling.symmetry] for key, rescaling in self._keyed}}
        batches = set()
        for key, table in element.items():
            if key not in shapes:
                few = ", ".join(list(shapes)[:8]) + (", …" if len(shapes) > 8 else "")
                raise UserError(f"the element names {key}, but the group has {few or 'no classes'}")
            lead = table.dim() - len(shapes[key])
            if lead not in (0, 1) or tuple(table.shape[lead:]) != shapes[key]:
                raise UserError(f"{key} of the element has shape {tuple(table.shape)}, expected [B?, *{shapes[key]}]")
            batches |= set(table.shape[:lead])
        if len(batches) > 1:
            raise UserError(f"the element is for {' and '.join(map(str, sorted(batches)))} networks at once")
        return next(iter(batches), None)

    # -- exchange -----------------------------------------------------------------------------------------------------

    def to_axes_to_perm(self, strict: bool = True) -> dict[str, tuple[str | None, ...]]:
        """The dictionary that git re-basin (Ainsworth et al., 2023) calls ``axes_to_perm``.

        Raises ``UserError`` for an axis that mixes a class with others or with fixed positions and for a class that depends
        on others, which that format cannot say; with ``strict=False`` all axes of such classes become None, a smaller group.
        """
        frozen = {name for name, outer in self.over if outer}
        for name, axes in self.axes:
            for axis in axes:
                mixed = axis.moves and axis.plain is None
                if strict and (mixed or axis.plain in frozen):
                    kind = "flattened" if mixed else "dependent"
                    raise UserError(f"{name} has a {kind} axis ({axis}), which axes_to_perm cannot express")
                if mixed:
                    frozen |= {symmetry for symmetry, _ in axis.classes}
        return {name: tuple(None if a.plain in frozen else a.plain for a in axes) for name, axes in self.axes}

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
            "axes": {name: [axis.to_json() for axis in axes] for name, axes in self.axes},
            "activations": {name: str(kind) for name, kind in self.activations},
            "over": {name: list(outer) for name, outer in self.over},
            "rescalings": [rescaling.to_json() for rescaling in self.rescalings],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PermutationSpec:
        """Inverse of ``to_json``. Raises ``UserError`` when ``data`` does not describe a group."""
        try:
            axes = tuple((name, tuple(map(Axis.from_json, entry))) for name, entry in data["axes"].items())
            kinds = tuple((name, Activation.parse(kind)) for name, kind in data.get("activations", {}).items())
            over = tuple((name, tuple(outer)) for name, outer in data.get("over", {}).items())
            rescalings = tuple(map(Rescaling.from_json, data.get("rescalings", [])))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the description of a symmetry group is broken: {error}") from None
        return cls(axes, kinds, over, rescalings)
