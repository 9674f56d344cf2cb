"""Training of nowcasters on trajectories, and their errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neural_graphs._progress import track
from neural_graphs.errors import RunError, UserError
from neural_graphs.optim._nowcast_history import State, Trajectory
from neural_graphs.optim._nowcast_net import Past, inverse, moved

if TYPE_CHECKING:
    from neural_graphs.optim._nowcast import Nowcaster

LOSSES = 4
"""At so many of them, the furthest first, training losses are taken."""

FLOOR = 0.05
"""Added to losses before their logarithm: below it, less is hardly better."""

DRAWN = 8
"""Numbers of intervals ahead that a step learns from, of all up to the horizon."""


def fit_nowcaster(
    nowcaster: Nowcaster,
    trajectories: Sequence[Trajectory],
    *,
    val: Sequence[Trajectory],
    steps: int,
    lr: float,
    weight_decay: float,
    batch: int,
    loss_weight: float,
    clip: float,
    seed: int,
    quiet: bool,
) -> list[float]:
    """``Nowcaster.fit``; the loss of every step."""
    if not trajectories or min(steps, batch) < 1 or lr <= 0:
        raise UserError("fit needs at least one trajectory, and positive steps, batch and lr")
    for trajectory in (*trajectories, *val):
        if trajectory.times <= nowcaster.past:
            raise UserError(
                f"a trajectory has {trajectory.times} checkpoints: more than the {nowcaster.past} that are read are needed"
            )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(nowcaster.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    best, kept, losses = math.inf, None, []
    every = max(1, steps // 10)
    nowcaster.train()
    for step in range(1, steps + 1) if quiet else track(range(1, steps + 1), "nowcaster"):
        loss = _loss(nowcaster, trajectories, batch, loss_weight, generator)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RunError(f"the loss is not finite in step {step}: choose a smaller lr than {lr}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nowcaster.parameters(), clip)
        optimizer.step()
        schedule.step()
        if val and (step % every == 0 or step == steps):
            error = relative_error(nowcaster, val, min(nowcaster.horizon, *(_furthest(nowcaster, t) for t in val)))
            if error < best:
                best, kept = error, copy.deepcopy(nowcaster.state_dict())
    if kept is not None:
        nowcaster.load_state_dict(kept)
    nowcaster.eval()
    return losses


def relative_error(nowcaster: Nowcaster, trajectories: Sequence[Trajectory], ahead: int) -> float:
    """Mean absolute error of the forecasts over that of no change; see ``Nowcaster.score``."""
    device = next(nowcaster.parameters()).device
    wrong, still = 0.0, 0.0
    with torch.no_grad():
        for trajectory in trajectories:
            last = trajectory.times - 1 - ahead
            if last < nowcaster.past - 1:
                raise UserError(
                    f"a trajectory has {trajectory.times} checkpoints: to look {ahead} ahead after {nowcaster.past} takes "
                    f"{nowcaster.past + ahead}"
                )
            runs = torch.arange(trajectory.runs)
            for now in range(nowcaster.past - 1, last + 1, nowcaster.past):
                window = torch.arange(now - nowcaster.past + 1, now + 1)
                states = {name: value.to(device) for name, value in trajectory.at(window, runs).items()}
                found = nowcaster(trajectory.subject, states, [ahead])
                for name, value in trajectory.at(torch.tensor([now + ahead]), runs).items():
                    wrong += float((found[name].cpu() - value).abs().double().sum())
                    still += float((states[name][-1:].cpu() - value).abs().double().sum())
    return wrong / still if still else 1.0


def _furthest(nowcaster: Nowcaster, trajectory: Trajectory) -> int:
    return trajectory.times - nowcaster.past


def _loss(
    nowcaster: Nowcaster, trajectories: Sequence[Trajectory], batch: int, loss_weight: float, generator: torch.Generator
) -> Tensor:
    """What a random batch of runs of one architecture is trained on."""
    device = next(nowcaster.parameters()).device

    def draw(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    trajectory = trajectories[int(draw(len(trajectories), 1))]
    most = min(nowcaster.horizon, _furthest(nowcaster, trajectory))
    if int(draw(2, 1)):  # late times have near futures only
        most = 1 + int(draw(most, 1))
    ahead = torch.cat([torch.tensor([most]), 1 + draw(most, DRAWN - 1)])
    runs = draw(trajectory.runs, batch)
    now = nowcaster.past - 1 + draw(trajectory.times - nowcaster.past + 1 - most, batch)
    before = trajectory.at(now + torch.arange(1 - nowcaster.past, 1)[:, None], runs)
    after = trajectory.at(now + ahead[:, None], runs)
    states = {name: value.to(device) for name, value in before.items()}
    past = nowcaster.read(trajectory.subject, states)
    ahead = ahead.to(device)
    changes = nowcaster.net(trajectory.subject.wiring, past, ahead)
    total = _absolute(past, changes, after, ahead)
    if trajectory.losses is not None and loss_weight > 0:
        few = slice(0, LOSSES)
        networks = moved(states, past, [change[..., few] for change in changes])
        losses = trajectory.losses({name: value.flatten(0, 1) for name, value in networks.items()}, generator)
        total = total + loss_weight * (losses + FLOOR).log().mean()
    return total


def _absolute(past: Sequence[Past], changes: Sequence[Tensor], after: State, ahead: Tensor) -> Tensor:
    """Mean absolute error over the parameters that move, in units of the pace times the root of the intervals ahead."""
    roots = ahead.to(past[0].pace).sqrt()
    batch = past[0].values.shape[1]
    total, count = torch.zeros((), device=ahead.device), torch.zeros((), device=ahead.device)
    for p, change in zip(past, changes, strict=True):
        later = p.piece.read(after[p.piece.parameter].to(ahead.device).flatten(0, 1)).unflatten(0, (len(ahead), batch))
        truth = (later - p.values[-1]).movedim(0, -1) * inverse(p.pace)[..., None]
        error = ((change - truth) / roots).abs() * (p.pace > 0)[..., None]
        total = total + error.sum()
        count = count + (p.pace > 0).sum() * error[0].numel()
    return total / count.clamp(min=1)
