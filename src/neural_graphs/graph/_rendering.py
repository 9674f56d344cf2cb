"""Drawing the images that implicit neural representations (INRs) are: many networks at once, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._batch import GraphBatch
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._responses import recorded_shapes


def pixel_grid(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinates ``[height * width, 2]`` of the pixels row by row, as (column, row), each in ``linspace(-1, 1)``."""
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=dtype), torch.linspace(-1, 1, width, dtype=dtype), indexing="ij"
    )
    return torch.stack((columns.flatten(), rows.flatten()), dim=1)


def render(
    networks: NeuralGraph | GraphBatch, height: int, width: int, pixel_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """The images ``[B, height, width, channels]`` that networks of two inputs draw on ``pixel_grid``.

    In the batch's order and the networks' dtype, and differentiable with respect to their parameters. ``pixel_range`` is
    (black, white) in the networks' own values; images have black 0 and white 1 and are not clipped.

    Raises:
        UserError: networks that do not take two coordinates, or that have different numbers of outputs.
    """
    batch = GraphBatch.of(networks)
    for graph in batch.buckets:
        check_drawable(graph)
    images = [_values(graph, height, width) for graph in batch.buckets]
    if len({value.shape[2:] for value in images}) > 1:
        raise UserError("networks of different numbers of outputs draw images of different colours: render them apart")
    if not images:
        return torch.zeros(0, height, width, 1)
    low, high = pixel_range
    values = batch.restore(images).unflatten(1, (height, width))
    return values if (low, high) == (0, 1) else (values - low) / (high - low)


def check_drawable(graph: NeuralGraph) -> None:
    """Raise ``UserError`` unless the networks map two coordinates to pixel values."""
    if graph.stack is not None:
        fits = graph.stack.input_shape == (2,)
    else:
        fits = graph.trace is not None and [shape[1:] for shape in recorded_shapes(graph.trace)] == [(2,)]
    if not fits:
        shown = graph if graph.stack is None else graph.stack
        raise UserError(f"{shown} is no image: only networks with 2 inputs can be rendered")


def _values(graph: NeuralGraph, height: int, width: int) -> Tensor:
    values = graph.run(pixel_grid(height, width, graph.dtype).to(graph.device))
    if values.dim() != 3:
        raise UserError(
            f"{graph} gives {list(values.shape[2:])} values per pixel, but images need one axis of channels"
        )
    return values
