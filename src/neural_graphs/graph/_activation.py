"""Non-linearities as values: a kind, and for sines their frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError

Kind = Literal["none", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "sine", "other"]

KINDS: tuple[str, ...] = tuple(kind for kind in get_args(Kind) if kind != "other")
"""What a person may ask for. "other" is what the tracer calls a non-linearity that is none of these."""


@dataclass(frozen=True)
class Activation:
    """A pointwise non-linearity.

    ``kind`` is one of ``KINDS``; ``omega`` is the frequency ω0 of a sine, ``sin(ω0 · x)``, and 1 otherwise. Prints and
    parses as ``"relu"`` or ``"sine:30"``.

    The kind fixes which symmetries a neuron has beyond permutation: positive scale (``scale``), sign (``sign``), and a
    phase shift of π (``phase``).
    """

    kind: Kind = "none"
    omega: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "other"):
            raise UserError(f"unknown activation {self.kind!r}: choose one of {', '.join(KINDS)}")

    @classmethod
    def parse(cls, text: str | Activation) -> Activation:
        """``"sine:30"`` -> ``Activation("sine", 30.0)``; raises ``UserError`` on anything unknown."""
        if isinstance(text, Activation):
            return text
        kind, _, omega = text.partition(":")
        if omega and kind != "sine":
            raise UserError(f"activation {text!r}: only a sine takes a frequency, as in sine:30")
        try:
            return cls(cast(Kind, kind), float(omega) if omega else (30.0 if kind == "sine" else 1.0))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"activation {text!r}: the frequency must be a number, as in sine:30") from None

    def __str__(self) -> str:
        return f"sine:{self.omega:g}" if self.kind == "sine" else self.kind

    def __call__(self, x: Tensor) -> Tensor:
        match self.kind:
            case "none":
                return x
            case "relu":
                return torch.relu(x)
            case "leaky_relu":
                return F.leaky_relu(x)
            case "tanh":
                return torch.tanh(x)
            case "sigmoid":
                return torch.sigmoid(x)
            case "gelu":
                return F.gelu(x)
            case "silu":
                return F.silu(x)
            case "sine":
                return torch.sin(x if self.omega == 1 else self.omega * x)
            case "other":
                raise UserError(
                    "this non-linearity is known to be there, but not which one it is: run the module instead"
                )
        raise AssertionError(self.kind)

    @property
    def scale(self) -> bool:
        """Positively homogeneous: f(q x) = q f(x) for q > 0."""
        return self.kind in ("none", "relu", "leaky_relu")

    @property
    def sign(self) -> bool:
        """Odd: f(-x) = -f(x)."""
        return self.kind in ("none", "tanh", "sine")

    @property
    def phase(self) -> bool:
        """f(x + π/ω0) = -f(x)."""
        return self.kind == "sine"

    def module(self) -> nn.Module:
        """The same function as an ``nn.Module`` without parameters."""
        return ActivationModule(self)

    @classmethod
    def of_module(cls, module: nn.Module) -> Activation | None:
        """The activation that ``module`` computes, or None when it is not one this library knows exactly."""
        if isinstance(module, ActivationModule):
            return module.activation
        if isinstance(module, nn.LeakyReLU):
            return cls("leaky_relu") if module.negative_slope == 0.01 else None
        if isinstance(module, nn.GELU):
            return cls("gelu") if module.approximate == "none" else None
        simple: dict[type[nn.Module], Kind] = {
            nn.ReLU: "relu",
            nn.Tanh: "tanh",
            nn.Sigmoid: "sigmoid",
            nn.SiLU: "silu",
            nn.Identity: "none",
        }
        kind = simple.get(type(module))
        return cls(kind) if kind else None


class ActivationModule(nn.Module):
    """An ``Activation`` as a module, so that stacks with sines can be built from ``nn.Sequential``."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def extra_repr(self) -> str:
        return str(self.activation)
