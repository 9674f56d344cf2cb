"""Which architecture a bare state dict has, and what a zoo's architectures say about an encoder's arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Stack, spec_of_stack, stack_from_shapes
from neural_graphs.nn import list_encoders
from neural_graphs.nn._registry import _ENCODERS
from neural_graphs.nn._statnn import depth


def recognise(
    state_dict: Mapping[str, Tensor], known: Sequence[Stack], activation: str | Activation | None = None
) -> Stack:
    """The architecture of a network that says nothing but names and shapes.

    One of ``known`` with these names and shapes; else the plain stack of these shapes with the hidden activation, output
    activation and shift that all of ``known`` share. ``activation`` overrules and tells known ones apart.

    Raises:
        UserError: several known architectures fit, or none does and they differ in their activations.
    """
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    wanted = Activation.parse(activation) if activation is not None else None
    fitting = [
        stack
        for stack in dict.fromkeys(known)
        if stack.parameter_shapes() == shapes and (wanted is None or _hidden([stack]) <= {wanted})
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            "the file's tensors fit several architectures that this model was trained on "
            f"({'; '.join(map(str, fitting[:4]))}): say which non-linearity the network has"
        )
    kinds = {wanted} if wanted else _hidden(known)
    last = {stack.layers[-1].activation for stack in known}
    shifts = {stack.shift for stack in known}
    if len(kinds) != 1 or len(last) > 1 or len(shifts) > 1:
        raise UserError(
            f"the network's architecture is none that this model was trained on ({'; '.join(map(str, known[:4]))}), and its "
            "tensors do not say its non-linearity"
        )
    stack = stack_from_shapes(shapes, kinds.pop(), shifts.pop() if shifts else 0.0)
    output = last.pop() if last else Activation()
    return replace(stack, layers=(*stack.layers[:-1], replace(stack.layers[-1], activation=output)))


def _hidden(stacks: Iterable[Stack]) -> set[Activation]:
    return {layer.activation for stack in stacks for layer in stack.layers[:-1]}


def encoder_arguments(encoder: Mapping[str, Any], architectures: Sequence[Stack], seed: int) -> dict[str, Any]:
    """``encoder`` (name and arguments) completed with what the zoo determines, where the encoder has such an argument.

    Raises:
        UserError: unknown encoder; the zoo's networks differ in what the encoder fixes.
    """
    name = encoder.get("name")
    if name not in list_encoders():
        raise UserError(f"unknown encoder {name!r}: choose one of {', '.join(list_encoders())}")
    accepted = inspect.signature(_ENCODERS[name]).parameters
    missing = [key for key in accepted if key not in encoder]
    facts: dict[str, Any] = {"seed": seed}
    inputs = {stack.layers[0].inputs for stack in architectures}
    outputs = {stack.layers[-1].outputs for stack in architectures}
    sizes = {stack.num_parameters for stack in architectures}
    if len(inputs) == 1:
        facts["inputs"] = next(iter(inputs))
    elif encoder.get("probes"):
        raise UserError("probe features need networks with the same number of inputs: set encoder.probes=0")
    if len(outputs) == 1:
        facts["outputs"] = next(iter(outputs))
    facts["kernel"] = list(_largest_kernel(architectures))
    facts["max_io"] = max(16, *inputs, *outputs)
    facts["max_layers"] = max(depth(spec_of_stack(stack)) for stack in architectures)
    if "parameters" in missing:
        if len(architectures) != 1:
            raise UserError(
                f"encoder {name} reads networks of one architecture, this zoo holds {len(architectures)}: choose another one"
            )
        facts["parameters"] = next(iter(sizes))
    return {**encoder, **{key: facts[key] for key in missing if key in facts}}


def _largest_kernel(architectures: Sequence[Stack]) -> tuple[int, int]:
    height = width = 1
    for stack in architectures:
        for block in spec_of_stack(stack).blocks:
            side = math.isqrt(block.features)
            kh, kw = (block.kernel[0], block.kernel[1]) if block.kernel else (side, side)
            height, width = max(height, kh), max(width, kw)
    return height, width
