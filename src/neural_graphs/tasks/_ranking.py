"""How well numbers are predicted: their order, their size, and the intervals around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from neural_graphs.errors import UserError

Numbers = Tensor | np.ndarray


def kendall_tau(a: Numbers, b: Numbers) -> float:
    """Kendall's tau-b of two lists of n numbers, exact, in O(n log n).

    ``(concordant - discordant) / sqrt((pairs - ties in a) * (pairs - ties in b))``. 0 where all of one list are equal, or
    there are fewer than two: then nothing is said of the order. Raises ``UserError`` for NaN.
    """
    x, y = _pair(a, b)
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return 0.0
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def r2(true: Numbers, predicted: Numbers) -> float:
    """The coefficient of determination, ``1 - sum (t - p)^2 / sum (t - mean t)^2``; 0 where all true numbers are equal."""
    t, p = _pair(true, predicted)
    total = float(np.square(t - t.mean()).sum()) if len(t) else 0.0
    return 1 - float(np.square(t - p).sum()) / total if total else 0.0


def scores(true: Numbers, predicted: Numbers) -> dict[str, float]:
    """``kendall_tau``, ``r2``, ``mae`` and ``rmse`` (mean absolute and root mean squared error) of n predictions."""
    t, p = _pair(true, predicted)
    error = np.abs(t - p)
    return {
        "kendall_tau": kendall_tau(t, p),
        "r2": r2(t, p),
        "mae": float(error.mean()),
        "rmse": math.sqrt(float(np.square(error).mean())),
    }


def coverage(true: Numbers, lower: Numbers, upper: Numbers) -> dict[str, float]:
    """``interval_coverage``, the share of true numbers within their interval, and ``interval_width``, the mean width."""
    (t, low), (_, high) = _pair(true, lower), _pair(true, upper)
    return {"interval_coverage": float(((low <= t) & (t <= high)).mean()), "interval_width": float((high - low).mean())}


def calibration(true: Numbers, predicted: Numbers, bins: int = 10) -> list[dict[str, Any]]:
    """Networks in up to ``bins`` bins of equal count by prediction: ``n``, mean ``predicted``, mean ``true``, and
    ``std``, the standard deviation of the true numbers of the bin."""
    t, p = _pair(true, predicted)
    order = np.argsort(p, kind="stable")
    return [
        {"n": len(part), "predicted": float(p[part].mean()), "true": float(t[part].mean()), "std": float(t[part].std())}
        for part in np.array_split(order, min(bins, len(order)))
    ]


def conformal_correction(scores: Numbers, share: float) -> float:
    """The number by which intervals must be widened to hold a new true number with probability ``share`` at least.

    ``scores`` say how far outside its interval each of n calibration numbers is (negative: inside). This is the
    ``ceil((n + 1) * share)``-th smallest of them (Romano, Patterson & Candès 2019, eq. 8); infinite when n is too small.
    """
    found = np.sort(np.asarray(scores, np.float64))
    rank = math.ceil((len(found) + 1) * share)
    return float(found[rank - 1]) if rank <= len(found) else math.inf


def _pair(a: Numbers, b: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(values, np.float64) for values in (a, b))
    if x.shape != y.shape or x.ndim != 1:
        raise UserError(f"{len(x)} and {len(y)} numbers: give a list of each, of one length")
    if np.isnan(x).any() or np.isnan(y).any():
        raise UserError("NaN among the numbers to compare")
    return x, y
