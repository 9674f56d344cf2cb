"""Training configurations: dataclasses, YAML files, presets and dotted overrides. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from neural_graphs._settings import build, preset_names, preset_of, read_source
from neural_graphs.errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up. The defaults suit small zoos and few steps; the preset ``inr-paper`` has the paper's.

    Args:
        epochs: passes over the training networks.
        batch_size: networks per step (over all devices).
        lr: learning rate after the warm-up.
        weight_decay: AdamW's decoupled weight decay, on every parameter.
        amsgrad: keep the maximum of the second moments.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: what follows the warm-up: "constant", or "cosine" down to 0 at the last step.
        clip: largest norm of the gradient; 0 does not clip.
        ema: decay per step of an exponential moving average of the weights, which is then what is validated and kept
            (smaller during the first steps: ``min(ema, (1 + t) / (10 + t))``); 0: no average.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 5e-4
    amsgrad: bool = False
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    clip: float = 1.0
    ema: float = 0.0


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentations of training networks; 0 switches one off. See ``neural_graphs.zoo.augment``.

    Args:
        translation: largest shift of the input, per axis.
        rotation: largest angle in degrees (networks of two inputs only).
        scaling: largest relative change of the first layer's weight.
        noise: standard deviation of the noise on each tensor, relative to the tensor's own.
        dropout: probability of a parameter to become 0.
        exact_translation: translate at the first layer only, where it is exactly a shift of the input.
        symmetry: replace every network by a random one that computes the same function: neurons reordered, their signs,
            phases and scales (1/2 to 2) changed where the non-linearity allows it.
        mixup: alpha of weight-space mixup: every network is interpolated with another of its architecture in the batch,
            aligned with it, and so are their labels, by a share from Beta(alpha, alpha).
    """

    translation: float = 0.0
    rotation: float = 0.0
    scaling: float = 0.0
    noise: float = 0.0
    dropout: float = 0.0
    exact_translation: bool = False
    symmetry: bool = False
    mixup: float = 0.0


@dataclass(frozen=True)
class PretrainConfig:
    """Learning to draw the image of every training network (of two inputs) from its code, before the labels are looked at.

    Encoder and head go on from there. Networks are augmented, but not mixed, and drawn as they then are. Batch size,
    warm-up, schedule and the like are those of ``OptimConfig``.

    Args:
        epochs: passes over the training networks; 0: no pre-training.
        lr: learning rate after the warm-up.
        side: the image is drawn at ``side x side`` pixels.
        width: hidden width of the decoder.
    """

    epochs: int = 0
    lr: float = 3e-3
    side: int = 28
    width: int = 256


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        task: "classify", a class of every network; "regress", a number such as its test accuracy; "edit", changed weights
            of a network that is an image, whose image is the edited one; or "adapt", changed weights of a classifier that
            was trained on clean images, for corrupted ones.
        zoo: folder of the zoo.
        out: run folder; empty: ``runs/<name of the configuration>``.
        label: column of the zoo's table that holds the class or the number.
        loss: of "regress", on the number mapped to 0..1 by ``bounds``: "mse"; "bce", the cross-entropy with the number as a
            probability; "ranking", the logistic loss of every pair of the batch whose numbers differ, by order alone.
        bounds: of "regress": smallest and largest number there may be; predictions lie between them.
        edits: of "edit" and "adapt": names of ``neural_graphs.zoo.edits``; one model learns them all.
        copies: of "edit" and "adapt": changed networks per network, whose outputs are averaged.
        targets: of "edit": what is edited: the "image" that a network was fitted to, or the one that it draws, its "render".
        encoder: ``name`` and arguments of ``create_encoder``; what the zoo determines (number of inputs, largest kernel,
            parameters of the MLP) is filled in.
        head: arguments of ``GraphHead`` that choose how neurons become one vector (``pooling``, ``over``, ``hidden``).
        optimizer: see ``OptimConfig``.
        augment: see ``AugmentConfig``.
        pretrain: see ``PretrainConfig``.
        reconstruction: weight of the error of the reconstructed image (as in pre-training; the mean image has 1), which is
            added to the cross-entropy; 0: none.
        precision: of training: "fp32"; "bf16", edge embeddings in bfloat16 and everything else in float32 (faster where the
            processor multiplies bfloat16; ng-gnn and ng-t have such edges, other encoders stay as they are); "auto",
            float32 with TF32 matrix products on CUDA. Evaluation is always in float32.
        compile: train through ``torch.compile``. It compiles for minutes, and again for every mixture of architectures that
            a batch holds: for long runs on one architecture.
        device: "auto" (an accelerator if there is one), or "cpu".
        seed: of the initial weights, the order of the networks, augmentation and dropout.
        threads: CPU threads; 0: one per physical core.
        eval_every: validate after so many epochs or steps (``eval_unit``), and at the end.
        eval_unit: "epochs" or "steps".
        patience: stop after so many validations without improvement; 0: never.
        limit_train: train on so many networks of the split, chosen by ``seed``; null: all.
        views: train on so many networks per image at most, where a zoo has several (``zoo make --views``); 0: all.
        where: columns of the zoo's table and the value that they must have; other networks are left out of every split.
        hold_out: architectures, as ``str(stack)`` prints them ("2-48-16-1 sine:30"), whose networks are neither trained on
            nor validated with, so that the test split shows seen and unseen architectures.
        log: "jsonl" (log.jsonl in the run folder), or "tensorboard" (that as well, if TensorBoard is installed).
    """

    task: Literal["classify", "regress", "edit", "adapt"] = "classify"
    zoo: str = ""
    out: str = ""
    label: str = "label"
    loss: Literal["mse", "bce", "ranking"] = "mse"
    bounds: list[float] = field(default_factory=lambda: [0.0, 1.0])
    edits: list[str] = field(default_factory=lambda: ["dilate"])
    copies: int = 1
    targets: Literal["image", "render"] = "image"
    encoder: dict[str, Any] = field(default_factory=lambda: {"name": "ng-gnn"})
    head: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    reconstruction: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0
    threads: int = 0
    eval_every: int = 1
    eval_unit: Literal["epochs", "steps"] = "epochs"
    patience: int = 0
    limit_train: int | None = None
    views: int = 0
    where: dict[str, Any] = field(default_factory=dict)
    hold_out: list[str] = field(default_factory=list)
    log: Literal["jsonl", "tensorboard"] = "jsonl"

    def __post_init__(self) -> None:
        problems = {
            "optimizer.epochs must be at least 1": self.optimizer.epochs < 1,
            "optimizer.batch_size must be at least 1": self.optimizer.batch_size < 1,
            "optimizer.lr must be positive": not self.optimizer.lr > 0,
            "optimizer.weight_decay, warmup_steps and clip must not be negative": min(
                self.optimizer.weight_decay, self.optimizer.warmup_steps, self.optimizer.clip
            )
            < 0,
            "optimizer.ema must be at least 0 and below 1": not 0 <= self.optimizer.ema < 1,
            "augment: strengths must not be negative, and dropout must be below 1": min(
                dataclasses.astuple(self.augment)
            )
            < 0
            or self.augment.dropout >= 1,
            "pretrain.epochs and reconstruction must not be negative": min(self.pretrain.epochs, self.reconstruction)
            < 0,
            "pretrain.lr must be positive": not self.pretrain.lr > 0,
            "pretrain.side and width must be at least 1": min(self.pretrain.side, self.pretrain.width) < 1,
            "seed, threads, patience and views must not be negative": min(
                self.seed, self.threads, self.patience, self.views
            )
            < 0,
            "eval_every must be at least 1": self.eval_every < 1,
            "limit_train must be at least 1": self.limit_train is not None and self.limit_train < 1,
            "edits must name at least one edit, and each once": not self.edits
            or len(set(self.edits)) < len(self.edits),
            "copies must be at least 1": self.copies < 1,
            "an editor learns no reconstruction: set pretrain.epochs=0 reconstruction=0": self.task in ("edit", "adapt")
            and (self.pretrain.epochs > 0 or self.reconstruction > 0),
            "bounds must be two numbers, the smaller one first": len(self.bounds) != 2
            or not -math.inf < self.bounds[0] < self.bounds[1] < math.inf,
            "encoder.name is missing: set it to one of `neural_graphs.list_encoders()`": "name" not in self.encoder,
        }
        for message, wrong in problems.items():
            if wrong:
                raise UserError(message)


def list_presets() -> list[str]:
    """Names of the configurations that come with the package, sorted."""
    return preset_names(__package__)


def preset_text(name: str) -> str:
    """The commented YAML of a preset."""
    return preset_of(__package__, name)


def load_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from a YAML file or a preset's name, changed by overrides like ``optimizer.lr=3e-4``.

    ``out`` defaults to ``runs/<name>``.

    Raises:
        UserError: no such file or preset, broken YAML, an unknown key (the message lists those there are), a wrong type.
    """
    config = from_dict(read_source(__package__, source, overrides))
    return config if config.out else dataclasses.replace(config, out=str(Path("runs") / Path(source).stem))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def to_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """A checked ``TrainConfig``; raises ``UserError`` for unknown keys and wrong types."""
    return build(TrainConfig, values)
