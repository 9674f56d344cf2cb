"""Inner tasks: one architecture, one data set, one batch size, trained for many networks at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphSpec, ModuleArchitecture, Stack, spec_of_stack
from neural_graphs.graph._architecture import _facts
from neural_graphs.optim import _mlp_step
from neural_graphs.optim._data import InnerData, Split, images
from neural_graphs.zoo._grouped import grouped_logits
from neural_graphs.zoo._training_step import TrainingStep

_CHUNK_VALUES = 1 << 22
"""So many float32 values of the widest layer are held when networks are scored."""


@dataclass(frozen=True)
class InnerTask:
    """Training P networks ("particles") of one architecture on one image data set by mean cross-entropy.

    Attributes:
        name: what results call it.
        architecture: a ``Stack`` or a ``ModuleArchitecture`` that reads ``[n, c, side, side]`` (perceptrons: ``[n, d]``).
        data: one of ``digits``, ``fashion-mnist``, ``mnist``, ``cifar10``.
        side: height and width that the images are resampled to.
        batch_size: images per minibatch.
        steps: horizon, in minibatches.
        input_scale: factor on the standardised images.
        init_scale: factor on the initial weights (tensors of two or more dimensions).
        label_order: what each class is called instead, a permutation of the classes; ``()`` leaves them.
        device: of parameters and data.

    Parameters are ``{name: [P, *shape]}``. Which perceptrons and convolutional networks have a fast path is for
    ``losses_and_grads`` to find out; all others go through autograd.
    """

    name: str
    architecture: Stack | ModuleArchitecture
    data: str = "fashion-mnist"
    side: int = 8
    batch_size: int = 64
    steps: int = 500
    input_scale: float = 1.0
    init_scale: float = 1.0
    label_order: tuple[int, ...] = ()
    device: str = "cpu"

    # -- descriptions -------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> GraphSpec:
        """The neural graph of the architecture."""
        return _spec(self.architecture)

    @property
    def images(self) -> InnerData:
        """The data, loaded on first use and then kept."""
        return images(self.data, self.side, self.device)

    @property
    def takes_own_batches(self) -> bool:
        """Whether minibatches of each network's own cost no more than shared ones."""
        return self._route == "mlp"

    @property
    def num_parameters(self) -> int:
        """Of one network."""
        return self.architecture.num_parameters

    def with_steps(self, steps: int) -> InnerTask:
        """The same task with another horizon."""
        return replace(self, steps=steps)

    def to(self, device: str) -> InnerTask:
        """The same task on another device."""
        return replace(self, device=device)

    def to_json(self) -> dict[str, Any]:
        """Everything but the name and the device: equal for equal tasks."""
        kept = ("data", "side", "batch_size", "steps", "input_scale", "init_scale")
        return {
            "architecture": self.architecture.to_json(),
            **{name: getattr(self, name) for name in kept},
            "label_order": list(self.label_order),
        }

    # -- networks and minibatches -------------------------------------------------------------------------------------

    def new_params(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Networks ``{name: [P, *shape]}`` float32 as torch initialises them, one per seed: equal seeds, equal networks."""
        drawn = {seed: _initial(self.architecture, seed) for seed in dict.fromkeys(map(int, seeds))}
        names = next(iter(drawn.values()))
        found = {name: torch.stack([drawn[int(seed)][name] for seed in seeds]).to(self.device) for name in names}
        if self.init_scale != 1:
            for value in found.values():
                if value.dim() > 2:
                    value.mul_(self.init_scale)
        return found

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Minibatch ``step`` (from 0) of the run ``seed``: images ``[n, c, h, w]`` or ``[n, d]``, and labels ``[n]``.

        The training images are gone through in an order of their own for each seed and epoch; what an epoch leaves over of
        a last, smaller minibatch is left out.
        """
        data, n = self.images, min(self.batch_size, len(self.images))
        epoch, place = divmod(step, len(data) // n)
        order = _order(len(data), int(seed), epoch, self.device)
        return self._augmented(*data.take("train", order[place * n : (place + 1) * n]))

    def _augmented(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._flat:
            x = x.flatten(1)
        if self.input_scale != 1:
            x = x * self.input_scale
        if self.label_order:
            y = _names(self.label_order, self.device)[y]
        return x, y

    # -- losses -------------------------------------------------------------------------------------------------------

    def losses_and_grads(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropies ``[P]`` and their gradients ``{name: [P, *shape]}``, tensors of their own.

        ``x`` ``[n, ...]`` with ``y`` ``[n]`` is shared by all networks; ``[P, n, ...]`` with ``[P, n]`` is each one's own.
        ``params`` may be views of one buffer; they need not require gradients.
        """
        if self._route == "mlp":
            assert isinstance(self.architecture, Stack)
            return _mlp_step.losses_and_grads(self.architecture, params, x, y)
        shared = y.dim() == 1
        if shared and self._compiled(params, x, y):
            return self._compiled_step(params, x, y)
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            losses = _losses(self._logits(leaves, x), y)
            grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return losses.detach(), dict(zip(leaves, grads, strict=True))

    def logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """``[P, n, classes]`` of networks on ``x`` (see ``losses_and_grads``)."""
        if self._route == "mlp" and x.dim() == 2:
            assert isinstance(self.architecture, Stack)
            return _mlp_step.logits(self.architecture, params, x)
        return self._logits(params, x)

    @torch.no_grad()
    def score(self, params: Mapping[str, Tensor], split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy, each ``[P]``, on a fixed set of images.

        That is the whole validation or test split (the first ``limit`` of it), or 5,000 fixed training images.
        """
        data = self.images
        count = len(data.train_subset) if split == "train" else len(data.labels[split])
        count = min(count, limit) if limit else count
        particles = len(next(iter(params.values())))
        chunk = max(1, min(2000, _CHUNK_VALUES // (particles * self._widest)))
        loss = torch.zeros(particles, dtype=torch.float64)
        right = torch.zeros(particles, dtype=torch.float64)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            x, y = self._augmented(*data.take(split, data.train_subset[part] if split == "train" else part))
            found = self.logits(params, x.to(next(iter(params.values())).dtype))
            loss += _losses(found, y).double().cpu() * len(y)
            right += (found.argmax(2) == y).sum(1).cpu()
        return loss / count, right / count

    # -- routes -------------------------------------------------------------------------------------------------------

    @property
    def _flat(self) -> bool:
        return isinstance(self.architecture, Stack) and not self.architecture.layers[0].kernel

    @property
    def _route(self) -> str:
        return _route(self.architecture)

    @property
    def _widest(self) -> int:
        return _widest(self.architecture, self.side)

    def _logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        one = 2 if self._flat else 4
        if self._route == "grouped" and x.dim() == one:
            assert isinstance(self.architecture, Stack)
            return grouped_logits([self.architecture] * len(next(iter(params.values()))), params, x)
        return self.architecture.forward(params, x)

    def _compiled(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> bool:
        if self._route != "grouped" or any(value.dtype != torch.float32 for value in params.values()):
            return False
        assert isinstance(self.architecture, Stack)
        return TrainingStep.takes([self.architecture], x, y)

    def _compiled_step(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(self.architecture, Stack)
        particles, hidden = len(next(iter(params.values()))), len(self.architecture.layers) - 1
        step = TrainingStep([self.architecture] * particles, x, y, params, torch.zeros(particles))
        flat = torch.cat([value.reshape(-1) for value in params.values()])
        grads = torch.empty_like(flat)
        losses = step(torch.arange(len(y)), [None] * hidden, flat, grads)
        parts = grads.split([value.numel() for value in params.values()])
        return losses, {name: g.view(value.shape) for (name, value), g in zip(params.items(), parts, strict=True)}


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropies ``[P]`` of ``[P, n, classes]`` with ``[n]`` or ``[P, n]``."""
    particles, n = logits.shape[:2]
    each = F.cross_entropy(logits.flatten(0, 1), y.expand(particles, n).reshape(-1), reduction="none")
    return each.view(particles, n).mean(1)


@functools.lru_cache(maxsize=1024)
def _spec(architecture: Stack | ModuleArchitecture) -> GraphSpec:
    return spec_of_stack(architecture) if isinstance(architecture, Stack) else _facts(architecture).graph.spec


@functools.lru_cache(maxsize=1024)
def _route(architecture: Stack | ModuleArchitecture) -> str:
    if not isinstance(architecture, Stack):
        return "module"
    if architecture.layers[0].kernel:
        return "grouped"
    return "mlp" if _mlp_step.takes(architecture) else "module"


@functools.lru_cache(maxsize=1024)
def _widest(architecture: Stack | ModuleArchitecture, side: int) -> int:
    """Values of one image in the layer that has most of them, roughly."""
    if not isinstance(architecture, Stack):
        return side * side * 64
    places, found = (side * side if architecture.layers[0].kernel else 1), architecture.layers[0].inputs
    for layer in architecture.layers:
        places = max(1, places // layer.stride**2) if layer.kernel else 1
        found = max(found, layer.outputs * places)
        places = 1 if layer.pool == "global" else places
    return found


@functools.lru_cache(maxsize=4096)
def _initial(architecture: Stack | ModuleArchitecture, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture.module()
    return {name: value.detach() for name, value in module.named_parameters()}


@functools.lru_cache(maxsize=96)
def _order(count: int, seed: int, epoch: int, device: str) -> Tensor:
    """A permutation of the training images, int32; the last ones are kept, as runs take turns."""
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    return torch.randperm(count, generator=generator).int().to(device)


def _mixed(seed: int, number: int) -> int:
    """A seed for each pair, far from those of other pairs (SplitMix64, Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & 0x7FFFFFFFFFFFFFFF


@functools.lru_cache(maxsize=256)
def _names(order: tuple[int, ...], device: str) -> Tensor:
    if sorted(order) != list(range(len(order))):
        raise UserError(f"label_order {order} is no permutation of 0..{len(order) - 1}")
    return torch.tensor(order, device=device)
