"""Which parameters connect which neurons: what an update rule reads of a neural graph."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from neural_graphs.graph import GraphSpec, Layout

KINDS = ("linear", "conv", "embedding", "bias", "scale")
"""What a rule tells apart; see ``Piece.kind``."""

_KIND_OF = {"linear": "linear", "conv": "conv", "embedding": "embedding", "position": "embedding", "bias": "bias"}


@dataclass(frozen=True)
class Piece:
    """A parameter, or a part of one, as edges ``[n_target, n_source / groups, taps]`` between two node sets.

    ``taps`` are the positions of a kernel, or of a flattened map: parallel edges between two neurons. A parameter of
    neurons (a bias, a normalisation's scale) has no ``source`` and one source place. ``kind`` is one of ``KINDS``.
    """

    parameter: str
    kind: str
    source: int | None
    target: int
    groups: int
    layout: Layout | None
    sizes: tuple[int, int, int]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def fan_in(self) -> int:
        return self.sizes[1] * self.sizes[2]

    def read(self, value: Tensor) -> Tensor:
        """The piece of ``value`` ``[P, *shape]`` as ``[P, n_target, n_source / groups, taps]``; a view if it can be."""
        return value.reshape(len(value), *self.sizes) if self.layout is None else self.layout.read(value)

    def write(self, out: Tensor, held: Tensor) -> None:
        """Put ``held``, shaped as ``read`` gives it, to its place in ``out`` ``[P, *shape]``."""
        if self.layout is None:
            out.copy_(held.reshape(out.shape))
        else:
            self.layout.write(out, held)


@dataclass(frozen=True)
class Wiring:
    """The trainable tensors of an architecture as pieces, in order of depth.

    ``sizes`` and ``depths`` are those of the node sets. Build with ``Wiring.of``.
    """

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]
    depths: tuple[int, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.pieces, self.sizes))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that the pieces make up."""
        return tuple(dict.fromkeys(piece.parameter for piece in self.pieces))

    @cached_property
    def depth(self) -> int:
        return max(self.depths)

    @classmethod
    def of(cls, spec: GraphSpec, names: Collection[str] | None = None) -> Wiring:
        """The pieces of the parameters ``names`` (all tensors by default) that stand in the graph.

        A tensor that several layers share counts where it stands first. Names are those of the graph
        (``spec.canonical`` gives an alias's).
        """
        found = []
        for name, places in spec.places.items():
            if names is not None and name not in names:
                continue
            for place in places:
                if place.where == "edges":
                    block = spec.blocks[place.number]
                    kind = _KIND_OF.get(block.kind, "linear")
                    ends = block.source, block.target
                    found.append(Piece(name, kind, *ends, block.groups, block.layout, spec.edge_shape(place.number)))
                else:
                    node_set = spec.node_sets[place.number]
                    feature = next(f for f in node_set.features if f.parameter == name and f.layout == place.layout)
                    sizes = (node_set.size, 1, place.stop - place.start)
                    kind = _KIND_OF.get(feature.kind, "scale")
                    found.append(Piece(name, kind, None, place.number, 1, place.layout, sizes))
        depths = tuple(nodes.depth for nodes in spec.node_sets)
        found.sort(key=lambda piece: depths[piece.target])  # stable: in the order of the state dict otherwise
        return cls(tuple(found), tuple(nodes.size for nodes in spec.node_sets), depths)

    def select(self, names: Collection[str]) -> Wiring:
        """Without the pieces of other parameters, such as those that got no gradient."""
        if all(piece.parameter in names for piece in self.pieces):
            return self
        return Wiring(tuple(p for p in self.pieces if p.parameter in names), self.sizes, self.depths)
