"""A learned optimizer for any module: an update rule that reads the module as a graph, as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neural_graphs.errors import UserError
from neural_graphs.optim import _plain_adam
from neural_graphs.optim._explain import StepTable, explained
from neural_graphs.optim._optimizer_state import StepPlan, copied
from neural_graphs.optim._repair import repair
from neural_graphs.optim._rule import UpdateRule
from neural_graphs.optim._traced import TracedParameters
from neural_graphs.optim._weights import load_rule

_LR = 1e-3
_LEARNED = "learned"
"""Key of a state dict under which stands what ``torch.optim`` has no place for."""


class LearnedOptimizer(Optimizer):
    """Trains ``model`` with an update rule that was meta-trained on other networks.

        optimizer = LearnedOptimizer(model, total_steps=1000)
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()

    The module is traced once (``neural_graphs.trace``); the rule then reads, for every parameter, weight, gradient and
    momenta, and what the neurons at both its ends say. Parameters of the module that stand nowhere in its graph take Adam's
    step; one warning lists them. State is kept in float32 at least, on the parameter's device.

    Args:
        model: a floating-point module. It must stay the module that was traced.
        weights: a name of ``list_weights()``, a file or folder of meta-training, or an ``UpdateRule``.
        example_input: as ``trace`` takes it. Plain stacks of layers do without.
        params: parameters or parameter groups, as ``torch.optim`` takes them; default: all of ``model``.
        lr: what the update is multiplied with; default: what the weights were meta-trained with.
        weight_decay: decoupled (Loshchilov & Hutter 2019): ``w <- w - lr * (update + weight_decay * w)``.
        total_steps: the learning rate falls linearly, from ``lr`` in the first step to ``lr / total_steps`` in the last, as
            in meta-training; zero after. None: it stays what the groups say, and any scheduler of torch may set it.
        every: ask the graph in every ``every``-th step only, and keep what it said in between.

    Raises:
        UserError: the module cannot be traced, parameters are not the module's, or there are no such weights.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: str | os.PathLike[str] | UpdateRule = "ng-small",
        example_input: Any = None,
        *,
        params: Any = None,
        lr: float | None = None,
        weight_decay: float = 0.0,
        total_steps: int | None = None,
        every: int = 1,
    ) -> None:
        for name, value in (("every", every), ("total_steps", total_steps)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.rule, self.card = load_rule(weights)
        self.total_steps, self.every = total_steps, every
        self.count = 0
        self._traced = TracedParameters(model, example_input)
        self._plan: StepPlan | None = None
        self._memory: dict[str, Any] = {}
        self._remembered: list[str] = []
        self._last: dict[str, Any] = {}
        self._constructed = False
        if lr is None:
            lr = float(self.card.get("lr", _LR))
        super().__init__(model.parameters() if params is None else params, {"lr": lr, "weight_decay": weight_decay})
        self._constructed = True
        self._warn(self.param_groups)

    # -- what is trained ----------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in ``torch.optim``. ``UserError`` for parameters that are not the traced module's, and for bad options."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        strange = [tuple(p.shape) for p in group["params"] if not self._traced.has(p)]
        wrong = [f"{key} {group[key]}" for key in ("lr", "weight_decay") if not 0 <= group[key] < math.inf]
        other = [self._traced.names[p] for p in group["params"] if self._traced.has(p) and not p.is_floating_point()]
        if strange or wrong or other:
            self.param_groups.pop()
        if strange:
            shapes = ", ".join(map(str, strange[:4])) + (", …" if len(strange) > 4 else "")
            raise UserError(f"{len(strange)} parameters are not of the traced model (shapes {shapes}): leave them out")
        if wrong:
            raise UserError(f"a parameter group has {', '.join(wrong)}: give finite numbers from 0 on")
        if other:
            raise UserError(f"{other[0]} is not of real numbers, which LearnedOptimizer does not take: leave it out")
        if self._constructed:
            self._warn([group])

    def _warn(self, groups: list[dict[str, Any]]) -> None:
        found = [p for group in groups for p in group["params"] if p.requires_grad and not self._traced.in_graph(p)]
        if found:
            names = ", ".join(self._traced.names[p] for p in found)
            warnings.warn(
                f"{len(found)} parameters stand nowhere in the graph of the model and take Adam's step: {names}",
                stacklevel=3,
            )

    # -- a step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; the loss of ``closure``, if there is one.

        Nothing is written before all that can fail has been checked: gradients before any state, updates before any
        parameter.

        Raises:
            UserError: the module is no longer what was traced, or a gradient is sparse.
            RunError: a gradient is not finite, or the state is not (after a bad ``load_state_dict``).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found: list[tuple[Tensor, dict[str, Any]]] = [
            (p, group) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        self._traced.check_module()
        if not found:
            return loss
        parameters = [p for p, _ in found]
        gradients = cast("list[Tensor]", [p.grad for p in parameters])
        self._traced.check_gradients(parameters, gradients)
        plan = self._plan
        if plan is None or not plan.fits(parameters, self.state):
            plan = self._plan = StepPlan(self._traced, self.rule, parameters, self.state)
        groups = [found[k][1] for k in plan.order]
        updates = self._propose(plan, [gradients[k] for k in plan.order])
        self._apply(plan, groups, updates)
        return loss

    def _propose(self, plan: StepPlan, gradients: list[Tensor]) -> list[Tensor]:
        torch._foreach_add_(plan.steps, 1)
        steps = [int(step) for step in torch.stack(plan.steps).tolist()]
        updates: list[Tensor] = []
        summary = None
        if plan.count:
            memory = self._memory
            if self.every == 1 or self.count % self.every == 0 or self._remembered != plan.names:
                memory.clear()
                self._remembered = plan.names
            inside = zip(plan.names, gradients[: plan.count], strict=False)
            own = dict(zip(plan.names, steps[: plan.count], strict=False))
            proposal = self.rule.propose(
                plan.wiring,
                plan.params,
                {name: gradient.detach().unsqueeze(0) for name, gradient in inside},
                plan.state,
                own,
                plan.weights,
                memory if self.every > 1 else None,
            )
            repair(self.rule, proposal, plan.state, own)
            updates = [proposal.updates[name] for name in plan.names[: plan.count]]
            summary = proposal.summary
        if len(gradients) > plan.count:
            others = _plain_adam.advance(gradients[plan.count :], plan.held[plan.count :], steps[plan.count :])
            updates += [update.unsqueeze(0) for update in others]
        self._last = {"plan": plan, "summary": summary, "steps": steps}
        return updates

    def _apply(self, plan: StepPlan, groups: list[dict[str, Any]], updates: list[Tensor]) -> None:
        """``w <- w - lr * (update + weight_decay * w)``, in the precision of the update."""
        factor = 1.0 if self.total_steps is None else max(0.0, 1 - self.count / self.total_steps)
        self.count += 1
        by_rate: dict[tuple[float, float], list[int]] = {}
        for number, group in enumerate(groups):
            by_rate.setdefault((float(group["lr"]), float(group["weight_decay"])), []).append(number)
        self._last["rates"] = [float(group["lr"]) * factor for group in groups]
        for (rate, decay), numbers in by_rate.items():
            views, steps = [plan.views[k] for k in numbers], [updates[k] for k in numbers]
            if decay:
                torch._foreach_add_(steps, views, alpha=decay)
            torch._foreach_add_(views, steps, alpha=-rate * factor)

    def explain(self) -> StepTable:
        """What the last step did: a row per layer with its size, Adam's, and the cosine between them; see ``StepTable``.

        ``UserError`` before the first step.
        """
        if not self._last:
            raise UserError("no step has been made yet: call explain() after step()")
        return explained(**self._last)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.optim``, and under ``"learned"``: digest and configuration of the rule, number of steps, schedule,
        and what the graph said last where it is asked every k-th step. Safe for ``torch.load(weights_only=True)``."""
        found = super().state_dict()
        found[_LEARNED] = {
            "digest": self.rule.digest(),
            "config": dict(self.rule.config),
            "count": self.count,
            "total_steps": self.total_steps,
            "every": self.every,
            "remembered": list(self._remembered) if self._memory else [],
            "memory": dict(self._memory),
        }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; on the CPU the steps are then the same to the last bit.

        Learning rates, weight decay, ``total_steps`` and ``every`` are those of the state dict.

        Raises:
            UserError: it is not of a ``LearnedOptimizer``, of other meta-weights, or of a model of other shapes. Nothing is
                changed then.
        """
        learned = state_dict.get(_LEARNED)
        if learned is None:
            raise UserError("this is no state dict of a LearnedOptimizer: give what its state_dict() returned")
        if learned["digest"] != (digest := self.rule.digest()):
            raise UserError(
                f"this state dict was made with other meta-weights ({learned['config']['name']}, {learned['digest'][:8]}) "
                f"than this optimizer's ({self.rule.config['name']}, {digest[:8]}): construct it with the same weights"
            )
        ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        held = state_dict["state"]
        for number, parameter in zip(ids, parameters, strict=False):
            for key, value in held.get(number, {}).items():
                shape = value.shape[1:] if key == "momenta" else value.shape
                if key != "step" and shape != parameter.shape:
                    name = self._traced.names[parameter]
                    raise UserError(f"the state of {name} is for shape {tuple(shape)}, it has {tuple(parameter.shape)}")
        super().load_state_dict(state_dict)
        for number, parameter in zip(ids, parameters, strict=True):  # torch has cast the state to the parameter's type
            for key, value in held.get(number, {}).items():
                if isinstance(value, Tensor) and self.state[parameter][key].dtype != value.dtype:
                    self.state[parameter][key] = value.detach().clone().to(parameter.device)
        self.count, self.total_steps, self.every = (learned[key] for key in ("count", "total_steps", "every"))
        device = parameters[0].device if parameters else torch.device("cpu")
        self._memory, self._remembered = copied(learned["memory"], device), list(learned["remembered"])
        self._plan, self._last = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            **{key: self.__dict__[key] for key in ("rule", "card", "total_steps", "every", "count", "_traced")},
            **{key: self.__dict__[key] for key in ("_memory", "_remembered")},
            "_plan": None,
            "_last": {},
            "_constructed": True,
        }
