"""Configurations of meta-training. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from neural_graphs._settings import build, preset_names, preset_of, read_settings, read_source
from neural_graphs.errors import UserError


@dataclass(frozen=True)
class MetaConfig:
    """One meta-training run: what an update rule is trained on, and how.

    Args:
        rule: ``name`` and arguments of ``create_rule``.
        family: of inner tasks, see ``sample_task``: "mlp", "cnn", "transformer" or "mixed"; or one of the paper's
            tasks, "paper-fashion" and "paper-cifar10".
        augment: draw the scales of inputs and initial weights and the names of classes as well.
        horizon: shortest and longest number of inner steps; empty: as the tasks have it.
        lr: learning rate of the inner optimizer, which is part of the rule: it is not tuned afterwards.
        schedule: of the inner learning rate: "linear" down to 0, or "constant".
        method: "pes", persistent evolution strategies with antithetic pairs (Vicol et al. 2021); "backprop", through the
            updates of a truncation, with inner gradients as constants (with ``truncation`` 1 the paper's way).
        steps: meta-steps.
        slots: inner tasks in progress, each of which is unrolled for one truncation per meta-step.
        pairs: antithetic pairs of networks per slot ("backprop": networks).
        truncation: inner steps per slot and meta-step.
        accumulate: of "backprop": truncations of a slot whose gradients make one meta-step.
        sigma: standard deviation of the perturbations of the rule's weights.
        optimizer_lr: Adam's learning rate on the rule's weights, falling to a tenth by a cosine.
        clip: largest norm of the meta-gradient.
        average: decay per meta-step of the moving average of the rule's weights, which is what is validated and kept.
        late: how much more the last inner loss counts than the first; the weight grows with the square of the step.
        loss_clip: largest inner loss that counts, in nats.
        seed: of the rule's weights, the tasks and the perturbations.
        workers: processes of one thread each; 0: one per physical core. Their number changes nothing in what is computed.
        eval_every: meta-steps between validations, and between checkpoints.
        eval_tasks: number of fixed tasks of the family that are validated on, with two networks each.
        out: run folder; empty: ``runs/<name of the configuration>``.
    """

    rule: dict[str, Any] = field(default_factory=lambda: {"name": "graph"})
    family: str = "mlp"
    augment: bool = True
    horizon: list[int] = field(default_factory=list)
    lr: float = 0.01
    schedule: Literal["linear", "constant"] = "linear"
    method: Literal["pes", "backprop"] = "pes"
    steps: int = 200
    slots: int = 8
    pairs: int = 8
    truncation: int = 25
    accumulate: int = 1
    sigma: float = 0.05
    optimizer_lr: float = 3e-3
    clip: float = 1.0
    average: float = 0.95
    late: float = 10.0
    loss_clip: float = 4.6
    seed: int = 0
    workers: int = 1
    eval_every: int = 25
    eval_tasks: int = 6
    out: str = ""

    def __post_init__(self) -> None:
        counts = ("steps", "slots", "pairs", "truncation", "accumulate", "eval_every", "eval_tasks")
        sizes = ("lr", "sigma", "optimizer_lr", "clip", "loss_clip")
        problems = {
            f"{', '.join(counts)} must be at least 1": min(getattr(self, name) for name in counts) < 1,
            f"{', '.join(sizes)} must be positive": not all(getattr(self, name) > 0 for name in sizes),
            "average must be at least 0 and below 1": not 0 <= self.average < 1,
            "late must not be negative": not self.late >= 0,
            "seed and workers must not be negative": min(self.seed, self.workers) < 0,
            "horizon must be two numbers of steps, the smaller one first, or empty": bool(self.horizon)
            and not (len(self.horizon) == 2 and 1 <= self.horizon[0] <= self.horizon[1]),
            "rule.name is missing: set it to one of `neural_graphs.optim.list_rules()`": "name" not in self.rule,
        }
        for message, wrong in problems.items():
            if wrong:
                raise UserError(message)


def list_meta_presets() -> list[str]:
    """Names of the configurations that come with the package, sorted."""
    return preset_names(__package__)


def meta_preset_text(name: str) -> str:
    """The commented YAML of a preset."""
    return preset_of(__package__, name)


def is_meta_config(source: str | os.PathLike[str]) -> bool:
    """Whether this names a preset of meta-training, or a YAML file that describes an update rule."""
    name = os.fspath(source)
    if name in list_meta_presets():
        return True
    try:
        text = Path(name).read_text(encoding="utf-8", errors="replace")
        return "rule" in read_settings(text, name)
    except (OSError, UserError):
        return False


def to_yaml(config: MetaConfig) -> str:
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def load_meta_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> MetaConfig:
    """A configuration from a YAML file or a preset's name, changed by overrides like ``rule.hidden=16``.

    ``out`` defaults to ``runs/<name>``.

    Raises:
        UserError: no such file or preset, broken YAML, an unknown key (the message lists those there are), a wrong type.
    """
    config = build(MetaConfig, read_source(__package__, source, overrides))
    return config if config.out else dataclasses.replace(config, out=str(Path("runs") / Path(source).stem))
