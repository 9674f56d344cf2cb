"""Learning to draw what networks compute: targets, errors, what classification goes on with, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Layer, Stack
from neural_graphs.tasks import AugmentConfig, Classifier, PretrainConfig, train
from neural_graphs.tasks._decoder import Decoder, check_images, create_decoder
from neural_graphs.tasks._loop import Loop
from neural_graphs.tasks._train import build
from neural_graphs.zoo import Zoo
from neural_graphs.zoo._render import render
from neural_graphs.zoo._symmetry import symmetric

SMALL = PretrainConfig(epochs=2, side=6, width=16)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_errors_are_those_of_rendered_images(mixed_zoo: Zoo) -> None:
    """The target is what ``zoo.render`` draws, standardised by the mean image and the variance around it."""
    decoder = Decoder(code=5, hidden=8, side=9, outputs=1)
    decoder.measure([mixed_zoo.train.batch()])
    images = torch.from_numpy(render(mixed_zoo.train, height=9, width=9)).flatten(1)
    mean = images.mean(0)
    scale = float((images - mean).square().mean()) ** 0.5
    batch = mixed_zoo.train.batch(slice(0, 10))
    drawn = torch.randn(10, 81, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([((images[b] - mean) / scale - drawn[b]).square().mean() for b in range(10)])
    torch.testing.assert_close(decoder.errors(drawn, batch), expected, rtol=1e-4, atol=1e-5)
    nothing = torch.zeros(len(mixed_zoo.train), 81)
    assert float(decoder.errors(nothing, mixed_zoo.train.batch()).mean()) == pytest.approx(1, abs=1e-4)
    same = symmetric(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoder.errors(drawn, same), decoder.errors(drawn, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("encoder", ["ng-gnn", "mlp"])
def test_pretraining_beats_the_mean_image(zoo: Zoo, tmp_path: Path, config: Any, encoder: str) -> None:
    encoders = {
        "ng-gnn": {"name": "ng-gnn", "width": 16, "layers": 2, "fourier": 0, "dropout": 0.0, "probes": 4},
        "mlp": {"name": "mlp", "width": 32, "dropout": 0.0},
    }
    pretrain = PretrainConfig(epochs=20, side=6, width=32, lr=1e-2)
    settings = config(zoo, tmp_path / "run", encoder=encoders[encoder], pretrain=pretrain, epochs=1)
    train(settings, quiet=True)
    *first, last = rows(tmp_path / "run")
    assert [row["epoch"] for row in first] == list(range(1, 21)) and "phase" not in last
    assert all(row["phase"] == "pretrain" for row in first)
    assert first[-1]["train_error"] < first[0]["train_error"]
    assert first[-1]["train_error"] < 0.8 and first[-1]["val_error"] < 0.8  # the mean image has 1
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["pretraining"]
    assert found == {key: first[-1][key] for key in ("epoch", "step", "train_error", "val_error")}


def test_classification_goes_on_from_pretrained_weights(
    zoo: Zoo, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Tensor]]] = []
    original = Loop._step

    def record(loop: Any, sample: Any) -> None:
        seen.append((loop.phase, {name: value.detach().clone() for name, value in loop.core.named_parameters()}))
        original(loop, sample)

    monkeypatch.setattr(Loop, "_step", record)
    settings = config(zoo, tmp_path / "run", pretrain=SMALL, epochs=1)
    train(settings, quiet=True)
    assert [phase for phase, _ in seen] == ["pretrain"] * 8 + ["classify"] * 4
    fresh = dict(build(settings, zoo, zoo.train).named_parameters())
    start = seen[8][1]
    assert all(torch.equal(seen[0][1][name], value) for name, value in fresh.items())
    moved = {name for name, value in fresh.items() if not torch.equal(value, start[name])}
    assert {name for name in fresh if name.startswith("head.mlp.4")} == set(fresh) - moved  # logits come later
    assert any(not torch.equal(start[name], seen[7][1][name]) for name in moved)


def test_reconstruction_beside_classification(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    augment = AugmentConfig(rotation=10.0, symmetry=True)
    result = train(
        config(zoo, tmp_path / "run", epochs=20, reconstruction=0.3, augment=augment, pretrain=PretrainConfig(side=6)),
        quiet=True,
    )
    errors = [row["train_error"] for row in result.history]
    assert errors[-1] < 0.8 and result.test_accuracy is not None and result.test_accuracy >= 0.8
    assert not hasattr(Classifier.from_pretrained(tmp_path / "run"), "decoder")
    plain = train(config(zoo, tmp_path / "plain", epochs=1), quiet=True)
    assert "train_error" not in plain.history[0] and result.parameters == plain.parameters


def test_networks_are_augmented_but_not_mixed(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    found = {}
    for name, augment in {
        "plain": AugmentConfig(),
        "mixed": AugmentConfig(mixup=0.5),
        "turned": AugmentConfig(rotation=45.0),
    }.items():
        settings = config(zoo, tmp_path / name, augment=augment, pretrain=SMALL, epochs=1)
        train(settings, quiet=True)
        *first, last = rows(tmp_path / name)
        found[name] = ([row["train_error"] for row in first], last["train_loss"])
    assert found["mixed"][0] == found["plain"][0] != found["turned"][0]
    assert found["mixed"][1] != found["plain"][1]


def test_in_memory(zoo: Zoo) -> None:
    from neural_graphs.nn import create_encoder

    model = Classifier(create_encoder("mlp", parameters=33, width=16), 3)
    model.fit(zoo.train, zoo.val, epochs=2, pretrain=SMALL, reconstruction=0.1, threads=1, quiet=True)
    assert model.logits(zoo.test).shape == (16, 3)


def test_networks_that_are_no_images_are_refused(zoo: Zoo, make_zoo: Any, tmp_path: Path, config: Any) -> None:
    volumes = make_zoo(tmp_path / "volumes", {"a0": Stack.mlp((3, 4, 1))})
    for changes in ({"pretrain": SMALL}, {"reconstruction": 0.1}):
        with pytest.raises(UserError, match="3-4-1 .*only networks with 2 inputs .*pretrain.epochs=0 reconstruction=0"):
            train(config(volumes, tmp_path / "run", **changes), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="only networks with 2 inputs"):
        check_images([Stack((Layer("0", 2, 4, (3, 3)),))])
    with pytest.raises(UserError, match="one number of outputs"):
        check_images([Stack.mlp((2, 4, 1)), Stack.mlp((2, 4, 3))])
    settings = config(zoo, tmp_path / "run")
    assert create_decoder(build(settings, zoo, zoo.train), zoo.train, settings).grid.shape == (784, 2)
