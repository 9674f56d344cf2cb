"""Other weights of the same functions: random elements of the networks' own symmetry groups."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import torch

from neural_graphs.graph import GraphBatch, NeuralGraph

Graphs = TypeVar("Graphs", NeuralGraph, GraphBatch)

KINDS = ("permutation", "scale", "sign", "phase")
SPREAD = 2.0
"""Scales lie within [1/2, 2]: enough that none can be relied on, and still weights as one meets them."""


def symmetric(
    batch: Graphs,
    generator: torch.Generator,
    *,
    kinds: Collection[str] = KINDS,
    spread: float = SPREAD,
) -> Graphs:
    """All networks of ``batch``, each replaced by one that computes the same function: a random element of its
    architecture's symmetry group applied to it, a different one to every network.

    ``kinds`` and ``spread`` as in ``PermutationSpec.sample``; a kind that an architecture does not have leaves its networks
    as they are. ``generator`` is one of the CPU, and the same state of it gives the same networks.
    """

    def one(graph: NeuralGraph) -> NeuralGraph:
        return graph.permute(graph.symmetries.sample(generator, graph.batch_size, kinds, spread))

    if isinstance(batch, NeuralGraph):
        return one(batch)
    return GraphBatch(tuple(one(graph) for graph in batch.buckets), batch.index)
