"""Numerical verification of symmetry claims: permute the real network, run it, compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._spec import Element, PermutationSpec


@dataclass(frozen=True)
class SymmetryReport:
    """What ``NeuralGraph.check`` measured. Errors are max |difference| relative to max |output| (``error``) over
    ``samples`` group elements; ``control`` is the smallest error seen when one tensor is left unpermuted."""

    group: str
    samples: int
    error: float
    control: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """The group leaves the function alone, and the test would have noticed a wrong one."""
        return self.error <= self.tolerance and (self.control > 10 * self.tolerance or self.group == "trivial")

    def __str__(self) -> str:
        verdict = "holds" if self.passed else "FAILS"
        return (
            f"{self.group} {verdict}: {self.samples} random elements change the output by at most {self.error:.1e} "
            f"(tolerance {self.tolerance:.0e}); leaving one tensor unpermuted changes it by at least {self.control:.1e}"
        )


def check_symmetries(
    graph: NeuralGraph,
    module: nn.Module | None = None,
    inputs: Tensor | None = None,
    samples: int = 4,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> SymmetryReport:
    """Draw group elements, apply them to the network's own state dict, rerun it and report the largest relative error.

    Runs in float64. With ``module`` the real module is rerun (it must hold the parameters' names and stays unchanged);
    without it the graph's own stack. ``inputs`` defaults to 64 random points (for stacks that start with a convolution,
    pass images). The negative control applies the same elements to every tensor but one, for each tensor that the element
    moves in turn; a check that could not fail would show a control of 0.
    """
    spec = graph.symmetries
    generator = torch.Generator().manual_seed(seed)
    first = graph[0]
    state = {name: value.detach().double() for name, value in first.to_state_dict().items()}
    if inputs is None:
        if graph.spec.blocks[0].kernel:
            raise UserError("give example inputs [K, c, h, w] to check a convolutional network")
        inputs = torch.rand(64, graph.spec.num_inputs, generator=generator, dtype=torch.float64) * 2 - 1
    inputs = inputs.double()

    def run(params: dict[str, Tensor]) -> Tensor:
        if module is None:
            return first._runnable().forward({k: v.unsqueeze(0) for k, v in params.items()}, inputs)[0]
        rest = {k: v.double() for k, v in module.state_dict().items() if k not in params and v.is_floating_point()}
        return functional_call(module, {**params, **rest}, (inputs,))

    training = module.training if module is not None else False
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            reference = run(state)
            size = reference.abs().max().clamp_min(1e-300)
            error, control = 0.0, float("inf")
            for _ in range(samples):
                element = _draw(spec, generator)
                moved = spec.apply(state, element)
                error = max(error, _finite((run(moved) - reference).abs().max() / size))
                for name, axes in spec.axes:
                    if any(axis.moves for axis in axes) and not torch.equal(moved[name], state[name]):
                        wrong = run({**moved, name: state[name]})
                        control = min(control, _finite((wrong - reference).abs().max() / size))
    finally:
        if module is not None:
            module.train(training)
    group = str(spec) if spec.log10_order > 0 else "trivial"
    return SymmetryReport(group, samples, error, 0.0 if control == float("inf") else control, tolerance)


def _draw(spec: PermutationSpec, generator: torch.Generator) -> Element:
    """A random element; not the identity, which shows nothing, unless there is no other."""
    while True:
        element = spec.sample(generator)
        moves = any(not torch.equal(index, index.sort().values) for index in element.values())
        if moves or spec.log10_order == 0:
            return element


def _finite(difference: Tensor) -> float:
    """A network that gives NaN is never equal to anything."""
    value = float(difference)
    return float("inf") if math.isnan(value) else value
