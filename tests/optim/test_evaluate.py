"""Training many networks at once, tuning and comparing: against loops over torch's modules and optimizers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from neural_graphs._io import read_json
from neural_graphs.errors import UserError
from neural_graphs.optim import _evaluate
from neural_graphs.optim._baselines import Setting, schedule_factor
from neural_graphs.optim._compare import compare, time_over_adam
from neural_graphs.optim._evaluate import Learned, paired, run_settings, steps_to_reach, tune
from neural_graphs.optim._families import cnn, mlp, vit
from neural_graphs.optim._rule import create_rule
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._train_many import WORST_LOSS, smoothed, train_many, with_rule, with_settings

TASK = InnerTask("small", mlp(8, (8,)), data="digits", batch_size=32, steps=30)


def one_by_one(task, setting, seed):
    """Loss per step and the trained module, as a user would write it."""
    torch.manual_seed(seed)
    module = task.architecture.module()
    optimizer = torch.optim.Adam(module.parameters(), setting.lr)
    losses = []
    for step in range(task.steps):
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * schedule_factor(setting.schedule, step, task.steps)
        x, y = task.batch(seed, step)
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), module


@pytest.mark.parametrize("task", [TASK, InnerTask("conv", cnn((6,)), data="digits", batch_size=16, steps=22)])
@pytest.mark.parametrize("repeats", [2, 8])
def test_every_run_is_that_of_a_plain_loop(task, repeats):
    settings = [Setting("adam", 0.01 * (1 + r), ("linear", "cosine")[r % 2]) for r in range(repeats)]
    found = train_many(task, with_settings(settings), [3, 4], repeats, ("val", "test"))
    for particle in (0, repeats - 1, repeats, 2 * repeats - 1):
        losses, module = one_by_one(task, settings[particle % repeats], 3 + particle // repeats)
        torch.testing.assert_close(found.losses[:, particle], losses, rtol=1e-3, atol=1e-4)
        assert float(found.last_loss[particle]) == pytest.approx(float(losses[-20:].mean()), rel=1e-3)
        x, y = task.images.take("test", slice(None))
        with torch.no_grad():
            logits = module(x.flatten(1) if task is TASK else x)
        loss, accuracy = found.scores["test"]
        assert float(loss[particle]) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-3)
        assert float(accuracy[particle]) == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=0.006)


def test_a_run_that_diverges_counts_as_worst_and_leaves_the_others_alone():
    alone = train_many(TASK, with_settings([Setting("sgd", 0.1)]), [1])
    both = train_many(TASK, with_settings([Setting("sgd", 0.1), Setting("sgd", 1e30)]), [1], 2)
    assert both.diverged.tolist() == [False, True]
    assert float(both.train_loss[1]) == float(both.last_loss[1]) == WORST_LOSS
    assert [float(value[1]) for value in both.scores["val"]] == [WORST_LOSS, 0]
    torch.testing.assert_close(both.train_loss[0], alone.train_loss[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [mlp(8, (8,)), vit(8, 4, 8, 2, 1)])
def test_an_untrained_rule_is_adam(architecture):
    task = InnerTask("rule", architecture, data="digits", batch_size=16, steps=20)
    rule = create_rule("ff")
    found = train_many(task, with_rule(rule, [0.01, 0.02], "linear"), [1, 2], 2)
    settings = [Setting("adam", 0.01, "linear"), Setting("adam", 0.02, "linear")]
    wanted = train_many(task, with_settings(settings), [1, 2], 2)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=2e-3, atol=2e-3)
    assert found.losses[-1].mean() < found.losses[0].mean() - 0.1


def test_smoothed_losses_are_means_of_what_came_before():
    losses = torch.rand(100, 2)
    found = smoothed(losses)
    for step in (0, 5, 19, 20, 99):
        torch.testing.assert_close(found[step], losses[max(0, step - 19) : step + 1].double().mean(0))


def test_tuning_takes_the_best_and_is_kept(tmp_path, monkeypatch):
    grid = [Setting("adam", lr, schedule) for lr in (1e-6, 1e-2, 10.0) for schedule in ("constant", "linear")]
    found = tune(TASK, "adam", tmp_path, grid)
    assert found.by_loss.lr == found.by_accuracy.lr == 1e-2
    direct = train_many(TASK, with_settings([found.by_loss]), _evaluate.TUNING_SEEDS)
    assert found.loss == pytest.approx(float(direct.train_loss.mean()), rel=1e-4)
    records = run_settings(TASK, [found.by_loss], tmp_path, seeds=(1, 2))

    def forbidden(*arguments, **others):
        raise AssertionError("trained again")

    monkeypatch.setattr(_evaluate, "train_many", forbidden)
    assert tune(TASK, "adam", tmp_path, grid) == found
    assert tune(TASK, "adam", tmp_path, grid, schedules=["constant"]).by_loss.schedule == "constant"
    assert run_settings(TASK, [found.by_loss], tmp_path, seeds=(1, 2)) == records
    with pytest.raises(AssertionError, match="trained again"):
        tune(TASK.with_steps(31), "adam", tmp_path, grid)
    with pytest.raises(UserError, match="unknown baseline"):
        tune(TASK, "adagrad", tmp_path)


def test_steps_to_reach_a_loss():
    record = {"curve_steps": [1, 50, 75, 100], "curves": [[0.1, 3, 2, 1], [5, 4, 4, 4]]}
    assert steps_to_reach(record, [2.5, 1.0]) == [75, None]


def test_paired_differences_have_students_interval():
    values, others = [1.0, 2.5, 2.0, 4.0], [0.5, 2.0, 2.5, 3.0]
    mean, half = paired(values, others)
    interval = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    assert math.isnan(paired([1.0], [2.0])[1])


def test_comparison_with_tuned_adam(tmp_path, monkeypatch):
    grids = {
        name: [Setting(name, lr, "constant"), Setting(name, lr, "linear")]
        for name, lr in (("adam", 0.02), ("sgd", 0.05))
    }
    monkeypatch.setattr(_evaluate, "GRIDS", grids)
    rules = {"ff": [Learned(create_rule("ff", seed=seed), 0.02) for seed in (0, 1)]}
    found = {(c.method, c.variant): c for c in compare(TASK, rules, tmp_path, (1, 2, 3), ("sgd", "adam"))}
    assert list(found) == [("sgd", ""), ("adam", ""), ("adam", "constant lr"), ("ff", ""), ("ff", "lr tuned")]
    adam, ff = found["adam", ""], found["ff", ""]
    assert adam.minus_adam == {metric: (0, 0) for metric in adam.values}
    assert all(steps is not None and 20 <= steps <= 30 for steps in adam.steps_to_adam)
    assert len(ff.values["train_loss"]) == 6 and len(ff.steps_to_adam) == 6
    if adam.settings[0] == "lr 0.02, linear":  # untrained, the rule is this Adam
        assert ff.minus_adam["train_loss"][0] == pytest.approx(0, abs=2e-3)
    sgd = found["sgd", ""]
    wanted = paired(sgd.values["train_loss"], adam.values["train_loss"])
    assert sgd.minus_adam["train_loss"] == pytest.approx(wanted)
    assert ff.time_over_adam is not None and ff.time_over_adam[1] > 1
    with pytest.raises(UserError, match="must be among"):
        compare(TASK, {}, tmp_path, baselines=("sgd",))


def test_tuning_over_a_shorter_horizon(tmp_path, monkeypatch):
    monkeypatch.setattr(_evaluate, "GRIDS", {"adam": [Setting("adam", 0.02), Setting("adam", 0.01)]})
    compare(TASK, {}, tmp_path, (1, 2), ("adam",), timing=False, tuning_steps=7)
    steps = {path.name.split("-")[0]: read_json(path)["key"]["task"]["steps"] for path in tmp_path.rglob("*.json")}
    assert steps == {"tune": 7, "test": 30}


def test_adam_takes_the_time_of_adam():
    (whole, alone), (_, muon) = time_over_adam(TASK, [with_settings([Setting(n, 1e-3)]) for n in ("adam", "muon")])
    assert 0.2 < whole < 5 and 0.2 < alone < 5
    assert muon > 1.5 * alone
