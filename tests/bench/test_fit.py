"""The benchmark of bulk fitting: both sides do the same work, and its figures mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neural_graphs.bench import read_results
from neural_graphs.bench._fit import STACK, fit, fit_one_by_one, step_flops
from neural_graphs.bench._step import count_flops
from neural_graphs.zoo import FitOptions, fit_networks
from neural_graphs.zoo._inr import initial_parameters, pixel_grid


def test_both_sides_fit_the_same_networks() -> None:
    targets = torch.rand(3, 1, 36, generator=torch.Generator().manual_seed(0))
    params = initial_parameters(STACK, "dws", 4, range(3))
    bulk, _ = fit_networks(STACK, params, pixel_grid(6, 6), targets, FitOptions(steps=15, threads=1))
    for name, value in fit_one_by_one(targets, 15, 4).items():
        torch.testing.assert_close(bulk[name], value, rtol=1e-3, atol=1e-4)


def test_flop_formula_is_what_the_loop_runs() -> None:
    targets = torch.rand(1, 1, 36)
    counted = count_flops(lambda: fit_one_by_one(targets, 2, 0)) - count_flops(lambda: fit_one_by_one(targets, 1, 0))
    assert step_flops(STACK, 36) == counted


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_graphs.bench._fit.peak_memory", lambda _, __, networks, **___: 2**20 * networks)
    rows = fit(tmp_path / "fit.json", networks=8, steps=3, side=8, rounds=2, thread_count=1, many=300, few=100)
    assert read_results(tmp_path / "fit.json")["rows"] == rows
    found = {(entry["method"], entry["metric"]): entry for entry in rows}
    assert found["bulk fit", "memory_ratio"]["mean"] == pytest.approx(3)
    bulk, loop = (found[name, "inr_steps_per_second"]["values"] for name in ("bulk fit", "loop"))
    assert found["bulk fit", "speedup"]["values"] == pytest.approx([a / b for a, b in zip(bulk, loop, strict=True)])
    share, gflops = found["bulk fit", "matmul_share"], found["bulk fit", "gflops"]
    assert share["mean"] * share["matmul_gflops"] == pytest.approx(gflops["mean"])
    assert gflops["mean"] == pytest.approx(found["bulk fit", "inr_steps_per_second"]["mean"] * gflops["flops"] / 1e9)
