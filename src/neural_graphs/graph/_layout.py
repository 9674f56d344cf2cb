"""Between a tensor of the state dict and the edges or node features that it holds: slicing, reshaping, permuting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Cut = tuple[int, int, int]
"""``(dim, start, stop)``: the positions ``start:stop`` of one axis."""


@dataclass(frozen=True)
class Layout:
    """Which part of a tensor, and how the part's axes become ``[target, source, features]``.

    ``part`` cuts axes of the tensor; what is left is reshaped, row-major, to ``factors``; ``pick`` then cuts factors (for
    interleaved packings, such as a query-key-value weight ordered ``[heads, 3, d]``). ``target`` and ``source`` list the
    factors that form the two node axes, in that order; the others, in order, are the features. No source factors: the
    source axis has size 1.

    Reading and writing only slice, reshape and permute, so an edge tensor is a view of the parameter unless ``target``,
    ``source`` or the features join factors that do not lie next to each other in memory.
    """

    part: tuple[Cut, ...]
    factors: tuple[int, ...]
    target: tuple[int, ...]
    source: tuple[int, ...] = ()
    pick: tuple[Cut, ...] = ()

    @property
    def rest(self) -> tuple[int, ...]:
        """The factors that form the feature axis."""
        return tuple(i for i in range(len(self.factors)) if i not in self.target and i not in self.source)

    @property
    def picked(self) -> tuple[int, ...]:
        """The sizes of the factors after ``pick``."""
        sizes = list(self.factors)
        for factor, start, stop in self.pick:
            sizes[factor] = stop - start
        return tuple(sizes)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``(n_target, n_source, features)``."""
        picked = self.picked
        target, source, rest = (math.prod(picked[i] for i in part) for part in (self.target, self.source, self.rest))
        return target, source, rest

    def cut(self, value: Tensor) -> Tensor:
        """The ``part`` of ``value`` ``[B, *shape]``, a view."""
        for dim, start, stop in self.part:
            value = value.narrow(dim + 1, start, stop - start)
        return value

    def read(self, value: Tensor) -> Tensor:
        """``value`` ``[B, *shape]`` as ``[B, n_target, n_source, features]``; a view whenever strides allow."""
        batch = value.shape[0]
        split = self.cut(value).reshape(batch, *self.factors)
        for factor, start, stop in self.pick:
            split = split.narrow(factor + 1, start, stop - start)
        order = (*self.target, *self.source, *self.rest)
        return split.permute(0, *(i + 1 for i in order)).reshape(batch, *self.sizes)

    def write(self, value: Tensor, edges: Tensor) -> None:
        """Write ``edges`` ``[B, n_target, n_source, features]`` into their place in ``value`` ``[B, *shape]``."""
        split = self._split(edges)
        part = self.cut(value)
        if self.pick:
            whole = part.reshape(part.shape[0], *self.factors)
            view = whole
            for factor, start, stop in self.pick:
                view = view.narrow(factor + 1, start, stop - start)
            view.copy_(split)
            if whole.data_ptr() != part.data_ptr():  # the reshape had to copy
                part.copy_(whole.reshape(part.shape))
        else:
            part.copy_(split.reshape(part.shape))

    def whole(self, edges: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``[B, *shape]`` of a layout without ``part`` and ``pick``; a view whenever strides allow."""
        return self._split(edges).reshape(edges.shape[0], *shape)

    def surround(self, edges: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor ``[B, *shape]`` that ``edges`` were read from, or None when they cannot be a view of one.

        Only a guess from strides: whoever asks compares what every layout reads in it with what they hold.
        """
        parts = list(shape)
        split = _widen(self._split(edges), self.factors, self.pick)
        if split is None:
            return None
        for dim, start, stop in self.part:
            parts[dim] = stop - start
        return _widen(split.reshape(edges.shape[0], *parts), shape, self.part)

    def _split(self, edges: Tensor) -> Tensor:
        """``edges`` with their factors apart again and in order, ``[B, *picked]``."""
        order = (*self.target, *self.source, *self.rest)
        picked = self.picked
        apart = edges.reshape(edges.shape[0], *(picked[i] for i in order))
        return apart.permute(0, *(order.index(i) + 1 for i in range(len(order))))

    def overlaps(self, other: Layout) -> bool:
        """Whether the two may share entries of one tensor: True unless their cuts show that they cannot."""
        if _apart(self.part, other.part):
            return False
        same = (self.part, self.factors) == (other.part, other.factors)
        return not (same and _apart(self.pick, other.pick))


def _apart(first: tuple[Cut, ...], second: tuple[Cut, ...]) -> bool:
    return any(d == e and (b <= c or e_stop <= a) for d, a, b in first for e, c, e_stop in second)


def _widen(value: Tensor, sizes: tuple[int, ...], cuts: tuple[Cut, ...]) -> Tensor | None:
    """The tensor ``[B, *sizes]`` of which ``value`` is the slice ``cuts``, or None when the memory does not reach so far."""
    stride = value.stride()
    offset = int(value.storage_offset()) - sum(start * stride[dim + 1] for dim, start, _ in cuts)
    size = (value.shape[0], *sizes)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size or offset < 0 or last >= value.untyped_storage().nbytes() // value.element_size():
        return None
    return value.as_strided(size, stride, offset)
