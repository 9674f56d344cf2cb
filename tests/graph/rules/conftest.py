"""Every rule is held to the same three things: the group it gives, that the group leaves the function alone, and that a
tensor left out of a group element shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from neural_graphs.graph._capture import Captured, capture
from neural_graphs.graph._propagate import Propagation, propagate
from neural_graphs.graph._rules import rule_name


class Own(nn.Module):
    """``function(self, x)`` with parameters of these shapes (or modules, or buffers given as tensors)."""

    def __init__(self, function: Callable[..., Any], own: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(seed)
        for name, value in own.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(value)))
        self.double()
        with torch.no_grad():
            for value in (*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())):
                value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
            for name, buffer in self.named_buffers():
                if name.endswith("running_var"):
                    buffer.abs_().add_(0.5)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def flat(result: Any) -> Tensor:
    tensors = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([value.double().flatten() for value in tensors])


def traced(function: Callable[..., Any], own: dict[str, Any], *inputs: Tensor) -> tuple[Own, Captured, Propagation]:
    module = Own(function, own).eval()
    captured = capture(module, inputs)
    return module, captured, propagate(captured)


def errors(module: Own, found: Propagation, *inputs: Tensor) -> tuple[float, dict[str, float]]:
    """The largest relative change of the output under the group, and under it without each of the moved tensors."""
    state = dict(module.state_dict())

    def run(values: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return flat(functional_call(module, values, inputs))

    torch.backends.mha.set_fastpath_enabled(False)
    before = run(state)
    assert before.isfinite().all() and before.abs().max() > 1e-6
    error, controls = 0.0, dict[str, float]()
    for seed in range(2):
        moved = found.spec.apply(state, found.spec.sample(seed))
        error = max(error, float((run(moved) - before).abs().max() / before.abs().max()))
        for name, value in state.items():
            if not torch.equal(value, moved[name]):
                change = float((run({**moved, name: value}) - before).abs().max() / before.abs().max())
                controls[name] = max(controls.get(name, 0.0), change)
    return error, controls


@pytest.fixture
def hold() -> Callable[..., Propagation]:
    def check(
        name: str, function: Callable[..., Any], own: dict[str, Any], group: str, *inputs: Tensor, blind: str = ""
    ) -> Propagation:
        """``name`` is the operator (and a variant behind a slash); ``blind`` tensors move, but the output does not depend
        on how."""
        inputs = inputs or (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)
        module, captured, found = traced(function, own, *inputs)
        operator = name.partition("/")[0]
        recorded = {rule_name(node.target) for node in captured.graph.nodes if node.op == "call_function"}
        assert operator in recorded, f"{operator} is not among the recorded {sorted(recorded)}"
        assert not found.frozen_ops
        assert str(found.spec) == group, found.spec.describe()
        error, controls = errors(module, found, *inputs)
        assert error < 1e-10
        still = {key for key, change in controls.items() if change < 1e-6}
        assert still == set(blind.split()), controls
        return found

    return check


@pytest.fixture
def sound() -> Callable[..., Propagation]:
    """For modules with operators that no rule covers, or whose group is known only in part: whatever the tracer finds must
    hold."""

    def check(function: Callable[..., Any], own: dict[str, Any], *inputs: Tensor) -> Propagation:
        inputs = inputs or (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)
        module, _, found = traced(function, own, *inputs)
        error, _ = errors(module, found, *inputs)
        assert error < 1e-10, found.spec.describe()
        return found

    return check
