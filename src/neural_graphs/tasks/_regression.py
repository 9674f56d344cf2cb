"""The training of regressors."""

from __future__ import annotations

from torch import Tensor

from neural_graphs.tasks import _ranking
from neural_graphs.tasks._changes import Changed
from neural_graphs.tasks._losses import LOSSES, pinball
from neural_graphs.tasks._regressor import Regressor
from neural_graphs.tasks._supervised import Labelled

PINBALL = 0.1
"""Weight of the quantiles' loss. It changes nothing but the map that they are read with; small, so that it hardly counts
in the norm at which gradients are clipped."""


class Regression(Labelled):
    """``config.loss`` on the number, the pinball loss on its quantiles; the best model is that of the largest Kendall tau.

    Numbers of mixed networks are mixed.
    """

    phase = "regress"
    score, shown, figure = "kendall_tau", ".3f", "mae"

    def loss(self, changed: Changed, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        targets = changed.mixed(labels)
        unit = self.regressor.unit(targets)
        loss = LOSSES[self.config.loss](logits[:, 0], unit) * len(labels)
        quantiles = pinball(logits[:, 1:], unit) * len(labels)
        error = (self.regressor.values(logits[:, 0].detach()) - targets).abs().sum()
        return loss + PINBALL * quantiles, loss, error

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        logit = logits[:, 0].double()
        unit = self.regressor.unit(labels.double())
        values = self.regressor.values(logit.to(self.regressor.scale.device)).cpu()
        return {
            "loss": float(LOSSES[self.config.loss](logit, unit)),
            **_ranking.scores(labels, values),
            "kendall_tau": _ranking.kendall_tau(labels, logit),  # in which no two numbers are rounded to one
        }

    def finish(self) -> None:
        super().finish()
        self.core.calibrate(self.train.split, self.val.split if self.val is not None else None, self.config.seed)
        if self.folder is not None and self.accelerator.is_main_process:
            steps = [row for row in self.course.history if row["step"] == self.course.best_step]
            self.folder.save_best(self.core, (steps or self.course.history)[-1])

    @property
    def regressor(self) -> Regressor:
        assert isinstance(self.core, Regressor)
        return self.core
