"""States of a network in training: what of them is forecast, and whether they belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphSpec, NeuralGraph, trace
from neural_graphs.optim._wiring import Wiring

_RUNNING = ("running_mean", "running_var")

State = Mapping[str, Tensor]

Losses = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]


@dataclass(frozen=True)
class Subject:
    """What is forecast of an architecture: the parameters ``names`` (those of the graph; see ``GraphSpec.canonical``)."""

    spec: GraphSpec
    names: tuple[str, ...]

    @classmethod
    def of(cls, network: nn.Module | NeuralGraph, example_input: Any = None) -> Subject:
        """Of a module its trainable parameters; of a graph all tensors but running statistics.

        Raises ``UserError`` when the module cannot be traced, or has no trainable parameter.
        """
        if isinstance(network, NeuralGraph):
            spec = network.spec
            still = {f.parameter for n in spec.node_sets for f in n.features if f.kind in _RUNNING}
            wanted = {name for name in spec.shapes if name not in still}
            wanted -= {n for (n, _), t in zip(spec.rest, network.rest, strict=True) if not t.is_floating_point()}
        elif isinstance(network, nn.Module):
            spec = trace(network, example_input).spec
            named = network.named_parameters(remove_duplicate=False)
            wanted = {name for name, value in named if value.requires_grad}
        else:
            raise UserError(f"give a module or a NeuralGraph, not a {type(network).__name__}")
        names = tuple(name for name in spec.shapes if name in wanted and name not in spec.canonical)
        if not names:
            raise UserError("this network has no trainable parameters: there is nothing to forecast")
        return cls(spec, names)

    @cached_property
    def wiring(self) -> Wiring:
        return Wiring.of(self.spec, self.names)

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """The other names of tied parameters."""
        return {
            name: tuple(alias for alias, canonical in self.spec.tied if canonical == name)
            for name in self.names
            if name in self.spec.canonical.values()
        }

    def stack(self, history: Sequence[State], past: int) -> dict[str, Tensor]:
        """The last ``past`` states, ``{name: [past, 1, *shape]}`` on the device of the last.

        Raises:
            UserError: too few states; one of another architecture, or with NaN or infinite values; two that are the same
                memory, as ``state_dict()`` without a copy gives them.
        """
        if isinstance(history, Mapping) or not isinstance(history, Sequence):
            raise UserError("give the history as a list of state dicts, oldest first")
        if len(history) < past:
            raise UserError(f"the history has {len(history)} states, this nowcaster reads {past}: record more of them")
        states = list(history)[-past:]
        found = [self._read(state, number) for number, state in enumerate(states, len(history) - past)]
        for name in self.names:
            if len({value[name].data_ptr() for value in found}) < past and found[0][name].numel():
                raise UserError(
                    f"states of the history share the memory of {name}: copy them as they are recorded, as in "
                    "{name: value.clone() for name, value in model.state_dict().items()}"
                )
        last = found[-1]
        return {name: torch.stack([f[name].to(last[name]) for f in found]).unsqueeze(1) for name in self.names}

    def _read(self, state: State, number: int) -> dict[str, Tensor]:
        if not isinstance(state, Mapping):
            raise UserError(f"state {number} of the history is a {type(state).__name__}: give state dicts")
        known = self.spec.shapes
        if extra := [name for name in state if name not in known]:
            raise UserError(f"state {number} of the history is of another network: this one has no tensor {extra[0]}")
        found = {}
        for name in self.names:
            value = next((state[n] for n in (name, *self.aliases.get(name, ())) if n in state), None)
            if value is None:
                raise UserError(f"state {number} of the history is of another network: it has no tensor {name}")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise UserError(f"{name} in state {number} of the history is no floating point tensor")
            if tuple(value.shape) != known[name]:
                raise UserError(
                    f"state {number} of the history is of another network: {name} has shape {tuple(value.shape)}, expected "
                    f"{known[name]}"
                )
            found[name] = value.detach()
        if bad := [name for name, value in found.items() if not bool(torch.isfinite(value).all())]:
            raise UserError(f"state {number} of the history has NaN or infinite values in {bad[0]}")
        return found


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Checkpoints of P training runs of one architecture, equally spaced: what a nowcaster learns from.

    ``states`` are ``{name: [T, P, *shape]}``, oldest first, of the trainable parameters. Make them with ``of``, or directly
    from runs that were trained together. ``losses`` gives the differentiable training losses ``[B]`` of networks
    ``{name: [B, *shape]}`` on a random minibatch, where nowcasters are to learn from those, too.
    """

    subject: Subject
    states: Mapping[str, Tensor]
    losses: Losses | None = None

    def __post_init__(self) -> None:
        shapes, leads = self.subject.spec.shapes, set()
        for name in self.subject.names:
            value = self.states.get(name)
            if value is None or value.dim() < 2 or tuple(value.shape[2:]) != shapes[name]:
                found = "missing" if value is None else f"of shape {tuple(value.shape)}"
                raise UserError(f"trajectory: {name} is {found}, expected [T, P, {', '.join(map(str, shapes[name]))}]")
            leads.add(tuple(value.shape[:2]))
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"trajectory: {name} holds NaN or infinite values: leave out runs that diverged")
        if len(leads) > 1:
            raise UserError("trajectory: its tensors are of different numbers of times or runs")

    @classmethod
    def of(
        cls, network: nn.Module | NeuralGraph, *runs: Sequence[State], example_input: Any = None, interval: int = 1
    ) -> Trajectory:
        """From lists of state dicts, one per run, oldest first.

        Args:
            network: a module of this architecture, or its graph.
            runs: equally many states of each run.
            example_input: for tracing modules that are no plain stacks.
            interval: take every so manieth state.

        Raises:
            UserError: states of another architecture, or with NaN or infinite values; runs of different lengths.
        """
        subject = Subject.of(network, example_input)
        if len({len(run) for run in runs}) != 1 or not len(runs[0]):
            raise UserError("give at least one run, and equally many states of each")
        stacked = [subject.stack(run, len(run)) for run in runs]
        states = {name: torch.cat([run[name] for run in stacked], 1)[::interval] for name in subject.names}
        return cls(subject, states)

    @property
    def times(self) -> int:
        """T, the number of checkpoints."""
        return int(self.states[self.subject.names[0]].shape[0])

    @property
    def runs(self) -> int:
        """P, the number of training runs."""
        return int(self.states[self.subject.names[0]].shape[1])

    def at(self, times: Tensor, runs: Tensor) -> dict[str, Tensor]:
        """``{name: [len(times), B, *shape]}``: ``runs`` ``[B]`` at ``times`` ``[K]``, or ``[K, B]`` for times of its own."""
        rows = times if times.dim() == 2 else times[:, None]
        return {name: self.states[name][rows, runs] for name in self.subject.names}
