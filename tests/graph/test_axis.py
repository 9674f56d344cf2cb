"""Axes as sums of products: sizes, pieces, text."""

from __future__ import annotations

import json

import pytest

from neural_graphs.graph import Axis
from neural_graphs.graph._axis import Digit, Piece

H, D, P = ("H", 2), ("d", 3), ("P", 4)


def test_shorthands() -> None:
    assert Axis.fixed(5) == Axis((((None, 5),),)) and not Axis.fixed(5).moves
    assert Axis.of("P", 4) == Axis(((P,),)) and Axis.of("P", 4).moves
    assert Axis.of("P", 4, 6) == Axis(((P, (None, 6)),))
    assert Axis.of(None, 4) == Axis.fixed(4)


@pytest.mark.parametrize(
    ("axis", "size", "text", "still", "plain"),
    [
        (Axis.fixed(5), 5, "5", 5, None),
        (Axis.of("P", 4), 4, "P", 0, "P"),
        (Axis.of("P", 4, 6), 24, "P·6", 0, None),
        (Axis(((("P", 4), (None, 1)),)), 4, "P·1", 0, "P"),
        (Axis(((Axis.of("P", 4),),)), 4, "(P)", 0, "P"),
        (Axis(((H, D), (P,), ((None, 7),))), 17, "H·d + P + 7", 7, None),
        (Axis(((H, Axis(((D,), ((None, 2),)))),)), 10, "H·(d + 2)", 0, None),
        (Axis((((None, 2), Axis(((D,), ((None, 2),)))),)), 10, "2·(d + 2)", 4, None),
        (Axis(((("one", 1),), ((None, 2),))), 3, "one + 2", 3, None),
        (Axis(()), 0, "", 0, None),
    ],
)
def test_reading(axis: Axis, size: int, text: str, still: int, plain: str | None) -> None:
    assert (axis.size, str(axis), axis.still, axis.plain) == (size, text, still, plain)
    assert Axis.from_json(json.loads(json.dumps(axis.to_json()))) == axis


def test_pieces_of_nested_sums_are_strided() -> None:
    axis = Axis((((None, 1),), (H, Axis(((D,), ((None, 2),))), P)))
    assert axis.pieces == (
        Piece(0, (Digit(None, 1, 1),)),
        Piece(1, (Digit("H", 2, 20), Digit("d", 3, 4), Digit("P", 4, 1))),
        Piece(1 + 12, (Digit("H", 2, 20), Digit(None, 2, 4), Digit("P", 4, 1))),
    )
    assert axis.classes == (H, D, P)


def test_pieces_cover_every_position_once() -> None:
    axis = Axis(((H, Axis(((D, D), (P,)))), (Axis(((H,), ((None, 3),))), Axis(((D,), (P,))))))
    places = []
    for offset, digits in axis.pieces:
        found = [offset]
        for digit in digits:
            found = [place + k * digit.stride for place in found for k in range(digit.size)]
        places += found
    assert sorted(places) == list(range(axis.size))
