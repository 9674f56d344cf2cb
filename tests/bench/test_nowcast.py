"""bench nowcast: what its rows hold, on runs of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from neural_graphs.bench import _nowcast, nowcasting, read_results
from neural_graphs.bench._tables import tables
from neural_graphs.optim._families import cnn, mlp
from neural_graphs.optim._nowcast import Nowcaster
from neural_graphs.optim._task import InnerTask

TASK = InnerTask("", mlp(8, (6,)), data="digits", batch_size=32)
CNN = InnerTask("", cnn((4,)), data="digits", batch_size=32)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nowcast, "INTERVAL", 1)
    monkeypatch.setattr(_nowcast, "STEPS", 46)
    monkeypatch.setattr(_nowcast, "NOW", (5,))
    monkeypatch.setattr(_nowcast, "IMAGES", 100)
    monkeypatch.setattr(_nowcast, "TRAINED_ON", ((5,),))
    monkeypatch.setattr(_nowcast, "IMAGE_SETS", ("digits",))
    monkeypatch.setattr(_nowcast, "RACED", ("seeds",))
    tests = {"seeds": TASK.with_steps(46), "cnn": CNN.with_steps(46)}
    monkeypatch.setattr(_nowcast, "_tested_on", lambda: tests)


def test_rows(tmp_path: Path, few: None) -> None:
    out, kept = tmp_path / "results" / "optimiser-nowcast.json", tmp_path / "kept"
    rows = nowcasting(out, seeds=(0, 1), steps=3, runs=2, networks=1, save=kept)
    assert read_results(out)["rows"] == rows
    found = {(r["method"], r["metric"], r["variant"]): r for r in rows}
    jumps = {r["method"] for r in rows if r["metric"] == "loss_after_jump"}
    assert jumps == {
        "last state", "mean of states", "linear extrapolation", "linear extrapolation (last two)", "nowcaster", "Adam"
    }  # fmt: skip
    for part in ("seeds", "cnn"):
        still, near, far = (
            found["last state", "loss_after_jump", f"{part}, {k} intervals"]["values"] for k in (10, 40, 40)
        )
        assert still == near == far and len(still) == 2 and still[0] != still[1]
        assert found["nowcaster", "loss_after_jump", f"{part}, 40 intervals"]["values"] != still
        assert found["nowcaster", "weight_error", f"{part}, 40 intervals"]["mean"] > 0
    for schedule in ("constant", "linear"):
        plain = found["Adam", "steps_to_target", f"seeds, {schedule} lr"]
        assert 0 < plain["mean"] <= 60 and ("Adam", "steps_to_target", f"cnn, {schedule} lr") not in found
        jumped = found["nowcaster jumps", "final_loss", f"seeds, {schedule} lr"]["values"]
        assert jumped != found["Adam", "final_loss", f"seeds, {schedule} lr"]["values"]
    assert Nowcaster.from_pretrained(kept / "seed-1").interval == 1
    assert "## Nowcasting: jumping ahead in training" in tables(out.parent)
