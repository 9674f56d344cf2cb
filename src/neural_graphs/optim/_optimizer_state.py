"""What a learned optimizer reads and writes in a step, made once for as long as the same parameters have gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.optim import _plain_adam
from neural_graphs.optim._rule import State, UpdateRule
from neural_graphs.optim._traced import TracedParameters
from neural_graphs.optim._wiring import Wiring

Held = dict[str, Any]
"""State of one parameter as ``torch.optim`` keeps it: ``step``, and what the rule keeps, without the axis of networks."""

MOMENTA = "momenta"


def network_axis(key: str) -> int:
    """Where the axis of networks stands in a rule's state: after that of the momenta, where there are several."""
    return 1 if key == MOMENTA else 0


class StepPlan:
    """The graph's parameters among those that have gradients first, the others after them.

    ``views`` are the parameters and ``state`` the rule's state with an axis of one network, sharing memory; state that is
    missing is made, and state on another device or of another type follows its parameter.
    """

    def __init__(
        self, traced: TracedParameters, rule: UpdateRule, parameters: Sequence[Tensor], all_state: dict[Tensor, Held]
    ) -> None:
        self.key = tuple(parameters)
        self.order = sorted(range(len(parameters)), key=lambda k: not traced.in_graph(parameters[k]))
        self.parameters = [parameters[k] for k in self.order]
        self.names = [traced.names[parameter] for parameter in self.parameters]
        self.count = sum(map(traced.in_graph, parameters))
        self.wiring: Wiring = traced.wiring.select(set(self.names[: self.count]))
        inside = self.parameters[: self.count]
        if len({parameter.device for parameter in inside}) > 1:
            raise UserError("the parameters of a graph must stand on one device; nothing was updated")
        dtype = torch.float32
        for parameter in inside:
            dtype = torch.promote_types(dtype, parameter.dtype)
        for number, parameter in enumerate(self.parameters):
            held = all_state.setdefault(parameter, {})
            if not held:
                held["step"] = torch.zeros((), dtype=torch.float32)
                if number < self.count:
                    empty = parameter.new_empty((1, *parameter.shape), dtype=dtype)
                    new = rule.new_state({"": empty})[""]
                    held.update({key: value.squeeze(network_axis(key)) for key, value in new.items()})
                else:
                    held.update(_plain_adam.new_state(parameter))
            for key, value in held.items():
                if isinstance(value, Tensor) and key != "step":
                    target = dtype if number < self.count else value.dtype
                    if value.device != parameter.device or value.dtype != target:
                        held[key] = value.to(parameter.device, target)
        self.held = [all_state[parameter] for parameter in self.parameters]
        self.steps: list[Tensor] = [held["step"] for held in self.held]
        self.views = [parameter.detach().unsqueeze(0) for parameter in self.parameters]
        self.params: dict[str, Tensor] = dict(zip(self.names, self.views[: self.count], strict=False))
        self.state: State = {
            name: {key: value.unsqueeze(network_axis(key)) for key, value in held.items() if key != "step"}
            for name, held in zip(self.names, self.held[: self.count], strict=False)
        }
        self.weights = rule.own_weights(inside[0].device, dtype) if inside else {}
        self._pointers = [parameter.data_ptr() for parameter in self.parameters]
        self._values = [tuple(value for value in held.values()) for held in self.held]

    def fits(self, parameters: Sequence[Tensor], all_state: Mapping[Tensor, Held]) -> bool:
        """Whether these are the parameters, and neither they nor their state were moved or replaced since."""
        if len(parameters) != len(self.key) or any(a is not b for a, b in zip(parameters, self.key, strict=True)):
            return False
        if [parameter.data_ptr() for parameter in self.parameters] != self._pointers:
            return False
        for parameter, view, held, values in zip(self.parameters, self.views, self.held, self._values, strict=True):
            if parameter.dtype != view.dtype or all_state.get(parameter) is not held:
                return False
            if any(a is not b for a, b in zip(held.values(), values, strict=False)):
                return False
        return True


def copied(value: Any, device: torch.device) -> Any:
    """A copy of the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copied(part, device) for key, part in value.items()}
    return type(value)(copied(part, device) for part in value) if isinstance(value, (list, tuple)) else value
