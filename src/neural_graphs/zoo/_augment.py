"""Augmentations: jittered weights of any networks; of coordinate networks (INRs) the same image moved, turned and resized.

After Navon et al. (2023) and Kofinas et al. (2024), with the noise multiplied by a random factor, which the public code
forgot. Every network of a batch gets draws of its own, and the whole batch is done at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph

Graphs = TypeVar("Graphs", NeuralGraph, GraphBatch)


def augment(
    batch: Graphs,
    generator: torch.Generator,
    *,
    translation: float = 0.25,
    rotation: float = 45.0,
    scaling: float = 0.2,
    noise: float = 0.1,
    dropout: float = 0.01,
    exact_translation: bool = False,
) -> Graphs:
    """Randomly changed copies of all networks of ``batch``; the same generator state gives the same copies.

    Args:
        translation: shift t ~ U(-translation, translation) per input axis, pushed through the first k linear layers and
            added to layer k's bias, k uniform over all layers. With k = 1 the network becomes exactly f(x + t); a larger k
            skips the non-linearities in between and is a jitter of that layer's biases along the image of t.
        rotation: angle ~ U(-rotation, rotation) degrees; the network becomes f(R x). Needs two inputs.
        scaling: the first weight times 1 + U(-scaling, scaling): f((1 + s) x).
        noise: w + noise * std(w) * N(0, 1), std over each tensor of each network, weights and biases.
        dropout: probability of an entry to become 0; the others are divided by 1 - dropout. Neither touches running
            statistics: they are measured, and a variance must not become negative.
        exact_translation: always k = 1.

    A strength of 0 switches an augmentation off. Raises ``UserError`` when the networks do not map coordinates and
    ``translation``, ``rotation`` or ``scaling`` are on.
    """

    def one(graph: NeuralGraph) -> NeuralGraph:
        if translation or rotation or scaling:
            _check(graph, rotation)
        if translation:
            graph = _translate(graph, generator, translation, exact_translation)
        if rotation:
            graph = _rotate(graph, _uniform(generator, graph, rotation, graph.batch_size) * (math.pi / 180))
        if noise:
            graph = _jitter(graph, lambda t: t + noise * _std(t) * _normal(generator, t))
        if dropout:
            graph = _jitter(graph, lambda t: t * (_rand(generator, t, *t.shape) >= dropout) / (1 - dropout))
        if scaling:
            factor = 1 + _uniform(generator, graph, scaling, graph.batch_size)
            graph = _with_first(graph, graph.edges[0] * factor[:, None, None, None])
        return graph

    if isinstance(batch, NeuralGraph):
        return one(batch)
    return GraphBatch(tuple(one(graph) for graph in batch.buckets), batch.index)


def _jitter(graph: NeuralGraph, function: Callable[[Tensor], Tensor]) -> NeuralGraph:
    """``graph`` with ``function`` of every parameter ``[B, ...]``."""
    spec = graph.spec
    statistics = {
        feature.parameter
        for nodes in spec.node_sets
        for feature in nodes.features
        if feature.kind in ("running_mean", "running_var")
    }
    whole = all(len(places) == 1 for places in spec.places.values()) and all(
        len(nodes.features) <= 1 for nodes in spec.node_sets
    )
    if whole and not statistics and not spec.shares:
        return graph.map(function)
    state = graph.to_state_dict(batched=True)
    for name in spec.places:
        if name not in statistics:
            state[name] = function(state[name])
    return graph.like(state | {alias: state[name] for alias, name in spec.tied}, batched=True)


def _check(graph: NeuralGraph, rotation: float) -> None:
    chain = all(
        (b.source, b.target, b.features, b.groups, b.kernel, b.copy_of) == (k, k + 1, 1, 1, (), None)
        for k, b in enumerate(graph.spec.blocks)
    )
    if not chain or any(nodes.columns > 1 for nodes in graph.spec.node_sets):
        raise UserError(
            "augment: translation, rotation and scaling move the image of a coordinate network, and these networks are "
            "none: set augment.translation=0 augment.rotation=0 augment.scaling=0"
        )
    if rotation and graph.spec.num_inputs != 2:
        raise UserError(
            f"augment: rotation needs networks of 2 inputs, these have {graph.spec.num_inputs}: set augment.rotation=0"
        )


def _translate(graph: NeuralGraph, generator: torch.Generator, strength: float, exact: bool) -> NeuralGraph:
    biased = [s for s, nodes in enumerate(graph.nodes) if nodes.shape[-1]]
    if not biased or (exact and biased[0] != 1):
        raise UserError("augment: translation needs layers with biases: set augment.translation=0")
    pushed = _uniform(generator, graph, strength, graph.batch_size, graph.spec.num_inputs)
    draw = torch.randint(len(biased), (graph.batch_size,), generator=generator, device=generator.device)
    depth = torch.tensor(biased)[draw.cpu()].to(graph.device)
    if exact:
        depth = torch.ones_like(depth)
    nodes = list(graph.nodes)
    for block, weight in zip(graph.spec.blocks, graph.edges, strict=True):
        pushed = torch.bmm(weight.squeeze(-1), pushed.unsqueeze(-1)).squeeze(-1)
        if nodes[block.target].shape[-1]:
            chosen = (depth == block.target).to(pushed.dtype).unsqueeze(-1)
            nodes[block.target] = nodes[block.target] + (chosen * pushed).unsqueeze(-1)
    return replace(graph, nodes=tuple(nodes))


def _rotate(graph: NeuralGraph, angle: Tensor) -> NeuralGraph:
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return _with_first(graph, torch.bmm(graph.edges[0].squeeze(-1), matrix).unsqueeze(-1))


def _with_first(graph: NeuralGraph, weight: Tensor) -> NeuralGraph:
    return replace(graph, edges=(weight, *graph.edges[1:]))


def _std(t: Tensor) -> Tensor:
    """Standard deviation of each network's entries, ``[B, 1, ...]``; 0 for a single entry, which has none."""
    if t[0].numel() < 2:
        return t.new_zeros(t.shape[0], *(1,) * (t.dim() - 1))
    return t.flatten(1).std(1).view(-1, *(1,) * (t.dim() - 1))


def _rand(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _normal(generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _uniform(generator: torch.Generator, graph: NeuralGraph, strength: float, *shape: int) -> Tensor:
    return (2 * _rand(generator, graph.edges[0], *shape) - 1) * strength
