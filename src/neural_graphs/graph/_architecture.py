"""Architectures as values: plain stacks, and modules that a registered function builds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._stack import Stack


class Architecture(Protocol):
    """What networks of one bucket of a zoo have in common: an immutable, hashable, JSON-able value without parameters."""

    def __hash__(self) -> int: ...

    @property
    def num_parameters(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """One input's shape: ``(d,)``, ``(c, h, w)``, or ``(c, None, None)`` where any height and width will do."""
        ...

    @property
    def activations_used(self) -> tuple[str, ...]:
        """The distinct activations of hidden neurons, in order of appearance."""
        ...

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors in which networks differ, in state-dict order."""
        ...

    def to_json(self) -> dict[str, Any]: ...

    def module(self) -> nn.Module:
        """A fresh network of this architecture."""
        ...

    def graph(self, params: Mapping[str, Tensor]) -> NeuralGraph:
        """The networks with parameters ``{name: [B, *shape]}`` as one ``NeuralGraph``, which can run them."""
        ...

    def forward(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs ``[B, K, out]`` of B networks on K inputs, shared (``[K, ...]``) or each its own (``[B, K, ...]``)."""
        ...


Factory = Callable[..., nn.Module]
Drop = Callable[[int, Tensor], Tensor]
F = TypeVar("F", bound=Factory)

_FACTORIES: dict[str, Factory] = {}


def register_architecture(name: str) -> Callable[[F], F]:
    """Decorator for a function (or module class) of JSON values that builds a network, so that files can name it.

    The module has an attribute ``input_shape``, the shape of one input such as ``(3, 32, 32)``, takes inputs
    ``[K, *input_shape]`` and returns ``[K, out]``.

    It may have a method ``forward_many(params, x, drop=None)`` that runs B networks on the same inputs faster than ``vmap``
    runs the module: from ``{name: [B, *shape]}`` and ``[K, *input_shape]`` to ``[B, K, out]``, in evaluation mode but for
    ``drop``, a function ``(place, values [B, rows, n]) -> values`` that it calls where networks are trained with dropout.
    """

    def register(factory: F) -> F:
        if name in _FACTORIES:
            raise UserError(f"an architecture named {name!r} is registered already")
        _FACTORIES[name] = factory
        return factory

    return register


@dataclass(frozen=True)
class ModuleArchitecture:
    """Any network that ``trace`` can read: a registered function's name and its arguments, plain JSON values.

    Implements ``Architecture``. The module is built and traced when its structure is first asked for, once per process. Its
    ``parameter_shapes`` are the floating-point tensors of its state dict, buffers included, tied ones under one name.
    Networks run in evaluation mode. Raises ``UserError`` for unknown names and for arguments that are no JSON values.
    """

    factory: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.factory not in _FACTORIES:
            known = ", ".join(sorted(_FACTORIES)) or "none"
            raise UserError(
                f"no architecture named {self.factory!r} is registered (known: {known}): import the code that registers it"
            )
        values = sorted((str(name), _frozen(value, f"{self.factory}: {name}")) for name, value in self.arguments)
        object.__setattr__(self, "arguments", tuple(values))

    def __str__(self) -> str:
        return f"{self.factory}({', '.join(f'{name}={_thawed(value)}' for name, value in self.arguments)})"

    def to_json(self) -> dict[str, Any]:
        arguments = {name: _thawed(value) for name, value in self.arguments}
        return {"kind": "module", "factory": self.factory, "arguments": arguments}

    @classmethod
    def from_json(cls, data: Any) -> ModuleArchitecture:
        """Inverse of ``to_json``; raises ``UserError`` when ``data`` does not describe a registered architecture."""
        if not isinstance(data, Mapping) or data.get("kind") != "module":
            raise UserError("this architecture is no module that this version can build")
        factory, arguments = data.get("factory"), data.get("arguments", {})
        if not isinstance(factory, str) or not isinstance(arguments, Mapping):
            raise UserError("the description of an architecture is broken: it needs a factory and its arguments")
        return cls(factory, tuple(arguments.items()))

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    @property
    def num_outputs(self) -> int:
        return _facts(self).outputs

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        return _facts(self).inputs

    @property
    def activations_used(self) -> tuple[str, ...]:
        hidden = [nodes.activation for nodes in _facts(self).graph.spec.node_sets if nodes.role == "hidden"]
        return tuple(dict.fromkeys(str(kind) for kind in hidden if kind.kind != "other"))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(_facts(self).shapes)

    # -- networks -----------------------------------------------------------------------------------------------------

    def module(self) -> nn.Module:
        try:
            found = _FACTORIES[self.factory](**{name: _thawed(value) for name, value in self.arguments})
        except TypeError as error:
            raise UserError(f"architecture {self}: {error}") from None
        if not isinstance(getattr(found, "input_shape", None), (tuple, list)):
            raise UserError(f"architecture {self}: the module does not say its input_shape, such as (3, 32, 32)")
        return found

    def graph(self, params: Mapping[str, Tensor]) -> NeuralGraph:
        """The networks with parameters ``{name: [B, *shape]}`` as one ``NeuralGraph``, which can run them.

        Raises ``UserError`` naming the first tensor that is missing or of another shape.
        """
        facts = _facts(self)
        like = params.get(next(iter(facts.shapes)))
        if like is None:  # let the check say what is missing
            return NeuralGraph.pack(facts.graph.spec, params)
        counts = {name: v.to(like.device).expand(len(like), *v.shape) for name, v in facts.integers.items()}
        return replace(NeuralGraph.pack(facts.graph.spec, {**counts, **params}), trace=facts.graph.trace)

    def forward(self, params: Mapping[str, Tensor], x: Tensor, drop: Drop | None = None) -> Tensor:
        """Outputs ``[B, K, out]`` of B networks on inputs ``[K, *input_shape]`` or ``[B, K, *input_shape]``.

        By the module's ``forward_many`` where it has one and the inputs are shared. ``drop`` is dropout, for it alone.
        """
        from neural_graphs.graph._responses import batchable

        facts = _facts(self)
        many = getattr(facts.module, "forward_many", None)
        if many is not None and x.dim() == len(facts.inputs) + 1:
            outputs: Tensor = many(params, x, drop)
            return outputs
        if drop is not None:
            raise UserError(
                f"architecture {self}: dropout takes a module with a method forward_many, and shared inputs"
            )
        state = {name: params[name] for name in facts.shapes}
        like = next(iter(state.values()))
        others = {
            name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            for name, value in facts.module.named_buffers()
            if name not in state
        }

        def run(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(facts.module, {**others, **own}, (inputs,))
            return found

        each = x.dim() == len(facts.inputs) + 2
        try:
            with batchable():
                return torch.func.vmap(run, (0, 0 if each else None))(state, x)
        except RuntimeError:  # an operator that vmap cannot batch, or an in-place one on what all networks share
            networks = ({name: value[b] for name, value in state.items()} for b in range(len(like)))
            with batchable():
                return torch.stack([run(own, x[b] if each else x.clone()) for b, own in enumerate(networks)])


class _Facts(NamedTuple):
    module: nn.Module
    graph: NeuralGraph
    shapes: dict[str, tuple[int, ...]]
    integers: dict[str, Tensor]
    inputs: tuple[int, ...]
    outputs: int


@lru_cache(maxsize=1024)
def _facts(architecture: ModuleArchitecture) -> _Facts:
    """The module in evaluation mode and its graph."""
    from neural_graphs.graph._trace import trace_module

    with torch.random.fork_rng(devices=[]):  # building it draws weights; whoever asks should not notice
        module = architecture.module().eval()
    inputs = tuple(map(int, module.input_shape))  # type: ignore[arg-type]
    example = torch.zeros(2, *inputs)
    with torch.no_grad():
        outputs = module(example)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != 2:
        raise UserError(f"architecture {architecture}: the module must return one tensor [K, out]")
    graph = trace_module(module, example)
    state = module.state_dict()
    own = {name: value for name, value in state.items() if name not in graph.spec.canonical}
    shapes = {name: tuple(value.shape) for name, value in own.items() if value.is_floating_point()}
    integers = {name: value for name, value in own.items() if name not in shapes}
    return _Facts(module, graph, shapes, integers, inputs, outputs.shape[1])


def architecture_from_json(data: Any) -> Architecture:
    """The architecture that ``to_json`` of a ``Stack`` or a ``ModuleArchitecture`` described.

    Nothing in ``data`` is run: a module is built by a function that is registered under the name that ``data`` gives, from
    numbers, texts and lists of them. Raises ``UserError`` when ``data`` describes neither.
    """
    if isinstance(data, Mapping) and data.get("kind") == "module":
        return ModuleArchitecture.from_json(data)
    return Stack.from_json(data)


def _frozen(value: Any, what: str) -> Any:
    """Lists become tuples, which can be hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(entry, what) for entry in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{what} is of type {type(value).__name__}: give numbers, texts, or lists of them")


def _thawed(value: Any) -> Any:
    return [_thawed(entry) for entry in value] if isinstance(value, tuple) else value
