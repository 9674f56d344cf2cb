"""Results files and the tables made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neural_graphs.bench import _results as results_module
from neural_graphs.bench import read_results, row, tables, update_readme_table, write_results, write_tables
from neural_graphs.bench._tables import readme_table
from neural_graphs.errors import UserError

DATA = {"zoo": "digits", "train": 10}
REPOSITORY = Path(__file__).parents[2]


def write(path: Path, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return write_results(
        path, **{"experiment": "x", "command": "c", "dataset": DATA, "rows": rows, "threads": 1, **changes}
    )


def test_schema(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write(path, row("ng-gnn", "test_accuracy", [0.8, 0.9], "probes=64", parameters=7))
    data = json.loads(path.read_text())
    assert list(data) == list(results_module.FIELDS)
    assert data["dataset"] == DATA and data["threads"] == 1 and data["torch"].count(".") == 2
    assert data["device"].endswith("(CPU)") and data["created"].startswith("20")
    (entry,) = data["rows"]
    assert entry["mean"] == pytest.approx(0.85) and entry["std"] == pytest.approx(0.0707, abs=1e-4)
    assert entry["values"] == [0.8, 0.9] and entry["parameters"] == 7
    assert read_results(path) == data
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]  # nothing left of the atomic write


def test_one_value_has_no_spread() -> None:
    assert row("a", "b", 3)["std"] == 0 and row("a", "b", 3)["values"] == [3.0]
    with pytest.raises(UserError, match="at least one value"):
        row("a", "b", [])


def test_rerun_replaces_its_own_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(results_module, "commit", lambda: "old")
    write(path, row("a", "m", 1), row("b", "m", 2), row("a", "m", 3, "probes=0"))
    monkeypatch.setattr(results_module, "commit", lambda: "new")
    data = write(path, row("a", "m", 9))
    found = {(r["method"], r["variant"]): (r["mean"], r.get("commit")) for r in data["rows"]}
    assert found == {("a", ""): (9.0, None), ("b", ""): (2.0, "old"), ("a", "probes=0"): (3.0, "old")}
    assert data["commit"] == "new" and read_results(path) == data
    monkeypatch.setattr(results_module, "commit", lambda: "newest")
    again = write(path, row("a", "m", 10))
    assert {r["method"]: r.get("commit") for r in again["rows"] if not r["variant"]} == {"a": None, "b": "old"}


def test_figures_of_other_data_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    before = write(path, row("a", "m", 1))
    for change in ({"dataset": {"zoo": "mnist"}}, {"experiment": "y"}):
        with pytest.raises(UserError, match="remove it or write elsewhere"):
            write(path, row("a", "m", 2), **change)
    with pytest.raises(UserError, match="lacks mean, std, values"):
        write(path, {"method": "a", "variant": "", "metric": "m"})
    assert read_results(path) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}'])
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json"):
        read_results(tmp_path / "x.json")
    with pytest.raises(UserError, match="x.json"):
        tables(tmp_path)


def test_commit_is_of_this_source_or_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert results_module.commit() == "v" + results_module.neural_graphs.__version__


def test_tables(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write(
        folder / "inr-mnist.json",
        row("ng-gnn", "test_accuracy", [0.911, 0.921], "probes=0", parameters=331_466, epochs=5, seconds=50.0),
        experiment="inr-mnist",
    )
    write(folder / "step.json", row("ng-gnn", "speedup", [5.0, 7.0, 6.5], median=6.5), experiment="step")
    text = tables(folder)
    assert text.index("Classifying MNIST INRs") < text.index("A training step")
    assert "| ng-gnn | probes=0 | 91.6 ± 0.7 % |  | 2 | 5 | 331,466 | 10.0 |  |  |" in text
    assert "| ng-gnn |  | speedup | 6.5x (5.0 to 7.0) | 3 | at least 5 |  |" in text
    assert "Data: zoo digits, train 10" in text


def test_readme_says_of_many_architectures_what_they_have_in_common(tmp_path: Path) -> None:
    names = ("", "probes=4", "probes=4, 3 architectures never seen", "probes=4, 2-8-8-1 relu, never seen")
    rows = [row("ng-gnn", "test_accuracy", 0.5, name) for name in names]
    write_results(tmp_path / "architectures.json", "architectures", "c", {"zoo": "z"}, rows)
    write_results(tmp_path / "options-mnist.json", "options-mnist", "c", {"zoo": "z"}, rows)
    lines = readme_table(tmp_path).splitlines()[2:]
    assert len(lines) == 1 and "3 architectures never seen" in lines[0]


def test_readme_part_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "results" / "step.json", row("ng-gnn", "speedup", 6.0), experiment="step")
    readme = tmp_path / "README.md"
    readme.write_text("# top\n<!-- results -->\nold\n<!-- /results -->\nbottom\n")
    for _ in range(2):  # the second time changes nothing
        write_tables(tmp_path / "results", tmp_path / "docs" / "results.md", readme)
        text = readme.read_text()
        assert text.startswith("# top\n<!-- results -->\n| Experiment |") and text.endswith(
            "<!-- /results -->\nbottom\n"
        )
        assert "old" not in text and text.count("6.0x") == 1
    assert (tmp_path / "docs" / "results.md").read_text() == tables(tmp_path / "results")
    (tmp_path / "bare.md").write_text("nothing")
    for wrong in ("bare.md", "missing.md"):
        with pytest.raises(UserError, match=wrong):
            update_readme_table(tmp_path / wrong, tmp_path / "results")


def test_published_tables_are_those_of_the_results() -> None:
    """Nobody typed a number: the repository's page is what its results files say."""
    page = REPOSITORY / "docs" / "results.md"
    if not page.is_file():
        pytest.skip("no page of results beside these tests")
    assert page.read_text() == tables(REPOSITORY / "results")
