"""Mixup of networks: weights between those of two networks, after the second has been aligned with the first.

After Shamsian et al. (2024), "Improved Generalization of Weight Space Networks via Augmentations": networks of one
architecture are interpolated once the neurons of one are matched with those of the other (weight matching, Ainsworth et al.
2023). Here the units' signs and phases are matched as well, where their non-linearity has such symmetries.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph

SWEEPS = 2
"""Of the distance of INRs of different digits (2-32-32-1) that alignment can take away, two sweeps take 99 %."""


class Mixed(NamedTuple):
    """``share`` (float64 ``[B]``) of network b of ``batch`` comes from network b of the original batch, the rest from its
    network ``partner[b]`` (int64 ``[B]``)."""

    batch: GraphBatch
    partner: Tensor
    share: Tensor


def mixup(batch: GraphBatch | NeuralGraph, rng: np.random.Generator, alpha: float, sweeps: int = SWEEPS) -> Mixed:
    """Every network mixed with a random other one of its architecture, with shares from Beta(alpha, alpha).

    A network that is alone of its architecture in the batch is its own partner, and stays as it is.

    Raises:
        UserError: the networks are no plain stacks.
    """
    batch = GraphBatch.of(batch)
    partner = torch.empty(len(batch), dtype=torch.int64)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(batch)))
    buckets = []
    for graph, index in zip(batch.buckets, batch.index, strict=True):
        order = torch.from_numpy(rng.permutation(graph.batch_size))
        other = torch.empty_like(order)
        other[order] = order.roll(-1)
        partner[index] = index[other]
        buckets.append(interpolate(graph, align(graph, graph[other], sweeps), share[index]))
    return Mixed(GraphBatch(tuple(buckets), batch.index), partner, share)


def interpolate(first: NeuralGraph, second: NeuralGraph, share: Tensor) -> NeuralGraph:
    """``share`` (``[B]``) of ``first`` and the rest of ``second``, weight by weight."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        s = share.to(a.device, a.dtype).view(-1, *(1,) * (a.dim() - 1))
        return s * a + (1 - s) * b

    nodes = tuple(map(between, first.nodes, second.nodes))
    return replace(first, nodes=nodes, edges=tuple(map(between, first.edges, second.edges)))


def align(reference: NeuralGraph, graph: NeuralGraph, sweeps: int = SWEEPS) -> NeuralGraph:
    """The networks of ``graph``, each with its hidden units reordered, and their signs and phases changed, such that its
    weights come close to those of the same network of ``reference``; the functions stay.

    Layer by layer from the inputs on, units are assigned so that the squared distance of their weights becomes as small as
    it can with the other layers as they are; ``sweeps`` times, or until nothing changes, the first time without the weights
    to layers that are not aligned yet. A sine unit may also change its sign, sin(z) = -sin(-z), and its bias by multiples of
    half a period, sin(z + π) = -sin(z); a tanh unit its sign.

    Raises:
        UserError: the networks are no plain stacks.
    """
    _check(graph)
    nodes, edges = list(graph.nodes), list(graph.edges)
    last = len(edges) - 1
    for sweep in range(sweeps):
        # At first the units behind a layer stand in an order of their own, and say nothing of those of the layer.
        changes = [
            _match_layer(reference, nodes, edges, layer, behind=sweep > 0 or layer == last)
            for layer in range(1, last + 1)
        ]
        if sweep and not any(changes):
            break
    return replace(graph, nodes=tuple(nodes), edges=tuple(edges))


def _match_layer(reference: NeuralGraph, nodes: list[Tensor], edges: list[Tensor], layer: int, behind: bool) -> bool:
    """Align the units of one hidden layer, in place, by their incoming weights and biases and (``behind``) outgoing weights;
    returns whether any of them changed."""
    forms, period = _forms(reference, layer)
    into = torch.bmm(reference.edges[layer - 1].flatten(2), edges[layer - 1].flatten(2).transpose(1, 2))
    out = torch.zeros_like(into)
    if behind:
        out = torch.bmm(_by_source(reference.edges[layer]), _by_source(edges[layer]).transpose(1, 2))
    biased = bool(nodes[layer].shape[-1])
    wanted, bias = (t[layer].sum(-1) for t in (reference.nodes, nodes))  # of one column, or none

    # By how much each form of each unit (last axis) lowers half the squared distance from each unit of the reference.
    gains = []
    for sign, flip in forms:
        gap = _wrap(wanted.unsqueeze(2) - _move(bias, sign, flip, period).unsqueeze(1), period)
        gains.append(sign * into + sign * flip * out - gap.square() / 2)
    gain, form = torch.stack(gains).max(0)
    matrices = gain.double().cpu().numpy()
    columns = np.stack([linear_sum_assignment(matrix, maximize=True)[1] for matrix in matrices])
    order = torch.from_numpy(columns).to(gain.device)

    chosen = form.take_along_dim(order.unsqueeze(2), 2).squeeze(2)
    signs, flips = (gain.new_tensor(column)[chosen] for column in zip(*forms, strict=True))
    edges[layer - 1] = edges[layer - 1].take_along_dim(order[:, :, None, None], 1) * signs[:, :, None, None]
    edges[layer] = edges[layer].take_along_dim(order[:, None, :, None], 2) * (signs * flips)[:, None, :, None]
    if biased:
        moved = _move(bias.take_along_dim(order, 1), signs, flips, period)
        nodes[layer] = (moved + _turns(wanted - moved, period)).unsqueeze(-1)
    still = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return not torch.equal(order, still) or bool(((signs < 0) | (flips < 0)).any())


def _forms(graph: NeuralGraph, layer: int) -> tuple[list[tuple[float, float]], float]:
    """The signs that a unit of this layer may take: ``(sign, flip)`` multiply what comes in by ``sign`` and what goes out by
    ``sign * flip``, where ``flip`` -1 also moves the bias by half a period. And the period of the bias, 0 if it has none."""
    node_set = graph.spec.node_sets[layer]
    kinds = {rescaling.kind for rescaling in graph.symmetries.rescalings if rescaling.symmetry == node_set.symmetry}
    signs = (1.0, -1.0) if "sign" in kinds else (1.0,)
    if "phase" not in kinds:
        return [(sign, 1.0) for sign in signs], 0.0
    return [(sign, flip) for sign in signs for flip in (1.0, -1.0)], 2 * math.pi / abs(node_set.activation.omega)


def _move(bias: Tensor, sign: Tensor | float, flip: Tensor | float, period: float) -> Tensor:
    return sign * bias + (1 - flip) / 2 * (period / 2)


def _turns(gap: Tensor, period: float) -> Tensor:
    """The whole periods within ``gap``."""
    return (gap / period).round() * period if period else torch.zeros_like(gap)


def _wrap(gap: Tensor, period: float) -> Tensor:
    return gap - _turns(gap, period)


def _by_source(edges: Tensor) -> Tensor:
    """``[B, n_target, n_source, f]`` as ``[B, n_source, n_target * f]``."""
    return edges.transpose(1, 2).flatten(2)


def _check(graph: NeuralGraph) -> None:
    blocks = [(b.source, b.target, b.groups, b.copy_of, b.parameter is None) for b in graph.spec.blocks]
    if blocks != [(k, k + 1, 1, None, False) for k in range(len(blocks))] or any(
        nodes.columns > 1 for nodes in graph.spec.node_sets
    ):
        raise UserError(
            "augment: mixup aligns plain stacks of layers, and these networks are none: set augment.mixup=0"
        )
