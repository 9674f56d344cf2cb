"""Which architecture a bare state dict has, and what a zoo's architectures say about an encoder's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, GraphSpec, Stack, spec_of_stack, stack_from_shapes
from neural_graphs.graph._activation import KINDS
from neural_graphs.graph._structure import BLOCK_KINDS
from neural_graphs.nn import list_encoders
from neural_graphs.nn._registry import _ENCODERS
from neural_graphs.nn._slots import BIAS_ONLY, extent_of, single_inputs, slots_of
from neural_graphs.nn._statnn import depth

if TYPE_CHECKING:
    from neural_graphs.graph import Architecture

PLAIN_KINDS = {"linear", "conv", "identity"}
"""Kinds of blocks that encoders read without being told."""


def recognise(
    state_dict: Mapping[str, Tensor], known: Sequence[Architecture], activation: str | Activation | None = None
) -> Architecture:
    """The architecture of a network that says nothing but names and shapes.

    One of ``known`` with these names and shapes (of floating-point tensors); else the plain stack of these shapes with the
    hidden activation, output activation and shift that all stacks among ``known`` share. ``activation`` overrules and tells
    known ones apart.

    Raises:
        UserError: several known architectures fit, or none does and they differ in their activations.
    """
    shapes = {name: tuple(value.shape) for name, value in state_dict.items() if value.is_floating_point()}
    wanted = Activation.parse(activation) if activation is not None else None
    fitting = [
        architecture
        for architecture in dict.fromkeys(known)
        if architecture.parameter_shapes() == shapes and (wanted is None or _hidden([architecture]) <= {wanted})
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            "the file's tensors fit several architectures that this model was trained on "
            f"({'; '.join(map(str, fitting[:4]))}): say which non-linearity the network has"
        )
    stacks = [architecture for architecture in known if isinstance(architecture, Stack)]
    kinds = {wanted} if wanted else _hidden(stacks)
    last = {stack.layers[-1].activation for stack in stacks}
    shifts = {stack.shift for stack in stacks}
    if len(kinds) != 1 or len(last) > 1 or len(shifts) > 1:
        raise UserError(
            f"the network's architecture is none that this model was trained on ({'; '.join(map(str, known[:4]))}), and its "
            "tensors do not say its non-linearity"
        )
    stack = stack_from_shapes(shapes, kinds.pop(), shifts.pop() if shifts else 0.0)
    output = last.pop() if last else Activation()
    return replace(stack, layers=(*stack.layers[:-1], replace(stack.layers[-1], activation=output)))


def _hidden(architectures: Iterable[Architecture]) -> set[Activation]:
    return {Activation.parse(text) for architecture in architectures for text in architecture.activations_used}


def encoder_arguments(encoder: Mapping[str, Any], architectures: Sequence[Architecture], seed: int) -> dict[str, Any]:
    """``encoder`` (name and arguments) completed with what the zoo determines, where the encoder has such an argument.

    That is ``inputs``, ``outputs``, ``parameters``, ``probe_shape`` (for probes of networks that read images of one size),
    ``kernel``, ``max_io``, ``max_layers``; ``node_features`` and ``block_kinds`` where the zoo holds networks that are more
    than weights, biases and residuals; and ``activations`` where it says ``"auto"``: those of hidden neurons in the zoo.

    Raises:
        UserError: unknown encoder; the zoo's networks differ in what the encoder fixes.
    """
    name = encoder.get("name")
    if name not in list_encoders():
        raise UserError(f"unknown encoder {name!r}: choose one of {', '.join(list_encoders())}")
    accepted = inspect.signature(_ENCODERS[name]).parameters
    missing = [key for key in accepted if key not in encoder]
    specs = [structure(architecture) for architecture in architectures]
    facts = {"seed": seed, **_sizes(specs), **_readings(specs)}
    inputs = {spec.num_inputs for spec in specs}
    outputs = {spec.num_outputs for spec in specs}
    probes = encoder.get("probes", accepted["probes"].default if "probes" in accepted else name == "combined")
    if len(inputs) == 1:
        facts["inputs"] = next(iter(inputs))
    elif encoder.get("probes"):
        raise UserError("probe features need networks with the same number of inputs: set encoder.probes=0")
    if probes and "probe_shape" in missing and (shape := _image_shape(architectures)) is not None:
        facts["probe_shape"] = shape
    if len(outputs) == 1:
        facts["outputs"] = next(iter(outputs))
    if "parameters" in missing:
        if len(architectures) != 1:
            raise UserError(
                f"encoder {name} reads networks of one architecture, this zoo holds {len(architectures)}: choose another one"
            )
        facts["parameters"] = architectures[0].num_parameters
    used = {nodes.activation.kind for spec in specs for nodes in spec.node_sets if nodes.role == "hidden"}
    encoder = _with_activations(encoder, [kind for kind in (*KINDS, "other") if kind in used])
    return {**encoder, **{key: facts[key] for key in missing if key in facts}}


def _with_activations(encoder: Mapping[str, Any], used: list[str]) -> dict[str, Any]:
    """``encoder``, and the parts of a combined one, with those ``used`` where it says "auto"."""
    found = {**encoder, "activations": used} if encoder.get("activations") == "auto" else dict(encoder)
    if isinstance(found.get("parts"), Sequence):
        found["parts"] = [
            _with_activations(part, used) if isinstance(part, Mapping) else part for part in found["parts"]
        ]
    return found


def structure(architecture: Architecture) -> GraphSpec:
    """The structure that networks of an architecture have as graphs."""
    if isinstance(architecture, Stack):
        return spec_of_stack(architecture)
    return architecture.graph({k: torch.zeros(0, *shape) for k, shape in architecture.parameter_shapes().items()}).spec


def _sizes(specs: Sequence[GraphSpec]) -> dict[str, Any]:
    """Kernel, rows for inputs and outputs, and layers, each as large as the largest needs."""
    extents = {(block.features, block.kernel) for spec in specs for block in spec.blocks if block.features}
    shapes = [(1, 1), *(extent_of(*extent) for extent in extents)]
    return {
        "kernel": [max(height for height, _ in shapes), max(width for _, width in shapes)],
        "max_io": max(16, *map(single_inputs, specs), *(spec.num_outputs for spec in specs)),
        "max_layers": max(map(depth, specs)),
    }


def _readings(specs: Sequence[GraphSpec]) -> dict[str, Any]:
    """``node_features`` and ``block_kinds`` where the defaults are not enough."""
    facts: dict[str, Any] = {}
    slots = {slot for spec in specs for nodes in spec.node_sets for slot in slots_of(nodes)}
    if slots - set(BIAS_ONLY):
        facts["node_features"] = [*BIAS_ONLY, *sorted(slots - set(BIAS_ONLY))]
    kinds = {block.kind for spec in specs for block in spec.blocks}
    if kinds - PLAIN_KINDS:
        facts["block_kinds"] = [kind for kind in BLOCK_KINDS if kind in kinds]
    return facts


def _image_shape(architectures: Sequence[Architecture]) -> list[int] | None:
    """``[c, h, w]`` of images that all networks read, if they say so."""
    shapes = {architecture.input_shape for architecture in architectures}
    sized = [shape for shape in shapes if None not in shape]
    if len(sized) != 1 or any(len(shape) != 3 or shape[0] != sized[0][0] for shape in shapes):
        return None
    return [size for size in sized[0] if size is not None]
