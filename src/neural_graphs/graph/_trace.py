"""From a module to a neural graph: plain stacks by their layers, everything else by recording what it computes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._plain import stack_from_module
from neural_graphs.graph._structure import GraphSpec

if TYPE_CHECKING:  # recording a module needs much of torch that a plain stack does without
    from neural_graphs.graph._build import Response
    from neural_graphs.graph._capture import Captured


@dataclass(frozen=True, eq=False)
class Trace:
    """How a neural graph was found: the recorded operators, and where each node set's response stands among them.

    ``frozen`` counts the operators that had no rule for what they do here: all axes that they touch stay fixed. ``route``
    is "export", or "make_fx" where the module decides on values of its data and only the path taken was recorded.
    """

    captured: Captured = field(repr=False)
    responses: dict[int, Response] = field(repr=False)
    frozen: dict[str, int]
    known: dict[str, Any] = field(default_factory=dict, repr=False)
    """Programs that run the record, made when first needed."""

    @property
    def route(self) -> Literal["export", "make_fx"]:
        return self.captured.route


def trace(module: nn.Module, example_input: Any = None) -> NeuralGraph:
    """The neural graph of any module that ``torch.export`` can read: one network, batch size 1, weights by reference.

    ``example_input`` is a tensor, a tuple of positional arguments or a dictionary of keyword arguments; its values do not
    matter, its shapes do. Plain stacks (``nn.Sequential`` of Linear, Conv2d, activations, pooling, Flatten) do without; if
    one is given to them, the stack is run on it and compared with the module. The module is put into evaluation mode
    meanwhile; on the ``meta`` device it needs no weights.

    The symmetry group (``graph.symmetries``) is found by propagating axis types through the recorded operators, one rule
    per operator; what an operator without a rule touches is fixed and reported in ``graph.trace.frozen``. ``graph.check``
    verifies it numerically.

    Raises:
        UserError: the module cannot be recorded, the example does not fit, or it is missing where it is needed.
    """
    try:
        stack = stack_from_module(module)
    except UserError as error:
        if example_input is None:
            raise UserError(
                f"{error}; with an example input, as in trace(module, torch.rand(1, 3, 224, 224)), any module is traced"
            ) from None
        return trace_module(module, example_input)
    state = {name: value.detach() for name, value in module.state_dict().items()}
    graph = NeuralGraph.from_state_dict(state, stack=stack)
    hollow = any(value.is_meta for value in state.values())
    if example_input is None or hollow or _computes(graph, module, example_input):
        return graph
    return trace_module(module, example_input)


def trace_module(module: nn.Module, example_input: Any) -> NeuralGraph:
    """``trace`` by recording, for plain stacks too."""
    from neural_graphs.graph._build import build
    from neural_graphs.graph._capture import capture
    from neural_graphs.graph._propagate import propagate
    from neural_graphs.graph._rescale import find_rescalings

    captured = capture(module, example_input)
    found = propagate(captured)
    graph, responses = build(captured, found)
    spec = replace(
        graph.spec.symmetries,
        activations=_activations(graph.spec),
        rescalings=find_rescalings(captured, found),
    )
    return replace(
        graph,
        spec=replace(graph.spec, symmetries=spec),
        trace=Trace(captured, responses, found.frozen_ops),
    )


def _activations(spec: GraphSpec) -> tuple[tuple[str, Activation], ...]:
    """The non-linearity behind each class: that of the first node set with one that is made of the class."""
    found: dict[str, Activation] = {name: Activation() for name in spec.symmetries.classes}
    for nodes in spec.node_sets:
        for name, _ in nodes.axis.classes:
            if found[name].kind == "none":
                found[name] = nodes.activation
    return tuple(found.items())


def _computes(graph: NeuralGraph, module: nn.Module, example: Any) -> bool:
    """Whether a stack read off its layers computes what the module does: hooks and subclasses may add to it."""
    if isinstance(example, tuple) and len(example) == 1:
        example = example[0]
    if not isinstance(example, Tensor):
        raise UserError("a plain stack of layers takes one tensor as its example input")
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            expected, found = module(example), graph.run(example)[0]
    except RuntimeError as error:
        raise UserError(f"the module does not run on this example input: {str(error).splitlines()[0]}") from None
    finally:
        module.train(training)
    tolerance = 1e-3 * (1 + expected.abs().max())
    return expected.shape == found.shape and bool((expected - found).abs().max() <= tolerance)
