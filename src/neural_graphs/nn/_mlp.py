"""The baseline that ignores symmetry: a multilayer perceptron on the flattened weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._registry import register_encoder


@register_encoder("mlp")
class WeightMLP(Encoder):
    """Raw normalised weights and biases of one fixed architecture -> ``[B, width]``.

    ``parameters`` is the number of parameters of the networks it reads; ``layers`` counts its own hidden layers. Not
    invariant: reordering a network's neurons changes the result. Raises ``UserError`` on any other size.
    """

    invariant = False
    vectors = True

    def __init__(self, parameters: int = 1185, width: int = 512, layers: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.parameters_read, self.width = parameters, width
        sizes = [parameters] + [width] * layers
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            steps += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*steps)

    def check_readable(self, graph: NeuralGraph) -> None:
        if graph.spec.shares:
            raise UserError("this MLP reads every parameter once, and this network uses some in several places")
        size = sum(math.prod(tensor.shape[1:]) for tensor in (*graph.edges, *graph.nodes))
        if size != self.parameters_read:
            raise UserError(f"this MLP reads networks of {self.parameters_read} parameters, this one has {size}")

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        batch = GraphBatch.of(batch)
        if not batch.buckets:
            return Encoding(batch, vector=self.net(next(self.parameters()).new_zeros(0, self.parameters_read)))
        return Encoding(batch, vector=batch.restore([self._encode(graph) for graph in batch.buckets]))

    def _encode(self, graph: NeuralGraph) -> Tensor:
        self.check_readable(graph)
        weights = self.normalization.weights(graph)
        biases = [b for b, raw in zip(self.normalization.biases(graph), graph.nodes, strict=True) if raw.shape[-1]]
        return self.net(torch.cat([t.flatten(1) for t in (*weights, *biases)], 1))
