"""The training loop: a pure function of the configuration and the data, so that it can stop and go on anywhere.

Nothing random is carried from step to step: the order of the networks follows from (seed, epoch), augmentation and dropout
from (seed, step). The whole state is weights, their average, optimizer and counters. What is learned is up to subclasses.
"""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from neural_graphs._progress import Progress, _Silent, progress
from neural_graphs.errors import RunError
from neural_graphs.tasks._changes import DROPOUT, Changed, Changes, seed_of
from neural_graphs.tasks._model import EVAL_BATCH
from neural_graphs.tasks._runtime import Interrupted, compiled, interruptible, precision
from neural_graphs.zoo._loader import Loader, Sample

if TYPE_CHECKING:
    from neural_graphs.tasks._config import TrainConfig
    from neural_graphs.tasks._decoder import Decoder
    from neural_graphs.tasks._model import Model
    from neural_graphs.tasks._run import RunFolder
    from neural_graphs.zoo._store import ZooSplit


@dataclass
class Course:
    """Where training is. ``epoch`` and ``batch`` say which batch comes next; ``best`` is (score, -loss) on validation.

    ``history`` has a row per validation, ``earlier`` those of the phase before this one.
    """

    phase: str = "classify"
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
    earlier: list[dict[str, Any]] = field(default_factory=list)


class Learner(nn.Module):
    """A model and, where images are to be reconstructed, the decoder that reads the same code."""

    def __init__(self, core: Model, decoder: Decoder | None = None) -> None:
        super().__init__()
        self.core, self.decoder = core, decoder

    def forward(self, batch: Any, *conditions: Any) -> tuple[Tensor, Tensor | None]:
        """What the model says, ``[B, ...]``, and standardised images ``[B, pixels]``, if there is a decoder."""
        code = self.core.code(batch)
        return self.core.read(code, *conditions), None if self.decoder is None else self.decoder(code)


class Loop(ABC):
    """One phase of training, of which a state that was ``found`` is continued."""

    phase: ClassVar[str]

    def __init__(
        self,
        learner: Learner,
        train: ZooSplit,
        val: ZooSplit | None,
        config: TrainConfig,
        run: RunFolder | None,
        device: Any,
        found: tuple[dict[str, Tensor], dict[str, Any]] | None,
    ) -> None:
        self.config, self.folder, self.accelerator = config, run, device
        options = config.optimizer
        label = config.label if learner.core.labelled else None
        labels: dict[str, Any] = {"label": label, "bounds": learner.core.bounds}
        self.train = Loader(train, options.batch_size, seed=config.seed, **labels)
        self.val = Loader(val, EVAL_BATCH, shuffle=False, **labels) if val is not None else None
        self.total_steps = options.epochs * len(self.train)
        self.learner = learner.to(device.device)
        optimizer = torch.optim.AdamW(
            learner.parameters(),
            lr=options.lr,
            weight_decay=options.weight_decay,
            amsgrad=options.amsgrad,
            fused=True,  # many small parameters: a fifth of the time
        )
        self.core, self.decoder = learner.core, learner.decoder
        self.model, self.optimizer = device.prepare(self.learner, optimizer)
        if config.compile:
            self.model = compiled(self.model, device.device)
        self.changes = Changes(config.augment, config.seed)
        self.course = Course(self.phase)
        self.sums = torch.zeros(self.measures, dtype=torch.float64, device=device.device)  # since the last validation
        if found is not None:
            self._restore(*found)

    # -- what a phase is ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def measures(self) -> int:
        """How many figures ``losses`` gives."""

    @abstractmethod
    def losses(
        self, changed: Changed, labels: Tensor, logits: Tensor, images: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The sum of the batch's losses, and figures to be summed up until the next validation, the first of them a loss."""

    @abstractmethod
    def validate(self) -> None:
        """Append a row to the history."""

    @abstractmethod
    def describe(self) -> str:
        """One line on where training is."""

    def conditions(self, labels: Tensor) -> tuple[Any, ...]:
        """What the model is told of this step's networks beside themselves."""
        return ()

    def stepped(self) -> None:  # noqa: B027 - not every phase has something to do
        """Called behind every step of the optimizer."""

    # -- the course ---------------------------------------------------------------------------------------------------

    def run_all(self, quiet: bool) -> None:
        course, options = self.course, self.config.optimizer
        total = self.total_steps - course.step
        start, before = time.monotonic(), course.seconds
        bar_context = contextlib.nullcontext(_Silent()) if quiet else progress(self.describe(), total)
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
        changed = changed._replace(batch=changed.batch.to(device.device))
        answers = self.model(changed.batch, *self.conditions(labels))
        loss, figures = self.losses(changed, labels, *answers)
        # Gradients are averaged over processes: this makes that the mean over the whole batch, also of unequal shares.
        device.backward(loss * (device.num_processes / sample.total))
        if device.device.type == "cpu" and not math.isfinite(loss.item()):
            raise self.diverged()
        if options.clip:
            device.clip_grad_norm_(self.model.parameters(), options.clip)
        self.optimizer.step()
        self.stepped()
        self.optimizer.zero_grad()
        self.sums += torch.stack([figure.detach().double() for figure in figures])

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
            self.validate()
            self._save_state()
            bar.describe(self.describe())

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def totals(self) -> list[float]:
        """The figures summed up since the last validation, over all processes; the first must be finite."""
        found: list[float] = self.accelerator.reduce(self.sums, "sum").tolist()
        if not math.isfinite(found[0]):
            raise self.diverged()
        return found

    def append(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Make ``figures`` a row of the history, behind what every row says."""
        course = self.course
        row = {
            "epoch": round(course.epoch + course.batch / len(self.train), 4),
            "step": course.step,
            "lr": self.config.optimizer.lr * self._rate(course.step - 1),
            **figures,
            "seconds": round(self._clock(), 3),
        }
        self.sums.zero_()
        course.evaluated = course.step
        course.history.append(row)
        return row

    def log(self, row: dict[str, Any]) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.log(row)

    def diverged(self) -> RunError:
        return RunError(f"the loss became NaN or infinite at step {self.course.step}: lower optimizer.lr{self.kept()}")

    def kept(self) -> str:
        """What there is when training breaks off."""
        return ""

    def _farewell(self) -> str:
        if self.folder is None:
            return f"interrupted at epoch {self.course.epoch + 1}"
        path = self.folder.path
        return (
            f"interrupted at epoch {self.course.epoch + 1}, nothing is lost: continue with "
            f"`neural-graphs train {path / 'config.yaml'} --resume`"
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        self.course.seconds = self._clock()
        self.folder.save_state(self.state(), asdict(self.course))

    def state(self) -> dict[str, Tensor]:
        """All tensors that resuming needs."""
        tensors = {f"model.{name}": value for name, value in self.core.state_dict().items()}
        if self.decoder is not None:
            tensors |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
        tensors["sums"] = self.sums
        return tensors

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.course = Course(**{key: value for key, value in facts.items() if key != "format"})
        if self.course.best is not None:
            self.course.best = (self.course.best[0], self.course.best[1])
        self.restore(tensors)
        self.core.load_state_dict(part(tensors, "model."))
        if self.decoder is not None:
            self.decoder.load_state_dict(part(tensors, "decoder."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part(tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.sums.copy_(tensors["sums"])

    def restore(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027 - not every phase adds something
        """Take back what ``state`` of a subclass added, before the model has its weights."""


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
