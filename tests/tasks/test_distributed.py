"""Two processes that share every batch make the training of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neural_graphs.errors import UserError
from neural_graphs.tasks import PretrainConfig, train
from neural_graphs.tasks._config import to_yaml
from neural_graphs.zoo import Zoo

CODE = "import sys; from neural_graphs.tasks import load_config, train; train(load_config(sys.argv[1]), quiet=True)"


@pytest.mark.slow
def test_two_processes_equal_one(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    encoder = {"name": "ng-gnn", "width": 8, "layers": 2, "fourier": 0, "dropout": 0.0}
    shape = {"epochs": 3, "batch_size": 13, "encoder": encoder, "device": "cpu", "lr": 1e-3}  # 64 = 4 * 13 + 12
    shape |= {"pretrain": PretrainConfig(epochs=2, side=4, width=8), "reconstruction": 0.1, "ema": 0.9}
    (tmp_path / "train.py").write_text(CODE)
    (tmp_path / "config.yaml").write_text(to_yaml(config(zoo, tmp_path / "two", **shape)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "train.py"), str(tmp_path / "config.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one = train(config(zoo, tmp_path / "one", **shape), quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    expected_rows = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == len(expected_rows) == 5
    for row, expected in zip(rows[:2], expected_rows[:2], strict=True):
        assert row["phase"] == "pretrain"
        assert row["train_error"] == pytest.approx(expected["train_error"], rel=1e-4)
        assert row["val_error"] == pytest.approx(expected["val_error"], rel=1e-4)
    rows = rows[2:]
    assert len(rows) == len(one.history) == 3
    for row, expected in zip(rows, one.history, strict=True):
        assert row["step"] == expected["step"]
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)


def test_only_the_main_process_touches_the_run_folder(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    """The others come while it is half made: they neither refuse what they find there nor clear it."""
    from neural_graphs.tasks._run import RunFolder

    made = config(zoo, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "half.tmp").write_text("x")
    RunFolder(made, resume=False, main=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["half.tmp"]
    with pytest.raises(UserError, match="no training run"):
        RunFolder(made, resume=False)
