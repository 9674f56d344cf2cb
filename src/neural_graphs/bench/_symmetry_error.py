"""How much a network's output changes under elements of the group found for it, and with an error put in on purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from neural_graphs.graph import PermutationSpec

State = dict[str, Tensor]

_NOTHING = 1e-9
"""A change of the output, relative to its size, that float64 rounding can make."""


@dataclass(frozen=True)
class Control:
    """Negative control: ``error`` is the smallest change seen when one moved tensor is left as it was (``tensor``), of
    ``tried`` of them. ``inert`` names tensors on which the output does not depend at all (the bias of attention's keys,
    which the softmax cancels, or of a convolution before a normalisation): leaving those as they were shows nothing."""

    error: float = math.inf
    tensor: str = ""
    tried: int = 0
    inert: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A module on one example input, run with changed weights; in evaluation mode, in the module's own dtype."""

    module: nn.Module
    example: Any
    state: State = field(init=False)
    output: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        kept = self.module.state_dict().keys()
        named = (*self.module.named_parameters(), *self.module.named_buffers())  # the first name of tied ones only
        object.__setattr__(self, "state", {name: value.detach() for name, value in named if name in kept})
        object.__setattr__(self, "output", self.run(self.state))

    def run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Every floating-point tensor that the module returns with these weights."""
        args = self.example if isinstance(self.example, tuple) else (self.example,)
        kwargs = self.example if isinstance(self.example, dict) else {}
        with torch.no_grad():
            found = functional_call(self.module, dict(state), () if kwargs else args, kwargs)
        return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def change(self, state: Mapping[str, Tensor]) -> float:
        """The largest difference to the module's output, relative to the largest entry; infinite for NaN."""
        changes = [
            float((after - before).abs().max() / before.abs().max().clamp_min(1e-300))
            for before, after in zip(self.output, self.run(state), strict=True)
        ]
        return max(math.inf if math.isnan(change) else change for change in changes)


def cast(module: nn.Module, example: Any, dtype: torch.dtype) -> Network:
    """``module`` (in place) and its example input in another floating-point dtype."""

    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return Network(module.to(dtype), pytree.tree_map(convert, example))


def permutation_error(network: Network, spec: PermutationSpec, samples: int, seed: int = 0) -> float:
    """The largest change under ``samples`` random permutations of all classes."""
    generator = torch.Generator().manual_seed(seed)
    return max(network.change(spec.apply(network.state, spec.sample(generator))) for _ in range(samples))


def rescaling_errors(network: Network, spec: PermutationSpec, samples: int, seed: int = 0) -> dict[str, float]:
    """For every kind of rescaling that ``spec`` lists the largest change under random ones, all classes at once."""
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: max(
            network.change(spec.apply(network.state, spec.sample(generator, kinds=(kind,)))) for _ in range(samples)
        )
        for kind in dict.fromkeys(rescaling.kind for rescaling in spec.rescalings)
    }


def negative_control(network: Network, spec: PermutationSpec, tensors: int | None = None, seed: int = 0) -> Control:
    """One random permutation of all classes, applied to all tensors but one; for each tensor that it moves in turn, or,
    with ``tensors``, for that many of them, spread evenly."""
    state = network.state
    moved = spec.apply(state, spec.sample(seed))
    names = [name for name, value in state.items() if not torch.equal(moved[name], value)]
    if tensors is not None and len(names) > tensors:
        names = [names[k * len(names) // tensors] for k in range(tensors)]
    worst, inert = Control(), []
    for name in names:
        error = network.change({**moved, name: state[name]})
        if error < _NOTHING and _is_inert(network, name):
            inert.append(name)
        elif error < worst.error:
            worst = Control(error, name)
    return Control(worst.error, worst.tensor, len(names), tuple(inert))


def _is_inert(network: Network, name: str) -> bool:
    value = network.state[name]
    generator = torch.Generator().manual_seed(0)
    if not value.is_floating_point():
        return False
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    return network.change({**network.state, name: value + noise}) < _NOTHING
