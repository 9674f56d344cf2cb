"""`neural-graphs eval` of editors: the table, JSON of figures only, the page, other zoos."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from neural_graphs.cli import main
from neural_graphs.tasks import OptimConfig, TrainConfig, train
from neural_graphs.zoo import make_zoo


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a zoo of digits, another one, and an editor of two edits that was hardly trained."""
    folder = tmp_path_factory.mktemp("edit")
    settings: dict[str, Any] = {"size": 24, "steps": 30, "lr": 5e-3, "splits": (8, 4, 12), "workers": 1}
    zoo = make_zoo(folder / "zoo", "digits", widths=(8,), **settings)
    make_zoo(folder / "other", "digits", widths=(6, 6), **settings, seed=1)
    config = TrainConfig(
        task="edit",
        zoo=str(zoo.path),
        out=str(folder / "run"),
        edits=["dilate", "invert"],
        encoder={"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0},
        optimizer=OptimConfig(epochs=1, batch_size=8),
        threads=1,
    )
    train(config, quiet=True)
    return folder / "run"


def test_table_and_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: dilate, invert of 12 test networks"
    assert lines[2].split() == ["edit", "mse", "x1e-2", "psnr", "ssim", "time", "per", "network"]
    shown = [re.split(r"  +", line.strip()) for line in lines[3:11]]
    assert [row[:2] for row in (shown[0], shown[4])] == [["dilate", "editor"], ["invert", "editor"]]
    assert [row[0] for row in (shown[1], shown[5])] == ["no edit", "no edit"]
    assert all(re.fullmatch(r"refit, for as long: [\d,]+ steps?", row[0]) for row in (shown[2], shown[6]))
    assert all(row[0].startswith("refit, until as good: ") for row in (shown[3], shown[7]))
    assert lines[-1] == f"report: {run / 'report.html'}"
    page = (run / "report.html").read_text()
    assert "Gallery: invert" in page and page.count("data:image/png") == 2 * 3 * 4 * 5
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|<script", page)


def test_json_of_another_zoo_has_figures_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, page = run.parent / "other", run.parent / "other.html"
    assert main(["eval", str(run), "--zoo", str(other), "--json", "--report", str(page), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert "gallery" not in found and len(printed) < 6000
    assert (found["task"], found["n"], found["edits"], found["zoo"]) == ("edit", 12, ["dilate", "invert"], str(other))
    assert {"mse", "psnr", "ssim", "no_edit_mse", "seconds_per_network"} <= found.keys()
    for entry in found["per_edit"].values():
        assert entry["mse"] > 0 and entry["no_edit"]["mse"] > 0 and entry["refit"]["n"] == 12
        took = found["seconds_per_network"]
        step = entry["refit"]["seconds"] / entry["refit"]["steps"]
        assert abs(entry["refit"]["seconds"] - took) <= step  # as long as the editor, to a step
    assert found["per_architecture"] == {
        "2-6-6-1 sine:30": {key: found[key] for key in ("mse", "psnr", "ssim", "n")} | {"seen": False}
    }
    assert f"trained on networks of {run.parent / 'zoo'}" in page.read_text()


def test_a_page_that_cannot_be_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "blocked").write_text("")
    assert main(["eval", str(run), "--report", str(run / "blocked" / "page.html"), "--threads", "1"]) == 1
    assert re.fullmatch(r"error: .*page\.html.*\n", capsys.readouterr().err)


def test_an_editor_predicts_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(run.parent / "zoo")]) == 2
    assert "is an editor, which predicts nothing of a network: use `neural-graphs edit`" in capsys.readouterr().err
