"""The benchmark of rendering: all three ways do the same work, and its figures mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neural_graphs.bench import read_results, rendering
from neural_graphs.bench._render import METHODS, PASSES, rendering_flops, rendering_work
from neural_graphs.bench._step import count_flops


@pytest.mark.parametrize("learns", [False, True])
def test_all_ways_draw_the_same_networks(learns: bool) -> None:
    ours, run, loop = (rendering_work(method, 3, 6, learns, 4)() for method in METHODS)
    assert len(ours) == (6 if learns else 1)
    for a, b, c in zip(ours, run, loop, strict=True):
        torch.testing.assert_close(a.reshape(c.shape), c, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b.reshape(c.shape), c, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learns", [False, True])
def test_flop_formula_is_what_the_loop_runs(learns: bool) -> None:
    assert count_flops(rendering_work("loop", 3, 6, learns, 0)) == 3 * rendering_flops(36, learns)


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"render": 1 << 20, "graph.run": 3 << 20}
    monkeypatch.setattr("neural_graphs.bench._render.peak_memory", lambda *_, method, **__: taken[method])
    rows = rendering(tmp_path / "render.json", networks=8, side=8, rounds=2, thread_count=1)
    assert read_results(tmp_path / "render.json")["rows"] == rows
    found = {(entry["method"], entry["variant"], entry["metric"]): entry for entry in rows}
    for name in PASSES:
        variant = f"{name} threads=1"
        per_second = {method: found[method, variant, "networks_per_second"]["values"] for method in METHODS}
        for metric, twin in (("speedup", "loop"), ("speedup_over_run", "graph.run")):
            expected = [a / b for a, b in zip(per_second["render"], per_second[twin], strict=True)]
            assert found["render", variant, metric]["values"] == pytest.approx(expected)
        share, gflops = found["render", variant, "matmul_share"], found["render", variant, "gflops"]
        assert share["mean"] * share["matmul_gflops"] == pytest.approx(gflops["mean"])
        assert gflops["mean"] == pytest.approx(sum(per_second["render"]) / 2 * gflops["flops"] / 1e9)
        assert found["graph.run", variant, "peak_memory_mb"]["mean"] == 3
