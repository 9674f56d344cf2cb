"""Numerical verification of symmetry claims: permute the real network, run it, compare."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from neural_graphs.errors import UserError
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._spec import Element, PermutationSpec

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative change that counts as rounding, for the coarsest dtype that the network computes in."""

Run = Callable[[dict[str, Tensor]], list[Tensor]]
"""A network's floating-point outputs with the given tensors."""


@dataclass(frozen=True)
class SymmetryReport:
    """What ``NeuralGraph.check`` measured. Errors are max |difference| relative to max |output| (``error``) over
    ``samples`` group elements; ``control`` is the smallest error seen when one tensor that they move is left as it was.

    ``inert`` names tensors whose being left changes nothing, because the output does not depend on them (the bias of
    attention's keys, which the softmax cancels) or not on their order (a bias before a sum): they show nothing.
    ``dtype`` is the coarsest one in which the network computes.
    """

    group: str
    samples: int
    error: float
    control: float
    tolerance: float
    inert: tuple[str, ...] = ()
    dtype: str = "float64"

    @property
    def passed(self) -> bool:
        """The group leaves the function alone, and the test would have noticed a wrong one."""
        return self.error <= self.tolerance and (self.control > 10 * self.tolerance or self.group == "trivial")

    def __str__(self) -> str:
        verdict = "holds" if self.passed else "FAILS"
        if self.error <= self.tolerance and not self.passed:
            return (
                f"{self.group} is neither shown nor refuted: {self.samples} random elements change the output by at most "
                f"{self.error:.1e} (tolerance {self.tolerance:.0e}, {self.dtype}), but so does leaving one tensor as it was"
            )
        return (
            f"{self.group} {verdict}: {self.samples} random elements change the output by at most {self.error:.1e} "
            f"(tolerance {self.tolerance:.0e}, {self.dtype}); leaving one tensor as it was changes it by at least "
            f"{self.control:.1e}"
        )


def check_symmetries(
    graph: NeuralGraph,
    module: nn.Module | None = None,
    inputs: Any = None,
    samples: int = 4,
    seed: int = 0,
    tolerance: float | None = None,
    kinds: Collection[str] = ("permutation",),
    controls: int = 16,
    dtype: torch.dtype = torch.float64,
    classes: Collection[str] | None = None,
) -> SymmetryReport:
    """Draw group elements, apply them to the network's own state dict, rerun it and report the largest relative error.

    Runs in ``dtype``, in evaluation mode. With ``module`` the real module is rerun (it must hold the parameters' names and
    stays unchanged) on ``inputs``: a tensor, a tuple of positional arguments or a dictionary of keyword arguments; without
    it the graph's own stack, on 64 random points by default (for stacks that start with a convolution, pass images).
    ``kinds`` are those of ``PermutationSpec.sample``; with ``classes`` only these are permuted. ``tolerance`` defaults to
    1e-9, or 1e-4 for float32; steps that cast to float32 compute in ``dtype`` all the same.

    The negative control applies the same elements to every tensor but one, for up to ``controls`` of the tensors that the
    element moves in turn; a check that could not fail would show a control of 0. Tensors whose being left changes
    nothing are ``inert`` and do not count; where an element moves one tensor only, its entries are shuffled instead.
    Raises ``UserError`` when the network does not run.
    """
    generator = torch.Generator().manual_seed(seed)
    first = graph[0]
    spec, tied = graph.symmetries, graph.spec.canonical
    state = {name: _cast(value.detach(), dtype) for name, value in first.to_state_dict().items() if name not in tied}
    if inputs is None:
        if graph.stack is None or graph.spec.blocks[0].kernel:
            raise UserError(
                "give example inputs (such as [K, c, h, w] for a convolutional network) to check this network"
            )
        inputs = torch.rand(64, graph.spec.num_inputs, generator=generator, dtype=torch.float64) * 2 - 1
    inputs = pytree.tree_map(lambda value: _cast(value, dtype), inputs)
    known = set(graph.spec.shapes)
    run = _module_runner(module, inputs, known, dtype) if module is not None else _stack_runner(first, inputs)
    with torch.no_grad(), _evaluation(module), Precision(dtype) as precision:
        reference = run(state)
        if not reference:
            raise UserError("the network has no floating-point output that could be compared")
        coarsest = max(precision.found & TOLERANCES.keys(), key=TOLERANCES.__getitem__, default=dtype)
        tolerance = TOLERANCES[coarsest] if tolerance is None else tolerance
        error, control, noticed = 0.0, float("inf"), dict[str, bool]()
        for _ in range(samples):
            element = _draw(spec, generator, kinds, classes)
            moved = spec.apply(state, element)
            error = max(error, _change(reference, run(moved)))
            names = [name for name in state if not torch.equal(moved[name], state[name])]
            for name in names[:: max(1, -(-len(names) // controls))] if controls else ():
                alone = len(names) == 1
                wrong = [_shuffled(state[name], generator) for _ in range(8)] if alone else [state[name]]
                change = max(_change(reference, run({**moved, name: value})) for value in wrong)
                noticed[name] = noticed.get(name, False) or change > 10 * tolerance
                if change > 10 * tolerance:
                    control = min(control, change)
    return SymmetryReport(
        _group(spec, kinds),
        samples,
        error,
        0.0 if control == float("inf") else control,
        tolerance,
        tuple(name for name, found in noticed.items() if not found),
        str(coarsest).removeprefix("torch."),
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _stack_runner(graph: NeuralGraph, inputs: Tensor) -> Run:
    stack = graph._runnable()
    return lambda state: [stack.forward({name: value.unsqueeze(0) for name, value in state.items()}, inputs)[0]]


def _module_runner(module: nn.Module, inputs: Any, known: set[str], dtype: torch.dtype) -> Run:
    """Runs ``module`` with the given tensors; all its others (buffers outside the state dict) in the same dtype. Buffers
    are copied, as the module may write to them."""
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    others = {
        name: _cast(value.detach(), dtype)
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if name not in known
    }

    buffers = {name for name, _ in module.named_buffers()}

    def run(state: dict[str, Tensor]) -> list[Tensor]:
        tensors = {name: value.clone() if name in buffers else value for name, value in {**others, **state}.items()}
        try:
            found = functional_call(module, tensors, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"the network does not run on this input: {' '.join(str(error).split())}") from error
        return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    return run


@contextlib.contextmanager
def _evaluation(module: nn.Module | None) -> Iterator[None]:
    """``module`` in evaluation mode, without the fast path of attention, which reads the module's own weights."""
    training = [child for child in module.modules() if child.training] if module is not None else []
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for child in training:
        child.training = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for child in training:
            child.training = True


class Precision(TorchDispatchMode):
    """While it is on, ``float64`` networks compute in float64 throughout, and the dtypes of all results are collected.

    Many language models compute their norms, softmaxes and rotary angles in float32 whatever their weights are; a check in
    float64 would then measure the rounding of those steps, so they are given what they ask for in double precision.
    ``found`` holds the floating-point dtypes of everything larger than a number.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": self.dtype}
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
                self.found.add(value.dtype)
        return result


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference relative to the largest entry, over all outputs; a network that gives NaN is never equal."""
    found = [
        float((b - a).abs().max() / a.abs().max().clamp_min(1e-300))
        for a, b in zip(before, after, strict=True)
        if a.numel()
    ]
    return max(float("inf") if math.isnan(value) else value for value in found) if found else 0.0


def _shuffled(value: Tensor, generator: torch.Generator) -> Tensor:
    return value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)


def _group(spec: PermutationSpec, kinds: Collection[str]) -> str:
    counts = Counter(rescaling.kind for rescaling in spec.rescalings if rescaling.kind in kinds)
    parts = [str(spec)] if "permutation" in kinds and spec.log10_order > 0 else []
    return " and ".join([*parts, *(f"{count} x {kind}" for kind, count in counts.items())]) or "trivial"


def _draw(
    spec: PermutationSpec, generator: torch.Generator, kinds: Collection[str], classes: Collection[str] | None
) -> Element:
    """A random element; not the identity, which shows nothing, unless there is no other."""
    still = spec.identity()
    resting = set() if classes is None else still.keys() - set(classes)
    movable = any(size > 1 for name, size in spec.classes.items() if name not in resting)
    while True:
        element = spec.sample(generator, kinds=kinds)
        element |= {name: still[name] for name in resting & element.keys()}
        if any(not torch.equal(value, still.get(key, torch.ones_like(value))) for key, value in element.items()):
            return element
        if not movable or _group(spec, kinds) == "trivial":
            return element
