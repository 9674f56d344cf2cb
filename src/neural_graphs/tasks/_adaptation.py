"""The training of adapters: editors of classifiers for corrupted images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.tasks._adapt_images import ReadImages, adapt_images
from neural_graphs.tasks._adapt_report import measure
from neural_graphs.tasks._adapter import Adapter, losses
from neural_graphs.tasks._changes import IMAGES, STYLE, Changed
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._loop import Learner
from neural_graphs.tasks._supervised import Supervised
from neural_graphs.zoo._loader import Loader
from neural_graphs.zoo._store import ZooSplit

IMAGES_PER_STEP = 64
"""All networks of a step see the same images, so that they run as one grouped convolution."""


class Adaptation(Supervised):
    """Cross-entropy of the edited networks on corrupted training images, drawn anew in every step; of several corruptions a
    step has one. The best model is that of the largest accuracy of edited validation networks, on held-out images."""

    phase = "adapt"
    score, shown, figure = "accuracy", ".1%", "accuracy"

    def __init__(
        self, learner: Learner, train: ZooSplit, val: ZooSplit | None, config: TrainConfig, *arguments: Any
    ) -> None:
        adapter = learner.core
        assert isinstance(adapter, Adapter)
        found = adapt_images(train.zoo)
        self.adapter, self.images, self.held_out = adapter, found.train, found.held_out
        super().__init__(learner, train, val, config, *arguments)

    def conditions(self, labels: Tensor) -> tuple[Any, ...]:
        step = (self.course.step, self.accelerator.process_index)
        style, images, answers = draw(self.images, self.adapter.edits, self.config.seed, *step)
        self.answers = answers.to(labels.device)
        several = len(self.adapter.edits) > 1
        styles = torch.full((len(labels),), style, device=labels.device) if several else None
        return images.to(labels.device), styles

    def loss(self, changed: Changed, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, accuracy = losses(logits, self.answers)
        return loss.sum(), loss.sum(), accuracy.sum()

    def validated(self, loader: Loader) -> dict[str, float]:
        device = self.accelerator
        sums = torch.zeros(2, dtype=torch.float64)
        wanted = [(edit, edit) for edit in self.adapter.edits]
        corrupted = {edit: self.held_out.corrupted(edit) for edit in self.adapter.edits}
        for sample in loader.epoch(0, 0, device.process_index, device.num_processes):
            if len(sample.positions):
                sums += measure(self.adapter, sample.batch, wanted, corrupted, self.held_out.labels).mean(1).sum(0)
            self.stop.check()
        loss, accuracy = (device.reduce(sums.to(device.device), "sum").cpu() / len(loader.labels)).tolist()
        return {"loss": loss, "accuracy": accuracy}


def draw(
    images: ReadImages, corruptions: tuple[str, ...], seed: int, step: int, process: int = 0
) -> tuple[int, Tensor, Tensor]:
    """What the networks of a step are trained on: number of the corruption, images ``[K, c, h, w]``, answers ``[K]``."""
    style = int(np.random.default_rng([seed, STYLE, step]).integers(len(corruptions)))  # one for all processes
    rng = np.random.default_rng([seed, IMAGES, step, process])
    rows = rng.choice(len(images), min(IMAGES_PER_STEP, len(images)), replace=False)
    return style, images.corrupted(corruptions[style], rows), images.labels[rows]
