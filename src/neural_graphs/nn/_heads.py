"""Heads that read an encoder's embeddings: one vector per network, one per neuron."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, NodeSet
from neural_graphs.nn._canonical import canonical
from neural_graphs.nn._encoder import Encoding, Reads
from neural_graphs.nn._pooling import check_pooling, create_pooling, pooled_sets


class GraphHead(nn.Module):
    """Neurons' embeddings pooled to one vector per network, then ``Linear, ReLU, Linear, ReLU, Linear``.

    By default the embeddings of the output neurons are concatenated (Kofinas et al. 2024). What a network gives does not
    depend on its batch mates, whatever their architectures. Encoders that give one vector per network feed it straight into
    the same MLP.

    Args:
        width: the encoder's F.
        outputs: number of output neurons of every network read; only ``concat`` needs it, the others read any number.
        targets: size of the result.
        hidden: width of the MLP, F by default.
        pooling: ``"concat"``, ``"mean"``, ``"max"``, ``"attention"`` (gated, with a learned query) or
            ``"set-transformer"``.
        over: ``"output"`` neurons, neurons of the ``"last"`` hidden layer, or ``"all"`` neurons, inputs included.
        heads: attention heads of the set-transformer.
        blocks: its self-attention blocks.

    Embeddings that multiply with a neuron's scale or sign (``Encoding.rescaled``) are pooled in their canonical form.
    Raises ``UserError`` for unknown names, ``concat`` over neurons of no fixed number, and heads that do not divide F.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        targets: int,
        hidden: int | None = None,
        pooling: str = "concat",
        over: str = "output",
        heads: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        check_pooling(pooling, over)
        hidden = hidden or width
        if min(width, outputs, targets, hidden) < 1:
            raise UserError(f"a head needs positive sizes, not {width}, {outputs}, {targets} and {hidden}")
        self.outputs, self.width, self.pooling, self.over = outputs, width, pooling, over
        self.reads: Reads = "outputs" if over == "output" else "nodes"
        self.mlp = nn.Sequential(
            nn.Linear(outputs * width if pooling == "concat" else width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, targets),
        )
        self.pool = create_pooling(pooling, width, heads, blocks)

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` when this head cannot read networks like ``graph``."""
        if self.pooling == "concat" and graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
            )
        pooled_sets(graph.spec, self.over)

    def forward(self, encoding: Encoding) -> Tensor:
        """``[B, targets]`` in the batch's order. Raises ``UserError`` for networks that it cannot read."""
        return self.mlp[-1](self.code(encoding))

    def code(self, encoding: Encoding) -> Tensor:
        """What the last linear map reads, ``[B, hidden]``; other maps may read it as well."""
        hidden = self.mlp[:-1]
        if encoding.vector is not None:
            self.check_vectors()
            return hidden(encoding.vector)
        pooled = []
        for graph, nodes in zip(encoding.batch.buckets, given_nodes(encoding), strict=True):
            self.check_readable(graph)
            sets = graph.spec.node_sets
            chosen = [
                invariant(given(nodes[s]), sets[s], encoding.rescaled) for s in pooled_sets(graph.spec, self.over)
            ]
            x = torch.cat(chosen, 1)
            pooled.append(x.flatten(1) if self.pool is None else self.pool(x))
        if not pooled:
            first = self.mlp[0]
            assert isinstance(first, nn.Linear)
            return hidden(first.weight.new_zeros(0, first.in_features))
        return hidden(encoding.batch.restore(pooled))

    def check_vectors(self) -> None:
        """Raise ``UserError`` unless this head reads encoders that give one vector per network."""
        if self.pooling != "concat":
            raise UserError(
                f"this encoder gives one vector per network, so there is nothing to pool: leave out pooling={self.pooling}"
            )
        if self.outputs > 1:
            raise UserError("this encoder gives one vector per network: make its head with outputs=1")


class NodeHead(nn.Module):
    """``targets`` values per neuron: ``Linear, ReLU, Linear`` on every neuron's embedding (canonical, where it is rescaled).

    Args:
        width: the encoder's F.
        targets: values per neuron.
        hidden: width of the MLP, F by default.
    """

    reads: Reads = "nodes"

    def __init__(self, width: int, targets: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, targets))

    def forward(self, encoding: Encoding) -> list[list[Tensor]]:
        """Per bucket and node set ``[B_k, n_s, targets]``. Raises ``UserError`` for encoders that embed no neurons."""
        return [
            [
                self.mlp(invariant(given(x), node_set, encoding.rescaled))
                for node_set, x in zip(graph.spec.node_sets, nodes, strict=True)
            ]
            for graph, nodes in zip(encoding.batch.buckets, given_nodes(encoding), strict=True)
        ]


# -- what heads share ------------------------------------------------------------------------------------------------------


def given_nodes(encoding: Encoding) -> tuple[tuple[Tensor | None, ...], ...]:
    """The neurons' embeddings per bucket. Raises ``UserError`` for encoders that give one vector per network."""
    if encoding.nodes is None:
        raise UserError("this encoder gives one vector per network and embeds no neurons: choose another encoder")
    return encoding.nodes


def given(x: Tensor | None) -> Tensor:
    """An embedding that the encoder was asked for."""
    return x if x is not None else _not_read()


def _not_read() -> NoReturn:
    raise UserError("the encoder left out what this head reads: call it as encoder(batch, reads=head.reads)")


def invariant(x: Tensor, node_set: NodeSet, rescaled: bool) -> Tensor:
    """Neurons' embeddings ``[B, n, F]`` in a form that no rescaling changes; inputs and outputs have no factor anyway."""
    return canonical(x, node_set.activation) if rescaled and node_set.role == "hidden" else x
