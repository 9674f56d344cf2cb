"""ScaleGMN: message passing that is equivariant to the scale, sign and phase of every single neuron."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._embedding import (
    ActivationEmbedding,
    DepthEmbedding,
    KindEmbedding,
    PositionEmbedding,
    pad_kernel,
)
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._gauge import Gauge, fix_gauge, units
from neural_graphs.nn._normalization import Normalization
from neural_graphs.nn._probes import ProbeReads, check_probed, probe_source
from neural_graphs.nn._registry import register_encoder
from neural_graphs.nn._signed import EdgeGate, Layout, SignedLayer, bounded
from neural_graphs.nn._slots import BIAS_ONLY, Reading, slots_of


@register_encoder("scale-gmn")
class ScaleGMN(Encoder):
    """Scale-equivariant graph metanetwork (Kalogeropoulos et al., NeurIPS 2024), on dense blocks.

    The embedding of a hidden neuron is multiplied by the neuron's own factor when the network is rescaled: by any positive
    number for ReLU-like units, by ±1 for tanh and sine, also in mixtures of both (identity units have both); other units
    have none. Embeddings of inputs and outputs do not change. Which factors a neuron has is read off the network's claimed
    symmetries (see ``units``); neurons of grouped convolutions, and those that a residual ties to others, are treated as
    having none.

    Positive scales and phases are divided out exactly before the first layer and multiplied back after the last (see
    ``fix_gauge``), where the paper takes norms out in every layer; what is left are signs, and networks of any scale meet
    the layers in the same range. So backward messages need no reciprocals of weights, which the paper needs for scales: in
    the gauge a weight itself does not change. Signs are kept by gates, as in the paper: ``y = Gamma x * MLP(|Gamma x|)``.
    Per layer, for an edge from j to i, with ``c(x) = |x|`` for units with a sign and ``x`` for the others::

        e_ij <- W e_ij * MLP([c(x_i), c(x_j), c(e_ij)])
        m_i  =  sum over j and over channels h of e_ij of  A_h * e_ijh * V x_j,   over sqrt(number of sources)
        x_i  <- x_i + Gamma [x_i, m_i] * MLP(|Gamma [x_i, m_i]|)     units with a sign
        x_i  <- x_i + MLP([x_i, m_i])                                others, inputs and outputs

    Output neurons finally read the mean of ``MLP(c(x))`` over all hidden neurons as well.

    Args:
        width: F, size of node embeddings.
        layers: message-passing layers.
        bidirectional: messages also from targets to sources, through maps of their own.
        edge_width: size of edge embeddings; the time of a step grows with it, that of nodes with ``width``.
        probes: number K of learned probe inputs (0: weights alone). A neuron's responses multiply like its embedding.
        inputs: number of inputs of the networks; needed for probes.
        probe_shape: ``(c, h, w)``: probes are images; ``()``: vectors of ``inputs`` numbers.
        dropout: inside the MLPs of nodes.
        kernel: largest kernel ``(kh, kw)`` of any convolution (or flattened map) in the zoo.
        max_io: number of learned embeddings of single input and output neurons.
        probe_generator: "points" (free), or "deep-linear" (ProbeGen): see ``ProbeFeatures``.
        probe_reads: "neurons", or "outputs": only output neurons get their responses.
        node_features, block_kinds, activations: as those of ``NGGNN``. Nothing is lost by them: a unit with a scale or sign
            has it in all its values (see ``units``), and kinds and activations stand where layers do, as something that no
            symmetry changes. Neurons in front of normalisation, and those of attention, have no factor here: their
            rescalings are of other forms.

    Phases are exact too, by folding biases of sines into half a turn: a bias that moves across its end makes embeddings
    jump, since there the sign of the neuron changes. Networks that this model cannot read raise ``UserError``, as those of
    ``NGGNN`` do.
    """

    rescaled = True

    def __init__(
        self,
        width: int = 64,
        layers: int = 4,
        bidirectional: bool = False,
        edge_width: int = 16,
        probes: int = 0,
        inputs: int = 2,
        dropout: float = 0.0,
        kernel: Sequence[int] = (1, 1),
        max_io: int = 16,
        probe_generator: str = "points",
        probe_reads: str = "neurons",
        node_features: Sequence[str] = BIAS_ONLY,
        block_kinds: Sequence[str] = (),
        activations: Sequence[str] = (),
        probe_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.reading = Reading.of(node_features, block_kinds, activations)
        if min(layers, width, edge_width, max_io) < 1 or probes < 0:
            raise UserError("scale-gmn: width, layers, edge_width and max_io must be positive, probes not negative")
        self.width, self._edge_width, self.bidirectional = width, edge_width, bidirectional
        self.both_directions = bidirectional
        self.kernel = (int(kernel[0]), int(kernel[1]))
        self.bias = nn.Linear(1, width, bias=False)
        self.weight = nn.Linear(math.prod(self.kernel), edge_width, bias=False)
        nn.init.normal_(self.bias.weight)
        nn.init.normal_(self.weight.weight, std=math.prod(self.kernel) ** -0.5)
        self.position = PositionEmbedding(width, max_io)
        self.depth = DepthEmbedding(edge_width)
        self.inputs, self.probe_shape = inputs, tuple(probe_shape)
        self.probes = probe_source(probe_generator, probes, inputs, shape=probe_shape) if probes else None
        if probe_reads not in get_args(ProbeReads):
            raise UserError(f"probes cannot read {probe_reads!r}: choose one of {', '.join(get_args(ProbeReads))}")
        roles = ("input", "hidden", "output") if probe_reads == "neurons" else ("output",)
        self.responses = nn.ModuleDict({role: nn.Linear(probes, width, bias=False) for role in roles} if probes else {})
        self.layers = nn.ModuleList(SignedLayer(width, edge_width, bidirectional, dropout) for _ in range(layers))
        self.gates = nn.ModuleList(EdgeGate(width, edge_width) for _ in range(layers))
        self.summary = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)
        )
        self.readout = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)
        more = len(self.reading.node_features) - 1
        self.more_features = nn.Linear(more, width, bias=False) if more else None
        if self.more_features is not None:
            nn.init.normal_(self.more_features.weight)
        self.kind = KindEmbedding(self.reading.block_kinds, edge_width) if block_kinds else None
        self.activation = ActivationEmbedding(self.reading.activations, width) if activations else None

    @property
    def edge_width(self) -> int:
        return self._edge_width

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        self.normalization = Normalization.fit(fix_gauge(graph).graph for graph in graphs).uncentred()

    def check_readable(self, graph: NeuralGraph) -> None:
        self.reading.check(graph.spec, self.kernel, self.position.max_io)
        if self.probes is not None:
            check_probed(graph, self.inputs, self.probe_shape)

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        """``reads`` says what of the result is used; the rest is returned as None."""
        batch = GraphBatch.of(batch)
        encoded = [self._encode(graph, reads) for graph in batch.buckets]
        return Encoding(
            batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded), rescaled=True
        )

    # -- one architecture ---------------------------------------------------------------------------------------------

    def _encode(self, graph: NeuralGraph, reads: Reads) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        self.check_readable(graph)
        gauge, spec = fix_gauge(graph), graph.spec
        layout = Layout.of(spec, tuple(unit.sign for unit in units(spec)))
        position = layout.join({s: self._place(spec, s).expand(n.size, -1) for s, n in enumerate(spec.node_sets)})
        x = self._nodes(graph, gauge, layout, position)
        edges = self._edges(gauge)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            assert isinstance(layer, SignedLayer) and isinstance(gate, EdgeGate)
            normed = bounded(x)
            edges = gate(edges, layout.canonical(normed), layout, spec)
            x = layer(x, normed, edges, position, layout, spec)
        nodes = layout.split(self._read_out(x, position, layout, spec))
        roles = [node_set.role for node_set in spec.node_sets]
        found = tuple(
            gauge.nodes(s, nodes[s]) if reads != "outputs" or roles[s] == "output" else None for s in range(len(roles))
        )
        if reads != "edges":
            return found, (None,) * (len(spec.blocks) * (2 if self.bidirectional else 1))
        ways = (False, True) if self.bidirectional else (False,)
        return found, tuple(
            gauge.edges(block, e, reverse) for reverse in ways for block, e in zip(spec.blocks, edges, strict=True)
        )

    def _place(self, spec: GraphSpec, s: int) -> Tensor:
        """``[n or 1, F]``: what tells a node set, or its neurons, from others and no symmetry changes."""
        nodes, position = spec.node_sets[s], self.position(spec, s)
        if self.activation is None or nodes.role != "hidden":
            return position
        return position + self.activation(nodes.activation.kind)

    def _features(self, gauge: Gauge, layout: Layout) -> Tensor:
        """``[B, N, slots]``, 0 for what a neuron lacks."""
        found, names = {}, self.reading.node_features
        for s, (nodes, x) in enumerate(
            zip(gauge.graph.spec.node_sets, self.normalization.biases(gauge.graph), strict=True)
        ):
            slots = slots_of(nodes)
            if slots not in ((), names):
                zero = torch.zeros_like(x[..., :1])
                x = torch.cat([x[..., (k := slots.index(n)) : k + 1] if n in slots else zero for n in names], -1)
            found[s] = x if x.shape[-1] == len(names) else x.new_zeros(*x.shape[:2], len(names))
        return layout.join(found)

    def _nodes(self, graph: NeuralGraph, gauge: Gauge, layout: Layout, position: Tensor) -> Tensor:
        """``[B, N, F]``: node features and responses, times the layer's embedding for units with a sign, else plus it."""
        features = self._features(gauge, layout)
        x = self.bias(features[..., :1])
        if self.more_features is not None:
            x = x + self.more_features(features[..., 1:])
        if self.probes is not None:
            points = self.probes.points.to(x.dtype)
            found = {}
            for s, (nodes, z) in enumerate(zip(graph.spec.node_sets, graph.responses(points), strict=True)):
                if z is None or nodes.role not in self.responses:
                    found[s] = x.new_zeros(len(x), nodes.size, self.width)
                else:
                    found[s] = bounded(self.responses[nodes.role](gauge.values(s, z.transpose(1, 2))))
            x = x + layout.join(found)
        odd, even = x[:, : layout.odd], x[:, layout.odd :]
        return torch.cat([odd * (1 + position[: layout.odd]), even + position[layout.odd :]], 1)

    def _edges(self, gauge: Gauge) -> list[Tensor]:
        """``[B, n_out, n_in / groups, E]`` per block: weights, or 1 for none, times the embedding of layer and kind."""
        spec, found = gauge.graph.spec, []
        for block, w in zip(spec.blocks, self.normalization.weights(gauge.graph), strict=True):
            if block.features:
                w = pad_kernel(w, block.features, block.kernel, self.kernel)
            else:
                w = pad_kernel(w.new_ones(*w.shape[:-1], 1), 1, (), self.kernel)
            depth = spec.node_sets[block.target].depth
            place = 1 + self.depth(depth, spec.depth - depth)
            if self.kind is not None and (kind := self.kind(block.kind)) is not None:
                place = place + kind
            map_ = self.weight.weight * place.unsqueeze(-1)
            found.append(F.linear(w, map_))
        return found

    def _read_out(self, x: Tensor, position: Tensor, layout: Layout, spec: GraphSpec) -> Tensor:
        """Outputs see all hidden neurons."""
        hidden = [s for s, nodes in enumerate(spec.node_sets) if nodes.role == "hidden"]
        outputs = [s for s, nodes in enumerate(spec.node_sets) if nodes.role == "output"]
        places = layout.places(outputs).to(x.device).to(x.device)
        own = x[:, places]
        if hidden:
            chosen = layout.places(hidden).to(x.device).to(x.device)
            seen = layout.canonical(bounded(x))[:, chosen]
            seen = torch.cat([seen, position[chosen].expand_as(seen)], -1)
            seen = self.summary(seen).mean(1, keepdim=True)
        else:
            seen = torch.zeros_like(own[:, :1])
        own = self.norm(own + self.readout(torch.cat([bounded(own), seen.expand_as(own)], -1)))
        return x.index_copy(1, places, own)
