"""Running many networks of one traced architecture at once, and reading what their neurons say.

The recorded operators are executed with ``torch.func.vmap`` over the networks. Shapes were recorded with the example's
number of samples, so other numbers of samples run in pieces of that size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.graph._graph import NeuralGraph
    from neural_graphs.graph._trace import Trace

Program = Callable[[dict[str, Tensor], list[Tensor]], tuple[Tensor, ...]]


def outputs(graph: NeuralGraph, inputs: Any) -> Tensor:
    """The first output tensor of every network, ``[B, K, ...]``. See ``NeuralGraph.run``."""
    trace = _traced(graph)
    pieces, samples = _pieces(trace, inputs)
    if "outputs" not in trace.known:
        trace.known["outputs"] = _program(trace, _output_nodes(trace.captured.graph)[:1])
    found = [_run(graph, trace.known["outputs"], piece)[0] for piece in pieces]
    if samples is None:
        return found[0]
    return torch.cat(found, 1)[:, :samples]


def responses(graph: NeuralGraph, inputs: Any) -> list[Tensor | None]:
    """The response ``[B, K, n]`` of every node set. See ``NeuralGraph.responses``."""
    trace = _traced(graph)
    pieces, samples = _pieces(trace, inputs)
    names = list(dict.fromkeys(found.node for found in trace.responses.values()))
    if "responses" not in trace.known:
        by_name = {node.name: node for node in trace.captured.graph.nodes}
        program = _program(trace, [by_name[name] for name in names])
        trace.known["responses"] = program, _sample_places(graph, program, pieces[0], names)
    program, places = trace.known["responses"]
    parts: dict[int, list[Tensor]] = {s: [] for s in trace.responses}
    for piece in pieces:
        values = dict(zip(names, _run(graph, program, piece), strict=True))
        for s, found in trace.responses.items():
            place = places[found.node]
            if place is not None:
                parts[s].append(_read(values[found.node], found.axis, found.positions, place))
    result: list[Tensor | None] = [None] * len(graph.spec.node_sets)
    for s, read in parts.items():
        if read:
            result[s] = torch.cat(read, 1)[:, :samples]
    return result


def _traced(graph: NeuralGraph) -> Trace:
    assert graph.trace is not None
    return graph.trace


class Place(NamedTuple):
    """Where samples stand in a value: along ``axis`` (None: there is one sample and no axis), alone, or as the outer or
    inner factor of an axis that also counts positions."""

    axis: int | None
    outer: int = 1
    inner: int = 1


def _read(value: Tensor, axis: int | None, positions: tuple[int, ...] | None, place: Place) -> Tensor:
    """``[B, *recorded shape]`` -> ``[B, K, n]``: the mean over everything that is neither sample nor neuron."""
    value = value if value.is_floating_point() else value.float()
    neuron = None if axis is None else axis + 1
    if place.axis is None:
        value, sample = value.unsqueeze(1), 1
        neuron = None if neuron is None else neuron + 1
    else:
        sample = place.axis + 1
        value = value.unflatten(sample, (place.outer, -1, place.inner))
        neuron = neuron + 2 if neuron is not None and neuron > sample else neuron
        sample += 1
    kept = [0, sample] + ([] if neuron is None else [neuron])
    rest = [d for d in range(value.dim()) if d not in kept]
    value = value.permute(*kept, *rest)
    if rest:
        value = value.flatten(len(kept)).mean(-1)
    if neuron is None:
        value = value.unsqueeze(-1)
    return value[..., list(positions)] if positions is not None else value


def _output_nodes(graph: Graph) -> list[Node]:
    return next(node for node in reversed(graph.nodes) if node.op == "output").all_input_nodes


def _program(trace: Trace, wanted: list[Node]) -> Program:
    """The recorded graph cut down to what ``wanted`` needs, as a function of parameters and inputs."""
    captured = trace.captured
    copy = Graph()
    copied: dict[Node, Node] = {}
    needed = _ancestors(wanted)
    for node in captured.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and node in needed):
            copied[node] = copy.node_copy(node, lambda n: copied[n])
            copied[node].target = _BATCHABLE.get(node.target, node.target)
    copy.output(tuple(copied[node] for node in wanted))
    module = GraphModule(torch.nn.Module(), copy)
    places = [node for node in captured.graph.nodes if node.op == "placeholder"]

    def run(state: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        given = iter(inputs)
        arguments = []
        for place in places:
            kind, name = captured.sources[place.name]
            if kind == "input":
                arguments.append(next(given))
            elif kind == "constant":
                arguments.append(_fitting(captured.constants[place.name], state))
            else:
                arguments.append(state[name])
        return module(*arguments)

    return run


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    return (F.batch_norm(x, mean, var, weight, bias, False, momentum, eps),)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / v.square().sum([d for d in range(v.dim()) if d != dim % v.dim()], keepdim=True).sqrt())


_BATCHABLE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
    torch.ops.aten._weight_norm.default: _weight_norm,
}
"""What ``vmap`` has no rule for, said with what it has."""


def _fitting(constant: Tensor, state: dict[str, Tensor]) -> Tensor:
    like = next(value for value in state.values() if value.is_floating_point())
    return constant.to(like.device, like.dtype) if constant.is_floating_point() else constant.to(like.device)


def _ancestors(wanted: list[Node]) -> set[Node]:
    found: set[Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
            # what is written into a value in place belongs to it
            stack += [user for user in node.users if _writes(user, node)]
    return found


def _writes(user: Node, node: Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    for argument, value in zip(schema.arguments, user.args, strict=False):
        if value is node and argument.alias_info is not None and argument.alias_info.is_write:
            return True
    return False


def _run(graph: NeuralGraph, program: Program, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Every value for every network, ``[B, ...]``."""
    state = graph.to_state_dict(batched=True)

    def one(b: int) -> tuple[Tensor, ...]:
        # a copy of the inputs, because the module may write into what it is given
        return program({name: value[b] for name, value in state.items()}, [x.clone() for x in inputs])

    if graph.batch_size == 1:
        return tuple(value.unsqueeze(0) for value in one(0))
    try:
        with batchable():
            return torch.func.vmap(lambda s: program(s, inputs), in_dims=0)(state)
    except RuntimeError:  # an operator that vmap cannot batch, or an in-place one on what all networks share
        return tuple(map(torch.stack, zip(*map(one, range(graph.batch_size)), strict=True)))


@contextlib.contextmanager
def batchable() -> Iterator[None]:
    """Modules run such that ``vmap`` can batch them over networks: without the fused kernels of attention, which it cannot.

    Operators without a batching rule run in a loop; that is slower, not wrong, and not worth a line each.
    """
    switch = getattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled", None)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if switch is not None:
        switch(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        if switch is not None:
            switch(True)


# -- samples ----------------------------------------------------------------------------------------------------------------


def recorded_shapes(trace: Trace) -> list[tuple[int, ...]]:
    """The shapes of the input tensors of the example that was recorded, samples first."""
    return [tuple(value.shape) for value in _recorded(trace)]


def _recorded(trace: Trace) -> list[Tensor]:
    captured = trace.captured
    return [n.meta["val"] for n in captured.graph.nodes if captured.sources.get(n.name, ("",))[0] == "input"]


def _pieces(trace: Trace, inputs: Any) -> tuple[list[list[Tensor]], int | None]:
    """The inputs in pieces of the recorded number of samples, the last one filled up with its first sample, and how many
    samples there are (None when the recorded inputs have no common first axis)."""
    recorded = _recorded(trace)
    given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(given) != len(recorded):
        raise UserError(f"the traced module takes {len(recorded)} input tensors, not {len(given)}")
    batches = {int(v.shape[0]) for v in recorded if v.dim()}
    if len(batches) != 1 or any(v.dim() == 0 for v in recorded):
        if any(tuple(a.shape) != tuple(b.shape) for a, b in zip(given, recorded, strict=True)):
            raise UserError(
                f"give inputs of the shapes of the example: {', '.join(str(tuple(v.shape)) for v in recorded)}"
            )
        return [given], None
    batch = batches.pop()
    counts = {int(x.shape[0]) for x in given if x.dim()}
    fits = all(x.dim() == v.dim() and x.shape[1:] == v.shape[1:] for x, v in zip(given, recorded, strict=True))
    if len(counts) != 1 or not fits or 0 in counts:
        shapes = ", ".join("[K" + "".join(f", {n}" for n in v.shape[1:]) + "]" for v in recorded)
        raise UserError(f"give inputs of shape {shapes}, like the example of the trace")
    samples = counts.pop()
    missing = -samples % batch
    filled = [torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x for x in given]
    return [list(piece) for piece in zip(*(x.split(batch) for x in filled), strict=True)], samples


def _sample_places(
    graph: NeuralGraph, program: Program, piece: list[Tensor], names: list[str]
) -> dict[str, Place | None]:
    """Where the samples stand in each value: found by replacing all samples by the first, after which the value must be the
    same for all of them, and that of the first as before. None where samples are mixed."""
    batch = int(piece[0].shape[0]) if piece[0].dim() else 1
    if batch == 1:
        return dict.fromkeys(names, Place(None))
    changed = [x[:1].expand_as(x).contiguous() if x.dim() else x for x in piece]
    one = graph[0]
    with torch.no_grad():
        before, after = _run(one, program, piece), _run(one, program, changed)
    return {name: _place(a[0], b[0], batch) for name, a, b in zip(names, before, after, strict=True)}


def _place(before: Tensor, after: Tensor, batch: int) -> Place | None:
    for axis, size in enumerate(before.shape):
        if size % batch:
            continue
        others = size // batch
        for place in (Place(axis), Place(axis, 1, others), Place(axis, others, 1))[: 1 if others == 1 else 3][
            others > 1 :
        ]:
            a, b = (x.unflatten(axis, (place.outer, batch, place.inner)) for x in (before, after))
            first = b.narrow(axis + 1, 0, 1)
            if _close(b, first.expand_as(b)) and _close(a.narrow(axis + 1, 0, 1), first):
                return place
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True))
