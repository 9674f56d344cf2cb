"""Adapters: classifiers of clean images changed, from their weights alone, into classifiers of corrupted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import neural_graphs as ng
from neural_graphs.cli import main
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, GraphBatch, Layer, Stack
from neural_graphs.tasks import Adapter, OptimConfig, TrainConfig, evaluate, load_config, load_model, train
from neural_graphs.tasks import _adapt_images as images_module
from neural_graphs.tasks._adapt_images import adapt_images
from neural_graphs.tasks._adapt_report import adapt_report
from neural_graphs.tasks._adaptation import IMAGES_PER_STEP, draw
from neural_graphs.tasks._adapter import losses
from neural_graphs.zoo import Zoo, ZooWriter
from neural_graphs.zoo._bulk import TrainingImages
from neural_graphs.zoo._make_classifiers import prepare_images
from neural_graphs.zoo.edits import edit_images
from neural_graphs.zoo.images import load_images

CONFIG = TrainConfig(
    task="adapt",
    encoder={"name": "ng-gnn", "width": 8, "layers": 2, "activations": "auto"},
    edits=["noise", "invert"],
    optimizer=OptimConfig(epochs=2, batch_size=8, lr=3e-3, warmup_steps=2),
    threads=1,
    device="cpu",
)


def _stack(activation: str) -> Stack:
    kind = Activation.parse(activation)
    return Stack((Layer("conv", 1, 6, (3, 3), activation=kind, stride=2), Layer("head", 6, 10, positions=9)))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Classifiers of digits, of two architectures, that saw the first 1,000 of 1,442 training images."""
    first, test = (load_images("digits", split) for split in ("train", "test"))
    seen = replace(first, images=first.images[:1000], labels=first.labels[:1000])
    data = prepare_images(seen, replace(test, images=test.images[:200], labels=test.labels[:200]))
    stacks = {"a0": _stack("relu"), "a1": _stack("tanh")}
    meta = {
        "source": {"images": "digits", "height": 8, "width": 8, "channels": 1},
        "recipe": {"name": "drawn", "side": 0, "train_images": 1000, "test_images": 200},
    }
    with ZooWriter(tmp_path_factory.mktemp("zoos") / "digits", stacks, meta) as writer:
        for k, (name, stack) in enumerate(stacks.items()):
            numbers = np.arange(12) + 12 * k
            values, accuracy = _trained(stack, 12, data)
            columns: dict[str, np.ndarray] = {
                "network": numbers,
                "run": numbers,
                "epoch": np.full(12, 2, np.float32),
                "split": np.array((["train"] * 6 + ["val"] * 2 + ["test"] * 4), object),
                "test_accuracy": accuracy,
            }
            writer.append(name, 0, values, columns)
        return writer.finish()


def _trained(stack: Stack, count: int, data: TrainingImages) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    generator = torch.Generator().manual_seed(count)
    values = {
        name: (0.3 * torch.randn(count, *shape, generator=generator)).requires_grad_()
        for name, shape in stack.parameter_shapes().items()
    }
    optimizer = torch.optim.Adam(values.values(), lr=1e-2)
    for _ in range(60):
        rows = torch.randperm(len(data.train), generator=generator)[:100]
        losses(stack.forward(values, data.train[rows]), data.train_labels[rows])[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = {name: value.detach() for name, value in values.items()}
    return found, losses(stack.forward(found, data.test), data.test_labels)[1].numpy()


@pytest.fixture(scope="session")
def run(digits: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ng.tasks.TrainResult]:
    out = tmp_path_factory.mktemp("runs") / "adapt"
    return out, train(replace(CONFIG, zoo=str(digits.path), out=str(out)), quiet=True)


# -- images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 4])
def test_images_are_prepared_as_the_classifiers_read_them(digits: Zoo, side: int) -> None:
    zoo = Zoo.load(digits.path)
    zoo.meta["recipe"] = {**zoo.meta["recipe"], "side": side}
    found = adapt_images(zoo)
    first, test = (load_images("digits", split) for split in ("train", "test"))
    data = prepare_images(replace(first, images=first.images[:1000], labels=first.labels[:1000]), test, side)
    assert torch.equal(found.train.corrupted("clean"), data.train)
    assert torch.equal(found.train.labels, data.train_labels)
    assert torch.equal(found.test.corrupted("clean"), data.test[:200])
    assert torch.equal(found.test.labels, data.test_labels[:200])


def test_corruption_comes_before_preparation(digits: Zoo) -> None:
    zoo = Zoo.load(digits.path)
    zoo.meta["recipe"] = {**zoo.meta["recipe"], "side": 4}
    images, source = adapt_images(zoo).test, load_images("digits", "test")
    rows = np.array([5, 3])
    inverted = images.corrupted("invert", rows)
    pixels = edit_images(source.as_float()[rows], "invert").reshape(2, 1, 4, 2, 4, 2).mean((3, 5))  # one channel
    wanted = (torch.from_numpy(pixels) - images.mean) / images.std
    assert torch.allclose(inverted, wanted, atol=1e-5)
    assert not torch.allclose(images.corrupted("noise", rows), images.corrupted("clean", rows), atol=0.05)


def test_held_out_images_are_trained_on_by_nobody(digits: Zoo) -> None:
    found = adapt_images(digits)
    whole = load_images("digits", "train").images
    assert (len(found.train), len(found.held_out), len(found.test)) == (1000, 144, 200)
    assert np.array_equal(found.train.images, whole[:1000]) and np.array_equal(found.held_out.images, whole[1000:1144])
    assert found.of("test") is found.test and found.of("val") is found.held_out and found.of("train") is found.held_out


def test_held_out_images_where_classifiers_saw_all(digits: Zoo) -> None:
    zoo = Zoo.load(digits.path)
    zoo.meta["recipe"] = {**zoo.meta["recipe"], "train_images": 1442}
    found = adapt_images(zoo)
    assert (len(found.train), len(found.held_out)) == (1442 - 144, 144)
    assert torch.equal(found.train.mean, adapt_images(zoo).held_out.mean)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"source": {"images": "holidays"}}, "does not say which images"),
        ({"recipe": {"name": "x"}}, "does not say which images"),
        ({"recipe": {"side": 0, "train_images": 99999, "test_images": 10}}, "was made with 99999"),
    ],
)
def test_zoos_without_their_images(digits: Zoo, meta: dict[str, object], message: str) -> None:
    zoo = Zoo.load(digits.path)
    zoo.meta |= meta
    with pytest.raises(UserError, match=message):
        adapt_images(zoo)


# -- the loop -------------------------------------------------------------------------------------------------------------


def test_images_of_a_step_follow_from_seed_and_step(digits: Zoo) -> None:
    images = adapt_images(digits).train
    edits = ("noise", "blur", "clean")
    style, x, answers = draw(images, edits, 3, 7)
    again = draw(images, edits, 3, 7)
    assert style == again[0] and torch.equal(x, again[1]) and torch.equal(answers, again[2])
    assert x.shape == (IMAGES_PER_STEP, 1, 8, 8) and answers.shape == (IMAGES_PER_STEP,)
    assert not torch.equal(answers, draw(images, edits, 3, 8)[2]) and not torch.equal(
        answers, draw(images, edits, 4, 7)[2]
    )
    assert {draw(images, edits, 0, step)[0] for step in range(20)} == {0, 1, 2}
    other = draw(images, edits, 3, 7, process=1)  # the same corruption, other images
    assert other[0] == style and not torch.equal(other[2], answers)


def test_run(digits: Zoo, run: tuple[Path, ng.tasks.TrainResult]) -> None:
    out, result = run
    metrics = result.metrics
    assert set(metrics["per_edit"]) == {"noise", "invert"} and metrics["networks"]["test"] == len(digits.test)
    assert 0 <= metrics["test_accuracy"] <= 1 and result.test_accuracy == metrics["test_accuracy"]
    gains = [figures["accuracy"] - figures["no_edit_accuracy"] for figures in metrics["per_edit"].values()]
    assert metrics["test_gain"] == pytest.approx(np.mean(gains))
    assert metrics["test_clean_accuracy"] == pytest.approx(digits.test.column("test_accuracy").mean())
    kept = max(result.history, key=lambda row: row["val_accuracy"])
    assert metrics["val_accuracy"] == pytest.approx(kept["val_accuracy"])
    found = evaluate(out)
    assert found["task"] == "adapt" and found["accuracy"] == pytest.approx(metrics["test_accuracy"])
    assert isinstance(load_model(out), Adapter)


def test_eval_prints_accuracies(run: tuple[Path, ng.tasks.TrainResult], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run[0]), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    for name, figures in run[1].metrics["per_edit"].items():
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert f"{figures['accuracy']:.2%}" in line and f"{figures['no_edit_accuracy']:.2%}" in line
    assert main(["eval", str(run[0]), "--threads", "1", "--report", "page.html"]) == 2
    assert "no page of adapters" in capsys.readouterr().err


def test_training_learns_the_corruption(digits: Zoo) -> None:
    """Inverted digits are hopeless for classifiers of digits; changed weights get more right, of networks never seen."""
    torch.manual_seed(0)
    encoder = ng.create_encoder("ng-gnn", width=16, layers=2, kernel=[3, 3], activations=["relu", "tanh"])
    model = Adapter(encoder, 10, edits=["invert"])
    model.fit(digits.train, epochs=60, batch_size=12, lr=1e-2, warmup_steps=5, quiet=True, threads=1, device="cpu")
    found = adapt_report(model, digits.test)
    assert found["clean_accuracy"] > 0.7 and found["gain"] > 0.05
    assert model.score(digits.test) == found["accuracy"]


def test_resuming_is_exact(digits: Zoo, run: tuple[Path, ng.tasks.TrainResult], tmp_path: Path) -> None:
    config = replace(CONFIG, zoo=str(digits.path), out=str(tmp_path / "run"))
    constant = replace(config.optimizer, schedule="constant", epochs=1)
    whole = train(replace(config, optimizer=replace(constant, epochs=2), out=str(tmp_path / "whole")), quiet=True)
    train(replace(config, optimizer=constant), quiet=True)
    resumed = train(replace(config, optimizer=replace(constant, epochs=2)), resume=True, quiet=True)
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_bad_input(digits: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, zoo=str(digits.path), out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="unknown edit 'snow'"):
        train(replace(config, edits=["snow"]), quiet=True)
    monkeypatch.setattr(images_module, "IMAGE_SOURCES", {})
    with pytest.raises(UserError, match="does not say which images"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


# -- the report -----------------------------------------------------------------------------------------------------------


def _slow_accuracy(batch: GraphBatch, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Network by network, image by image."""
    found = [0.0] * len(batch)
    for graph, index in zip(batch.buckets, batch.index, strict=True):
        assert graph.stack is not None
        for row, place in enumerate(index.tolist()):
            module = graph.stack.module()
            module.load_state_dict(graph[row].to_state_dict())
            right = [int(module(image[None])[0].argmax() == label) for image, label in zip(images, labels, strict=True)]
            found[place] = sum(right) / len(right)
    return found


@pytest.mark.parametrize("copies", [1, 3])
def test_report_is_what_the_edited_networks_say(digits: Zoo, copies: int) -> None:
    torch.manual_seed(0)
    encoder = ng.create_encoder("ng-gnn", width=8, layers=2, kernel=[3, 3])
    model = Adapter(encoder, 10, edits=["noise", "invert"], copies=copies)
    for name, parameter in model.head.named_parameters():
        if name.startswith("weight_scale"):
            parameter.data.fill_(1.0)  # changes that can be seen
    split = digits.test.select([0, 4, 7])
    images = adapt_images(digits).test
    found = adapt_report(model, split)
    for edit in model.edits:
        x = images.corrupted(edit)
        changed = model.edit(split, edit)  # copies merged to one network each
        figures = found["per_edit"][edit]
        assert figures["accuracy"] == pytest.approx(np.mean(_slow_accuracy(changed, x, images.labels)))
        before = _slow_accuracy(split.batch(), x, images.labels)
        assert figures["no_edit_accuracy"] == pytest.approx(np.mean(before))
        clean = np.mean(_slow_accuracy(changed, images.corrupted("clean"), images.labels))
        assert figures["edited_clean_accuracy"] == pytest.approx(clean)
    assert found["accuracy"] == pytest.approx(np.mean([f["accuracy"] for f in found["per_edit"].values()]))


def test_report_by_quarters(digits: Zoo) -> None:
    model = Adapter(ng.create_encoder("ng-gnn", width=8, layers=1, kernel=[3, 3]), 10, edits=["blur"])
    found = adapt_report(model, digits.test)
    quarters = list(found["per_quarter"].values())
    assert sum(q["n"] for q in quarters) == len(digits.test) and len(quarters) == 4
    clean = [q["clean_accuracy"] for q in quarters]
    assert clean == sorted(clean, reverse=True)
    assert found["per_edit"]["blur"]["best_quarter_gain"] == quarters[0]["gain"]
    for key in ("accuracy", "gain", "clean_accuracy"):
        mean = sum(q["n"] * q[key] for q in quarters) / len(digits.test)
        assert found[key] == pytest.approx(mean)
    # one edit, measured on another corruption than it was trained on
    assert adapt_report(model, digits.test, ["invert"])["per_edit"].keys() == {"invert"}
    with pytest.raises(UserError, match="does not know 'invert'"):
        adapt_report(Adapter(model.encoder, 10, edits=["blur", "noise"]), digits.test, ["invert"])


# -- the model ------------------------------------------------------------------------------------------------------------


def test_change_is_equivariant(digits: Zoo) -> None:
    torch.manual_seed(0)
    encoder = ng.create_encoder("ng-gnn", width=8, layers=2, kernel=[3, 3])
    model = Adapter(encoder, 10, edits=["noise", "blur"]).double().eval()
    for parameter in model.head.parameters():  # at the start all styles are alike and changes small
        parameter.data += 0.3 * torch.randn_like(parameter)
    graph = digits.test.batch([0]).buckets[0].to(torch.float64)
    element = graph.symmetries.sample(torch.Generator().manual_seed(1))
    x, style = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([1])
    one = model.edited(model.code(graph), style)[0].permute(element).to_state_dict()
    other = model.edited(model.code(graph.permute(element)), style)[0].to_state_dict()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=0, atol=1e-10)
    logits = model(graph, x, style)
    assert torch.allclose(logits, model(graph.permute(element), x, style), rtol=0, atol=1e-10)
    assert not torch.allclose(logits, model(graph, x, 1 - style), atol=1e-6)


def test_save_and_load(run: tuple[Path, ng.tasks.TrainResult], digits: Zoo, tmp_path: Path) -> None:
    model = Adapter.from_pretrained(run[0])
    model.save(tmp_path / "copy")
    again = load_model(tmp_path / "copy")
    assert isinstance(again, Adapter) and again.edits == ("noise", "invert")
    one, other = (m.edit(digits.test, "invert").buckets[0].to_state_dict() for m in (model, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="classifiers of 4 classes"):
        Adapter(model.encoder, 4).edit(digits.test)


def test_preset() -> None:
    config = load_config("adapt", ["zoo=somewhere"])
    assert config.task == "adapt" and config.edits == ["noise", "blur"] and config.encoder["activations"] == "auto"
