"""NG-GNN: principal neighbourhood aggregation with FiLM-modulated messages on dense blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._edges import aggregate, edge_update, modulated_statistics
from neural_graphs.nn._embedding import GraphEmbedding, Nodes, composed, nodewise
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._ng_gnn_layer import EdgeMLP, NGGNNLayer
from neural_graphs.nn._plan import Plan, degrees_of, plan
from neural_graphs.nn._registry import register_encoder
from neural_graphs.nn._slots import BIAS_ONLY
from neural_graphs.nn._stacked import encode_stacked


@register_encoder("ng-gnn")
class NGGNN(Encoder):
    """The graph network of Kofinas et al. (ICLR 2024), on dense blocks.

    Args:
        width: F, size of node and edge embeddings.
        layers: message-passing layers.
        probes: number K of learned probe inputs (0: weights alone).
        inputs: number of inputs of the networks; needed for probes, and an upper bound is ``max_io`` otherwise.
        probe_shape: ``(c, h, w)`` makes probes images, for networks that read such; ``()``: vectors of ``inputs`` numbers.
        probe_generator: "points" (free), or "deep-linear" (ProbeGen): see ``ProbeFeatures``.
        probe_reads: "neurons", or "outputs": only output neurons get their responses.
        reverse_edges: pass messages both ways, edge features ``[w, 0, w]`` and ``[0, w, w]``.
        fourier: number of random frequencies per feature; 0 embeds linearly.
        sigma: standard deviation of the frequencies.
        dropout: on nodes between layers; the paper has 0.2, which slows short training.
        kernel: largest kernel ``(kh, kw)`` of any convolution (or flattened map) in the zoo.
        max_io: number of learned embeddings of single input and output neurons.
        seed: of the frequencies, which are buffers and saved with the model.
        node_features: the kinds of values per neuron that are read, ``["bias", "scale", "shift", "running_mean",
            "running_var", "token"]`` for example; of several of one kind the second is ``"bias#2"``. What a neuron lacks
            is read as the zoo's mean.
        block_kinds: kinds of blocks that have a learned embedding added to their edges (``"identity"``, ``"query"``,
            ``"key"``, ``"value"``, ``"position"``, ``"attention"``, ...; see ``neural_graphs.graph.Block``).
        activations: names of non-linearities, each with a learned embedding that is added to the hidden neurons which have
            it (the paper's for CNN Wild Park); without any they are not told apart.

    Differs from the authors' code where that is not well defined: layer norm is over the features of each node, so that a
    network's output does not depend on its batch mates. Grouped blocks and residuals are read too, a residual as a weight
    of 1, attention (in ``block_kinds``) as a weight of 0. Rows of embedding tables are told apart by their number, any
    number of them. A network with more than ``max_io`` other inputs or outputs, a kernel larger than ``kernel``, a value per
    neuron that is not among ``node_features``, a block without parameters other than a residual that is not among
    ``block_kinds``, a hidden non-linearity that is not among ``activations`` (if any are), or (with probes) another number
    of inputs raises ``UserError``.
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
        probe_generator: str = "points",
        probe_reads: str = "neurons",
        node_features: Sequence[str] = BIAS_ONLY,
        block_kinds: Sequence[str] = (),
        activations: Sequence[str] = (),
        probe_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1 or probes < 0 or fourier < 0 or max_io < 1:
            raise UserError("ng-gnn: width, layers and max_io must be positive, probes and fourier not negative")
        self.width, self.reverse_edges, self.dropout = width, reverse_edges, dropout
        self.embedding = GraphEmbedding(
            width,
            width,
            reverse_edges=reverse_edges,
            fourier=fourier,
            sigma=sigma,
            kernel=kernel,
            max_io=max_io,
            probes=probes,
            inputs=inputs,
            seed=seed,
            probe_generator=probe_generator,
            probe_reads=probe_reads,
            node_features=node_features,
            block_kinds=block_kinds,
            activations=activations,
            probe_shape=probe_shape,
        )
        self.kernel, self.reading = self.embedding.kernel, self.embedding.reading
        self.both_directions = reverse_edges
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
            for node_set, degree in zip(spec.node_sets, degrees_of(spec, self.reverse_edges), strict=True):
                logs += count * node_set.size * math.log1p(degree)
                nodes += count * node_set.size
        self.average_log_degree.fill_(logs / nodes)

    def check_readable(self, graph: NeuralGraph) -> None:
        self.embedding.check_readable(graph)

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        """``reads`` says what of the result is used; the rest is not computed and returned as None."""
        batch = GraphBatch.of(batch)
        if len(batch.buckets) > 1 and not torch.compiler.is_compiling():
            return encode_stacked(self, batch, reads)
        encoded = [self._encode(graph, reads) for graph in batch.buckets]
        return Encoding(batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded))

    # -- one architecture ---------------------------------------------------------------------------------------------

    def _encode(self, graph: NeuralGraph, reads: Reads) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        self.check_readable(graph)
        todo = plan(graph.spec, len(self.layers), self.reverse_edges, reads)
        nodes = self.embedding.nodes(graph, self.normalization)
        edges = self.embedding.edges(graph, self.normalization, todo.directions, todo.edges[0], self.edge_dtype)
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
        degrees = degrees_of(spec, self.reverse_edges)
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
