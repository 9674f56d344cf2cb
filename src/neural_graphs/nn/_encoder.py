"""What every encoder is: a module from a batch of neural graphs to embeddings of its nodes, edges or whole networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn._normalization import Normalization

Reads = Literal["outputs", "nodes", "edges"]
"""What a head reads: the output neurons only, every neuron, or every neuron and every edge."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """Embeddings of a batch, per bucket.

    ``nodes[k][s]`` is ``[B_k, n_s, F]``; ``edges[k][d]`` is ``[B_k, n_out, n_in, F]`` for directed block d: the blocks in
    order, then, with reversed edges, the blocks again for the opposite direction. Entries that the head said it does not
    read are None. Encoders that see a network as one vector give ``vector`` ``[B, F]`` instead, in the batch's order.

    ``rescaled`` embeddings are equivariant to more than permutation: a hidden neuron's embedding is multiplied by its own
    factor when the network is rescaled (a positive scale or a sign, see ``Rescaling``), an edge's like its weight in the
    direction of its message, by the factor of the receiver over that of the sender. Inputs and outputs have factor 1.
    ``canonical`` gives their invariant form.
    """

    batch: GraphBatch
    nodes: tuple[tuple[Tensor | None, ...], ...] | None = None
    edges: tuple[tuple[Tensor | None, ...], ...] | None = None
    vector: Tensor | None = None
    rescaled: bool = False


class Encoder(nn.Module):
    """Base class.

    ``width`` is F of nodes and vectors, ``edge_width`` that of edges; ``config`` holds the JSON-able arguments that rebuild
    the encoder, ``name`` included.
    """

    invariant: ClassVar[bool] = True
    """Whether permuting neurons leaves the network's representation unchanged; the test battery holds it to that."""

    edge_dtype: torch.dtype | None = None
    """Precision of edge embeddings inside encoders that have them; None is that of the parameters. ``torch.bfloat16``
    halves memory and, where the processor multiplies bfloat16 matrices, time."""

    config: dict[str, Any]
    width: int

    @property
    def edge_width(self) -> int:
        return self.width

    def __init__(self) -> None:
        super().__init__()
        self.normalization = Normalization()

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        raise NotImplementedError

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        """Measure and keep the statistics of a training zoo; ``graphs`` are stacked batches of any architectures."""
        self.normalization = Normalization.fit(graphs)

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when this model cannot read networks like ``graph``."""

    def extra_state(self) -> dict[str, Any]:
        """JSON-able facts beside the tensors that a saved model needs."""
        return {"normalization": self.normalization.to_json()}

    def load_extra_state(self, data: dict[str, Any]) -> None:
        self.normalization = Normalization.from_json(data.get("normalization"))
