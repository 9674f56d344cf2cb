"""Adam, modulated: the nominal step times and plus what a small network says of every parameter.

The step of parameter w is ``n exp(a) + b`` with n Adam's bias-corrected step and (a, b) the output of one hidden layer on
features of the parameter (after Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
optimizers", 2022), whose biases are set by what is known of the neurons at its two ends and of its tensor: the context.
Heads start at zero, so that an untrained rule is Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.optim._places import STATIC, places
from neural_graphs.optim._plain_adam import BETA1, BETA2
from neural_graphs.optim._rule import Proposal, State, UpdateRule
from neural_graphs.optim._whitening import Whitening
from neural_graphs.optim._wiring import Wiring

BETAS = (0.5, BETA1, 0.99)
NOMINAL = 1
"""Number of the momentum that Adam's step is made of."""

FEATURES = 11
STATISTICS = 9
SCALES = 10
TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
CONTEXT = STATIC + 8 + len(TIMES)
"""Numbers that are known of a piece in every step."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Walk:
    """What the walks over all parameters share (see ``TorchEdges``): P networks, B pieces, the places of ``Places``.

    ``scales [P, B, SCALES]`` multiply gradient, weight and momenta to unit root mean square, and the momenta and the mean
    square to their bias-corrected values; the last is the root mean square deviation of the piece. ``factor [P, places]``
    is the root of the piece's mean square over a neuron's (Shazeer & Stern, "Adafactor", 2018), to the power 1/2 each side.
    """

    scales: Tensor
    factor: Tensor


class ModulatedAdam(UpdateRule):
    """Base of the rules that differ in their context alone; ``hidden`` units see every parameter.

    ``magnitude`` False: the update is the direction ``n + b``, scaled to the root mean square of Adam's step in every piece.
    ``whiten``: to the update of every weight matrix ``c O`` is added, with O its orthogonalised momentum (see ``Whitening``)
    and c said by its context. That makes the step of a matrix with n rows cost some n multiplications per weight more.
    """

    betas = BETAS
    beta2 = BETA2
    shuffled = False
    """Whether wrong neurons are taken for those at the ends of every piece (see ``places``)."""

    def __init__(self, hidden: int, magnitude: bool = True, whiten: bool = False, seed: int = 0) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError(f"an update rule needs hidden units, not {hidden}")
        self.hidden, self.magnitude, self.whiten = hidden, magnitude, whiten
        self._generator = torch.Generator().manual_seed(seed)
        self.matrix = self._new(hidden, FEATURES)
        self.profile = self._new(2, hidden, fan_in=2)  # of the mean square of a target's and a source's parameters
        self.heads = nn.Parameter(torch.zeros(2, hidden))
        self.offset = nn.Parameter(torch.zeros(2 if whiten else 1))

    def _new(self, *shape: int, fan_in: int | None = None) -> nn.Parameter:
        scale = 1 / math.sqrt(fan_in or shape[-1])
        return nn.Parameter(torch.empty(shape).uniform_(-scale, scale, generator=self._generator))

    def context(
        self, weights: Weights, known: Tensor, edges: Any, walk: Walk, profile: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Biases ``[P, places, hidden]`` of the hidden units and offsets ``[P, B, 1 or 2]``: of the log gain, and c.

        ``known [P, B, CONTEXT]`` is known of the pieces, ``profile [P, places]`` how the mean square at a place compares
        to the piece's; ``edges`` is a ``TorchEdges`` or a ``NativeEdges``.
        """
        raise NotImplementedError

    def propose(
        self,
        wiring: Wiring,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        steps: Mapping[str, int],
        weights: Weights | None = None,
        memory: dict[str, Any] | None = None,
    ) -> Proposal:
        from neural_graphs.optim._native_edges import edges_of

        first = state[wiring.pieces[0].parameter]["square"]
        at = places(wiring, first.device, first.dtype, self.shuffled)
        if weights is None:
            weights = self.own_weights(first.device, first.dtype)
        differentiable = any(value.requires_grad for value in weights.values())
        edges = edges_of(wiring, at, params, grads, state, differentiable)
        walk, known, profile = edges.measure(*_clock([steps[piece.parameter] for piece in wiring.pieces], first))
        found = None if memory is None else memory.get("context")
        if found is None:
            found = self.context(weights, known, edges, walk, profile)
            if memory is not None:
                memory["context"] = found
        vectors, offsets = found
        updates, summary = edges.updates(weights["matrix"], vectors, walk, weights["heads"], offsets[:, :, 0])
        if self.whiten:
            whitening = Whitening(wiring, grads, state, steps, memory)
            wanted = self.figures or not self.magnitude  # the direction is scaled by them
            summary = whitening.add(updates, offsets[:, :, 1], summary, wanted)
        squared, nominal, product, replaced = summary.unbind(2)
        figures = {
            "step": (squared / at.numel).sqrt(),
            "nominal": (nominal / at.numel).sqrt(),
            "cosine": product / (squared * nominal).sqrt().clamp_min(torch.finfo(first.dtype).tiny),
            "replaced": replaced,
        }
        if not self.magnitude:
            gain = figures["nominal"] / figures["step"].clamp_min(torch.finfo(first.dtype).tiny)
            for number, piece in enumerate(wiring.pieces):
                held = piece.read(updates[piece.parameter]) * gain[:, number, None, None, None]
                piece.write(updates[piece.parameter], held)
            figures["step"] = figures["nominal"]
        return Proposal(updates, wiring, figures)


def _clock(steps: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Bias corrections ``[B, 4]`` of momenta and mean square, and ages ``[B, len(TIMES)]`` that saturate, of pieces at
    these steps. Not in float32, where 1 - 0.999 is off by 1e-5, and not in torch, whose calls cost more than the numbers."""
    corrections = {t: [1 / (1 - decay**t) for decay in (*BETAS, BETA2)] for t in set(steps)}
    ages = {t: [math.tanh(t / scale - 1) for scale in TIMES] for t in corrections}
    made = (
        torch.tensor([known[t] for t in steps], dtype=like.dtype, device=like.device) for known in (corrections, ages)
    )
    return next(made), next(made)


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [P, n, i]`` times ``matrix [P or 1, o, i]`` plus ``bias [P or 1, o]``."""
    matrix = matrix.mT.expand(len(x), -1, -1)
    if bias is None:
        return torch.bmm(x, matrix)
    return torch.baddbmm(bias.unsqueeze(1).expand(len(x), -1, -1), x, matrix)
