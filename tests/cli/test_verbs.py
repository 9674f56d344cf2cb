"""What the verbs print and write."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs import _threads, bench
from neural_graphs._threads import default_threads
from neural_graphs.cli import main

RUN, ZOO, EXAMPLE = "runs/quickstart/ng-gnn", "runs/quickstart/zoo", "runs/quickstart/example.safetensors"


def parsed(command: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(command.split()) == 0
    return json.loads(capsys.readouterr().out)


def test_graph(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", EXAMPLE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{EXAMPLE}: 2-16-16-1 sine:30, 35 nodes, 304 edges"
    assert "input -> seq.0     32         1" in "\n".join(lines)
    assert any(line.startswith("symmetries: S16 × S16, 10^27 orders") for line in lines)
    assert "  P0 (sine:30): each neuron also has sign and phase symmetry" in lines

    found = parsed(f"graph {EXAMPLE} --json", capsys)
    assert [nodes["size"] for nodes in found["node_sets"]] == [2, 16, 16, 1]
    assert found["symmetries"]["axes"]["seq.1.weight"] == ["P1", "P0"]
    weight = load_file(EXAMPLE)["seq.1.weight"].double()
    assert found["blocks"][1]["std"] == pytest.approx(weight.std(correction=0).item())


def test_graph_page_is_self_contained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", EXAMPLE, "--html", "pages/graph.html"]) == 0
    assert "drawing: pages/graph.html" in capsys.readouterr().out
    page = Path("pages/graph.html").read_text()
    assert page.count("<circle") == 2 * 35
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|url\(|@import", page)


def test_activation_is_taken_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(
        {"0.weight": torch.randn(4, 3), "2.weight": torch.randn(5, 4), "4.weight": torch.randn(2, 5)}, "mlp.safetensors"
    )
    found = parsed("graph mlp.safetensors --activation relu,sine:5 --json", capsys)
    assert found["architecture"] == "3-4-5-2 relu,sine:5"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_check(suffix: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(EXAMPLE)
    save_file(state, "n.safetensors") if suffix == ".safetensors" else torch.save({"state_dict": state}, "n.pt")
    found = parsed(f"check n{suffix} --activation sine:30 --samples 2 --json", capsys)
    assert found["passed"]
    assert found["samples"] == 2
    assert found["error"] < 1e-12 < 1e-3 < found["control"]
    assert main(["check", EXAMPLE]) == 0
    assert "S16 × S16 holds" in capsys.readouterr().out


def test_check_of_a_convolutional_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"0.weight": torch.randn(4, 3, 3, 3), "1.weight": torch.randn(2, 4)}, "cnn.safetensors")
    assert main(["check", "cnn.safetensors", "--activation", "relu"]) == 2
    assert "--input" in capsys.readouterr().err
    assert parsed("check cnn.safetensors --activation relu --input 3x8x8 --json", capsys)["passed"]


def test_zoo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "zoo make inr -o z --size 20 --views 2 --widths 8 --steps 3 --seed 4 --splits 10,5,5"
    assert main(command.split()) == 0
    assert "40 networks [2-8-1 sine:30], 20 train, 10 val, 10 test" in capsys.readouterr().out
    found = parsed("zoo info z --json", capsys)
    assert (found["networks"], found["seed"], found["sheet"]) == (40, 4, "z/sheet.png")
    assert Path("z/sheet.png").stat().st_size > 1000
    assert parsed("zoo info z --json --no-sheet", capsys)["sheet"] is None
    assert main(["zoo", "info", "z", "--sheet", "elsewhere.png"]) == 0
    assert Path("elsewhere.png").exists()
    assert "2-8-1 sine:30" in capsys.readouterr().out


def test_train_eval_predict(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = f"zoo={ZOO} out=runs/mine encoder.width=8 optimizer.schedule=constant optimizer.epochs=2"
    trained = parsed(f"train inr-cpu {settings} --json --quiet", capsys)
    assert trained["run"] == "runs/mine"
    found = parsed("eval runs/mine --json", capsys)
    assert found["accuracy"] == pytest.approx(trained["test_accuracy"])
    assert sum(map(sum, found["confusion"])) == found["n"] == 8
    (prediction,) = parsed(f"predict runs/mine {EXAMPLE} --json", capsys)
    assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert prediction["class"] == max(range(10), key=prediction["probabilities"].__getitem__)

    # More epochs of the same configuration go on from there.
    assert main(f"train inr-cpu --resume {settings} optimizer.epochs=3".split()) == 0
    assert "runs/mine: validation " in capsys.readouterr().out
    assert len(Path("runs/mine/log.jsonl").read_text().splitlines()) == 3

    assert main(["eval", "runs/mine", "--split", "val"]) == 0
    output = capsys.readouterr().out
    assert "val networks, loss" in output
    assert len(re.findall(r"^\d  ", output, re.M)) == 10


def test_train_shows_its_presets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--presets"]) == 0
    assert "inr-cpu " in capsys.readouterr().out
    assert main(["train", "inr-cpu", "--print"]) == 0
    text = capsys.readouterr().out
    assert "# " in text
    Path("mine.yaml").write_text(text)
    assert main(["train", "mine.yaml", "optimizer.lr=0.5", "--print"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out


ROW = {"method": "m", "variant": "", "metric": "speedup", "mean": 5.25, "std": 0.0, "values": [5.25]}


@pytest.mark.parametrize(
    ("command", "function", "expected"),
    [
        ("bench step --batch 2 --threads 3", "step", {"batch": 2, "width": 64, "thread_count": 3, "rounds": 7}),
        (
            "bench fit --networks 9 --many 50 --out f.json",
            "fit",
            {"networks": 9, "many": 50, "few": 5, "thread_count": 1},
        ),
        (
            "bench render --networks 9 --side 7 --threads 2",
            "rendering",
            {"networks": 9, "side": 7, "thread_count": 2, "rounds": 7},
        ),
        (
            "bench inr z --seeds 1,2 --methods a,b x=1 --runs r y=2",
            "inr_classification",
            {"seeds": (1, 2), "methods": ["a", "b"], "runs": "r", "overrides": ["threads=1", "x=1", "y=2"]},
        ),
    ],
)
def test_bench_passes_its_options_on(
    command: str,
    function: str,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, Any] = {}

    def measure(*_: Any, **options: Any) -> list[dict[str, Any]]:
        given.update(options)
        return [ROW]

    monkeypatch.setattr(bench, function, measure)
    assert main(command.split()) == 0
    assert {name: given[name] for name in expected} == expected
    assert given["command"] == f"neural-graphs {command}"
    assert "m                speedup  5.25    0  1" in capsys.readouterr().out
    assert parsed(f"{command} --json", capsys) == [ROW]


def test_bench_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("results").mkdir()
    Path("runs/quickstart/results.json").rename("results/quickstart.json")
    Path("README.md").write_text("# x\n<!-- results -->\n<!-- /results -->\n")
    assert main(["bench", "tables", "--page", "docs/results.md", "--readme", "README.md"]) == 0
    for page in ("docs/results.md", "README.md"):
        assert "| ng-gnn" in Path(page).read_text()


# -- threads ------------------------------------------------------------------------------------------------------


def test_threads_are_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(_threads, "_read", lambda path: files.get(path, ""))
    assert default_threads() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4}, raising=False)
    assert default_threads() == 2
    files["/sys/fs/cgroup/cpu.max"] = "100000 100000"
    assert default_threads() == 1
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert default_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3


def test_threads_option_reaches_torch(here: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert main(["check", EXAMPLE, "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
