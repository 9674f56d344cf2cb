"""The random changes of a training batch, as functions of (seed, step)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from neural_graphs.graph import GraphBatch
from neural_graphs.tasks._config import AugmentConfig
from neural_graphs.zoo._augment import augment
from neural_graphs.zoo._symmetry import symmetric

AUGMENT, DROPOUT, SYMMETRY, MIXUP = 1, 2, 3, 4  # streams of random numbers


class Changes:
    """What ``AugmentConfig`` asks for. Every kind of change has random numbers of its own, so that switching one on leaves
    the draws of the others as they were."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        own = ("symmetry",)
        self.strengths = {name: value for name, value in asdict(config).items() if name not in own}
        self.augments = any(value for name, value in self.strengths.items() if name != "exact_translation")
        self.generator = torch.Generator()

    def __call__(self, batch: GraphBatch, step: int, process: int = 0) -> GraphBatch:
        """The changed copies of ``batch`` at ``step`` on this process."""
        if self.augments:
            batch = augment(batch, self._seeded(AUGMENT, step, process), **self.strengths)
        if self.config.symmetry:
            batch = symmetric(batch, self._seeded(SYMMETRY, step, process))
        return batch

    def _seeded(self, *entropy: int) -> torch.Generator:
        return self.generator.manual_seed(seed_of(self.seed, *entropy))


def seed_of(*entropy: int) -> int:
    """A seed that follows from several numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
