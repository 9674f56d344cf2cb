"""One axis of a parameter: which symmetry classes its positions belong to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, Union

Factor: TypeAlias = Union[tuple[str | None, int], "Axis"]
"""``(class, size)``, ``(None, size)`` for positions that stay where they are, or a nested sum."""


class Digit(NamedTuple):
    """One factor of a piece: moving one step along it moves ``stride`` positions along the axis."""

    symmetry: str | None
    size: int
    stride: int


class Piece(NamedTuple):
    """A product of plain factors: it holds the positions ``offset + Σ digit · stride``."""

    offset: int
    digits: tuple[Digit, ...]


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter as a concatenation (sum) of products, each row-major, outermost factor first.

    A plain axis is one product of one factor. The input axis of a linear layer that reads a flattened ``[c, h, w]`` map is
    one product, the channels' class times a fixed factor of size ``h * w``; the axis behind a concatenation is a sum; the
    packed query-key-value axis of attention is a sum of three products ``heads · inner``. A factor may itself be a sum.
    """

    parts: tuple[tuple[Factor, ...], ...]

    @classmethod
    def fixed(cls, size: int) -> Axis:
        return cls((((None, size),),))

    @classmethod
    def of(cls, name: str | None, size: int, positions: int = 1) -> Axis:
        """One class (or none), each of its neurons holding ``positions`` neighbouring places."""
        return cls((((name, size),) if positions == 1 else ((name, size), (None, positions)),))

    @cached_property
    def size(self) -> int:
        return sum(math.prod(map(_size, part)) for part in self.parts)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The axis as a plain sum of products: nested sums multiplied out, which makes their pieces strided."""
        found = []
        start = 0
        for part in self.parts:
            stride = 1
            products = [Piece(0, ())]
            for factor in reversed(part):
                if isinstance(factor, Axis):
                    inner = [_scaled(piece, stride) for piece in factor.pieces]
                else:
                    inner = [Piece(0, (Digit(*factor, stride),))]
                products = [Piece(a.offset + b.offset, a.digits + b.digits) for a in inner for b in products]
                stride *= _size(factor)
            found += [Piece(start + offset, digits) for offset, digits in products]
            start += stride
        return tuple(found)

    @cached_property
    def classes(self) -> tuple[tuple[str, int], ...]:
        """Every class of the axis with its size, in order of appearance, repetitions included."""
        return tuple(_classes(self))

    @property
    def moves(self) -> bool:
        return bool(self.classes)

    @property
    def still(self) -> int:
        """Number of positions that no permutation moves."""
        return sum(
            math.prod(digit.size for digit in digits)
            for _, digits in self.pieces
            if all(digit.symmetry is None or digit.size == 1 for digit in digits)
        )

    @property
    def plain(self) -> str | None:
        """The class, if the axis is exactly one class and nothing else."""
        if len(self.pieces) != 1:
            return None
        digits = [digit for digit in self.pieces[0].digits if digit.symmetry is not None or digit.size != 1]
        return digits[0].symmetry if len(digits) == 1 else None

    def __str__(self) -> str:
        return " + ".join("·".join(map(_factor_text, part)) for part in self.parts)

    def to_json(self) -> list[list[Any]]:
        return [[{"sum": f.to_json()} if isinstance(f, Axis) else list(f) for f in part] for part in self.parts]

    @classmethod
    def from_json(cls, data: Any) -> Axis:
        """Inverse of ``to_json``. Raises one of Python's own errors when ``data`` does not describe an axis."""
        if not isinstance(data, list):
            raise TypeError(f"{data!r} is no axis")
        return cls(tuple(tuple(map(_factor_from_json, part)) for part in data))


def _size(factor: Factor) -> int:
    return factor.size if isinstance(factor, Axis) else factor[1]


def _scaled(piece: Piece, stride: int) -> Piece:
    digits = tuple(digit._replace(stride=digit.stride * stride) for digit in piece.digits)
    return Piece(piece.offset * stride, digits)


def _classes(axis: Axis) -> Iterator[tuple[str, int]]:
    for part in axis.parts:
        for factor in part:
            if isinstance(factor, Axis):
                yield from factor.classes
            elif factor[0] is not None:
                yield factor[0], factor[1]


def _factor_text(factor: Factor) -> str:
    if isinstance(factor, Axis):
        return f"({factor})"
    return factor[0] if factor[0] is not None else str(factor[1])


def _factor_from_json(data: Any) -> Factor:
    if isinstance(data, dict):
        return Axis.from_json(data["sum"])
    name, size = data
    if not (name is None or isinstance(name, str)) or not isinstance(size, int):
        raise TypeError(f"{data!r} is no factor of an axis")
    return name, size
