"""Edited network files: the same in everything but the weights; inputs untouched, mistakes in a line each."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neural_graphs.errors import RunError, UserError
from neural_graphs.explore import load_network, save_network
from neural_graphs.graph import Activation, NeuralGraph, Stack, render
from neural_graphs.graph._files import ARCHITECTURE, read_state_dict
from neural_graphs.graph._stack import Layer
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Classifier, _predict
from neural_graphs.tasks import _edit_files as module
from neural_graphs.tasks._edit_files import edit_files
from neural_graphs.tasks._edit_picture import Panel, draw, save
from neural_graphs.tasks._editor import Editor
from neural_graphs.zoo import Zoo
from neural_graphs.zoo.edits import edit_images

State = dict[str, Tensor]

STACK = Stack.mlp((2, 8, 1), "sine:30", shift=0.5)


def make_editor(stack: Stack = STACK, outputs: int = 1, **arguments: Any) -> Editor:
    """Untrained, with changes large enough to see."""
    torch.manual_seed(0)
    arguments = {"size": (8, 8), "architectures": (stack,), **arguments}
    editor = Editor(create_encoder("ng-gnn", width=8, layers=1, fourier=0), outputs, **arguments).eval()
    with torch.no_grad():
        for name, scale in editor.named_parameters():
            if "scale" in name:
                scale.fill_(0.1)
    return editor


@pytest.fixture(scope="module")
def editor() -> Editor:
    return make_editor()


def make_states(count: int, stack: Stack = STACK, seed: int = 1) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in stack.parameter_shapes().items()}
        for _ in range(count)
    ]


@pytest.fixture
def state() -> State:
    return make_states(1)[0]


def graph_of(state: State, stack: Stack = STACK) -> NeuralGraph:
    return stack.graph({name: value.float().unsqueeze(0) for name, value in state.items()})


def edited_by(editor: Editor, state: State, stack: Stack = STACK, **arguments: Any) -> State:
    """The twin: one network, no files."""
    return editor.edit(graph_of(state, stack), **arguments).buckets[0].to_state_dict()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- formats ----------------------------------------------------------------------------------------------------------

WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain.pt": lambda state: state,
    "ordered.bin": lambda state: OrderedDict(reversed(state.items())),
    "wrapped.pth": lambda state: {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"lr": torch.tensor(0.1)},
        "tags": ["a"],
    },
    "deep.ckpt": lambda state: {"model": {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}},
    "parameters.pt": lambda state: {
        k: nn.Parameter(v.clone(), requires_grad=k.endswith("bias")) for k, v in state.items()
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_torch_files(name: str, dtype: torch.dtype, editor: Editor, state: State, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in state.items()}
    source, out = tmp_path / name, tmp_path / f"new-{name}"
    torch.save(WRAPPINGS[name](state), source)
    before = source.read_bytes()
    (result,) = edit_files(editor, [source], out)
    assert result["out"] == str(out) and source.read_bytes() == before
    wanted = edited_by(editor, state)
    for key, value in read_state_dict(out).items():
        assert value.dtype == dtype and not torch.equal(value, state[key])
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(value.float(), wanted[key], atol=tolerance, rtol=tolerance)
    old, new = (torch.load(path, weights_only=True) for path in (source, out))
    assert outline(new) == outline(old)


def outline(value: Any) -> Any:
    """Everything but the numbers of the weights."""
    if isinstance(value, dict):
        return type(value), [(key, outline(inner)) for key, inner in value.items()]
    if isinstance(value, Tensor) and value.dim():
        return type(value), value.dtype, value.shape, value.requires_grad
    return value


def test_safetensors(editor: Editor, state: State, tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {"format": "pt", ARCHITECTURE: json.dumps(STACK.to_json()), "note": "ä"}
    save_file({key: value.half() if "bias" in key else value for key, value in state.items()}, source, metadata)
    source.chmod(0o640)
    edit_files(editor, [source], out)
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == metadata
    old, new = load_file(source), load_file(out)
    assert [(k, v.dtype) for k, v in old.items()] == [(k, v.dtype) for k, v in new.items()]
    wanted = edited_by(editor, old)
    for key, value in new.items():
        assert torch.equal(value, wanted[key].to(value.dtype)), key
    assert out.stat().st_mode == source.stat().st_mode
    assert load_network(out).stack == STACK


def test_no_strength_changes_nothing(editor: Editor, state: State, tmp_path: Path) -> None:
    state = {key: value.double() / 3 for key, value in state.items()}  # no float32 numbers
    torch.save(state, tmp_path / "a.pt")
    (result,) = edit_files(editor, [tmp_path / "a.pt"], tmp_path / "b.pt", strength=0)
    assert all(torch.equal(value, state[key]) for key, value in read_state_dict(tmp_path / "b.pt").items())
    assert result["mse"] == result["no_edit_mse"] and result["strength"] == 0
    (half,) = edit_files(editor, [tmp_path / "a.pt"], tmp_path / "c.pt", strength=0.5)
    wanted = edited_by(editor, state, strength=0.5)
    for key, value in read_state_dict(tmp_path / "c.pt").items():
        torch.testing.assert_close(value.float(), wanted[key])
    assert half["mse"] != half["no_edit_mse"]


def test_other_names_of_the_same_layers(editor: Editor, state: State, tmp_path: Path) -> None:
    given = {f"net.{key.replace('seq.1', 'seq.10')}": value for key, value in state.items()}
    save_file(given, tmp_path / "a.safetensors")
    edit_files(editor, [tmp_path / "a.safetensors"], tmp_path / "b.safetensors")
    found, wanted = load_file(tmp_path / "b.safetensors"), edited_by(editor, state)
    assert found.keys() == given.keys()
    for key, value in wanted.items():
        assert torch.equal(found[f"net.{key.replace('seq.1', 'seq.10')}"], value)


@pytest.mark.parametrize("last", ["none", "sigmoid"])  # with an activation, one layer more takes the mean
def test_copies_become_one_wider_network(last: str, tmp_path: Path) -> None:
    stack = Stack.mlp((2, 8, 1), "sine:30", output_activation=last)
    several = make_editor(stack, copies=3)
    (state,) = make_states(1, stack)
    save_network(tmp_path / "stated.safetensors", state, stack)
    save_file({f"net.{key}": value for key, value in state.items()}, tmp_path / "bare.safetensors", {"format": "pt"})
    torch.save({"state_dict": {f"module.{key}": value.double() for key, value in state.items()}}, tmp_path / "c.pt")
    results = edit_files(
        several, [tmp_path / name for name in ("stated.safetensors", "bare.safetensors", "c.pt")], tmp_path / "out"
    )
    wanted = several.render(graph_of(state, stack), height=12, width=12)
    for name in ("stated", "bare"):
        graph = load_network(tmp_path / "out" / f"{name}.safetensors")
        torch.testing.assert_close(render(graph, 12, 12), wanted)
        assert graph.stack is not None and str(graph.stack) == results[0]["architecture"] != str(stack)
    assert all(name.startswith(("net.seq", "mean")) for name in load_file(tmp_path / "out" / "bare.safetensors"))
    with safe_open(tmp_path / "out" / "bare.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    new = read_state_dict(tmp_path / "out" / "c.pt")
    assert {value.dtype for value in new.values()} == {torch.float64}
    graph = load_network(tmp_path / "out" / "stated.safetensors")
    graph = graph.like({key: value.float() for key, value in new.items()})
    torch.testing.assert_close(render(graph, 12, 12), wanted)


# -- many -------------------------------------------------------------------------------------------------------------


def test_folders_keep_their_names(editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_predict, "CHUNK", 3)
    states = make_states(7)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    names = ["a.pt", "a.pth", "b.ckpt", "deep/a.pt", "deep/c.safetensors", "deep/d.bin"]
    for name, state in zip(names, states, strict=False):
        (save_file if name.endswith("tensors") else torch.save)(state, tmp_path / "in" / name)
    torch.save(states[6], tmp_path / "alone.pt")
    sizes: list[int] = []
    original = editor.edit
    monkeypatch.setattr(editor, "edit", lambda batch, *rest: sizes.append(len(batch)) or original(batch, *rest))
    results = edit_files(editor, [tmp_path / "in", tmp_path / "alone.pt", tmp_path / "in" / "a.pt"], tmp_path / "out")
    assert sizes == [3, 3, 1]
    assert [Path(r["out"]).relative_to(tmp_path / "out").as_posix() for r in results] == [*names, "alone.pt"]
    pictures = ["a.pt.png", "a.pth.png", "b.png", "deep/a.png", "deep/c.png", "deep/d.png", "alone.png"]
    assert [Path(r["picture"]).relative_to(tmp_path / "out").as_posix() for r in results] == pictures
    assert files_in(tmp_path / "out") == {*names, "alone.pt", *pictures}
    for result, state in zip(results, states, strict=True):
        new, wanted = read_state_dict(result["out"]), edited_by(editor, state)
        for key in state:
            torch.testing.assert_close(new[key], wanted[key], atol=1e-6, rtol=1e-5)


def test_results_are_those_of_the_images(editor: Editor, tmp_path: Path) -> None:
    states = make_states(2)
    for k, state in enumerate(states):
        torch.save(state, tmp_path / f"{k}.pt")
    results = edit_files(editor, [tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out", picture=False)
    assert files_in(tmp_path / "out") == {"0.pt", "1.pt"}
    for result, state in zip(results, states, strict=True):
        before = render(graph_of(state), 8, 8).numpy()
        target = edit_images(before.clip(0, 1), "dilate")
        after = editor.render(graph_of(state)).numpy()
        assert result["no_edit_mse"] == pytest.approx(float(((before - target) ** 2).mean()), rel=1e-4)
        assert result["mse"] == pytest.approx(float(((after - target) ** 2).mean()), rel=1e-4)
        assert result["picture"] is None and result["edit"] == "dilate" and result["architecture"] == str(STACK)
        assert 0 < result["seconds"] < 5


def test_an_architecture_never_seen(editor: Editor, tmp_path: Path) -> None:
    torch.save(make_states(1, Stack.mlp((2, 5, 6, 1)))[0], tmp_path / "a.pt")
    (result,) = edit_files(editor, [tmp_path / "a.pt"], tmp_path / "b.pt")
    assert result["architecture"] == "2-5-6-1 sine:30" and read_state_dict(tmp_path / "b.pt")["seq.1.weight"].shape == (
        6,
        5,
    )


# -- what cannot be edited --------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_bad_files_stop_nothing(editor: Editor, state: State, zoo: Zoo, tmp_path: Path) -> None:
    good, victim = tmp_path / "good.pt", tmp_path / "executed"
    torch.save(state, good)
    save_file(state, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-40])
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:700])
    torch.save({"weight": Hostile(victim)}, tmp_path / "hostile.ckpt")
    (tmp_path / "hostile2.pt").write_bytes(pickle.dumps(Hostile(victim)))
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save({k: v * float("nan") for k, v in state.items()}, tmp_path / "nan.pt")
    torch.save({k: v / 0 for k, v in state.items()}, tmp_path / "inf.pt")
    torch.save({k: v * 1e38 for k, v in state.items()}, tmp_path / "huge.pt")
    torch.save({k: v.mul(9).long() for k, v in state.items()}, tmp_path / "integers.pt")
    torch.save(Stack.mlp((2, 8, 3)).module().state_dict(), tmp_path / "rgb.pt")
    torch.save(Stack.mlp((3, 8, 1)).module().state_dict(), tmp_path / "volume.pt")
    cnn = Stack((Layer("c", 2, 4, (1, 1), activation=Activation("relu"), pool="global"), Layer("fc", 4, 1)))
    save_network(tmp_path / "cnn.safetensors", cnn.module().state_dict(), cnn)
    torch.save({"weight_ih": torch.zeros(3, 3)}, tmp_path / "rnn.pt")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    expected = {
        "cut.safetensors": "cannot read .*truncated",
        "cut.pt": "cannot read .*truncated",
        "hostile.ckpt": "was refused, because loading it could run code",
        "hostile2.pt": "was refused, because loading it could run code",
        "none.pt": "holds no state dict",
        "nan.pt": "NaN or infinite values in seq.0.weight",
        "inf.pt": "NaN or infinite values in seq.0.weight",
        "huge.pt": "NaN or infinite values",
        "integers.pt": "only tensors of floats are edited",
        "rgb.pt": "1 outputs; this one has 2 and 3",
        "volume.pt": "2 inputs .* has 3 and 1",
        "cnn.safetensors": "is no image",
        "rnn.pt": "no tensor named \\*.weight",
        "notes.txt": "unknown kind of network file",
        "missing.pt": "there is no file",
        "empty": "holds no zoo and no network files",
        str(zoo.path): "is a zoo: give network files",
    }
    inputs = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    results = edit_files(editor, [*(tmp_path / name for name in expected), good], tmp_path / "out")
    for (name, message), result in zip(expected.items(), results, strict=False):
        assert set(result) == {"file", "error"} and "\n" not in result["error"], (name, result)
        with pytest.raises(UserError, match=message):
            raise UserError(result["error"])
    assert "mse" in results[-1] and len(results) == len(expected) + 1
    assert files_in(tmp_path / "out") == {"good.pt", "good.png"}
    assert not victim.exists()
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == inputs


@pytest.mark.parametrize(("size", "message"), [(1e38, "would draw NaN"), (1e6, "too large for float16")])
def test_changes_that_are_too_large(editor: Editor, state: State, size: float, message: str, tmp_path: Path) -> None:
    wild = copy.deepcopy(editor)
    with torch.no_grad():
        for name, scale in wild.named_parameters():
            if "scale" in name:
                scale.fill_(size)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "a.pt")
    (result,) = edit_files(wild, [tmp_path / "a.pt"], tmp_path / "b.pt")
    assert message in result["error"]
    assert files_in(tmp_path) == {"a.pt"}


def test_wrong_arguments(editor: Editor, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("does not know 'blur'", {"edit": "blur"}),
        ("from 0 to 1, not 1.5", {"strength": 1.5}),
        ("from 0 to 1, not nan", {"strength": float("nan")}),
        ("from 0 to 1, not -1", {"strength": -1}),
        ("size 4097 is out of range", {"size": 4097}),
        ("size 0 is out of range", {"size": 0}),
        ("say which one", {"model": make_editor(edits=("dilate", "erode"))}),
    ]
    for message, arguments in wrong:
        with pytest.raises(UserError, match=message):
            edit_files(**{"model": editor, "files": [tmp_path / "a.pt"], "out": tmp_path / "b.pt", **arguments})
    assert files_in(tmp_path) == {"a.pt"}
    Classifier(editor.encoder, num_classes=3).save(tmp_path / "classifier")
    with pytest.raises(UserError, match="describes no editor"):
        edit_files(tmp_path / "classifier", [tmp_path / "a.pt"], tmp_path / "b.pt")
    editor.save(tmp_path / "editor")
    edit_files(tmp_path / "editor", [tmp_path / "a.pt"], tmp_path / "b.pt")
    wanted = edited_by(editor, state)
    assert all(torch.equal(value, wanted[key]) for key, value in read_state_dict(tmp_path / "b.pt").items())


def test_several_edits(state: State, tmp_path: Path) -> None:
    both = make_editor(edits=("dilate", "erode"))
    with torch.no_grad():
        for name, value in both.named_parameters():
            if "style" in name:
                value.copy_(torch.randn(value.shape))
    torch.save(state, tmp_path / "a.pt")
    for edit in both.edits:
        (result,) = edit_files(both, [tmp_path / "a.pt"], tmp_path / f"{edit}.pt", edit)
        assert result["edit"] == edit
        wanted = edited_by(both, state, edit=edit)
        for key, value in read_state_dict(tmp_path / f"{edit}.pt").items():
            torch.testing.assert_close(value, wanted[key])
    first, second = (read_state_dict(tmp_path / f"{edit}.pt")["seq.0.weight"] for edit in both.edits)
    assert not torch.equal(first, second)


# -- places -----------------------------------------------------------------------------------------------------------


def test_refused_places(editor: Editor, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "other", "full/a.pt", "out"):
        Path(folder).mkdir(parents=True)
    for name in ("in/a.pt", "other/a.pt", "one.pt", "there.pt"):
        torch.save(state, name)
    save_file(state, "s.safetensors")
    os.symlink("one.pt", "link.pt")
    os.link("one.pt", "hard.pt")
    os.symlink("in", "way")
    Path("new.png").write_text("mine")
    before = {name: Path(name).read_bytes() for name in files_in(tmp_path)}
    refused: list[tuple[list[str], str, str]] = [
        (["one.pt"], "one.pt", "one.pt is the input one.pt, which is never written to"),
        (["one.pt"], "link.pt", "link.pt is the input one.pt"),
        (["link.pt"], "one.pt", "one.pt is the input link.pt"),
        (["one.pt"], "hard.pt", "hard.pt is the input one.pt"),
        (["one.pt"], ".", "one.pt is the input one.pt"),
        (["one.pt", "there.pt"], ".", "one.pt is the input one.pt"),
        (["in"], "in", "in lies in the input folder in"),
        (["in"], "in/new", "in/new lies in the input folder in"),
        (["in"], "way/new", "way/new lies in the input folder in"),
        (["in"], "other/../in", "lies in the input folder"),
        (["in", "other"], "new", "both in/a.pt and other/a.pt would become new/a.pt"),
        (["in"], "there.pt", "there.pt is a file: give a folder"),
        (["in"], "full", "full/a.pt is a folder"),
        (["one.pt"], "new.safetensors", "must end in .pt or .pth or .bin or .ckpt"),
        (["s.safetensors"], "new.pt", "must end in .safetensors, like"),
        (["one.pt"], "new", "new must end in .pt"),
        (["one.pt"], "there.pt/deep/a.pt", "there.pt is a file, so there.pt/deep/a.pt cannot be written"),
    ]
    for files, out, message in refused:
        for force in (False, True):
            with pytest.raises(UserError, match=message):
                edit_files(editor, files, out, force=force)
    for out in ("there.pt", "new.pt"):  # the network's place, the picture's
        with pytest.raises(UserError, match="exists: --force replaces it"):
            edit_files(editor, ["one.pt"], out)
    assert {name: Path(name).read_bytes() for name in files_in(tmp_path)} == before
    for out in ("there.pt", "new.pt"):
        edit_files(editor, ["one.pt"], out, force=True)
        assert Path(out).read_bytes() != before["one.pt"] == Path("one.pt").read_bytes()
    assert Path("new.png").read_bytes().startswith(b"\x89PNG")
    edit_files(editor, ["one.pt"], "out")
    assert files_in(tmp_path / "out") == {"one.pt", "one.png"}


def test_a_full_disk(editor: Editor, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.pt", "b.pt", "c.safetensors"):
        (save_file if name.endswith("tensors") else torch.save)(state, tmp_path / "in" / name)
    written: list[Any] = []
    original = module.rewrite

    def fill(source: Any, out: Any, *rest: Any) -> None:
        if written:
            monkeypatch.setattr(torch, "save", lambda content, stream: (stream.write(b"half"), os.write(full, b"x")))
        written.append(out)
        original(source, out, *rest)

    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(module, "rewrite", fill)
    with pytest.raises(RunError, match="cannot write .*b.pt: No space left"):
        edit_files(editor, [tmp_path / "in"], tmp_path / "out")
    os.close(full)
    assert files_in(tmp_path / "out") == {"a.pt", "a.png"} and len(written) == 2


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_pixel_as_a_square(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small, tall, wide = rng.random((28, 28, 1)), rng.random((9, 3, 1)), rng.random((300, 4, 3))
    save(
        draw([Panel("before", "28", small), Panel("target", "28", small), Panel("after", "", small)]),
        tmp_path / "a.png",
    )
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape[1] > 3 * 252 and sheet.shape[0] > 252
    assert len(find(sheet, small, 9)) == 3
    sheet = np.asarray(draw([Panel("a", "", tall), Panel("b", "a long caption under a narrow image", wide)]))
    assert len(find(sheet, tall, 33)) == 1 and len(find(sheet, wide, 1)) == 1
    with pytest.raises(UserError, match="of 2 colours cannot be drawn"):
        draw([Panel("", "", np.zeros((8, 8, 2)))])


def find(sheet: np.ndarray, image: np.ndarray, times: int) -> list[tuple[int, int]]:
    """Where the magnified image stands in the sheet."""
    tile = np.kron(np.rint(image * 255).astype(np.uint8), np.ones((times, times, 1), np.uint8))
    tile = np.broadcast_to(tile, (*tile.shape[:2], 3))
    height, width = tile.shape[:2]
    grey = (sheet[:, :, :3] == (201, 201, 195)).all(2)  # of the border around it
    line = grey[1:, :-1] & grey[:-1, 1:] & (sheet[1:, 1:, :3] == tile[0, 0]).all(2)
    corners = [(top + 1, left + 1) for top, left in np.argwhere(line)]
    return [
        (top, left) for top, left in corners if np.array_equal(sheet[top : top + height, left : left + width, :3], tile)
    ]


def test_size(editor: Editor, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    (plain,) = edit_files(editor, [tmp_path / "a.pt"], tmp_path / "b.pt")
    (large,) = edit_files(editor, [tmp_path / "a.pt"], tmp_path / "c.pt", size=300)
    assert plain["mse"] == large["mse"]  # at the editor's size, whatever is drawn
    before = render(graph_of(state), 8, 8)[0].clamp(0, 1).numpy()
    sheet = np.asarray(Image.open(tmp_path / "b.png"))
    panels = [before, edit_images(before[None], "dilate")[0], editor.render(graph_of(state))[0].clamp(0, 1).numpy()]
    places = [find(sheet, panel, 32) for panel in panels]
    assert [len(place) for place in places] == [1, 1, 1] and places == sorted(places, key=lambda place: place[0][1])
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    assert len(find(sheet, render(graph_of(state), 300, 300)[0].clamp(0, 1).numpy(), 1)) == 1
    assert len(find(sheet, panels[1], 37)) == 1  # the target stays what was asked for


def test_colours(tmp_path: Path) -> None:
    for outputs in (2, 3):
        stack = Stack.mlp((2, 8, outputs))
        torch.save(make_states(1, stack)[0], tmp_path / "a.pt")
        editor = make_editor(stack, outputs, size=(4, 6), edits=("invert",))
        out = tmp_path / f"{outputs}.pt"
        (result,) = edit_files(editor, [tmp_path / "a.pt"], out)
        if outputs == 2:
            assert "of 2 colours cannot be drawn" in result["error"] and not out.exists()
            (result,) = edit_files(editor, [tmp_path / "a.pt"], out, picture=False)
        assert out.exists() and (result["mse"] is None) == (outputs == 2)  # no edit is for two colours


def test_an_edit_that_is_registered_nowhere_here(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    (result,) = edit_files(make_editor(edits=("my own",)), [tmp_path / "a.pt"], tmp_path / "b.pt")
    assert result["mse"] is None and result["no_edit_mse"] is None
    (two, three) = (np.asarray(Image.open(result["picture"])).shape[1], 3 * 256)
    assert two < three


def test_networks_that_are_no_images(tmp_path: Path) -> None:
    stack = Stack.mlp((4, 8, 3), "relu")
    torch.save(make_states(1, stack)[0], tmp_path / "a.pt")
    (result,) = edit_files(make_editor(stack, 3, size=None, edits=("clean",)), [tmp_path / "a.pt"], tmp_path / "b.pt")
    assert result["picture"] is None and result["mse"] is None and files_in(tmp_path) == {"a.pt", "b.pt"}
