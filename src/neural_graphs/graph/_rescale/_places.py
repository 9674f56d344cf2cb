"""Where a class stands in the tensors of a recorded graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._axis import Axis
from neural_graphs.graph._capture import Captured
from neural_graphs.graph._propagate import Propagation
from neural_graphs.graph._propagate import _axis as axis_of_space
from neural_graphs.graph._rules import Call
from neural_graphs.graph._var import Space, Var, deps_of, present, splice

Counts = dict[Var, int]
"""How often a variable stands in one position of an axis, at most."""


class Places:
    """The types of all tensors, indexed by class; shared by the passes for all classes."""

    def __init__(self, captured: Captured, propagation: Propagation) -> None:
        self.captured, self.names = captured, propagation.names
        self.parameters = propagation.spec.parameters
        self.nodes = list(captured.graph.nodes)
        self.outer = {v: deps_of(v) for v in self.names}
        self._spaces = propagation.spaces
        self._counts: dict[int, Counts] = {}
        self._calls: dict[Node, Call] = {}
        self._own: dict[Node, list[list[Counts]]] = {n: self._of(propagation.spaces.get(n)) for n in self.nodes}
        self._visits: dict[Var, set[Node]] = {}
        for node in self.nodes:
            for tensor in self._own[node]:
                for counts in tensor:
                    for v in counts:
                        if v in self.names:
                            self._visits.setdefault(v, set()).update([node, *node.users])
        self._order = {node: k for k, node in enumerate(self.nodes)}

    def visits(self, v: Var) -> list[Node]:
        """The nodes that hold or read the class, in order."""
        return sorted(self._visits.get(v, ()), key=self._order.__getitem__)

    def call(self, node: Node) -> Call:
        if node not in self._calls:
            self._calls[node] = Call(node, self._spaces, self.captured.constants)
        return self._calls[node]

    def dims(self, node: Node, v: Var, part: int = 0) -> list[int]:
        """The axes of a node's tensor (of the one of that number, if there are several) that hold the class."""
        tensors = self._own[node]
        return [d for d, counts in enumerate(tensors[part]) if v in counts] if part < len(tensors) else []

    def clear(self, node: Node, v: Var, part: int = 0) -> bool:
        """Whether every entry says which neuron of the class it belongs to: nowhere the class stands twice in one place,
        and what it depends on stands in one place only."""
        tensors = self._own[node]
        if part >= len(tensors) or any(counts.get(v, 0) > 1 for counts in tensors[part]):
            return False
        return all(sum(counts.get(h, 0) for counts in tensors[part]) == 1 for h in self.outer[v])

    def hot(self, node: Node, v: Var, dims: list[int]) -> bool:
        """Whether moving along one of these axes leads to other neurons of the class."""
        tensor = self._own[node][0] if self._own[node] else []
        return any(w in tensor[d] for d in dims for w in (v, *self.outer[v]))

    def holds_outer(self, node: Node, v: Var, dim: int) -> bool:
        """Whether a class that this one depends on stands on the axis."""
        return any(w in self._own[node][0][dim] for w in self.outer[v])

    def members(self, node: Node, v: Var, dim: int) -> Tensor | None:
        """Which positions of an axis belong to the class, bool ``[n]``; None where that differs along another axis."""
        spaces = self._spaces[node]
        axis = None if spaces and isinstance(spaces[0], list) else self.axis(spaces[dim])
        return None if axis is None else indices(axis, self.names[v]) >= 0

    def neurons(self, node: Node, v: Var, dim: int) -> list[Tensor] | None:
        """For every position of an axis its index in the class and in all that the class depends on (-1 where the axis does
        not hold it), int64 ``[n]`` each; None where that differs along another axis."""
        axis = self.axis(self._spaces[node][dim])
        return None if axis is None else [indices(axis, self.names[w]) for w in (v, *self.outer[v])]

    def axis(self, space: Space) -> Axis | None:
        """A space as an axis; None where it is another one for each index of another axis."""
        if any(w.kind == "cases" for w in present([space])):
            return None
        return axis_of_space(space, self.names)

    def _of(self, value: Any) -> list[list[Counts]]:
        if value is None or (isinstance(value, list) and not value):
            return [[]]
        if isinstance(value, list) and any(isinstance(axes, list) for axes in value):
            return [self._tensor(axes) for axes in value]
        return [self._tensor(value)]

    def _tensor(self, axes: list[Space] | None) -> list[Counts]:
        return [self._axis(space) for space in axes or ()]

    def _axis(self, space: Space) -> Counts:
        if id(space) not in self._counts:  # the spaces live as long as the propagation does
            self._counts[id(space)] = _counts(space)
        return self._counts[id(space)]


def _counts(space: Space) -> Counts:
    """Over the segments of a sum (and the cases of a family) the maximum, over the factors of a product the sum."""
    found: Counts = {}
    for segment in space:
        inner: Counts = {}
        for v in splice(segment):
            one: Counts = {v: 1}
            if v.kind == "sum":
                one |= _counts(v.parts)
            elif v.kind == "cases":
                for branch in v.branches:
                    for w, n in _counts(branch).items():
                        one[w] = max(one.get(w, 0), n)
            for w, n in one.items():
                inner[w] = inner.get(w, 0) + n
        for w, n in inner.items():
            found[w] = max(found.get(w, 0), n)
    return found


def indices(axis: Axis, name: str) -> Tensor:
    """For every position of an axis its index in the class, -1 elsewhere: int64 ``[n]``."""
    found = torch.full((axis.size,), -1)
    for offset, digits in axis.pieces:
        grid = found.as_strided([digit.size for digit in digits], [digit.stride for digit in digits], offset)
        for k, digit in enumerate(digits):
            if digit.symmetry == name:
                grid.copy_(torch.arange(digit.size).reshape([-1 if j == k else 1 for j in range(len(digits))]))
    return found
