"""Stopped anywhere and resumed, a run on the CPU is bit for bit the run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neural_graphs.errors import RunError, UserError
from neural_graphs.tasks import AugmentConfig, PretrainConfig, train
from neural_graphs.tasks._config import to_yaml
from neural_graphs.tasks._loop import Loop
from neural_graphs.zoo import Zoo

AUGMENT = AugmentConfig(translation=0.1, rotation=20.0, scaling=0.1, noise=0.05, dropout=0.01, symmetry=True, mixup=0.3)
OPTIONS: dict[str, Any] = {"augment": AUGMENT, "ema": 0.9}
EVERYTHING = OPTIONS | {"pretrain": PretrainConfig(epochs=2, side=6, width=16), "reconstruction": 0.1}
"""8 steps of pre-training, then the 16 that ``OPTIONS`` alone have."""


def log(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same(a: Path, b: Path) -> None:
    assert log(a) == log(b)
    for file in ("model/model.safetensors", "last/state.safetensors"):
        left, right = load_file(a / file), load_file(b / file)
        assert left.keys() == right.keys() and any("running" not in key for key in left)
        assert all(torch.equal(left[key], right[key]) for key in left), file
    skipped = ("seconds", "peak_memory_mb")
    left, right = (json.loads((run / "metrics.json").read_text()) for run in (a, b))
    assert {k: v for k, v in left.items() if k not in skipped} == {k: v for k, v in right.items() if k not in skipped}


@pytest.fixture(scope="module")
def straight(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory, config: Any) -> Path:
    return train(config(zoo, tmp_path_factory.mktemp("straight") / "run", **OPTIONS), quiet=True).run_dir


@pytest.mark.parametrize("step", [3, 8, 13])
def test_ctrl_c_between_any_two_steps(
    zoo: Zoo, tmp_path: Path, config: Any, straight: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(zoo, tmp_path / "run", **OPTIONS)
    original = Loop._step

    def press(loop: Any, sample: Any) -> None:
        original(loop, sample)
        if loop.course.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", press)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="continue with `neural-graphs train .*config.yaml --resume`"):
        train(settings, quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    assert len(log(tmp_path / "run")) == (step - 1) // 4 if (tmp_path / "run" / "log.jsonl").exists() else step < 5
    with pytest.raises(UserError, match="unfinished run: continue it with --resume"):
        train(settings, quiet=True)
    with pytest.raises(UserError, match=r"another configuration \(optimizer.lr\)"):
        train(config(zoo, tmp_path / "run", **OPTIONS, lr=1e-4), resume=True, quiet=True)
    train(settings, resume=True, quiet=True)
    assert_same(tmp_path / "run", straight)


KILLED = """
import os, signal, sys
from neural_graphs.tasks import load_config, train
from neural_graphs.tasks._loop import Loop

where, count = sys.argv[2], int(sys.argv[3])
name = {"step": "_step", "state": "_save_state"}[where]
original = getattr(Loop, name)
calls = 0

def deadly(loop, *arguments):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    original(loop, *arguments)

setattr(Loop, name, deadly)
train(load_config(sys.argv[1]), quiet=True)
"""


@pytest.mark.parametrize(("where", "count"), [("step", 11), ("state", 3)])
def test_kill_in_a_step_or_between_best_model_and_state(
    zoo: Zoo, tmp_path: Path, config: Any, straight: Path, where: str, count: int
) -> None:
    settings = config(zoo, tmp_path / "run", **OPTIONS)
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    arguments = [str(tmp_path / "config.yaml"), where, str(count)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.json").exists()
    train(settings, resume=True, quiet=True)
    assert_same(tmp_path / "run", straight)


@pytest.fixture(scope="module")
def everything(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory, config: Any) -> Path:
    return train(config(zoo, tmp_path_factory.mktemp("everything") / "run", **EVERYTHING), quiet=True).run_dir


@pytest.mark.parametrize("step", [6, 10, 15])
def test_broken_off_in_pretraining_and_behind_it(
    zoo: Zoo, tmp_path: Path, config: Any, everything: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its second epoch, before the first validation of the classifier, and after it; without a state of that moment."""
    settings = config(zoo, tmp_path / "run", **EVERYTHING)
    original, calls = Loop._step, 0

    class Killed(BaseException):
        pass

    def kill(loop: Any, sample: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        original(loop, sample)

    monkeypatch.setattr(Loop, "_step", kill)
    with pytest.raises(Killed):
        train(settings, quiet=True)
    monkeypatch.undo()
    done = [(row.get("phase", "classify"), row["step"]) for row in log(tmp_path / "run")]
    assert done == [("pretrain", 4), ("pretrain", 8), ("classify", 4)][: (step - 1) // 4]
    train(settings, resume=True, quiet=True)
    assert_same(tmp_path / "run", everything)


def test_ctrl_c_in_pretraining(
    zoo: Zoo, tmp_path: Path, config: Any, everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Loop._step

    def press(loop: Any, sample: Any) -> None:
        original(loop, sample)
        if loop.phase == "pretrain" and loop.course.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", press)
    settings = config(zoo, tmp_path / "run", **EVERYTHING)
    with pytest.raises(KeyboardInterrupt, match="continue with"):
        train(settings, quiet=True)
    monkeypatch.undo()
    train(settings, resume=True, quiet=True)
    assert_same(tmp_path / "run", everything)


def test_a_failed_write_loses_nothing(
    zoo: Zoo, tmp_path: Path, config: Any, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neural_graphs.nn import _hub
    from neural_graphs.tasks import _run

    settings = config(zoo, tmp_path / "run", **OPTIONS)
    calls = 0

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the state after the second validation, or its best model
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    from safetensors.torch import save_file

    monkeypatch.setattr(_hub, "save_file", full)
    monkeypatch.setattr(_run, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        train(settings, quiet=True)
    monkeypatch.undo()
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not [entry for entry in (tmp_path / "run").rglob("*.tmp*")]
    train(settings, resume=True, quiet=True)
    assert_same(tmp_path / "run", straight)


def test_more_epochs_continue_a_finished_run(zoo: Zoo, tmp_path: Path, config: Any, straight: Path) -> None:
    train(config(zoo, tmp_path / "run", **OPTIONS, epochs=2), quiet=True)
    train(config(zoo, tmp_path / "run", **OPTIONS), resume=True, quiet=True)
    assert_same(tmp_path / "run", straight)


def test_second_ctrl_c_breaks_off_at_once() -> None:
    from neural_graphs.tasks._runtime import Interrupted, interruptible

    assert threading.current_thread() is threading.main_thread()
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
