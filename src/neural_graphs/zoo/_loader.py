"""Batches of a zoo's networks, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit

CACHE_BYTES = 2 << 30
"""Splits smaller than this are held in memory; larger ones are read from the memory-mapped shards batch by batch."""


class Sample(NamedTuple):
    """``batch`` and ``labels`` ``[B]`` of the networks at ``positions`` (int64 ``[B]``) of the split.

    Labels are int64 or, where the loader has ``bounds``, float32; those of a loader without label are ``positions``.
    ``total`` counts the batch's networks over all processes; it is B where there is one.
    """

    batch: GraphBatch
    labels: Tensor
    positions: Tensor
    total: int


class Loader:
    """Epochs over a ``ZooSplit``.

    ``epoch(e, start)`` yields batches ``start, start + 1, ...`` of epoch e, so (epoch, start) is the whole state and
    training resumes exactly. The order, and within a batch the order of the buckets, depend on ``seed``, the epoch and the
    networks only: not on shard sizes, nor on whether the weights are cached. The last batch of an epoch may be smaller.

    Labels are classes or, with ``bounds``, numbers between them (``ZooSplit.targets``); with ``label=None``, positions.

    Raises ``UserError`` for an empty split, a missing or unusable label column, and NaN weights (naming the network).
    """

    def __init__(
        self,
        split: ZooSplit,
        batch_size: int,
        *,
        label: str | None = "label",
        bounds: tuple[float, float] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if len(split) == 0:
            raise UserError(f"there are no networks in {split}")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, it must be at least 1")
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        if label is None:
            self.labels = torch.arange(len(split))
        else:
            self.labels = split.labels(label) if bounds is None else split.targets(label, bounds)
        names = split.column("architecture").astype(str)
        self._ids, inverse = np.unique(names, return_inverse=True)
        self._bucket = torch.from_numpy(inverse.astype(np.int64))
        self._graphs: list[NeuralGraph] | None = None
        architectures = split.architectures
        counts = np.bincount(inverse)
        size = 4 * sum(architectures[str(i)].num_parameters * int(n) for i, n in zip(self._ids, counts, strict=True))
        if size <= cache_bytes:
            self._cache()

    def _cache(self) -> None:
        self._row = torch.empty(len(self.split), dtype=torch.int64)
        found: dict[str, NeuralGraph] = {}
        for name, places, values in self.split.state_dicts():
            self._row[places] = torch.arange(len(places))
            found[name] = self.split.zoo.architectures[name].graph(values)
        self._graphs = [found[str(name)] for name in self._ids]

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.split) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Positions of the split in the order of ``epoch``."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.split)))

    def epoch(self, epoch: int = 0, start: int = 0, process: int = 0, processes: int = 1) -> Iterator[Sample]:
        """Batches of one epoch from number ``start`` on; of several processes each gets its share of every batch."""
        order = self.order(epoch)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            whole = order[first : first + self.batch_size]
            yield self.sample(whole[process::processes])._replace(total=len(whole))

    def sample(self, positions: Tensor) -> Sample:
        """The networks at these positions, in this order."""
        if self._graphs is None:
            parts = sorted(self.split.state_dicts(positions), key=lambda part: part[0])
            graphs = [self.split.zoo.architectures[name].graph(values) for name, _, values in parts]
            batch = GraphBatch(tuple(graphs), tuple(places for _, places, _ in parts))
        else:
            buckets, index = [], []
            bucket_of, row_of = self._bucket[positions], self._row[positions]
            for k in bucket_of.unique().tolist():
                places = (bucket_of == k).nonzero()[:, 0]
                buckets.append(self._graphs[k][row_of[places]])
                index.append(places)
            batch = GraphBatch(tuple(buckets), tuple(index))
        return Sample(batch, self.labels[positions], positions, len(positions))

    def graphs(self, chunk: int = 4096) -> Iterator[NeuralGraph]:
        """All networks as stacked batches of one architecture each, for statistics."""
        if self._graphs is not None:
            yield from self._graphs
            return
        for first in range(0, len(self.split), chunk):
            yield from self.sample(torch.arange(first, min(first + chunk, len(self.split)))).batch.buckets
