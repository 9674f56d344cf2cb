"""What every encoder is: a module from a batch of neural graphs to embeddings of its nodes, edges or whole networks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn._normalization import Normalization
from neural_graphs.nn._slots import Reading

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
    A phase changes the sign of what a neuron hands on: of the edges of its outgoing weights, and of no node's embedding.
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

    vectors: ClassVar[bool] = False
    """Whether an encoding is one vector per network, with no embedding of neurons or edges."""

    edge_dtype: torch.dtype | None = None
    """Precision of edge embeddings inside encoders that have them; None is that of the parameters. ``torch.bfloat16``
    halves memory and, where the processor multiplies bfloat16 matrices, time."""

    rescaled: ClassVar[bool] = False
    """Whether embeddings are (``Encoding.rescaled``)."""

    both_directions: bool = True
    """Whether edges are embedded in both directions."""

    kernel: tuple[int, int] = (1, 1)
    """The largest kernel that it reads."""

    reading: Reading = Reading()
    """What it reads beside weights."""

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

    # -- files, here and on the Hub -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``. ``RunError`` when they cannot be written."""
        from neural_graphs.nn import _hub

        _hub.write_model(Path(folder), self, _hub.encoder_config(self))

    @staticmethod
    def from_pretrained(source: str | os.PathLike[str], revision: str | None = None) -> Encoder:
        """Read an encoder, in evaluation mode, from a folder or from the Hugging Face Hub: ``"owner/name"``, or
        ``"hf:owner/name"`` where a folder may have the same name. A saved classifier's encoder is read too.

        Only ``config.json`` and ``model.safetensors`` are downloaded, at ``revision`` (a branch, tag or commit), and neither
        is executed. The token is the one that ``huggingface_hub`` knows (``HF_TOKEN``, ``hf auth login``).

        Raises:
            UserError: there is no such model, a file is missing, broken or truncated, or was written by a newer version.
            RunError: the Hub cannot be reached.
        """
        from neural_graphs.nn import _hub

        return _hub.load_encoder(source, revision)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        private: bool | None = None,
        message: str | None = None,
    ) -> str:
        """Upload to the repository ``"owner/name"`` of the Hugging Face Hub, made where there is none; its address.

        Beside the two files of ``save_pretrained`` goes a README.md: task, configuration, parameters, ``metrics`` (name ->
        value), versions, and how to load it. ``message`` is the commit's; the token as in ``from_pretrained``.

        Raises:
            UserError: the name is none, or the Hub does not let you write there.
            RunError: the Hub cannot be reached.
        """
        from neural_graphs.nn import _hub

        return _hub.push(repo_id, self, _hub.encoder_config(self), metrics, private, message)
