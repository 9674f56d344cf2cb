"""Forecasts of training: the weights of a network many steps ahead, from its last few checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from neural_graphs import __version__
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import NeuralGraph
from neural_graphs.nn._hub import FORMAT, broken_config, read_model_config, read_weights, write_model
from neural_graphs.optim._nowcast_history import State, Subject, Trajectory
from neural_graphs.optim._nowcast_net import NowcastNet, Past, loose_pieces, moved

if TYPE_CHECKING:
    from neural_graphs.optim._nowcast_jumper import Jumper

TASK = "nowcast"


class Nowcaster(nn.Module):
    """Past states of a network in training in, its weights at later times out (NiNo, Knyazev et al., ICLR 2025).

    Reads the last ``past`` checkpoints of every parameter, each tensor in scales of its own, passes messages between neurons
    and says for up to ``horizon`` intervals ahead, all at once, how far every parameter will have moved. One interval is
    whatever lies between two checkpoints. Networks of any architecture that ``trace`` reads, by one model; a network whose
    neurons are reordered gets the same forecast, reordered. Untrained it forecasts no change.

    Differs from NiNo where that ties a model to sizes or scales: besides the standardised states it reads their differences
    over their root mean square and answers in units of that; messages are plain means, without embeddings of positions;
    taps of a kernel are parallel edges, so that kernels of any size are read.

    Args:
        past: checkpoints read, 2 or more.
        horizon: the most intervals ahead.
        width: size of the embeddings of parameters and neurons.
        rounds: of messages between neurons; 0 forecasts every parameter from its own past.
        interval: optimizer steps between checkpoints in the trajectories it is meant for; ``jumper`` records at this rate.

    Raises:
        UserError: sizes that are none.
    """

    def __init__(
        self, past: int = 5, horizon: int = 40, *, width: int = 32, rounds: int = 2, interval: int = 20
    ) -> None:
        super().__init__()
        if past < 2 or min(horizon, width, interval) < 1 or rounds < 0:
            raise UserError(
                "a nowcaster needs 2 or more past states, a positive horizon, width and interval, rounds >= 0"
            )
        self.past, self.horizon, self.width = past, horizon, width
        self.rounds, self.interval = rounds, interval
        self.net = NowcastNet(past, horizon, width, rounds)

    # -- forecasts ----------------------------------------------------------------------------------------------------

    def read(self, subject: Subject, states: State) -> list[Past]:
        """Every parameter of P networks, ``{name: [past, P, *shape]}``, cut into pieces between node sets."""
        pieces = [*subject.wiring.pieces, *loose_pieces(states, subject.wiring)]
        return [Past.of(piece, states[piece.parameter]) for piece in pieces]

    def forward(self, subject: Subject, states: State, ahead: Sequence[int]) -> dict[str, Tensor]:
        """Forecasts ``{name: [H, P, *shape]}`` of P networks, at the ``ahead`` of H numbers of intervals, from ``states``
        ``{name: [past, P, *shape]}``, oldest first; in the states' dtype."""
        steps = torch.tensor([self._checked(k) for k in ahead], device=next(self.parameters()).device)
        past = self.read(subject, states)
        return moved(states, past, self.net(subject.wiring, past, steps))

    def predict(
        self, network: nn.Module | NeuralGraph, history: Sequence[State], ahead: int = 1, *, example_input: Any = None
    ) -> dict[str, Tensor]:
        """The state dict of a network ``ahead`` intervals after the last of ``history``.

        Args:
            network: a module of this architecture, whose trainable parameters are forecast, or its graph (``trace`` a large
                module once), of which all tensors but running statistics are.
            history: state dicts, oldest first, an interval apart; the last ``past`` are read. The values that the module
                itself holds do not matter.
            ahead: from 1 to ``horizon``.
            example_input: for tracing modules that are no plain stacks.

        What is not forecast (buffers, frozen parameters) is as in the last state.

        Raises:
            UserError: the history is too short, of another architecture, or has NaN or infinite values; ``ahead`` is out of
                range; the module cannot be traced.
            RunError: the forecast is not finite.
        """
        self._checked(ahead)
        return self._predict(Subject.of(network, example_input), history, ahead)

    def jump(self, module: nn.Module, history: Sequence[State], ahead: int = 1, *, example_input: Any = None) -> None:
        """Set the module's trainable parameters, in place, to those ``ahead`` intervals after the last of ``history``.

        Arguments and errors as those of ``predict``; the module is changed as a whole or not at all. Optimizers go on with
        the state that they have.
        """
        self._checked(ahead)
        self._jump(module, Subject.of(module, example_input), history, ahead)

    def jumper(self, module: nn.Module, example_input: Any = None, **arguments: Any) -> Jumper:
        """Records a training run and jumps ahead in it now and then; see ``Jumper``."""
        from neural_graphs.optim._nowcast_jumper import Jumper

        return Jumper(self, module, example_input, **arguments)

    def _predict(self, subject: Subject, history: Sequence[State], ahead: int) -> dict[str, Tensor]:
        states = subject.stack(history, self.past)
        own = next(self.parameters())
        with torch.no_grad():
            found = self(subject, {name: value.to(own.device) for name, value in states.items()}, [ahead])
        last = dict(history[-1])
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise RunError(f"the forecast of {name} is not finite: nothing was changed")
            for key in (name, *subject.aliases.get(name, ())):
                if key in last:
                    last[key] = value[0, 0].to(last[key])
        return last

    def _jump(self, module: nn.Module, subject: Subject, history: Sequence[State], ahead: int) -> None:
        found = self._predict(subject, history, ahead)
        named = dict(module.named_parameters(remove_duplicate=False))
        for name in subject.names:
            if name not in named or named[name].shape != found[name].shape:
                raise UserError(f"{name} of the module has changed its shape since it was traced: trace it anew")
        with torch.no_grad():
            for name in subject.names:
                named[name].copy_(found[name])

    def _checked(self, ahead: int) -> int:
        if isinstance(ahead, bool) or not isinstance(ahead, int) or not 1 <= ahead <= self.horizon:
            raise UserError(f"this nowcaster looks 1 to {self.horizon} intervals ahead, not {ahead}")
        return ahead

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        trajectories: Iterable[Trajectory],
        *,
        val: Iterable[Trajectory] = (),
        steps: int = 2000,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        batch: int = 8,
        loss_weight: float = 1.0,
        clip: float = 1.0,
        seed: int = 0,
        quiet: bool = False,
    ) -> Self:
        """Train by AdamW (cosine decay) on the absolute error of the forecasts.

        Every step draws an architecture, ``batch`` of its runs, each at a time of its own, and some numbers of intervals
        ahead. The errors of a tensor are in units of its pace times the root of the number of intervals, so that all
        numbers and tensors weigh alike.

        Args:
            trajectories: checkpoints at the distances that the nowcaster is meant for, more than ``past`` of them each.
            val: trajectories on which, ten times, the error at the horizon is taken; the weights of the smallest are kept.
            steps, lr, weight_decay, batch: of AdamW.
            loss_weight: of the logarithm of the forecast networks' training losses, beside the absolute error, on
                trajectories that have ``losses``.
            clip: the largest norm of the gradient.
            seed: of what is drawn.
            quiet: no progress bar.

        Raises:
            UserError: no trajectories, or too short ones; options that are none.
            RunError: the loss is not finite.
        """
        from neural_graphs.optim._nowcast_fit import fit_nowcaster

        fit_nowcaster(
            self, list(trajectories), val=list(val), steps=steps, lr=lr, weight_decay=weight_decay, batch=batch,
            loss_weight=loss_weight, clip=clip, seed=seed, quiet=quiet,
        )  # fmt: skip
        return self

    def score(self, trajectories: Iterable[Trajectory], ahead: int | None = None) -> float:
        """Mean absolute error of the forecasts, ``ahead`` intervals (by default ``horizon``) after every window of ``past``
        checkpoints, in units of that of no change: 1 is useless, 0 perfect. ``UserError`` for trajectories too short."""
        from neural_graphs.optim._nowcast_fit import relative_error

        return relative_error(self, list(trajectories), self._checked(self.horizon if ahead is None else ahead))

    # -- files --------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: everything but the tensors."""
        sizes = {key: getattr(self, key) for key in ("past", "horizon", "width", "rounds", "interval")}
        return {"format": FORMAT, "task": TASK, "version": __version__, **sizes}

    def save(self, folder: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; an older model there stays whole until the new one is.

        Raises ``RunError`` when the disk is full or not writable.
        """
        write_model(Path(folder), self, self.config(), metadata)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], revision: str | None = None) -> Self:
        """Read a nowcaster back from ``save`` or from the Hugging Face Hub (``"owner/name"``); nothing in it is executed.

        Raises:
            UserError: there is no such model, a file is missing, broken or truncated, or was written by a newer version.
            RunError: the Hub cannot be reached.
        """
        folder, config = read_model_config(source, revision, {TASK: "nowcaster"})
        with broken_config(folder):
            sizes = {key: int(config[key]) for key in ("width", "rounds", "interval")}
            model = cls(int(config["past"]), int(config["horizon"]), **sizes)
        read_weights(model, folder)
        return model.eval()
