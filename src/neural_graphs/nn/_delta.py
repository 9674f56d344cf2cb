"""A change of every parameter of a network, read off its encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphSpec, NeuralGraph
from neural_graphs.nn._canonical import canonical
from neural_graphs.nn._embedding import crop_kernel
from neural_graphs.nn._encoder import Encoding, Reads
from neural_graphs.nn._heads import given, given_nodes, invariant
from neural_graphs.nn._normalization import role_of
from neural_graphs.nn._slots import BIAS_ONLY, Reading, slots_of

ROLES = ("first", "hidden", "last")
INITIAL_SCALE = 0.01


class DeltaHead(nn.Module):
    """Edits networks: every weight and bias plus a change (Kofinas et al. 2024, INR style editing)::

        w_ij <- w_ij + s_w * MLP(e_ij)        b_i <- b_i + s_b * MLP(x_i)        MLP: Linear, ReLU, Linear

    with learned scales ``s`` for weights and for biases, one each for the first layer, all hidden ones and the last, so that
    networks of any depth can be edited. The change moves with the neurons when they are permuted. Blocks without parameters
    and neurons without bias have nothing to change, and tensors that stand in no block (``graph.rest``) stay.

    Of rescaled encodings (``rescaled``) the change multiplies like the parameter itself, so that networks which compute the
    same function are edited to networks which do: the MLP of the canonical form, which no rescaling changes, times the
    embedding, through a linear map without bias.

    Args:
        width: F of the encoder's nodes.
        edge_width: F of its edges.
        kernel: largest kernel ``(kh, kw)``, that of the encoder.
        reverse_edges: read the embeddings of both directions of every edge, side by side; the encoder must have them.
        rescaled: for encoders whose encodings are (``Encoding.rescaled``).
        node_features: the kinds of values per neuron that change, as for the encoder. Running variances are multiplied by
            ``exp(s_b * MLP(x_i))``, which keeps them positive.
    """

    reads: Reads = "edges"

    def __init__(
        self,
        width: int,
        edge_width: int,
        kernel: Sequence[int] = (1, 1),
        reverse_edges: bool = True,
        rescaled: bool = False,
        node_features: Sequence[str] = BIAS_ONLY,
    ) -> None:
        super().__init__()
        self.node_features = Reading.of(node_features).node_features
        self.kernel = (int(kernel[0]), int(kernel[1]))
        self.reverse_edges, self.rescaled = reverse_edges, rescaled
        head = GatedHead if rescaled else PlainHead
        self.edge = head(edge_width, self.kernel[0] * self.kernel[1], 2 if reverse_edges else 1)
        self.node = head(width, len(self.node_features), 1)
        self.weight_scale = nn.ParameterDict({role: torch.full((), INITIAL_SCALE) for role in ROLES})
        self.bias_scale = nn.ParameterDict({role: torch.full((), INITIAL_SCALE) for role in ROLES})

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when networks like ``graph`` cannot be edited."""
        if graph.spec.shares:
            raise UserError("this network uses a parameter in several places, so no one change of it can be read off")
        for nodes in graph.spec.node_sets:
            if missing := [slot for slot in slots_of(nodes) if slot not in self.node_features]:
                changes = (
                    "one value per neuron, its bias"
                    if self.node_features == BIAS_ONLY
                    else ", ".join(self.node_features)
                )
                raise UserError(
                    f"this head changes {changes}: {nodes.name} has {nodes.columns} ({', '.join(nodes.parameters)}), make "
                    f"the head with {', '.join(missing)} in node_features"
                )

    def forward(self, encoding: Encoding) -> tuple[NeuralGraph, ...]:
        """The edited networks of every bucket of the batch.

        Raises:
            UserError: the encoder embeds no edges, or not both directions, or rescaled otherwise than this head; a network
                shares parameters, has values per neuron other than ``node_features``, or a kernel larger than this head's.
        """
        edited = []
        for graph, change in zip(encoding.batch.buckets, self.deltas(encoding), strict=True):
            nodes = tuple(a + b for a, b in zip(graph.nodes, change.nodes, strict=True))
            edges = tuple(a + b for a, b in zip(graph.edges, change.edges, strict=True))
            edited.append(replace(graph, nodes=nodes, edges=edges))
        return tuple(edited)

    def deltas(self, encoding: Encoding) -> tuple[NeuralGraph, ...]:
        """What ``forward`` adds: per bucket a ``NeuralGraph`` whose numbers are the changes. Raises like ``forward``."""
        if encoding.nodes is not None and encoding.rescaled != self.rescaled:
            raise UserError(
                f"this encoder's embeddings are {'' if encoding.rescaled else 'not '}rescaled: make the head with "
                f"rescaled={encoding.rescaled}"
            )
        found = []
        for k, (graph, nodes) in enumerate(zip(encoding.batch.buckets, given_nodes(encoding), strict=True)):
            self.check_readable(graph)
            edges = encoding.edges[k] if encoding.edges else (None,)
            found.append(
                replace(
                    graph,
                    nodes=tuple(self._features(graph, s, given(x)) for s, x in enumerate(nodes)),
                    edges=tuple(self._weight(graph, b, edges) for b in range(len(graph.spec.blocks))),
                    rest=tuple(torch.zeros_like(t) for t in graph.rest),
                )
            )
        return tuple(found)

    def _features(self, graph: NeuralGraph, s: int, x: Tensor) -> Tensor:
        node_set = graph.spec.node_sets[s]
        if not node_set.columns:
            return torch.zeros_like(graph.nodes[s])
        scale = self.bias_scale[role_of(node_set.depth, graph.spec.depth)]
        found = scale * self.node(x, [invariant(x, node_set, self.rescaled)])
        slots = slots_of(node_set)
        if slots != self.node_features:
            found = found[..., [self.node_features.index(slot) for slot in slots]]
        positive = [slot.partition("#")[0] == "running_var" for slot in slots]
        if not any(positive):
            return found
        return torch.where(torch.tensor(positive, device=x.device), graph.nodes[s] * found.expm1(), found)

    def _weight(self, graph: NeuralGraph, number: int, edges: Sequence[Tensor | None]) -> Tensor:
        spec, block = graph.spec, graph.spec.blocks[number]
        if not block.features:
            return torch.zeros_like(graph.edges[number])
        directions = [given(edges[number])]
        if self.reverse_edges:
            if len(edges) != 2 * len(spec.blocks):
                raise UserError(
                    "this encoder embeds one direction of every edge: make the head with reverse_edges=False"
                )
            directions.append(given(edges[number + len(spec.blocks)]))
        scale = self.weight_scale[role_of(spec.node_sets[block.target].depth, spec.depth)]
        forms = [_invariant_edges(e, spec, block) if self.rescaled else e for e in directions]
        return scale * crop_kernel(self.edge(directions[0], forms), block.features, block.kernel, self.kernel)


class PlainHead(nn.Module):
    """``Linear, ReLU, Linear`` on ``parts`` embeddings ``[..., F]`` side by side -> ``[..., targets]``."""

    def __init__(self, width: int, targets: int, parts: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(parts * width, width), nn.Linear(width, targets)

    def forward(self, x: Tensor, forms: Sequence[Tensor]) -> Tensor:
        return self.last(F.relu(side_by_side(self.first, forms)))


class GatedHead(nn.Module):
    """An embedding ``x`` times an MLP of invariant ``forms``, through a linear map: multiplies exactly as ``x`` does."""

    def __init__(self, width: int, targets: int, parts: int) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(parts * width, width), nn.Linear(width, width)
        self.last = nn.Linear(width, targets, bias=False)

    def forward(self, x: Tensor, forms: Sequence[Tensor]) -> Tensor:
        return self.last(x * self.gate(F.relu(side_by_side(self.first, forms))))


def side_by_side(linear: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """``linear`` of the concatenated ``parts``, which is never made: edges are the largest tensors there are."""
    weights = linear.weight.chunk(len(parts), 1)
    out = F.linear(parts[0], weights[0], linear.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out + F.linear(part, weight)
    return out


def _invariant_edges(e: Tensor, spec: GraphSpec, block: Block) -> Tensor:
    """Edges ``[B, n_out, n_in, F]`` in a form that rescaling neither of their hidden ends changes."""
    for end in {block.source, block.target}:
        node_set = spec.node_sets[end]
        e = canonical(e, node_set.activation) if node_set.role == "hidden" else e
    return e
