"""Meta-training: the weights of an update rule, from how well networks learn with it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from neural_graphs._io import atomic_write, write_json
from neural_graphs._memory import keep_buffers
from neural_graphs._progress import _Silent, progress
from neural_graphs.errors import UserError
from neural_graphs.optim._config import MetaConfig, to_yaml
from neural_graphs.optim._rule import UpdateRule, create_rule
from neural_graphs.optim._unroll import validate, validation_tasks
from neural_graphs.optim._workers import slots_of

_MAY_CHANGE = ("workers", "out")
"""What does not change the course of a run."""


@dataclass(frozen=True)
class MetaResult:
    """What ``train_rule`` returns: the rule that was best on validation, its score there, and that of plain Adam."""

    run_dir: Path
    rule: UpdateRule
    score: float
    nominal: float
    best_step: int
    seconds: float


def train_rule(config: MetaConfig, resume: bool = False, quiet: bool = False) -> MetaResult:
    """Meta-train the rule of ``config`` and keep the one that was best on validation.

    In the folder ``config.out``: config.yaml; log.jsonl, one line per validation; last/state.safetensors, from which a run
    that was interrupted goes on with ``resume``; and, when the run has finished, rule.safetensors, the best rule (see
    ``load_rule``), and metrics.json. The score is the mean over fixed tasks of log(final training loss + .05).

    Raises:
        UserError: the folder holds another run, or an unfinished one while ``resume`` is off.
    """
    keep_buffers()
    folder = Path(config.out)
    rule = create_rule(**{"seed": config.seed, **config.rule})
    config = dataclasses.replace(config, rule=rule.config)
    state = _open(folder, config, resume)
    run = _Run(config, rule, folder)
    slots, threads = slots_of(config), torch.get_num_threads()
    torch.set_num_threads(1)  # inner networks are tiny
    try:
        if state is not None:
            run.restore(*state)
            slots.restore(state[0])
        else:
            run.validated()
        title = f"meta-training {folder.name}"
        with contextlib.nullcontext(_Silent()) if quiet else progress(title, config.steps) as bar:
            bar.advance(run.step)
            while run.step < config.steps:
                found = slots.advance(run.theta, run.step)
                run.apply([found[number] for number in sorted(found)])
                if run.step % config.eval_every == 0 or run.step == config.steps:
                    line = run.validated()
                    run.save(slots.tensors())
                    bar.describe(f"{title}: {line}")
                bar.advance()
    finally:
        slots.close()
        torch.set_num_threads(threads)
    return run.finish()


class _Run:
    """Weights, the meta-optimizer and what has been best so far."""

    def __init__(self, config: MetaConfig, rule: UpdateRule, folder: Path) -> None:
        self.config, self.rule, self.folder = config, rule, folder
        self.theta = parameters_to_vector(rule.parameters()).detach().clone()
        self.moments = torch.zeros(2, len(self.theta))
        self.average, self.best = self.theta.clone(), self.theta.clone()
        self.step, self.seconds, self.inner = 0, 0.0, 0.0
        self.score, self.nominal, self.best_step = math.inf, math.inf, 0
        self.tasks = validation_tasks(config)
        self._began = time.monotonic()

    def apply(self, found: list[tuple[Tensor, float]]) -> None:
        """One step of Adam on the mean of the slots' gradients."""
        self.inner = sum(loss for _, loss in found) / len(found)
        gradient = torch.stack([gradient for gradient, _ in found]).mean(0)
        gradient *= min(1.0, self.config.clip / max(float(gradient.norm()), 1e-12))
        self.step += 1
        momentum, square = self.moments
        momentum.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.01)
        share = self.step / self.config.steps
        rate = self.config.optimizer_lr * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        corrected = (square / (1 - 0.99**self.step)).sqrt() + 1e-8
        self.theta = self.theta - rate * momentum / (1 - 0.9**self.step) / corrected
        kept = min(self.config.average, self.step / (10 + self.step))
        self.average = kept * self.average + (1 - kept) * self.theta

    def validated(self) -> str:
        """Score the rule, keep it if it is the best, and write a line to the log."""
        vector_to_parameters(self.average, self.rule.parameters())
        losses = validate(self.rule, self.tasks, self.config.lr, self.config.schedule)
        score = sum(math.log(loss + 0.05) for loss in losses.values()) / len(losses)
        if self.step == 0:
            self.nominal = score
        if score < self.score:
            self.score, self.best, self.best_step = score, self.average.clone(), self.step
        line = {
            "step": self.step,
            "score": score,
            "inner_loss": self.inner,
            "seconds": self._elapsed(),
            "tasks": losses,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return f"score {score:.3f}, best {self.score:.3f}, Adam {self.nominal:.3f}"

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._began

    def save(self, slots: dict[str, Tensor]) -> None:
        position = {name: getattr(self, name) for name in ("step", "score", "nominal", "best_step")}
        position["seconds"] = self._elapsed()
        own = {name: getattr(self, name) for name in ("theta", "moments", "average", "best")}
        tensors = own | slots
        with atomic_write(self.folder / "last" / "state.safetensors") as temporary:
            save_file(
                {k: v.contiguous().clone() for k, v in tensors.items()}, temporary, {"position": json.dumps(position)}
            )

    def restore(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        for name, value in position.items():
            setattr(self, name, value)
        for name in ("theta", "moments", "average", "best"):
            setattr(self, name, tensors[name])

    def finish(self) -> MetaResult:
        from neural_graphs.optim._weights import save_rule

        seconds = self._elapsed()
        vector_to_parameters(self.best, self.rule.parameters())
        card = {
            "lr": self.config.lr,
            "schedule": self.config.schedule,
            "trained_on": dataclasses.asdict(self.config),
            "validation": {"score": self.score, "adam": self.nominal, "step": self.best_step},
            "seconds": round(seconds),
        }
        save_rule(self.rule, self.folder / "rule.safetensors", card)
        metrics = {"score": self.score, "adam": self.nominal, "best_step": self.best_step, "seconds": seconds}
        write_json(self.folder / "metrics.json", metrics)
        shutil.rmtree(self.folder / "last", ignore_errors=True)
        return MetaResult(self.folder, self.rule, self.score, self.nominal, self.best_step, seconds)


def _open(folder: Path, config: MetaConfig, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Ready the folder; tensors and position to go on from, or None to begin."""
    known, last = folder / "config.yaml", folder / "last" / "state.safetensors"
    if known.is_file():
        same = _course(yaml.safe_load(known.read_text(encoding="utf-8"))) == _course(dataclasses.asdict(config))
        if (folder / "metrics.json").is_file():
            what = "this run is finished" if same else "holds a finished run of another configuration"
            raise UserError(f"{folder}: {what}; give out=... another folder, or remove it")
        if not resume:
            raise UserError(f"{folder} holds an unfinished run: go on with --resume, or remove it")
        if not same:
            raise UserError(f"{folder} holds a run of another configuration, which cannot be resumed with this one")
        if last.is_file():
            return _read_state(last)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run: give out=... another folder")
    with atomic_write(known) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    (folder / "log.jsonl").unlink(missing_ok=True)
    return None


def _course(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _MAY_CHANGE}


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return found, json.loads(file.metadata()["position"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove the run's folder and begin again") from None
