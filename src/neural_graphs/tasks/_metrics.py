"""Figures of a classifier from its logits on a whole split, so that they do not depend on how it was batched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """``loss`` is the mean cross-entropy in nats; ``confusion[t][p]`` counts networks of class t taken for class p."""

    n: int
    loss: float
    accuracy: float
    confusion: list[list[int]]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """From logits ``[n, C]`` and labels ``[n]`` (int64), n at least 1."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
    return Scores(
        n=len(labels),
        loss=float(F.cross_entropy(logits.double(), labels)),
        accuracy=float((predicted == labels).double().mean()),
        confusion=confusion.tolist(),
    )
