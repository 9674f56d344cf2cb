"""From a network's code back to the image that the network represents: a task that needs no labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, GraphBatch, pixel_grid, render
from neural_graphs.tasks._changes import DECODER, seed_of
from neural_graphs.tasks._data import subset
from neural_graphs.tasks._model import GraphModel

if TYPE_CHECKING:
    from neural_graphs.tasks._config import TrainConfig
    from neural_graphs.tasks._model import Model
    from neural_graphs.zoo._store import ZooSplit

MEASURED = 1024
"""So many training networks say what the mean image and the variance around it are."""


class Decoder(nn.Module):
    """Code ``[B, code]`` to ``side x side`` pixels of ``outputs`` channels, ``[B, side * side * outputs]``.

    ``Linear, ReLU, Linear``. Images are standardised: 0 is the mean image of the training networks, and the mean square of
    what they differ from it is 1, so that an error of 1 is that of an encoder that has learned nothing.
    """

    def __init__(self, code: int, hidden: int, side: int, outputs: int) -> None:
        super().__init__()
        self.side = side
        self.mlp = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, side * side * outputs))
        self.grid: Tensor
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("grid", pixel_grid(side, side))  # where images are drawn: runs that go on hold it
        self.register_buffer("mean", torch.zeros(side * side * outputs))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, code: Tensor) -> Tensor:
        return self.mlp(code)

    def errors(self, images: Tensor, batch: GraphBatch) -> Tensor:
        """Mean squared error ``[B]`` of standardised ``images`` against what the networks of ``batch`` draw."""
        with torch.no_grad():
            target = (self._render(batch) - self.mean) / self.scale
        return (images - target).square().mean(1)

    @torch.no_grad()
    def measure(self, batches: Iterable[GraphBatch]) -> None:
        """Take mean and scale from these networks."""
        images = torch.cat([self._render(batch.to(self.grid.device)) for batch in batches]).double()
        self.mean.copy_(images.mean(0))
        variance = float((images - images.mean(0)).square().mean())
        self.scale.fill_(variance**0.5 if variance > 1e-12 else 1.0)

    def _render(self, batch: GraphBatch) -> Tensor:
        return render(batch, self.side, self.side).flatten(1)


def create_decoder(model: Model, train: ZooSplit, config: TrainConfig) -> Decoder:
    """An untrained decoder for the networks of ``train``; raises ``UserError`` when they are no images."""
    stacks = list(train.architectures.values())
    check_images(stacks)
    assert isinstance(model, GraphModel)
    last = model.head.mlp[-1]
    assert isinstance(last, nn.Linear)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed_of(config.seed, DECODER))
        decoder = Decoder(last.in_features, config.pretrain.width, config.pretrain.side, stacks[0].num_outputs)
    chosen = subset(train, MEASURED, config.seed)
    decoder.measure(chosen.batch(slice(first, first + 128)) for first in range(0, len(chosen), 128))
    return decoder


def check_images(stacks: Iterable[Architecture]) -> None:
    """Raise ``UserError`` unless all are functions of two coordinates with the same number of outputs."""
    outputs = set()
    for stack in stacks:
        if stack.input_shape != (2,):
            raise UserError(
                f"pretrain and reconstruction draw the image of every network, and {stack} is none: only networks with 2 "
                "inputs are; set pretrain.epochs=0 reconstruction=0"
            )
        outputs.add(stack.num_outputs)
    if len(outputs) > 1:
        raise UserError("pretrain and reconstruction need networks of one number of outputs, these have several")
