"""The training of classifiers."""

from __future__ import annotations

from torch import Tensor

from neural_graphs.tasks._changes import Changed
from neural_graphs.tasks._metrics import score
from neural_graphs.tasks._supervised import Labelled


class Classification(Labelled):
    """Cross-entropy; the best model is that of the largest accuracy."""

    phase = "classify"
    score, shown, figure = "accuracy", ".1%", "accuracy"

    def loss(self, changed: Changed, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = changed.losses(logits, labels).sum()
        return loss, loss, (logits.detach().argmax(1) == changed.main_labels(labels)).sum()

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        found = score(logits, labels)
        return {"loss": found.loss, "accuracy": found.accuracy}
