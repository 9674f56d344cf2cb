"""NG-T: a relational transformer with modulated values, on all pairs of neurons or along the blocks of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._edges import _apart, _joined
from neural_graphs.nn._embedding import GraphEmbedding, Nodes, nodewise
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._plan import Plan, attention_plan
from neural_graphs.nn._registry import register_encoder
from neural_graphs.nn._slots import BIAS_ONLY
from neural_graphs.nn._transformer import EdgeMLP, NGTLayer

Attention = Literal["blocks", "all"]
Found = tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]


@register_encoder("ng-t")
class NGT(Encoder):
    """The relational transformer of Kofinas et al. (ICLR 2024) with modulated values, on dense blocks.

    Args:
        width: of node embeddings.
        edge_width: of edge embeddings.
        attention_width: of queries, keys and values, all heads together; a multiple of ``heads``.
        hidden: of the nodes' MLP.
        edge_hidden: of both hidden layers of the edges' MLP.
        layers: attention layers; all but the last are followed by an update of the edges.
        heads: of attention.
        attention: "blocks": a neuron attends to itself, to those it reads and to those that read it. "all": to every
            neuron of its network, as in the paper.
        probes, inputs, probe_generator, probe_reads, probe_shape: as those of ``NGGNN``.
        reverse_edges: edge features ``[w, 0, w]``, seen from a weight's input neuron, and ``[0, w, w]``, seen from its
            output neuron. Without (the paper's INR classifiers): ``[w]`` and, as for pairs without a weight, ``[0]``.
        fourier, sigma, kernel, max_io, seed: as those of ``NGGNN``.
        dropout: on all that is added to nodes and edges; the paper has 0.2.
        node_features, block_kinds, activations: as those of ``NGGNN``.

    As in the authors' code a neuron attends to others with its *outgoing* edges; of its incoming ones it learns through the
    edge update, or at once with ``reverse_edges``. One architecture at a time is dense, so that nothing is padded and a
    network's output does not depend on its batch mates. Parallel edges between two neurons attend one by one with "blocks"
    and are added up with "all". What cannot be read raises ``UserError`` as for ``NGGNN``.

    ``edges`` of the encoding are those after the last edge update, ``layers - 1`` of them.
    """

    def __init__(
        self,
        width: int = 64,
        edge_width: int = 32,
        attention_width: int = 128,
        hidden: int = 128,
        edge_hidden: int = 64,
        layers: int = 4,
        heads: int = 8,
        attention: Attention = "blocks",
        probes: int = 0,
        inputs: int = 2,
        reverse_edges: bool = True,
        fourier: int = 128,
        sigma: float = 1.0,
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
        if min(width, edge_width, attention_width, hidden, edge_hidden, layers, heads, max_io) < 1:
            raise UserError("ng-t: widths, layers, heads and max_io must be positive")
        if probes < 0 or fourier < 0:
            raise UserError("ng-t: probes and fourier must not be negative")
        if attention not in ("blocks", "all"):
            raise UserError(f"ng-t: attention must be 'blocks' or 'all', not {attention!r}")
        if attention_width % heads:
            raise UserError(f"ng-t: attention_width {attention_width} is no multiple of its {heads} heads")
        self.width, self._edge_width = width, edge_width
        self.attention, self.reverse_edges, self.dropout = attention, reverse_edges, dropout
        self.embedding = GraphEmbedding(
            width,
            edge_width,
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
        self.layers = nn.ModuleList(
            NGTLayer(width, edge_width, attention_width, hidden, heads, dropout) for _ in range(layers)
        )
        self.edge_mlps = nn.ModuleList(EdgeMLP(width, edge_width, edge_hidden, dropout) for _ in range(layers - 1))
        for module in (*self.layers.modules(), *self.edge_mlps.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def edge_width(self) -> int:
        return self._edge_width

    def check_readable(self, graph: NeuralGraph) -> None:
        self.embedding.check_readable(graph)

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        """``reads`` says what of the result is used; the rest is not computed and returned as None."""
        batch = GraphBatch.of(batch)
        encode = self._encode_blocks if self.attention == "blocks" else self._encode_all
        encoded = []
        for graph in batch.buckets:
            self.check_readable(graph)
            encoded.append(encode(graph, reads))
        return Encoding(batch, tuple(nodes for nodes, _ in encoded), tuple(edges for _, edges in encoded))

    # -- attention along blocks ---------------------------------------------------------------------------------------

    def _encode_blocks(self, graph: NeuralGraph, reads: Reads) -> Found:
        spec = graph.spec
        todo = attention_plan(spec, len(self.layers), reads)
        nodes = self.embedding.nodes(graph, self.normalization)
        edges = self._block_edges(graph, todo)
        zero = self._edge_of_zero(graph)
        own = {s: zero.expand(*nodes[s].shape[:2], -1) for s in todo.nodes[1]}
        for depth, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, NGTLayer)
            nodes = self._attend(layer, todo, todo.nodes[depth], nodes, edges, own)
            if depth < len(self.layers):
                mlp = self.edge_mlps[depth - 1]
                assert isinstance(mlp, EdgeMLP)
                edges, own = self._update_edges(mlp, todo, depth, nodes, edges, own)
        found = tuple(nodes.get(s) for s in range(len(spec.node_sets)))
        if reads != "edges":
            return found, (None,) * len(todo.directions)
        final = []
        for d, way in enumerate(todo.directions):
            e = edges[d].to(graph.dtype)
            groups = spec.blocks[way.block].groups
            final.append(_joined(e if way.reverse else e.transpose(1, 2), groups))
        return found, tuple(final)

    def _block_edges(self, graph: NeuralGraph, todo: Plan) -> dict[int, Tensor]:
        """``[B * groups, r, s, d]`` for the directions in use, receivers first; groups are blocks of their own."""
        ways, wanted = todo.directions, todo.edges[0]
        seen = {d for d in wanted if self.reverse_edges or not ways[d].reverse}
        edges = self.embedding.edges(graph, self.normalization, ways, seen, self.edge_dtype)
        edges = {d: _apart(e, graph.spec.blocks[ways[d].block].groups) for d, e in edges.items()}
        edges = {d: e if ways[d].reverse else e.transpose(1, 2).contiguous() for d, e in edges.items()}
        zero = self._edge_of_zero(graph)
        for d in wanted - seen:
            block = graph.spec.blocks[ways[d].block]
            rows, columns, _ = graph.spec.edge_shape(ways[d].block)
            edges[d] = zero.expand(graph.batch_size * block.groups, rows // block.groups, columns, -1)
        return edges

    def _edge_of_zero(self, graph: NeuralGraph) -> Tensor:
        """``[d]``, the embedding of a pair without a weight."""
        embedding = self.embedding
        nothing = graph.edges[0].new_zeros(1, embedding.edge_embedding.features)
        return embedding.edge_embedding(nothing, (0,), embedding.edge_in, self.edge_dtype)[0]

    def _attend(
        self, layer: NGTLayer, todo: Plan, live: frozenset[int], nodes: Nodes, edges: dict[int, Tensor], own: Nodes
    ) -> Nodes:
        projected = {s: x.chunk(3, -1) for s, x in nodewise(layer.project, nodes).items()}
        queries, keys, values = ({s: parts[k] for s, parts in projected.items()} for k in range(3))
        gathered = []
        for s in live:
            into = [(d, way.sender) for d, way in enumerate(todo.directions) if way.receiver == s]
            seen = [(edges[d], keys[sender], values[sender]) for d, sender in into]
            gathered.append(layer.attend(queries[s], seen, (own[s], keys[s], values[s])))
        sizes = [nodes[s].shape[1] for s in live]
        found = layer.update(torch.cat([nodes[s] for s in live], 1), torch.cat(gathered, 1))
        return dict(zip(live, found.split(sizes, 1), strict=True))

    def _update_edges(
        self, mlp: EdgeMLP, todo: Plan, depth: int, nodes: Nodes, edges: dict[int, Tensor], own: Nodes
    ) -> tuple[dict[int, Tensor], Nodes]:
        receivers, senders = nodewise(mlp.receiver, nodes), nodewise(mlp.sender, nodes)
        count = len(todo.directions) // 2
        out = {}
        for d in todo.edges[depth]:
            way = todo.directions[d]
            out[d] = mlp(edges[d], edges[(d + count) % (2 * count)], receivers[way.receiver], senders[way.sender])
        sizes = {s: own[s].shape[1] for s in todo.nodes[depth + 1]}
        e, p, q = (torch.cat([x[s] for s in sizes], 1) for x in (own, receivers, senders))
        loops = e.flatten(0, 1)[:, None, None]  # a pair of a node and itself is a block of its own
        loops = mlp(loops, loops, p, q).view_as(e)
        return out, dict(zip(sizes, loops.split(list(sizes.values()), 1), strict=True))

    # -- attention to all ---------------------------------------------------------------------------------------------

    def _encode_all(self, graph: NeuralGraph, reads: Reads) -> Found:
        spec, last = graph.spec, len(self.layers)
        places = _places(spec)
        kept = [s for s, nodes in enumerate(spec.node_sets) if reads != "outputs" or nodes.role == "output"]

        def read(t: Tensor, axis: int = 1) -> Tensor:
            if len(kept) == len(places):
                return t
            return torch.cat([t.narrow(axis, places[s].start, spec.node_sets[s].size) for s in kept], axis)

        embedded = self.embedding.nodes(graph, self.normalization)
        x, z = torch.cat([embedded[s] for s in range(len(places))], 1), self._dense_edges(graph, places)
        for depth, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, NGTLayer)
            query, key, value = layer.project(x).chunk(3, -1)
            if depth == last:
                x, query, z = read(x), read(query), z if z.shape[1] < z.shape[2] else read(z)
            x = layer.update(x, layer.attend(query, [(z, key, value)]))
            if depth < last:
                mlp = self.edge_mlps[depth - 1]
                assert isinstance(mlp, EdgeMLP)
                receiver, sender, back = mlp.receiver(x), mlp.sender(x), z
                if depth == last - 1:
                    receiver, z, back = read(receiver), read(z), read(z, 2)
                z = mlp(z, back, receiver, sender)
        found = dict(zip(kept, x.split([spec.node_sets[s].size for s in kept], 1), strict=True))
        nodes = tuple(found.get(s) for s in range(len(places)))
        count = 2 * len(spec.blocks)
        return nodes, _cut(z.to(x.dtype), spec, places) if reads == "edges" else (None,) * count

    def _dense_edges(self, graph: NeuralGraph, places: list[slice]) -> Tensor:
        """``[B, N, N, d]``; all pairs without a weight share the embedding of 0."""
        spec, embedding = graph.spec, self.embedding
        size = (graph.batch_size, spec.num_nodes, spec.num_nodes)
        out: dict[tuple[int, int], Tensor] = {}  # weights from the first node set of a pair to the second
        for block, weights in zip(spec.blocks, embedding.raw_edges(graph, self.normalization), strict=True):
            pair = block.source, block.target
            dense = _dense(weights, block.groups).transpose(1, 2)
            out[pair] = out[pair] + dense if pair in out else dense
        into = {(b, a): w.transpose(1, 2) for (a, b), w in out.items()}
        kinds: dict[tuple[int, int], Tensor] = {}  # what is added to the embeddings of a pair, [n_source, n_target, d]
        for block, edges in zip(spec.blocks, graph.edges, strict=True):
            kind = embedding.kind_of(block)
            if kind is not None:
                there = _dense(edges.new_ones(1, *edges.shape[1:3], 1), block.groups)[0].transpose(0, 1)
                for pair in ((block.source, block.target), (block.target, block.source))[: 1 + self.reverse_edges]:
                    added = kind * (there if pair[0] == block.source else there.transpose(0, 1))
                    kinds[pair] = kinds[pair] + added if pair in kinds else added
        z = self._edge_of_zero(graph).expand(*size, -1).clone()
        for (a, b), like in {**out, **(into if self.reverse_edges else {})}.items():
            w = out.get((a, b), torch.zeros_like(like))
            if self.reverse_edges:
                v = into.get((a, b), torch.zeros_like(like))
                w = torch.cat([w, v, w + v], -1)
            e = embedding.edge_embedding(w, (0,), embedding.edge_in, self.edge_dtype)
            z[:, places[a], places[b]] = e + kinds[a, b].to(e.dtype) if (a, b) in kinds else e
        return z


def _places(spec: GraphSpec) -> list[slice]:
    """Where each node set stands among all nodes."""
    found, start = [], 0
    for nodes in spec.node_sets:
        found.append(slice(start, start + nodes.size))
        start += nodes.size
    return found


def _dense(edges: Tensor, groups: int) -> Tensor:
    """``[B, n_out, n_in / groups, f]`` -> ``[B, n_out, n_in, f]`` with zeros between groups."""
    if groups == 1:
        return edges
    batch, rows, columns, features = edges.shape
    dense = edges.new_zeros(batch, groups, rows // groups, groups, columns, features)
    dense.diagonal(dim1=1, dim2=3).copy_(edges.unflatten(1, (groups, -1)).permute(0, 2, 3, 4, 1))
    return dense.reshape(batch, rows, groups * columns, features)


def _cut(z: Tensor, spec: GraphSpec, places: list[slice]) -> tuple[Tensor, ...]:
    """The blocks' edges ``[B, n_out, n_in / groups, d]``, there and then back, from all pairs ``[B, N, N, d]``."""
    found = []
    for reverse in (False, True):
        for block in spec.blocks:
            source, target = places[block.source], places[block.target]
            pairs = z[:, target, source] if reverse else z[:, source, target].transpose(1, 2)
            if block.groups > 1:
                apart = pairs.unflatten(2, (block.groups, -1)).unflatten(1, (block.groups, -1))
                pairs = apart.diagonal(dim1=1, dim2=3).permute(0, 4, 1, 2, 3).flatten(1, 2)
            found.append(pairs)
    return tuple(found)
