"""From an encoder's embeddings to one vector per network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.nn._encoder import Encoding


class GraphHead(nn.Module):
    """Concatenate the embeddings of the output neurons, then ``Linear, ReLU, Linear, ReLU, Linear`` (Kofinas et al. 2024).

    ``outputs`` is the number of output neurons of every network read, ``width`` the encoder's F, ``targets`` the size of
    the result. Encoders that give one vector per network feed it straight into the same MLP.
    """

    reads = "outputs"

    def __init__(self, width: int, outputs: int, targets: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or width
        self.outputs, self.width = outputs, width
        self.mlp = nn.Sequential(
            nn.Linear(outputs * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, targets),
        )

    def forward(self, encoding: Encoding) -> Tensor:
        """``[B, targets]`` in the batch's order. Raises ``UserError`` when a network has another number of outputs."""
        if encoding.vector is not None:
            return self.mlp(encoding.vector)
        assert encoding.nodes is not None
        pooled = []
        for graph, nodes in zip(encoding.batch.buckets, encoding.nodes, strict=True):
            if graph.spec.num_outputs != self.outputs:
                raise UserError(
                    f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
                )
            chosen = [
                x for s, x in zip(graph.spec.node_sets, nodes, strict=True) if s.role == "output" and x is not None
            ]
            pooled.append(torch.cat(chosen, 1).flatten(1))
        if not pooled:
            return self.mlp(next(self.parameters()).new_zeros(0, self.outputs * self.width))
        return self.mlp(encoding.batch.restore(pooled))
