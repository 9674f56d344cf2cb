"""NG-GNN: principal neighbourhood aggregation with FiLM-modulated messages on dense blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._edges import edge_update, fourier_embedding, modulated_statistics
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._probes import ProbeFeatures
from neural_graphs.nn._registry import register_encoder

STD_EPSILON = 1e-5
NEIGHBOUR_GAIN = 0.2
"""Initial weights on neighbours' statistics, relative to the default initialisation."""

Nodes = dict[int, Tensor]
"""Node set number -> embeddings ``[B, n, F]``."""


@dataclass(frozen=True)
class Direction:
    """One block's messages one way: ``block`` of the spec, from ``sender`` to ``receiver`` node set."""

    block: int
    reverse: bool
    sender: int
    receiver: int


@dataclass(frozen=True)
class Plan:
    """What has to be computed for what is read: per layer the live node sets, and the directions whose edges live on."""

    directions: tuple[Direction, ...]
    nodes: tuple[frozenset[int], ...]
    edges: tuple[frozenset[int], ...]


@lru_cache(maxsize=4096)
def plan(spec: GraphSpec, layers: int, reverse: bool, reads: Reads) -> Plan:
    """Dead-code elimination on the graph of computations, exact because no layer mixes nodes except along edges.

    ``nodes[l]`` are the node sets whose embedding after layer l is used (l = 0: the input embedding), ``edges[l]`` the
    directions whose edge embedding after layer l is used.
    """
    directions = tuple(Direction(k, False, b.source, b.target) for k, b in enumerate(spec.blocks))
    if reverse:
        directions += tuple(Direction(k, True, b.target, b.source) for k, b in enumerate(spec.blocks))
    everything = frozenset(range(len(spec.node_sets)))
    outputs = frozenset(s for s, nodes in enumerate(spec.node_sets) if nodes.role == "output")
    all_edges = frozenset(range(len(directions)))
    nodes = [outputs if reads == "outputs" else everything]
    edges: list[frozenset[int]] = [frozenset()]
    for layer in range(layers, 0, -1):
        into = frozenset(d for d in all_edges if directions[d].receiver in nodes[0])
        live = into | edges[0]
        if reads == "edges" and layer == layers:
            live = all_edges
        ends = frozenset(s for d in live for s in (directions[d].sender, directions[d].receiver))
        edges.insert(0, live)
        nodes.insert(0, nodes[0] | ends)
    return Plan(directions, tuple(nodes), tuple(edges))


class NGGNNLayer(nn.Module):
    """One message-passing layer; for a message from j to i (Kofinas et al. 2024, PNA with FiLM)::

        [s, t] = W_e e_ji + b_e           m_ji = s * W_m [x_i, x_j] + t
        a_i    = [mean, min, max, std] of m_ji over j, once plain and once times log(degree + 1) / average
        x_i    <- W_2 W_1 [x_i, a_i]
        e_ji   <- V_2 SiLU(V_1 e_ji + V_s x_j + V_t x_i)      (not in the last layer)

    Edge embeddings stay in the hidden form ``z`` before ``V_2``: consecutive linear maps on edges are composed.
    """

    def __init__(self, width: int, edge_mlp: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.message = nn.Linear(2 * width, width)
        self.combine = nn.Linear(9 * width, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if edge_mlp else None
        self.edge_mlp = EdgeMLP(width) if edge_mlp else None
        # Without residual connections, a default start mixes a neuron's own state with 8F statistics of its neighbours and
        # hides it for hundreds of steps. Starting W_2 W_1 near the identity on x_i lets it through from the first step.
        with torch.no_grad():
            self.combine.weight[:, width:] *= NEIGHBOUR_GAIN
            self.combine.weight[:, :width] = torch.eye(width)
            self.mix.weight.copy_(torch.eye(width))


class EdgeMLP(nn.Module):
    """The four maps of the edge update: ``edge`` V_1, ``sender`` V_s, ``receiver`` V_t and ``out`` V_2 of `NGGNNLayer`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Linear(width, width)
        self.sender = nn.Linear(width, width)
        self.receiver = nn.Linear(width, width)
        self.out = nn.Linear(width, width)


@register_encoder("ng-gnn")
class NGGNN(Encoder):
    """The graph network of Kofinas et al. (ICLR 2024), on dense blocks.

    Args:
        width: F, size of node and edge embeddings.
        layers: message-passing layers.
        probes: number K of learned probe inputs read at every neuron (0: weights alone).
        inputs: number of inputs of the networks; needed for probes, and an upper bound is ``max_io`` otherwise.
        reverse_edges: pass messages both ways, edge features ``[w, 0, w]`` and ``[0, w, w]``.
        fourier: number of random frequencies per feature; 0 embeds linearly.
        sigma: standard deviation of the frequencies.
        dropout: on nodes between layers; the paper has 0.2, which slows short training.
        kernel: largest kernel ``(kh, kw)`` of any convolution (or flattened map) in the zoo.
        max_io: number of learned embeddings of single input and output neurons.
        seed: of the frequencies, which are buffers and saved with the model.

    Differs from the authors' code where that is not well defined: layer norm is over the features of each node, so that a
    network's output does not depend on its batch mates. Grouped blocks and residuals are read too, a residual as a weight
    of 1. A network with more than ``max_io`` inputs or outputs, a kernel larger than ``kernel``, more than a bias per
    neuron, attention, or (with probes) another number of inputs raises ``UserError``.
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 4,
        probes: int = 0,
        inputs: int = 2,
        reverse_edges: bool = True,
        fourier: int = 128,
        sigma: float = 3.0,
        dropout: float = 0.0,
        kernel: Sequence[int] = (1, 1),
        max_io: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1 or probes < 0 or fourier < 0 or max_io < 1:
            raise UserError("ng-gnn: width, layers and max_io must be positive, probes and fourier not negative")
        self.width, self.reverse_edges, self.dropout = width, reverse_edges, dropout
        self.kernel = (int(kernel[0]), int(kernel[1]))
        features = math.prod(self.kernel) * (3 if reverse_edges else 1)
        generator = torch.Generator().manual_seed(seed)
        self.edge_embedding = RawEmbedding(features, width, fourier, sigma, generator)
        self.node_embedding = RawEmbedding(1, width, fourier, sigma, generator)
        self.edge_in = nn.Linear(width, width)
        self.node_in = nn.Linear(width, width)
        self.position = PositionEmbedding(width, max_io)
        self.probes = ProbeFeatures(probes, inputs, width) if probes else None
        self.layers = nn.ModuleList(NGGNNLayer(width, edge_mlp=i < layers - 1) for i in range(layers))
        self.average_log_degree: Tensor
        self.register_buffer("average_log_degree", torch.tensor(math.log(33.0)))

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        networks: Counter[GraphSpec] = Counter()

        def counted() -> Iterator[NeuralGraph]:
            for graph in graphs:
                networks[graph.spec] += graph.batch_size
                yield graph

        super().fit_normalization(counted())
        logs, nodes = 0.0, 0
        for spec, count in networks.items():
            for node_set, degree in zip(spec.node_sets, self._degrees(spec), strict=True):
                logs += count * node_set.size * math.log1p(degree)
                nodes += count * node_set.size
        self.average_log_degree.fill_(logs / nodes)

    def check_readable(self, graph: NeuralGraph) -> None:
        spec = graph.spec
        if max(spec.num_inputs, spec.num_outputs) > self.position.max_io:
            raise UserError(
                f"this model reads networks of up to {self.position.max_io} inputs and outputs, this one has "
                f"{spec.num_inputs} and {spec.num_outputs}"
            )
        if self.probes is not None and spec.num_inputs != self.probes.points.shape[1]:
            raise UserError(
                f"this model probes networks of {self.probes.points.shape[1]} inputs, this one has {spec.num_inputs}"
            )
        if self.probes is not None and graph.stack is None and graph.trace is None:
            raise UserError("this model probes networks, and this graph holds no executable architecture")
        for nodes in spec.node_sets:
            if nodes.columns > 1:
                raise UserError(
                    f"this model reads one value per neuron, its bias: {nodes.name} has {nodes.columns} "
                    f"({', '.join(nodes.parameters)})"
                )
        for block in spec.blocks:
            if block.features:
                kernel_of(block.features, block.kernel, self.kernel)
            elif block.kind != "identity":
                raise UserError(f"this model reads weights and residuals, but no {block.kind} without parameters")

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        """``reads`` says what of the result is used; the rest is not computed and returned as None."""
        batch = GraphBatch.of(batch)
        encoded = [self._encode(graph, reads) for graph in batch.buckets]
        return Encoding(batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded))

    # -- one architecture ---------------------------------------------------------------------------------------------

    def _encode(self, graph: NeuralGraph, reads: Reads) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        self.check_readable(graph)
        todo = plan(graph.spec, len(self.layers), self.reverse_edges, reads)
        nodes = self._embed_nodes(graph)
        edges = self._embed_edges(graph, todo)
        compose: nn.Linear | None = None  # the linear map between the stored edge values and the edge embedding
        for depth, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, NGGNNLayer)
            nodes = self._message_pass(layer, graph.spec, todo, todo.nodes[depth], nodes, edges, compose)
            if layer.edge_mlp is not None and layer.norm is not None:
                nodes = self._activate(layer.norm, nodes)
                edges = self._update_edges(layer.edge_mlp, graph.spec, todo, todo.edges[depth], nodes, edges, compose)
                compose = layer.edge_mlp.out
        found = tuple(nodes.get(s) for s in range(len(graph.spec.node_sets)))
        if reads != "edges":
            return found, (None,) * len(todo.directions)
        wide = [edges[d].to(graph.dtype) for d in range(len(todo.directions))]
        final = tuple(wide if compose is None else map(compose, wide))
        return found, final

    def _activate(self, norm: nn.LayerNorm, nodes: Nodes) -> Nodes:
        return nodewise(lambda x: F.dropout(F.silu(norm(x)), self.dropout, self.training), nodes)

    def _embed_nodes(self, graph: NeuralGraph) -> Nodes:
        biases = dict(enumerate(self.normalization.biases(graph)))
        nodes = nodewise(self.node_embedding, biases)
        if self.probes is not None:
            for s, features in enumerate(self.probes(graph)):
                nodes[s] = nodes[s] + features
        nodes = nodewise(self.node_in, nodes)
        return {s: x + self.position(graph.spec, s) for s, x in nodes.items()}

    def _embed_edges(self, graph: NeuralGraph, todo: Plan) -> dict[int, Tensor]:
        # A residual is a weight of 1, at the centre of the kernel.
        blocks = [
            pad_kernel(edges, block.features, block.kernel, self.kernel)
            if block.features
            else pad_kernel(edges.new_ones(*edges.shape[:-1], 1), 1, (), self.kernel)
            for block, edges in zip(graph.spec.blocks, self.normalization.weights(graph), strict=True)
        ]
        roles: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 2), (1, 2)) if self.reverse_edges else ((0,), (0,))
        return {
            d: self.edge_embedding(
                blocks[todo.directions[d].block], roles[todo.directions[d].reverse], self.edge_in, self.edge_dtype
            )
            for d in todo.edges[0]
        }

    def _message_pass(
        self,
        layer: NGGNNLayer,
        spec: GraphSpec,
        todo: Plan,
        live: frozenset[int],
        nodes: Nodes,
        edges: dict[int, Tensor],
        compose: nn.Linear | None,
    ) -> Nodes:
        weight, bias = composed(layer.modulation, compose)
        left, right = layer.message.weight.chunk(2, 1)
        receivers = nodewise(lambda x: F.linear(x, left, layer.message.bias), {s: nodes[s] for s in live})
        into = [(d, way) for d, way in enumerate(todo.directions) if way.receiver in live]
        senders = nodewise(lambda x: F.linear(x, right), {way.sender: nodes[way.sender] for _, way in into})
        found: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {s: [] for s in live}
        for d, way in into:
            ends = (receivers[way.receiver], senders[way.sender])
            groups = spec.blocks[way.block].groups
            found[way.receiver].append(modulated_statistics(edges[d], weight, bias, *ends, way.reverse, groups))
        degrees = self._degrees(spec)
        aggregated = {}
        for s in live:
            a = aggregate(found[s], degrees[s], nodes[s])
            amplification = math.log1p(degrees[s]) / self.average_log_degree
            aggregated[s] = torch.cat([nodes[s], a, a * amplification], -1)
        # W_2 W_1 without a non-linearity between them is one map.
        weight, bias = composed(layer.mix, layer.combine)
        return nodewise(lambda x: F.linear(x, weight, bias), aggregated)

    def _update_edges(
        self,
        mlp: EdgeMLP,
        spec: GraphSpec,
        todo: Plan,
        live: frozenset[int],
        nodes: Nodes,
        edges: dict[int, Tensor],
        compose: nn.Linear | None,
    ) -> dict[int, Tensor]:
        weight, bias = composed(mlp.edge, compose)
        senders = nodewise(mlp.sender, {todo.directions[d].sender: nodes[todo.directions[d].sender] for d in live})
        receivers = nodewise(
            lambda x: mlp.receiver(x) + bias,
            {todo.directions[d].receiver: nodes[todo.directions[d].receiver] for d in live},
        )
        out = {}
        for d in live:
            way = todo.directions[d]
            ends = (receivers[way.receiver], senders[way.sender])
            out_side, in_side = reversed(ends) if way.reverse else ends
            out[d] = edge_update(edges[d], weight, out_side, in_side, spec.blocks[way.block].groups)
        return out

    def _degrees(self, spec: GraphSpec) -> list[int]:
        degrees = [0] * len(spec.node_sets)
        for block in spec.blocks:
            degrees[block.target] += spec.node_sets[block.source].size // block.groups
            if self.reverse_edges:
                degrees[block.source] += spec.node_sets[block.target].size // block.groups
        return degrees


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

    Inputs and outputs have learned rows. A hidden layer's embedding is a learned linear map of sines and cosines of its
    distance from the input and from the output, so that networks deeper than any in the training zoo have one too.
    """

    def __init__(self, width: int, max_io: int, waves: int = 8) -> None:
        super().__init__()
        self.max_io, self.waves = max_io, waves
        self.inputs = nn.Parameter(torch.randn(max_io, width))
        self.outputs = nn.Parameter(torch.randn(max_io, width))
        self.depth = nn.Linear(4 * waves, width, bias=False)
        nn.init.normal_(self.depth.weight, std=(2 * waves) ** -0.5)

    def forward(self, spec: GraphSpec, node_set: int) -> Tensor:
        """``[n, F]`` for inputs and outputs, ``[1, F]`` for a hidden layer."""
        nodes = spec.node_sets[node_set]
        if nodes.role == "input":
            return self.inputs[: nodes.size]
        if nodes.role == "output":
            return self.outputs[: nodes.size]
        weight = self.depth.weight
        distance = torch.tensor([nodes.depth, spec.depth - nodes.depth], dtype=weight.dtype, device=weight.device)
        rates = 2.0 ** -torch.arange(self.waves, dtype=weight.dtype, device=weight.device)
        angle = (distance[:, None] * rates).flatten() * (math.pi / 2)
        return self.depth(torch.cat([angle.cos(), angle.sin()])).unsqueeze(0)


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


def aggregate(found: list[tuple[Tensor, Tensor, Tensor, Tensor]], degree: int, like: Tensor) -> Tensor:
    """``[mean, min, max, std]`` ``[B, n, 4F]`` from the statistics of all blocks that end in one node set.

    Without neighbours the first three are 0, as in PyTorch Geometric.
    """
    if not found:
        zero = torch.zeros_like(like)
        return torch.cat([zero, zero, zero, zero + math.sqrt(STD_EPSILON)], -1)
    total, square, low, high = found[0]
    for other in found[1:]:
        total, square = total + other[0], square + other[1]
        low, high = torch.minimum(low, other[2]), torch.maximum(high, other[3])
    mean = total / degree
    std = torch.sqrt(torch.relu(square / degree - mean * mean) + STD_EPSILON)
    return torch.cat([mean, low, high, std], -1)


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
