"""Raw node features by name, and what of a graph's structure a model can read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphSpec, NodeSet
from neural_graphs.graph._activation import KINDS
from neural_graphs.graph._structure import BLOCK_KINDS

BIAS_ONLY = ("bias",)


def slots_of(nodes: NodeSet) -> tuple[str, ...]:
    """The name of every column of a node set: its kind, and from the second of a kind on "bias#2", "bias#3", ..."""
    seen: Counter[str] = Counter()
    found = []
    for feature in nodes.features:
        for _ in range(feature.columns):
            seen[feature.kind] += 1
            found.append(feature.kind if seen[feature.kind] == 1 else f"{feature.kind}#{seen[feature.kind]}")
    return tuple(found)


def is_table(spec: GraphSpec, node_set: int) -> bool:
    """Whether the neurons of a node set are the rows of a table that is looked up: tokens of a vocabulary, positions.

    No symmetry moves them, nothing ends in them, and beside inputs of other kinds they have nothing but their number.
    """
    nodes = spec.node_sets[node_set]
    if nodes.depth or nodes.role == "output" or nodes.axis.moves:
        return False
    if any(block.target == node_set != block.source for block in spec.blocks):
        return False
    kinds = {block.kind for block in spec.blocks if block.source == node_set and block.parameter is not None}
    return nodes.role == "hidden" or (bool(kinds) and kinds <= {"embedding", "position"})


def single_inputs(spec: GraphSpec) -> int:
    """Number of input neurons that a model tells apart by a learned embedding: all but those of tables."""
    return sum(n.size for s, n in enumerate(spec.node_sets) if n.role == "input" and not is_table(spec, s))


def extent_of(features: int, kernel: tuple[int, ...]) -> tuple[int, int]:
    """Height and width as which a block's edge feature is read.

    Those of a plane kernel; a kernel on a line is one row, of one in space the last axis is the width. Features without a
    kernel (a flattened map, whose height and width the graph does not know) are the rectangle nearest to a square.
    """
    if kernel and math.prod(kernel) == features:
        return math.prod(kernel[:-1]), kernel[-1]
    height = next(side for side in range(math.isqrt(features), 0, -1) if features % side == 0)
    return height, features // height


class Reading(NamedTuple):
    """What a model reads beside weights: see the arguments of ``NGGNN`` with these names."""

    node_features: tuple[str, ...] = BIAS_ONLY
    block_kinds: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, node_features: Sequence[str] = BIAS_ONLY, block_kinds: Sequence[str] = (), activations: Sequence[str] = ()
    ) -> Reading:
        """Raises ``UserError`` for names that are none, or twice there."""
        _check_names("node_features", node_features, None)
        _check_names("block_kinds", block_kinds, BLOCK_KINDS)
        _check_names("activations", activations, (*KINDS, "other"))
        if not node_features:
            raise UserError("node_features must name at least one kind of node feature, such as bias")
        return cls(tuple(node_features), tuple(block_kinds), tuple(activations))

    @lru_cache(maxsize=4096)  # noqa: B019 (a value like its other arguments)
    def check(self, spec: GraphSpec, kernel: tuple[int, int], max_io: int) -> None:
        """Raise ``UserError`` with one line, which names the argument to change, when a structure does not fit."""
        if (inputs := single_inputs(spec)) > max_io or spec.num_outputs > max_io:
            raise UserError(
                f"this model reads networks of up to {max_io} inputs and outputs, this one has {inputs} and "
                f"{spec.num_outputs}: create the encoder with a larger max_io"
            )
        for nodes in spec.node_sets:
            self._check_features(nodes)
            if self.activations and nodes.role == "hidden" and nodes.activation.kind not in self.activations:
                raise UserError(
                    f"this model knows the activations {', '.join(self.activations)}, {nodes.name} has "
                    f"{nodes.activation.kind}: create the encoder with it in activations"
                )
        for block in spec.blocks:
            if block.features:
                check_extent(block.features, block.kernel, kernel)
            elif block.kind != "identity" and block.kind not in self.block_kinds:
                raise UserError(
                    f"this model reads weights and residuals, but no {block.kind} without parameters: create the encoder "
                    f"with {block.kind} in block_kinds"
                )

    def _check_features(self, nodes: NodeSet) -> None:
        columns = slots_of(nodes)
        missing = [name for name in columns if name not in self.node_features]
        if not missing:
            return
        reads = "one value per neuron, its bias" if self.node_features == BIAS_ONLY else ", ".join(self.node_features)
        raise UserError(
            f"this model reads {reads}: {nodes.name} has {len(columns)} ({', '.join(nodes.parameters)}), create the "
            f"encoder with {', '.join(missing)} in node_features"
        )


def check_extent(features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> tuple[int, int]:
    """``extent_of``; raises ``UserError`` when the model's kernel ``largest`` cannot hold it."""
    shape = extent_of(features, kernel)
    if shape[0] > largest[0] or shape[1] > largest[1]:
        raise UserError(
            f"edge features of {features} values ({shape[0]}x{shape[1]}) do not fit this model's "
            f"kernel {largest[0]}x{largest[1]}: create the encoder with a larger kernel"
        )
    return shape


def _check_names(argument: str, names: Sequence[str], known: Iterable[str] | None) -> None:
    if isinstance(names, str):
        raise UserError(f"{argument} is a list of names: write [{names}]")
    known = tuple(known) if known is not None else None
    for name in names:
        if known is not None and name not in known:
            raise UserError(f"{argument}: unknown {name!r}, choose among {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"{argument} names {Counter(names).most_common(1)[0][0]} twice")
