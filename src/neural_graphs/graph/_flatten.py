"""One flat, functional graph from what ``torch.export`` or ``make_fx`` recorded."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

# switches that are recorded as calls: they have no place in a graph of values
_SWITCHES = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode")

# operators that run one inner graph on their operands, whatever mode they run it in
_WRAPPERS = ("wrap", "tag_activation_checkpoint", "invoke_subgraph", "hints_wrapper", "strict_mode", "inner_wrap")


class NotFlat(Exception):
    """The recorded graph writes to memory, or calls inner graphs, in a way that cannot be told as values."""


def flatten(
    module: GraphModule,
    sources: dict[str, tuple[Any, str]],
    constants: dict[str, Tensor],
    outputs: Iterable[str] | None,
) -> Graph:
    """A new graph: inner graphs inlined, constants lifted to placeholders, writes turned into values, dead code dropped.

    ``sources`` and ``constants`` gain the lifted constants. ``outputs`` names the nodes to return (None: all of them).
    Raises ``NotFlat`` when a write cannot be turned into a value.
    """
    graph = Graph()
    lifted: dict[int, Node] = {}

    def lift(owner: GraphModule, target: str, after: Node | None) -> Node:
        value = operator.attrgetter(target)(owner)
        if not isinstance(value, Tensor):
            raise NotFlat(f"{target} is no tensor")
        if id(value) not in lifted:
            first = next((node for node in graph.nodes if node.op != "placeholder"), None)
            with graph.inserting_before(first) if first is not None else graph.inserting_after(after):
                node = graph.placeholder(f"c_{target.replace('.', '_')}")
            node.meta["val"] = value.detach()
            sources[node.name] = ("constant", target)
            constants[node.name] = value.detach()
            lifted[id(value)] = node
        return lifted[id(value)]

    def emit(owner: GraphModule, operands: list[Any] | None) -> Any:
        env: dict[Node, Any] = {}
        given = iter(operands or [])
        for node in owner.graph.nodes:
            if node.op == "placeholder":
                if operands is not None:
                    env[node] = next(given)
                elif node.name in sources:
                    env[node] = graph.node_copy(node)
                # else: a number among the inputs, whose value stands where it is used
            elif node.op == "output":
                return torch.fx.map_arg(node.args[0], lambda n: env[n])
            elif node.op == "get_attr":
                value = operator.attrgetter(node.target)(owner)
                env[node] = value if isinstance(value, GraphModule) else lift(owner, node.target, None)
            elif getattr(node.target, "__name__", "") in _SWITCHES:
                env[node] = None
            elif (inner := _inner(node, env)) is not None:
                env[node] = emit(*inner)
            else:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: env[n])
                if node.target is operator.getitem and isinstance(args[0], (tuple, list)):
                    env[node] = args[0][args[1]]
                    continue
                if any(isinstance(arg, GraphModule) for arg in args):
                    raise NotFlat(f"{node.target} holds control flow that depends on values")
                copied = graph.create_node(node.op, node.target, args, kwargs, node.name)
                copied.meta = dict(node.meta)
                env[node] = copied
        raise AssertionError("a graph without output")

    results = emit(module, None)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    if outputs is not None:
        wanted = set(outputs)
        returned = next(node for node in module.graph.nodes if node.op == "output").args[0]
        results = [new for new, old in zip(results, returned, strict=True) if getattr(old, "name", None) in wanted]
    graph.output(tuple(results))
    _write_as_values(graph)
    _tidy(graph)
    for node in list(graph.nodes):
        if node.name in constants and not node.users:
            graph.erase_node(node)
    for name in set(constants) - {node.name for node in graph.nodes}:
        del constants[name], sources[name]
    graph.lint()
    return graph


def _inner(node: Node, env: dict[Node, Any]) -> tuple[GraphModule, list[Any]] | None:
    """The inner graph that ``node`` runs, with its operands; None for an ordinary operator."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    name = node.target.name()
    args: Any = torch.fx.map_arg(node.args, lambda n: env[n])
    graphs = [index for index, arg in enumerate(args) if isinstance(arg, GraphModule)]
    if len(graphs) != 1 or not (name.startswith("wrap_") or name in _WRAPPERS):
        raise NotFlat(f"{name} holds control flow that depends on values")
    owner, operands = args[graphs[0]], list(args[graphs[0] + 1 :])
    if name == "invoke_subgraph":
        operands = operands[1:]
    elif name in ("strict_mode", "hints_wrapper"):
        operands = list(operands[0])
    if len(operands) != sum(inner.op == "placeholder" for inner in owner.graph.nodes):
        raise NotFlat(f"{name} calls its inner graph in an unknown way")
    return owner, operands


def _is_write(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def writes_to_memory(module: GraphModule) -> bool:
    """Whether a recorded graph, or one inside it, has in-place operators that matter."""
    inner = (child for child in module.modules() if isinstance(child, GraphModule))
    nodes = (node for graph in inner for node in graph.graph.nodes)
    return any(_is_write(node) and node.target is not aten.detach_.default for node in nodes)


def _write_as_values(graph: Graph) -> None:
    """In-place operators on a whole tensor: later readers of the tensor read the operator's result instead.

    Export has done this already where it could; what is left comes from running the module. A write into a view, or into
    a tensor of which views are read later, would need the write carried over to other values: refused.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    storage: dict[Node, Node] = {}  # the first node that may share this node's memory
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.detach_.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if not _is_write(node):
            shared = _may_alias(node)
            if shared is not None:
                storage[node] = storage.get(shared, shared)
            continue
        target = node.args[0]
        if not isinstance(target, Node) or len(_written(node)) != 1:
            raise NotFlat(f"{node.target} writes to more than one tensor")
        root = storage.get(target, target)
        views = [other for other, first in storage.items() if first is root] + [root]
        later = [user for view in views if view is not target for user in view.users if order[user] > order[node]]
        if later:
            raise NotFlat(f"{node.target} writes into a part of a tensor")
        for user in [user for user in target.users if order[user] > order[node]]:
            user.replace_input_with(target, node)
        storage[node] = node


def _may_alias(node: Node) -> Node | None:
    """The node whose memory this one may share."""
    if node.target is operator.getitem:
        return node.args[0] if isinstance(node.args[0], Node) else None
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return next(iter(node.all_input_nodes), None)
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and isinstance(value, Node):
            return value
    return None


def _written(node: Node) -> list[str]:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    return [argument.name for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write]


# operators that hand their first argument on unchanged, when shape and dtype stay as they are
_IDENTITIES = {
    "contiguous",
    "clone",
    "alias",
    "detach",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "to",
    "_to_copy",
}
_IDENTITIES |= {
    "lift_fresh_copy",
    "lift_fresh",
    "type_as",
    "positive",
    "resolve_conj",
    "resolve_neg",
    "expand",
    "expand_as",
}


def _tidy(graph: Graph) -> None:
    """Drop copies, and what nothing reads, assertions included; but keep ``item``: the path depended on its value."""
    for node in list(graph.nodes):
        if node.target is aten.view.default or node.target is aten._unsafe_view.default:
            node.target = aten.reshape.default  # a view may have needed the copy that is dropped before it
        elif node.target is aten.cat.default:
            # concatenating to an empty cache: ``cat([empty, x])`` is x, and only ``cat`` may mix their shapes
            parts = [part for part in node.args[0] if part.meta["val"].shape != (0,)] or list(node.args[0])
            node.update_arg(0, parts)
            if len(parts) == 1:
                node.replace_all_uses_with(parts[0])
        elif _is_identity(node):
            node.replace_all_uses_with(node.args[0])
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and node.target is not aten.item.default:
            graph.erase_node(node)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.target is aten.item.default and value is None:
            node.meta["val"] = torch.zeros((), dtype=node.args[0].meta["val"].dtype).item()
        elif node.op != "output" and not all(map(_is_static, value if isinstance(value, (tuple, list)) else [value])):
            raise NotFlat(f"the result of {node.target} has a size that depends on values")


def _is_identity(node: Node) -> bool:
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten" or not node.args:
        return False
    before, after = getattr(node.args[0], "meta", {}).get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    name = node.target._schema.name.partition("::")[2]  # type: ignore[union-attr]
    same = before.shape == after.shape and before.dtype == after.dtype
    if name.endswith("dropout") and len(node.args) == 3:
        same = same and (not node.args[2] or not node.args[1])
    return same and name in _IDENTITIES


def _is_static(value: Any) -> bool:
    if isinstance(value, Tensor):
        return all(isinstance(size, int) for size in value.shape)
    return isinstance(value, (int, float, bool, complex))
