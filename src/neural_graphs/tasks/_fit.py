"""Fitting a classifier: pre-training, if asked for, and then classification."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_graphs.tasks._average import Average
from neural_graphs.tasks._changes import Changed
from neural_graphs.tasks._decoder import create_decoder
from neural_graphs.tasks._loop import Course, Learner, Loop, part
from neural_graphs.tasks._metrics import score
from neural_graphs.tasks._pretrain import Pretraining
from neural_graphs.tasks._runtime import accelerator, threads
from neural_graphs.zoo._loader import Loader

if TYPE_CHECKING:
    from neural_graphs.tasks._classifier import Classifier
    from neural_graphs.tasks._config import TrainConfig
    from neural_graphs.tasks._run import RunFolder
    from neural_graphs.zoo._store import ZooSplit


def fit(
    model: Classifier,
    train: ZooSplit,
    val: ZooSplit | None,
    config: TrainConfig,
    *,
    run: RunFolder | None = None,
    quiet: bool = False,
) -> Course:
    """Train ``model`` in place and leave it with the weights that were best on ``val`` (without ``val``, the last).

    With ``config.optimizer.ema`` it is the averaged weights that are validated, compared and kept. With ``config.pretrain``
    its encoder learns to reconstruct images first.

    With ``run``, the best model, the state and the log go to its folder, and a state found there is continued: on the CPU
    bit for bit, also after being killed. Ctrl-C saves the state and raises ``KeyboardInterrupt`` with what to do next.

    Raises:
        UserError: unusable labels or networks.
        RunError: the loss became NaN or infinite; the disk is full.
    """
    with threads(config.threads), _own_random_numbers(config), accelerator(config.device) as device:
        found = run.load_state() if run is not None else None
        pretrains = config.pretrain.epochs > 0 and (found is None or found[1].get("phase") == Pretraining.phase)
        learner = Learner(model, create_decoder(model, train, config) if pretrains or config.reconstruction else None)
        before = Course()
        if pretrains:
            pretraining = Pretraining(learner, train, val, config, run, device, found)
            pretraining.run_all(quiet)
            before, found = pretraining.course, None
            device.free_memory()
        if not config.reconstruction:
            learner.decoder = None
        loop = Classification(learner, train, val, config, run, device, found)
        if found is None:
            loop.course.earlier, loop.course.seconds = before.history, before.seconds
        loop.run_all(quiet)
        loop.finish()
    return loop.course


class Classification(Loop):
    """Cross-entropy, and ``config.reconstruction`` times the error of the reconstructed image."""

    phase = "classify"

    def __init__(self, learner: Learner, *arguments: Any) -> None:
        self.best: dict[str, Tensor] | None = None
        self.average: Average | None = None
        super().__init__(learner, *arguments)
        if self.average is None:
            self.average = self._new_average()

    def _new_average(self) -> Average | None:
        return Average(self.core, self.config.optimizer.ema) if self.config.optimizer.ema else None

    @property
    def measures(self) -> int:
        return 4 if self.config.reconstruction else 3

    def losses(
        self, changed: Changed, labels: Tensor, logits: Tensor, images: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        loss = changed.losses(logits, labels).sum()
        hits = (logits.detach().argmax(1) == changed.main_labels(labels)).sum()
        figures = [loss, hits, hits.new_tensor(len(labels))]
        if images is None or self.decoder is None:
            return loss, figures
        error = self.decoder.errors(images, changed.batch).sum()
        return loss + self.config.reconstruction * error, [*figures, error]

    def stepped(self) -> None:
        if self.average is not None:
            self.average.update(self.core, self.course.step)

    def validate(self) -> None:
        loss, hits, count, *errors = self.totals()
        with self.average.within(self.core) if self.average is not None else contextlib.nullcontext():
            scores = self._score(self.val) if self.val is not None else None
            row = self.append(
                {
                    "train_loss": loss / count,
                    "train_accuracy": hits / count,
                    **({"train_error": errors[0] / count} if errors else {}),
                    "val_loss": scores[1] if scores else None,
                    "val_accuracy": scores[0] if scores else None,
                }
            )
            if scores:
                self._keep_if_best((scores[0], -scores[1]), row)
            elif self.folder is not None and self.accelerator.is_main_process:
                self.folder.save_best(self.core, row)
        self.log(row)

    def finish(self) -> None:
        """Leave the classifier with the weights that are kept."""
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

    def _score(self, loader: Loader) -> tuple[float, float]:
        """Accuracy and loss."""
        device = self.accelerator
        logits = torch.zeros(len(loader.labels), self.core.num_classes)
        for sample in loader.epoch(0, 0, device.process_index, device.num_processes):
            if len(sample.positions):
                logits[sample.positions] = self.core.logits(sample.batch)
            self.stop.check()
        if device.num_processes > 1:
            logits = device.reduce(logits.to(device.device), "sum").cpu()
        scores = score(logits, loader.labels)
        return scores.accuracy, scores.loss

    def describe(self) -> str:
        course = self.course
        text = f"epoch {min(course.epoch + 1, self.config.optimizer.epochs)}/{self.config.optimizer.epochs}"
        if course.history:
            row = course.history[-1]
            text += f" loss {row['train_loss']:.3f}"
            if row["val_accuracy"] is not None:
                text += f" val {row['val_accuracy']:.1%}"
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


def _own_random_numbers(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Training seeds torch's global generators at every step; the caller finds them as they were."""
    devices = range(torch.cuda.device_count()) if config.device == "auto" and torch.cuda.is_available() else ()
    return torch.random.fork_rng(devices=devices)
