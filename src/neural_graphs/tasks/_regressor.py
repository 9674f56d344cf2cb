"""A regressor of networks: predicts a bounded number, such as the test accuracy, from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, GraphBatch
from neural_graphs.nn import Encoder
from neural_graphs.tasks._losses import LOSSES, QUANTILES, fit_scale
from neural_graphs.tasks._model import GraphModel
from neural_graphs.tasks._novelty import Novelty
from neural_graphs.tasks._ranking import conformal_correction, kendall_tau

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit

COVERAGE = QUANTILES[1] - QUANTILES[0]
MEASURED = 4096
"""So many training networks at most say which codes are usual."""


class Assessment(NamedTuple):
    """What a regressor says of B networks, each ``[B]``: ``value``, the ends of its interval, and ``novelty``."""

    value: Tensor
    lower: Tensor
    upper: Tensor
    novelty: Tensor


class Regressor(GraphModel):
    """Networks in, a number between two bounds out, with an interval and how new the network is to the model.

    ``forward`` gives ``[B, 3]``: the logits of the number and of its 5 % and 95 % quantiles, all mapped to the bounds by a
    sigmoid. The quantiles are read off the last hidden layer without changing it.

    Args:
        encoder: from ``create_encoder``.
        outputs: number of output neurons of the networks it reads.
        bounds: the smallest and the largest number there may be.
        loss: "mse", "bce" or "ranking", see ``TrainConfig``.
        head: further arguments of ``GraphHead``, JSON-able.
        architectures: those it was trained on (``fit`` sets them); they tell which network a bare state dict is.
        target: the column of a zoo's table that holds the number.
    """

    task = "regress"
    noun = "regressor"
    bounds: tuple[float, float]

    def __init__(
        self,
        encoder: Encoder,
        outputs: int = 10,
        *,
        bounds: Sequence[float] = (0.0, 1.0),
        loss: str = "mse",
        head: Mapping[str, Any] | None = None,
        architectures: Sequence[Architecture] = (),
        target: str = "test_accuracy",
    ) -> None:
        if loss not in LOSSES:
            raise UserError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}")
        if len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise UserError(f"bounds are {list(bounds)}: give two numbers, the smaller one first")
        super().__init__(encoder, outputs, 3, architectures, head)
        self.bounds, self.loss, self.target = (float(bounds[0]), float(bounds[1])), loss, target
        last = self.head.mlp[-1]
        assert isinstance(last, torch.nn.Linear)
        self.familiar = Novelty(last.in_features)
        self.scale: Tensor  # of the logit, and what is added: a loss on order alone does not say how large numbers are
        self.shift: Tensor
        self.correction: Tensor
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("correction", torch.zeros(()))

    def read(self, code: Tensor, *conditions: Any) -> Tensor:
        last = self.head.mlp[-1]
        assert isinstance(last, torch.nn.Linear)
        value = torch.nn.functional.linear(code, last.weight[:1], last.bias[:1])
        quantiles = torch.nn.functional.linear(code.detach(), last.weight[1:], last.bias[1:])
        return torch.cat([value, quantiles], 1)

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: ZooSplit,
        val: ZooSplit | None = None,
        *,
        augment: Mapping[str, Any] | None = None,
        quiet: bool = False,
        **options: Any,
    ) -> Regressor:
        """Train in memory and keep the weights of the largest Kendall tau on ``val`` (without it, the last).

        ``options`` and ``augment`` as in ``Classifier.fit``. Intervals and ``novelty`` are calibrated on ``val``.

        Raises:
            UserError: an unknown option; a target that is missing or out of bounds; networks that cannot be read.
        """
        self._fit(train, val, augment, quiet, options, label=self.target, loss=self.loss, bounds=list(self.bounds))
        return self

    @torch.no_grad()
    def calibrate(self, train: ZooSplit, val: ZooSplit | None, seed: int) -> None:
        """Measure which codes are usual; on ``val`` correct the intervals (split conformal) and, after a loss on order
        alone, fit the numbers' scale."""
        from neural_graphs.tasks._data import subset

        own = self.evaluated(self.code, subset(train, MEASURED, seed))
        codes = self.evaluated(self.code, val) if val is not None else own
        self.familiar.measure(own, codes)
        self.correction.zero_()
        if val is None:
            return
        target = val.targets(self.target, self.bounds)
        raw = self.read(codes.to(self.scale.device)).cpu()
        if self.loss == "ranking":
            scale, shift = fit_scale(raw[:, 0], self.unit(target))
            self.scale.fill_(scale)
            self.shift.fill_(shift)
        _, lower, upper = self._interval(raw.to(self.scale.device)).cpu().unbind(1)
        correction = conformal_correction(torch.maximum(lower - target, target - upper), COVERAGE)
        self.correction.fill_(min(correction, self.bounds[1] - self.bounds[0]))

    # -- use ----------------------------------------------------------------------------------------------------------

    def predict(self, x: Any) -> Tensor:
        """The numbers ``[B]`` (float32, CPU); ``x`` as in ``logits``."""
        return self._interval_of(x)[:, 0]

    def predict_interval(self, x: Any) -> Tensor:
        """Lower and upper ends ``[B, 2]``, between which the true number lies for nine of ten networks like those of the
        training zoo (conformalised quantile regression, Romano, Patterson & Candès 2019); they hold the prediction."""
        return self._interval_of(x)[:, 1:]

    def novelty(self, x: Any) -> Tensor:
        """How far networks are from those in training, ``[B]``: the distance of their codes (Mahalanobis, with a shrunk
        covariance), 1 for the distance within which 99 % of validation networks are. ``UserError`` before ``fit``."""
        return self.evaluated(lambda batch: self.familiar(self.code(batch)), x)

    def assess(self, x: Any) -> Assessment:
        """Prediction, interval and novelty in one pass; ``x`` as in ``logits``."""

        def everything(batch: GraphBatch) -> Tensor:
            code = self.code(batch)
            return torch.cat([self._interval(self.read(code)), self.familiar(code).unsqueeze(1)], 1)

        return Assessment(*self.evaluated(everything, x).unbind(1))

    def score(self, split: ZooSplit) -> float:
        """Kendall's tau between predictions and the target column of a split of a zoo."""
        return kendall_tau(split.targets(self.target, self.bounds), self.predict(split))

    def values(self, logits: Tensor) -> Tensor:
        """Numbers from the logits of ``forward``'s first column."""
        return self._bounded(logits * self.scale + self.shift)

    def unit(self, targets: Tensor) -> Tensor:
        """Numbers mapped from the bounds to 0..1."""
        return (targets - self.bounds[0]) / (self.bounds[1] - self.bounds[0])

    def _bounded(self, logits: Tensor) -> Tensor:
        return self.bounds[0] + (self.bounds[1] - self.bounds[0]) * logits.sigmoid()

    def _interval_of(self, x: Any) -> Tensor:
        return self.evaluated(lambda batch: self._interval(self(batch)), x)

    def _interval(self, raw: Tensor) -> Tensor:
        """Value, lower and upper end ``[B, 3]`` from ``forward``'s result."""
        value, ends = self.values(raw[:, 0]), self._bounded(raw[:, 1:])
        # The correction was measured on intervals that hold the value; a negative one must not move an end past it.
        lower = torch.minimum(torch.minimum(ends.amin(1), value) - self.correction, value)
        upper = torch.maximum(torch.maximum(ends.amax(1), value) + self.correction, value)
        return torch.stack([value, lower, upper], 1).clamp(*self.bounds)

    # -- files --------------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        return {"bounds": list(self.bounds), "loss": self.loss, "target": self.target}

    @classmethod
    def _build(cls, encoder: Encoder, config: Mapping[str, Any], **arguments: Any) -> Self:
        own = {key: config[key] for key in ("bounds", "loss", "target")}
        return cls(encoder, head=config.get("head"), **own, **arguments)
