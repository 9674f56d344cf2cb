"""Where the nodes and edges of all networks of a mixed batch stand when they are the rows of two tensors.

Nodes are sorted by the layer up to which they are computed (see ``plan``), then by degree; edges by the node that they end
in. What a layer needs is then a prefix of both tensors, the messages to a node are neighbouring rows, and those to all nodes
of one degree are a dense tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neural_graphs.graph import GraphSpec, NeuralGraph
from neural_graphs.nn._encoder import Reads
from neural_graphs.nn._plan import Plan, degrees_of, plan

Ints = npt.NDArray[np.int64]


class Group(NamedTuple):
    """Edges that are embedded alike: directions one way, of blocks of one kind and kernel."""

    reverse: bool
    features: int
    kernel: tuple[int, ...]
    kind: str


class Run(NamedTuple):
    """Nodes ``first:last``, all of one degree, and the rows ``start:stop`` of the edges that end in them."""

    first: int
    last: int
    start: int
    stop: int


class Chunk(NamedTuple):
    """Neighbouring nodes and all edges that end in them, with what operations on them need.

    ``runs`` count from the chunk's first node and edge, ``local`` is ``receiver`` counted from there, ``offsets`` where each
    node's edges begin, ``every`` the numbers of all edges. ``ends`` ``[2 rows]`` are sender and receiver of each edge among
    the rows of all nodes that send, followed by those of all that receive; ``every_second`` are the even numbers.
    """

    nodes: slice
    edges: slice
    rows: int
    runs: tuple[Run, ...]
    receiver: Tensor
    sender: Tensor
    local: Tensor
    offsets: Tensor
    every: Tensor
    ends: Tensor
    every_second: Tensor


class _Members(NamedTuple):
    """A group's edges in one bucket, in the order of its ``directions``; node numbers count from the bucket's first."""

    directions: tuple[int, ...]
    receivers: Ints
    senders: Ints


@dataclass(frozen=True, eq=False)
class Bucket:
    """``batch`` networks of one architecture: everything about nodes and edges that does not depend on batch mates.

    Nodes are in the order of the tensors ``[B, n, c]`` of the node sets, flattened, edges in that of
    ``[B, n_out, n_in, f]``.
    ``life`` is the last layer after which a node is computed, -1 for none.
    """

    todo: Plan
    sizes: tuple[int, ...]
    life: Ints
    degree: Ints
    groups: dict[Group, _Members]


@lru_cache(maxsize=4096)
def bucket_of(spec: GraphSpec, batch: int, layers: int, reverse: bool, reads: Reads) -> Bucket:
    todo = plan(spec, layers, reverse, reads)
    sizes = [nodes.size for nodes in spec.node_sets]
    starts = [0, *accumulate(batch * size for size in sizes)]
    degrees = degrees_of(spec, reverse)
    lives = [max((i for i, live in enumerate(todo.nodes) if s in live), default=-1) for s in range(len(sizes))]
    found: dict[Group, list[tuple[int, Ints, Ints]]] = {}
    copies = np.arange(batch)[:, None]
    for d in sorted(todo.edges[0]):
        way, block = todo.directions[d], spec.blocks[todo.directions[d].block]
        rows, columns = _pairs(sizes[block.target], sizes[block.source], block.groups)
        targets = (starts[block.target] + copies * sizes[block.target] + rows).ravel()
        sources = (starts[block.source] + copies * sizes[block.source] + columns).ravel()
        ends = (sources, targets) if way.reverse else (targets, sources)
        found.setdefault(Group(way.reverse, block.features, block.kernel, block.kind), []).append((d, *ends))
    groups = {
        key: _Members(tuple(d for d, _, _ in parts), *(np.concatenate([part[k] for part in parts]) for k in (1, 2)))
        for key, parts in found.items()
    }
    counts = batch * np.array(sizes)
    return Bucket(todo, tuple(sizes), np.repeat(lives, counts), np.repeat(degrees, counts), groups)


def _pairs(targets: int, sources: int, groups: int) -> tuple[Ints, Ints]:
    """Target and source of every edge of a block ``[n_out, n_in / groups]``, flattened."""
    each = sources // groups
    rows = np.repeat(np.arange(targets), each)
    columns = rows // (targets // groups) * each + np.tile(np.arange(each), targets)
    return rows, columns


@dataclass(frozen=True, eq=False)
class Stacking:
    """The order of all nodes and edges of a batch, as index tensors (int64).

    Attributes:
        buckets: those of the batch.
        groups: the groups of edges, with the numbers of bucket and direction of each part; parts in this order, each
            flattened, are the edges as they are embedded.
        node_order, edge_order: where each row stood before sorting.
        node_rank, edge_rank: where it stands then.
        kept_rank: of the nodes computed after the last layer.
        degree: of the sorted nodes.
        receiver, sender: node rows of the sorted edges.
        offsets: ``[N + 1]``, the first edge of every node.
        live: number of nodes computed after each layer; the edges that end in these are those that the layer needs.
        runs: nodes by life and degree.
    """

    buckets: tuple[Bucket, ...]
    groups: dict[Group, list[tuple[int, int]]]
    node_order: Tensor
    node_rank: Tensor
    kept_rank: Tensor
    edge_order: Tensor
    edge_rank: Tensor
    degree: Tensor
    receiver: Tensor
    sender: Tensor
    offsets: Tensor
    live: tuple[int, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, graphs: Sequence[NeuralGraph], layers: int, reverse: bool, reads: Reads) -> Stacking:
        """The order for these networks' architectures, of which that of the last few batches is kept."""
        parts = tuple((graph.spec, graph.batch_size) for graph in graphs)
        return _stacking_of(parts, layers, reverse, reads, graphs[0].device)

    @classmethod
    def _of(cls, buckets: tuple[Bucket, ...], layers: int, device: torch.device) -> Stacking:
        life, degree = (np.concatenate(parts) for parts in zip(*((b.life, b.degree) for b in buckets), strict=True))
        order = np.lexsort((degree, -life))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        life, degree = life[order], degree[order]
        live = tuple(int((life >= layer).sum()) for layer in range(layers + 1))
        offsets = np.concatenate([[0], np.cumsum(degree[: live[1]])])

        bases = [0, *accumulate(len(b.life) for b in buckets)]
        keys = sorted({key for b in buckets for key in b.groups})
        parts = [(k, b.groups[key]) for key in keys for k, b in enumerate(buckets) if key in b.groups]
        base = np.repeat([bases[k] for k, _ in parts], [len(part.senders) for _, part in parts])
        receiver = rank[base + np.concatenate([part.receivers for _, part in parts])] if parts else base
        sender = rank[base + np.concatenate([part.senders for _, part in parts])] if parts else base
        edge_order = np.argsort(receiver.astype(np.uint16 if len(rank) < 1 << 16 else np.int64), kind="stable")
        edge_rank = np.empty_like(edge_order)
        edge_rank[edge_order] = np.arange(len(edge_order))
        groups = {
            key: [(k, d) for k, b in enumerate(buckets) if key in b.groups for d in b.groups[key].directions]
            for key in keys
        }

        def rows(array: Ints) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

        return cls(
            buckets,
            groups,
            node_order=rows(order),
            node_rank=rows(rank),
            kept_rank=rows(rank[rank < live[-1]]),
            edge_order=rows(edge_order),
            edge_rank=rows(edge_rank),
            degree=rows(degree),
            receiver=rows(receiver[edge_order]),
            sender=rows(sender[edge_order]),
            offsets=rows(offsets),
            live=live,
            runs=tuple(_runs(life[: live[1]], degree, offsets)),
        )

    def edges(self, layer: int) -> int:
        """How many edges end in the nodes computed after ``layer``."""
        runs = [run for run in self.runs if run.last <= self.live[layer]]
        return runs[-1].stop if runs else 0

    def chunks(self, layer: int, rows: int) -> list[Chunk]:
        """The nodes computed after ``layer``, in portions with at most ``rows`` edges (but at least one node), but for those
        in which nothing ends."""
        if (layer, rows) not in self._chunks:
            portions = (self._chunk(portion, self.live[layer - 1]) for portion in self._portions(layer, rows))
            with torch.inference_mode(False):
                self._chunks[layer, rows] = [chunk for chunk in portions if chunk.rows]
        return self._chunks[layer, rows]

    @cached_property
    def _chunks(self) -> dict[tuple[int, int], list[Chunk]]:
        return {}

    def _portions(self, layer: int, rows: int) -> Iterator[list[Run]]:
        portion: list[Run] = []
        for run in self.runs:
            if run.last > self.live[layer]:
                break
            degree = (run.stop - run.start) // (run.last - run.first)
            first, start = run.first, run.start
            while first < run.last:
                room = rows - (start - portion[0].start if portion else 0)
                take = min(run.last - first, room // degree) if degree else run.last - first
                if take < 1 and portion:
                    yield portion
                    portion = []
                    continue
                take = max(take, 1)
                portion.append(Run(first, first + take, start, start + take * degree))
                first, start = first + take, start + take * degree
        if portion:
            yield portion

    def _chunk(self, runs: Sequence[Run], senders: int) -> Chunk:
        node, edge = runs[0].first, runs[0].start
        nodes, edges = slice(node, runs[-1].last), slice(edge, runs[-1].stop)
        receiver, sender = self.receiver[edges], self.sender[edges]
        every = torch.arange(edges.stop - edge, device=receiver.device)
        return Chunk(
            nodes,
            edges,
            edges.stop - edge,
            tuple(Run(r.first - node, r.last - node, r.start - edge, r.stop - edge) for r in runs),
            receiver,
            sender,
            receiver - node,
            self.offsets[node : nodes.stop + 1] - edge,
            every,
            torch.stack([sender, receiver + senders], 1).flatten(),
            2 * every,
        )


@lru_cache(maxsize=4)
def _stacking_of(
    parts: tuple[tuple[GraphSpec, int], ...],
    layers: int,
    reverse: bool,
    reads: Reads,
    device: torch.device,
) -> Stacking:
    buckets = tuple(bucket_of(spec, batch, layers, reverse, reads) for spec, batch in parts)
    with torch.inference_mode(False):  # what is kept may be needed by a backward pass later
        return Stacking._of(buckets, layers, device)


def _runs(life: Ints, degree: Ints, offsets: Ints) -> Iterator[Run]:
    if not len(life):
        return
    degree = degree[: len(life)]
    changes = np.flatnonzero((np.diff(life) != 0) | (np.diff(degree) != 0)) + 1
    bounds = [0, *changes.tolist(), len(life)]
    for first, last in pairwise(bounds):
        yield Run(first, last, int(offsets[first]), int(offsets[last]))
