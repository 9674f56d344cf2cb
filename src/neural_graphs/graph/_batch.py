"""Batches of networks of any mixture of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Networks bucketed by architecture.

    ``buckets[k]`` is a stacked ``NeuralGraph``; ``index[k]`` (int64 ``[B_k]``) says where its networks stood in the order
    in which the batch was given. Encoders share every pointwise map between buckets, so one model reads any mixture.
    """

    buckets: tuple[NeuralGraph, ...]
    index: tuple[Tensor, ...]

    @classmethod
    def of(cls, graphs: NeuralGraph | Sequence[NeuralGraph] | GraphBatch) -> GraphBatch:
        """Bucket graphs by architecture, keeping their order in ``index``. An empty sequence is an empty batch."""
        if isinstance(graphs, GraphBatch):
            return graphs
        if isinstance(graphs, NeuralGraph):
            return cls((graphs,), (torch.arange(graphs.batch_size),))
        groups: dict[Any, tuple[list[NeuralGraph], list[Tensor]]] = {}
        start = 0
        for graph in graphs:
            members, places = groups.setdefault((graph.spec, graph.stack), ([], []))
            members.append(graph)
            places.append(torch.arange(start, start + graph.batch_size))
            start += graph.batch_size
        buckets = tuple(NeuralGraph.cat(members) for members, _ in groups.values())
        return cls(buckets, tuple(torch.cat(places) for _, places in groups.values()))

    @classmethod
    def cat(cls, batches: Sequence[GraphBatch]) -> GraphBatch:
        """All networks of ``batches``, one after the other."""
        groups: dict[Any, tuple[list[NeuralGraph], list[Tensor]]] = {}
        start = 0
        for batch in batches:
            for graph, index in zip(batch.buckets, batch.index, strict=True):
                members, places = groups.setdefault((graph.spec, graph.stack), ([], []))
                members.append(graph)
                places.append(index + start)
            start += len(batch)
        buckets = tuple(NeuralGraph.cat(members) for members, _ in groups.values())
        return cls(buckets, tuple(torch.cat(places) for _, places in groups.values()))

    def __len__(self) -> int:
        return sum(graph.batch_size for graph in self.buckets)

    def to(self, *args: Any, **kwargs: Any) -> GraphBatch:
        return GraphBatch(tuple(graph.to(*args, **kwargs) for graph in self.buckets), self.index)

    def restore(self, values: Sequence[Tensor]) -> Tensor:
        """Per-bucket tensors ``[B_k, ...]`` back in one tensor ``[B, ...]`` in the given order."""
        if len(values) != len(self.buckets):
            raise UserError(f"{len(values)} tensors for {len(self.buckets)} buckets")
        if len(values) == 1 and not torch.compiler.is_compiling():  # a compiled graph cannot ask what is in a tensor
            order = self.index[0]
            if bool((order == torch.arange(len(order))).all()):
                return values[0]
        stacked = torch.cat(list(values))
        order = torch.cat(self.index)
        return stacked[order.argsort().to(stacked.device)]

    def __repr__(self) -> str:
        return f"GraphBatch({len(self)} networks, {len(self.buckets)} architectures)"
