"""Several encoders side by side: what one sees in the graph, another in the network's answers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._heads import given, given_nodes
from neural_graphs.nn._pooling import pooled_sets
from neural_graphs.nn._registry import _ENCODERS, create_encoder, register_encoder

DEFAULT_PARTS: tuple[Mapping[str, Any], ...] = ({"name": "ng-gnn", "probes": 64}, {"name": "probing"})


@register_encoder("combined")
class Combined(Encoder):
    """Vectors of several encoders, each layer-normalised, concatenated: ``[B, width]``.

    A graph encoder gives the embeddings of the output neurons, one that sees a network as a vector gives that vector.

    Args:
        parts: name and arguments of each encoder, as for ``create_encoder``.
        width, layers: those of every part that does not say otherwise; 0 leaves the part's own default.
        inputs, outputs, kernel, max_io, seed: passed to the parts that take them and do not say otherwise;
            ``outputs`` is the number of output neurons of every network read.
        node_features, block_kinds, activations, probe_shape: likewise, where they are given.

    Raises ``UserError`` for unknown parts or arguments, and for networks with another number of outputs.
    """

    vectors = True

    def __init__(
        self,
        parts: Sequence[Mapping[str, Any]] = DEFAULT_PARTS,
        width: int = 0,
        layers: int = 0,
        inputs: int = 2,
        outputs: int = 1,
        kernel: Sequence[int] = (1, 1),
        max_io: int = 16,
        seed: int = 0,
        node_features: Sequence[str] = (),
        block_kinds: Sequence[str] = (),
        activations: Sequence[str] = (),
        probe_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not parts:
            raise UserError("combined: give at least one encoder in parts")
        shared = {"inputs": inputs, "outputs": outputs, "kernel": list(kernel), "max_io": max_io, "seed": seed}
        optional = {"width": width, "layers": layers, "node_features": node_features, "block_kinds": block_kinds}
        optional = {**optional, "activations": activations, "probe_shape": probe_shape}
        shared |= {key: value for key, value in optional.items() if value}
        self.parts = nn.ModuleList(_part(part, shared) for part in parts)
        self.outputs = outputs
        sizes = [part.width * (1 if part.vectors else outputs) for part in self._encoders]
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        self.width = sum(sizes)
        self.invariant = all(part.invariant for part in self._encoders)  # type: ignore[misc]

    @property
    def _encoders(self) -> list[Encoder]:
        return [part for part in self.parts if isinstance(part, Encoder)]

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        batch = GraphBatch.of(batch)
        for graph in batch.buckets:  # parts check what else they need
            self._check_outputs(graph)
        if not batch.buckets:
            return Encoding(batch, vector=next(self.parameters()).new_zeros(0, self.width))
        found = [norm(_vector(part(batch, reads="outputs"))) for part, norm in zip(self.parts, self.norms, strict=True)]
        return Encoding(batch, vector=torch.cat(found, -1))

    def check_readable(self, graph: NeuralGraph) -> None:
        self._check_outputs(graph)
        for part in self._encoders:
            part.check_readable(graph)

    def _check_outputs(self, graph: NeuralGraph) -> None:
        if graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
            )

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        kept = list(graphs)  # read once per part
        for part in self._encoders:
            part.fit_normalization(kept)

    @property
    def edge_dtype(self) -> torch.dtype | None:
        """Precision of edge embeddings in all parts."""
        return self._encoders[0].edge_dtype

    @edge_dtype.setter
    def edge_dtype(self, dtype: torch.dtype | None) -> None:
        for part in self._encoders:
            part.edge_dtype = dtype

    def extra_state(self) -> dict[str, Any]:
        return {"parts": [part.extra_state() for part in self._encoders]}

    def load_extra_state(self, data: dict[str, Any]) -> None:
        for part, state in zip(self._encoders, data["parts"], strict=True):
            part.load_extra_state(state)


def _vector(encoding: Encoding) -> Tensor:
    """One vector per network; of a graph's encoding the output neurons' embeddings side by side."""
    if encoding.vector is not None:
        return encoding.vector
    pooled = []
    for graph, nodes in zip(encoding.batch.buckets, given_nodes(encoding), strict=True):
        pooled.append(torch.cat([given(nodes[s]) for s in pooled_sets(graph.spec, "output")], 1).flatten(1))
    return encoding.batch.restore(pooled)


def _part(part: Mapping[str, Any], shared: Mapping[str, Any]) -> Encoder:
    name = part.get("name")
    if name not in _ENCODERS:
        raise UserError(f"combined: unknown encoder {name!r} in parts: choose among {', '.join(sorted(_ENCODERS))}")
    accepted = inspect.signature(_ENCODERS[name]).parameters
    return create_encoder(**{key: value for key, value in shared.items() if key in accepted} | dict(part))
