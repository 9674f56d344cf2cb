"""The update rules of Kofinas et al. (ICLR 2024), section 4.4: what they read, what they write, and those without a graph.

``w <- w + 0.01 s exp(0.01 m)``, with (s, m) the output of a perceptron for every parameter. It reads the parameter, its
gradient and five momenta, each by logarithm and sign, and what a graph network or an LSTM makes of the rest of the network.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from neural_graphs.errors import UserError
from neural_graphs.optim._rule import Proposal, State, UpdateRule, register_rule
from neural_graphs.optim._wiring import Piece, Wiring

BETAS = (0.5, 0.9, 0.99, 0.999, 0.9999)
FEATURES = 2 * (2 + len(BETAS))
"""Numbers that are read of every parameter."""

STEP = 0.01
RANGE = 10.0
"""``p`` of ``log_and_sign``."""


def log_and_sign(x: Tensor) -> Tensor:
    """``[..., k]`` to ``[..., 2 k]``: logarithm and sign of each value by side (Andrychowicz et al. 2016, appendix A).

    ``(log |x| / p, sign x)`` where ``|x| >= exp(-p)``, ``(-1, exp(p) x)`` nearer to 0, with p = 10.
    """
    logarithm = x.abs().clamp_min(math.exp(-RANGE)).log() / RANGE
    sign = (x * math.exp(RANGE)).clamp(-1, 1)
    return torch.stack([logarithm, sign], -1).flatten(-2)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules made inside are those of ``seed``; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class PaperRule(UpdateRule):
    """Base of the paper's rules, which differ in the vector that comes with every connection: ``told`` numbers of it.

    Momenta are ``m <- beta m + g``. The learning rate is the rule's own, so that the ``lr`` of the paper is 1, without a
    schedule. It keeps no mean square, and knows no Adam step: ``nominal`` and ``cosine`` of a proposal are NaN, and entries
    whose proposal is not finite stay where they are.
    """

    betas = BETAS
    beta2 = None

    def __init__(self, told: int, hidden: int, seed: int) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError(f"an update rule needs hidden units, not {hidden}")
        with seeded(seed):
            self.first = nn.Linear(told + FEATURES, hidden)
            self.second = nn.Linear(hidden, hidden)
            self.out = nn.Linear(hidden, 2)

    def vectors(self, wiring: Wiring, seen: Sequence[Tensor]) -> list[Tensor]:
        """For every piece, from ``seen`` ``[P, n_t, n_s / g, taps, FEATURES]``: ``[P, n_t, n_s / g, told]``, or with
        axes of 1 in place of those along which it is the same."""
        return []

    def forward(
        self, wiring: Wiring, seen: Sequence[Tensor], vectors: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """``(s, m)`` of all pieces, ``[P, n_t, n_s / g, taps, 2]``, and the vectors, which are made where there are none."""
        told = self.vectors(wiring, seen) if vectors is None else list(vectors)
        by_vector, by_value = self.first.weight.split([self.first.in_features - FEATURES, FEATURES], 1)
        found = []
        for number, values in enumerate(seen):
            hidden = F.linear(values, by_value, self.first.bias)
            if told:
                hidden = hidden + F.linear(told[number], by_vector).unsqueeze(3)
            found.append(self.out(torch.relu(self.second(torch.relu(hidden)))))
        return found, told

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
        with torch.no_grad():
            seen = self._seen(wiring, params, grads, state)
        known = None if memory is None else memory.get("vectors")
        if weights is None:
            own = {name: value.to(seen[0].dtype) for name, value in self.named_parameters()}
            with torch.no_grad():
                outputs, told = functional_call(self, own, (wiring, seen, known))
        else:
            each = []
            for p in range(len(seen[0])):
                own = {name: value[p] for name, value in weights.items()}
                part = slice(p, p + 1)
                given = None if known is None else [vector[part] for vector in known]
                each.append(functional_call(self, own, (wiring, [values[part] for values in seen], given)))
            outputs, told = (
                [torch.cat(parts) for parts in zip(*found, strict=True)] for found in zip(*each, strict=True)
            )
        if memory is not None:
            memory["vectors"] = told
        return self._proposal(wiring, state, outputs)

    def _seen(
        self, wiring: Wiring, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> list[Tensor]:
        """Brings the momenta up to date; the features of all pieces."""
        values: dict[str, list[Tensor]] = {}
        for name in wiring.parameters:
            momenta = state[name]["momenta"]
            grad = grads[name].to(momenta.dtype)
            for momentum, beta in zip(momenta, BETAS, strict=True):
                momentum.mul_(beta).add_(grad)
            values[name] = [params[name].to(momenta.dtype), grad, *momenta]

        def read(piece: Piece) -> Tensor:
            return log_and_sign(torch.stack([piece.read(value) for value in values[piece.parameter]], -1))

        return [read(piece) for piece in wiring.pieces]

    def _proposal(self, wiring: Wiring, state: State, outputs: Sequence[Tensor]) -> Proposal:
        updates = {name: torch.zeros_like(state[name]["momenta"][0]) for name in wiring.parameters}
        squares, replaced = [], []
        for piece, output in zip(wiring.pieces, outputs, strict=True):
            update = -STEP * output[..., 0] * (STEP * output[..., 1]).exp()
            finite = update.isfinite()
            update = torch.where(finite, update, torch.zeros_like(update))
            piece.write(updates[piece.parameter], update)
            squares.append(update.detach().square().mean((1, 2, 3)))
            replaced.append((~finite).sum((1, 2, 3)).to(update.dtype))
        step = torch.stack(squares, 1).sqrt()
        unknown = torch.full_like(step, math.nan)
        figures = {"step": step, "nominal": unknown, "cosine": unknown, "replaced": torch.stack(replaced, 1)}
        return Proposal(updates, wiring, figures)


@register_rule("paper-ff")
class PaperFeedForward(PaperRule):
    """Every parameter on its own: a perceptron with two hidden layers on its 14 features."""

    def __init__(self, hidden: int = 64, seed: int = 0) -> None:
        super().__init__(0, hidden, seed)


@register_rule("paper-lstm")
class PaperLSTM(PaperRule):
    """An LSTM over layers, from inputs to outputs, on the mean features of each.

    A layer's weights and its biases are two entries, as each tensor is; the paper does not say.
    """

    def __init__(self, hidden: int = 32, seed: int = 0) -> None:
        super().__init__(hidden, hidden, seed)
        with seeded(seed + 1):
            self.cell = nn.LSTMCell(FEATURES, hidden)

    def vectors(self, wiring: Wiring, seen: Sequence[Tensor]) -> list[Tensor]:
        zero = seen[0].new_zeros(len(seen[0]), self.cell.hidden_size)
        held, found = (zero, zero), []
        for values in seen:
            held = self.cell(values.mean((1, 2, 3)), held)
            found.append(held[0][:, None, None])
        return found
