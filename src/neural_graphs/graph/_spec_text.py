"""A symmetry group in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from neural_graphs.graph._activation import Activation

if TYPE_CHECKING:
    from neural_graphs.graph._spec import PermutationSpec

TERMS = 12


def group_text(shapes: Iterable[tuple[int, ...]]) -> str:
    """``S32 × S32``; a class of size 64 over 12 others is ``S64^12``; long runs and long groups are shortened."""
    shapes = list(shapes)
    terms = []
    for (count, size), run in groupby((math.prod(outer), size) for *outer, size in shapes):
        one = f"S{size}^{count}" if count > 1 else f"S{size}"
        length = len(list(run))
        terms += [one] * length if length <= 2 else [f"({one})^{length}" if count > 1 else f"{one}^{length}"]
    if len(terms) > TERMS:
        return " × ".join(terms[:TERMS]) + f" × … ({len(shapes)} classes)"
    return " × ".join(terms) or "trivial"


def describe(spec: PermutationSpec, max_lines: int | None) -> str:
    """See ``PermutationSpec.describe``."""
    kinds, over = dict(spec.activations), dict(spec.over)
    lines = [f"{spec}   (10^{spec.log10_order:.0f} elements)"]
    for name, size in spec.classes.items():
        each = f" for each of {', '.join(over[name])}" if over.get(name) else ""
        lines.append(f"  {name}: {size} neurons{each}, {kinds.get(name, Activation())}")
    for rescaling in spec.rescalings:
        name = rescaling.symmetry
        neurons = " × ".join(map(str, spec.shapes[name]))
        lines.append("  " + rescaling.describe(f"{name} ({neurons} neurons, {kinds.get(name, Activation())})"))
    width = max((len(name) for name, _ in spec.axes), default=0)
    lines += [f"  {name:<{width}}  [{', '.join(map(str, axes))}]" for name, axes in spec.axes]
    if max_lines is not None and len(lines) > max(max_lines, 2):
        kept = max(max_lines, 2) - 1
        lines[kept:] = [f"  … ({len(lines) - kept} more lines)"]
    return "\n".join(lines)
