"""Losses on a bounded number: by its size, by its probability, by order alone; and on its quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.05, 0.95)
ROWS = 1024  # of the table of pairs that is held at once


def mse(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of ``sigmoid(logits)`` against targets in 0..1, both ``[B]``."""
    return F.mse_loss(logits.sigmoid(), targets)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a coin of probability ``sigmoid(logits)`` with one of probability ``targets``."""
    return F.binary_cross_entropy_with_logits(logits, targets)


def ranking(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean logistic loss ``log(1 + exp(-(l_i - l_j)))`` of all pairs with ``t_i > t_j`` (RankNet, Burges et al. 2005).

    0 where all targets are equal.
    """
    total, count = logits.sum() * 0, logits.new_zeros(())
    for first in range(0, len(logits), ROWS):
        rows = slice(first, first + ROWS)
        larger = targets[rows, None] > targets[None, :]
        total = total + (F.softplus(logits[None, :] - logits[rows, None]) * larger).sum()
        count = count + larger.sum()
    return total / count.clamp(min=1)


def pinball(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean pinball loss of the quantiles ``QUANTILES``, ``sigmoid(logits)`` of ``[B, 2]``, against targets ``[B]``."""
    error = targets.unsqueeze(1) - logits.sigmoid()
    share = error.new_tensor(QUANTILES)
    return torch.maximum(share * error, (share - 1) * error).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "bce": bce, "ranking": ranking}


def fit_scale(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """``scale`` > 0 and ``shift`` with the smallest ``bce(scale * logits + shift, targets)`` (Platt 1999)."""
    from scipy.optimize import minimize

    x, t = logits.double().cpu(), targets.double().cpu()
    spread = float(x.std(correction=0)) or 1.0
    x = (x - x.mean()) / spread

    def loss(point: list[float]) -> tuple[float, list[float]]:
        scale, shift = math.exp(point[0]), point[1]
        error = (scale * x + shift).sigmoid() - t
        # A little of the parameters' squares, so that numbers that are all 0 or 1 do not lead to infinity.
        value = float(bce(scale * x + shift, t)) + 1e-6 * (point[0] ** 2 + point[1] ** 2)
        slope = [float((error * x).mean()) * scale + 2e-6 * point[0], float(error.mean()) + 2e-6 * point[1]]
        return value, slope

    found = minimize(loss, [0.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(-10, 10), (-50, 50)])
    scale = math.exp(found.x[0])
    return scale / spread, float(found.x[1] - scale * float(logits.double().mean()) / spread)
