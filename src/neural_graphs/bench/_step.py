"""One training step of NG-GNN against its textbook twin: throughput, peak memory, share of the matmul rate."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neural_graphs._progress import progress
from neural_graphs.bench._edge_list_twin import EdgeListTwin
from neural_graphs.bench._machine import (
    MIB,
    alternate,
    matmul_rate,
    median_ratio,
    memory_bandwidth,
    peak_memory,
    threads,
)
from neural_graphs.bench._results import Row, row, write_results
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import NGGNN, GraphHead, create_encoder

CLASSES = 10


def step(
    out: str | os.PathLike[str] | None = "results/step.json",
    *,
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

    Rows (method ``ng-gnn``): ``speedup`` (twin's seconds over ours, median and values over ``rounds``), ``memory_ratio``
    (our peak memory over the twin's, each in a fresh process), ``matmul_share`` (FLOP/s of our step over those of a large
    matrix product on the same threads), ``gflops``, and ``step_seconds`` and ``peak_memory_mb`` of both. FLOPs are those
    of the matrix products that our step runs, recomputation included, 2mnk each, nothing else. Written to ``out`` unless
    it is None. ``precision="bf16"`` keeps our edges in bfloat16, beside the twin in float32; the matrix product to compare
    with is then a bfloat16 one. A CPU benchmark; a busy machine moves both sides of every ratio.
    """
    shape: dict[str, Any] = {"batch": batch, "width": width, "layers": layers, "probes": probes, "seed": seed}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with threads(thread_count) as count, progress("bench step", rounds + 4) as bar:
        ours, twin = training_step(twin=False, precision=precision, **shape), training_step(twin=True, **shape)
        flops = count_flops(ours)
        bar.advance()
        fast, slow = [], []
        rates = [matmul_rate(dtype=dtype)]
        for _ in range(rounds):
            ours_seconds, twin_seconds = alternate(ours, twin, 1)
            fast += ours_seconds
            slow += twin_seconds
            rates.append(matmul_rate(repeats=3, dtype=dtype))
            bar.advance()
        memory = {}
        for name, is_twin in (("ours", False), ("twin", True)):
            kept = "fp32" if is_twin else precision
            memory[name] = peak_memory(f"{__name__}:training_step", count, twin=is_twin, precision=kept, **shape) / MIB
            bar.advance()
        bandwidth = memory_bandwidth()
        bar.advance()
    variant = f"probes={probes}" + (" bf16" if precision == "bf16" else "")
    gflops = [flops / s / 1e9 for s in fast]
    rate = max(rates)
    rows = [
        row("ng-gnn", "speedup", [s / f for s, f in zip(slow, fast, strict=True)], variant),
        row("ng-gnn", "memory_ratio", memory["ours"] / memory["twin"], variant),
        row("ng-gnn", "matmul_share", [g * 1e9 / rate for g in gflops], variant, matmul_gflops=rate / 1e9),
        row("ng-gnn", "gflops", gflops, variant, flops=flops),
        row("ng-gnn", "step_seconds", fast, variant, peak_memory_mb=memory["ours"]),
        row("edge-list twin", "step_seconds", slow, f"probes={probes}", peak_memory_mb=memory["twin"]),
        row("machine", "bandwidth_gb_per_second", bandwidth / 1e9),
    ]
    rows[0]["median"] = median_ratio(slow, fast)
    if out is not None:
        dataset = {"zoo": "random SIREN 2-32-32-1", "networks": batch, "width": width, "layers": layers}
        write_results(out, "step", command, dataset, rows, threads=count)
    return rows


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


def training_step(
    batch: int = 64,
    width: int = 64,
    layers: int = 4,
    probes: int = 0,
    seed: int = 0,
    dropout: float = 0.2,
    precision: str = "fp32",
    twin: bool = False,
) -> Callable[[], Tensor]:
    """A function that makes one training step of a classifier and returns its loss; warmed up on two networks."""
    torch.manual_seed(seed)
    encoder = create_encoder("ng-gnn", width=width, layers=layers, probes=probes, dropout=dropout)
    assert isinstance(encoder, NGGNN)
    encoder.edge_dtype = torch.bfloat16 if precision == "bf16" else None
    head = GraphHead(width, 1, CLASSES)
    graphs, labels = siren_batch(batch, seed)
    encoder.fit_normalization(graphs.buckets)
    parameters = nn.ModuleList([encoder, head]).train().parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=5e-4, amsgrad=True)
    slow = EdgeListTwin(encoder).train()

    def run(graphs: GraphBatch, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        encoding = slow(graphs) if twin else encoder(graphs, reads="outputs")
        loss = F.cross_entropy(head(encoding), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run(*siren_batch(2, seed))
    return lambda: run(graphs, labels)


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products that ``work`` runs (2mnk for ``[m, k] @ [k, n]``)."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops})
    with counter:
        work()
    return counter.get_total_flops()


def _addmm_flops(_self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]
