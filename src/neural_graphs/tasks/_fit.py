"""The training loop: a pure function of the configuration and the data, so that it can stop and go on anywhere.

Nothing random is carried from step to step: the order of the networks follows from (seed, epoch), augmentation and dropout
from (seed, step). The whole state is weights, their average, optimizer and counters.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_graphs._progress import Progress, _Silent, progress
from neural_graphs.errors import RunError
from neural_graphs.tasks._average import Average
from neural_graphs.tasks._changes import DROPOUT, Changes, seed_of
from neural_graphs.tasks._classifier import EVAL_BATCH
from neural_graphs.tasks._metrics import score
from neural_graphs.tasks._runtime import Interrupted, accelerator, compiled, interruptible, precision, threads
from neural_graphs.zoo._loader import Loader, Sample

if TYPE_CHECKING:
    from neural_graphs.tasks._classifier import Classifier
    from neural_graphs.tasks._config import TrainConfig
    from neural_graphs.tasks._run import RunFolder
    from neural_graphs.zoo._store import ZooSplit


@dataclass
class Course:
    """Where training is. ``epoch`` and ``batch`` say which batch comes next; ``best`` is (accuracy, -loss) on validation."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluated: int = 0
    best: tuple[float, float] | None = None
    best_epoch: float = 0.0
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


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

    With ``config.optimizer.ema`` it is the averaged weights that are validated, compared and kept.

    With ``run``, the best model, the state and the log go to its folder, and a state found there is continued: on the CPU
    bit for bit, also after being killed. Ctrl-C saves the state and raises ``KeyboardInterrupt`` with what to do next.

    Raises:
        UserError: unusable labels or networks.
        RunError: the loss became NaN or infinite; the disk is full.
    """
    with threads(config.threads), _own_random_numbers(config), accelerator(config.device) as device:
        loop = _Loop(model, train, val, config, run, device)
        loop.run_all(quiet)
    return loop.course


class _Loop:
    def __init__(
        self,
        model: Classifier,
        train: ZooSplit,
        val: ZooSplit | None,
        config: TrainConfig,
        run: RunFolder | None,
        device: Any,
    ) -> None:
        self.config, self.folder, self.accelerator = config, run, device
        options = config.optimizer
        self.train = Loader(train, options.batch_size, label=config.label, seed=config.seed)
        self.val = Loader(val, EVAL_BATCH, label=config.label, shuffle=False) if val is not None else None
        self.total_steps = options.epochs * len(self.train)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.lr, weight_decay=options.weight_decay, amsgrad=options.amsgrad
        )
        self.core = model.to(device.device)
        self.model, self.optimizer = device.prepare(self.core, optimizer)
        if config.compile:
            self.model = compiled(self.model, device.device)
        self.average = Average(self.core, options.ema) if options.ema else None
        self.changes = Changes(config.augment, config.seed)
        self.course = Course()
        self.best: dict[str, Tensor] | None = None
        self.sums = torch.zeros(3, dtype=torch.float64, device=device.device)  # loss, hits, networks since validation
        if run is not None and (found := run.load_state()) is not None:
            self._restore(*found)

    # -- the course ---------------------------------------------------------------------------------------------------

    def run_all(self, quiet: bool) -> None:
        course, options = self.course, self.config.optimizer
        total = self.total_steps - course.step
        start, before = time.monotonic(), course.seconds
        bar_context = contextlib.nullcontext(_Silent()) if quiet else progress(self._description(), total)
        with interruptible() as stop, bar_context as bar, precision(self.core.encoder, self.config, self.accelerator):
            self.stop = stop
            try:
                self._clock = lambda: before + time.monotonic() - start
                self._validate_if_due(bar)
                while course.epoch < options.epochs and not course.stopped:
                    self._epoch(bar)
            except Interrupted:
                self._save_state()
                raise KeyboardInterrupt(self._farewell()) from None
        if self.best is not None:
            self.core.load_state_dict(self.best)
        elif self.average is not None:
            self.average.write(self.core)
        self.core.eval()

    def _epoch(self, bar: Progress) -> None:
        course, device = self.course, self.accelerator
        for sample in self.train.epoch(course.epoch, course.batch, device.process_index, device.num_processes):
            if sample.total >= device.num_processes:  # a last batch too small to share is left out
                self._step(sample)
            course.step += 1
            course.batch += 1
            if course.batch == len(self.train):
                course.epoch, course.batch = course.epoch + 1, 0
            bar.advance()
            self.stop.check()
            self._validate_if_due(bar)
            if course.stopped:
                return

    def _step(self, sample: Sample) -> None:
        course, device, options = self.course, self.accelerator, self.config.optimizer
        changed = self.changes(sample.batch, course.step, device.process_index)
        torch.manual_seed(seed_of(self.config.seed, DROPOUT, course.step, device.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._rate(course.step)
        labels = sample.labels.to(device.device)
        self.model.train()
        logits = self.model(changed.batch.to(device.device))
        losses = changed.losses(logits, labels).sum()
        # Gradients are averaged over processes: this makes that the mean over the whole batch, also of unequal shares.
        device.backward(losses * (device.num_processes / sample.total))
        if device.device.type == "cpu" and not math.isfinite(losses.item()):
            raise self._diverged()
        if options.clip:
            device.clip_grad_norm_(self.model.parameters(), options.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.core, course.step)
        self.optimizer.zero_grad()
        hits = (logits.detach().argmax(1) == changed.main_labels(labels)).sum()
        self.sums += torch.stack([losses.detach().double(), hits.double(), hits.new_tensor(len(labels)).double()])

    def _rate(self, step: int) -> float:
        """Learning rate at ``step`` relative to the full one."""
        warmup = self.config.optimizer.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self.config.optimizer.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.total_steps - warmup)))

    def _validate_if_due(self, bar: Progress) -> None:
        course, config = self.course, self.config
        at_end = course.epoch >= config.optimizer.epochs
        if config.eval_unit == "steps":
            due = course.step % config.eval_every == 0
        else:
            due = course.batch == 0 and course.epoch % config.eval_every == 0
        if course.step and course.evaluated != course.step and (due or at_end):
            with self.average.within(self.core) if self.average is not None else contextlib.nullcontext():
                self._validate()
            self._save_state()
            bar.describe(self._description())

    def _validate(self) -> None:
        course = self.course
        loss, hits, count = self.accelerator.reduce(self.sums, "sum").tolist()
        if not math.isfinite(loss):
            raise self._diverged()
        scores = self._score(self.val) if self.val is not None else None
        row = {
            "epoch": round(course.epoch + course.batch / len(self.train), 4),
            "step": course.step,
            "lr": self.config.optimizer.lr * self._rate(course.step - 1),
            "train_loss": loss / count,
            "train_accuracy": hits / count,
            "val_loss": scores[1] if scores else None,
            "val_accuracy": scores[0] if scores else None,
            "seconds": round(self._clock(), 3),
        }
        self.sums.zero_()
        course.evaluated = course.step
        course.history.append(row)
        if scores:
            self._keep_if_best((scores[0], -scores[1]), row)
        elif self.folder is not None and self.accelerator.is_main_process:
            self.folder.save_best(self.core, row)
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.log(row)

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

    # -- words --------------------------------------------------------------------------------------------------------

    def _description(self) -> str:
        course = self.course
        text = f"epoch {min(course.epoch + 1, self.config.optimizer.epochs)}/{self.config.optimizer.epochs}"
        if course.history:
            row = course.history[-1]
            text += f" loss {row['train_loss']:.3f}"
            if row["val_accuracy"] is not None:
                text += f" val {row['val_accuracy']:.1%}"
        return text

    def _farewell(self) -> str:
        if self.folder is None:
            return f"interrupted at epoch {self.course.epoch + 1}"
        path = self.folder.path
        return (
            f"interrupted at epoch {self.course.epoch + 1}, nothing is lost: continue with "
            f"`neural-graphs train {path / 'config.yaml'} --resume`"
        )

    def _diverged(self) -> RunError:
        kept = f"; the best model so far is in {self.folder.path / 'model'}" if self.folder and self.best else ""
        return RunError(f"the loss became NaN or infinite at step {self.course.step}: lower optimizer.lr{kept}")

    # -- state --------------------------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        self.course.seconds = self._clock()
        tensors = {f"model.{name}": value for name, value in self.core.state_dict().items()}
        for name, value in (self.best or {}).items():
            tensors[f"best.{name}"] = value
        for name, value in (self.average.values if self.average is not None else {}).items():
            tensors[f"ema.{name}"] = value
        for number, entry in self.optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
        tensors["sums"] = self.sums
        self.folder.save_state(tensors, asdict(self.course))

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        facts = {key: value for key, value in facts.items() if key != "format"}
        self.course = Course(**facts)
        if self.course.best is not None:
            self.course.best = (self.course.best[0], self.course.best[1])
        self.best = _part(tensors, "best.") or None
        if self.best is not None and self.folder is not None and self.accelerator.is_main_process:
            # A run killed between its two writes left a best model that is later than this state.
            self.core.load_state_dict(self.best)
            row = next(row for row in self.course.history if row["step"] == self.course.best_step)
            self.folder.save_best(self.core, row)
        self.core.load_state_dict(_part(tensors, "model."))
        if self.average is not None:
            self.average.load(_part(tensors, "ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.sums.copy_(tensors["sums"])
        self.course.stopped = 0 < self.config.patience <= self.course.stale


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _own_random_numbers(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Training seeds torch's global generators at every step; the caller finds them as they were."""
    devices = range(torch.cuda.device_count()) if config.device == "auto" and torch.cuda.is_available() else ()
    return torch.random.fork_rng(devices=devices)
