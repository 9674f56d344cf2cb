"""One tiny finished quickstart for all tests of the command, and files that are wrong in every way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs.cli import main

TINY = ["--size", "40", "--steps", "20", "--views", "2", "--epochs", "1"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `neural-graphs quickstart` has run with the default output folder, in a small setting."""
    folder = tmp_path_factory.mktemp("quickstart")
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    try:
        assert main(["quickstart", *TINY, "--threads", "1"]) == 0
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the finished quickstart's folder that the test may spoil."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Code:
    """Unpickling it would make a folder `executed`."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.fixture
def broken(here: Path) -> Path:
    """`here`, with bare.safetensors (states no architecture) and files that no verb can use."""
    state = load_file(here / "runs/quickstart/example.safetensors")
    save_file(state, here / "bare.safetensors")
    save_file({**state, "seq.1.weight": state["seq.1.weight"] * float("nan")}, here / "nan.safetensors")
    save_file({f"l.{i}.weight": torch.ones(3, 3) for i in range(2)}, here / "other.safetensors")
    (here / "truncated.safetensors").write_bytes((here / "bare.safetensors").read_bytes()[:400])
    torch.save(state, here / "whole.pt")
    (here / "truncated.pt").write_bytes((here / "whole.pt").read_bytes()[:400])
    torch.save({"w": Code()}, here / "hostile.pt")
    (here / "notes.txt").write_text("no network")
    return here
