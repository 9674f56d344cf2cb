"""The structure of a neural graph without its numbers: node sets, blocks, and where each sits in the state dict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._layout import Layout
from neural_graphs.graph._spec import Axis, PermutationSpec

Role = Literal["input", "hidden", "output"]

BlockKind = Literal[
    "linear",
    "conv",
    "embedding",
    "query",
    "key",
    "value",
    "position",
    "identity",
    "attention",
    "recurrent",
    "other",
]

BLOCK_KINDS: tuple[str, ...] = get_args(BlockKind)


_STILL = Axis.fixed(0)
"""Stands for neurons that the group does not move, however many they are."""


@dataclass(frozen=True)
class NodeFeature:
    """A tensor, or a part of one, with ``columns`` values per neuron: a bias, a scale, a running statistic.

    ``layout`` says where they stand (its source axis has size 1, its features are the columns); None for a tensor ``[n]``.
    ``kind`` is free text: ``"bias"``, ``"scale"``, ``"running_mean"``, ``"running_var"``, ``"token"``, ...

    ``shared`` marks a further use of a tensor that another feature or block holds (a module that is called twice): it is
    read, but does not count on the way back to a state dict.
    """

    parameter: str
    kind: str = "bias"
    layout: Layout | None = None
    columns: int = 1
    shared: bool = False


@dataclass(frozen=True)
class NodeSet:
    """The neurons that one layer writes (or the inputs).

    ``features`` are the columns of ``graph.nodes``, side by side. ``axis`` says how the symmetry group moves the neurons;
    without it they stay where they are.
    """

    name: str
    size: int
    role: Role
    depth: int
    activation: Activation = field(default_factory=Activation)
    features: tuple[NodeFeature, ...] = ()
    axis: Axis = _STILL

    def __post_init__(self) -> None:
        if self.axis is _STILL:
            object.__setattr__(self, "axis", Axis.fixed(self.size))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that are node features."""
        return tuple(feature.parameter for feature in self.features)

    @property
    def columns(self) -> int:
        """The number of values per neuron."""
        return sum(feature.columns for feature in self.features)

    @property
    def symmetry(self) -> str | None:
        """The class of the neurons where their axis is one plain class, else None."""
        name = str(self.axis)
        return name if self.axis == Axis.of(name, self.size) else None


@dataclass(frozen=True)
class Block:
    """All edges of one layer: a complete bipartite graph from node set ``source`` to node set ``target``.

    ``shape`` is the parameter's own shape and ``layout`` the way from it to the edges ``[n_target, n_source, features]``
    (None: a plain reshape). ``features`` is 1 for a linear layer, ``kh * kw`` for a convolution (``kernel``), ``h * w`` for
    a linear layer on a flattened map.

    With ``groups`` g, target neuron o is connected only to the ``n_source / g`` sources of its group
    ``o // (n_target / g)``, and the edges are ``[n_target, n_source / g, features]``; a depthwise or elementwise parameter
    has as many groups as neurons.

    A block without ``parameter`` (a residual's ``"identity"``, ``"attention"``) has ``features`` 0. ``copy_of`` marks a
    further use of a shared parameter: the same tensor as that block's in another place. Its edges are a view, and what
    they hold does not count on the way back to a state dict.
    """

    source: int
    target: int
    parameter: str | None
    shape: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    features: int = 1
    kind: BlockKind = "linear"
    groups: int = 1
    layout: Layout | None = None
    copy_of: int | None = None


class Place(NamedTuple):
    """Where a tensor, or a part of it, stands in the graph: ``nodes[number]``, columns ``start:stop``, or
    ``edges[number]``."""

    where: Literal["nodes", "edges"]
    number: int
    start: int
    stop: int
    layout: Layout | None


@dataclass(frozen=True)
class GraphSpec:
    """The structure of a neural graph without its numbers: what all networks of one architecture share.

    ``symmetries`` names every tensor of the state dict in order, aliases included. Each of them is made of blocks and node
    features, or stands in ``rest`` (``(name, shape)``: tensors that are neither, such as integer buffers), or is an alias
    in ``tied`` (``(alias, canonical name)``). Raises ``ValueError`` where these do not add up.
    """

    node_sets: tuple[NodeSet, ...]
    blocks: tuple[Block, ...]
    symmetries: PermutationSpec
    rest: tuple[tuple[str, tuple[int, ...]], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _validate(self)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: plans, buckets and caches are found by the structure, many times for every batch."""
        return hash((self.node_sets, self.blocks, self.symmetries, self.rest, self.tied))

    def __getstate__(self) -> dict[str, Any]:
        """Without the hash, which another process would compute differently."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @property
    def num_nodes(self) -> int:
        return sum(nodes.size for nodes in self.node_sets)

    @property
    def num_edges(self) -> int:
        """Edges of all blocks, copies and parameter-free ones included."""
        return sum(math.prod(self.edge_shape(k)[:2]) for k in range(len(self.blocks)))

    @cached_property
    def depth(self) -> int:
        """Number of parametric layers between inputs and outputs."""
        return max(nodes.depth for nodes in self.node_sets)

    @property
    def num_inputs(self) -> int:
        return sum(nodes.size for nodes in self.node_sets if nodes.role == "input")

    @property
    def num_outputs(self) -> int:
        return sum(nodes.size for nodes in self.node_sets if nodes.role == "output")

    def edge_shape(self, block: int) -> tuple[int, int, int]:
        """``(n_target, n_source / groups, features)`` of block number ``block``."""
        found = self.blocks[block]
        sizes = self.node_sets[found.target].size, self.node_sets[found.source].size
        return sizes[0], sizes[1] // found.groups, found.features

    @property
    def shares(self) -> bool:
        """Whether some parameter stands in more than one place."""
        shared = any(feature.shared for nodes in self.node_sets for feature in nodes.features)
        return shared or any(block.copy_of is not None for block in self.blocks)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors in state-dict order."""
        return {name: tuple(axis.size for axis in axes) for name, axes in self.symmetries.axes}

    @cached_property
    def canonical(self) -> dict[str, str]:
        """Alias -> the name under which the graph holds the tensor."""
        return dict(self.tied)

    @cached_property
    def places(self) -> dict[str, tuple[Place, ...]]:
        """Where each tensor stands in the graph (aliases and ``rest`` stand in no node set or block)."""
        found: dict[str, list[Place]] = {}
        for k, block in enumerate(self.blocks):
            if block.parameter is not None and block.copy_of is None:
                found.setdefault(block.parameter, []).append(Place("edges", k, 0, block.features, block.layout))
        for s, nodes in enumerate(self.node_sets):
            start = 0
            for feature in nodes.features:
                stop = start + feature.columns
                if not feature.shared:
                    found.setdefault(feature.parameter, []).append(Place("nodes", s, start, stop, feature.layout))
                start = stop
        return {name: tuple(places) for name, places in found.items()}


def _validate(spec: GraphSpec) -> None:
    """A structure that does not describe its state dict exactly is a mistake of whoever built it, found here."""

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"broken graph structure: {message}")

    shapes, rest = spec.shapes, dict(spec.rest)
    for nodes in spec.node_sets:
        require(nodes.axis.size == nodes.size, f"node set {nodes.name} has {nodes.size} neurons, its axis differs")
        for feature in nodes.features:
            sizes = feature.layout.sizes if feature.layout else (nodes.size, 1, 1)
            require(sizes == (nodes.size, 1, feature.columns), f"{feature.parameter} does not fit {nodes.name}")
            name = spec.canonical.get(feature.parameter, feature.parameter)
            if feature.layout is None:
                require(shapes.get(name) == (nodes.size,), f"{name} is not [{nodes.size}]")
            require(not feature.shared or name in spec.places, f"{name} is shared, but with no place of its own")
    for k, block in enumerate(spec.blocks):
        for end in (block.source, block.target):
            require(spec.node_sets[end].size % block.groups == 0, f"block {k} has groups of uneven size")
        if block.parameter is None:
            require(block.features == 0 and block.copy_of is None, f"block {k} has no parameter but features")
            continue
        name = spec.canonical.get(block.parameter, block.parameter)
        require(shapes.get(name) == block.shape, f"block {k} has shape {block.shape}, {name} has {shapes.get(name)}")
        if block.layout is None:
            fits = math.prod(spec.edge_shape(k)) == math.prod(block.shape)
        else:
            fits = block.layout.sizes == spec.edge_shape(k)
        require(fits, f"{name} {block.shape} does not fit edges {spec.edge_shape(k)}")
        if block.copy_of is not None:
            owner = spec.blocks[block.copy_of]
            require(owner.parameter == name and owner.copy_of is None, f"block {k} copies a block of another tensor")
    for name, shape in shapes.items():
        held = [name in spec.places, name in rest, name in spec.canonical]
        require(sum(held) == 1, f"{name} stands in {sum(held)} of graph, rest, aliases")
        if name in rest:
            require(rest[name] == shape, f"{name} has shape {shape}, in rest {rest[name]}")
        elif name in spec.canonical:
            owner_name = spec.canonical[name]
            require(owner_name in shapes and owner_name not in spec.canonical, f"{name} is an alias of no tensor")
            require(shapes[owner_name] == shape, f"{name} and {owner_name} are tied but differ in shape")
        else:
            _validate_places(name, shape, spec.places[name])
    unknown = (set(spec.places) | set(rest) | set(spec.canonical)) - set(shapes)
    require(not unknown, f"{min(unknown, default='')} is not among the tensors of the symmetries")


def _validate_places(name: str, shape: tuple[int, ...], places: tuple[Place, ...]) -> None:
    """Together the places hold each entry of the tensor exactly once."""
    total = 0
    for number, place in enumerate(places):
        layout = place.layout
        if any(layout is None or other.layout is None or layout.overlaps(other.layout) for other in places[:number]):
            raise ValueError(f"broken graph structure: {name} stands in two places that overlap")
        if layout is None:
            total += math.prod(shape)
            continue
        sizes = list(shape)
        for dim, start, stop in layout.part:
            sizes[dim] = stop - start
        cuts = [(shape[dim], start, stop) for dim, start, stop in layout.part]
        cuts += [(layout.factors[factor], start, stop) for factor, start, stop in layout.pick]
        if math.prod(layout.factors) != math.prod(sizes) or any(not 0 <= a <= b <= n for n, a, b in cuts):
            raise ValueError(f"broken graph structure: a layout of {name} {shape} does not fit it")
        total += math.prod(layout.picked)
    if total != math.prod(shape):
        raise ValueError(f"broken graph structure: {total} of {math.prod(shape)} entries of {name} have a place")
