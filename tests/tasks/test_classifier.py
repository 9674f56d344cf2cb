"""The classifier by hand: fit, predict, score, save and from_pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Classifier, load_config
from neural_graphs.tasks._architecture import encoder_arguments, recognise
from neural_graphs.zoo import Zoo

ENCODER = {"width": 8, "layers": 2, "fourier": 0, "dropout": 0.0}


def fitted(zoo: Zoo, **options: Any) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(create_encoder("ng-gnn", **ENCODER), 3)
    return model.fit(zoo.train, zoo.val, batch_size=16, lr=1e-2, warmup_steps=4, quiet=True, threads=1, **options)


@pytest.fixture(scope="module")
def model(zoo: Zoo) -> Classifier:
    return fitted(zoo, epochs=8)


def test_fit_keeps_the_best(zoo: Zoo, model: Classifier) -> None:
    assert model.score(zoo.train) > 0.6
    assert not model.training
    torch.manual_seed(0)
    last = Classifier(create_encoder("ng-gnn", **ENCODER), 3)
    last.fit(zoo.train, epochs=8, batch_size=16, lr=1e-2, warmup_steps=4, quiet=True)
    assert model.score(zoo.val) >= last.score(zoo.val)
    with pytest.raises(UserError, match="unknown option learning_rate: valid are .*lr"):
        last.fit(zoo.train, learning_rate=1.0)


def test_every_kind_of_input_gives_the_same_answer(zoo: Zoo, model: Classifier) -> None:
    split = zoo.test
    expected = model.predict_proba(split)
    assert expected.shape == (16, 3)
    torch.testing.assert_close(expected.sum(1), torch.ones(16))
    batch = split.batch()
    torch.testing.assert_close(model.predict_proba(batch), expected)
    torch.testing.assert_close(model.predict_proba(batch.buckets[0]), expected)
    torch.testing.assert_close(model.predict_proba([batch.buckets[0][3], batch.buckets[0][1]]), expected[[3, 1]])
    state = batch.buckets[0][5].to_state_dict()
    torch.testing.assert_close(model.predict_proba(state), expected[5:6])
    assert torch.equal(model.predict(split), expected.argmax(1))


@pytest.mark.parametrize("which", ["zoo", "mixed_zoo"])
def test_batch_mates_do_not_matter(which: str, request: pytest.FixtureRequest) -> None:
    found: Zoo = request.getfixturevalue(which)
    trained = fitted(found, epochs=1)
    together = trained.predict_proba(found.all)
    for index in range(0, 96, 7):
        torch.testing.assert_close(trained.predict_proba(found.all.select([index])), together[index : index + 1])


def test_permuted_networks_get_the_same_answer(zoo: Zoo, model: Classifier) -> None:
    graph = zoo.test.batch().buckets[0]
    element = graph.symmetries.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.predict_proba(graph.permute(element)), model.predict_proba(graph))


def test_save_and_load_are_exact(zoo: Zoo, model: Classifier, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = Classifier.from_pretrained(tmp_path / "model")
    assert torch.equal(again.predict_proba(zoo.test), model.predict_proba(zoo.test))
    assert again.config() == model.config() and again.architectures == model.architectures
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_broken_models_are_one_line(model: Classifier, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    good_config, good_weights = config.read_text(), weights.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            Classifier.from_pretrained(folder)
        assert "\n" not in str(caught.value)

    config.write_text(good_config.replace('"format": 1', '"format": 2'))
    refused("newer version of neural-graphs .format 2.*pip install --upgrade")
    config.write_text(good_config[:200])
    refused("not a JSON file")
    config.write_text("[]")
    refused("describes no classifier")
    for key in ("encoder", "state", "num_classes", "architectures"):
        broken = json.loads(good_config)
        del broken[key]
        config.write_text(json.dumps(broken))
        refused("config.json is broken")
    broken = json.loads(good_config)
    broken["encoder"]["width"] = 16
    config.write_text(json.dumps(broken))
    refused("does not belong to config.json")
    config.write_text(good_config)
    weights.write_bytes(good_weights[: len(good_weights) // 2])
    refused("model.safetensors is broken or truncated")
    tensors = load_file_of(good_weights, tmp_path)
    tensors.pop("head.mlp.0.bias")
    save_file(tensors, weights)
    refused("does not belong to config.json")
    weights.unlink()
    refused("it has no model.safetensors")
    with pytest.raises(UserError, match="no model folder"):
        Classifier.from_pretrained(tmp_path / "nowhere")


def load_file_of(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_unreadable_networks(model: Classifier) -> None:
    wide = NeuralGraph.from_state_dict(Stack.mlp((2, 4, 3), "sine:30").module().state_dict(), "sine:30")
    with pytest.raises(UserError, match="networks of 1 outputs, this one has 3"):
        model.predict(wide)
    broken = wide.map(lambda t: t * float("nan"))
    with pytest.raises(UserError, match="NaN or infinite values in 0.weight|seq.0.weight"):
        model.predict(GraphBatch.of(broken))


def test_encoder_arguments_follow_from_the_zoo() -> None:
    siren, cnn = Stack.mlp((2, 32, 32, 1)), Stack.mlp((3, 8, 20), "relu")
    paper = load_config("inr-paper").encoder
    found = encoder_arguments(paper, [siren], seed=7)
    assert found["inputs"] == 2 and found["seed"] == 7 and found["kernel"] == [1, 1] and found["width"] == 64
    assert encoder_arguments({"name": "ng-gnn", "seed": 1}, [cnn], seed=7)["max_io"] == 20
    assert encoder_arguments({"name": "mlp"}, [siren], seed=0)["parameters"] == siren.num_parameters == 1185
    with pytest.raises(UserError, match="same number of inputs"):
        encoder_arguments({"name": "ng-gnn", "probes": 4}, [siren, cnn], seed=0)


def test_recognise() -> None:
    sine, relu = Stack.mlp((2, 4, 1), "sine:30", shift=0.5), Stack.mlp((2, 4, 1), "relu")
    state = sine.module().state_dict()
    assert recognise(state, [sine]) == sine
    with pytest.raises(UserError, match="fit several architectures.*sine:30.*relu"):
        recognise(state, [sine, relu])
    assert recognise(state, [sine, relu], activation="relu") == relu
    # Never seen, but all known ones have the same non-linearity and shift.
    deeper = Stack.mlp((2, 4, 4, 1), "sine:30", shift=0.5)
    assert recognise(deeper.module().state_dict(), [sine]) == deeper
    with pytest.raises(UserError, match="none that this model was trained on"):
        recognise(deeper.module().state_dict(), [sine, relu])
    assert recognise(deeper.module().state_dict(), [], activation="tanh") == Stack.mlp((2, 4, 4, 1), "tanh")
