"""The table of architectures: the groups that must be found, and how the table is made."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs import bench
from neural_graphs.bench import _trace, faults, read_results, row, trace_architectures
from neural_graphs.bench._trace import choose, measure
from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.cli import main
from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph
from neural_graphs.graph._rescaling import Rescaling, Term
from neural_graphs.graph._trace import trace_module

ATTENTION = "3 4^3 4^3"  # heads; in each of them the dimensions of queries with keys, and those of values
GROUPS = {
    "mlp": "8 7",
    "siren": "8 8",
    "siren-frequencies": "8 8 8",
    "resnet-batchnorm": "8 8 12",
    "resnet-groupnorm4": "4 2^4 4 2^4 4 3^4",  # the groups of channels, and the channels in each
    "resnet-groupnorm1": "8 8 12",
    "resnet-instancenorm": "8 8 12",
    "flat-cnn": "6 4 9",
    "grouped-conv": "8 2 5^2 3^2",
    "separable-residual": "8",
    "conv1d": "6 8",
    "conv3d": "4 6",
    "conv-transpose": "2 4^2 3^2",
    "unet": "4 8 8 6 5",
    "dense-concat": "6 4 4 4",
    "squeeze-excite": "8 4",
    "pixel-shuffle": "4",
    "mixer": "8 6 10",
    "vit-module": f"12 {ATTENTION} 20",
    "vit-qkv": f"12 {ATTENTION} 20",
    "vit-heads-first": f"12 {ATTENTION} 20",
    "encoder": f"12 {ATTENTION} 20 {ATTENTION} 20",
    "encoder-norm-first": f"12 {ATTENTION} 20 {ATTENTION} 20",
    # Memory and target could move apart, but one tensor projects both: its input axis has one permutation.
    "decoder": f"12 {ATTENTION} {ATTENTION} 20",
    "gpt-tied": f"12 {ATTENTION} 20",
    "gpt-tied-sdpa": f"12 {ATTENTION} 20",
    "llama-like": "12 2 2^2 4^2 10",  # rotary dimensions stay; key heads, query heads of each, value dimensions
    "rnn": "6 7",
    "gru": "6 7",
    "gru-2-layers": "6 7 7",
    "lstm-2-layers": "6 7 7",
    "lstm-bidirectional": "6 7 7",
    "einsum": "8",
    "glu": "8",
    "norm-gated-mlp": "8",
    "moe-branching": "4 4",  # which expert acts is decided by number, so they stay
    "moe-stacked": "6 3 5^3",
    # The experts are chosen by number here, too. The hidden units of each could move on their own; an axis has one
    # permutation for all the fixed places of another.
    "moe-topk": "6 5",
    "autoencoder-tied": "8 4",
    "shared-layer": "8",
}
"""Sizes of the classes, ``n^k`` for one of size n in each of k places: by hand, from what each network computes."""


def sizes(text: str) -> list[tuple[int, int]]:
    terms = (term.partition("^") for term in text.split())
    return sorted((int(size), int(count or 1)) for size, _, count in terms)


def test_every_small_network_has_its_group() -> None:
    assert GROUPS.keys() == SMALL.keys()


@pytest.mark.parametrize("name", list(SMALL))
def test_the_group_is_right_and_whole(name: str) -> None:
    module, example = SMALL[name]()
    found = trace_module(module, example).symmetries.shapes.values()
    assert sorted((size, math.prod(outer)) for *outer, size in found) == sizes(GROUPS[name])


def test_rows_of_one_architecture() -> None:
    found = {entry["metric"]: entry for entry in measure("mlp", "small", SMALL["mlp"], samples=2)}
    assert list(found)[:5] == ["seconds", "memory_ratio", "share_moved", "relative_error", "relative_error_fp32"]
    assert found["relative_error"]["mean"] < 1e-13 < found["relative_error_fp32"]["mean"] < 1e-5
    assert found["control_error"]["mean"] > 1e-3
    about = found["seconds"]
    assert (about["group"], about["classes"], about["route"], about["frozen"]) == ("S8 × S7", 2, "export", {})
    assert about["parameters"] == 5 * 8 + 8 + 8 * 7 + 7 + 7 * 3 + 3
    assert found["share_moved"]["mean"] == pytest.approx(1 - 3 / about["parameters"])  # all but the last bias
    assert faults(found.values()) == []


def test_rescalings_are_measured_kind_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def terms(layer: str, following: str, exponent: float) -> tuple[Term, ...]:
        return (Term(f"{layer}.weight", 0, 1), Term(f"{layer}.bias", 0, 1), Term(f"{following}.weight", 1, exponent))

    def with_rescalings(module: nn.Module, example: Tensor) -> NeuralGraph:
        traced = trace_module(module, example)
        first, second = traced.symmetries.classes
        found = (
            Rescaling("scale", first, terms("0", "2", -1)),
            Rescaling("sign", second, terms("2", "4", 1)),
            Rescaling("scale", second, terms("2", "4", -1)),  # wrong: tanh is not homogeneous
        )
        spec = replace(traced.spec, symmetries=replace(traced.symmetries, rescalings=found))
        return replace(traced, spec=spec)

    monkeypatch.setattr(_trace, "trace_module", with_rescalings)
    (found,) = (entry for entry in measure("mlp", "small", SMALL["mlp"]) if entry["metric"] == "rescaling_error")
    assert found["kinds"] == {"scale": 2, "sign": 1}
    assert found["errors"]["sign"] < 1e-13 < 1e-3 < found["errors"]["scale"] == found["mean"]
    assert faults([found])


def test_one_failure_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[:, :2])

    nets = {"broken": lambda: (Broken(), torch.zeros(2, 3)), "glu": SMALL["glu"]}
    monkeypatch.setitem(_trace.SETS, "small", nets)
    out = tmp_path / "trace.json"
    trace_architectures(out, sets=["small"], samples=1)
    rows = read_results(out)["rows"]
    assert [entry["method"] for entry in rows if entry["metric"] in ("refused", "seconds")] == ["broken", "glu"]
    (refused,) = (entry for entry in rows if entry["metric"] == "refused")
    assert refused["reason"] and "\n" not in refused["reason"] and refused["set"] == "small"
    assert "| refused:" in bench.tables(tmp_path)


def test_faults_are_named() -> None:
    rows = [
        *(row("a", "relative_error", 1e-9), row("a", "relative_error_fp32", 1e-5), row("a", "seconds", 9.0)),
        *(row("b", "relative_error_fp32", 1e30), row("b", "rescaling_error", 1e-3)),
        row("b", "control_error", 1e-12, inert=[]),
    ]
    assert [fault.split(": ")[0] for fault in faults(rows)] == ["a", "b", "b", "b"]
    assert faults(rows)[0] == "a: relative_error 1.0e-09 is above 1e-10"
    assert faults(rows)[3] == "b: leaving one tensor as it was changes the output by 1.0e-12 only"


def test_names() -> None:
    assert list(choose(["small"])) == list(SMALL)
    assert list(choose(["small"], ["swin", "mlp"])) == ["swin", "mlp"]
    everything = choose(tuple(_trace.SETS))
    assert len(everything) == sum(map(len, _trace.SETS.values()))  # no name twice
    with pytest.raises(UserError, match="no architecture 'magic': choose among mlp, "):
        choose(["small"], ["magic"])
    with pytest.raises(UserError, match="no set of architectures 'large': choose among small, vision, language"):
        choose(["large"])


def test_a_missing_package_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers is not installed .* pip install 'neural-graphs\[hub\]'"):
        trace_architectures(None, models=["mlp", "bert"])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "trace.json"
    arguments = ["bench", "trace", "--models", "glu,shared-layer", "--samples", "1", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    assert {entry["method"] for entry in json.loads(capsys.readouterr().out)} == {"glu", "shared-layer"}
    monkeypatch.setattr(_trace, "BAR_FP32", -1.0)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "glu: relative_error_fp32" in captured.err and "share_moved" in captured.out


@pytest.mark.slow
@pytest.mark.parametrize("which", ["vision", "language"])
def test_architectures_in_use(which: str) -> None:
    """None is refused, and none has a group that its function does not keep."""
    package = _trace._PACKAGES[which]
    if importlib.util.find_spec(package) is None:  # importorskip would import timm, which torchvision's absence breaks
        pytest.skip(f"{package} is not installed")
    rows: list[dict[str, Any]] = []
    for name, factory in _trace.SETS[which].items():
        rows += measure(name, which, factory, samples=1)
    assert faults(rows) == [] and not [entry for entry in rows if entry["metric"] == "refused"]
    assert {entry["method"] for entry in rows} == _trace.SETS[which].keys()
