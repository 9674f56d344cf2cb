"""The table of architectures: what the tracer finds for each, and whether the network agrees."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs._progress import progress
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.bench._trace_models import LANGUAGE, VISION, require
from neural_graphs.bench._trace_nets import SMALL, Factory
from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph
from neural_graphs.graph._trace import trace_module

SETS: dict[str, dict[str, Factory]] = {"small": SMALL, "vision": VISION, "language": LANGUAGE}
BAR_FP64, BAR_FP32 = 1e-10, 1e-4
"""Largest relative change of the output that counts as rounding."""

_CONTROLS = 20  # tensors that the negative control leaves out in turn, of a network with many
_PACKAGES = {"vision": "timm", "language": "transformers"}


def trace_architectures(
    out: str | os.PathLike[str] | None = "results/trace.json",
    *,
    sets: Sequence[str] = tuple(SETS),
    models: Sequence[str] | None = None,
    samples: int = 3,
    thread_count: int = 1,
    seed: int = 0,
    command: str = "neural-graphs bench trace",
) -> list[Row]:
    """Trace the architectures of ``sets`` (or ``models`` by name), check their groups, and write the results file.

    One row per architecture and metric: ``seconds`` to trace, ``memory_ratio`` (network and graph together over the network
    alone), ``share_moved`` of the parameters, ``relative_error`` and
    ``relative_error_fp32`` under random group elements, ``control_error``, ``rescaling_error``; what was found stands beside
    ``seconds``. An architecture that the tracer refuses has one row, ``refused``, with the reason; the others go on. Raises
    ``UserError`` for unknown names and where the package of a set is not installed.
    """
    chosen = choose(sets, models)
    for package in dict.fromkeys(_PACKAGES[which] for which, _ in chosen.values() if which in _PACKAGES):
        require(package)
    torch.set_num_threads(thread_count)
    trace_module(nn.Linear(2, 2), torch.zeros(1, 2))  # what the first export imports is no one's time
    rows: list[Row] = []
    with progress("tracing", len(chosen)) as bar:
        for name, (which, factory) in chosen.items():
            bar.describe(f"tracing {name}")
            rows += measure(name, which, factory, samples, seed)
            gc.collect()
            bar.advance()
            if out is not None:
                dataset = {"weights": "random", "seed": seed}
                write_results(out, "trace", command, dataset, rows, threads=thread_count, replaces=("method",))
    return rows


def choose(sets: Sequence[str], models: Sequence[str] | None = None) -> dict[str, tuple[str, Factory]]:
    """Name -> (set, factory), in the order of the sets. Raises ``UserError`` for a name that there is not."""
    if wrong := [name for name in sets if name not in SETS]:
        raise UserError(f"no set of architectures {wrong[0]!r}: choose among {', '.join(SETS)}")
    if models is None:
        return {name: (which, factory) for which in sets for name, factory in SETS[which].items()}
    everything = choose(tuple(SETS))
    if wrong := [name for name in models if name not in everything]:
        raise UserError(f"no architecture {wrong[0]!r}: choose among {', '.join(everything)}")
    return {name: everything[name] for name in models}


def measure(name: str, which: str, factory: Factory, samples: int = 3, seed: int = 0) -> list[Row]:
    """The rows of one architecture; see ``trace_architectures``."""
    module, example = factory()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    start = time.perf_counter()
    try:
        traced = trace_module(module, example)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [row(name, "refused", 1.0, set=which, parameters=parameters, reason=" ".join(reason.split()))]
    seconds = time.perf_counter() - start
    spec, how = traced.symmetries, traced.trace
    assert how is not None
    options: dict[str, Any] = {"samples": samples, "seed": seed}
    checked = traced.check(module, example, controls=1000 if which == "small" else _CONTROLS, **options)
    single = traced.check(module, example, controls=0, dtype=torch.float32, **options)
    names = [key for key, _ in module.named_parameters()]
    found: dict[str, Any] = {
        "set": which,
        "parameters": parameters,
        "route": how.route,
        "classes": len(spec.classes),
        "group": str(spec),
        "log10_order": spec.log10_order,
        "frozen": dict(how.frozen),
    }
    rows = [
        row(name, "seconds", seconds, **found),
        row(name, "memory_ratio", _memory_ratio(traced, module)),
        row(name, "share_moved", spec.share_moved(names)),
        row(name, "relative_error", _finite(checked.error)),
        row(name, "relative_error_fp32", _finite(single.error)),
    ]
    if checked.group != "trivial":
        rows.append(row(name, "control_error", _finite(checked.control), inert=list(checked.inert)))
    if spec.rescalings:
        kinds = [rescaling.kind for rescaling in spec.rescalings]
        errors = {
            kind: traced.check(module, example, kinds=(kind,), controls=0, **options).error
            for kind in dict.fromkeys(kinds)
        }
        counts = {kind: kinds.count(kind) for kind in errors}
        rows.append(row(name, "rescaling_error", _finite(max(errors.values())), kinds=counts, errors=errors))
    return rows


def _memory_ratio(traced: NeuralGraph, module: nn.Module) -> float:
    """Bytes that network and graph hold together over those of the network alone: shared storage counts once."""
    weights = _storages(module.state_dict().values())
    both = {**weights, **_storages((*traced.edges, *traced.nodes, *traced.rest))}
    return sum(both.values()) / sum(weights.values())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    storages = [value.untyped_storage() for value in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def faults(rows: Iterable[Row]) -> list[str]:
    """What misses its bar, a line each: errors above rounding, and controls that would not have shown an error."""
    bars = {"relative_error": BAR_FP64, "rescaling_error": BAR_FP64, "relative_error_fp32": BAR_FP32}
    found = []
    for entry in rows:
        name, metric, value = entry["method"], entry["metric"], entry["mean"]
        if metric in bars and not value <= bars[metric]:
            found.append(f"{name}: {metric} {value:.1e} is above {bars[metric]:.0e}")
        if metric == "control_error" and not value > 100 * BAR_FP64:
            found.append(f"{name}: leaving one tensor as it was changes the output by {value:.1e} only")
    return found


def _finite(value: float) -> float:
    """A results file holds no infinity: an output that became NaN counts as a change by 1e30."""
    return value if math.isfinite(value) else 1e30
