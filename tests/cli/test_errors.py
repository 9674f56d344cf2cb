"""Whatever goes wrong: one clear line, the right exit code, nothing executed, nothing lost."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from neural_graphs import _io
from neural_graphs.cli import _check, main
from neural_graphs.cli._parser import load
from neural_graphs.errors import RunError, UserError
from neural_graphs.zoo import Zoo

RUN, ZOO, EXAMPLE = "runs/quickstart/ng-gnn", "runs/quickstart/zoo", "runs/quickstart/example.safetensors"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bad\ninput"), 2, "error: bad input"),
        (RunError("disk full"), 1, "error: disk full"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), 1, "error: x.json: Permission denied"),
        (KeyError("k"), 1, "error: unexpected KeyError: 'k' (--debug shows where)"),
        (MemoryError(), 1, "error: out of memory: use a smaller batch"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again"),
        (KeyboardInterrupt("interrupted: 3 of 9 are safe"), 130, "interrupted: 3 of 9 are safe"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: argparse.Namespace) -> NoReturn:
        raise error

    monkeypatch.setattr(_check, "run", fail)
    assert main(["check", "x"]) == code
    assert one_line(capsys).startswith(line)


@pytest.mark.parametrize("arguments", [["--debug", "check", "x"], ["check", "x", "--debug"]])
def test_debug_shows_where(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: argparse.Namespace) -> NoReturn:
        raise KeyError("k")

    monkeypatch.setattr(_check, "run", fail)
    with pytest.raises(KeyError):
        main(arguments)


WRONG_USAGE = [
    ([], "VERB"),
    (["paint"], "invalid choice: 'paint'"),
    (["graph"], "CKPT"),
    (["graph", "x", "--jso"], "--jso"),
    (["check", "x", "--samples", "0"], "0 is not a positive number"),
    (["check", "x", "--threads", "many"], "invalid positive number value: 'many'"),
    (["check", "x", "--input", "3x"], "write 3x224x224"),
    (["zoo", "make", "inr"], "-o/--out"),
    (["zoo", "make", "inr", "-o", "z", "--widths", "a,b"], "list such as 32,32"),
    (["eval", "r", "--split", "all"], "invalid choice: 'all'"),
    (["predict", "r"], "DIR|FILE"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_USAGE)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    line = one_line(capsys)
    assert line.startswith("error: ")
    assert words in line
    assert "--help" in line


WRONG_INPUT = [
    # One network.
    ("graph missing.safetensors", "missing.safetensors"),
    ("graph bare.safetensors", "--activation"),
    ("graph bare.safetensors --activation wave", "unknown activation 'wave'"),
    ("graph bare.safetensors --activation relu,relu,relu", "2 hidden layers"),
    ("graph nan.safetensors", "nan.safetensors: the network has NaN or infinite values in seq.1.weight"),
    ("graph truncated.safetensors", "truncated"),
    ("graph truncated.pt", "truncated"),
    ("graph hostile.pt", "refused"),
    ("graph notes.txt", "unknown kind of network file"),
    ("check missing.pt", "missing.pt"),
    ("check hostile.pt", "refused"),
    ("check nan.safetensors --activation relu", "NaN"),
    (f"check {EXAMPLE} --input 3x8x8", "does not run on this input"),
    # Zoos.
    ("zoo make inr -o new --images cats", "unknown images 'cats'"),
    ("zoo make inr -o new --recipe cake", "unknown recipe 'cake'"),
    ("zoo make inr -o new --splits 0.5,0.5", "splits"),
    ("zoo make inr -o new --diverse --widths 8", "diverse"),
    ("zoo make inr -o new --size 100000", "size 100000"),
    (f"zoo make inr -o {ZOO} --size 10", "holds another zoo"),
    ("zoo make inr -o runs/quickstart/ng-gnn --size 10", "holds no zoo"),
    ("zoo import missing -o new", "missing is no folder"),
    ("zoo import runs -o new", "no zoo to import"),
    ("zoo info missing", "missing is no zoo"),
    # Training and its results.
    ("train", "give a configuration"),
    ("train missing.yaml", "neither a file nor a preset"),
    ("train inr-cpu", "no zoo given"),
    ("train inr-cpu zoo=missing", "missing is no zoo"),
    (f"train inr-cpu zoo={ZOO} out=new encoder.name=oracle", "unknown encoder 'oracle'"),
    (f"train inr-cpu zoo={ZOO} out=new label=colour", "no column 'colour': its columns are network"),
    (f"train inr-cpu zoo={ZOO} out=new label=psnr_db", "no class numbers"),
    (f"train inr-cpu zoo={ZOO} out=new optimizer.speed=1", "unknown key optimizer.speed"),
    (f"train inr-cpu zoo={ZOO} out=new optimizer.epochs=many", "optimizer.epochs is 'many', expected a whole number"),
    (f"train inr-cpu zoo={ZOO} out={RUN}", "another out"),
    ("train notes.txt", "holds no configuration"),
    ("eval missing", "missing is no training run"),
    (f"eval {RUN} --zoo missing", "missing is no zoo"),
    ("predict missing bare.safetensors", "missing"),
    (f"predict {RUN} missing.pt", "missing.pt"),
    (f"predict {RUN} other.safetensors", "other.safetensors"),
    # Measurements.
    ("bench inr missing", "missing is no zoo"),
    (f"bench inr {ZOO} --methods magic", "magic"),
    # The quickstart.
    ("quickstart -o runs", "runs exists and is no quickstart's folder"),
    ("quickstart --epochs 7", "other settings"),
]


@pytest.mark.parametrize(("command", "words"), WRONG_INPUT)
def test_wrong_input(command: str, words: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(broken)
    assert main(command.split()) == 2
    line = one_line(capsys)
    assert line.startswith("error: ")
    assert words in line
    assert "unexpected" not in line
    assert _files(broken) == before


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_predict_reports_wrong_files_and_classifies_the_others(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["nan.safetensors", "bare.safetensors", "hostile.pt", "truncated.pt", "other.safetensors", EXAMPLE]
    assert main(["predict", RUN, *files]) == 2
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines()[1:]] == ["bare.safetensors", EXAMPLE]
    errors = output.err.strip().splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 4
    assert [name for line in errors for name in files if name in line] == [
        f for f in files if f not in ("bare.safetensors", EXAMPLE)
    ]
    assert not Path("executed").exists()

    assert main(["predict", RUN, *files, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in found] == files
    assert ["error" in entry for entry in found] == [True, False, True, True, True, False]


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "change", "command"),
    [
        (f"{ZOO}/zoo.json", {"format": 99}, f"zoo info {ZOO}"),
        (f"{ZOO}/zoo.json", {"format": 99}, f"train inr-cpu zoo={ZOO} out=new"),
        (f"{ZOO}/zoo.json", {"format": 99}, f"eval {RUN}"),
        (f"{RUN}/model/config.json", {"format": 99}, f"predict {RUN} {EXAMPLE}"),
    ],
)
def test_files_of_a_newer_version(
    file: str, change: dict[str, Any], command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _rewrite(here / file, **change)
    assert main(command.split()) == 2
    assert "newer version" in one_line(capsys)


def test_truncated_model_and_shard(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = here / RUN / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["predict", RUN, EXAMPLE]) == 2
    assert "truncated" in one_line(capsys)
    (shard,) = (here / ZOO / "weights").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:1000])
    assert main(["zoo", "info", ZOO]) == 2
    assert "truncated" in one_line(capsys)


WRITES = [
    "zoo make inr -o new --size 10 --steps 2",
    f"zoo info {ZOO}",
    f"train inr-cpu zoo={ZOO} out=new optimizer.epochs=1 encoder.width=8",
    f"graph {EXAMPLE} --html graph.html",
    "quickstart -o new --size 20 --steps 2 --epochs 1",
    "bench tables --results none",
]


@pytest.mark.parametrize("command", WRITES)
def test_full_disk(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = _files(here)
    monkeypatch.setattr(_io.os, "fsync", full)
    assert main(command.split()) == 1
    assert "No space left on device" in one_line(capsys)
    assert {path: content for path, content in _files(here).items() if path in before} == before
    assert not [path for path in here.rglob("*.tmp*")]


@pytest.mark.parametrize("command", WRITES)
def test_folder_that_cannot_be_written(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(command.split()) == 1
    assert "Permission denied" in one_line(capsys)


def test_check_fails_where_nothing_would_be_noticed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Every neuron of this network is the same, so no permutation can be told from the identity: a check proves nothing.
    import torch
    from safetensors.torch import save_file

    save_file({"0.weight": torch.ones(8, 2), "1.weight": torch.ones(1, 8)}, "constant.safetensors")
    assert main(["check", "constant.safetensors", "--activation", "relu"]) == 1
    assert "neither shown nor refuted" in capsys.readouterr().out


def test_reader_of_the_output_may_leave() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-m", "neural_graphs", "train", "--presets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_interrupted_zoo_is_continued(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from neural_graphs.zoo import _make

    fit, calls = _make.fit_networks, []

    def interrupt_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(_make, "fit_networks", interrupt_second)
    command = ["zoo", "make", "inr", "-o", "new", "--size", "20", "--steps", "5", "--shard-size", "8"]
    assert main(command) == 130
    assert "8 of 20 networks are safe in new" in one_line(capsys)
    assert main(command) == 0
    assert len(calls) == 4
    assert Zoo.load("new").complete


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system cannot hold signals back")
def test_interrupt_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nfinished = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load("slow_module")
    assert sys.modules.pop("slow_module").finished
