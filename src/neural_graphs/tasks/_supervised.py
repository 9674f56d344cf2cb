"""Training by the labels of a zoo: what classification and regression share."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from neural_graphs.tasks._average import Average
from neural_graphs.tasks._changes import Changed
from neural_graphs.tasks._loop import Learner, Loop, part
from neural_graphs.tasks._model import GraphModel
from neural_graphs.zoo._loader import Loader


class Supervised(Loop):
    """The loss on the labels, and ``config.reconstruction`` times the error of the reconstructed image.

    The weights, or their moving average, that score best on validation are kept.
    """

    score: ClassVar[str]
    """The column of the history, behind ``val_``, by which the best model is chosen."""

    better: ClassVar[int] = 1
    """1: the larger, the better; -1: the smaller."""

    shown: ClassVar[str]
    """How it is printed."""

    def __init__(self, learner: Learner, *arguments: Any) -> None:
        self.best: dict[str, Tensor] | None = None
        self.average: Average | None = None
        super().__init__(learner, *arguments)
        if self.average is None:
            self.average = self._new_average()

    def _new_average(self) -> Average | None:
        return Average(self.core, self.config.optimizer.ema) if self.config.optimizer.ema else None

    # -- what a task is -----------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, changed: Changed, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the batch's losses to be minimised; the sum to be shown; the sum of ``figure``."""

    figure: ClassVar[str]
    """What is shown of the training networks beside the loss."""

    @abstractmethod
    def validated(self, loader: Loader) -> dict[str, float]:
        """Figures of all networks of ``loader``, ``loss`` and ``score`` among them."""

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def measures(self) -> int:
        return 4 if self.config.reconstruction else 3

    def losses(
        self, changed: Changed, labels: Tensor, logits: Tensor, images: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        total, shown, figure = self.loss(changed, labels, logits)
        figures = [shown, figure, figure.new_tensor(len(labels))]
        if images is None or self.decoder is None:
            return total, figures
        error = self.decoder.errors(images, changed.batch).sum()
        return total + self.config.reconstruction * error, [*figures, error]

    def stepped(self) -> None:
        if self.average is not None:
            self.average.update(self.core, self.course.step)

    def validate(self) -> None:
        loss, figure, count, *errors = self.totals()
        with self.average.within(self.core) if self.average is not None else contextlib.nullcontext():
            found = self.validated(self.val) if self.val is not None else None
            row = self.append(
                {
                    "train_loss": loss / count,
                    f"train_{self.figure}": figure / count,
                    **({"train_error": errors[0] / count} if errors else {}),
                    **({f"val_{key}": value for key, value in found.items()} if found else self._no_scores()),
                }
            )
            if found:
                self._keep_if_best((self.better * found[self.score], -found["loss"]), row)
            elif self.folder is not None and self.accelerator.is_main_process:
                self.folder.save_best(self.core, row)
        self.log(row)

    def _no_scores(self) -> dict[str, None]:
        return {"val_loss": None, f"val_{self.score}": None}

    def finish(self) -> None:
        """Leave the model with the weights that are kept."""
        if self.best is not None:
            self.core.load_state_dict(self.best)
        elif self.average is not None:
            self.average.write(self.core)
        self.core.eval()

    def _keep_if_best(self, found: tuple[float, float], row: dict[str, Any]) -> None:
        course = self.course
        if course.best is not None and found <= tuple(course.best):
            course.stale += 1
            course.stopped = 0 < self.config.patience <= course.stale
            return
        course.best, course.best_epoch, course.best_step, course.stale = found, row["epoch"], row["step"], 0
        self.best = {name: value.detach().cpu().clone() for name, value in self.core.state_dict().items()}
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.save_best(self.core, row)

    def describe(self) -> str:
        course = self.course
        text = f"epoch {min(course.epoch + 1, self.config.optimizer.epochs)}/{self.config.optimizer.epochs}"
        if course.history:
            row = course.history[-1]
            text += f" loss {row['train_loss']:.3f}"
            if row[f"val_{self.score}"] is not None:
                text += f" val {row[f'val_{self.score}']:{self.shown}}"
        return text

    def kept(self) -> str:
        return f"; the best model so far is in {self.folder.path / 'model'}" if self.folder and self.best else ""

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for name, value in (self.best or {}).items():
            tensors[f"best.{name}"] = value
        for name, value in (self.average.values if self.average is not None else {}).items():
            tensors[f"ema.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.best = part(tensors, "best.") or None
        if self.best is not None and self.folder is not None and self.accelerator.is_main_process:
            # A run killed between its two writes left a best model that is later than this state.
            self.core.load_state_dict(self.best)
            row = next(row for row in self.course.history if row["step"] == self.course.best_step)
            self.folder.save_best(self.core, row)
        self.average = self._new_average()
        if self.average is not None:
            self.average.load(part(tensors, "ema."))
        self.course.stopped = 0 < self.config.patience <= self.course.stale


class Labelled(Supervised):
    """By a class or a number of every network."""

    @abstractmethod
    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures of a whole split, ``loss`` and ``score`` among them."""

    def validated(self, loader: Loader) -> dict[str, float]:
        return self.scores(self._logits(loader), loader.labels)

    def _logits(self, loader: Loader) -> Tensor:
        """``[n, targets]`` of all networks of ``loader``, in the split's order."""
        device = self.accelerator
        assert isinstance(self.core, GraphModel)
        logits = torch.zeros(len(loader.labels), self.core.targets)
        for sample in loader.epoch(0, 0, device.process_index, device.num_processes):
            if len(sample.positions):
                logits[sample.positions] = self.core.logits(sample.batch)
            self.stop.check()
        if device.num_processes > 1:
            logits = device.reduce(logits.to(device.device), "sum").cpu()
        return logits
