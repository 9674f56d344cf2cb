"""A change of every parameter of a network, read off its encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphBatch, GraphSpec, NeuralGraph, NodeSet
from neural_graphs.nn._canonical import canonical
from neural_graphs.nn._delta_maps import GatedMap, PlainMap
from neural_graphs.nn._embedding import crop_kernel
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._heads import given, given_nodes, invariant
from neural_graphs.nn._normalization import role_of
from neural_graphs.nn._slots import BIAS_ONLY, Reading, slots_of

ROLES = ("first", "hidden", "last")
INITIAL_SCALE = 0.01


class ChangeHead(nn.Module):
    """What heads that edit networks share: learned scales, several copies, several styles. A subclass says in ``_change``
    how much each parameter changes."""

    reads: Reads = "edges"

    def __init__(self, copies: int, styles: int) -> None:
        super().__init__()
        if copies < 1 or styles < 0:
            raise UserError(f"a head makes at least 1 copy and knows 0 styles or more, not {copies} and {styles}")
        self.copies, self.styles = copies, styles
        self.weight_scale = nn.ParameterDict({role: torch.full((), INITIAL_SCALE) for role in ROLES})
        self.bias_scale = nn.ParameterDict({role: torch.full((), INITIAL_SCALE) for role in ROLES})

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when networks like ``graph`` cannot be edited."""
        if graph.spec.shares:
            raise UserError("this network uses a parameter in several places, so no one change of it can be read off")

    def forward(
        self, encoding: Encoding, style: Tensor | None = None, strength: float = 1.0
    ) -> tuple[NeuralGraph, ...]:
        """The edited networks of every bucket of the batch.

        With k ``copies`` each bucket holds ``k * B_k`` networks: copy j of network b is number ``j * B_k + b``.

        Args:
            encoding: of B networks.
            style: int64 ``[B]``, in the batch's order: which of the head's ``styles`` each network is changed to.
            strength: multiplies the change; 0 gives the same networks to the bit.

        Raises:
            UserError: the encoder embeds no edges, or not both directions, or rescaled otherwise than this head; a network
                shares parameters, has values per neuron other than ``node_features``, or a kernel larger than this head's;
                styles that the head does not know.
        """
        edited = []
        for graph, change in zip(encoding.batch.buckets, self._deltas(encoding, style, strength), strict=True):
            if strength == 0:  # adding 0 would turn -0 to 0, and a change that is no number would spoil it
                edited.append(_copies(graph, self.copies))
                continue
            nodes = tuple(self._added(a, b) for a, b in zip(graph.nodes, change.nodes, strict=True))
            edges = tuple(self._added(a, b) for a, b in zip(graph.edges, change.edges, strict=True))
            edited.append(replace(graph, nodes=nodes, edges=edges, rest=_repeated(graph.rest, self.copies)))
        return tuple(edited)

    def deltas(self, encoding: Encoding, style: Tensor | None = None) -> tuple[NeuralGraph, ...]:
        """What ``forward`` adds: per bucket a ``NeuralGraph`` whose numbers are the changes. Raises like ``forward``."""
        return self._deltas(encoding, style, 1.0)

    def _deltas(self, encoding: Encoding, style: Tensor | None, strength: float) -> tuple[NeuralGraph, ...]:
        styles = self._styles(encoding.batch, style)
        found = []
        for k, graph in enumerate(encoding.batch.buckets):
            self.check_readable(graph)
            nodes, edges = self._change(encoding, k, styles[k], strength)
            rest = tuple(t.new_zeros(self.copies * len(t), *t.shape[1:]) for t in graph.rest)
            found.append(replace(graph, nodes=tuple(nodes), edges=tuple(edges), rest=rest))
        return tuple(found)

    def _change(
        self, encoding: Encoding, bucket: int, style: Tensor | None, strength: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Changes of the node and edge tensors of a bucket, ``[copies * B_k, ...]``, of networks of ``style`` ``[B_k]``."""
        raise NotImplementedError

    def _added(self, before: Tensor, change: Tensor) -> Tensor:
        if self.copies == 1:
            return before + change
        return (before + change.unflatten(0, (self.copies, len(before)))).flatten(0, 1)

    def _styles(self, batch: GraphBatch, style: Tensor | None) -> Sequence[Tensor | None]:
        """The style of every network, per bucket."""
        if not self.styles:
            if style is not None:
                raise UserError("this head knows a single edit: leave out style")
            return [None] * len(batch.buckets)
        known = f"this head knows {self.styles} edits: give style, one of 0 to {self.styles - 1} for each network"
        if style is None:
            raise UserError(known)
        if style.shape != (len(batch),) or style.is_floating_point():
            raise UserError(f"{known}; it is {style.dtype} {list(style.shape)} for {len(batch)} networks")
        if not torch.compiler.is_compiling() and bool(((style < 0) | (style >= self.styles)).any()):
            raise UserError(f"{known}, not {int(style.min())} to {int(style.max())}")
        return [style[index.to(style.device)] for index in batch.index]

    def _scale(self, spec: GraphSpec, node_set: int, of: nn.ParameterDict, strength: float) -> Tensor:
        scale: Tensor = of[role_of(spec.node_sets[node_set].depth, spec.depth)]
        return scale if strength == 1 else scale * strength


class DeltaHead(ChangeHead):
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
            ``exp(s_b * MLP(x_i))``, which keeps them positive; the strength of an edit stands in the exponent.
        copies: k changes of each network, whose outputs are meant to be averaged (output ensembles, OCE, arXiv 2602.01083):
            the last linear map gives k values.
        styles: number of edits that one head knows; each scales and shifts the hidden layer of the MLPs in its own way (all
            alike at first). 0: one edit, nothing to choose.
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        kernel: Sequence[int] = (1, 1),
        reverse_edges: bool = True,
        rescaled: bool = False,
        node_features: Sequence[str] = BIAS_ONLY,
        copies: int = 1,
        styles: int = 0,
    ) -> None:
        super().__init__(copies, styles)
        self.node_features = Reading.of(node_features).node_features
        self.kernel = (int(kernel[0]), int(kernel[1]))
        self.reverse_edges, self.rescaled = reverse_edges, rescaled
        maps = GatedMap if rescaled else PlainMap
        self.edge = maps(edge_width, math.prod(self.kernel), 2 if reverse_edges else 1, copies, styles)
        self.node = maps(width, len(self.node_features), 1, copies, styles)

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when networks like ``graph`` cannot be edited."""
        super().check_readable(graph)
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

    def _change(
        self, encoding: Encoding, bucket: int, style: Tensor | None, strength: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        graph, nodes = encoding.batch.buckets[bucket], given_nodes(encoding)[bucket]
        if encoding.rescaled != self.rescaled:
            raise UserError(
                f"this encoder's embeddings are {'' if encoding.rescaled else 'not '}rescaled: make the head with "
                f"rescaled={encoding.rescaled}"
            )
        edges = encoding.edges[bucket] if encoding.edges else (None,)
        biases = [self._features(graph, s, given(x), style, strength) for s, x in enumerate(nodes)]
        weights = [self._weight(graph, b, edges, style, strength) for b in range(len(graph.spec.blocks))]
        return biases, weights

    def _features(self, graph: NeuralGraph, s: int, x: Tensor, style: Tensor | None, strength: float) -> Tensor:
        node_set = graph.spec.node_sets[s]
        if not node_set.columns:
            return x.new_zeros(self.copies * len(x), node_set.size, 0)
        slots = slots_of(node_set)
        places = None
        if slots != self.node_features:
            places = torch.tensor([self.node_features.index(slot) for slot in slots], device=x.device)
        scale = self._scale(graph.spec, s, self.bias_scale, strength)
        found = self.node(x, [invariant(x, node_set, self.rescaled)], style, scale, places)
        return _multiplied_variances(graph.nodes[s], found, node_set)

    def _weight(
        self, graph: NeuralGraph, number: int, edges: Sequence[Tensor | None], style: Tensor | None, strength: float
    ) -> Tensor:
        spec, block, before = graph.spec, graph.spec.blocks[number], graph.edges[number]
        if not block.features:
            return before.new_zeros(self.copies * len(before), *before.shape[1:])
        directions = [given(edges[number])]
        if self.reverse_edges:
            if len(edges) != 2 * len(spec.blocks):
                raise UserError(
                    "this encoder embeds one direction of every edge: make the head with reverse_edges=False"
                )
            directions.append(given(edges[number + len(spec.blocks)]))
        taps = torch.arange(math.prod(self.kernel), device=before.device)
        own = crop_kernel(taps, block.features, block.kernel, self.kernel)
        forms = [_invariant_edges(e, spec, block) if self.rescaled else e for e in directions]
        scale = self._scale(spec, block.target, self.weight_scale, strength)
        return self.edge(directions[0], forms, style, scale, None if len(own) == len(taps) else own)


class FlatDeltaHead(ChangeHead):
    """Edits the networks of one architecture from a vector per network: ``Linear, ReLU, Linear`` gives every parameter its
    change, in scales as those of ``DeltaHead``. The baseline that ignores symmetry.

    Args:
        width: the encoder's F.
        parameters: number of parameters of the networks.
        copies, styles: as those of ``DeltaHead``.
    """

    def __init__(self, width: int, parameters: int, copies: int = 1, styles: int = 0) -> None:
        super().__init__(copies, styles)
        self.parameters_changed = parameters
        self.map = PlainMap(width, parameters, 1, copies, styles)

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when networks like ``graph`` cannot be edited."""
        super().check_readable(graph)
        size = sum(math.prod(t.shape[1:]) for t in (*graph.edges, *graph.nodes))
        if size != self.parameters_changed:
            raise UserError(
                f"this head changes networks of {self.parameters_changed} parameters, this one has {size}: train one for it"
            )

    def _change(
        self, encoding: Encoding, bucket: int, style: Tensor | None, strength: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        if encoding.vector is None:
            raise UserError("this head reads one vector per network, and this encoder embeds neurons: use DeltaHead")
        graph, spec = encoding.batch.buckets[bucket], encoding.batch.buckets[bucket].spec
        x = encoding.vector[encoding.batch.index[bucket].to(encoding.vector.device)]
        tensors = (*graph.edges, *graph.nodes)
        parts = self.map(x, [x], style).split([math.prod(t.shape[1:]) for t in tensors], 1)
        shaped = [part.reshape(len(t) * self.copies, *t.shape[1:]) for part, t in zip(parts, tensors, strict=True)]
        weights, values = shaped[: len(graph.edges)], shaped[len(graph.edges) :]
        ends = [block.target for block in spec.blocks]
        weights = [self._scale(spec, s, self.weight_scale, strength) * w for s, w in zip(ends, weights, strict=True)]
        values = [self._scale(spec, s, self.bias_scale, strength) * b for s, b in enumerate(values)]
        changes = zip(graph.nodes, values, spec.node_sets, strict=True)
        return [_multiplied_variances(*entry) for entry in changes], weights


def delta_head(encoder: Encoder, copies: int = 1, styles: int = 0, parameters: int = 0) -> DeltaHead | FlatDeltaHead:
    """The head that edits with what ``encoder`` says.

    Args:
        encoder: one that embeds edges; or one that gives a vector per network, for networks of ``parameters`` parameters
            (of the ``"mlp"`` they are known).
        copies, styles: as those of ``DeltaHead``.

    Raises:
        UserError: the encoder embeds no edges, and it is not known how many parameters the networks have.
    """
    if not encoder.vectors:
        features = encoder.reading.node_features
        sizes = encoder.width, encoder.edge_width, encoder.kernel
        return DeltaHead(*sizes, encoder.both_directions, encoder.rescaled, features, copies, styles)
    parameters = parameters or int(getattr(encoder, "parameters_read", 0))
    if not parameters:
        raise UserError(
            "this encoder gives one vector per network and embeds no edges, so it says nothing of single weights: choose "
            "one that does, such as ng-gnn, ng-t or scale-gmn"
        )
    return FlatDeltaHead(encoder.width, parameters, copies, styles)


# -- parts ---------------------------------------------------------------------------------------------------------------


def _copies(graph: NeuralGraph, copies: int) -> NeuralGraph:
    if copies == 1:
        return graph
    nodes, edges, rest = (_repeated(tensors, copies) for tensors in (graph.nodes, graph.edges, graph.rest))
    return replace(graph, nodes=nodes, edges=edges, rest=rest)


def _repeated(tensors: Sequence[Tensor], copies: int) -> tuple[Tensor, ...]:
    """``[B, ...]`` each -> ``[copies * B, ...]``."""
    return tuple(t if copies == 1 else t.expand(copies, *t.shape).flatten(0, 1) for t in tensors)


def _multiplied_variances(before: Tensor, found: Tensor, node_set: NodeSet) -> Tensor:
    """``found`` ``[copies * B, n, c]``; for variances what turns ``before`` ``[B, n, c]`` to itself times ``exp(found)``."""
    positive = [slot.partition("#")[0] == "running_var" for slot in slots_of(node_set)]
    if not any(positive):
        return found
    copies = len(found) // max(1, len(before))
    (whole,) = _repeated((before,), copies)
    return torch.where(torch.tensor(positive, device=found.device), whole * found.expm1(), found)


def _invariant_edges(e: Tensor, spec: GraphSpec, block: Block) -> Tensor:
    """Edges ``[B, n_out, n_in, F]`` in a form that rescaling neither of their hidden ends changes."""
    for end in {block.source, block.target}:
        node_set = spec.node_sets[end]
        e = canonical(e, node_set.activation) if node_set.role == "hidden" else e
    return e
