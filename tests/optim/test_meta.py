"""Meta-training: its gradients against slow twins, and that runs are the same however they are cut or shared out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from neural_graphs.errors import UserError
from neural_graphs.optim import MetaConfig, Wiring, _unroll, _workers, create_rule, load_meta_config, train_rule
from neural_graphs.optim._config import is_meta_config, list_meta_presets, meta_preset_text
from neural_graphs.optim._families import mlp
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._unroll import Slot, inner_rate
from neural_graphs.optim._weights import load_rule


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits in place of the families' tasks: no data to load, and tiny networks."""

    def drawn(family: str, seed: int, augment: bool = False) -> InnerTask:
        return InnerTask(f"{family}-{seed}", mlp(8, (8,) * (1 + seed % 2)), "digits", 8, 32, 12 + seed % 7)

    monkeypatch.setattr(_unroll, "sample_task", drawn)
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")


def config(out: Path, **changes: object) -> MetaConfig:
    small = {
        "slots": 3,
        "pairs": 2,
        "truncation": 5,
        "steps": 4,
        "eval_every": 2,
        "eval_tasks": 1,
        "rule": {"name": "ff", "hidden": 4},
    }
    return MetaConfig(**{**small, "out": str(out), **changes})  # type: ignore[arg-type]


def slot_of(settings: MetaConfig, number: int = 2) -> tuple[Slot, torch.Tensor]:
    rule = create_rule(**{**settings.rule, "seed": 5})
    with torch.no_grad():
        for value in rule.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    return Slot(settings, rule, number), parameters_to_vector(rule.parameters()).detach()


def test_pes_is_what_training_every_network_alone_gives(tmp_path: Path) -> None:
    settings = config(tmp_path, sigma=0.1, truncation=4)
    slot, theta = slot_of(settings)
    rule, task, run = slot.rule, slot.task, slot.run
    assert task.steps > 8
    noises, gradients = [], []
    for number in range(2):
        generator = torch.Generator().manual_seed(_unroll._mixed(settings.seed, slot.number, number, 1))
        noises.append(settings.sigma * torch.randn(slot.path.shape, generator=generator))
        gradients.append(slot.advance(theta, number)[0])

    def cost(pair: int, sign: float) -> list[float]:
        """Of one network that is trained by itself, per truncation."""
        params = task.new_params([run + pair])
        state, wiring = rule.new_state(params), Wiring.of(task.spec)
        found = [0.0, 0.0]
        for step in range(8):
            vector_to_parameters(theta + sign * noises[step // 4][pair], rule.parameters())
            losses, grads = task.losses_and_grads(params, *task.batch(run, step))
            weight = (1 + settings.late * (step / task.steps) ** 2) / (1 + settings.late / 3)
            found[step // 4] += weight * math.log(float(losses) + 0.05) / 4
            update = rule.propose(wiring, params, grads, state, dict.fromkeys(params, step + 1)).updates
            params = {k: v - settings.lr * (1 - step / task.steps) * update[k] for k, v in params.items()}
        return found

    path = torch.zeros_like(noises[0])
    for number in range(2):
        path = path + noises[number]
        expected = torch.zeros_like(theta)
        for pair in range(settings.pairs):
            difference = cost(pair, 1)[number] - cost(pair, -1)[number]
            expected += difference * path[pair] / (2 * settings.sigma**2 * settings.pairs)
        torch.testing.assert_close(gradients[number], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_backpropagation_is_the_slope_of_the_loss(tmp_path: Path) -> None:
    settings = config(tmp_path, method="backprop", truncation=1, pairs=3, lr=0.03)
    slot, theta = slot_of(settings)
    for _ in range(3):  # the momenta should not be zero
        slot.advance(theta, 0)
    kept = {name: value.clone() for name, value in slot.tensors().items()}
    gradient, _ = slot.advance(theta, 0)
    assert gradient.norm() > 0

    def cost(theta: torch.Tensor) -> float:
        slot.restore(kept)
        weights = slot._weights(theta.expand(slot.count, -1))
        slot._train(weights)
        x, y = slot.task.batch(slot.run, slot.step)
        losses, _ = slot.task.losses_and_grads({k: v.double() for k, v in slot.params.items()}, x.double(), y)
        return slot._weight() * float((losses + 0.05).log().mean())

    direction = gradient / gradient.norm()
    slope = (cost(theta + 0.02 * direction) - cost(theta - 0.02 * direction)) / 0.04
    assert slope == pytest.approx(float(gradient @ direction), rel=0.05)


def test_every_slot_depends_on_its_number_alone(tmp_path: Path) -> None:
    settings = config(tmp_path)
    rule = create_rule(**settings.rule)
    theta = parameters_to_vector(rule.parameters()).detach()
    together = _workers.Slots(settings, range(3))
    alone = _workers.Slots(settings, range(1, 2))
    for number in range(6):  # beyond the end of the first tasks
        found, (gradient, loss) = together.advance(theta, number), alone.advance(theta, number)[1]
        assert torch.equal(found[1][0], gradient) and found[1][1] == loss
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.filterwarnings("ignore:tasks are drawn on digits")  # where there is no Fashion-MNIST
def test_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # processes of their own draw the families' tasks
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")
    monkeypatch.setattr(_unroll, "validation_tasks", lambda config: [])
    settings = config(tmp_path, slots=2, truncation=2, horizon=[4, 6], family="transformer")
    rule = create_rule(**settings.rule)
    theta = parameters_to_vector(rule.parameters()).detach()
    own, shared = _workers.Slots(settings, range(2)), _workers.Workers(settings, 2)
    try:
        for number in range(2):
            expected, found = own.advance(theta, number), shared.advance(theta, number)
            assert sorted(found) == [0, 1]
            for key, (gradient, loss) in expected.items():
                assert torch.equal(found[key][0], gradient) and found[key][1] == loss
        state = shared.tensors()
        assert all(torch.equal(value, state[name]) for name, value in own.tensors().items())
        shared.restore(own.tensors())
    finally:
        shared.close()


def test_an_interrupted_run_goes_on_to_the_same_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_rule(config(tmp_path / "whole"), quiet=True)
    advance = _workers.Slots.advance

    def interrupted(self: _workers.Slots, theta: torch.Tensor, number: int) -> object:
        if number == 3:
            raise KeyboardInterrupt
        return advance(self, theta, number)

    monkeypatch.setattr(_workers.Slots, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_rule(config(tmp_path / "cut"), quiet=True)
    monkeypatch.setattr(_workers.Slots, "advance", advance)
    with pytest.raises(UserError, match="unfinished"):
        train_rule(config(tmp_path / "cut"), quiet=True)
    with pytest.raises(UserError, match="another configuration"):
        train_rule(config(tmp_path / "cut", sigma=0.2), resume=True, quiet=True)
    cut = train_rule(config(tmp_path / "cut"), resume=True, quiet=True)
    assert whole.score == cut.score and whole.best_step == cut.best_step
    for name, value in whole.rule.state_dict().items():
        assert torch.equal(value, cut.rule.state_dict()[name])
    rule, card = load_rule(tmp_path / "cut")
    assert rule.digest() == cut.rule.digest() and card["lr"] == 0.01
    with pytest.raises(UserError, match="finished"):
        train_rule(config(tmp_path / "cut"), resume=True, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]


@pytest.mark.filterwarnings("ignore:tasks are drawn on digits")  # where there is no Fashion-MNIST
def test_a_run_may_go_on_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # processes of their own draw the families' tasks
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")
    changes = {"slots": 2, "truncation": 2, "horizon": [4, 6], "family": "transformer"}
    whole = train_rule(config(tmp_path / "whole", **changes), quiet=True)
    advance = _workers.Slots.advance

    def interrupted(self: _workers.Slots, theta: torch.Tensor, number: int) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return advance(self, theta, number)

    monkeypatch.setattr(_workers.Slots, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_rule(config(tmp_path / "cut", **changes), quiet=True)
    cut = train_rule(config(tmp_path / "cut", workers=2, **changes), resume=True, quiet=True)
    assert (cut.score, cut.best_step) == (whole.score, whole.best_step)
    for name, value in whole.rule.state_dict().items():
        assert torch.equal(value, cut.rule.state_dict()[name])


def test_meta_training_helps(tmp_path: Path) -> None:
    """From a learning rate that is far too small the rule learns to take larger steps."""
    settings = config(
        tmp_path, lr=1e-3, steps=40, slots=4, pairs=4, truncation=8, sigma=0.1, optimizer_lr=0.03, eval_every=20
    )
    found = train_rule(
        dataclasses.replace(settings, rule={"name": "graph", "hidden": 4, "messages": 4, "width": 4}), quiet=True
    )
    assert found.score < found.nominal - 0.1


def test_a_network_that_is_lost_is_begun_anew(tmp_path: Path) -> None:
    slot, theta = slot_of(config(tmp_path))
    drawn = slot.drawn
    next(iter(slot.params.values()))[0].fill_(math.nan)
    gradient, _ = slot.advance(theta, 0)
    assert gradient.isfinite().all() and slot.drawn == drawn + 1 and slot.step == 0


def test_rates_fall_to_zero() -> None:
    assert [inner_rate(0.1, "linear", step, 4) for step in range(4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert inner_rate(0.1, "constant", 3, 4) == 0.1


@pytest.mark.parametrize("name", list_meta_presets())
def test_presets_list_every_setting(name: str) -> None:
    values = yaml.safe_load(meta_preset_text(name))
    assert list(values) == [field.name for field in dataclasses.fields(MetaConfig)]
    assert is_meta_config(name) and load_meta_config(name, ["seed=3"]).seed == 3
    assert meta_preset_text(name).startswith("# ")
    create_rule(**load_meta_config(name).rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"sigma": 0.0}, "positive"),
        ({"sigma": math.nan}, "positive"),
        ({"average": 1.0}, "below 1"),
        ({"horizon": [5, 2]}, "horizon"),
        ({"rule": {}}, "rule.name"),
        ({"workers": -1}, "negative"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, **changes)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train_rule(config(tmp_path), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not is_meta_config("inr-cpu") and not is_meta_config(str(tmp_path / "none.yaml"))
