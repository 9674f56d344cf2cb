"""The parameters of a module that was traced: their names in its graph, and whether it is still the module it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import trace
from neural_graphs.optim._wiring import Wiring


class TracedParameters:
    """``names`` are those of the graph where the parameter stands in it, else the module's own.

    ``wiring`` holds all parameters that stand in the graph.
    """

    def __init__(self, model: nn.Module, example_input: Any = None) -> None:
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        spec = trace(model, example_input).spec
        self.names: dict[Tensor, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(parameter, spec.canonical.get(name, name))
        self.shapes = {parameter: parameter.shape for parameter in self.names}
        self.wiring = Wiring.of(spec, set(self.names.values()))
        self._in_graph = set(self.wiring.parameters)
        self._parts: list[tuple[dict[str, Any], str, Any, str]] = []
        for path, module in model.named_modules():
            for where in (module._modules, module._parameters):
                self._parts += [(where, key, part, f"{path}.{key}".lstrip(".")) for key, part in where.items()]

    def has(self, parameter: Tensor) -> bool:
        return parameter in self.names

    def in_graph(self, parameter: Tensor) -> bool:
        return self.names[parameter] in self._in_graph

    def check_module(self) -> None:
        """``UserError`` where a module or parameter was replaced since."""
        for where, key, part, path in self._parts:
            if where.get(key) is not part:
                raise UserError(
                    f"{path} was replaced since the model was traced: make a new LearnedOptimizer; nothing was updated"
                )

    def check_gradients(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Refuse parameters of other shapes than at the start, and gradients that are sparse or not finite.

        Raises:
            UserError: shapes changed, or a gradient is sparse.
            RunError: a gradient is not finite.
        """
        shapes = self.shapes
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.shape != shapes[parameter]:
                name, before = self.names[parameter], tuple(shapes[parameter])
                raise UserError(
                    f"{name} has shape {tuple(parameter.shape)}, and had {before} when it was traced: make a new "
                    "LearnedOptimizer for the changed module; nothing was updated"
                )
            if gradient.layout is not torch.strided:
                raise UserError(
                    f"the gradient of {self.names[parameter]} is sparse, which LearnedOptimizer does not take: "
                    "make its layer with sparse=False; nothing was updated"
                )
        norms = torch._foreach_norm([gradient for gradient in gradients if gradient.numel()], float("inf"))
        if not norms or bool(torch.stack([norm.to(norms[0]) for norm in norms]).isfinite().all()):
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if count := int((~gradient.isfinite()).sum()):
                raise RunError(
                    f"the gradient of {self.names[parameter]} is not finite in {count} of {gradient.numel()} entries; "
                    "nothing was updated. Lower the learning rate, clip gradients or look for the cause in the loss"
                )
