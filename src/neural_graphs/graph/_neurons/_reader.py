"""Reads a recorded graph operator by operator and notes down what happens to neurons."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._capture import Captured
from neural_graphs.graph._neurons._labels import NOBODY, Crowd, Label, Value, collapse, lift
from neural_graphs.graph._neurons._nonlinearities import result_of
from neural_graphs.graph._neurons._sites import Join, Ledger
from neural_graphs.graph._rules._elementwise import POINTWISE
from neural_graphs.graph._rules._registry import registrar

Rule = Callable[["Reader", Node], Any]
RULES: dict[str, Rule] = {}
"""Operator name (without its overload) -> what it does to neurons: a ``Value``, or a list for several results."""


rule = registrar(RULES)


class Reader:
    """One walk over a captured graph. ``env`` holds the ``Value`` of every node; findings go to ``ledger``."""

    def __init__(self, captured: Captured, ledger: Ledger) -> None:
        self.captured = captured
        self.ledger = ledger
        self.env: dict[Node, Any] = {}
        self.mingled: set[int] = set()

    def read(self) -> None:
        for node in self.captured.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "output":
                for number, result in enumerate(node.all_input_nodes):
                    self._output(number, self.env[result])
            else:
                self.env[node] = self._call(node)

    def _placeholder(self, node: Node) -> Value:
        kind, name = self.captured.sources[node.name]
        shape = tuple(node.meta["val"].shape)
        if kind == "constant" or (kind == "buffer" and name not in self.ledger.parameters):
            return Value(shape, given=False)
        if kind == "input" and [k for k, _ in self.captured.sources.values()].count("input") == 1:
            name = "input"
        self.ledger.names[node.name] = (kind, name)
        if kind == "input":
            return Value(shape, self.ledger.coordinates(node.name, shape))
        return Value(shape, self.ledger.coordinates(node.name, shape), given=False, parameters=frozenset({name}))

    def _output(self, number: int, value: Value | list[Value]) -> None:
        for one in value if isinstance(value, list) else [value]:
            crowds = self.ledger.crowds(self.latest(one)) or one.loose
            for crowd in crowds:
                self.ledger.event(crowd.ids)
                self.ledger.outputs.append(crowd.ids)

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            container, number = self.env[node.args[0]], node.args[1]  # type: ignore[index]
            return container[number] if isinstance(container, list) and isinstance(number, int) else unknown(self, node)
        if not isinstance(node.meta["val"], (Tensor, tuple, list)):
            return Value(())
        found = RULES.get(self.name(node))
        # Which operators carry the tag differs between releases of torch.
        tagged = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if found is None and (tagged or self.name(node) in POINTWISE):
            found = RULES["pointwise"]
        try:
            return (found or unknown)(self, node)
        except (RuntimeError, ValueError, IndexError, TypeError):
            # A form of the operator that its rule does not know. This costs structure only: the symmetries are found
            # elsewhere, and every parameter gets its place in any case.
            return unknown(self, node)

    # -- for rules ------------------------------------------------------------------------------------------------------

    @staticmethod
    def name(node: Node) -> str:
        schema = getattr(node.target, "_schema", None)
        namespace, _, name = (schema.name if schema is not None else "").partition("::")
        return (name if namespace == "aten" else f"{namespace}::{name}").removesuffix("_")

    def arg(self, node: Node, name: str, default: Any = None) -> Any:
        """An argument of an ATen operator by its name in the schema."""
        for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                if index < len(node.args):
                    return node.args[index]
                return node.kwargs.get(name, argument.default_value if argument.has_default_value() else default)
        return default

    def value(self, node: Node, name: str) -> Value | None:
        """An argument's ``Value``; None for an absent one."""
        found = self.arg(node, name)
        return self.env[found] if isinstance(found, Node) and isinstance(self.env[found], Value) else None

    def operands(self, node: Node) -> list[Value]:
        found: list[Value] = []
        for source in node.all_input_nodes:
            value = self.env[source]
            found += value if isinstance(value, list) else [value]
        return found

    def shape(self, node: Node) -> tuple[int, ...]:
        return tuple(node.meta["val"].shape)

    def prune(self, labels: Sequence[Label], loose: Sequence[Crowd]) -> tuple[Crowd, ...]:
        """Crowds that do not merely repeat each other or the neurons of ``labels`` (statistics of a value itself)."""
        own = [label.ids for label in labels if self.ledger.is_neuron(label)]
        found: list[Crowd] = []
        for crowd in loose:
            others = [*own, *(other.ids for other in found)]
            if not any(bool(torch.isin(crowd.ids, other).all()) for other in others):
                found.append(crowd)
        return tuple(found)

    def joined(self, loose: Sequence[Crowd], labels: Sequence[Label], attention: bool = True) -> tuple[Crowd, ...]:
        """Join attention weights to the values that they mix; what is left stays loose."""
        neurons = [label for label in labels if self.ledger.is_neuron(label)]
        if not neurons:
            return tuple(loose)
        for label in neurons:
            if attention and any(crowd.role == "attention" for crowd in loose):
                self.ledger.role(label.ids, "value")
            self.ledger.join(loose, label.ids, "attention" if attention else None)
        return ()

    def combine(
        self, values: Sequence[Value], shape: Sequence[int], kind: str = "other"
    ) -> tuple[tuple[Label, ...], tuple[Crowd, ...]]:
        """Labels of an elementwise combination: neurons that meet are joined, the later ones stand for the result."""
        result: list[Label] = []
        loose: list[Crowd] = [crowd for value in values for crowd in value.loose]
        rank = len(shape)
        for value in values:
            for label in value.labels:
                label = lift(label, rank)
                if not self.ledger.is_neuron(label):
                    if not any(label.key == other.key for other in result):
                        result.append(label)
                    continue
                partner = next((r for r in result if self.ledger.is_neuron(r) and _meets(r, label)), None)
                if partner is None:
                    result.append(label)
                else:
                    result[result.index(partner)] = self._met(partner, label, kind)
        single = [label for label in result if self.ledger.is_neuron(label) and not label.axes]
        if len(single) < sum(map(self.ledger.is_neuron, result)):
            loose += self.ledger.crowds(single)
            result = [label for label in result if label not in single]
        return tuple(result), self.prune(result, loose)

    def _met(self, first: Label, second: Label, kind: str) -> Label:
        if first.ids.shape == second.ids.shape and torch.equal(first.ids, second.ids):
            return first
        a, b = torch.broadcast_tensors(first.ids, second.ids)
        a, b = a.flatten(), b.flatten()
        both = (a != NOBODY) & (b != NOBODY) & (a != b)
        if not both.any():
            return first
        sites = self.sites_of(a[both]), self.sites_of(b[both])
        later = bool(sites[0].max() >= sites[1].max())
        source, target = (b, a) if later else (a, b)
        pairs = torch.stack([source[both], target[both]], 1).unique(dim=0)
        self.ledger.joins.append(Join(pairs[:, 0], pairs[:, 1], "identity"))
        # One layer's neurons that are added to each other are rotated (positions): still one kind of neurons.
        if kind == "scale" or not torch.equal(*sites):
            self.ledger.event(pairs[:, 0])
            self.ledger.event(pairs[:, 1])
        keep, other = (first, second) if later else (second, first)
        if bool((keep.ids == NOBODY).any()):
            ids, fill = torch.broadcast_tensors(keep.ids, other.ids)
            return Label(collapse(torch.where(ids == NOBODY, fill, ids)))
        return Label(keep.ids)

    def sites_of(self, ids: Tensor) -> Tensor:
        """Numbers that order neurons by the layer that wrote them."""
        sites = self.ledger.sites
        bases = torch.tensor([site.base for site in sites])
        order = bases.argsort()
        found = torch.searchsorted(bases[order], ids, right=True) - 1
        return order[found]

    def elementwise(self, values: Sequence[Value], shape: Sequence[int], kind: str) -> Value:
        """Values that are combined entry by entry; parameters among them become features of the neurons they meet."""
        shape = tuple(shape)
        ledger = self.ledger
        pure = [value for value in values if not value.given and value.parameters and not ledger.neurons(value)]
        others = [value for value in values if not any(value is p for p in pure)]
        given = any(value.given or ledger.neurons(value) for value in others)
        if not given:
            labels, loose = self.combine(pure, shape)
            names = frozenset().union(*(value.parameters for value in pure))
            return Value(shape, labels, loose, given=False, parameters=names)
        if pure and not any(ledger.neurons(value) for value in others):
            self._promote_input(pure, others, len(shape))
        labels, loose = self.combine(others, shape, kind)
        neurons = [label for label in labels if ledger.is_neuron(label)]
        for value in pure:
            single = tuple(lift(label, len(shape)) for label in value.labels)
            loose += ledger.feature(Value(shape, single, parameters=value.parameters), neurons, kind)
        bare = [value for value in others if value.given and value.loose and not ledger.neurons(value)]
        if kind == "bias" and bare and len(neurons) == 1 and len(neurons[0].axes) == 1:
            return self._summed(neurons[0], labels, bare, loose, shape)
        return Value(shape, labels, self.prune(labels, loose))

    def _summed(
        self,
        label: Label,
        labels: tuple[Label, ...],
        bare: Sequence[Value],
        loose: tuple[Crowd, ...],
        shape: tuple[int, ...],
    ) -> Value:
        """Neurons plus a value of which it is not known which neurons it belongs to: the sum is neurons of its own."""
        ids = label.ids.flatten()
        name = f"{self.ledger.sites[int(self.sites_of(ids.max().reshape(1)))].name}.sum"
        site = self.ledger.site(ids.numel(), name, "read")
        known = ids != NOBODY
        self.ledger.joins.append(Join(ids[known], site.ids[known], "identity"))
        self.ledger.join(loose, site.ids)
        new = Label(site.ids.reshape(label.ids.shape))
        return Value(shape, tuple(new if other is label else other for other in labels))

    def _promote_input(self, pure: Sequence[Value], others: Sequence[Value], rank: int) -> None:
        """A parameter acts along an axis of an input: its positions are neurons."""
        axes = set().union(*(lift(label, rank).axes for value in pure for label in value.labels))
        for value in others:
            for label in value.labels:
                where = lift(label, rank).axes
                if label.key is not None and len(where) == 1 and where <= axes and max(where) == max(axes):
                    self.ledger.promote(label.key)
                    return

    def latest(self, value: Value) -> list[Label]:
        """The label of the last layer that wrote into the value, where it has several on different axes."""
        return sorted(self.ledger.neurons(value), key=lambda label: int(self.sites_of(label.ids.max().reshape(1))))[-1:]

    def mingle(self, labels: Sequence[Label], target: Tensor) -> None:
        """Neurons along other axes than those that a layer sums over influence it too: its first reader is joined."""
        for crowd in self.ledger.crowds(labels):
            first = int(crowd.ids[0])
            if first not in self.mingled:
                self.mingled.add(first)
                self.ledger.join([crowd], target)

    def activate(self, node: Node, value: Value, activation: Activation) -> None:
        for label in self.latest(value):
            response = (result_of(node).name, min(label.axes)) if len(label.axes) == 1 else None
            self.ledger.activations.append((label.ids.flatten(), activation, response))
            self.ledger.event(label.ids)


def _meets(first: Label, second: Label) -> bool:
    return bool(first.axes & second.axes) or not (first.axes or second.axes)


def unknown(reader: Reader, node: Node) -> Any:
    """An operator about which nothing is known: everything that goes in influences everything that comes out."""
    ledger = reader.ledger
    values = [value for value in reader.operands(node) if isinstance(value, Value)]
    loose: list[Crowd] = [crowd for v in values for crowd in (*v.loose, *ledger.crowds(v.labels))]
    for crowd in loose:
        ledger.event(crowd.ids)
    pure = sorted({name for value in values if not value.given for name in value.parameters})
    given = any(value.given for value in values)
    if pure and (given or loose):
        inputs, loose = loose, []
        for name in pure:
            crowd = ledger.stand_alone(name)
            ledger.join(inputs, crowd.ids)
            loose.append(crowd)
        loose = [*inputs, *loose] if not inputs else loose
    names = frozenset(pure) if not given else frozenset()
    found = reader.prune((), loose)
    results = node.meta["val"]
    several = isinstance(results, (tuple, list))
    outs = [
        Value(tuple(r.shape) if isinstance(r, Tensor) else (), (), found, given, parameters=names)
        for r in (results if several else [results])
    ]
    return outs if several else outs[0]
