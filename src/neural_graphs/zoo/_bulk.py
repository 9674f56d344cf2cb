"""Training many classifiers of one shape at once, each with hyper-parameters of its own.

All networks of a chunk see the same minibatches, in an order that follows from the seed, the share of the training images
and the epoch alone, and the same dropout noise, cut off at each one's own rate. So what a network becomes does not depend on
which others are trained beside it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import ModuleArchitecture, Stack
from neural_graphs.zoo._grouped import grouped_logits
from neural_graphs.zoo._training_step import TrainingStep

if TYPE_CHECKING:
    from neural_graphs.graph import Architecture

EVAL_BATCH = 256


@dataclass(frozen=True)
class Hyper:
    """How one network is trained.

    ``weight_decay`` is the factor of the squared norm's gradient (L2), for ``adamw`` decoupled from it; ``dropout`` the
    probability with which a value behind a hidden layer, but for the first, is dropped; ``init`` and ``init_scale`` are read
    by the recipe's ``initial``; ``train_fraction`` is the share of the training images that it sees.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    init: str = "he"
    init_scale: float = 1.0
    train_fraction: float = 1.0


@dataclass(frozen=True)
class Run:
    """One network to be trained; ``number`` tells it apart in its zoo."""

    number: int
    architecture: Architecture
    hyper: Hyper

    def columns(self) -> dict[str, Any]:
        """Its hyper-parameters, as columns of a zoo's table."""
        kinds = [kind for kind in self.architecture.activations_used if kind != "none"]
        return {**asdict(self.hyper), "activation": kinds[0] if len(set(kinds)) == 1 else "mixed"}


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Normalised float32 images ``[N, c, h, w]`` and int64 labels ``[N]``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def to(self, device: str | torch.device) -> TrainingImages:
        return TrainingImages(
            self.train.to(device), self.train_labels.to(device), self.test.to(device), self.test_labels.to(device)
        )


@dataclass(frozen=True)
class Course:
    """Epochs, the epochs after which networks are kept, images per step, and the seed of the order of the images."""

    epochs: int
    checkpoints: tuple[int, ...]
    batch_size: int = 32
    seed: int = 0
    precision: str = "fp32"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The networks of a chunk after ``epoch`` epochs: weights ``{name: [B, *shape]}`` and figures ``{column: [B]}``."""

    epoch: int
    params: dict[str, Tensor]
    columns: dict[str, np.ndarray]


def chunk_key(run: Run) -> tuple[Any, ...]:
    """Runs with equal keys can be trained in one chunk."""
    architecture = run.architecture
    skeleton: Any = architecture
    if isinstance(architecture, Stack):  # their activations may differ
        skeleton = tuple((*_shape(layer),) for layer in architecture.layers)
    return skeleton, run.hyper.optimizer, run.hyper.train_fraction


def _shape(layer: Any) -> Iterator[Any]:
    yield from (layer.name, layer.inputs, layer.outputs, layer.kernel, layer.positions, layer.bias, layer.stride)
    yield from (layer.padding, layer.pool, layer.residual)


def train_chunk(
    runs: Sequence[Run],
    start: Mapping[str, Tensor],
    images: TrainingImages,
    course: Course,
    advance: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Checkpoint]:
    """Train ``runs`` (of equal ``chunk_key``) from the stacked weights ``start`` and give them after each checkpoint's
    epoch.

    A network whose loss becomes NaN or infinite stays as it was at the checkpoint before, and has ``diverged`` set then on.
    ``advance`` is told the number of image visits of all networks; nothing more is yielded once ``stop`` is set.
    """
    chunk = _Chunk(runs, start, images, course)
    for epoch in range(course.epochs):
        for done in chunk.epoch(epoch):
            if stop is not None and stop.is_set():
                return
            if advance:
                advance(done)
        if epoch + 1 in course.checkpoints:
            yield chunk.checkpoint(epoch + 1)


class _Chunk:
    """Stacked weights in one flat buffer, ``[B, *shape]`` one after another: an optimiser step is a few operations."""

    def __init__(
        self, runs: Sequence[Run], start: Mapping[str, Tensor], images: TrainingImages, course: Course
    ) -> None:
        self.runs, self.images, self.course = runs, images, course
        self.architectures = [run.architecture for run in runs]
        values = list(start.values())
        self.flat = torch.cat([value.detach().flatten() for value in values]).to(images.train.device)
        owner = [torch.arange(len(runs)).repeat_interleave(value[0].numel()) for value in values]
        self.owner = torch.cat(owner).to(self.flat.device)
        self.leaves = {
            name: part.view(value.shape).requires_grad_()
            for (name, value), part in zip(start.items(), self.flat.split([v.numel() for v in values]), strict=True)
        }
        hyper = [run.hyper for run in runs]
        self.rate = self._each([h.learning_rate for h in hyper])
        self.decay = self._each([h.weight_decay for h in hyper])
        self.dropout = torch.tensor([h.dropout for h in hyper]).to(self.flat)
        self.drop = self._drop if any(h.dropout for h in hyper) else None
        self.optimizer, self.fraction = hyper[0].optimizer, hyper[0].train_fraction
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.steps = 0
        self.alive = torch.ones(len(runs), dtype=torch.bool, device=self.flat.device)
        self.broken = False  # whether any is not alive: asked at every step, which should not wait for a device
        self.safe = self.flat.clone()
        self.compiled = self._compiled()

    def _compiled(self) -> TrainingStep | None:
        stacks = [a for a in self.architectures if isinstance(a, Stack)]
        images, labels = self.images.train, self.images.train_labels
        if self.course.precision != "fp32" or not stacks or self.flat.dtype != torch.float32:
            return None
        if not TrainingStep.takes(stacks, images, labels):
            return None
        return TrainingStep(stacks, images, labels, self.leaves, self.dropout)

    def _each(self, values: Sequence[float]) -> Tensor:
        """A number per network as one per entry of the flat buffer."""
        return torch.tensor(values).to(self.flat)[self.owner]

    def logits(self, x: Tensor, drop: Any = None) -> Tensor:
        """``[B, n, classes]``"""
        half = self.course.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            if isinstance(self.architectures[0], Stack):
                stacks = [a for a in self.architectures if isinstance(a, Stack)]
                found = grouped_logits(stacks, self.leaves, x, drop)
            else:
                assert isinstance(self.architectures[0], ModuleArchitecture)
                found = self.architectures[0].forward(self.leaves, x, drop)
        return found.float() if half else found

    def epoch(self, epoch: int) -> Iterator[int]:
        size = self.course.batch_size
        order = batch_order(len(self.images.train), self.fraction, self.course.seed, epoch)
        for first in range(0, len(order) - size + 1, size):
            self._step(order[first : first + size].to(self.flat.device))
            yield size * len(self.runs)

    def _step(self, picked: Tensor) -> None:
        losses, g = self._gradients(picked)
        self.steps += 1
        with torch.no_grad():
            if not bool(torch.isfinite(losses).all()):
                self._freeze(~torch.isfinite(losses))
            if self.broken:
                g = torch.where(self.alive[self.owner], g, 0.0)
            self._update(g)

    def _gradients(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[B]`` and the flat gradient of their sum."""
        if self.compiled is None:
            x, y = self.images.train[picked], self.images.train_labels[picked]
            losses = per_network(self.logits(x, self.drop), y)
            gradients = torch.autograd.grad(losses.sum(), list(self.leaves.values()))
            return losses, torch.cat([gradient.flatten() for gradient in gradients])
        shapes = self.compiled.noise_shapes(len(picked))
        noise = [self._noise(layer, shape) if layer and self.drop else None for layer, shape in enumerate(shapes)]
        g = torch.empty_like(self.flat)
        return self.compiled(picked, noise, self.flat, g), g

    def _noise(self, layer: int, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator(self.flat.device).manual_seed(_mix(self.course.seed, self.steps, layer))
        return torch.rand(shape, generator=generator, device=self.flat.device)

    def _drop(self, layer: int, h: Tensor) -> Tensor:
        if layer == 0:  # the largest values by far, and nothing that published recipes drop
            return h
        vector = h.dim() == 3
        noise = self._noise(layer, (1, *h.shape[1:]) if vector else (*h.shape[:3], 1, h.shape[4]))
        rate = self.dropout.view(-1, 1, 1) if vector else self.dropout.unsqueeze(1)
        return h * ((noise >= rate) / (1 - rate)).to(h.dtype)

    def _update(self, g: Tensor) -> None:
        """One step, as ``torch.optim`` takes it; momentum is 0.9, Adam's betas 0.9 and 0.999, RMSProp's decay 0.9."""
        if self.optimizer == "adamw":
            self.flat.addcmul_(self.flat, self.rate * self.decay, value=-1)
        else:
            g = torch.addcmul(g, self.flat, self.decay)
        if self.optimizer == "sgd":
            self.first.mul_(0.9).add_(g)
            self.flat.addcmul_(self.rate, self.first, value=-1)
        elif self.optimizer == "rmsprop":
            self.second.mul_(0.9).addcmul_(g, g, value=0.1)
            self.flat.addcmul_(self.rate, g / self.second.sqrt().add_(1e-8), value=-1)
        else:
            self.first.lerp_(g, 0.1)
            self.second.mul_(0.999).addcmul_(g, g, value=0.001)
            root = self.second.sqrt().div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
            self.flat.addcmul_(self.rate, self.first / root, value=-1 / (1 - 0.9**self.steps))

    def _freeze(self, broken: Tensor) -> None:
        mine = broken[self.owner]
        self.flat.copy_(torch.where(mine, self.safe, self.flat))
        for state in (self.first, self.second, self.rate, self.decay):
            state.masked_fill_(mine, 0.0)
        self.alive &= ~broken
        self.broken = True

    @torch.no_grad()
    def checkpoint(self, epoch: int) -> Checkpoint:
        finite = torch.ones_like(self.alive)
        finite[self.owner[~torch.isfinite(self.flat)]] = False
        if not bool(finite.all()):
            self._freeze(~finite)
        self.safe.copy_(self.flat)
        figures: dict[str, np.ndarray] = {}
        seen = batch_order(len(self.images.train), self.fraction, self.course.seed, -1)[: len(self.images.test)]
        seen = seen.to(self.flat.device)
        parts = {
            "train": (self.images.train[seen], self.images.train_labels[seen]),
            "test": (self.images.test, self.images.test_labels),
        }
        for split, (x, y) in parts.items():
            loss, hits = self._score(x, y)
            figures[f"{split}_loss"], figures[f"{split}_accuracy"] = loss, hits
        figures["diverged"] = (~self.alive).cpu().numpy()
        params = {name: value.detach().float().cpu().clone() for name, value in self.leaves.items()}
        return Checkpoint(epoch, params, figures)

    @torch.no_grad()
    def _score(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        losses = torch.zeros(len(self.runs), dtype=torch.float64, device=x.device)
        hits = torch.zeros_like(losses)
        for images, labels in zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True):
            logits = self.logits(images)
            losses += per_network(logits, labels).double() * len(labels)
            hits += (logits.argmax(-1) == labels).sum(1)
        mean = (losses / len(y)).clamp(max=torch.finfo(torch.float32).max)
        return mean.float().cpu().numpy(), (hits / len(y)).float().cpu().numpy()


def per_network(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each network, ``[B]``, from logits ``[B, n, classes]`` and labels ``[n]``."""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return flat.view(len(logits), -1).mean(1)


def batch_order(count: int, fraction: float, seed: int, epoch: int) -> Tensor:
    """The images of an epoch in their order, of the first ``fraction`` of all in an order drawn by ``seed``; -1: unshuffled.

    A larger fraction contains a smaller one.
    """
    kept = np.random.default_rng([seed, 3]).permutation(count)[: max(1, round(count * fraction))]
    if epoch >= 0:
        kept = np.random.default_rng([seed, 4, epoch, round(1000 * fraction)]).permutation(kept)
    return torch.from_numpy(kept)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def deviation(init: str, fan_in: int, fan_out: int) -> float:
    """Standard deviation of weights by ``"normal"`` (1), ``"glorot"`` (Glorot & Bengio 2010) or ``"he"`` (He et al. 2015).

    Raises ``UserError`` for another name.
    """
    found = {"normal": 1.0, "glorot": math.sqrt(2 / (fan_in + fan_out)), "he": math.sqrt(2 / fan_in)}
    if init not in found:
        raise UserError(f"unknown initialisation {init!r}: choose one of {', '.join(found)}")
    return found[init]


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
