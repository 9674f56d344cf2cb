"""One pass over the recorded graph, for one class and one kind of rescaling: with which exponent does each entry scale?

Every entry of a tensor that belongs to neuron k of the class is multiplied by ``s[k] ** e``. A ``Value`` tells e: for every
axis on which the class stands, an int64 tensor of unknowns (numbers of the ``System``) that broadcasts to the tensor's
shape; 0 is the exponent zero. Where the class stands on two axes (a matrix from a residual stream to itself), the entry is
multiplied by both. An empty value does not scale at all. Rules of operators (``RULES``) get the values of the operands, put
equations between their unknowns, and return the result's value; what has no rule does not scale.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._rescale._places import Places
from neural_graphs.graph._rescale._system import System
from neural_graphs.graph._rules import Call, rule_name
from neural_graphs.graph._rules._registry import registrar
from neural_graphs.graph._var import Var

Value: TypeAlias = dict[int, Tensor]
Rule: TypeAlias = Callable[["Pass", Call], "Value | list[Value]"]

RULES: dict[str, Rule] = {}

SILENT = ("_assert_tensor_metadata", "sym_size", "sym_numel", "sym_stride", "sym_storage_offset")
"""Operators that read no entries."""


rule = registrar(RULES)


class Pass:
    """The values of all tensors so far. ``scale`` tells positive factors from signs."""

    def __init__(self, places: Places, v: Var, system: System, given: dict[Node, Value]) -> None:
        self.places, self.v, self.system, self.given = places, v, system, given
        self.scale = not system.signs
        self.values: dict[Node, Any] = {}
        self.shifts: dict[Node, Value] = {}  # sine units: how many half periods the bias of a product adds
        self.phases: dict[Node, Value] = {}  # the same, of what stands between the product and the sine
        self.after: dict[Node, Callable[[Pass, Node], None]] = {}  # moves the phases along these nodes
        self.turned: set[int] = set()  # phases that arrived at a sine

    def run(self) -> None:
        for node in self.places.visits(self.v):
            if node.op == "placeholder":
                self.values[node] = self.given.get(node, {})
            elif node.op == "output":
                self.still(node.all_input_nodes)
            elif node.target is operator.getitem:
                whole, index = self.values.get(node.args[0], {}), node.args[1]  # type: ignore[arg-type]
                self.values[node] = whole[index] if isinstance(whole, list) and isinstance(index, int) else {}
            else:
                self.values[node] = self._result(node)
                if node in self.after:
                    self.after[node](self, node)

    def _result(self, node: Node) -> Any:
        name = rule_name(node.target)
        value = node.meta.get("val")
        if name in SILENT:
            return {}
        if name not in RULES or not self._clear(node, value):
            self.still(node.all_input_nodes)
            return [{} for _ in value] if isinstance(value, (tuple, list)) else {}
        return RULES[name](self, self.places.call(node))

    def _clear(self, node: Node, value: Any) -> bool:
        parts = range(len(value)) if isinstance(value, (tuple, list)) else (0,)
        return all(not self.places.dims(node, self.v, k) or self.places.clear(node, self.v, k) for k in parts)

    # -- reading ------------------------------------------------------------------------------------------------------

    def of(self, node: Any) -> Value:
        """The value of an operand; numbers do not scale."""
        found = self.values.get(node, {}) if isinstance(node, Node) else {}
        if isinstance(found, list):  # a list of tensors used whole
            for value in found:
                self.zero(value)
            return {}
        return found

    def phase_of(self, node: Node) -> Value:
        """The phases that the bias of this product may take, in the place of the bias (see ``_sine``)."""
        return self.shifts.get(node, {})

    def turn(self, node: Any) -> Value:
        """The phases of what a sine reads."""
        found = self.phases.get(node, {})
        self.turned.update(unknown for array in found.values() for unknown in array.unique().tolist())
        return found

    def dims(self, node: Node, part: int = 0) -> list[int]:
        return self.places.dims(node, self.v, part)

    def hot(self, node: Any, dims: Iterable[int]) -> bool:
        return isinstance(node, Node) and self.places.hot(node, self.v, list(dims))

    # -- equations ----------------------------------------------------------------------------------------------------

    def zero(self, value: Value) -> None:
        for array in value.values():
            for unknown in array.unique().tolist():
                self.system.require({unknown: 1})

    def still(self, nodes: Iterable[Node]) -> None:
        """None of these tensors scales."""
        for node in nodes:
            found = self.values.get(node, {})
            for value in found if isinstance(found, list) else [found]:
                self.zero(value)

    def same(self, *values: Value) -> Value:
        """Values (of tensors of one rank) that are equal wherever they broadcast to each other."""
        first = values[0]
        for other in values[1:]:
            for dim in first.keys() | other.keys():
                self._equal(first.get(dim), other.get(dim))
        return max(values, key=len)

    def _equal(self, a: Tensor | None, b: Tensor | None) -> None:
        if a is None or b is None:
            for unknown in (a if b is None else b).unique().tolist():  # type: ignore[union-attr]
                self.system.require({unknown: 1})
            return
        for x, y in _pairs([a, b])[0]:
            self.system.equal(x, y)

    def add(self, terms: Sequence[tuple[Fraction | int, Value]]) -> Value:
        """A linear combination of values (of tensors of one rank)."""
        found: Value = {}
        for dim in sorted({dim for _, value in terms for dim in value}):
            found[dim] = self.sum([(c, value[dim]) for c, value in terms if dim in value])
        return found

    def sum(self, terms: Sequence[tuple[Fraction | int, Tensor]]) -> Tensor:
        rows, inverse = _pairs([array for _, array in terms])
        factors = [c for c, _ in terms]
        found = torch.tensor([self.system.combine(zip(row, factors, strict=True)) for row in rows])
        return found[inverse]

    def times(self, value: Value, factor: Fraction | int) -> Value:
        return self.add([(factor, value)])

    def level(self, value: Value, dims: Iterable[int]) -> Value:
        """The value of a tensor whose entries scale alike along these axes: they have size 1 in the result."""
        found = {}
        for key, array in value.items():
            for dim in dims:
                if array.shape[dim] > 1:
                    first = array.narrow(dim, 0, 1)
                    self._equal(array, first)
                    array = first
            found[key] = array
        return found


# -- arrays of unknowns -----------------------------------------------------------------------------------------------------


def _pairs(arrays: list[Tensor]) -> tuple[list[list[int]], Tensor]:
    """The different combinations of entries of arrays that broadcast to each other, and which one stands where."""
    if all(array.numel() == 1 for array in arrays):
        shape = [1] * max(array.dim() for array in arrays)
        return [[int(array) for array in arrays]], torch.zeros(shape, dtype=torch.int64)
    arrays = list(torch.broadcast_tensors(*arrays))
    codes = torch.zeros_like(arrays[0])
    for array in arrays:
        codes = torch.unique(codes * (int(array.max()) + 1) + array, return_inverse=True)[1]
    count = int(codes.max()) + 1
    places = torch.empty(count, dtype=torch.int64)
    flat = codes.flatten()
    places[flat] = torch.arange(flat.numel())
    rows = torch.stack([array.flatten()[places] for array in arrays], 1).tolist()
    return rows, codes


def compact(array: Tensor) -> Tensor:
    """The array with size 1 along axes on which it does not change."""
    for dim in range(array.dim()):
        if array.shape[dim] > 1:
            first = array.narrow(dim, 0, 1)
            if array.stride(dim) == 0 or bool((array == first).all()):
                array = first
    return array


def aligned(value: Value, rank: int, out: int) -> Value:
    """The value of a tensor of ``rank`` axes, broadcast to one of ``out``."""
    lead = out - rank
    if not lead or not value:
        return value
    return {dim + lead: array.reshape((1,) * lead + array.shape) for dim, array in value.items()}


def rank_of(node: Any) -> int:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dim() if isinstance(value, Tensor) else 0


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)
