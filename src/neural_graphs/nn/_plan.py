"""Which node sets and edges a message-passing encoder has to compute for what is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from neural_graphs.graph import GraphSpec
from neural_graphs.nn._encoder import Reads


@dataclass(frozen=True)
class Direction:
    """One block's messages one way: ``block`` of the spec, from ``sender`` to ``receiver`` node set."""

    block: int
    reverse: bool
    sender: int
    receiver: int


@dataclass(frozen=True)
class Plan:
    """What has to be computed for what is read: per layer the live node sets, and the directions whose edges live on."""

    directions: tuple[Direction, ...]
    nodes: tuple[frozenset[int], ...]
    edges: tuple[frozenset[int], ...]


@lru_cache(maxsize=4096)
def attention_plan(spec: GraphSpec, layers: int, reads: Reads) -> Plan:
    """As `plan`, for attention: both nodes of an edge attend to the other, and an edge's update reads the one back.

    As in NG-T a block's own edges (direction k) are those with which its sources attend to its targets; direction
    ``len(blocks) + k`` is the way back.
    """
    count = len(spec.blocks)
    directions = tuple(Direction(k, False, b.target, b.source) for k, b in enumerate(spec.blocks))
    directions += tuple(Direction(k, True, b.source, b.target) for k, b in enumerate(spec.blocks))
    return _live(spec, directions, layers, reads, lambda d: ((d + count) % (2 * count),))


@lru_cache(maxsize=4096)
def plan(spec: GraphSpec, layers: int, reverse: bool, reads: Reads) -> Plan:
    """Dead-code elimination on the graph of computations, exact because no layer mixes nodes except along edges.

    ``nodes[l]`` are the node sets whose embedding after layer l is used (l = 0: the input embedding), ``edges[l]`` the
    directions whose edge embedding after layer l is used.
    """
    directions = tuple(Direction(k, False, b.source, b.target) for k, b in enumerate(spec.blocks))
    if reverse:
        directions += tuple(Direction(k, True, b.target, b.source) for k, b in enumerate(spec.blocks))
    return _live(spec, directions, layers, reads, lambda d: ())


def _live(
    spec: GraphSpec,
    directions: tuple[Direction, ...],
    layers: int,
    reads: Reads,
    needs: Callable[[int], tuple[int, ...]],
) -> Plan:
    """``needs`` gives the other directions that the update of a direction's edges reads."""
    everything = frozenset(range(len(spec.node_sets)))
    outputs = frozenset(s for s, nodes in enumerate(spec.node_sets) if nodes.role == "output")
    all_edges = frozenset(range(len(directions)))
    nodes = [outputs if reads == "outputs" else everything]
    edges: list[frozenset[int]] = [frozenset()]
    for layer in range(layers, 0, -1):
        into = frozenset(d for d in all_edges if directions[d].receiver in nodes[0])
        live = into | edges[0] | {other for d in edges[0] for other in needs(d)}
        if reads == "edges" and layer == layers:
            live = all_edges
        ends = frozenset(s for d in live for s in (directions[d].sender, directions[d].receiver))
        edges.insert(0, live)
        nodes.insert(0, nodes[0] | ends)
    return Plan(directions, tuple(nodes), tuple(edges))


def degrees_of(spec: GraphSpec, reverse: bool) -> list[int]:
    """Number of messages that each neuron of every node set gets."""
    degrees = [0] * len(spec.node_sets)
    for block in spec.blocks:
        degrees[block.target] += spec.node_sets[block.source].size // block.groups
        if reverse:
            degrees[block.source] += spec.node_sets[block.target].size // block.groups
    return degrees
