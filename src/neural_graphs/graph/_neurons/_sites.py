"""What a recorded graph says about neurons: where they arise, which parameters act on them, what joins them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._axis import Axis, Factor
from neural_graphs.graph._neurons._labels import NOBODY, Crowd, Key, Label, Value, lift, project

Response = tuple[str, int]
"""Where the responses of neurons stand: the node of the recorded graph, and the axis of its value."""


@dataclass(eq=False)
class Site:
    """Neurons that arise together: what one layer writes, an axis of an input or of a parameter, or one that is read.

    They have the numbers ``base`` to ``base + size``. ``kind`` is "layer", "input", "tensor" (of a parameter), or "read"
    (an axis that a layer reads although no layer wrote it, such as the tokens that an MLP-Mixer mixes).
    """

    base: int
    size: int
    name: str
    kind: str
    response: Response | None = None

    @property
    def ids(self) -> Tensor:
        return torch.arange(self.base, self.base + self.size)


@dataclass(eq=False)
class Use:
    """A parameter, or a part of it, acts between neurons: ``target`` and ``source`` say which, on its own index space.

    Without ``source`` it is a feature of the target neurons. ``kind`` is the block's or the feature's.
    """

    parameter: str
    target: Tensor
    source: Tensor | None
    kind: str
    kernel: tuple[int, ...] = ()


@dataclass(eq=False)
class Join:
    """Neurons that influence others without a parameter: one by one if ``aligned``, else all of them all of the others."""

    source: Tensor
    target: Tensor
    kind: str
    aligned: bool = True


@dataclass(eq=False)
class Ledger:
    """All that was found out while reading a graph; node sets and blocks are made from it afterwards.

    ``parameters`` gives the axes of every floating-point tensor of the state dict, as the symmetry group acts on them.
    ``over`` says which classes depend on which others. ``events`` are sets of neurons that were used
    alike, so that a packed axis can be taken apart; ``products`` holds aligned queries and keys; ``strays`` are parameters
    that act on neurons in no way that a block can say.
    """

    parameters: dict[str, tuple[Axis, ...]]
    over: dict[str, tuple[str, ...]] = field(default_factory=dict)
    total: int = 0
    sites: list[Site] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    events: list[Tensor] = field(default_factory=list)
    activations: list[tuple[Tensor, Activation, Response | None]] = field(default_factory=list)
    roles: list[tuple[Tensor, str]] = field(default_factory=list)
    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    strays: list[tuple[str, Tensor]] = field(default_factory=list)
    keys: dict[Key, tuple[int, int]] = field(default_factory=dict)
    promoted: dict[Key, Site] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    own: dict[tuple[str, tuple[int, ...]], Site] = field(default_factory=dict)

    def shape(self, parameter: str) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.parameters[parameter])

    def closed(self, axis: Axis) -> bool:
        """Whether an axis has all classes that its classes depend on: only then can it be that of a node set."""
        names = {name for name, _ in axis.classes}
        return all(names.issuperset(self.over.get(name, ())) for name in names)

    # -- neurons --------------------------------------------------------------------------------------------------------

    def site(self, size: int, name: str, kind: str, response: Response | None = None) -> Site:
        found = Site(self.total, size, name, kind, response)
        self.total += size
        self.sites.append(found)
        return found

    def coordinates(self, node: str, shape: Sequence[int]) -> tuple[Label, ...]:
        """Labels for the axes of an input or parameter: neurons as soon as a layer reads them as such."""
        labels = []
        for dim, size in enumerate(shape):
            if size > 1:
                self.keys[node, dim] = (self.total, size)
                ids = torch.arange(self.total, self.total + size)
                labels.append(Label(ids.reshape([size if d == dim else 1 for d in range(len(shape))]), (node, dim)))
                self.total += size
        return tuple(labels)

    def is_neuron(self, label: Label) -> bool:
        return label.key is None or label.key in self.promoted

    def neurons(self, value: Value) -> list[Label]:
        return [label for label in value.labels if self.is_neuron(label)]

    def promote(self, key: Key) -> Site:
        """The positions along an axis of an input or parameter become neurons."""
        if key in self.promoted:
            return self.promoted[key]
        base, size = self.keys[key]
        kind, name = self.names[key[0]]
        own = "input" if kind == "input" else "tensor"
        found = Site(base, size, name, own, key if own == "input" else None)
        self.sites.append(found)
        self.promoted[key] = found
        if own == "tensor":
            shape = self.shape(name)
            target = found.ids.reshape([size if d == key[1] else 1 for d in range(len(shape))])
            self.uses.append(Use(name, target, self.leftover(name, target), "token"))
        return found

    def leftover(self, parameter: str, target: Tensor) -> Tensor | None:
        """Source neurons for the axes of a parameter on which its target does not depend: a node set of their own."""
        shape = self.shape(parameter)
        dims = tuple(j for j, size in enumerate(shape) if size > 1 and target.shape[j] == 1)
        if not dims:
            return None
        site = self.own.get((parameter, dims))
        if site is None:
            site = self.site(math.prod(shape[j] for j in dims), f"{parameter}.positions", "tensor")
            self.own[parameter, dims] = site
        return site.ids.reshape([size if j in dims else 1 for j, size in enumerate(shape)])

    # -- what happens to them -------------------------------------------------------------------------------------------

    def event(self, ids: Tensor) -> None:
        self.events.append(ids[ids != NOBODY].unique())

    def role(self, ids: Tensor, role: str) -> None:
        self.roles.append((ids[ids != NOBODY].unique(), role))
        self.event(ids)

    def join(self, crowds: Iterable[Crowd], target: Tensor, kind: str | None = None) -> None:
        """Everything in ``crowds`` influences the neurons ``target``."""
        target = target[target != NOBODY].unique()
        for crowd in crowds:
            self.joins.append(Join(crowd.ids, target, kind or crowd.role, aligned=False))

    def crowds(self, labels: Iterable[Label], role: str = "other") -> tuple[Crowd, ...]:
        return tuple(Crowd(label.ids[label.ids != NOBODY].unique(), role) for label in labels if self.is_neuron(label))

    def reading(
        self, x: Value, dims: Sequence[int], shared: Sequence[int], node: str
    ) -> tuple[Tensor, tuple[Crowd, ...]]:
        """The source neurons of a layer that sums over ``dims`` of ``x`` (for each position along ``shared`` on its own).

        The result varies along these axes only. Also returns neurons that influence the sum in other ways. Where no layer
        wrote this axis, it becomes a node set of its own, joined to what influences it.
        """
        wanted = {d for d in dims if x.shape[d] > 1}
        allowed = wanted | set(shared)
        neurons = self.neurons(x)
        good = [label for label in neurons if label.axes <= allowed and label.axes & wanted]
        if not wanted and not good:
            good = [label for label in neurons if not label.axes]
        if not good and len(wanted) == 1:
            for label in x.labels if not neurons or not x.given else ():
                if label.axes == wanted and label.ids.unique().numel() == x.shape[next(iter(wanted))]:
                    whole = label.key is not None and self.keys[label.key][1] == label.ids.numel()
                    if whole or self.names[label.key[0] if label.key else ""][0] != "input":
                        assert label.key is not None
                        self.promote(label.key)
                        good = [label]
                        break
        chosen = max(good, key=lambda label: label.ids.numel()) if good else None
        rejected = [label for label in neurons if label is not chosen and (label.axes & wanted or not label.axes)]
        if chosen is None:
            return self._own_reading(x, sorted(wanted), node), ()
        ids = chosen.ids
        if bool((ids == NOBODY).any()):
            gaps = ids == NOBODY
            extra = self.site(int(gaps.sum()), f"{node}.rest", "read")
            ids = ids.masked_scatter(gaps, extra.ids)
            self.join((*x.loose, *self.crowds(rejected)), extra.ids)
        return ids, (*x.loose, *self.crowds(rejected))

    def _own_reading(self, x: Value, dims: list[int], node: str) -> Tensor:
        site = self.own.get((node, tuple(dims)))
        if site is None:
            neurons = self.neurons(x)
            kind = "input" if x.given and not neurons and not x.loose else "read"
            size = math.prod(x.shape[d] for d in dims)
            response = (node, dims[0]) if len(dims) == 1 else (node, -1) if not dims else None
            site = self.site(size, "input" if kind == "input" else node, kind, response)
            self.own[node, tuple(dims)] = site
            self.join((*x.loose, *self.crowds(neurons)), site.ids)
        return site.ids.reshape([size if d in dims else 1 for d, size in enumerate(x.shape)])

    # -- parameters -----------------------------------------------------------------------------------------------------

    def parametric(
        self, w: Value, target: Tensor, source: Tensor | None, kind: str, kernel: tuple[int, ...] = ()
    ) -> None:
        """Every parameter that ``w`` is computed from acts on the neurons ``target``, from ``source``: both broadcast to
        the shape of ``w``."""
        feature = kind if source is None else "scale"
        for name, place, coordinates in self._parameters(w):
            goes_to = project(target, coordinates, place)
            comes_from = project(source, coordinates, place) if source is not None else None
            if goes_to is not None and (source is None or comes_from is not None):
                self.uses.append(Use(name, goes_to, comes_from, kind, kernel))
            elif goes_to is not None or comes_from is not None:
                found = goes_to if goes_to is not None else comes_from
                assert found is not None
                self.uses.append(Use(name, found, None, feature))
            else:
                self.strays.append((name, target[target != NOBODY].unique()))

    def feature(self, w: Value, labels: Sequence[Label], kind: str) -> tuple[Crowd, ...]:
        """Every parameter that ``w`` is computed from acts one by one on the neurons of ``labels``.

        What does not fit along any of them is returned as a crowd: it influences the value as a whole.
        """
        rank = max([len(w.shape), *(label.ids.dim() for label in labels)])
        loose = []
        for name, place, coordinates in self._parameters(Value(w.shape, w.labels, parameters=w.parameters), rank):
            single = math.prod(place) == 1
            for label in labels:
                target = project(label.ids, coordinates, place) if bool(label.axes) != single else None
                if target is not None and self.closed(self._rest_axis(name, target)):
                    self.uses.append(Use(name, target, self.leftover(name, target), kind))
                    self.event(target)
                    break
            else:
                loose.append(self.stand_alone(name))
        return tuple(loose)

    def stand_alone(self, parameter: str) -> Crowd:
        """A parameter that acts on no neurons in particular gets a node set of its own."""
        site = self.own.get((parameter, (-1,)))
        if site is None:
            shape = self.shape(parameter)
            first = next((d for d, size in enumerate(shape) if size > 1), 0)
            whole = torch.zeros([size if d == first else 1 for d, size in enumerate(shape)])
            if not self.closed(self._rest_axis(parameter, whole)):
                whole = torch.zeros(shape)
            site = self.site(whole.numel(), parameter, "tensor")
            self.own[parameter, (-1,)] = site
            target = site.ids.reshape(whole.shape)
            self.uses.append(Use(parameter, target, self.leftover(parameter, target), "other"))
        return Crowd(site.ids)

    def _rest_axis(self, parameter: str, target: Tensor) -> Axis:
        """The axes of a parameter on which its target does not depend, as one."""
        axes = self.parameters[parameter]
        return product_axis([axis for axis, size in zip(axes, target.shape, strict=True) if size == 1])

    def _parameters(self, w: Value, rank: int | None = None) -> list[tuple[str, tuple[int, ...], dict[int, Tensor]]]:
        found: dict[str, dict[int, Tensor]] = {name: {} for name in sorted(w.parameters)}
        for label in w.labels:
            if label.key is not None:
                name = self.names[label.key[0]][1]
                if name in found:
                    base = self.keys[label.key][0]
                    found[name][label.key[1]] = lift(label, rank or 0).ids - base
        return [(name, self.shape(name), coordinates) for name, coordinates in found.items()]


def product_axis(axes: Sequence[Axis]) -> Axis:
    """Several axes as one, row-major."""
    factors: list[Factor] = []
    for axis in axes:
        if axis.size > 1:
            factors += axis.parts[0] if len(axis.parts) == 1 else (axis,)
    return Axis((tuple(factors),)) if factors else Axis.fixed(1)
