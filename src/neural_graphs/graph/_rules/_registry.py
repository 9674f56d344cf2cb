"""The registry of rules, and what a rule sees of an operator's call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from neural_graphs.graph._space import freeze, unify
from neural_graphs.graph._var import UNIT, Space, deps_of, present, space_size

Axes: TypeAlias = list[Space]
Rule: TypeAlias = Callable[["Call"], Any]

RULES: dict[str, Rule] = {}

_COPIES = ("lift_fresh_copy", "lift_fresh", "detach", "detach_", "clone", "alias")


class Unsupported(Exception):
    """The rule does not cover this use of its operator."""


F = TypeVar("F", bound=Callable[..., Any])


def registrar(rules: dict[str, F]) -> Callable[..., Callable[[F], F]]:
    """The decorator ``@rule(*names)`` that enters a function in ``rules``, once for each name."""

    def rule(*names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            for name in names:
                if name in rules:
                    raise ValueError(f"two rules for {name}")
                rules[name] = function
            return function

        return register

    return rule


rule = registrar(RULES)
"""Register a rule for operators of these names (without overload and without in-place underscore)."""


def rule_name(target: Any) -> str:
    """``aten.add_.Tensor`` -> ``add``."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name = schema.name.partition("::")[2]
    if name.endswith("_") and not name.endswith("__") and not name.startswith("__"):
        name = name[:-1]
    return name


class Call:
    """One operator of the recorded graph: arguments by name, the axes of tensors, and the shape of the result."""

    def __init__(self, node: Node, env: dict[Node, Any], constants: Mapping[str, Tensor]) -> None:
        self.node, self.env, self.constants = node, env, constants
        self.name = rule_name(node.target)
        self.value: Any = node.meta.get("val")
        schema = node.target._schema  # type: ignore[union-attr]
        self.arguments: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                found = node.args[position]
            elif argument.name in node.kwargs:
                found = node.kwargs[argument.name]
            else:
                found = argument.default_value
            self.arguments[argument.name] = found

    def __getitem__(self, name: str) -> Any:
        if name not in self.arguments:  # another overload
            raise Unsupported
        return self.arguments[name]

    def integer(self, name: str, default: int | None = None) -> int:
        """A number that must be known; one that depends on values is not."""
        found = self[name]
        found = default if found is None else found
        if not isinstance(found, int):
            raise Unsupported
        return int(found)

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def axes(self, argument: Any) -> Axes:
        """The axes of a tensor argument, given by its name or as the node itself."""
        node = self[argument] if isinstance(argument, str) else argument
        if not isinstance(node, Node):
            return []  # a number stands for a tensor without axes
        return list(self.env[node])

    def has(self, name: str) -> bool:
        return isinstance(self.arguments.get(name), Node)

    def tensors(self) -> list[Node]:
        """Every operand that is a tensor."""
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]

    def constant(self, node: Any) -> Tensor | None:
        """The value of an operand that does not depend on inputs or parameters, where it is known."""
        while isinstance(node, Node):
            if node.op == "placeholder":
                found = self.constants.get(node.name)
                known = found is not None and found.device.type != "meta" and not isinstance(found, FakeTensor)
                return found if known else None
            if rule_name(node.target) not in _COPIES or not node.args:
                return None
            node = node.args[0]
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        if not isinstance(self.value, Tensor):
            raise Unsupported
        return tuple(int(n) for n in self.value.shape)

    @property
    def input(self) -> Axes:
        """The axes of the first argument."""
        return self.axes(self.node.args[0] if self.node.args else next(iter(self.arguments.values())))

    def dims(self, value: Any, rank: int) -> list[int]:
        """A dim argument (number, list, or None for all) as non-negative numbers."""
        if value is None or value == []:
            return list(range(rank))
        found = [value] if isinstance(value, int) else list(value)
        return [d % rank for d in found] if rank else []


def unify_all(pairs: Iterable[tuple[Space, Space]]) -> None:
    """Unify pairs of axes, outer variables before the families over them, so that families meet over one and the same."""
    found = [(a, b) for a, b in pairs if a is not b]
    # What two spaces have in common is no deeper than either of them.
    for a, b in sorted(found, key=lambda pair: min(map(_depth, pair))):
        unify(a, b)


def _depth(space: Space) -> int:
    return max((len(deps_of(v)) for v in present([space]) if v.kind == "free"), default=0)


def broadcast(operands: Sequence[Axes], rank: int | None = None) -> Axes:
    """The axes of operands broadcast against each other: aligned at the end, equal but for size 1."""
    rank = max(map(len, operands), default=0) if rank is None else rank
    found: Axes = [UNIT] * rank
    pairs = []
    for axes in operands:
        for dim, space in enumerate(axes, rank - len(axes)):
            if space_size(space) == 1:
                continue
            if space_size(found[dim]) == 1:
                found[dim] = space
            else:
                pairs.append((found[dim], space))
    unify_all(pairs)
    return found


def freeze_dims(axes: Axes, dims: Iterable[int]) -> None:
    freeze([axes[d] for d in dims])
