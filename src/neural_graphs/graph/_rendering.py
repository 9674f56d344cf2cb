"""Drawing the images that implicit neural representations (INRs) are: many networks at once, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neural_graphs.errors import UserError
from neural_graphs.graph._batch import GraphBatch
from neural_graphs.graph._drawing import CACHE_BYTES, can_draw, draw
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._image_kernel import can_draw_natively, draw_natively
from neural_graphs.graph._responses import recorded_shapes

DRAWN = (torch.float32, torch.float64)
DEVICE_BYTES = 2**30  # values of the networks that an accelerator runs together
NATIVE = 2_000_000
"""So many evaluations of activations in one call are worth the second that compiling the kernel for them takes;"""
NATIVE_WITH_GRADIENT = 200_000
"""fewer where a gradient is asked for: where there is one such call, there are thousands. Fewer are drawn by torch's own
functions, which round differently."""
FUSED = 5_000_000_000
"""So many are worth the seconds that fusing kernels takes, for networks that the compiled one is not for;"""
FUSED_WITH_GRADIENT = 1_000_000
"""again fewer with a gradient."""


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


@torch.compiler.disable  # done by hand
def _values(graph: NeuralGraph, height: int, width: int) -> Tensor:
    """Outputs ``[B, height * width, channels]``."""
    columns, rows = (torch.linspace(-1, 1, size, dtype=graph.dtype) for size in (width, height))
    stack = graph.stack
    params = graph.to_state_dict(batched=True)
    plain = graph.device.type == "cpu" and graph.dtype in DRAWN and {v.dtype for v in params.values()} == {graph.dtype}
    with torch.autocast(graph.device.type, enabled=False):  # a sine of frequency 30 has no digits to give away
        if stack is None or not plain or not can_draw(stack):
            return _run(graph, pixel_grid(height, width, graph.dtype).to(graph.device))
        evaluations = len(graph) * len(rows) * len(columns) * sum(stack.widths[1:-1])
        learns = torch.is_grad_enabled() and any(value.requires_grad for value in params.values())
        if evaluations >= (NATIVE_WITH_GRADIENT if learns else NATIVE) and can_draw_natively(stack, graph.dtype):
            values = draw_natively(stack, params, columns, rows).transpose(1, 2)
        else:
            fused = evaluations >= (FUSED_WITH_GRADIENT if learns else FUSED) and graph.dtype == torch.float32
            values = draw(stack, params, columns, rows, fused).transpose(1, 2)
        return values + stack.shift if stack.shift else values


def _run(graph: NeuralGraph, grid: Tensor) -> Tensor:
    """As ``graph.run``, some networks at a time, whose values are computed again where the backward pass needs them."""
    bytes_each = grid.element_size() * len(grid) * graph.spec.num_nodes
    step = max(1, (CACHE_BYTES if graph.device.type == "cpu" else DEVICE_BYTES) // bytes_each)
    found = []
    for first in range(0, max(1, len(graph)), step):
        part = graph[first : first + step]
        values = checkpoint(part.run, grid, use_reentrant=False, preserve_rng_state=False)
        if values.dim() != 3:
            raise UserError(
                f"{graph} gives {list(values.shape[2:])} values per pixel: images need one axis of channels"
            )
        found.append(values)
    return torch.cat(found) if len(found) > 1 else found[0]
