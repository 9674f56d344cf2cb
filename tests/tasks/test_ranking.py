"""Figures, losses and calibration of numbers, each against a slow and obvious twin or what it promises."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.tasks._losses import LOSSES, ROWS, fit_scale, pinball
from neural_graphs.tasks._novelty import Novelty, shrunk_covariance
from neural_graphs.tasks._ranking import calibration, conformal_correction, coverage, kendall_tau, r2, scores


def slow_tau(a: np.ndarray, b: np.ndarray) -> float:
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    both = sum(s * t for s, t in signs)
    return both / math.sqrt(sum(s != 0 for s, _ in signs) * sum(t != 0 for _, t in signs))


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_kendall_tau_is_that_of_all_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for n in (2, 3, 60):
        a, b = rng.permutation(levels * n)[:n] % levels, rng.integers(levels, size=n) + 0.0
        b += a
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert kendall_tau(a, b) == pytest.approx(slow_tau(a, b), abs=1e-12)
    up = torch.arange(9.0)
    assert kendall_tau(up, up.exp()) == pytest.approx(1) and kendall_tau(up, -up) == pytest.approx(-1)


def test_nothing_to_order_and_nonsense() -> None:
    assert kendall_tau(torch.ones(5), torch.arange(5)) == kendall_tau(torch.ones(1), torch.ones(1)) == 0
    with pytest.raises(UserError, match="NaN"):
        kendall_tau(torch.tensor([1.0, math.nan]), torch.ones(2))
    with pytest.raises(UserError, match="3 and 2 numbers"):
        r2(torch.ones(3), torch.ones(2))


def test_errors_and_bins() -> None:
    true, predicted = np.array([0.0, 1, 2, 5]), np.array([0.5, 1, 1, 4])
    found = scores(true, predicted)
    assert r2(true, predicted) == found["r2"] == pytest.approx(1 - (0.25 + 1 + 1) / (4 + 1 + 0 + 9))
    assert found["mae"] == pytest.approx(2.5 / 4) and found["rmse"] == pytest.approx(math.sqrt(2.25 / 4))
    low, high = calibration(true, predicted, 2)
    assert (low["n"], low["predicted"], low["true"], low["std"]) == (2, 0.75, 0.5, 0.5)
    assert (high["n"], high["predicted"], high["true"]) == (2, 2.5, 3.5)
    assert [part["n"] for part in calibration(true, predicted, 100)] == [1] * 4
    about = coverage(true, predicted - 0.6, predicted + 0.6)
    assert about["interval_coverage"] == 0.5 and about["interval_width"] == pytest.approx(1.2)


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_their_sums(name: str) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(9, dtype=torch.float64, requires_grad=True), torch.rand(9, dtype=torch.float64)
    targets[3] = targets[5]
    twins = {
        "mse": lambda: [
            (1 / (1 + math.exp(-z)) - t) ** 2 for z, t in zip(logits.tolist(), targets.tolist(), strict=True)
        ],
        "bce": lambda: [
            t * math.log1p(math.exp(-z)) + (1 - t) * math.log1p(math.exp(z))
            for z, t in zip(logits.tolist(), targets.tolist(), strict=True)
        ],
        "ranking": lambda: [
            math.log1p(math.exp(logits[j].item() - logits[i].item()))
            for i in range(9)
            for j in range(9)
            if targets[i] > targets[j]
        ],
    }
    terms = twins[name]()
    assert name != "ranking" or len(terms) == 9 * 8 // 2 - 1  # no pair of equal targets
    found = LOSSES[name](logits, targets)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    torch.autograd.gradcheck(lambda z: LOSSES[name](z, targets), logits)


def test_ranking_without_pairs_and_with_many() -> None:
    logits = torch.randn(4, requires_grad=True)
    loss = LOSSES["ranking"](logits, torch.ones(4))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()
    many, targets = torch.randn(ROWS + 50, dtype=torch.float64), torch.rand(ROWS + 50)
    larger = targets[:, None] > targets[None]
    wanted = torch.nn.functional.softplus(many[None] - many[:, None])[larger].mean()
    torch.testing.assert_close(LOSSES["ranking"](many, targets), wanted, rtol=1e-10, atol=0)


def test_pinball_is_smallest_at_the_quantiles() -> None:
    targets = torch.linspace(0, 1, 1001, dtype=torch.float64)
    values = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    for column, quantile in enumerate((0.05, 0.95)):
        losses = []
        for value in values:
            logits = torch.zeros(len(targets), 2, dtype=torch.float64)
            logits[:, column] = torch.logit(value)
            losses.append(pinball(logits, targets))
        assert values[torch.stack(losses).argmin()] == pytest.approx(quantile, abs=0.006)


@pytest.mark.parametrize(("scale", "shift"), [(0.02, -1.0), (1.0, 0.0), (40.0, 8.0)])
def test_fit_scale_finds_scale_and_shift(scale: float, shift: float) -> None:
    targets = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05
    found, moved = fit_scale((torch.logit(targets) - shift) / scale, targets)
    assert found == pytest.approx(scale, rel=1e-2) and moved == pytest.approx(shift, abs=1e-2)
    assert fit_scale(torch.arange(4.0), torch.tensor([0.0, 0, 1, 1]))[0] > 1  # a step has no best scale, but some scale
    assert math.isfinite(fit_scale(torch.ones(4), torch.rand(4))[1])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_corrected_intervals_hold_their_share(share: float) -> None:
    """Of intervals that are far too narrow, and of ones that are too wide: new numbers fall within as often as asked."""
    rng = np.random.default_rng(0)
    held = []
    for width in (0.1, 4.0):
        for _ in range(400):
            old, new = rng.normal(size=(2, 99)) * np.linspace(0.5, 2, 99)
            correction = conformal_correction(np.abs(old) - width, share)
            held.append(float((np.abs(new) <= width + correction).mean()))
    assert np.mean(held) == pytest.approx(share, abs=0.02)
    assert conformal_correction(np.arange(9.0), 0.9) == 8 and conformal_correction(np.arange(8.0), 0.9) == math.inf


def test_novelty_is_a_distance_that_correlations_shape() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 1, generator=rng) @ torch.ones(1, 6) + 0.05 * torch.randn(3000, 6, generator=rng)
    x[:, 5] = 0  # a unit that is always dead
    novelty = Novelty(6)
    with pytest.raises(UserError, match="has not been fitted"):
        novelty(x)
    novelty.measure(x[:2000], x[2000:])
    own = novelty(x[2000:])
    assert float((own <= 1).double().mean()) == pytest.approx(0.99, abs=0.002)
    along, across, alive = torch.ones(1, 6) * 2.0, torch.tensor([[1.0, -1, 1, -1, 0, 0]]), torch.zeros(1, 6)
    along[:, 5], alive[:, 5] = 0, 1.0
    assert novelty(along) < 1 < 3 < novelty(across) and novelty(alive) > 3
    centred = x[:2000].double() - x[:2000].double().mean(0)
    inverse = torch.linalg.inv(shrunk_covariance(x[:2000].double()))
    slow = torch.stack([row @ inverse @ row for row in centred[:50]]).sqrt()
    fast = novelty(x[:50]).double() * novelty.scale
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)


def test_covariance_of_few_networks_is_shrunk_and_of_many_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    true = torch.diag(torch.arange(1.0, 9, dtype=torch.float64))
    many = torch.randn(20_000, 8, generator=rng, dtype=torch.float64) * true.diag().sqrt()
    torch.testing.assert_close(shrunk_covariance(many), true, rtol=0.05, atol=0.15)
    few = many[:5]
    plain = torch.cov(few.T, correction=0)
    found = shrunk_covariance(few)
    assert torch.linalg.eigvalsh(found)[0] > 0.1 > abs(torch.linalg.eigvalsh(plain)[0])
    assert (found - true).square().sum() < (plain - true).square().sum()
    assert float(found.trace()) == pytest.approx(float(plain.trace()))
