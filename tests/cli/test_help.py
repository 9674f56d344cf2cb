"""Help is instant, complete, and its examples work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neural_graphs import __version__
from neural_graphs.cli import main

VERBS = [
    "quickstart", "graph", "check", "zoo", "zoo make", "zoo make inr", "zoo make cnn", "zoo import", "zoo info", "train",
    "eval", "predict", "edit", "bench", "bench step", "bench fit", "bench render", "bench inr", "bench bulk",
    "bench generalisation", "bench optimiser", "bench optimiser-step", "bench nowcast", "bench trace", "bench tables",
]  # fmt: skip
SOURCE = str(Path(__file__).parents[2] / "src")

# Runs `VERB --help` for every argument in a fresh interpreter; prints the largest processor time of one, imports included
# in the first, and which heavy modules were imported.
MEASURE = """
import sys, time
sys.path.insert(0, {source!r})
slowest = 0.0
start = 0.0  # process_time counts from the start of the process
for verb in {verbs!r}:
    from neural_graphs.cli import main
    assert main([*verb.split(), "--help"]) == 0
    slowest, start = max(slowest, time.process_time() - start), time.process_time()
print(slowest, sorted({{"torch", "numpy", "scipy", "rich", "yaml", "jsonargparse"}} & set(sys.modules)), file=sys.stderr)
"""


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    best = 9.0
    for _ in range(3):
        code = MEASURE.format(source=SOURCE, verbs=["", *VERBS])
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, _, modules = found.stderr.strip().partition(" ")
        assert modules == "[]"
        best = min(best, float(seconds))
    assert best < 0.3


def example_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*verb.split(), "--help"]) == 0
    found = re.search(r"example:\n  neural-graphs ([^#\n]*)", capsys.readouterr().out)
    assert found, f"{verb} --help shows no example"
    return found[1].strip()


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_has_an_example_of_that_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert example_of(verb, capsys).startswith(verb)


# Less training than printed.
LESS = {
    "bench inr": "optimizer.epochs=1",
    "train": "optimizer.epochs=1 encoder.width=8",
    "zoo make inr": "--steps 5",
    "zoo make cnn": "--epochs 1 --train-images 64 --test-images 32 --threads 1",
}


# Too slow here: the quickstart runs in a small setting for all these tests, the benchmarks and `edit` in tests of their own.
# `zoo` and `bench` show the example of one of their verbs.
SLOW = (
    "quickstart", "edit", "zoo", "zoo make", "bench", "bench step", "bench fit", "bench render", "bench bulk",
    "bench generalisation", "bench optimiser", "bench nowcast", "bench trace",
)  # fmt: skip


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in SLOW])
def test_examples_work(verb: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if verb == "zoo import":
        _checkpoints(here / "checkpoints")
    if verb == "bench tables":
        (here / "results").mkdir()
        (here / "runs/quickstart/results.json").rename(here / "results/quickstart.json")
    command = shlex.split(f"{example_of(verb, capsys)} {LESS.get(verb, '')}")
    code = main(command)
    output = capsys.readouterr()
    assert code == 0, output.err
    assert output.out


def _checkpoints(folder: Path) -> None:
    folder.mkdir()
    lines = ["file,test_accuracy"]
    for number in range(6):
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        save_file(model.state_dict(), folder / f"net{number}.safetensors")
        lines.append(f"net{number}.safetensors,0.{number}")
    (folder / "scores.csv").write_text("\n".join(lines))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"neural-graphs {__version__}\n"


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "neural_graphs", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": SOURCE})
    assert (found.returncode, found.stdout) == (0, f"neural-graphs {__version__}\n")
