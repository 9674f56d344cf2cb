"""From a recorded graph to the symmetry group of its parameters: the rules of all operators, in order."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._axes import close, order
from neural_graphs.graph._capture import Captured
from neural_graphs.graph._rules import RULES, Call, Unsupported, rule_name
from neural_graphs.graph._space import confine, freeze
from neural_graphs.graph._spec import Axis, PermutationSpec
from neural_graphs.graph._var import (
    SizeError,
    Space,
    Var,
    choose,
    deps_of,
    everywhere,
    family,
    find,
    fixed,
    present,
    space_size,
    splice,
)

SILENT = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range", "sym_size", "item",
          "_local_scalar_dense", "sym_constrain_range_for_size", "sym_numel", "manual_seed")  # fmt: skip
"""Operators whose results are no tensors with axes."""

VIEWS = (
    *("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_split"),
    *("unsafe_chunk", "unsafe_split_with_sizes", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "permute"),
    *(
        "transpose",
        "swapaxes",
        "swapdims",
        "t",
        "numpy_T",
        "mT",
        "adjoint",
        "matrix_H",
        "movedim",
        "moveaxis",
        "unsqueeze",
    ),
    *("squeeze", "index", "index_select", "copy", "fill", "zero", "zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
)
"""Operators that may leave out a part of their operand, and do not look at the rest."""


class Undecided(Exception):
    """Cases of a type stand where no sum before them decides between them."""

    def __init__(self, variable: Var) -> None:
        super().__init__()
        self.variable = variable


@dataclass(eq=False)
class Propagation:
    """``spec`` is the group (permutations only), ``axes`` the type of every tensor of the graph (a tuple of ``Axis``, or a
    list of such), ``frozen_ops`` the operators without a rule for what they do here and how often they occur, ``spaces`` the
    raw types and ``names`` the class names of free variables."""

    spec: PermutationSpec
    axes: dict[Node, Any]
    frozen_ops: dict[str, int]
    spaces: dict[Node, Any] = field(default_factory=dict)
    names: dict[Var, str] = field(default_factory=dict)


def propagate(captured: Captured) -> Propagation:
    """Give every axis of every tensor its type, and read the group off the parameters.

    Operators without a rule freeze all that they touch. The result is sound whatever the network: see ``_var``.
    """
    env: dict[Node, Any] = {}
    frozen: Counter[str] = Counter()
    parameters: dict[str, list[Space]] = {}
    read: list[Space] = []
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            env[node] = _source(node, captured, parameters)
        elif node.op == "output":
            for used in node.all_input_nodes:
                for spaces in _tensors(env[used]):
                    freeze(spaces)
        elif node.op == "call_function":
            env[node] = _apply(node, env, frozen, captured.constants)
            if rule_name(node.target) not in VIEWS and node.target is not operator.getitem:
                read += [space for used in node.all_input_nodes for spaces in _tensors(env[used]) for space in spaces]
        else:
            raise AssertionError(f"unexpected {node.op} in a recorded graph")
    for name, value in captured.state.items():
        if name not in parameters and name not in captured.tied:
            # Never read: whatever it holds makes no difference, but a group that moves it would be of no use.
            parameters[name] = [fixed(int(n)) for n in value.shape]
    _settle(parameters.values())
    # The same holds for the rest of a sliced one: a longer input might read on.
    known, all_ = present(read), present(space for axes in parameters.values() for space in axes)
    if unread := [((v,),) for v in all_ if v.kind == "free" and v not in known]:
        freeze(unread)
        _settle(parameters.values())
    while True:
        names = _class_names(captured, parameters)
        try:
            read_off = {name: tuple(_axis(space, names) for space in axes) for name, axes in parameters.items()}
        except Undecided as error:  # no random test has one left; fixed positions are always right
            freeze([((error.variable,),)])
            _settle(parameters.values())
        else:
            break
    axes = tuple((name, read_off[captured.tied.get(name, name)]) for name in captured.state)
    over = tuple(
        (name, tuple(sorted((names[d] for d in deps_of(v)), key=_number))) for v, name in names.items() if deps_of(v)
    )
    spec = PermutationSpec(axes, over=over)
    return Propagation(spec, {}, dict(frozen), env, names)


def _number(name: str) -> int:
    return int(name[1:])


def _source(node: Node, captured: Captured, parameters: dict[str, list[Space]]) -> Any:
    kind, name = captured.sources[node.name]
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if kind in ("parameter", "buffer"):
        if name not in parameters:
            # A parameter that nothing reads makes no difference: a group that moved it would be of no use.
            movable = captured.state[name].is_floating_point() and bool(node.users)
            parameters[name] = _unknown(value.shape) if movable else [fixed(int(n)) for n in value.shape]
        return parameters[name]
    return [fixed(int(n)) for n in value.shape]


def _unknown(shape: Iterable[int]) -> list[Space]:
    """The axes of a parameter of which nothing is known yet; later ones may be families over earlier ones (the inputs of a
    grouped convolution's weight over its groups, the hidden units of stacked experts over the experts)."""
    axes: list[Space] = []
    for size in shape:
        axes.append(family(int(size), axes))
    return axes


def _apply(node: Node, env: dict[Node, Any], frozen: Counter[str], constants: Mapping[str, Tensor]) -> Any:
    if node.target is operator.getitem:
        return env[node.args[0]][node.args[1]]  # type: ignore[index]
    name = rule_name(node.target)
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    if name in SILENT:
        return None
    operands = [axes for used in node.all_input_nodes for axes in _tensors(env[used])]
    _close_all(operands)
    found = _by_rule(name, node, env, constants) if any(isinstance(v, Tensor) for v in tensors) else None
    if found is None:
        frozen[name] += 1
        for axes in operands:
            freeze(axes)
        return _fixed_like(value)
    # What the rule unified may have brought one variable to two axes of an operand: close those again, too.
    _close_all([*operands, *_tensors(found)])
    return found


def _tensors(value: Any) -> list[list[Space]]:
    """The axes of each tensor of a value."""
    if not value:
        return []
    if any(isinstance(item, list) for item in value):
        return [axes for axes in value if axes]
    return [value]


def _close_all(tensors: list[list[Space]]) -> None:
    for axes in tensors:
        close(axes)


def _by_rule(name: str, node: Node, env: dict[Node, Any], constants: Mapping[str, Tensor]) -> Any:
    value: Any = node.meta.get("val")
    if name not in RULES or not _static(value):
        return None
    if any(isinstance(n.meta.get("val"), Tensor) and not _static(n.meta["val"]) for n in node.all_input_nodes):
        return None
    try:
        found = RULES[name](Call(node, env, constants))
    except (Unsupported, SizeError):
        return None
    values, axes = ([value], [found]) if isinstance(value, Tensor) else (value, found)
    used = {user.args[1] for user in node.users if user.target is operator.getitem}
    for k, (v, a) in enumerate(zip(values, axes, strict=True)):
        if len(values) > 1 and k not in used:
            continue  # torch 2.11 gives the last state of an LSTM a wrong shape; often nobody looks at it
        if isinstance(v, Tensor) and [space_size(s) for s in a] != [int(n) for n in v.shape]:
            return None
    return found


def _static(value: Any) -> bool:
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return all(type(n) is int for v in tensors if isinstance(v, Tensor) for n in v.shape)


def _fixed_like(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_fixed_like(v) if isinstance(v, Tensor) else None for v in value]
    if not isinstance(value, Tensor):
        return None
    return [fixed(_size(n)) for n in value.shape]


def _size(n: int | torch.SymInt) -> int:
    """Sizes that depend on values get one that no axis has: they are fixed anyway, and no rule sees them."""
    return n if isinstance(n, int) else 0


# -- reading off the group --------------------------------------------------------------------------------------------------


def _settle(parameters: Iterable[list[Space]]) -> None:
    """Hold all parameters to well-formed types until nothing changes any more."""
    tensors = [axes for axes in parameters if axes]
    before = None
    while before != (before := _state(tensors)):
        for axes in tensors:
            close(axes)
            for dim in range(len(axes)):
                _apart(axes, dim)


def _state(tensors: list[list[Space]]) -> list[tuple[int, str, int]]:
    return sorted((id(v), v.kind, len(deps_of(v))) for v in present(s for axes in tensors for s in axes))


def _apart(axes: list[Space], dim: int) -> None:
    """What a class depends on must stand in its own product or exactly once on exactly one other axis, and cases must hang
    on a sum of the same axis: only then has ``PermutationSpec`` words for it."""
    others = [set(everywhere(space)) for d, space in enumerate(axes) if d != dim]
    counts = Counter(v for found in others for v in found if v.kind == "free")
    confine(axes[dim], {v for v, n in counts.items() if n == 1})
    order(axes[dim])


def _class_names(captured: Captured, parameters: dict[str, list[Space]]) -> dict[Var, str]:
    names: dict[Var, str] = {}
    for name in captured.state:
        for space in parameters[captured.tied.get(name, name)]:
            for v in _leaves(space):
                names.setdefault(v, f"P{len(names)}")
    return names


def _leaves(space: Space) -> list[Var]:
    """The free variables of a space, in order of position."""
    found: list[Var] = []
    for segment in space:
        for v in splice(segment):
            if v.kind == "free":
                found.append(v)
            elif v.kind == "sum":
                found += _leaves(v.parts)
            elif v.kind == "cases":
                for branch in v.branches:
                    found += _leaves(branch)
    return found


def _axis(space: Space, names: dict[Var, str]) -> Axis:
    """A space as an ``Axis``: fixed neighbours fused, sums flattened, cases decided."""
    parts: list[tuple[Any, ...]] = []
    for segment in space:
        parts += _parts(splice(segment), names)
    fused: list[tuple[Any, ...]] = []
    for part in parts:
        still = len(part) == 1 and isinstance(part[0], tuple) and part[0][0] is None
        last = fused[-1] if fused else ()
        if still and len(last) == 1 and isinstance(last[0], tuple) and last[0][0] is None:
            fused[-1] = ((None, last[0][1] + part[0][1]),)
        else:
            fused.append(part)
    return Axis(tuple(fused))


def _parts(segment: tuple[Var, ...], names: dict[Var, str]) -> list[tuple[Any, ...]]:
    """A product as parts of an ``Axis``: several if its leading factor is a sum."""
    factors: list[Any] = []
    for k, v in enumerate(segment):
        if v.kind == "cases" and any(u.kind == "free" for u in present([((v,),)])):
            raise Undecided(v)
        if v.kind == "sum":
            rest = segment[k + 1 :]
            inner = [
                part
                for index, summand in enumerate(v.parts)
                for part in _parts(splice(summand + _decided(rest, v, index)), names)
            ]
            if not factors:
                return inner
            nested = _fuse(inner)
            factors += list(nested[0]) if len(nested) == 1 else [Axis(tuple(nested))]
            break
        named = (names[v], v.size) if v.kind == "free" else (None, v.size)
        if named[0] is None and factors and isinstance(factors[-1], tuple) and factors[-1][0] is None:
            factors[-1] = (None, factors[-1][1] * v.size)
        else:
            factors.append(named)
    return [tuple(factors) if factors else ((None, 1),)]


def _fuse(parts: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for part in parts:
        still = len(part) == 1 and isinstance(part[0], tuple) and part[0][0] is None
        if still and found and len(found[-1]) == 1 and isinstance(found[-1][0], tuple) and found[-1][0][0] is None:
            found[-1] = ((None, found[-1][0][1] + part[0][1]),)
        else:
            found.append(part)
    return found


def _decided(rest: tuple[Var, ...], pivot: Var, index: int) -> tuple[Var, ...]:
    return tuple(f for v in rest for f in choose(((v,),), find(pivot), index)[0])
