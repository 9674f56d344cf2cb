"""The benchmark of optimizer steps: which rows it writes, and that both sides do their work."""

from __future__ import annotations

import pytest
import torch

from neural_graphs.bench import _optimizer_step, optimizer_steps, read_results
from neural_graphs.bench._optimizer_step import ResNet18
from neural_graphs.errors import UserError


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(_optimizer_step, "LONG", 0.01)
    out = tmp_path / "optimiser-step.json"
    rows = optimizer_steps(
        out, networks=["mlp"], rules=_optimizer_step.RULES, every=(1, 3), rounds=2, thread_counts=(1,)
    )
    assert read_results(out)["rows"] == rows
    ratios = {(r["method"], r["variant"]): r for r in rows if r["metric"] == "cost_ratio"}
    names = [("graph", 1), ("graph", 3), ("lstm", 1), ("ff", 1)]
    assert list(ratios) == [(rule, f"mlp threads=1 k={k}") for rule, k in names]
    assert all(r["median"] > 1 and r["parameters"] == 203_530 for r in ratios.values())
    with pytest.raises(UserError, match="no network 'vgg' to time"):
        optimizer_steps(None, networks=["vgg"])


def test_resnet18_is_that_of_the_paper():
    assert sum(value.numel() for value in ResNet18().parameters()) == 11_173_962
    assert ResNet18()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
