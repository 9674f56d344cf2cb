"""The moving average of weights against its formula, and that it is what is validated and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Classifier, train
from neural_graphs.tasks._average import Average
from neural_graphs.tasks._loop import Loop
from neural_graphs.tasks._train import build
from neural_graphs.zoo import Zoo


def test_formula() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average = Average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)


def test_a_constant_stays_and_the_model_gets_its_own_weights_back() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.99)
    for step in range(5):
        average.update(model, step)
    assert all(torch.equal(average.values[name], value) for name, value in model.named_parameters())
    before = model[0].bias.detach().clone()
    with torch.no_grad():
        model[0].bias.add_(1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.within(model):
        assert torch.equal(model[0].bias, before)
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_the_average_is_validated_and_kept(
    zoo: Zoo, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training itself takes no notice: the weights along the way are those of a run without."""
    seen: dict[str, list[dict[str, Tensor]]] = {}
    original = Loop._step

    def record(loop: Any, sample: Any) -> None:
        original(loop, sample)
        entry = {name: value.detach().clone() for name, value in loop.core.named_parameters()}
        seen.setdefault(Path(loop.config.out).name, []).append(entry)

    monkeypatch.setattr(Loop, "_step", record)
    settings = config(zoo, tmp_path / "with", epochs=3, ema=0.8)
    train(settings, quiet=True)
    train(config(zoo, tmp_path / "without", epochs=3), quiet=True)
    assert len(seen["with"]) == len(seen["without"]) == 12
    for a, b in zip(seen["with"], seen["without"], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)

    average = {name: value.detach().clone() for name, value in build(settings, zoo, zoo.train).named_parameters()}
    at: list[dict[str, Tensor]] = []
    for step, weights in enumerate(seen["without"]):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
        at.append(average)
    metrics = json.loads((tmp_path / "with" / "metrics.json").read_text())
    saved = load_file(tmp_path / "with" / "model" / "model.safetensors")
    for name, value in at[metrics["best_step"] - 1].items():
        torch.testing.assert_close(saved[name], value)
    assert Classifier.from_pretrained(tmp_path / "with").score(zoo.val) == metrics["val_accuracy"]
    state = load_file(tmp_path / "with" / "last" / "state.safetensors")
    for name, value in at[-1].items():
        torch.testing.assert_close(state[f"ema.{name}"], value)
        assert torch.equal(state[f"model.{name}"], seen["with"][-1][name])


def test_without_validation_the_last_average_is_kept(zoo: Zoo) -> None:
    models = []
    for ema in (0.0, 0.9):
        torch.manual_seed(0)
        model = Classifier(create_encoder("mlp", parameters=33, width=8), 3)
        model.fit(zoo.train, epochs=2, ema=ema, threads=1, quiet=True)
        models.append(model.head.mlp[0].weight)
    assert not torch.equal(*models)
