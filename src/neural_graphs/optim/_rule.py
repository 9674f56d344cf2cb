"""Update rules: what turns weights, gradients and a memory of past gradients into the next step. Base class and registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.optim._wiring import Wiring

State = dict[str, dict[str, Tensor]]
"""Per parameter ``{"momenta": [K, P, *shape], "square": [P, *shape]}``."""


@dataclass(frozen=True)
class Proposal:
    """What a rule would do: ``w <- w - lr * updates[w]``, and figures of every piece of the wiring, ``[P, pieces]``.

    ``step``: root mean square of the update, ``nominal``: of the Adam step, ``cosine``: between the two, ``replaced``: the
    number of entries whose proposal was not finite, and which take the Adam step instead.
    """

    updates: dict[str, Tensor]
    wiring: Wiring
    summary: dict[str, Tensor]


class UpdateRule(nn.Module):
    """What a learned optimizer does with gradients, for P networks of one architecture at once.

    ``betas`` are the decays of the momenta that it keeps, ``beta2`` that of the mean square (None: it keeps none).
    ``config`` holds the arguments that ``create_rule`` rebuilds it from.
    """

    betas: tuple[float, ...] = ()
    beta2: float | None = None
    config: dict[str, Any]
    figures: bool = True
    """Whether proposals need all their figures: meta-training does without those that cost."""

    def new_state(self, params: Mapping[str, Tensor]) -> State:
        """Zeros for ``params`` ``{name: [P, *shape]}``, in float32 at least."""
        state: State = {}
        for name, value in params.items():
            dtype = torch.promote_types(value.dtype, torch.float32)
            state[name] = {"momenta": value.new_zeros((len(self.betas), *value.shape), dtype=dtype)}
            if self.beta2 is not None:
                state[name]["square"] = value.new_zeros(value.shape, dtype=dtype)
        return state

    def propose(
        self,
        wiring: Wiring,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        steps: Mapping[str, int],
        weights: Mapping[str, Tensor] | None = None,
        memory: dict[str, Any] | None = None,
    ) -> Proposal:
        """The next step of networks ``params`` ``{name: [P, *shape]}`` from their gradients; brings ``state`` up to date.

        Args:
            wiring: all of its parameters have a gradient.
            steps: number of the step, 1 at the first, per parameter.
            weights: the rule's own weights for every network, ``{name: [P, *shape]}``; None: the module's.
            memory: kept by the caller between the steps of one network: what the graph says, for a caller that asks it
                only every k-th step (by clearing the memory then). None: it is asked in every step.
        """
        raise NotImplementedError

    def own_weights(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The rule's weights as ``propose`` takes them, for one network or all: ``{name: [1, *shape]}``."""
        return {name: value.detach().to(device, dtype).unsqueeze(0) for name, value in self.named_parameters()}

    def digest(self) -> str:
        """Identifies the rule: SHA-256 over configuration and weights."""
        found = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


R = TypeVar("R", bound=Callable[..., UpdateRule])
_RULES: dict[str, Callable[..., UpdateRule]] = {}


def register_rule(name: str) -> Callable[[R], R]:
    """Make ``create_rule(name, ...)`` call the class or function below."""

    def register(factory: R) -> R:
        _RULES[name] = factory
        return factory

    return register


def list_rules() -> list[str]:
    """Names that ``create_rule`` takes."""
    _load()
    return sorted(_RULES)


def create_rule(name: str, **arguments: Any) -> UpdateRule:
    """A fresh update rule by name.

    Raises:
        UserError: there is no such rule, or it does not take these arguments.
    """
    _load()
    if name not in _RULES:
        raise UserError(f"unknown update rule {name!r}; there are {', '.join(list_rules())}")
    try:
        rule = _RULES[name](**arguments)
    except TypeError as error:
        raise UserError(f"update rule {name}: {error}") from None
    rule.config = {"name": name, **arguments}
    return rule


def _load() -> None:
    from neural_graphs.optim import _contexts, _paper, _paper_graph  # noqa: F401
