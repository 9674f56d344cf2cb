"""One training step of an encoder against its textbook twin: throughput, peak memory, share of the matmul rate."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neural_graphs._progress import progress
from neural_graphs.bench._all_pairs_twin import AllPairsTwin
from neural_graphs.bench._edge_list_twin import EdgeListTwin, MixedEdgeListTwin
from neural_graphs.bench._machine import (
    MIB,
    in_turn,
    matmul_rate,
    median_ratio,
    memory_bandwidth,
    peak_memory,
    threads,
)
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import NGGNN, NGT, GraphHead, _products, create_encoder
from neural_graphs.zoo._classifier_recipes import SHARED_SHAPE, initial_stack, wild_park_runs

CLASSES = 10

VARIANTS: dict[str, tuple[str, ...]] = {"ng-gnn": ("",), "ng-t": ("blocks", "all")}
"""Encoder -> kinds of attention to measure."""

TWINS = {"ng-gnn": "edge-list twin", "ng-t": "all-pairs twin"}


def step(
    out: str | os.PathLike[str] | None = "results/step.json",
    *,
    encoder: str = "ng-gnn",
    mixed: bool = False,
    batch: int = 64,
    width: int = 64,
    layers: int = 4,
    probes: int = 0,
    precision: str = "fp32",
    rounds: int = 7,
    thread_count: int | None = 2,
    seed: int = 0,
    command: str = "neural-graphs bench step",
) -> list[Row]:
    """Measure forward, backward and AdamW step on ``batch`` SIRENs 2-32-32-1 with reversed edges, ours and the twin in turn.

    ``encoder`` is "ng-gnn", beside the edge-list twin, or "ng-t", both variants of attention beside the twin that lets all
    pairs attend; widths other than ``width`` are the paper's. ``mixed`` measures ``batch`` networks of as many
    architectures instead (``wild_park_batch``; "ng-gnn" without probes only), beside a twin whose edges are one list, which
    is made beforehand as a data loader would. Variants are then named by threads, to have both in one file.

    Rows (method ``encoder``): ``speedup`` (twin's seconds over ours, median and values over ``rounds``), ``memory_ratio``
    (our peak memory over the twin's, each in a fresh process), ``matmul_share`` (FLOP/s of our step over those of a large
    matrix product on the same threads), ``gflops``, and ``step_seconds`` and ``peak_memory_mb`` of both. FLOPs are those
    of the matrix products that our step runs, recomputation included, 2mnk each, nothing else. Written to ``out`` unless
    it is None. ``precision="bf16"`` keeps our edges in bfloat16, beside the twin in float32; the matrix product to compare
    with is then a bfloat16 one. A CPU benchmark; a busy machine moves both sides of every ratio.
    """
    if encoder not in TWINS:
        raise UserError(f"no benchmark of the encoder {encoder!r}: choose one of {', '.join(TWINS)}")
    if mixed and (encoder != "ng-gnn" or probes):
        raise UserError("mixed architectures are measured with the encoder ng-gnn and without probes")
    shape: dict[str, Any] = {"encoder": encoder, "batch": batch, "width": width, "layers": layers, "mixed": mixed}
    shape |= {"probes": probes, "seed": seed}
    bf16 = precision == "bf16"
    base = f"threads={thread_count or torch.get_num_threads()}" if mixed else f"probes={probes}"
    sides: dict[str, dict[str, Any]] = {  # variant -> arguments of a training step
        " ".join(filter(None, (f"attention={a}" if a else "", base, "bf16" if bf16 else ""))): {
            "precision": precision,
            **({"attention": a} if a else {}),
        }
        for a in VARIANTS[encoder]
    }
    sides[TWINS[encoder]] = {"twin": True}
    onednn = mixed or encoder != "ng-gnn"
    with threads(thread_count) as count, progress("bench step", rounds + 1 + len(sides)) as bar:
        works = {name: training_step(**shape, **arguments) for name, arguments in sides.items()}
        with threads(1):  # what runs on other threads is not counted
            flops = {name: count_flops(work) for name, work in works.items() if name != TWINS[encoder]}
        rates = [_large_product(onednn, bf16)]
        bar.advance()
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, found in zip(works, in_turn(list(works.values()), 1), strict=True):
                times[name] += found
            rates.append(_large_product(onednn, bf16, 3))
            bar.advance()
        memory = {}
        for name, arguments in sides.items():
            memory[name] = peak_memory(f"{__name__}:training_step", count, **shape, **arguments) / MIB
            bar.advance()
        bandwidth = memory_bandwidth()
    slow, rate = times.pop(TWINS[encoder]), max(rates)
    rows = []
    for variant, fast in times.items():
        gflops = [flops[variant] / s / 1e9 for s in fast]
        rows += [
            row(encoder, "speedup", [s / f for s, f in zip(slow, fast, strict=True)], variant),
            row(encoder, "memory_ratio", memory[variant] / memory[TWINS[encoder]], variant),
            row(encoder, "matmul_share", [g * 1e9 / rate for g in gflops], variant, matmul_gflops=rate / 1e9),
            row(encoder, "gflops", gflops, variant, flops=flops[variant]),
            row(encoder, "step_seconds", fast, variant, peak_memory_mb=memory[variant]),
        ]
        rows[-5]["median"] = median_ratio(slow, fast)
    twin_memory = memory[TWINS[encoder]]
    rows.append(row(TWINS[encoder], "step_seconds", slow, base, peak_memory_mb=twin_memory))
    rows.append(row("machine", "bandwidth_gb_per_second", bandwidth / 1e9))
    if out is not None:
        zoo = "random CNN Wild Park, all of different architectures" if mixed else "random SIREN 2-32-32-1"
        dataset = {"zoo": zoo, "networks": batch, "width": width, "layers": layers}
        experiment = "step-mixed" if mixed else "step" if encoder == "ng-gnn" else f"step-{encoder}"
        write_results(out, experiment, command, dataset, rows, threads=count)
    return rows


def _large_product(onednn: bool, bf16: bool, repeats: int = 7) -> float:
    """FLOP/s of a large product, by the library that the encoder's own products run through."""
    product = _products.apply if onednn else None
    return matmul_rate(repeats=repeats, dtype=torch.bfloat16 if bf16 else torch.float32, product=product)


def siren_batch(batch: int, seed: int = 0) -> tuple[GraphBatch, Tensor]:
    """``batch`` SIRENs 2-32-32-1 with torch's default initialisation, and random labels."""
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (torch.rand(batch, *shape, generator=generator) * 2 - 1) / shape[-1] ** 0.5
        for name, shape in stack.parameter_shapes().items()
    }
    graph = NeuralGraph.from_state_dict(state, stack=stack, batched=True)
    return GraphBatch.of(graph), torch.randint(CLASSES, (batch,), generator=generator)


def wild_park_batch(batch: int, seed: int = 0) -> tuple[GraphBatch, Tensor]:
    """``batch`` networks of as many architectures, drawn as for the CNN Wild Park (2 to 5 convolutions with channels,
    kernel, activation and residual source of their own) with torch's default initialisation, and random labels."""
    runs = wild_park_runs(seed, SHARED_SHAPE * batch, (3, 32, 32), CLASSES)[::SHARED_SHAPE]
    graphs = [
        NeuralGraph.from_state_dict(initial_stack(run, seed), stack=cast(Stack, run.architecture)) for run in runs
    ]
    generator = torch.Generator().manual_seed(seed)
    return GraphBatch.of(graphs), torch.randint(CLASSES, (batch,), generator=generator)


def training_step(
    batch: int = 64,
    width: int = 64,
    layers: int = 4,
    probes: int = 0,
    seed: int = 0,
    dropout: float = 0.2,
    precision: str = "fp32",
    twin: bool = False,
    encoder: str = "ng-gnn",
    mixed: bool = False,
    **arguments: Any,
) -> Callable[[], Tensor]:
    """A function that makes one training step of a classifier and returns its loss; warmed up on two networks.

    ``arguments`` are further ones of the encoder. The twin of "ng-t" lets all pairs attend.
    """
    torch.manual_seed(seed)
    draw, outputs = (wild_park_batch, CLASSES) if mixed else (siren_batch, 1)
    if mixed:
        arguments = {"kernel": (7, 7), "inputs": 3, **arguments}
    model = create_encoder(encoder, width=width, layers=layers, probes=probes, dropout=dropout, **arguments)
    model.edge_dtype = torch.bfloat16 if precision == "bf16" else None
    head = GraphHead(width, outputs, CLASSES)
    graphs, labels = draw(batch, seed)
    model.fit_normalization(graphs.buckets)
    parameters = nn.ModuleList([model, head]).train().parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=5e-4, amsgrad=True, fused=True)
    textbook = _twin(model, mixed).train() if twin else None

    def run(graphs: GraphBatch, networks: Any, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        encoding = model(graphs, reads="outputs") if textbook is None else textbook(networks)
        loss = F.cross_entropy(head(encoding), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def prepared(graphs: GraphBatch) -> Any:
        return textbook.collate(graphs) if isinstance(textbook, MixedEdgeListTwin) else graphs

    few, some = draw(2, seed)
    run(few, prepared(few), some)
    networks = prepared(graphs)
    return lambda: run(graphs, networks, labels)


def _twin(model: nn.Module, mixed: bool) -> nn.Module:
    if not isinstance(model, NGGNN):
        return AllPairsTwin(cast(NGT, model), attention="all")
    return MixedEdgeListTwin(model) if mixed else EdgeListTwin(model)


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products that ``work`` runs (2mnk for ``[m, k] @ [k, n]``)."""
    counted: dict[Any, Any] = {torch.ops.aten.addmm_: _addmm_flops, torch.ops.aten.baddbmm_: _baddbmm_flops}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        counted[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    counter = FlopCounterMode(display=False, custom_mapping=counted)
    with counter:
        work()
    return counter.get_total_flops()


def _addmm_flops(_self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _baddbmm_flops(_self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]


def _linear_flops(a: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * out_shape[-1]
