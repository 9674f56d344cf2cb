"""The quickstart in a tiny setting: files, report, resuming, figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from neural_graphs.bench import read_results
from neural_graphs.cli import main
from neural_graphs.explore import _quickstart
from neural_graphs.zoo import Zoo

TINY = ["--size", "40", "--steps", "20", "--views", "2", "--epochs", "1", "--threads", "1"]


def test_files_and_figures(here: Path) -> None:
    folder = here / "runs/quickstart"
    assert {path.name for path in folder.iterdir()} == {
        "example.safetensors", "mlp", "ng-gnn", "quickstart.json", "report.html", "results.json", "zoo",
    }  # fmt: skip
    results = read_results(folder / "results.json")
    assert results["experiment"] == "quickstart"
    rows = {(row["method"], row["metric"]): row["mean"] for row in results["rows"]}
    assert {("ng-gnn", "test_accuracy"), ("mlp", "test_accuracy"), ("quickstart", "seconds")} <= rows.keys()
    metrics = json.loads((folder / "ng-gnn/metrics.json").read_text())
    assert rows["ng-gnn", "test_accuracy"] == metrics["test_accuracy"]
    assert results["dataset"]["test"] == 8


def test_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = _quickstart.Settings()
    for name in ("views", "steps", "epochs", "seed"):
        assert re.search(rf"--{name} N [^-]*\(default: {getattr(defaults, name)}\)", text), name


def test_images_are_in_one_split_only(here: Path) -> None:
    zoo = Zoo.load("runs/quickstart/zoo")
    images = {
        split: set(zip(zoo.split(split).column("source_split"), zoo.split(split).column("image"), strict=True))
        for split in ("train", "val", "test")
    }
    assert sum(map(len, images.values())) == len(set.union(*images.values())) == 40
    assert len(zoo) == 80


def test_both_methods_have_the_same_budget(here: Path) -> None:
    configs = [Path(f"runs/quickstart/{method}/config.yaml").read_text() for method in ("ng-gnn", "mlp")]
    for key in ("zoo", "epochs", "batch_size", "limit_train", "rotation", "translation"):
        values = [re.findall(rf"^\s*{key}: (.*)$", text, re.M) for text in configs]
        assert values[0] == values[1] != []


def test_report_is_self_contained_and_shows_all(here: Path) -> None:
    page = Path("runs/quickstart/report.html").read_text()
    assert not re.findall(
        r"(?:src|href)=[\"']?(?!data:)[a-z/]|url\(|@import|<script|https?:", page.replace("data:", "data:")
    )
    for title in ("Networks that draw", "One network as a graph", "Learning", "Confusion", "Where the time went"):
        assert title in page
    assert page.count("<figcaption>") > 5
    results = read_results("runs/quickstart/results.json")
    accuracy = next(row["mean"] for row in results["rows"] if row["method"] == "ng-gnn")
    assert f"<b>{accuracy:.1%}</b>" in page


def test_finished_quickstart_is_only_read_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    monkeypatch.setattr(_quickstart, "make_zoo", None)
    monkeypatch.setattr(_quickstart, "train", None)
    assert main(["quickstart", *TINY]) == 0
    output = capsys.readouterr().out
    assert "NG-GNN" in output
    assert "report   runs/quickstart/report.html" in output
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    assert main(["quickstart", *TINY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"].keys() == {"ng-gnn", "mlp"}


@pytest.mark.parametrize("phase", ["make_zoo", "train", "predict"])
def test_interrupted_quickstart_goes_on(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("advice on this phase alone")

    with monkeypatch.context() as patched:
        patched.setattr(_quickstart, phase, interrupt)
        assert main(["quickstart", *TINY]) == 130
    assert capsys.readouterr().err.strip() == "interrupted: nothing is lost, run the same command again to go on"
    assert not Path("runs/quickstart/results.json").exists()
    assert main(["quickstart", *TINY]) == 0
    assert read_results("runs/quickstart/results.json")["rows"]


def test_force_starts_anew_and_leaves_other_files_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = here / "runs/quickstart/notes.txt"
    mine.write_text("mine")
    changed = [*TINY, "--seed", "1"]
    assert main(["quickstart", *changed]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["quickstart", *changed, "--force"]) == 0
    assert mine.read_text() == "mine"
    assert Zoo.load("runs/quickstart/zoo").meta["seed"] == 1
