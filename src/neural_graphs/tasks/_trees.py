"""Gradient-boosted trees on weight statistics: the baseline that looks at no structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neural_graphs.errors import UserError
from neural_graphs.nn._statnn import depth, statistics
from neural_graphs.tasks._ranking import kendall_tau

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

    from neural_graphs.zoo._store import ZooSplit

SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"learning_rate": rate, "max_leaf_nodes": leaves} for rate in (0.05, 0.1) for leaves in (8, 31)
)
MAX_ITERATIONS, EVERY = 400, 20
CHUNK = 1024  # networks whose weights are held at once


class BoostedTrees:
    """A number per network from seven statistics of each of its tensors, as in Unterthiner et al. (2020).

    scikit-learn's ``HistGradientBoostingRegressor`` on squared error; every split looks at half of the statistics, drawn by
    ``seed``. Networks may be of different architectures.

    Args:
        target: the column of the zoo to predict.
        bounds: of its values; predictions are cut off there.
        seed: of the drawing.
        settings: arguments of the regressor to choose from.
    """

    def __init__(
        self,
        target: str = "test_accuracy",
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        settings: Sequence[dict[str, Any]] = SETTINGS,
    ) -> None:
        self.target, self.bounds, self.seed, self.settings = target, bounds, seed, tuple(settings)
        self.chosen: dict[str, Any] = {}
        """The setting and number of iterations that were best on validation."""
        self._slots = 0
        self._model: HistGradientBoostingRegressor | None = None

    def fit(self, train: ZooSplit, val: ZooSplit) -> BoostedTrees:
        """Fit on ``train``; setting and number of iterations are those of the largest Kendall's tau on ``val``.

        Raises:
            UserError: a split is empty, or its target is missing, NaN or out of bounds.
        """
        for split in (train, val):
            if not len(split):
                raise UserError(f"boosted trees: there are no networks in {split}")
        self._slots = _depth(train.zoo.all)
        x, y = self._table(train), self._targets(train)
        x_val, y_val = self._table(val), self._targets(val)
        best = -np.inf
        for setting in self.settings:
            model = self._regressor(setting, MAX_ITERATIONS).fit(x, y)
            for iteration, predicted in enumerate(model.staged_predict(x_val), start=1):
                if iteration % EVERY == 0 and (tau := kendall_tau(predicted, y_val)) > best:
                    best, self.chosen = tau, {**setting, "max_iter": iteration}
        # The same trees again, as far as they are wanted.
        self._model = self._regressor(self.chosen, self.chosen["max_iter"]).fit(x, y)
        return self

    def predict(self, split: ZooSplit) -> np.ndarray:
        """Predicted targets, float64 ``[len(split)]``.

        Raises:
            UserError: ``fit`` has not been called, or a network has more layers than all of those it was fitted on.
        """
        if self._model is None:
            raise UserError("boosted trees: call fit before predict")
        if not len(split):
            return np.zeros(0)
        return np.clip(self._model.predict(self._table(split)), *self.bounds)

    def score(self, split: ZooSplit) -> float:
        """Kendall's tau between predictions and targets."""
        return kendall_tau(self.predict(split), self._targets(split))

    def _regressor(self, setting: dict[str, Any], iterations: int) -> HistGradientBoostingRegressor:
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(
            **{**setting, "max_iter": iterations},
            max_features=0.5,
            early_stopping=False,
            random_state=self.seed,
        )

    def _targets(self, split: ZooSplit) -> np.ndarray:
        return split.targets(self.target, self.bounds).double().numpy()

    def _table(self, split: ZooSplit) -> np.ndarray:
        """Statistics, float64 ``[len(split), 14 * slots]``."""
        parts = [
            statistics(split.batch(slice(first, first + CHUNK)), self._slots) for first in range(0, len(split), CHUNK)
        ]
        return torch.cat(parts).double().numpy()


def _depth(split: ZooSplit) -> int:
    """The number of layers of the deepest network."""
    first = np.unique(split.column("architecture").astype(str), return_index=True)[1]
    return max(depth(graph.spec) for graph in split.batch(first).buckets)
