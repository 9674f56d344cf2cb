"""Neural graphs: node sets, dense blocks between them, and the exact way back to a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import _packing
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._convolution import CHUNK, map_sizes, mean_over_positions
from neural_graphs.graph._packing import Narrow, check_state_dict
from neural_graphs.graph._spec import Element, PermutationSpec
from neural_graphs.graph._stack import Stack
from neural_graphs.graph._stack_spec import spec_of_stack
from neural_graphs.graph._structure import GraphSpec

if TYPE_CHECKING:
    from neural_graphs.graph._check import SymmetryReport
    from neural_graphs.graph._trace import Trace


@dataclass(frozen=True, eq=False)
class NeuralGraph:
    """B networks of one architecture as graphs.

    ``nodes[s]`` is ``[B, n_s, c_s]``: the features (biases, normalisation parameters) of node set s side by side, ``c_s`` 0
    where it has none. ``edges[k]`` is ``[B, n_out, n_in / groups, f_k]``: block k's weights. Both are views of the packed
    parameters where memory layout allows, so a graph costs little more memory than its network. ``rest`` holds the tensors
    of ``spec.rest``, ``[B, *shape]``. ``stack`` runs the networks (probe features, rendering) and is None when only the
    structure is known. ``narrow`` remembers node features whose own dtype is narrower than their node set's tensor.
    ``trace`` holds the recorded operators of a traced module, which run its networks.
    """

    spec: GraphSpec
    nodes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    stack: Stack | None = None
    rest: tuple[Tensor, ...] = ()
    narrow: Narrow = ()
    trace: Trace | None = None

    # -- building -----------------------------------------------------------------------------------------------------

    @classmethod
    def pack(
        cls, spec: GraphSpec, state_dict: Mapping[str, Tensor], stack: Stack | None = None, *, strict: bool = False
    ) -> NeuralGraph:
        """From tensors stacked over networks, ``[B, *shape]``.

        Raises ``UserError`` naming the first tensor that is missing or wrong, ``strict`` also one that is too many (see
        ``check_state_dict``).
        """
        check_state_dict(spec, state_dict, strict=strict, batched=True)
        nodes, edges, rest, narrow = _packing.pack(spec, state_dict)
        return cls(spec, nodes, edges, stack, rest, narrow)

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
        from neural_graphs.graph._plain import stack_from_shapes

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
        own = [tuple(g.edges[k] for g in graphs) for k in first._own_blocks]
        rest = tuple(torch.cat(parts) for parts in zip(*(g.rest for g in graphs), strict=True))
        same = len({graph.narrow for graph in graphs}) == 1
        joined = replace(first, rest=rest, narrow=first.narrow if same else ())
        return joined._with(nodes, [torch.cat(parts) for parts in own])

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return self.nodes[0].shape[0]

    @property
    def symmetries(self) -> PermutationSpec:
        return self.spec.symmetries

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight: tensors may differ in dtype."""
        return self._like.dtype

    @property
    def _like(self) -> Tensor:
        tensors = [t for t in (*self.edges, *self.nodes) if t.shape[-1]]
        return tensors[0] if tensors else self.nodes[0]

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: int | slice | Tensor) -> NeuralGraph:
        """A smaller batch; an integer keeps a batch axis of 1."""
        if isinstance(index, int):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"network {index} of {self.batch_size}")
            index = slice(index, index + 1 or None)
        smaller = replace(self, rest=tuple(t[index] for t in self.rest))
        return smaller.map(lambda t: t[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> NeuralGraph:
        """Apply ``function``, which keeps shapes but for the batch, to every node and edge tensor; ``rest`` stays.

        Further uses of a shared parameter hold what its owner then holds.
        """
        return self._with(tuple(map(function, self.nodes)), [function(self.edges[k]) for k in self._own_blocks])

    def to(self, *args: Any, **kwargs: Any) -> NeuralGraph:
        """Move to a device or dtype, like ``Module.to``: integer tensors of ``rest`` keep their dtype."""
        moved = self.map(lambda t: t.to(*args, **kwargs))
        rest = (t.to(*args, **kwargs) if t.is_floating_point() else t.to(moved.device) for t in self.rest)
        return replace(moved, rest=tuple(rest))

    @property
    def _own_blocks(self) -> list[int]:
        return [k for k, block in enumerate(self.spec.blocks) if block.copy_of is None]

    def _with(self, nodes: tuple[Tensor, ...], own: Sequence[Tensor]) -> NeuralGraph:
        """With other values in nodes and blocks, given for all blocks but the copies, which are read off their owners."""
        spec = self.spec
        dtypes = {
            feature.parameter: after.dtype
            for node_set, before, after in zip(spec.node_sets, self.nodes, nodes, strict=True)
            for feature in node_set.features
            if before.dtype == after.dtype
        }
        narrow = tuple((name, dtype) for name, dtype in self.narrow if name in dtypes)
        edges = list(self.edges)
        for k, value in zip(self._own_blocks, own, strict=True):
            edges[k] = value
        nodes, followed = _packing.follow(spec, nodes, edges, dict(narrow))
        return replace(self, nodes=nodes, edges=followed, narrow=narrow)

    def to_state_dict(self, batched: bool | None = None) -> dict[str, Tensor]:
        """All tensors again, exactly, in state-dict order and under all their names: the inverse of ``pack``.

        ``batched`` keeps the leading network axis (default: only when there is more than one network). Tied names give the
        same tensor.
        """
        if batched is None:
            batched = self.batch_size != 1
        narrow, canonical = dict(self.narrow), self.spec.canonical
        found = dict(zip((name for name, _ in self.spec.rest), self.rest, strict=True))
        for name in self.spec.places:
            found[name] = _packing.unpack(self.spec, name, self.nodes, self.edges, narrow)
        if not batched:
            found = {name: value[0] for name, value in found.items()}
        return {name: found[canonical.get(name, name)] for name in self.spec.shapes}

    def permute(self, element: Element) -> NeuralGraph:
        """The graph of the permuted networks (see ``PermutationSpec.apply``)."""
        state = self.to_state_dict(batched=True)
        own = {name: value for name, value in state.items() if name not in self.spec.canonical}
        return self.like(self.symmetries.apply(own, element, batched=True), batched=True)

    def like(self, state_dict: Mapping[str, Tensor], batched: bool = False) -> NeuralGraph:
        """Other networks of the same architecture: one state dict, or (``batched``) many stacked ones.

        Raises ``UserError`` naming the first tensor that is missing, of another shape, or too many.
        """
        values = {name: value if batched else value.unsqueeze(0) for name, value in state_dict.items()}
        packed = NeuralGraph.pack(self.spec, values, self.stack, strict=True)
        return replace(packed, trace=self.trace)

    def run(self, x: Any) -> Tensor:
        """Outputs ``[B, K, out]`` of the networks on inputs ``[K, d]`` (or ``[B, K, d]``).

        Traced modules take inputs shaped like their example, or more samples (see ``responses``), and give the first tensor
        that the module returns, ``[B, K, ...]``.
        """
        if self.stack is None and self.trace is not None:
            from neural_graphs.graph._responses import outputs

            return outputs(self, x)
        return self._runnable().forward(self.to_state_dict(batched=True), x)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Values of every node set on inputs ``[K, d]`` or ``[K, c, h, w]``: a list of ``[B, K, n]`` or ``[B, K, n, h, w]``.

        Those of the stack's layers (see ``Stack.activations``), cut where a layer is several node sets.
        """
        found: list[Tensor] = []
        sizes = [nodes.size for nodes in self.spec.node_sets]
        for value in self._runnable().activations(self.to_state_dict(batched=True), x):
            first, stop = len(found), len(found) + 1
            while sum(sizes[first:stop]) < value.shape[2] and stop < len(sizes):
                stop += 1
            found += value.split(sizes[first:stop], 2) if stop - first > 1 else (value,)
        return found

    def responses(self, x: Any) -> list[Tensor | None]:
        """Probe features: the response ``[B, K, n]`` of every node set to K shared inputs.

        For feature maps and sequences the mean over positions. Plain stacks and traced modules alike; None for a node set
        whose values the module never holds (the tokens of an embedding). ``x`` is a tensor, a tuple or a dictionary as the
        module takes it, shaped like the example input of the trace, or with a multiple of its samples.
        """
        if self.stack is None and self.trace is not None:
            from neural_graphs.graph._responses import responses

            return responses(self, x)
        stack, step = self._runnable(), self.batch_size
        if x.dim() == 4 and stack.layers[0].kernel:  # as many networks at a time as the cache holds
            numbers = len(x) * max(map_sizes(stack, tuple(x.shape[1:])))
            step = min(step, max(1, CHUNK // max(1, numbers)))
        parts = [self[first : first + step] for first in range(0, self.batch_size, step)] if step else [self]
        found = [
            [mean_over_positions(value) if value.dim() > 3 else value for value in part.activations(x)]
            for part in parts
        ]
        return list(found[0]) if len(found) == 1 else [torch.cat(values) for values in zip(*found, strict=True)]

    def _runnable(self) -> Stack:
        if self.stack is None:
            raise UserError("this graph holds no executable architecture, so the network cannot be run")
        return self.stack

    def check(self, module: nn.Module | None = None, inputs: Any = None, **kwargs: Any) -> SymmetryReport:
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
        sets = self.spec.node_sets
        layers = "-".join(str(nodes.size) for nodes in sets)
        if len(sets) > 8:
            layers = f"{len(sets)} node sets, {len(self.spec.blocks)} blocks"
        symmetries = str(self.symmetries)
        if len(symmetries) > 80:
            symmetries = f"of {len(self.symmetries.classes)} classes"
        return (
            f"NeuralGraph({self.batch_size} x {layers}, {self.spec.num_nodes} nodes, {self.spec.num_edges} edges, "
            f"symmetries {symmetries})"
        )
