"""bench edit: rows of editors, references and other zoos, from runs that are not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neural_graphs.bench import editing, read_results
from neural_graphs.bench._edit import EDITORS, FINER
from neural_graphs.bench._tables import tables
from neural_graphs.errors import UserError
from neural_graphs.graph import render
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Editor
from neural_graphs.zoo import Zoo, make_zoo

SETTINGS = ("optimizer.epochs=1", "optimizer.batch_size=8", "optimizer.warmup_steps=1")


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Zoo, Zoo]:
    """One zoo of digits, and one of another architecture with test networks alone."""
    folder = tmp_path_factory.mktemp("zoos")
    settings = {"steps": 20, "lr": 3e-3, "workers": 1}
    first = make_zoo(folder / "zoo", "digits", size=28, widths=(8,), splits=(16, 4, 8), **settings)  # type: ignore[arg-type]
    return first, make_zoo(folder / "deeper", "digits", size=6, widths=(5, 4), splits=(0, 0, 6), **settings)  # type: ignore[arg-type]


def test_rows(zoos: tuple[Zoo, Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zoo, other = zoos
    where = {"out": "results/edit-dilate-mnist.json", "runs": "runs/edit"}

    def again(transfer: tuple[Path, ...]) -> dict[tuple[str, str, str], dict[str, float]]:
        editing(zoo.path, ["ng-gnn"], (0, 1), overrides=SETTINGS, transfer=transfer, **where)  # type: ignore[arg-type]
        rows = read_results(where["out"])["rows"]
        assert len({(row["method"], row["variant"], row["metric"]) for row in rows}) == len(rows)
        return {(row["method"], row["variant"], row["metric"]): row for row in rows}

    rows = again(())
    trained = (tmp_path / "runs/edit/ng-gnn-seed0/metrics.json").stat().st_mtime_ns
    own = rows["ng-gnn", "probes=0", "test_mse"]
    assert len(own["values"]) == 2 and own["networks"] == 8 and own["copies"] == 1  # type: ignore[arg-type]
    assert own["mean"] > 0 and rows["ng-gnn", "probes=0", "val_mse"]["mean"] > 0
    assert rows["ng-gnn", "probes=0", "seconds_per_network"]["mean"] > 0
    assert rows["ng-gnn", "probes=0", "test_ssim"]["mean"] <= 1
    title = "ng-gnn probes=0"
    assert rows["refit", f"for as long as {title}", "test_mse"]["steps"] >= 1
    assert ("refit", f"for as long as {title}", "seconds_per_network") in rows
    finer = rows["ng-gnn", f"probes=0, rendered {FINER} times finer", "test_mse"]
    assert finer["mean"] > 0 and rows["no edit", f"rendered {FINER} times finer", "test_mse"]["mean"] > 0

    model = Editor.from_pretrained("runs/edit/ng-gnn-seed0")
    from neural_graphs.tasks._targets import edit_targets

    wanted = edit_targets(zoo.test, ["dilate"])[0]
    plain = render(zoo.test.batch(), 8, 8)
    assert rows["no edit", "", "test_mse"]["mean"] == pytest.approx(float((plain - wanted).square().mean()), rel=1e-4)
    assert own["values"][0] == pytest.approx(model.score(zoo.test), rel=1e-4)  # type: ignore[index]

    rows = again((other.path,))
    assert (tmp_path / "runs/edit/ng-gnn-seed0/metrics.json").stat().st_mtime_ns == trained
    deeper = rows["ng-gnn", "probes=0, deeper", "test_mse"]
    assert deeper["networks"] == 6 and deeper["values"][0] == pytest.approx(model.score(other.test), rel=1e-4)  # type: ignore[index]
    assert ("no edit", "deeper", "test_mse") in rows
    both = ["mlp", "ng-gnn"]
    editing(zoo.path, both, (0,), overrides=SETTINGS, transfer=[other.path], **where)  # type: ignore[arg-type]
    assert sum(r["method"] == "no edit" and not r["variant"] for r in read_results(where["out"])["rows"]) == 3
    flat = [row["variant"] for row in read_results(where["out"])["rows"] if row["method"] == "mlp"]
    assert flat and "deeper" not in flat  # it cannot read them
    page = tables("results")
    assert "Editing MNIST INRs" in page and "x1e-2" in page and "ms per network" in page


def test_every_method_is_an_editor() -> None:
    """Encoders that ``Editor`` takes, under settings that the preset knows."""
    from neural_graphs.tasks import load_config

    for entry in EDITORS.values():
        more = {"parameters": 49} if entry.encoder["name"] == "mlp" else {"inputs": 2}
        config = load_config("edit", entry.settings)
        editor = Editor(create_encoder(**{**entry.encoder, **more}), copies=config.copies)
        assert sum(p.numel() for p in editor.parameters()) > 0 and torch.is_tensor(next(editor.parameters()))


def test_refusals(zoos: tuple[Zoo, Zoo], tmp_path: Path) -> None:
    out = tmp_path / "edit.json"
    with pytest.raises(UserError, match="unknown 'ng'.*mlp"):
        editing(zoos[0].path, ["ng"], out=out, runs=tmp_path)
    with pytest.raises(UserError, match="unknown edit 'melt'"):
        editing(zoos[0].path, ["mlp"], out=out, runs=tmp_path, overrides=["edits=[melt]"])
    assert not out.exists()
