"""bench optimiser: rows per task and over all tasks, the table made of them, and what a second run repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jaxtyping import Float  # noqa: F401  (shapes are checked in tests)

from neural_graphs import bench
from neural_graphs.bench import _optimizer, learned_optimizers, read_results
from neural_graphs.bench._optimizer_table import HEAD, lines, short
from neural_graphs.bench._tables import readme_table, tables
from neural_graphs.cli import main
from neural_graphs.errors import UserError
from neural_graphs.optim import _compare, _evaluate
from neural_graphs.optim._baselines import Setting
from neural_graphs.optim._evaluate import Learned
from neural_graphs.optim._families import HELD_OUT, mlp
from neural_graphs.optim._rule import create_rule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._weights import save_rule

TASKS = tuple(
    InnerTask(name, mlp(8, widths), data="digits", batch_size=32, steps=25)
    for name, widths in (("a", (8,)), ("b", (6,)))
)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small tasks, two settings per baseline."""
    monkeypatch.setitem(HELD_OUT, "width", TASKS)
    for name in ("sgd", "adam"):
        pairs = ((0.02, "linear"), (0.05, "linear"), (0.01, "constant"))
        grid = tuple(Setting(name, *pair) for pair in pairs)
        monkeypatch.setitem(_evaluate.GRIDS, name, grid)


def run(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    rules = {"ff": [Learned(create_rule("ff", seed=seed), 0.02) for seed in (0, 1)]}
    arguments: dict[str, Any] = {
        "rules": rules, "groups": ["width"], "seeds": (1, 2, 3), "out": folder / "results", "runs": folder / "runs",
        "baselines": ("sgd", "adam"), "command": "neural-graphs bench optimiser",
    }  # fmt: skip
    return learned_optimizers(**{**arguments, **settings})


def test_rows_and_tables(few: None, tmp_path: Path) -> None:
    rows = run(tmp_path)
    found = {(r["part"], r["method"], r["variant"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    methods = {(r["method"], r["variant"]) for r in rows}
    assert methods == {("sgd", ""), ("adam", ""), ("adam", "constant lr"), ("ff", ""), ("ff", "lr tuned")}
    ff = found["a", "ff", "", "train_loss"]
    assert len(ff["values"]) == 6 and ff["meta_seeds"] == 2 and ff["steps"] == 25
    adams = [found[task, "adam", "", "train_loss"]["values"] for task in "ab"]
    ffs = [found[task, "ff", "", "train_loss"]["values"] for task in "ab"]
    wanted = [sum((ffs[t][seed] + ffs[t][3 + seed]) / 2 - adams[t][seed] for t in (0, 1)) / 2 for seed in range(3)]
    assert found["all tasks", "ff", "", "train_loss_minus_adam"]["values"] == pytest.approx(wanted)
    assert found["all tasks", "adam", "", "at_or_below_adam_share"]["mean"] == 1
    below = sum(sum(ffs[t]) / 6 <= sum(adams[t]) / 3 for t in (0, 1)) / 2
    assert found["all tasks", "ff", "", "at_or_below_adam_share"]["mean"] == below
    assert found["a", "adam", "", "steps_to_adam_share"]["reached"] == 3
    assert found["a", "adam", "", "train_loss"]["minus_adam"] == [0, 0]
    assert found["a", "ff", "", "optimizer_time_over_adam"]["mean"] > 1

    kept = read_results(tmp_path / "results/optimiser-width.json")
    assert [{**r, "group": "width"} for r in kept["rows"]] == rows
    cells = lines(kept["rows"])
    assert {len(line) for line in cells} == {len(HEAD)} and len(cells) == 15
    assert cells[-1][0] == "" and cells[-5][0] == "**all tasks**"
    page = tables(tmp_path / "results")
    assert "Learned optimizers: wider networks" in page and "ff, lr tuned" in page
    assert [line[0] for line in short(kept["rows"])] == ["ff"] and "of 2 tasks" in readme_table(tmp_path / "results")


def test_nothing_is_trained_twice(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path, timing=False)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(_evaluate, "train_many", forbidden)
    assert run(tmp_path, timing=False) == rows


def test_rules_are_read_with_their_cards(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_rule(create_rule("ff", seed=3), tmp_path / "rule.safetensors", {"lr": 0.03, "schedule": "constant"})
    given: list[Learned] = []

    def compare(task: InnerTask, rules: dict[str, list[Learned]], *_: Any) -> list[Any]:
        given.extend(rules["mine"])
        return _compare.compare(task, {}, tmp_path / "runs", (1, 2), ("adam",), timing=False)

    monkeypatch.setattr(_optimizer, "compare", compare)
    command = [
        "bench",
        "optimiser",
        "--rule",
        f"mine={tmp_path}",
        "--groups",
        "width",
        "--out",
        str(tmp_path / "results"),
    ]
    assert main([*command, "--seeds", "1,2"]) == 0
    assert (given[0].lr, given[0].schedule, given[0].rule.config) == (0.03, "constant", {"name": "ff", "seed": 3})
    save_rule(create_rule("ff"), tmp_path / "rule.safetensors", {})
    with pytest.raises(UserError, match="does not say its learning rate"):
        learned_optimizers({"mine": [tmp_path]}, ["width"])


def test_one_line_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--rule", "graph"], "give a name and files"),
        (["--groups", "none"], "unknown group"),
        (["--rule", "x=missing"], "missing"),
    ):
        assert main(["bench", "optimiser", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert bench.learned_optimizers is learned_optimizers
