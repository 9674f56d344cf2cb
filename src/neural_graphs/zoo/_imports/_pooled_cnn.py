"""CNNs whose activation follows max pooling and does not commute with it: GELU and SiLU fall before they rise."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.graph import Activation, register_architecture


@register_architecture("pooled-cnn")
class PooledCnn(nn.Module):
    """Convolutions without padding, the first ``pooled`` with 2x2 max pooling before the activation, then linear layers.

    Inputs ``[K, channels, side, side]``, outputs ``[K, widths[-1]]``; ``widths`` are those of all layers, ``kernels`` the
    sizes of the convolutions' (Schuerholt et al. 2022, ``CNN`` and ``CNN3``).
    """

    def __init__(
        self, channels: int, side: int, widths: Sequence[int], kernels: Sequence[int], pooled: int, activation: str
    ) -> None:
        super().__init__()
        self.input_shape = (channels, side, side)
        self.pooled, self.activation = pooled, Activation.parse(activation)
        self.names: list[str] = []
        inputs = channels
        for i, outputs in enumerate(widths):
            if i < len(kernels):
                side = (side - kernels[i] + 1) // (2 if i < pooled else 1)
                self._add(f"conv{i}", nn.Conv2d(inputs, outputs, kernels[i]))
            else:
                positions = side**2 if i == len(kernels) else 1
                self._add("head" if i == len(widths) - 1 else f"linear{i}", nn.Linear(inputs * positions, outputs))
            inputs = outputs

    def _add(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self.names.append(name)

    def forward(self, x: Tensor) -> Tensor:
        for i, name in enumerate(self.names):
            layer = self.get_submodule(name)
            if isinstance(layer, nn.Linear) and x.dim() == 4:
                x = x.flatten(1)
            x = layer(x)
            if i < self.pooled:
                x = F.max_pool2d(x, 2)
            if name != "head":
                x = self.activation(x)
        return x
