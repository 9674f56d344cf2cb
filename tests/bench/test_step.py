"""The benchmark of a training step, and the instruments it measures with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_graphs.bench import _machine, read_results, step
from neural_graphs.bench._machine import alternate, matmul_rate, median_ratio, memory_bandwidth, peak_memory, threads
from neural_graphs.bench._step import count_flops, siren_batch, training_step, wild_park_batch
from neural_graphs.errors import RunError, UserError
from neural_graphs.nn import _products


@pytest.mark.parametrize("encoder", [{"encoder": "ng-gnn"}, {"encoder": "ng-t", "attention": "all"}, {"mixed": True}])
def test_both_sides_do_the_same_step(encoder: dict[str, Any]) -> None:
    """Without dropout, the same loss step after step: both sides train the same model on the same batch."""
    losses = []
    for twin in (False, True):
        work = training_step(batch=3, width=8, layers=2, dropout=0.0, twin=twin, **encoder)
        losses.append([float(work()) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert losses[0][3] < losses[0][0]


def test_flops_are_counted() -> None:
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.zeros(3, 5)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: torch.mm(a, b, out=c)) == 120
    assert count_flops(lambda: c.addmm_(a, b)) == 120
    assert count_flops(lambda: torch.addmm(c, a, b)) == 120
    assert count_flops(lambda: _products.apply(a, b.T.contiguous())) == 120
    assert count_flops(lambda: _products.correlate(a.T.contiguous(), b)) == 120
    batches = torch.randn(6, 3, 4), torch.randn(6, 4, 5)
    assert count_flops(lambda: torch.zeros(6, 3, 5).baddbmm_(*batches)) == 6 * 120


def test_flops_of_a_step_grow_with_the_batch() -> None:
    """Edges dominate, and every edge costs the same: per layer three products forward and backward of known size, but for
    rows that products are padded with."""
    counts = [count_flops(training_step(batch=batch, width=16, layers=1)) for batch in (2, 4, 6)]
    assert counts[2] - counts[1] == pytest.approx(counts[1] - counts[0], rel=0.06)
    assert counts[0] > 0


@pytest.mark.slow
def test_rows_of_both_kinds_of_attention(tmp_path: Path) -> None:
    rows = step(
        tmp_path / "step.json", encoder="ng-t", batch=2, width=8, layers=2, rounds=2, thread_count=1, precision="bf16"
    )
    found = {(r["method"], r["variant"], r["metric"]): r for r in rows}
    twin = found["all-pairs twin", "probes=0", "step_seconds"]["values"]
    for kind in ("blocks", "all"):
        variant = f"attention={kind} probes=0 bf16"
        ours = found["ng-t", variant, "step_seconds"]["values"]
        speedups = [t / o for o, t in zip(ours, twin, strict=True)]
        assert found["ng-t", variant, "speedup"]["values"] == pytest.approx(speedups)
        assert found["ng-t", variant, "gflops"]["mean"] > 0


@pytest.mark.slow
def test_rows_of_mixed_architectures(tmp_path: Path) -> None:
    rows = step(tmp_path / "step.json", mixed=True, batch=2, width=8, layers=2, rounds=2, thread_count=1)
    assert read_results(tmp_path / "step.json")["experiment"] == "step-mixed"
    found = {(r["method"], r["variant"], r["metric"]): r["values"] for r in rows}
    ours, twin = (found[m, "threads=1", "step_seconds"] for m in ("ng-gnn", "edge-list twin"))
    assert found["ng-gnn", "threads=1", "speedup"] == pytest.approx([t / o for o, t in zip(ours, twin, strict=True)])
    with pytest.raises(UserError, match="with the encoder ng-gnn and without probes"):
        step(None, mixed=True, probes=2)


def test_mixed_batches_are_of_different_architectures() -> None:
    (first, labels), (again, same) = wild_park_batch(32, 1), wild_park_batch(32, 1)
    assert len(first.buckets) == len(first) == 32
    assert torch.equal(labels, same)
    for graph, other in zip(first.buckets, again.buckets, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(graph.edges, other.edges, strict=True))


def test_unknown_encoders_have_no_benchmark() -> None:
    with pytest.raises(UserError, match="no benchmark of the encoder 'mlp': choose one of ng-gnn, ng-t"):
        step(None, encoder="mlp")


@pytest.mark.slow
def test_rows(tmp_path: Path) -> None:
    rows = step(tmp_path / "step.json", batch=4, width=8, layers=2, rounds=2, thread_count=1)
    assert read_results(tmp_path / "step.json")["rows"] == rows
    found = {(r["method"], r["metric"]): r for r in rows}
    ours, twin = found["ng-gnn", "step_seconds"]["values"], found["edge-list twin", "step_seconds"]["values"]
    assert found["ng-gnn", "speedup"]["values"] == pytest.approx([t / o for o, t in zip(ours, twin, strict=True)])
    assert 0 < found["ng-gnn", "matmul_share"]["mean"] < 1
    memory = [found[name, "step_seconds"]["peak_memory_mb"] for name in ("ng-gnn", "edge-list twin")]
    assert found["ng-gnn", "memory_ratio"]["mean"] == pytest.approx(memory[0] / memory[1])


def test_peak_memory_of_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.py").write_text(
        "import torch\n"
        "def prepare(before, during):\n"
        "    kept = torch.ones(before, 1 << 18)\n"
        "    def work():\n"
        "        for _ in range(3):\n"
        "            torch.ones(during, 1 << 18)\n"
        "        return kept\n"
        "    return work\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ballast = torch.ones(200, 1 << 18)  # this process's own memory must not show
    assert peak_memory("job:prepare", 1, before=50, during=100) / 2**20 == pytest.approx(100, abs=5)
    assert len(ballast) == 200


def test_a_failing_job_says_why() -> None:
    with pytest.raises(RunError, match="no_such_function"):
        peak_memory("neural_graphs.bench._step:no_such_function")


def test_rates_are_positive_and_plausible() -> None:
    assert 1e8 < matmul_rate(256, 2) < 1e15
    assert 1e7 < memory_bandwidth(8, 2) < 1e14


def test_alternating() -> None:
    calls: list[str] = []
    ours, twin = alternate(lambda: calls.append("o"), lambda: (calls.append("t"), time.sleep(0.002)), 3)
    assert "".join(calls) == "ot" + "ot" + "to" + "ot"
    assert len(ours) == len(twin) == 3 and min(twin) >= 0.002
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with threads(1) as count:
        assert count == torch.get_num_threads() == 1
    with threads(None) as count:
        assert count == before
    assert torch.get_num_threads() == before


def test_batch_is_repeatable() -> None:
    (first, labels), (again, same) = siren_batch(3, 5), siren_batch(3, 5)
    assert torch.equal(labels, same) and len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(first.buckets[0].edges, again.buckets[0].edges, strict=True))


def test_device_name() -> None:
    assert _machine.device_name().endswith("(CPU)")
