"""Symmetries that multiply instead of permute: positive scale, sign, and phase with sign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._action import AxisGroup, field
from neural_graphs.graph._axis import Axis

Kind = Literal["scale", "sign", "phase"]
_WORDS: dict[str, str] = {"scale": "positive scale", "sign": "sign", "phase": "phase with sign"}


@dataclass(frozen=True)
class Term:
    """What a rescaling by s does to one axis of one parameter: ``x <- (x + offset) * s**exponent - offset`` at the places
    of the class, then ``x <- x + shift`` where s = -1 (phase only). ``pieces`` are the numbers of those pieces of the axis
    (``Axis.pieces``) that it is for, such as the queries of a packed projection; () means all. Where the class stands twice
    in a place (a flattened outer product), s is the product of both factors."""

    parameter: str
    axis: int
    exponent: float = 0.0
    offset: float = 0.0
    shift: float = 0.0
    pieces: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.parameter}[{', '.join(map(str, self.pieces))}]" if self.pieces else self.parameter

    def to_json(self) -> list[Any]:
        return [self.parameter, self.axis, self.exponent, self.offset, self.shift, list(self.pieces)]

    @classmethod
    def from_json(cls, data: Any) -> Term:
        parameter, axis, exponent, offset, shift, pieces = data
        numbers = tuple(map(int, pieces))
        return cls(str(parameter), int(axis), float(exponent), float(offset), float(shift), numbers)


@dataclass(frozen=True)
class Rescaling:
    """One factor s per neuron of a class, free to choose: s > 0 for ``scale`` (ReLU-like units), s = ±1 for ``sign`` (odd
    units: tanh, sine) and ``phase`` (sine units: sin(z + π) = -sin(z), so where s = -1 the bias moves by half a period and
    the outgoing weights change sign)."""

    kind: Kind
    symmetry: str
    terms: tuple[Term, ...]

    def check(self, axes: Mapping[str, tuple[Axis, ...]]) -> None:
        """Raises ``UserError`` unless every term names an axis that holds the class."""
        if self.kind not in _WORDS:
            raise UserError(f"unknown kind of rescaling {self.kind!r}: choose one of {', '.join(_WORDS)}")
        if not any(self.symmetry in dict(axis.classes) for entry in axes.values() for axis in entry):
            raise UserError(f"a {self.kind} is claimed for class {self.symmetry}, but no axis holds it")
        for term in self.terms:
            entry = axes.get(term.parameter, ())
            if not 0 <= term.axis < len(entry) or self.symmetry not in dict(entry[term.axis].classes):
                raise UserError(f"axis {term.axis} of {term.parameter} holds no class {self.symmetry} to rescale")
            for number in term.pieces:
                pieces = entry[term.axis].pieces
                if not 0 <= number < len(pieces) or all(d.symmetry != self.symmetry for d in pieces[number].digits):
                    raise UserError(f"piece {number} of axis {term.axis} of {term.parameter} holds no {self.symmetry}")
            if self.kind != "scale" and term.exponent != int(term.exponent):
                raise UserError(f"a {self.kind} needs whole exponents, not {term.exponent} for {term.parameter}")
            if self.kind != "phase" and term.shift:
                raise UserError(f"a {self.kind} cannot shift {term.parameter}; only a phase can")

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None, spread: float) -> Tensor:
        """Random factors (float64): log-uniform in ``[1 / spread, spread]``, or -1 and +1 with equal chance."""
        if self.kind == "scale":
            return spread ** (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        return 2 * torch.randint(2, shape, generator=generator).double() - 1

    def describe(self, neurons: str) -> str:
        names = dict.fromkeys(map(str, self.terms))
        return f"{neurons}: {_WORDS[self.kind]}; touches {', '.join(names) or 'nothing'}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "symmetry": self.symmetry, "terms": [term.to_json() for term in self.terms]}

    @classmethod
    def from_json(cls, data: Any) -> Rescaling:
        return cls(data["kind"], str(data["symmetry"]), tuple(map(Term.from_json, data["terms"])))


def rescale(
    value: Tensor, term: Term, symmetry: str, vector: Tensor, groups: Iterable[AxisGroup], batched: bool
) -> Tensor:
    """One term's action on one tensor. Raises ``UserError`` for tensors of whole numbers."""
    if not (value.is_floating_point() or value.is_complex()):
        raise UserError(f"{term.parameter} holds {value.dtype} entries, which cannot be rescaled")
    group = next(group for group in groups if term.axis in group.dims)
    # Types of less than 32 bits are widened for the arithmetic, so that only the result is rounded.
    work = value.float() if value.element_size() < 4 else value
    real = work.real.dtype if work.is_complex() else work.dtype

    found = field(group, term.axis, symmetry, vector, term.pieces)
    lead = found.shape[: found.dim() - len(group.dims)]
    shape = [1] * (value.dim() - batched)
    for dim, size in zip(group.dims, group.sizes, strict=True):
        shape[dim] = size
    factors = found.reshape(*(lead or (1,) * batched), *shape)
    if term.exponent:
        powers = (factors**term.exponent).to(work.device, real)
        # (x + offset) f - offset, written such that f = 1 leaves x exactly as it is
        work = work * powers + term.offset * (powers - 1) if term.offset else work * powers
    if term.shift:
        work = work + term.shift * (factors < 0).to(work.device, real)
    return work.to(value.dtype)
