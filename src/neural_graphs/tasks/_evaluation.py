"""What is said of a model on a split of a zoo: figures of the whole, by architecture, and of every network."""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_graphs.errors import UserError
from neural_graphs.tasks import _ranking
from neural_graphs.tasks._adapt_report import adapt_report
from neural_graphs.tasks._adapter import Adapter
from neural_graphs.tasks._classifier import Classifier
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._data import architecture_names, by_architecture
from neural_graphs.tasks._edit_report import edit_report
from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._metrics import score
from neural_graphs.tasks._model import Model
from neural_graphs.tasks._regressor import Regressor
from neural_graphs.zoo._store import ZooSplit

HEADLINE = {"classify": "accuracy", "regress": "kendall_tau", "edit": "mse", "adapt": "accuracy"}
"""The figure by which a model is chosen and compared."""


def report(model: Model, split: ZooSplit, config: TrainConfig, refit: bool = False) -> dict[str, Any]:
    """All there is to say of ``model`` on ``split``.

    Of a classifier ``accuracy``, ``loss`` (cross-entropy), ``confusion`` and ``per_architecture``. Of a regressor
    ``kendall_tau``, ``r2``, ``mae``, ``rmse``, ``interval_coverage``, ``interval_width``, ``calibration``,
    ``per_architecture``, and lists with an entry per network: ``network``, ``true``, ``predicted``, ``lower``, ``upper``,
    ``novelty`` and ``architectures``. Of an editor what ``edit_report`` says, with ``refit`` also of the reference that fits
    every network anew; of an adapter what ``adapt_report`` says.

    Raises:
        UserError: labels beyond a classifier's classes or a regressor's bounds; networks that the model cannot read.
    """
    if isinstance(model, Classifier):
        return _of_classifier(model, split, config.label)
    if isinstance(model, Adapter):
        return adapt_report(model, split)
    if isinstance(model, Editor):
        return edit_report(model, split, config.targets, refit=refit)
    assert isinstance(model, Regressor)
    return _of_regressor(model, split, config.label)


def _of_classifier(model: Classifier, split: ZooSplit, label: str) -> dict[str, Any]:
    labels = split.labels(label)
    if int(labels.max()) >= model.num_classes:
        raise UserError(
            f"{split.zoo.path} has labels up to {int(labels.max())}, this model knows classes 0..{model.num_classes - 1}"
        )
    logits = model.logits(split)
    found = score(logits, labels)
    right = (logits.argmax(1) == labels).numpy()
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "confusion": found.confusion,
        "per_architecture": by_architecture(
            split, lambda mask: {"accuracy": float(right[mask].mean())}, model.architectures
        ),
    }


def _of_regressor(model: Regressor, split: ZooSplit, label: str) -> dict[str, Any]:
    true = split.targets(label, model.bounds).numpy()
    value, lower, upper, novelty = (part.numpy() for part in model.assess(split))

    def figures(mask: np.ndarray) -> dict[str, Any]:
        return _ranking.scores(true[mask], value[mask])

    return {
        **figures(np.ones(len(true), bool)),
        **_ranking.coverage(true, lower, upper),
        "calibration": _ranking.calibration(true, value),
        "per_architecture": by_architecture(split, figures, model.architectures),
        "network": split.column("network").tolist(),
        "true": true.tolist(),
        "predicted": value.tolist(),
        "lower": lower.tolist(),
        "upper": upper.tolist(),
        "novelty": novelty.tolist(),
        "architectures": architecture_names(split).tolist(),
    }


def summary(found: dict[str, Any], prefix: str) -> dict[str, float]:
    """The plain figures of a ``report``, each with ``prefix``."""
    return {f"{prefix}{key}": value for key, value in found.items() if isinstance(value, float)}
