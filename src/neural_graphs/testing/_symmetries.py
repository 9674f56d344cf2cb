"""An assertion that the symmetries the tracer finds in a module do not change what it computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, trace
from neural_graphs.graph._check import SymmetryReport

KINDS = ("permutation", "scale", "sign", "phase")


def assert_symmetries(
    module: nn.Module,
    example_input: Any,
    *,
    samples: int = 4,
    seed: int = 0,
    tolerance: float | None = 1e-10,
    kinds: Collection[str] = KINDS,
    dtype: torch.dtype = torch.float64,
    moves: bool = False,
) -> SymmetryReport:
    """Trace ``module`` and hold it to its own symmetries: no random group element changes its outputs.

    ``example_input`` is a tensor, a tuple of positional or a dictionary of keyword arguments. The module runs in ``dtype``
    and evaluation mode and stays as it is. All ``kinds`` are applied together, ``samples`` times; ``tolerance`` is the
    largest change relative to an output's largest entry, None that of ``NeuralGraph.check``, which knows float32. Tensors
    whose entries are all the same, as those of a new normalisation layer, would hide errors: they get noise meanwhile. The
    graph must give the state dict back exactly, too. With ``moves`` the module must have a symmetry at all, and tensors
    left out of the permutation must show. Returns the report of the check.

    A module that jumps (``argmax``, ``round``, a comparison) exactly where two of its values are equal may fail although its
    group is right: rounding then decides.

    Raises:
        AssertionError: the function changes (with the smallest part of the group to blame), or the state dict does.
        UserError: the module cannot be traced or does not run.

    ::

        def test_my_network_is_traced_right():
            net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
            assert_symmetries(net, torch.randn(3, 4), moves=True)
    """
    graph = trace(module, example_input)
    _assert_exact(graph, module)
    graph = _shaken(graph, seed)
    options: dict[str, Any] = {"samples": samples, "seed": seed, "dtype": dtype, "tolerance": tolerance}
    report = graph.check(module, example_input, kinds=kinds, controls=16 if moves else 0, **options)
    assert report.error <= report.tolerance, _blame(graph, module, example_input, report, kinds, options)
    if moves:
        assert report.group != "trivial", "the tracer finds no symmetry in this module"
        assert report.passed, f"this proves nothing: {report}"
    return report


def _assert_exact(graph: NeuralGraph, module: nn.Module) -> None:
    expected, found = module.state_dict(), graph.to_state_dict()
    assert list(expected) == list(found), f"the graph's tensors are {list(found)}, the module's {list(expected)}"
    for name, value in expected.items():
        same = value.dtype == found[name].dtype and _equal(value, found[name])
        assert same, f"the graph does not give {name} back exactly"


def _shaken(graph: NeuralGraph, seed: int) -> NeuralGraph:
    """The network with noise in [0, 0.2] on tensors that are constant: symmetries hold whatever the weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: value for name, value in graph.to_state_dict(batched=True).items() if name not in graph.spec.canonical
    }
    for name, value in state.items():
        if value.is_floating_point() and value.numel() > 1 and (value == value.flatten()[0]).all():
            state[name] = value + 0.2 * torch.rand(value.shape, generator=generator).to(value)
    return graph.like(state, batched=True)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _blame(
    graph: NeuralGraph,
    module: nn.Module,
    example: Any,
    report: SymmetryReport,
    kinds: Collection[str],
    options: Mapping[str, Any],
) -> str:
    """What to say of a failure: which kind, and of the permutations which class, does it alone."""
    found = f"the traced symmetries change what the module computes: {report}"
    for kind in kinds:
        try:
            alone = graph.check(module, example, kinds=(kind,), controls=0, **options)
        except UserError:
            continue
        if alone.error > alone.tolerance:
            found += f"; the {kind}s alone by {alone.error:.1e}"
    for name in graph.symmetries.classes:
        alone = graph.check(module, example, kinds=("permutation",), controls=0, classes=(name,), **options)
        if alone.error > alone.tolerance:
            axes = [
                f"{parameter} axis {dim}"
                for parameter, parts in graph.symmetries.axes
                for dim, axis in enumerate(parts)
                if name in dict(axis.classes)
            ]
            return f"{found}; to blame is class {name} on {', '.join(axes)}"
    return found
