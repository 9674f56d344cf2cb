"""The training of editors of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.tasks._changes import STYLE, Changed
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.tasks._edit_report import MOST_DB
from neural_graphs.tasks._editor import Editor
from neural_graphs.tasks._loop import Learner
from neural_graphs.tasks._supervised import Supervised
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo._image_metrics import psnr
from neural_graphs.zoo._loader import Loader
from neural_graphs.zoo._store import ZooSplit


class Editing(Supervised):
    """Mean squared error of the edited networks' renderings against the edited images; the best model is that of the
    smallest. Of several edits every network of a step learns one, drawn anew."""

    phase = "edit"
    score, shown, figure, better = "mse", ".4f", "psnr", -1

    def __init__(
        self, learner: Learner, train: ZooSplit, val: ZooSplit | None, config: TrainConfig, *arguments: Any
    ) -> None:
        editor = learner.core
        assert isinstance(editor, Editor)
        check_augment(config)
        self.editor = editor
        self.wanted = edit_targets(train, editor.edits, config.targets)
        self.wanted_val = edit_targets(val, editor.edits, config.targets) if val is not None else None
        super().__init__(learner, train, val, config, *arguments)

    def conditions(self, labels: Tensor) -> tuple[Tensor | None]:
        styles = len(self.editor.edits)
        if styles == 1:
            self.style: Tensor | None = None
        else:
            rng = np.random.default_rng([self.config.seed, STYLE, self.course.step, self.accelerator.process_index])
            self.style = torch.from_numpy(rng.integers(styles, size=len(labels))).to(labels.device)
        return (self.style,)

    def loss(self, changed: Changed, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        style = self.style.cpu() if self.style is not None else 0
        error = (logits - self.wanted[style, labels.cpu()].to(logits.device)).square().flatten(1).mean(1)
        shown = error.detach()
        return error.sum(), shown.sum(), (-10 * shown.clamp_min(10 ** (-MOST_DB / 10)).log10()).sum()

    def validated(self, loader: Loader) -> dict[str, float]:
        device, editor = self.accelerator, self.editor
        assert self.wanted_val is not None
        sums = torch.zeros(2, len(editor.edits), dtype=torch.float64)
        for sample in loader.epoch(0, 0, device.process_index, device.num_processes):
            for style, edit in enumerate(editor.edits if len(sample.positions) else ()):
                images = editor.render(sample.batch, edit)
                wanted = self.wanted_val[style, sample.positions]
                sums[0, style] += (images - wanted).double().square().flatten(1).mean(1).sum()
                noise = psnr(images.numpy(), wanted.numpy())
                sums[1, style] += float(np.minimum(noise, MOST_DB).sum())
            self.stop.check()
        mse, decibels = (device.reduce(sums.to(device.device), "sum").cpu() / len(loader.labels)).tolist()
        found = {"loss": float(np.mean(mse)), "mse": float(np.mean(mse)), "psnr": float(np.mean(decibels))}
        if len(editor.edits) > 1:
            found |= {f"mse_{edit}": value for edit, value in zip(editor.edits, mse, strict=True)}
        return found


def check_augment(config: TrainConfig) -> None:
    """Raise ``UserError`` for changes of the networks after which their images are no longer those of the targets."""
    changing = ("translation", "rotation", "scaling", "noise", "dropout", "mixup")
    if found := [name for name in changing if getattr(config.augment, name)]:
        raise UserError(
            f"augment.{found[0]} changes what a network draws, and the targets of an edit stay: set augment.{found[0]}=0 "
            "(augment.symmetry is fine)"
        )
