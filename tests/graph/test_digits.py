"""Index patterns as layouts."""

from __future__ import annotations

import pytest
import torch

from neural_graphs.graph import Axis
from neural_graphs.graph._neurons._digits import Stretch, digits, read_axes, stretch_of
from neural_graphs.graph._neurons._pieces import section, stretch_axis


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.arange(6), [(6, 1)]),
        (torch.arange(3).repeat_interleave(4), [(3, 1), (4, 0)]),
        (torch.arange(3).repeat(4), [(4, 0), (3, 1)]),
        ((torch.arange(2)[:, None] + 2 * torch.arange(3)).flatten(), [(2, 1), (3, 2)]),
        (torch.tensor([5]), []),
        (torch.tensor([0, 1, 3, 4]), [(2, 3), (2, 1)]),
        (torch.tensor([0, 1, 3, 7]), None),
        (torch.tensor([0, 1, 2, 0, 1]), None),
    ],
)
def test_digits_of_an_array(values: torch.Tensor, expected: list[tuple[int, int]] | None) -> None:
    found = digits(values)
    assert found == expected
    if found:
        again = torch.zeros(1, dtype=torch.int64)
        for size, stride in found:
            again = (again.unsqueeze(-1) + stride * torch.arange(size)).flatten()
        assert torch.equal(again, values - values[0])


def test_stretches_are_intervals_or_periodic() -> None:
    assert stretch_of(torch.arange(3, 7), 10) == Stretch(10, 3, 7)
    periodic = stretch_of(torch.tensor([2, 3, 8, 9, 14, 15]), 18)
    assert periodic == Stretch(18, 2, 4, 6)
    assert periodic.positions.tolist() == [2, 3, 8, 9, 14, 15]
    assert stretch_of(torch.tensor([0, 1, 3]), 6) is None
    assert stretch_of(torch.tensor([2, 3, 8, 9]), 18) is None  # not in every period


def test_a_flattened_map_has_its_positions_as_features() -> None:
    axes = (Axis.of("O", 3), Axis.of("C", 4, 5))
    found = read_axes((3, 20), axes, {}, {0: torch.arange(3)}, {1: torch.arange(4).repeat_interleave(5)}, (3, 4))
    assert found is not None and (found.plain, found.features, found.groups) == (True, 5, 1)
    assert found.layout.factors == (3, 4, 5)
    channels_last = read_axes((3, 20), (Axis.fixed(3), Axis.fixed(20)), {}, {0: torch.arange(3)},
                              {1: torch.arange(4).repeat(5)}, (3, 4))  # fmt: skip
    assert channels_last is not None and not channels_last.plain
    assert channels_last.layout.source == (2,) and channels_last.layout.rest == (1,)


def test_features_that_a_symmetry_moves_are_refused() -> None:
    axes = (Axis.of("O", 3), Axis(((("K", 4), ("R", 5)),)))
    assert read_axes((3, 20), axes, {}, {0: torch.arange(3)}, {1: torch.arange(4).repeat_interleave(5)}, (3, 4)) is None


def test_interleaved_heads_are_picked() -> None:
    rows = Stretch(36, 4, 8, 12)  # [3 heads, (q, k, v), 4]: the keys
    axes = (Axis(((("H", 3), Axis(((("d", 4),), (("d", 4),), (("e", 4),)))),)), Axis.of("x", 6))
    found = read_axes((36, 6), axes, {0: rows}, {0: torch.arange(12)}, {1: torch.arange(6)}, (12, 6))
    assert found is not None and found.layout.pick == ((1, 1, 2),)
    weight = torch.randn(1, 36, 6)
    assert torch.equal(found.layout.read(weight)[0, :, :, 0], weight[0, rows.positions])
    assert stretch_axis(axes[0], rows) == Axis(((("H", 3), ("d", 4)),))


def test_groups_come_first_on_both_sides() -> None:
    source = torch.arange(6).reshape(2, 1, 3).expand(2, 4, 3).reshape(8, 3)
    steps = {0: source[:, 0], 1: source[0] - source[0, 0]}
    found = read_axes((8, 3), (Axis.fixed(8), Axis.fixed(3)), {}, {0: torch.arange(8)}, steps, (8, 6))
    assert found is not None and found.groups == 2 and found.features == 1
    depthwise = read_axes((8, 1, 3), (Axis.fixed(8), Axis.fixed(1), Axis.fixed(3)), {}, {0: torch.arange(8)},
                          {0: torch.arange(8)}, (8, 8))  # fmt: skip
    assert depthwise is not None and (depthwise.groups, depthwise.features, depthwise.plain) == (8, 3, True)


def test_sections_of_an_axis() -> None:
    packed = Axis(((("H", 3), ("d", 4)), (("H", 3), ("e", 4)), ((None, 5),)))
    assert section(packed, 12, 24) == Axis(((("H", 3), ("e", 4)),))
    assert section(packed, 26, 28) == Axis.fixed(2)
    assert section(packed, 12, 26) == Axis(((("H", 3), ("e", 4)), ((None, 2),)))
    assert section(packed, 0, 4) is None  # one head of three that are permuted
    fixed_heads = Axis((((None, 3), ("d", 4)),))
    assert section(fixed_heads, 4, 8) == Axis.of("d", 4)
    assert section(fixed_heads, 4, 12) == Axis((((None, 2), ("d", 4)),))
    assert section(fixed_heads, 2, 8) is None
