"""Neural graphs: node sets, dense blocks between them, and the exact way back to a state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._spec import Axis, Element, PermutationSpec
from neural_graphs.graph._stack import Stack

if TYPE_CHECKING:
    from neural_graphs.graph._check import SymmetryReport

Role = Literal["input", "hidden", "output"]


@dataclass(frozen=True)
class NodeSet:
    """The neurons that one layer writes (or the inputs). ``parameters`` names the 1-D tensors that are node features."""

    name: str
    size: int
    role: Role
    depth: int
    activation: Activation = field(default_factory=Activation)
    parameters: tuple[str, ...] = ()
    symmetry: str | None = None


@dataclass(frozen=True)
class Block:
    """All edges of one layer: a complete bipartite graph from node set ``source`` to node set ``target``.

    ``shape`` is the parameter's own shape; its edge features are ``[n_out, n_in, features]``, ``features`` being 1 for a
    linear layer, ``kh * kw`` for a convolution (``kernel``), ``h * w`` for a linear layer on a flattened map.
    """

    source: int
    target: int
    parameter: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    features: int = 1


@dataclass(frozen=True)
class GraphSpec:
    """The structure of a neural graph without its numbers: what all networks of one architecture share."""

    node_sets: tuple[NodeSet, ...]
    blocks: tuple[Block, ...]
    symmetries: PermutationSpec

    @property
    def num_nodes(self) -> int:
        return sum(nodes.size for nodes in self.node_sets)

    @property
    def num_edges(self) -> int:
        return sum(self.node_sets[b.source].size * self.node_sets[b.target].size for b in self.blocks)

    @property
    def depth(self) -> int:
        """Number of parametric layers between inputs and outputs."""
        return max(nodes.depth for nodes in self.node_sets)

    @property
    def num_inputs(self) -> int:
        return sum(nodes.size for nodes in self.node_sets if nodes.role == "input")

    @property
    def num_outputs(self) -> int:
        return sum(nodes.size for nodes in self.node_sets if nodes.role == "output")


@lru_cache(maxsize=4096)
def spec_of_stack(stack: Stack) -> GraphSpec:
    """Node sets, blocks and symmetry classes of a plain stack."""
    last = len(stack.layers)
    sets = [NodeSet("input", stack.layers[0].inputs, "input", 0)]
    blocks = []
    axes: list[tuple[str, tuple[Axis, ...]]] = []
    kinds = []
    for depth, layer in enumerate(stack.layers, start=1):
        hidden = depth < last
        symmetry = f"P{depth - 1}" if hidden else None
        bias = (layer.bias_name,) if layer.bias_name else ()
        role: Role = "hidden" if hidden else "output"
        sets.append(NodeSet(layer.name, layer.outputs, role, depth, layer.activation, bias, symmetry))
        features = layer.positions
        for k in layer.kernel:
            features *= k
        blocks.append(Block(depth - 1, depth, layer.weight, layer.weight_shape, layer.kernel, features))
        source = sets[depth - 1].symmetry
        axes.append(
            (
                layer.weight,
                (
                    Axis.of(symmetry, layer.outputs),
                    Axis.of(source, layer.inputs, layer.positions),
                    *(Axis.fixed(k) for k in layer.kernel),
                ),
            )
        )
        if layer.bias_name:
            axes.append((layer.bias_name, (Axis.of(symmetry, layer.outputs),)))
        if symmetry:
            kinds.append((symmetry, layer.activation))
    return GraphSpec(tuple(sets), tuple(blocks), PermutationSpec(tuple(axes), tuple(kinds)))


@dataclass(frozen=True, eq=False)
class NeuralGraph:
    """B networks of one architecture as graphs.

    ``nodes[s]`` is ``[B, n_s, c_s]``: the 1-D parameters (biases) of node set s, ``c_s`` 0 where it has none.
    ``edges[k]`` is ``[B, n_out, n_in, f_k]``: block k's weights. Both are views of the packed parameters where memory
    layout allows. ``stack`` runs the networks (probe features, rendering) and is None when only the structure is known.
    """

    spec: GraphSpec
    nodes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    stack: Stack | None = None

    # -- building -----------------------------------------------------------------------------------------------------

    @classmethod
    def pack(cls, spec: GraphSpec, state_dict: Mapping[str, Tensor], stack: Stack | None = None) -> NeuralGraph:
        """From tensors stacked over networks, ``[B, *shape]``. Raises ``UserError`` on missing names or wrong shapes."""
        edges, batch = [], None
        for block in spec.blocks:
            weight = _stacked(state_dict, block.parameter, block.shape)
            batch = weight.shape[0] if batch is None else batch
            source, target = spec.node_sets[block.source], spec.node_sets[block.target]
            edges.append(weight.reshape(weight.shape[0], target.size, source.size, block.features))
        assert batch is not None
        nodes = []
        for node_set in spec.node_sets:
            columns = [_stacked(state_dict, name, (node_set.size,)) for name in node_set.parameters]
            if len(columns) == 1:
                nodes.append(columns[0].unsqueeze(-1))
            elif columns:
                nodes.append(torch.stack(columns, -1))
            else:
                nodes.append(edges[0].new_zeros(batch, node_set.size, 0))
        if len({t.shape[0] for t in (*nodes, *edges)}) != 1:
            raise UserError("the stacked tensors hold different numbers of networks")
        return cls(spec, tuple(nodes), tuple(edges), stack)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        activation: str | Activation | Sequence[str | Activation] | None = None,
        *,
        stack: Stack | None = None,
        shift: float = 0.0,
        batched: bool = False,
    ) -> NeuralGraph:
        """One plain Linear/Conv stack (or, ``batched``, many stacked ones) without its module.

        ``activation`` is the hidden non-linearity (``"relu"``, ``"sine:30"``) or one per hidden layer; ``stack`` gives the
        whole architecture instead. Raises ``UserError`` when the tensors are no plain stack.
        """
        from neural_graphs.graph._trace import stack_from_shapes

        values = {name: value if batched else value.unsqueeze(0) for name, value in state_dict.items()}
        if stack is None:
            shapes = {name: tuple(value.shape[1:]) for name, value in values.items()}
            stack = stack_from_shapes(shapes, activation, shift)
        return cls.pack(spec_of_stack(stack), values, stack)

    @classmethod
    def cat(cls, graphs: Sequence[NeuralGraph]) -> NeuralGraph:
        """Stack graphs of the same architecture along the batch."""
        if len({graph.spec for graph in graphs}) != 1:
            raise UserError("only graphs of one architecture can be stacked: use GraphBatch.of for mixed ones")
        first = graphs[0]
        nodes = tuple(torch.cat(parts) for parts in zip(*(g.nodes for g in graphs), strict=True))
        edges = tuple(torch.cat(parts) for parts in zip(*(g.edges for g in graphs), strict=True))
        return replace(first, nodes=nodes, edges=edges)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return self.edges[0].shape[0]

    @property
    def symmetries(self) -> PermutationSpec:
        return self.spec.symmetries

    @property
    def device(self) -> torch.device:
        return self.edges[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.edges[0].dtype

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: int | slice | Tensor) -> NeuralGraph:
        """A smaller batch; an integer keeps a batch axis of 1."""
        if isinstance(index, int):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"network {index} of {self.batch_size}")
            index = slice(index, index + 1 or None)
        return self.map(lambda t: t[index])

    def map(self, function: Any) -> NeuralGraph:
        """Apply ``function`` to every node and edge tensor."""
        return replace(self, nodes=tuple(map(function, self.nodes)), edges=tuple(map(function, self.edges)))

    def to(self, *args: Any, **kwargs: Any) -> NeuralGraph:
        return self.map(lambda t: t.to(*args, **kwargs))

    def to_state_dict(self, batched: bool | None = None) -> dict[str, Tensor]:
        """The parameters again, exactly, in state-dict order: the inverse of ``pack``.

        ``batched`` keeps the leading network axis (default: only when there is more than one network).
        """
        if batched is None:
            batched = self.batch_size != 1
        found: dict[str, Tensor] = {}
        for block, edges in zip(self.spec.blocks, self.edges, strict=True):
            found[block.parameter] = edges.reshape(edges.shape[0], *block.shape)
        for node_set, nodes in zip(self.spec.node_sets, self.nodes, strict=True):
            for channel, name in enumerate(node_set.parameters):
                found[name] = nodes[..., channel]
        ordered = {name: found[name] for name in self.symmetries.parameters}
        return ordered if batched else {name: value[0] for name, value in ordered.items()}

    def permute(self, element: Element) -> NeuralGraph:
        """The graph of the permuted networks (see ``PermutationSpec.apply``)."""
        permuted = self.symmetries.apply(self.to_state_dict(batched=True), element, batched=True)
        return NeuralGraph.pack(self.spec, permuted, self.stack)

    def run(self, x: Tensor) -> Tensor:
        """Outputs ``[B, K, out]`` of the networks on inputs ``[K, d]`` (or ``[B, K, d]``)."""
        return self._runnable().forward(self.to_state_dict(batched=True), x)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Values of every node set on inputs ``[K, d]``: a list of ``[B, K, n]`` (see ``Stack.activations``)."""
        return self._runnable().activations(self.to_state_dict(batched=True), x)

    def _runnable(self) -> Stack:
        if self.stack is None:
            raise UserError("this graph holds no executable architecture, so the network cannot be run")
        return self.stack

    def check(self, module: nn.Module | None = None, inputs: Tensor | None = None, **kwargs: Any) -> SymmetryReport:
        """Verify the symmetry claim numerically on the real network; see ``check_symmetries``."""
        from neural_graphs.graph._check import check_symmetries

        return check_symmetries(self, module, inputs, **kwargs)

    def to_pyg(self) -> list[Any]:
        """One ``torch_geometric.data.Data`` per network; needs the ``pyg`` extra."""
        from neural_graphs.graph._export import to_pyg

        return to_pyg(self)

    def to_networkx(self, index: int = 0) -> Any:
        """Network ``index`` as a ``networkx.DiGraph``."""
        from neural_graphs.graph._export import to_networkx

        return to_networkx(self, index)

    def __repr__(self) -> str:
        layers = "-".join(str(nodes.size) for nodes in self.spec.node_sets)
        return (
            f"NeuralGraph({self.batch_size} x {layers}, {self.spec.num_nodes} nodes, {self.spec.num_edges} edges, "
            f"symmetries {self.symmetries})"
        )


def _stacked(state_dict: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state_dict:
        raise UserError(f"the network has no tensor {name}: its tensors are {', '.join(state_dict) or 'none'}")
    value = state_dict[name]
    if tuple(value.shape[1:]) != shape:
        raise UserError(f"{name} has shape {tuple(value.shape[1:])}, expected {shape}")
    return value
