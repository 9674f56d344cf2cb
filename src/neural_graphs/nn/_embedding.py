"""From raw weights, biases and depths to embeddings: what all graph encoders share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphSpec, NeuralGraph
from neural_graphs.nn._edges import fourier_embedding
from neural_graphs.nn._normalization import Normalization
from neural_graphs.nn._plan import Direction
from neural_graphs.nn._probes import ProbeFeatures, check_probed

Nodes = dict[int, Tensor]
"""Node set number -> embeddings ``[B, n, F]``."""


class GraphEmbedding(nn.Module):
    """Node and edge embeddings of a batch of one architecture before any message (Kofinas et al. 2024, section 3).

    A node's is ``Linear(embed(bias) + probe features) + position``, an edge's ``Linear(embed(weight))``; with
    ``reverse_edges`` edge features are ``[w, 0, w]`` and, for the opposite direction, ``[0, w, w]``. Without, both
    directions have the same ``[w]``.

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
    ) -> None:
        super().__init__()
        self.kernel = (int(kernel[0]), int(kernel[1]))
        self.reverse_edges = reverse_edges
        generator = torch.Generator().manual_seed(seed)
        features = math.prod(self.kernel) * (3 if reverse_edges else 1)
        self.edge_embedding = RawEmbedding(features, edge_width, fourier, sigma, generator)
        self.node_embedding = RawEmbedding(1, width, fourier, sigma, generator)
        self.edge_in = nn.Linear(edge_width, edge_width)
        self.node_in = nn.Linear(width, width)
        self.position = PositionEmbedding(width, max_io)
        self.probes = ProbeFeatures(probes, inputs, width, probe_generator, probe_reads) if probes else None

    def check_readable(self, graph: NeuralGraph) -> None:
        check_weights_and_biases(graph.spec, self.kernel, self.position.max_io)
        if self.probes is not None:
            check_probed(graph, self.probes.inputs)

    def nodes(self, graph: NeuralGraph, normalization: Normalization) -> Nodes:
        """Embeddings ``[B, n_s, F]`` of all node sets."""
        nodes = nodewise(self.node_embedding, dict(enumerate(normalization.biases(graph))))
        if self.probes is not None:
            for s, features in enumerate(self.probes(graph)):
                if features is not None:
                    nodes[s] = nodes[s] + features
        nodes = nodewise(self.node_in, nodes)
        return {s: x + self.position(graph.spec, s) for s, x in nodes.items()}

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
        return {
            d: self.edge_embedding(blocks[directions[d].block], roles[directions[d].reverse], self.edge_in, dtype)
            for d in wanted
        }

    def raw_edges(self, graph: NeuralGraph, normalization: Normalization) -> list[Tensor]:
        """Normalised features of all blocks, ``[B, n_out, n_in / groups, kh * kw]`` with the model's kernel.

        A residual is a weight of 1, at the centre of the kernel.
        """
        return [
            pad_kernel(edges, block.features, block.kernel, self.kernel)
            if block.features
            else pad_kernel(edges.new_ones(*edges.shape[:-1], 1), 1, (), self.kernel)
            for block, edges in zip(graph.spec.blocks, normalization.weights(graph), strict=True)
        ]


def check_weights_and_biases(spec: GraphSpec, kernel: tuple[int, int], max_io: int) -> None:
    """Raise ``UserError`` with one line unless networks are made of weights, residuals and a bias per neuron that fit."""
    if max(spec.num_inputs, spec.num_outputs) > max_io:
        raise UserError(
            f"this model reads networks of up to {max_io} inputs and outputs, this one has {spec.num_inputs} and "
            f"{spec.num_outputs}"
        )
    for nodes in spec.node_sets:
        if nodes.columns > 1:
            raise UserError(
                f"this model reads one value per neuron, its bias: {nodes.name} has {nodes.columns} "
                f"({', '.join(nodes.parameters)})"
            )
    for block in spec.blocks:
        if block.features:
            kernel_of(block.features, block.kernel, kernel)
        elif block.kind != "identity":
            raise UserError(f"this model reads weights and residuals, but no {block.kind} without parameters")


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
    ) -> Tensor:
        """``x`` ``[..., f]`` as if concatenated into the channel groups ``roles`` of the raw feature, zeros in the others;
        ``then`` is a linear map that follows and is composed with this one; ``dtype`` that of the result."""
        f = x.shape[-1]
        weight, bias = composed(then, self.linear) if then is not None else (self.linear.weight, self.linear.bias)
        if self.frequencies is None:
            return F.linear(x, torch.stack([weight[:, r * f : (r + 1) * f] for r in roles]).sum(0), bias).to(dtype)
        frequencies = torch.stack([self.frequencies[r * f : (r + 1) * f] for r in roles]).sum(0)
        return fourier_embedding(x, frequencies, weight, bias, dtype)


class PositionEmbedding(nn.Module):
    """Tells input neurons apart, output neurons apart, and hidden layers (not their neurons) by depth.

    Inputs and outputs have learned rows, a hidden layer has a ``DepthEmbedding``.
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
        if nodes.role == "input":
            return self.inputs[: nodes.size]
        if nodes.role == "output":
            return self.outputs[: nodes.size]
        return self.depth(nodes.depth, spec.depth - nodes.depth).unsqueeze(0)


class DepthEmbedding(nn.Linear):
    """A learned linear map of sines and cosines of a layer's distance from the input and from the output, ``[F]``, so that
    networks deeper than any in the training zoo have one too."""

    def __init__(self, width: int, waves: int = 8) -> None:
        super().__init__(4 * waves, width, bias=False)
        nn.init.normal_(self.weight, std=(2 * waves) ** -0.5)

    def forward(self, below: int, above: int) -> Tensor:  # type: ignore[override]
        like = self.weight
        distance = torch.tensor([below, above], dtype=like.dtype, device=like.device)
        rates = 2.0 ** -torch.arange(self.in_features // 4, dtype=like.dtype, device=like.device)
        angle = (distance[:, None] * rates).flatten() * (math.pi / 2)
        return super().forward(torch.cat([angle.cos(), angle.sin()]))


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


def kernel_of(features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> tuple[int, int]:
    """The 2-D extent of a block's edge feature; raises ``UserError`` when the model's kernel cannot hold it."""
    side = math.isqrt(features)
    shape = (kernel[0], kernel[1]) if kernel else (side, side)
    if math.prod(shape) != features or shape[0] > largest[0] or shape[1] > largest[1]:
        raise UserError(
            f"edge features of {features} values ({'x'.join(map(str, kernel or (features,)))}) do not fit this model's "
            f"kernel {largest[0]}x{largest[1]}: create the encoder with a larger kernel"
        )
    return shape


def pad_kernel(edges: Tensor, features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> Tensor:
    """Flattened kernels ``[..., kh * kw]`` centred and zero-padded to ``[..., KH * KW]``."""
    kh, kw = kernel_of(features, kernel, largest)
    if (kh, kw) == largest:
        return edges
    top, left = (largest[0] - kh) // 2, (largest[1] - kw) // 2
    pads = (left, largest[1] - kw - left, top, largest[0] - kh - top)
    return F.pad(edges.unflatten(-1, (kh, kw)), pads).flatten(-2)


def crop_kernel(edges: Tensor, features: int, kernel: tuple[int, ...], largest: tuple[int, int]) -> Tensor:
    """The inverse of ``pad_kernel``: the centre of ``[..., KH * KW]`` as flattened kernels ``[..., kh * kw]``."""
    kh, kw = kernel_of(features, kernel, largest)
    if (kh, kw) == largest:
        return edges
    top, left = (largest[0] - kh) // 2, (largest[1] - kw) // 2
    return edges.unflatten(-1, largest)[..., top : top + kh, left : left + kw].flatten(-2)
