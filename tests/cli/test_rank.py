"""Ranking checkpoints with a regressor, and its evaluation: files of every kind, zoos, and whatever is broken."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neural_graphs.cli import main
from neural_graphs.explore import save_network
from neural_graphs.graph import Activation, ModuleArchitecture, Stack, register_architecture
from neural_graphs.graph._stack import Layer
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import OptimConfig, Regressor, TrainConfig, rank, train
from neural_graphs.tasks import _networks as networks_module
from neural_graphs.tasks import _predict as predict_module
from neural_graphs.tasks._networks import find
from neural_graphs.tasks._rank import far_weights
from neural_graphs.zoo import Zoo, ZooWriter

State = dict[str, Tensor]


def cnn(kind: str = "relu", width: int = 4, residual: int = -1) -> Stack:
    act = Activation(kind)  # type: ignore[arg-type]
    return Stack(
        (
            Layer("conv.0", 1, width, (3, 3), activation=act, padding=1),
            Layer("conv.1", width, 4, (3, 3), activation=act, padding=1, pool="global", residual=residual),
            Layer("fc", 4, 3),
        )
    )


def states(stack: Stack, accuracy: np.ndarray, seed: int) -> State:
    """Networks whose accuracy is in the size of a layer."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: 0.3 * torch.randn(len(accuracy), *shape, generator=generator)
        for name, shape in stack.parameter_shapes().items()
    }
    values["fc.bias"] += torch.from_numpy(4 * accuracy - 2)[:, None]
    return values


def write_zoo(path: Path, images: str, count: int, seed: int, bad: int | None = None) -> Zoo:
    numbers = np.arange(count)
    accuracy = np.random.default_rng(seed).uniform(0.1, 0.7, count).astype(np.float32)
    split = np.array([("train", "train", "train", "val", "test")[i // 2 % 5] for i in numbers], dtype=object)
    kinds = {"a0": cnn("relu"), "a1": cnn("tanh")}
    with ZooWriter(path, kinds, {"name": "cnns", "source": {"images": images}}) as writer:
        for k, (name, stack) in enumerate(kinds.items()):
            mine = numbers[numbers // 10 % 2 == k]
            tensors = states(stack, accuracy[mine], seed + k)
            if bad is not None:
                tensors["fc.weight"][mine == bad] = float("nan")
            columns: dict[str, Any] = {"network": mine, "split": split[mine], "run": mine // 2}
            columns |= {"test_accuracy": accuracy[mine], "learning_rate": np.float32(10.0) ** -(mine % 4)}
            columns["activation"] = np.full(len(mine), ("relu", "tanh")[k], dtype=object)
            writer.append(name, 0, tensors, columns)
        return writer.finish()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two zoos and a finished run."""
    folder = tmp_path_factory.mktemp("ranking")
    write_zoo(folder / "zoo", "cifar10-gs", 80, 0)
    write_zoo(folder / "other", "svhn-gs", 20, 9)
    config = TrainConfig(
        task="regress",
        label="test_accuracy",
        zoo=str(folder / "zoo"),
        out=str(folder / "run"),
        encoder={"name": "ng-gnn", "width": 8, "layers": 1, "fourier": 0},
        optimizer=OptimConfig(epochs=2, batch_size=16, lr=1e-2),
        threads=1,
    )
    train(config, quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Regressor:
    return Regressor.from_pretrained(place / "run")


@pytest.fixture
def some() -> list[State]:
    """Five ReLU networks."""
    values = states(cnn(), np.linspace(0.1, 0.7, 5, dtype=np.float32), seed=3)
    return [{name: value[k].contiguous() for name, value in values.items()} for k in range(5)]


def by_file(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {Path(result["file"]).name: result for result in results}


def test_files_and_folders(model: Regressor, some: list[State], tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    torch.save(some[0], tmp_path / "a.pt")
    save_file(some[1], tmp_path / "deep" / "b.safetensors")
    torch.save({"state_dict": some[2]}, tmp_path / "deep" / "er" / "c.ckpt")
    renamed = {name.replace("conv.0", "features.2").replace("conv.1", "features.10"): v for name, v in some[3].items()}
    save_file({name.replace("fc", "head"): value for name, value in renamed.items()}, tmp_path / "d.safetensors")
    save_network(tmp_path / "e.safetensors", some[4], cnn("tanh"))
    torch.save(some[0], tmp_path / ".hidden.pt")
    (tmp_path / "notes.txt").write_text("no network")

    results = rank(model, [tmp_path], activation="relu")
    assert sorted(by_file(results)) == ["a.pt", "b.safetensors", "c.ckpt", "d.safetensors", "e.safetensors"]
    assert [result["rank"] for result in results] == [1, 2, 3, 4, 5]
    assert [r["predicted"] for r in results] == sorted((r["predicted"] for r in results), reverse=True)
    for k, name in enumerate(sorted(by_file(results))):  # one at a time, without files
        stack = cnn("tanh" if name[0] == "e" else "relu")
        graph = stack.graph({key: value.unsqueeze(0) for key, value in some[k].items()})
        result = by_file(results)[name]
        assert result["predicted"] == pytest.approx(float(model.predict(graph)), abs=1e-5)
        assert [result["low"], result["high"]] == pytest.approx(model.predict_interval(graph)[0].tolist(), abs=1e-5)
        assert result["novelty"] == pytest.approx(float(model.novelty(graph)), rel=1e-3)
        assert result["architecture"] == str(stack)
        assert result["outside"] == (result["novelty"] > 1) == bool(result["reason"])


def test_a_zoo_in_small_pieces(place: Path, model: Regressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank(model, [place / "other"])
    assert sorted(result["network"] for result in whole) == list(range(20))
    expected = model.predict(Zoo.load(place / "other").all)
    for result in whole:
        assert result["file"] == str(place / "other")
        assert result["predicted"] == pytest.approx(float(expected[result["network"]]), abs=1e-5)
    largest = 0

    def watched(model: Any, members: list[Any], answer: Any) -> None:
        nonlocal largest
        largest = max(largest, len(members))
        original(model, members, answer)

    original = predict_module._answer
    monkeypatch.setattr(predict_module, "_answer", watched)
    monkeypatch.setattr(predict_module, "CHUNK", 3)
    pieces = rank(model, [place / "other"])
    assert largest == 3  # so many are held at a time, however many there are
    assert [r["network"] for r in pieces] == [r["network"] for r in whole]
    write_zoo(tmp_path / "bad", "svhn-gs", 20, 9, bad=7)
    results = rank(model, [tmp_path / "bad"])
    assert {r["network"] for r in results if "rank" in r} == set(range(20)) - {7}
    assert results[-1]["network"] == 7 and "NaN" in results[-1]["error"]


def test_outside(model: Regressor, some: list[State], tmp_path: Path) -> None:
    torch.save(some[0], tmp_path / "like.pt")
    torch.save({name: 50 * value for name, value in some[0].items()}, tmp_path / "large.pt")
    torch.save({name: 1e-4 * value for name, value in some[0].items()}, tmp_path / "small.pt")
    torch.save(cnn(width=7).module().state_dict(), tmp_path / "wide.pt")
    found = by_file(rank(model, [tmp_path], activation="relu"))
    assert "times as large as in training" in found["large.pt"]["reason"]
    assert "its weights are at most 0.0" in found["small.pt"]["reason"]
    assert found["wide.pt"]["reason"] == "an architecture never trained on"
    assert all(found[name]["outside"] for name in ("large.pt", "small.pt", "wide.pt"))
    assert found["like.pt"]["outside"] == (found["like.pt"]["novelty"] > 1)

    model.familiar.scale /= 1e6  # everything is new to it now
    try:
        (result,) = rank(model, [tmp_path / "like.pt"], activation="relu")
    finally:
        model.familiar.scale *= 1e6
    assert result["outside"] and result["reason"].startswith("unlike the training networks (novelty ")


def test_rescaled_networks_are_not_outside_a_scale_equivariant_model(place: Path) -> None:
    """ReLU neurons times 1000, the next layer's weights divided by it: the same function, the same standard scale."""
    encoder = create_encoder("scale-gmn", width=8, layers=1, kernel=[3, 3])
    split = Zoo.load(place / "zoo").train
    split = split.select(np.flatnonzero(split.column("activation") == "relu"))
    scaled = Regressor(encoder, outputs=3)
    scaled.prepare(split, "test_accuracy")
    plain = Regressor(create_encoder("ng-gnn", width=8, layers=1, kernel=[3, 3]), outputs=3)
    plain.prepare(split, "test_accuracy")
    ((_, _, values),) = split.state_dicts([0])
    for layer, factor in (("conv.0", 1000.0), ("conv.1", 0.001)):
        values[f"{layer}.weight"] *= factor
    values["conv.0.bias"] *= 1000.0
    graph = cnn().graph(values)
    assert far_weights(scaled, graph) == [""]
    (reason,) = far_weights(plain, graph)
    assert reason.startswith("conv.0.weight is ")


def test_duplicates(model: Regressor, some: list[State], tmp_path: Path) -> None:
    torch.save(some[0], tmp_path / "a.pt")
    torch.save({"model": {f"module.{name}": value.double() for name, value in some[0].items()}}, tmp_path / "b.pt")
    torch.save(some[1], tmp_path / "c.pt")
    os.symlink(tmp_path / "a.pt", tmp_path / "link.pt")
    found = by_file(rank(model, [tmp_path, tmp_path / "c.pt"], activation="relu"))
    assert {name: result["duplicate_of"] for name, result in found.items()} == {
        "a.pt": None,
        "b.pt": str(tmp_path / "a.pt"),
        "c.pt": None,
        "link.pt": str(tmp_path / "a.pt"),
    }


def test_residuals_are_recognised(model: Regressor, some: list[State], tmp_path: Path) -> None:
    """A bare state dict says nothing of them: it is the architecture trained on that has these names and shapes."""
    known = model.architectures
    torch.save(some[0], tmp_path / "a.pt")
    residual = cnn(residual=0)
    try:
        model.architectures = (residual, cnn("tanh"))
        (result,) = rank(model, [tmp_path], activation="relu")
    finally:
        model.architectures = known
    graph = residual.graph({key: value.unsqueeze(0) for key, value in some[0].items()})
    assert result["architecture"] == str(residual) != str(cnn())
    assert result["predicted"] == pytest.approx(float(model.predict(graph)), abs=1e-5)


@register_architecture("test-ranked")
def ranked_module(width: int = 4, parts: int = 1) -> torch.nn.Module:
    layers = [torch.nn.Linear(width, width) for _ in range(parts)]
    module = torch.nn.Sequential(torch.nn.Linear(4, width), *layers, torch.nn.Linear(width, 3))
    module.input_shape = (4,)  # type: ignore[assignment]
    return module


def test_stated_modules(model: Regressor, tmp_path: Path) -> None:
    """One like those of a zoo of modules is read; one that would fill the memory is not even built."""
    small, large, endless = (
        ModuleArchitecture("test-ranked", arguments)
        for arguments in ((("width", 5),), (("width", 9999),), (("parts", 10**9),))
    )
    state = small.module().state_dict()
    for name, stated in (("good", small), ("large", large), ("endless", endless)):
        save_network(tmp_path / f"{name}.safetensors", state, stated)
    found = by_file(rank(model, [tmp_path]))
    assert found["good.safetensors"]["architecture"] == str(small) and found["good.safetensors"]["outside"]
    assert "larger than its tensors" in found["large.safetensors"]["error"]
    assert "too large" in found["endless.safetensors"]["error"]


class Code:
    """Unpickling it would make a folder `executed`."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.fixture
def broken(some: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `files` with one good network, good.pt, and one broken in every way, in the working directory."""
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    torch.save(some[0], files / "good.pt")
    whole = (files / "good.pt").read_bytes()
    (files / "cut.pt").write_bytes(whole[:900])
    middle = len(whole) // 2
    (files / "corrupt.pt").write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    (files / "empty.ckpt").write_bytes(b"")
    torch.save({"w": Code()}, files / "hostile.pth")
    torch.save({name: value * float("nan") for name, value in some[0].items()}, files / "nan.pt")
    torch.save({name: value * 1e30 for name, value in some[0].items()}, files / "overflow.pt")
    torch.save({**some[0], "fc.weight": torch.zeros(3, 9)}, files / "shapes.pt")
    torch.save({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, files / "bomb.pt")
    torch.save({"fc.weight": torch.zeros(3, 3, dtype=torch.complex64)}, files / "complex.pt")
    save_network(files / "lies.safetensors", {"fc.weight": torch.zeros(3, 3)}, cnn())
    torch.save(Stack.mlp((4, 5, 9), "relu").module().state_dict(), files / "outputs.bin")
    with open(files / "huge.pt", "wb") as file:
        file.truncate(networks_module.LARGEST + 1)  # sparse: it takes no place
    os.symlink(files, files / "sub" / "up")
    os.symlink(files / "round.pt", files / "round.pt")
    os.symlink("nowhere", files / "dead.pt")
    os.mkfifo(files / "pipe.pt")
    return tmp_path


REASONS = {
    "cut.pt": "cut.pt: .*; it may be truncated",
    "corrupt.pt": "corrupt.pt is damaged: the checksum of ",
    "empty.ckpt": "it may be truncated",
    "hostile.pth": "was refused, because loading it could run code",
    "nan.pt": "NaN or infinite values in conv.0.weight",
    "overflow.pt": "not a number: the network's weights are too large",
    "shapes.pt": "multiple of 4 channels",
    "bomb.pt": "more than 536,870,912 parameters",
    "complex.pt": "complex",
    "lies.safetensors": "states an architecture",
    "outputs.bin": "9",
    "huge.pt": "files of more than 2.1 GB are not read",
    "round.pt": "link that leads nowhere",
    "dead.pt": "link that leads nowhere",
    "pipe.pt": "no file",
}


def test_broken_files_stop_nothing(model: Regressor, broken: Path) -> None:
    results = rank(model, [broken / "files"], activation="relu")
    found = by_file(results)
    assert {name for name, result in found.items() if "rank" in result} == {"good.pt"}
    assert set(found) == {"good.pt", *REASONS} and len(results) == len(found)
    for name, reason in REASONS.items():
        assert set(found[name]) == {"file", "error"}
        assert "\n" not in found[name]["error"]
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found[name]["error"])
    assert not (broken / "executed").exists()


def test_one_network_that_the_model_fails_on_does_not_spoil_its_batch(
    model: Regressor, some: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        torch.save(some[k], tmp_path / f"{k}.pt")
    original = model.assess

    def fail(batch: Any) -> Any:
        if any(
            bool(torch.isclose(g.nodes[1], some[1]["conv.0.bias"][:, None]).all(1).all(1).any()) for g in batch.buckets
        ):
            raise RuntimeError("the kernel\nfailed")
        return original(batch)

    monkeypatch.setattr(model, "assess", fail)
    found = by_file(rank(model, [tmp_path], activation="relu"))
    assert found["1.pt"]["error"] == "RuntimeError: the kernel failed"
    assert {found["0.pt"]["rank"], found["2.pt"]["rank"]} == {1, 2}


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.pt").write_bytes(b"")
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the tests may run as a user that may read everything
    file, folder = find([tmp_path])
    assert file.path == str(tmp_path / "a.pt") and file.error is None
    assert folder.path == str(tmp_path / "closed") and "Permission denied" in str(folder.error)


def test_files_that_may_not_be_read(
    model: Regressor, some: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(some[0], tmp_path / "a.pt")

    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(networks_module, "read_state_dict", refuse)
    (result,) = rank(model, [tmp_path])
    assert result["error"] == "cannot be read: Permission denied"


# -- the commands ----------------------------------------------------------------------------------------------------------


def run(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    code = main(command)
    output = capsys.readouterr()
    return code, output.out, output.err.strip().splitlines()


def test_predict(place: Path, some: list[State], broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(some[0], broken / "files" / "copy.pt")
    torch.save(some[3], broken / "files" / "better, or not.pt")
    command = ["predict", str(place / "run"), "files", "--activation", "relu"]
    code, out, err = run(command, capsys)
    assert code == 2 and len(err) == len(REASONS) and all(line.startswith("error: ") for line in err)
    assert out.split()[:5] == ["rank", "file", "test_accuracy", "interval", "architecture"]
    assert len(out.splitlines()) == 4 and "same weights as files/copy.pt" in out

    code, out, _ = run([*command, "--json"], capsys)
    results = json.loads(out)
    assert code == 2 and [r.get("rank") for r in results] == [1, 2, 3] + [None] * len(REASONS)

    code, out, _ = run([*command, "--csv"], capsys)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 2 and len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        assert row["file"] == result["file"] and row["error"] == result.get("error", "")
        if not row["error"]:
            assert float(row["predicted"]) == result["predicted"] and int(row["rank"]) == result["rank"]
            assert row["outside"] == str(result["outside"]).lower() and row["network"] == ""

    good = ["predict", str(place / "run"), "files/good.pt", str(place / "other"), "--activation", "relu"]
    code, out, err = run(good, capsys)
    assert code == 0 and not err and len(out.splitlines()) == 22 and f"{place / 'other'} #13" in out


def test_predict_with_wrong_input(place: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = str(place / "run")
    (broken / "nothing").mkdir()
    for command, words in (
        (["predict", trained, "nothing"], "nothing holds no zoo and no network files"),
        (["predict", trained, "missing"], "there is no file missing"),
        (["predict", "files", "files"], "files holds no model"),
        (["predict", trained, "files/good.pt"], "say which non-linearity the network has: add --activation"),
        (["predict", trained, "files/good.pt", "--activation", "wave"], "unknown activation 'wave'"),
        (["predict", trained, "files/good.pt", "--csv", "--json"], "not allowed with"),
    ):
        code, out, err = run(command, capsys)
        assert code == 2 and not out and len(err) == 1 and words in err[0], (command, err)


def test_names_that_are_no_text(
    place: Path, some: list[State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(some[0], tmp_path / "a.pt")
    try:
        os.rename(tmp_path / "a.pt", os.fsencode(tmp_path) + b"/caf\xe9.pt")
    except OSError:
        pytest.skip("this file system takes text only")
    code, out, _ = run(["predict", str(place / "run"), str(tmp_path), "--activation", "relu", "--json"], capsys)
    assert code == 0
    out.encode()
    assert json.loads(out)[0]["file"].endswith("caf\\udce9.pt")


def test_eval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = str(place / "run")
    code, out, _ = run(["eval", trained, "--json"], capsys)
    found = json.loads(out)
    assert code == 0 and found["n"] == 16 and "true" not in found and found["report"] == f"{trained}/report.html"
    assert (place / "run" / "report.html").read_text().count('h0"/>') == 16
    code, out, _ = run(["eval", trained], capsys)
    assert re.search(rf"Kendall's tau +{found['kendall_tau']:.4f}", out)
    for words in ("relu", "tanh", "coverage", f"report: {trained}/report.html"):
        assert words in out

    page = place / "pages" / "other.html"
    code, out, _ = run(["eval", trained, "--zoo", str(place / "other"), "--report", str(page)], capsys)
    assert code == 0 and f"of {place / 'other'}" in out and f"report: {page}" in out
    assert "trained on networks of" in page.read_text() and "cifar10-gs" in page.read_text()


def test_eval_where_no_page_can_be_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, out, err = run(["eval", str(place / "run")], capsys)
    assert code == 0 and "Kendall's tau" in out and "report:" not in out
    assert len(err) == 1 and "No space left on device" in err[0]
    code, out, err = run(["eval", str(place / "run"), "--report", str(tmp_path / "page.html")], capsys)
    assert code == 1 and "No space left on device" in err[0]


def test_classifiers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, example = "runs/quickstart/ng-gnn", "runs/quickstart/example.safetensors"
    code, out, err = run(["predict", trained, example, "--csv"], capsys)
    assert code == 2 and not out and "classifier" in err[0] and "--json" in err[0]
    os.mkdir("some")
    os.rename(example, "some/a.safetensors")
    code, out, _ = run(["predict", trained, "some", "--json"], capsys)
    assert code == 0 and [result["file"] for result in json.loads(out)] == ["some/a.safetensors"]
    code, out, _ = run(["eval", trained, "--report", "page.html", "--json"], capsys)
    assert code == 0 and json.loads(out)["report"] == "page.html"
    assert "Confusion matrix" in Path("page.html").read_text() and not Path(trained, "report.html").exists()
