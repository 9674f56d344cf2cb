"""`neural-graphs train optimizer` and `eval` of what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neural_graphs.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:tasks are drawn on digits")  # where there is no Fashion-MNIST

SMALL = (
    "rule.hidden=4", "rule.messages=4", "rule.width=4", "steps=2", "slots=2", "pairs=2", "truncation=3", "eval_every=1",
    "eval_tasks=1", "horizon=[4,6]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")
    monkeypatch.chdir(tmp_path)


def test_train_and_evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "optimizer", *SMALL, "out=run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == "run" and isinstance(said["score"], float) and 0 <= said["best_step"] <= 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml", "log.jsonl", "metrics.json", "rule.safetensors",
    }  # fmt: skip
    assert main(["train", "optimizer", *SMALL, "out=run"]) == 2
    assert "finished" in capsys.readouterr().err
    assert main(["train", "run/config.yaml", "out=again"]) == 0  # a file that describes a rule is meta-training, too
    assert "next: neural-graphs eval again" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (again["score"], again["best_step"]) == (said["score"], said["best_step"])


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--presets"]) == 0
    assert "\noptimizer " in capsys.readouterr().out
    assert main(["train", "optimizer", "--print"]) == 0
    assert capsys.readouterr().out.startswith("# ")
    assert main(["train", "optimizer", "sigma=0.5", "--print"]) == 0
    assert "sigma: 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "optimizer", "sigma=-1"], "positive"),
        (["train", "optimiser"], "inr-probing, optimizer,"),
        (["train", "optimizer", "nonsense=1"], "unknown key nonsense"),
        (["train", "optimizer", "rule.name=best"], "unknown update rule"),
        (["train", "optimizer", "rule.colour=3"], "update rule graph"),
        (["train", "optimizer", "family=rnn", "out=new"], "unknown family"),
        (["eval", "optimizer", "--zoo", "somewhere"], "--groups"),
        (["eval", "optimizer", "--groups", "nonsense"], "unknown group"),
        (["eval", "runs/none", "--groups", "width"], "--groups is for learned optimizers"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
