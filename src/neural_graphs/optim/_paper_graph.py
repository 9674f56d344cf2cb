"""The rules of Kofinas et al. (ICLR 2024) that read the network as a graph: NG-GNN and NG-T on features of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from neural_graphs.graph import GraphSpec, NeuralGraph, NodeSet, PermutationSpec
from neural_graphs.graph._axis import Axis
from neural_graphs.graph._structure import Block, NodeFeature
from neural_graphs.nn import create_encoder
from neural_graphs.nn._embedding import pad_kernel
from neural_graphs.optim._paper import FEATURES, PaperRule, seeded
from neural_graphs.optim._rule import register_rule
from neural_graphs.optim._wiring import Wiring


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """A wiring as a neural graph whose edges hold ``FEATURES`` numbers for every tap of a kernel of ``taps``.

    Neurons have the features of one tensor, their biases. Further ones (a normalisation's) are edges from a neuron that is
    added for each of them, as in Knyazev et al., "Accelerating training with neuron interaction and nowcasting networks"
    (2025). ``blocks``: number of each piece's block; ``owners``: of the piece whose values the neurons of a node set have.
    """

    spec: GraphSpec
    blocks: dict[int, int]
    owners: dict[int, int]

    def fill(self, seen: Sequence[Tensor], kernel: tuple[int, int]) -> NeuralGraph:
        """Of features ``[P, n_t, n_s / g, taps, FEATURES]`` of all pieces; ``UserError`` where a kernel is too large."""
        like = seen[0]
        nodes = [like.new_zeros(len(like), node_set.size, 0) for node_set in self.spec.node_sets]
        for number, piece in self.owners.items():
            nodes[number] = seen[piece][:, :, 0, 0]
        edges = [pad_kernel(seen[piece].mT, seen[piece].shape[3], (), kernel).flatten(3) for piece in self.blocks]
        return NeuralGraph(self.spec, tuple(nodes), tuple(edges))

    def read(self, nodes: Sequence[Tensor | None], edges: Sequence[Tensor | None]) -> list[Tensor]:
        """The vectors of all pieces, ``[P, n_t, n_s / g, F]``."""
        found: dict[int, Tensor] = {}
        for number, piece in self.owners.items():
            if (vector := nodes[number]) is not None:
                found[piece] = vector.unsqueeze(2)
        for piece, number in self.blocks.items():
            if (vector := edges[number]) is not None:
                found[piece] = vector
        return [found[piece] for piece in range(len(found))]


@lru_cache(maxsize=256)
def feature_graph(wiring: Wiring, taps: int) -> FeatureGraph:
    """The graph of a wiring; all neurons of a node set may be permuted, and are told apart by nothing but their values."""
    sizes, depths = list(wiring.sizes), list(wiring.depths)
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[int, int] = {}
    numbers: dict[int, int] = {}
    blocks: list[Block] = []
    for number, piece in enumerate(wiring.pieces):
        source = piece.source
        if source is None and piece.target not in owners:
            owners[piece.target] = number
            continue
        if source is None:
            source = len(sizes)
            sizes.append(1)
            depths.append(max(0, depths[piece.target] - 1))
        numbers[number] = len(blocks)
        shape = (*piece.sizes[:2], FEATURES * taps)
        shapes[f"edges.{number}"] = shape
        kernel = (FEATURES, taps)
        blocks.append(
            Block(source, piece.target, f"edges.{number}", shape, kernel, math.prod(kernel), groups=piece.groups)
        )
    node_sets = []
    for number, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
        names = [f"nodes.{number}.{k}" for k in range(FEATURES)] if number in owners else []
        shapes |= dict.fromkeys(names, (size,))
        features = tuple(map(NodeFeature, names))
        node_sets.append(
            NodeSet(f"nodes.{number}", size, "hidden", depth, features=features, axis=Axis.of(f"nodes.{number}", size))
        )
    axes = tuple((name, tuple(map(Axis.fixed, shape))) for name, shape in shapes.items())
    return FeatureGraph(GraphSpec(tuple(node_sets), tuple(blocks), PermutationSpec(axes)), numbers, owners)


class PaperGraphRule(PaperRule):
    """Base of both: an encoder gives every connection and every neuron a vector, which all taps of a kernel share.

    Kernels are zero-padded to ``kernel``, their taps being channels of one edge. The paper embeds positions by sines of the
    layer's number; here sines of its distance from inputs and outputs, the same for all neurons of a layer, inputs
    and outputs included. Blocks without parameters (residuals) are not read.
    """

    def __init__(self, encoder: str, width: int, kernel: Sequence[int], seed: int, **arguments: Any) -> None:
        super().__init__(width, width, seed)
        self.kernel = (int(kernel[0]), int(kernel[1]))
        names = ("bias", *(f"bias#{k}" for k in range(2, FEATURES + 1)))
        read = {"kernel": (FEATURES, math.prod(self.kernel)), "node_features": names, "max_io": 1}
        with seeded(seed + 1):
            self.encoder = create_encoder(
                encoder, width=width, reverse_edges=True, fourier=0, seed=seed, **read, **arguments
            )

    def vectors(self, wiring: Wiring, seen: Sequence[Tensor]) -> list[Tensor]:
        graph = feature_graph(wiring, math.prod(self.kernel))
        encoding = self.encoder(graph.fill(seen, self.kernel))
        return graph.read(encoding.nodes[0], encoding.edges[0])


@register_rule("paper-ng-gnn")
class PaperNGGNN(PaperGraphRule):
    """NG-GNN: 8 layers of principal neighbourhood aggregation with FiLM and edge updates, reversed edges, linear embeddings.

    Differs from the authors' as ``NGGNN`` does: layer norm over each neuron's features, a start near the identity.
    """

    def __init__(self, hidden: int = 64, layers: int = 8, kernel: Sequence[int] = (5, 5), seed: int = 0) -> None:
        super().__init__("ng-gnn", hidden, kernel, seed, layers=layers)


@register_rule("paper-ng-t")
class PaperNGT(PaperGraphRule):
    """NG-T: 2 layers of relational attention among all neurons (``attention`` "blocks": along connections alone), 4 heads.

    No class token, no row and column means in the edge updates, and no edge update behind the last layer.
    """

    def __init__(
        self,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 4,
        attention: str = "all",
        kernel: Sequence[int] = (5, 5),
        seed: int = 0,
    ) -> None:
        widths = {"edge_width": hidden, "attention_width": hidden, "hidden": 2 * hidden, "edge_hidden": 2 * hidden}
        super().__init__("ng-t", hidden, kernel, seed, layers=layers, heads=heads, attention=attention, **widths)
