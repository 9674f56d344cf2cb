"""Homogeneous linear equations among the exponents of one class, over the rationals or modulo 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

Row = dict[int, Fraction]
"""A linear combination of unknowns."""


class System:
    """Unknowns are numbered from 1 on in the order in which they are made; 0 stands for an exponent that is zero.

    Every equation is solved for its latest unknown, so that what stays free, and the solutions are told by, are the
    earliest ones. With ``signs``, exponents count modulo 2.
    """

    def __init__(self, signs: bool) -> None:
        self.signs = signs
        self._count = 0
        self._rows: dict[int, Row] = {}  # an unknown in terms of earlier ones
        self._known: dict[tuple[tuple[int, Fraction], ...], int] = {}
        self._equal: set[tuple[int, int]] = set()

    def unknown(self) -> int:
        self._count += 1
        return self._count

    def require(self, row: Mapping[int, Fraction | int]) -> bool:
        """This combination is zero. Returns whether that says something new."""
        left = self._tidy(row.items())
        while left:
            latest = max(left)
            factor = left.pop(latest)
            if latest not in self._rows:
                self._rows[latest] = {k: -c / factor for k, c in left.items()}
                return True
            left = self._tidy([*left.items(), *((k, factor * c) for k, c in self._rows[latest].items())])
        return False

    def equal(self, a: int, b: int) -> None:
        pair = (min(a, b), max(a, b))
        if a != b and pair not in self._equal:
            self._equal.add(pair)
            self.require({a: 1, b: -1})

    def combine(self, terms: Iterable[tuple[int, Fraction | int]]) -> int:
        """An unknown that equals this combination; the same for the same combination."""
        row = self._tidy(terms)
        if not row:
            return 0
        key = tuple(sorted(row.items()))
        if len(key) == 1 and key[0][1] == 1:
            return key[0][0]
        if key not in self._known:
            self._known[key] = found = self.unknown()
            self.require({**row, found: Fraction(-1)})
        return self._known[key]

    def solutions(self, first: int) -> list[Row]:
        """A basis of all solutions, told by the unknowns up to number ``first``: in each, one of those that are free is 1
        and all other free ones are 0. Solutions in which all of them are 0 are left out."""
        values: dict[int, Row] = {}
        for unknown in range(1, first + 1):
            row = self._rows.get(unknown)
            if row is None:
                values[unknown] = {unknown: Fraction(1)}
            else:
                values[unknown] = self._tidy((f, c * x) for k, c in row.items() for f, x in values[k].items())
        free = [unknown for unknown in values if unknown not in self._rows]
        return [{k: row[f] for k, row in values.items() if f in row} for f in free]

    def _tidy(self, terms: Iterable[tuple[int, Fraction | int]]) -> Row:
        row: Row = {}
        for unknown, factor in terms:
            row[unknown] = row.get(unknown, Fraction(0)) + factor
        if self.signs:
            return {k: Fraction(1) for k, c in row.items() if k and c % 2}
        return {k: c for k, c in row.items() if k and c}
