"""The random changes of a training batch, as functions of (seed, step)."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.graph import GraphBatch
from neural_graphs.tasks._config import AugmentConfig
from neural_graphs.zoo._augment import augment
from neural_graphs.zoo._mixup import mixup
from neural_graphs.zoo._symmetry import symmetric

AUGMENT, DROPOUT, SYMMETRY, MIXUP, PRETRAIN, DECODER, STYLE, IMAGES = range(1, 9)  # streams of random numbers


class Changed(NamedTuple):
    """A batch and what it was made of: network b is to ``share[b]`` the original's network b, and to the rest its network
    ``partner[b]``; None where nothing was mixed."""

    batch: GraphBatch
    partner: Tensor | None = None
    share: Tensor | None = None

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy ``[B]`` with the original batch's ``labels``, mixed like the networks."""
        own = F.cross_entropy(logits, labels, reduction="none")
        if self.partner is None or self.share is None:
            return own
        other = F.cross_entropy(logits, labels[self.partner.to(labels.device)], reduction="none")
        share = self.share.to(own.device, own.dtype)
        return share * own + (1 - share) * other

    def mixed(self, numbers: Tensor) -> Tensor:
        """The original batch's ``numbers`` ``[B]``, mixed like the networks."""
        if self.partner is None or self.share is None:
            return numbers
        share = self.share.to(numbers.device, numbers.dtype)
        return share * numbers + (1 - share) * numbers[self.partner.to(numbers.device)]

    def main_labels(self, labels: Tensor) -> Tensor:
        """The label of the larger part of every network."""
        if self.partner is None or self.share is None:
            return labels
        return torch.where(self.share.to(labels.device) >= 0.5, labels, labels[self.partner.to(labels.device)])


class Changes:
    """What ``AugmentConfig`` asks for. Every kind of change has random numbers of its own, so that switching one on leaves
    the draws of the others as they were."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        own = ("symmetry", "mixup")
        self.strengths = {name: value for name, value in asdict(config).items() if name not in own}
        self.augments = any(value for name, value in self.strengths.items() if name != "exact_translation")
        self.generator = torch.Generator()

    def __call__(self, batch: GraphBatch, step: int, process: int = 0) -> Changed:
        """The changed copies of ``batch`` at ``step`` on this process."""
        if self.augments:
            batch = augment(batch, self._seeded(AUGMENT, step, process), **self.strengths)
        changed = Changed(batch)
        if self.config.mixup:
            rng = np.random.default_rng([self.seed, MIXUP, step, process])
            changed = Changed(*mixup(batch, rng, self.config.mixup))
        if self.config.symmetry:
            changed = changed._replace(batch=symmetric(changed.batch, self._seeded(SYMMETRY, step, process)))
        return changed

    def _seeded(self, *entropy: int) -> torch.Generator:
        return self.generator.manual_seed(seed_of(self.seed, *entropy))


def seed_of(*entropy: int) -> int:
    """A seed that follows from several numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
