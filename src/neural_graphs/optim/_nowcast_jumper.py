"""Jumps ahead in a training run, at decaying lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.optim._nowcast_history import Subject

if TYPE_CHECKING:
    from neural_graphs.optim._nowcast import Nowcaster

SCHEDULE = (40, 33, 26, 21, 16, 11, 8, 5, 3, 1)
"""Intervals ahead of one jump after another (Knyazev et al. 2025)."""


class Jumper:
    """Records the states of a module in training, and every so many steps sets its parameters to those forecast::

        jumper = nowcaster.jumper(model)
        for x, y in batches:
            loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            jumper.step()

    The states since the last jump are read; they lie beside the parameters, ``past`` copies of them. The optimizer keeps its
    state as it is. Once all jumps are done, nothing is recorded.

    Args:
        nowcaster: a trained one.
        module: is changed in place.
        example_input: for tracing modules that are no plain stacks.
        every: optimizer steps from one jump to the next; by default those of ``past`` intervals, at least as many.
        ahead: intervals of one jump after another, at most the nowcaster's horizon; by default the decaying ones of NiNo.
        interval: optimizer steps between recorded states; by default the nowcaster's.

    Raises:
        UserError: the module cannot be traced; jumps too long, or closer than the states they need.
    """

    def __init__(
        self,
        nowcaster: Nowcaster,
        module: nn.Module,
        example_input: Any = None,
        *,
        every: int | None = None,
        ahead: Sequence[int] | None = None,
        interval: int | None = None,
    ) -> None:
        self.nowcaster, self.module = nowcaster, module
        self.interval = nowcaster.interval if interval is None else interval
        self.every = self.interval * nowcaster.past if every is None else every
        if self.interval < 1 or self.every < self.interval * (nowcaster.past - 1) + 1:
            raise UserError(
                f"jumps every {self.every} steps are too close: {nowcaster.past} states {self.interval} steps apart are read"
            )
        self.ahead = tuple(min(k, nowcaster.horizon) for k in SCHEDULE) if ahead is None else tuple(ahead)
        for k in self.ahead:
            nowcaster._checked(k)
        self.subject = Subject.of(module, example_input)
        self.steps, self.jumps = 0, 0
        self._states: list[dict[str, Tensor]] = []

    def step(self) -> int:
        """Call once after every step of the optimizer: the number of intervals jumped ahead, mostly 0.

        Raises:
            UserError: the training diverged (NaN or infinite parameters), or the module changed its shape.
            RunError: the forecast is not finite. The module is as it was before.
        """
        if self.jumps == len(self.ahead):
            return 0
        self.steps += 1
        left = -self.steps % self.every  # steps to the next jump, before which the last state is taken
        if left % self.interval == 0 and left < self.interval * self.nowcaster.past:
            self._record()
        if left:
            return 0
        ahead = self.ahead[self.jumps]
        states, self._states = self._states, []  # after a jump those before it are no past of it
        self.nowcaster._jump(self.module, self.subject, states, ahead)
        self.jumps += 1
        return ahead

    @torch.no_grad()
    def _record(self) -> None:
        named = dict(self.module.named_parameters(remove_duplicate=False))
        missing = [name for name in self.subject.names if name not in named]
        if missing:
            raise UserError(f"the module has no longer a parameter {missing[0]}: make a new jumper")
        self._states.append({name: named[name].detach().clone() for name in self.subject.names})

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, tensors and integers."""
        return {"steps": self.steps, "jumps": self.jumps, "states": [dict(state) for state in self._states]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Raises ``UserError`` when that is no jumper's of this network."""
        try:
            steps, jumps, states = int(state["steps"]), int(state["jumps"]), [dict(s) for s in state["states"]]
        except (KeyError, TypeError, ValueError):
            raise UserError("this is no state dict of a jumper: it holds steps, jumps and states") from None
        shapes = self.subject.spec.shapes
        for recorded in states:
            if {n: tuple(v.shape) for n, v in recorded.items()} != {n: shapes[n] for n in self.subject.names}:
                raise UserError("the state dict is of a jumper of another network")
        if not 0 <= jumps <= len(self.ahead) or steps < 0:
            raise UserError(
                f"the state dict is of a jumper that jumped {jumps} times, this one jumps {len(self.ahead)}"
            )
        self.steps, self.jumps, self._states = steps, jumps, states
