"""How far a code is from those of the training networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError


class Novelty(nn.Module):
    """Mahalanobis distance of codes ``[B, width]`` from the measured ones, in multiples of ``scale``.

    The covariance is shrunk towards a multiple of the identity by the oracle approximating estimator (Chen, Wiesel, Eldar &
    Hero 2010, eq. 23), so that codes of more numbers than networks, or with numbers that are always 0, have a distance.
    """

    mean: Tensor
    whitening: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.zeros(width, width))
        self.register_buffer("scale", torch.zeros(()))  # 0 until it is measured

    @torch.no_grad()
    def measure(self, codes: Tensor, others: Tensor, share: float = 0.99) -> None:
        """Distances are from ``codes``; ``share`` of ``others`` have one of at most 1."""
        x = codes.double()
        values, vectors = torch.linalg.eigh(shrunk_covariance(x))
        floor = max(float(values[-1]) * 1e-12, 1e-30)
        self.mean.copy_(x.mean(0))
        self.whitening.copy_(vectors * values.clamp(min=floor).rsqrt())
        self.scale.fill_(1.0)
        distance = self(others.to(self.mean)).double()
        self.scale.fill_(max(float(distance.quantile(share)), 1e-12))

    def forward(self, codes: Tensor) -> Tensor:
        """``[B]``. Raises ``UserError`` before ``measure``."""
        if not float(self.scale):
            raise UserError("this model has not been fitted, so it does not know which networks are new to it")
        return ((codes - self.mean) @ self.whitening).square().sum(1).sqrt() / self.scale


def shrunk_covariance(x: Tensor) -> Tensor:
    """``(1 - rho) * S + rho * tr(S) / p * I`` of n rows ``[n, p]``, S their covariance."""
    n, p = x.shape
    centred = x - x.mean(0)
    covariance = centred.T @ centred / n
    trace, square = float(covariance.trace()), float(covariance.square().sum())
    spread = (n + 1 - 2 / p) * (square - trace**2 / p)
    rho = 1.0 if spread <= 0 else min(1.0, ((1 - 2 / p) * square + trace**2) / spread)
    return (1 - rho) * covariance + rho * trace / p * torch.eye(p, dtype=x.dtype)
