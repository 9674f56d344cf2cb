"""From raw weights, biases and depths to embeddings: what all graph encoders share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.graph import Block, GraphSpec, NeuralGraph
from neural_graphs.nn._edges import fourier_embedding
from neural_graphs.nn._normalization import Normalization
from neural_graphs.nn._plan import Direction
from neural_graphs.nn._probes import ProbeFeatures
from neural_graphs.nn._slots import BIAS_ONLY, Reading, check_extent, is_table, slots_of

Nodes = dict[int, Tensor]
"""Node set number -> embeddings ``[B, n, F]``."""


class GraphEmbedding(nn.Module):
    """Node and edge embeddings of a batch of one architecture before any message (Kofinas et al. 2024, section 3).

    A node's is ``Linear(embed(bias) + probe features) + position``, an edge's ``Linear(embed(weight))``; with
    ``reverse_edges`` edge features are ``[w, 0, w]`` and, for the opposite direction, ``[0, w, w]``. Without, both
    directions have the same ``[w]``.

    Further node features have an embedding each, which is added to that of the bias: joint random frequencies of many
    features would leave no slow ones. A hidden node has its activation's embedding added to its position, an edge that of
    its block's kind.

    Args: as those of ``NGGNN``; ``width`` of nodes, ``edge_width`` of edges.
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        *,
        reverse_edges: bool,
        fourier: int,
        sigma: float,
        kernel: Sequence[int],
        max_io: int,
        probes: int,
        inputs: int,
        seed: int,
        probe_generator: str = "points",
        probe_reads: str = "neurons",
        node_features: Sequence[str] = BIAS_ONLY,
        block_kinds: Sequence[str] = (),
        activations: Sequence[str] = (),
        probe_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.reading = Reading.of(node_features, block_kinds, activations)
        self.kernel = (int(kernel[0]), int(kernel[1]))
        self.reverse_edges = reverse_edges
        generator = torch.Generator().manual_seed(seed)
        features = math.prod(self.kernel) * (3 if reverse_edges else 1)
        self.edge_embedding = RawEmbedding(features, edge_width, fourier, sigma, generator)
        self.node_embedding = RawEmbedding(1, width, fourier, sigma, generator)
        self.edge_in = nn.Linear(edge_width, edge_width)
        self.node_in = nn.Linear(width, width)
        self.position = PositionEmbedding(width, max_io)
        self.probes = (
            ProbeFeatures(probes, inputs, width, probe_generator, probe_reads, probe_shape) if probes else None
        )
        self.more_features = nn.ModuleList(
            RawEmbedding(1, width, fourier, sigma, generator) for _ in self.reading.node_features[1:]
        )
        self.kind = KindEmbedding(self.reading.block_kinds, edge_width) if block_kinds else None
        self.activation = ActivationEmbedding(self.reading.activations, width) if activations else None

    def check_readable(self, graph: NeuralGraph) -> None:
        self.reading.check(graph.spec, self.kernel, self.position.max_io)
        if self.probes is not None:
            self.probes.check_readable(graph)

    def nodes(self, graph: NeuralGraph, normalization: Normalization) -> Nodes:
        """Embeddings ``[B, n_s, F]`` of all node sets."""
        nodes = self._features(graph, normalization)
        if self.probes is not None:
            for s, features in enumerate(self.probes(graph)):
                if features is not None:
                    nodes[s] = nodes[s] + features
        nodes = nodewise(self.node_in, nodes)
        return {s: x + self.place(graph.spec, s) for s, x in nodes.items()}

    def place(self, spec: GraphSpec, node_set: int) -> Tensor:
        """What tells the neurons of a node set from others whatever their weights, ``[n or 1, F]``."""
        nodes = spec.node_sets[node_set]
        position = self.position(spec, node_set)
        if self.activation is None or nodes.role != "hidden":
            return position
        return position + self.activation(nodes.activation.kind)

    def _features(self, graph: NeuralGraph, normalization: Normalization) -> Nodes:
        """The embedded slots, added up; a slot that a node set lacks is 0."""
        values = normalization.biases(graph)
        if self.reading.node_features == BIAS_ONLY:
            return nodewise(self.node_embedding, dict(enumerate(values)))
        columns = [slots_of(nodes) for nodes in graph.spec.node_sets]
        total: dict[int, Tensor] = {}
        for name, embedding in zip(self.reading.node_features, (self.node_embedding, *self.more_features), strict=True):
            given = {s: values[s][..., k : k + 1] for s, own in enumerate(columns) for k in _index(own, name)}
            found = nodewise(embedding, given)
            if len(given) < len(columns):
                zero = embedding(values[0].new_zeros(1, 1, 1))
                found |= {s: zero.expand(*v.shape[:2], -1) for s, v in enumerate(values) if s not in given}
            total = {s: total[s] + x if s in total else x for s, x in found.items()}
        return total

    def edges(
        self,
        graph: NeuralGraph,
        normalization: Normalization,
        directions: Sequence[Direction],
        wanted: Iterable[int],
        dtype: torch.dtype | None = None,
    ) -> dict[int, Tensor]:
        """Embeddings ``[B, n_out, n_in / groups, F]`` of the ``wanted`` directions, by number."""
        blocks = self.raw_edges(graph, normalization)
        roles: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 2), (1, 2)) if self.reverse_edges else ((0,), (0,))
        found = {}
        for d in wanted:
            way = directions[d]
            kind = self.kind_of(graph.spec.blocks[way.block])
            found[d] = self.edge_embedding(blocks[way.block], roles[way.reverse], self.edge_in, dtype, kind)
        return found

    def kind_of(self, block: Block) -> Tensor | None:
        """What is added to the embeddings of a block's edges, ``[edge_width]``."""
        return None if self.kind is None else self.kind(block.kind)

    def raw_edges(self, graph: NeuralGraph, normalization: Normalization) -> list[Tensor]:
        """Normalised features of all blocks, ``[B, n_out, n_in / groups, kh * kw]`` with the model's kernel.

        A residual is a weight of 1, at the centre of the kernel; other blocks without parameters are weights of 0, which
        their kind alone tells from others.
        """
        found = []
        for block, edges in zip(graph.spec.blocks, normalization.weights(graph), strict=True):
            if block.features:
                found.append(pad_kernel(edges, block.features, block.kernel, self.kernel))
            else:
                weight = 1.0 if block.kind == "identity" else 0.0
                found.append(pad_kernel(edges.new_full((*edges.shape[:-1], 1), weight), 1, (), self.kernel))
        return found


def _index(names: Sequence[str], name: str) -> tuple[int, ...]:
    return (names.index(name),) if name in names else ()


class RawEmbedding(nn.Module):
    """Raw features to width F: random Fourier features (Tancik et al. 2020) and a linear map, or a linear map alone."""

    def __init__(self, features: int, width: int, fourier: int, sigma: float, generator: torch.Generator) -> None:
        super().__init__()
        self.features = features
        self.frequencies: Tensor | None
        frequencies = 2 * math.pi * sigma * torch.randn(features, fourier, generator=generator) if fourier else None
        self.register_buffer("frequencies", frequencies)
        self.linear = nn.Linear(2 * fourier if fourier else features, width)

    def forward(
        self,
        x: Tensor,
        roles: tuple[int, ...] = (0,),
        then: nn.Linear | None = None,
        dtype: torch.dtype | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """``x`` ``[..., f]`` as if concatenated into the channel groups ``roles`` of the raw feature, zeros in the others;
        ``then`` is a linear map that follows and is composed with this one; ``dtype`` that of the result, to which
        ``shift`` ``[width]`` is added."""
        f = x.shape[-1]
        weight, bias = composed(then, self.linear) if then is not None else (self.linear.weight, self.linear.bias)
        bias = bias if shift is None else bias + shift
        return self.mapped(x, [slice(r * f, (r + 1) * f) for r in roles], weight, bias, dtype)

    def mapped(
        self, x: Tensor, columns: Sequence[slice | Tensor], weight: Tensor, bias: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        """``x`` ``[..., f]`` standing in each of ``columns`` (f places of the raw feature), embedded with ``weight`` and
        ``bias`` in place of the linear map's own."""
        if self.frequencies is None:
            return F.linear(x, torch.stack([weight[:, c] for c in columns]).sum(0), bias).to(dtype)
        frequencies = torch.stack([self.frequencies[c] for c in columns]).sum(0)
        return fourier_embedding(x, frequencies, weight, bias, dtype)


class KindEmbedding(nn.Embedding):
    """A learned vector for each of the named kinds of blocks, 0 at first."""

    def __init__(self, kinds: Sequence[str], width: int) -> None:
        super().__init__(len(kinds), width)
        self.kinds = tuple(kinds)
        nn.init.zeros_(self.weight)

    def forward(self, kind: str) -> Tensor | None:  # type: ignore[override]
        """``[width]``, None for a kind that has no vector."""
        return self.weight[self.kinds.index(kind)] if kind in self.kinds else None


class ActivationEmbedding(nn.Embedding):
    """A learned vector for each of the named activations (Kofinas et al. 2024, CNN Wild Park); frequencies of sines do not
    count."""

    def __init__(self, kinds: Sequence[str], width: int) -> None:
        super().__init__(len(kinds), width)
        self.kinds = tuple(kinds)

    def forward(self, kind: str) -> Tensor:  # type: ignore[override]
        """``[width]`` of one of the named kinds."""
        return self.weight[self.kinds.index(kind)]


class PositionEmbedding(nn.Module):
    """Tells input neurons apart, output neurons apart, and hidden layers (not their neurons) by depth.

    Inputs and outputs have learned rows, a hidden layer has a ``DepthEmbedding``. The rows of a table (tokens of a
    vocabulary, positions: see ``is_table``) may be any number: they have sines and cosines of their number (Vaswani et al.
    2017), of variance 1 as learned rows at first, plus the ``DepthEmbedding`` of the table. Output neurons that a symmetry
    moves are read like a hidden layer.
    """

    def __init__(self, width: int, max_io: int) -> None:
        super().__init__()
        self.max_io = max_io
        self.inputs = nn.Parameter(torch.randn(max_io, width))
        self.outputs = nn.Parameter(torch.randn(max_io, width))
        self.depth = DepthEmbedding(width)

    def forward(self, spec: GraphSpec, node_set: int) -> Tensor:
        """``[n, F]`` for inputs and outputs, ``[1, F]`` for a hidden layer."""
        nodes = spec.node_sets[node_set]
        table = is_table(spec, node_set)
        if nodes.role != "hidden" and not nodes.axis.moves and not table:
            return (self.inputs if nodes.role == "input" else self.outputs)[: nodes.size]
        depth = self.depth(nodes.depth, spec.depth - nodes.depth).unsqueeze(0)
        return depth + number_embedding(nodes.size, depth) if table else depth


def number_embedding(count: int, like: Tensor) -> Tensor:
    """``[count, F]``: sines and cosines of 0, 1, ..., rates from 1 to 1 / 10000, variance 1; ``like`` is ``[..., F]``."""
    width = like.shape[-1]
    rates = 10_000.0 ** -(torch.arange(0, width, 2, dtype=like.dtype, device=like.device) / width)
    angle = torch.arange(count, dtype=like.dtype, device=like.device)[:, None] * rates
    return math.sqrt(2) * torch.cat([angle.sin(), angle.cos()], 1)[:, :width]


class DepthEmbedding(nn.Linear):
    """A learned linear map of sines and cosines of a layer's distance from the input and from the output, ``[F]``, so that
    networks deeper than any in the training zoo have one too."""

    def __init__(self, width: int, waves: int = 8) -> None:
        super().__init__(4 * waves, width, bias=False)
        nn.init.normal_(self.weight, std=(2 * waves) ** -0.5)

    def forward(self, below: int, above: int) -> Tensor:  # type: ignore[override]
        return self.rows([(below, above)])[0]

    def rows(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """``[len(places), F]`` of layers with these distances below and above them."""
        like = self.weight
        distance = torch.tensor(places, dtype=like.dtype, device=like.device).view(-1, 2, 1)
        rates = 2.0 ** -torch.arange(self.in_features // 4, dtype=like.dtype, device=like.device)
        angle = (distance * rates).flatten(1) * (math.pi / 2)
        return super().forward(torch.cat([angle.cos(), angle.sin()], 1))


def nodewise(function: Callable[[Tensor], Tensor], nodes: Nodes) -> Nodes:
    """Apply a pointwise function to several node sets in one call: ``[B, n_s, c]`` each."""
    if not nodes:
        return {}
    keys = list(nodes)
    if len(keys) == 1:
        return {keys[0]: function(nodes[keys[0]])}
    sizes = [nodes[s].shape[1] for s in keys]
    return dict(zip(keys, function(torch.cat([nodes[s] for s in keys], 1)).split(sizes, 1), strict=True))


def composed(outer: nn.Linear, inner: nn.Linear | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``outer(inner(x))``."""
    if inner is None:
        return outer.weight, outer.bias
    return outer.weight @ inner.weight, F.linear(inner.bias, outer.weight, outer.bias)


def pad_kernel(edges: Tensor, features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> Tensor:
    """Flattened kernels ``[..., kh * kw]`` centred and zero-padded to ``[..., KH * KW]``."""
    kh, kw = check_extent(features, kernel, largest)
    if (kh, kw) == largest:
        return edges
    top, left = (largest[0] - kh) // 2, (largest[1] - kw) // 2
    pads = (left, largest[1] - kw - left, top, largest[0] - kh - top)
    return F.pad(edges.unflatten(-1, (kh, kw)), pads).flatten(-2)


def crop_kernel(edges: Tensor, features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> Tensor:
    """The inverse of ``pad_kernel``: the centre of ``[..., KH * KW]`` as flattened kernels ``[..., kh * kw]``."""
    kh, kw = check_extent(features, kernel, largest)
    if (kh, kw) == largest:
        return edges
    top, left = (largest[0] - kh) // 2, (largest[1] - kw) // 2
    return edges.unflatten(-1, largest)[..., top : top + kh, left : left + kw].flatten(-2)
