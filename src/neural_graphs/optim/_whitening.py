"""Orthogonalised momenta: the direction of Muon (Jordan et al. 2024) for every weight matrix of a wiring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neural_graphs.optim._baselines import Muon, orthogonalised
from neural_graphs.optim._plain_adam import BETA1, nominal_step
from neural_graphs.optim._rule import State
from neural_graphs.optim._wiring import Piece, Wiring

_NUMBER = 1
"""Of the momentum that is orthogonalised, Adam's, among those that rules keep."""

_SCALE = 0.5
"""Root mean square of a square matrix with singular values 1: of the size of Adam's first steps."""


class Whitening:
    """O for the pieces that connect neurons, embeddings excepted: the Nesterov momentum ``.9 m + .1 g`` as a matrix
    ``[n_target, n_source taps]`` of each group, with singular values near 1, times ``.5 sqrt(max(rows, columns))``.

    Permuting neurons at either end permutes rows and columns, and so does the result. ``state``, ``steps``, ``memory`` are
    those of ``UpdateRule.propose``; in ``memory``, where there is one, O is kept for the steps in between.
    """

    def __init__(
        self,
        wiring: Wiring,
        grads: Mapping[str, Tensor],
        state: State,
        steps: Mapping[str, int],
        memory: dict[str, Any] | None = None,
    ) -> None:
        self.wiring, self.grads, self.state, self.steps = wiring, grads, state, steps
        self.memory = {} if memory is None else memory

    def add(self, updates: Mapping[str, Tensor], shares: Tensor, summary: Tensor, figures: bool = True) -> Tensor:
        """Add ``shares [P, B]`` times O to ``updates``; with ``figures``, the sums of ``TorchEdges.updates`` as they are."""
        columns = list(summary.unbind(1))
        for number, piece in enumerate(self.wiring.pieces):
            if piece.source is None or piece.kind == "embedding":
                continue
            whole = updates[piece.parameter]
            update = piece.read(whole)
            if (key := f"direction {number}") not in self.memory:
                self.memory[key] = self.direction(piece)
            update.addcmul_(self.memory[key], shares[:, number, None, None, None])
            if update.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():  # no view
                piece.write(whole, update)
            if figures:
                held = self.state[piece.parameter]
                moments = piece.read(held["momenta"][_NUMBER]), piece.read(held["square"])
                nominal = nominal_step(*moments, self.steps[piece.parameter])
                sums = [(a * b).sum((1, 2, 3)) for a, b in ((update, update), (nominal, nominal), (update, nominal))]
                columns[number] = torch.stack([*sums, columns[number][:, 3]], 1)
        return torch.stack(columns, 1)

    def direction(self, piece: Piece) -> Tensor:
        """O ``[P, n_target, n_source / groups, taps]``."""
        momentum = piece.read(self.state[piece.parameter]["momenta"][_NUMBER])
        grad = piece.read(self.grads[piece.parameter].to(momentum.dtype))
        networks, targets, sources, taps = momentum.shape
        rows, columns = targets // piece.groups, sources * taps
        matrices = torch.lerp(momentum, grad, 1 - BETA1).reshape(networks * piece.groups, rows, columns)
        found = orthogonalised(matrices, Muon.coefficients, Muon.rounds)
        return found.view(momentum.shape) * (_SCALE * max(rows, columns) ** 0.5)
