"""Training of nowcasters, runs to train them on, and jumps in a training loop."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.optim._nowcast import Nowcaster
from neural_graphs.optim._nowcast_history import Subject, Trajectory
from neural_graphs.optim._nowcast_jumper import SCHEDULE
from neural_graphs.optim._nowcast_runs import AdamRun, record
from neural_graphs.optim._task import InnerTask

TASK = InnerTask("", Stack.mlp((64, 6, 10)), data="digits", batch_size=32).with_steps(12)


def curves(widths: tuple[int, ...], runs: int = 6, times: int = 24, seed: int = 0) -> Trajectory:
    """Weights that approach a limit of their own, all at one rate, with jitter: the future follows from the past, but no
    line leads there, and neither does the last state."""
    generator = torch.Generator().manual_seed(seed)
    modules = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    subject = Subject.of(nn.Sequential(*[m for linear in modules for m in (linear, nn.ReLU())][:-1]))
    t = torch.arange(times).view(-1, 1)
    states = {}
    for name in subject.names:
        shape = subject.spec.shapes[name]
        start, limit = torch.randn(2, 1, runs, math.prod(shape), generator=generator)
        path = limit + (start - limit) * torch.exp(-t / 6)[:, :, None]
        path = path + 0.002 * torch.randn(path.shape, generator=generator)
        states[name] = path.view(times, runs, *shape)
    return Trajectory(subject, states)


def line(trajectory: Trajectory, now: int, ahead: int) -> float:
    """The error of a line through the last five states, in units of that of no change."""
    wrong = still = 0.0
    for value in trajectory.states.values():
        last = value[now]
        found = last + ahead * (last - value[now - 4]) / 4
        wrong += float((found - value[now + ahead]).abs().sum())
        still += float((last - value[now + ahead]).abs().sum())
    return wrong / still


def test_it_learns_what_a_line_cannot_say_and_carries_it_to_another_architecture() -> None:
    torch.manual_seed(0)
    nowcaster = Nowcaster(5, 12, width=16, rounds=1)
    nowcaster.fit([curves((4, 5, 3)), curves((3, 6, 6, 2))], steps=150, lr=1e-2, quiet=True)
    unseen = curves((5, 9, 4, 4, 3), seed=1)
    assert nowcaster.score([unseen], 12) < 0.35
    assert line(unseen, 4, 12) > 0.5
    assert Nowcaster(5, 12).score([unseen]) == pytest.approx(1)


def test_training_repeats_to_the_bit_and_keeps_the_best() -> None:
    def fitted(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        nowcaster = Nowcaster(5, 12, width=4, rounds=1)
        return nowcaster.fit([curves((4, 5, 3))], steps=10, quiet=True, **options).state_dict()

    first, second, other = fitted(), fitted(), fitted(seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.out.weight"], other["net.out.weight"])
    torch.manual_seed(0)
    wild = Nowcaster(5, 12, width=4, rounds=1)
    wild.fit([curves((4, 5, 3))], val=[curves((4, 5, 3), seed=1)], steps=20, lr=0.3, clip=1e9, quiet=True)
    assert wild.score([curves((4, 5, 3), seed=1)], 12) <= 1.5


def test_losses_of_the_forecast_are_learned_from() -> None:
    """Losses that only a larger step lowers: with them the forecast overshoots."""

    def losses(params: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return sum(((value - 3).square().flatten(1).mean(1) for value in params.values()), torch.zeros(())) / len(
            params
        )

    plain = curves((4, 5, 3))
    informed = Trajectory(plain.subject, plain.states, losses)  # type: ignore[arg-type]
    found = []
    for trajectory, weight in ((plain, 1.0), (informed, 0.0), (informed, 20.0)):
        torch.manual_seed(0)
        nowcaster = Nowcaster(5, 12, width=8, rounds=1)
        nowcaster.fit([trajectory], steps=40, lr=1e-2, loss_weight=weight, quiet=True)
        window = plain.at(torch.arange(5), torch.arange(6))
        with torch.no_grad():
            ahead = {name: value[0] for name, value in nowcaster(plain.subject, window, [12]).items()}
        found.append(float(losses(ahead, torch.Generator()).mean()))
    assert found[0] == found[1]
    assert found[2] < found[0] - 0.05


def test_fit_says_what_is_wrong() -> None:
    nowcaster = Nowcaster(5, 12)
    with pytest.raises(UserError, match="at least one trajectory"):
        nowcaster.fit([])
    with pytest.raises(UserError, match="has 5 checkpoints"):
        nowcaster.fit([curves((4, 5, 3), times=5)])
    with pytest.raises(UserError, match="takes 17"):
        nowcaster.score([curves((4, 5, 3), times=16)], 12)


# -- runs ------------------------------------------------------------------------------------------------------------------


def test_runs_are_those_of_adam_one_by_one() -> None:
    run = AdamRun(TASK, [3, 4], [1e-3, 3e-3], ["constant", "linear"], seed=9)
    trajectory = record(run, 4)
    assert (trajectory.times, trajectory.runs) == (4, 2)
    for number, (seed, lr) in enumerate(((3, 1e-3), (4, 3e-3))):
        params = {name: value.requires_grad_() for name, value in TASK.new_params([seed]).items()}
        optimizer = torch.optim.Adam(params.values(), lr)
        for step in range(12):
            if step % 4 == 0:
                for name, value in params.items():
                    assert torch.allclose(trajectory.states[name][step // 4, number], value[0], atol=1e-5), (step, name)
            _, grads = TASK.losses_and_grads({n: v.detach() for n, v in params.items()}, *TASK.batch(9, step))
            for name, value in params.items():
                value.grad = grads[name]
            optimizer.param_groups[0]["lr"] = lr * (1 - step / 12 if number else 1)
            optimizer.step()
        assert all(torch.allclose(run.params[n][number], v[0], atol=1e-5) for n, v in params.items())
    assert trajectory.losses is not None
    found = trajectory.losses(run.params, torch.Generator().manual_seed(0))
    assert found.shape == (2,) and torch.allclose(found, TASK.score(run.params, "train")[0].float(), rtol=0.2)


def test_runs_that_diverge_are_left_out() -> None:
    run = AdamRun(TASK, [3, 4], [1e-2, 1e38], ["constant", "constant"])
    assert record(run, 4).runs == 1
    with pytest.raises(UserError, match="all networks diverged"):
        record(AdamRun(TASK, [4], [1e38], ["constant"]), 4)
    with pytest.raises(UserError, match="unknown schedule 'cosine'"):
        AdamRun(TASK, [4], [1e-3], ["cosine"])


# -- jumps -----------------------------------------------------------------------------------------------------------------


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def random_nowcaster() -> Nowcaster:
    torch.manual_seed(1)
    nowcaster = Nowcaster(3, 8, width=4, rounds=1, interval=2)
    for value in nowcaster.parameters():
        nn.init.normal_(value, std=0.1)
    return nowcaster


def test_jumps_come_in_time_and_leave_the_optimizer_alone() -> None:
    net, nowcaster = module(), random_nowcaster()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    jumper = nowcaster.jumper(net, ahead=(8, 3))
    generator = torch.Generator().manual_seed(0)
    history: list[dict[str, Tensor]] = []
    jumped = []
    for step in range(1, 20):
        net(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        moments = {k: v["exp_avg"].clone() for k, v in optimizer.state_dict()["state"].items()}
        history = [*history, before] if step % 2 == 0 else history
        ahead = jumper.step()
        after = net.state_dict()
        if ahead:
            jumped.append((step, ahead))
            expected = nowcaster.predict(module(), history[-3:], ahead)
            assert all(torch.equal(after[name], expected[name]) for name in expected)
            assert not torch.equal(after["0.weight"], before["0.weight"])
            assert all(torch.equal(moments[k], v["exp_avg"]) for k, v in optimizer.state_dict()["state"].items())
        else:
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert jumped == [(6, 8), (12, 3)]


def test_a_resumed_jumper_goes_on_where_it_was() -> None:
    def run(net: nn.Module, jumper: Any, first: int, last: int) -> None:
        for step in range(first, last):
            with torch.no_grad():
                for value in net.parameters():
                    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(step)), alpha=0.01)
            jumper.step()

    whole, cut, nowcaster = module(), module(), random_nowcaster()
    run(whole, nowcaster.jumper(whole, every=7), 0, 16)
    jumper = nowcaster.jumper(cut, every=7)
    run(cut, jumper, 0, 12)
    state = jumper.state_dict()
    resumed = module()
    resumed.load_state_dict(cut.state_dict())
    again = nowcaster.jumper(resumed, every=7)
    again.load_state_dict(state)
    run(resumed, again, 12, 16)
    assert again.jumps == 2
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_jumpers_say_what_is_wrong() -> None:
    net, nowcaster = module(), random_nowcaster()
    with pytest.raises(UserError, match="too close"):
        nowcaster.jumper(net, every=4)
    with pytest.raises(UserError, match="1 to 8 intervals"):
        nowcaster.jumper(net, ahead=(9,))
    assert nowcaster.jumper(net).ahead == tuple(min(k, 8) for k in SCHEDULE)
    jumper = nowcaster.jumper(net)
    with pytest.raises(UserError, match="no state dict of a jumper"):
        jumper.load_state_dict({"steps": 3})
    with pytest.raises(UserError, match="of another network"):
        jumper.load_state_dict({"steps": 2, "jumps": 0, "states": [{"0.weight": torch.zeros(2)}]})
    with pytest.raises(UserError, match="jumped 99 times"):
        jumper.load_state_dict({"steps": 2, "jumps": 99, "states": []})
    for _ in range(5):
        jumper.step()
        with torch.no_grad():
            net.get_parameter("0.weight").add_(1)
    with torch.no_grad():
        net.get_parameter("2.bias")[0] = float("nan")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match="NaN or infinite values in 2.bias"):
        jumper.step()
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in net.state_dict().items())
    jumper = nowcaster.jumper(net := module())
    net[0] = nn.Linear(4, 5)
    with pytest.raises(UserError, match="shape"):
        for _ in range(6):
            jumper.step()
