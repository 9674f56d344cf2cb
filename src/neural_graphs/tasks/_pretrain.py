"""Pre-training without labels: encoder and head learn a code from which a decoder draws the network's image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neural_graphs.tasks._changes import PRETRAIN, Changed, seed_of
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._loop import Learner, Loop
from neural_graphs.zoo._loader import Loader
from neural_graphs.zoo._store import ZooSplit


class Pretraining(Loop):
    """The error of the reconstructed image, of networks as the augmentation has changed them, but not mixed: between two
    networks lie images that are none of the zoo's kind (their variance is half as large again with alpha 0.2)."""

    phase = "pretrain"

    def __init__(
        self, learner: Learner, train: ZooSplit, val: ZooSplit | None, config: TrainConfig, *arguments: Any
    ) -> None:
        optimizer = replace(config.optimizer, epochs=config.pretrain.epochs, lr=config.pretrain.lr, ema=0.0)
        augment = replace(config.augment, mixup=0.0)
        own = replace(config, optimizer=optimizer, augment=augment, seed=seed_of(config.seed, PRETRAIN))
        super().__init__(learner, train, val, own, *arguments)

    @property
    def measures(self) -> int:
        return 2

    def losses(
        self, changed: Changed, labels: Tensor, logits: Tensor, images: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        assert self.decoder is not None and images is not None
        error = self.decoder.errors(images, changed.batch).sum()
        return error, [error, error.new_tensor(len(labels))]

    def validate(self) -> None:
        error, count = self.totals()
        found = self._error(self.val) if self.val is not None else None
        self.log(self.append({"phase": self.phase, "train_error": error / count, "val_error": found}))

    @torch.no_grad()
    def _error(self, loader: Loader) -> float:
        """Mean error of the networks of ``loader``, none of which is changed."""
        assert self.decoder is not None
        device = self.accelerator
        total = torch.zeros((), dtype=torch.float64, device=device.device)
        self.learner.eval()
        for sample in loader.epoch(0, 0, device.process_index, device.num_processes):
            if len(sample.positions):
                batch = sample.batch.to(device.device)
                images = self.learner(batch)[1]
                assert images is not None
                total += self.decoder.errors(images, batch).double().sum()
            self.stop.check()
        return float(device.reduce(total, "sum")) / len(loader.labels)

    def describe(self) -> str:
        course, epochs = self.course, self.config.optimizer.epochs
        text = f"pre-training, epoch {min(course.epoch + 1, epochs)}/{epochs}"
        return text + (f" error {course.history[-1]['train_error']:.3f}" if course.history else "")
