"""`neural-graphs edit`: its output, its exit codes, and one line for whatever is wrong."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs import _io
from neural_graphs.cli import main
from neural_graphs.explore import load_network, save_network
from neural_graphs.graph import Stack
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Classifier, Editor

STACK = Stack.mlp((2, 8, 1), "sine:30", shift=0.5)
RUN, EXAMPLE = "runs/edit", "runs/quickstart/example.safetensors"
KEYS = ["file", "out", "picture", "edit", "strength", "architecture", "mse", "no_edit_mse", "seconds"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"width": 8, "layers": 1, "fourier": 0}
    encoder = create_encoder("ng-gnn", **arguments)
    Editor(encoder, size=(8, 8), architectures=(STACK,)).save(folder / "edit")
    Editor(encoder, size=(8, 8), edits=("dilate", "blur"), architectures=(STACK,)).save(folder / "two")
    Classifier(encoder, num_classes=3).save(folder / "classifier")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, as after a quickstart and `train edit`."""
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for model in models.iterdir():
        (tmp_path / "runs" / model.name).symlink_to(model)
    torch.manual_seed(1)
    save_network(tmp_path / EXAMPLE, STACK.module().state_dict(), STACK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file() and "runs" not in path.parts}


def test_the_example_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--help"]) == 0
    found = re.search(r"example:\n  neural-graphs (edit .*)", capsys.readouterr().out)
    assert found
    before = Path(EXAMPLE).read_bytes()
    assert main(shlex.split(found[1])) == 0
    out, err = capsys.readouterr()
    assert not err
    head, row = (line.split("  ") for line in out.strip().splitlines())
    assert [cell.strip() for cell in head if cell] == ["file", "edit", "mse", "no edit", "architecture", "out"]
    assert row[0] == "example.safetensors" and row[-1] == "edited.safetensors"
    assert outputs() == {"edited.safetensors", "edited.png"}
    assert load_network("edited.safetensors").stack == STACK and Path(EXAMPLE).read_bytes() == before


def test_json_of_good_and_bad(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some").mkdir()
    state = load_file(EXAMPLE)
    torch.save(state, "some/a.pt")
    torch.save({key: value * float("nan") for key, value in state.items()}, "some/b.pt")
    save_file(state, "some/c.safetensors")
    arguments = [
        "edit",
        "runs/two",
        "some",
        "-o",
        "out",
        "--edit",
        "blur",
        "--strength",
        "0.5",
        "--size",
        "64",
        "--json",
    ]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    first, second, third = json.loads(out)
    assert [list(result) for result in (first, second, third)] == [KEYS, ["file", "error"], KEYS]
    assert (first["edit"], first["strength"], first["out"], first["picture"]) == ("blur", 0.5, "out/a.pt", "out/a.png")
    assert err == f"error: some/b.pt: {second['error']}\n" and "NaN" in err
    assert outputs() == {*(f"some/{name}" for name in ("a.pt", "b.pt", "c.safetensors")), *(
        f"out/{name}" for name in ("a.pt", "a.png", "c.safetensors", "c.png")
    )}  # fmt: skip


def test_no_picture(here: Path) -> None:
    assert main(["edit", RUN, EXAMPLE, "-o", "new.safetensors", "--no-picture"]) == 0
    assert outputs() == {"new.safetensors"}


WRONG = [
    ([RUN, EXAMPLE], "-o/--out"),
    ([RUN, EXAMPLE, "-o", EXAMPLE], "is the input"),
    ([RUN, EXAMPLE, "-o", "x.pt"], "must end in .safetensors"),
    ([RUN, "runs", "-o", "runs/out"], "lies in the input folder"),
    ([RUN, EXAMPLE, "-o", "x.safetensors", "--edit", "sharpen"], "does not know 'sharpen'"),
    ([RUN, EXAMPLE, "-o", "x.safetensors", "--strength", "2"], "from 0 to 1"),
    ([RUN, EXAMPLE, "-o", "x.safetensors", "--strength", "much"], "invalid float value"),
    ([RUN, EXAMPLE, "-o", "x.safetensors", "--size", "5000"], "size 5000 is out of range"),
    ([RUN, EXAMPLE, "-o", "x.safetensors", "--size", "0"], "0 is not a positive number"),
    (["runs/two", EXAMPLE, "-o", "x.safetensors"], "dilate, blur: say which one is wanted"),
    (["runs/classifier", EXAMPLE, "-o", "x.safetensors"], "is a classifier, which edits nothing"),
    (["runs/quickstart", EXAMPLE, "-o", "x.safetensors"], "no model"),
    ([RUN, "missing.pt", "-o", "x.pt"], "there is no file missing.pt"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_usage(arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and err.startswith("error: ") and not out
    assert outputs() == set()


def test_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.safetensors").write_text("mine")
    command = ["edit", RUN, EXAMPLE, "-o", "mine.safetensors"]
    assert main(command) == 2
    assert "mine.safetensors exists: --force replaces it" in capsys.readouterr().err
    assert Path("mine.safetensors").read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert load_network("mine.safetensors").stack == STACK


def test_a_place_that_cannot_be_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_io.os, "replace", refuse)
    assert main(["edit", RUN, EXAMPLE, "-o", "new/x.safetensors"]) == 1
    assert capsys.readouterr().err == "error: cannot write new/x.safetensors: Permission denied\n"
    assert outputs() == set()


def test_networks_of_an_unknown_non_linearity(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Editor.from_pretrained("runs/edit")
    model.architectures = (STACK, Stack.mlp((2, 8, 1), "relu"))
    model.save("runs/both")
    save_file(load_file(EXAMPLE), "bare.safetensors")
    command = ["edit", "runs/both", "bare.safetensors", "-o", "new.safetensors"]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("say which non-linearity the network has: add --activation\n")
    assert main([*command, "--activation", "sine:30"]) == 0
