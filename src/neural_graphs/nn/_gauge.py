"""One network for all that differ by positive scales and phases of their neurons: weights in a canonical gauge."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from neural_graphs.graph import Block, GraphSpec, NeuralGraph
from neural_graphs.nn._phase import fold


class Unit(NamedTuple):
    """What the neurons of one node set allow, each by itself, beside permutation."""

    scale: bool = False
    sign: bool = False
    phase: bool = False


@lru_cache(maxsize=4096)
def units(spec: GraphSpec) -> tuple[Unit, ...]:
    """Per node set the rescalings that act on it as ``b <- q b``, incoming ``w <- q w``, outgoing ``w <- w / q``.

    Read off ``spec.symmetries.rescalings``, not the activations alone: behind a ReLU may stand a normalisation or a
    residual, and a maximum behind a tanh. Rescalings that act in another way (running variances, packed projections,
    classes of several node sets) are left out, which treats such neurons as having a factor of 1.
    """
    owners: dict[str, list[int]] = {}
    for s, nodes in enumerate(spec.node_sets):
        for name, _ in nodes.axis.classes:
            owners.setdefault(name, []).append(s)
    found = [Unit() for _ in spec.node_sets]
    for rescaling in spec.symmetries.rescalings:
        own = owners.get(rescaling.symmetry, [])
        if len(own) != 1 or spec.node_sets[own[0]].symmetry is None:
            continue
        s = own[0]
        given = {t.parameter: (t.exponent, t.shift) for t in rescaling.terms if t.parameter not in spec.canonical}
        simple = all(not t.offset and not t.pieces for t in rescaling.terms) and len(given) == len(
            [t for t in rescaling.terms if t.parameter not in spec.canonical]
        )
        expected = _expected(spec, s, rescaling.kind)
        if simple and expected is not None and _same(given, expected):
            found[s] = found[s]._replace(**{rescaling.kind: True})
    return tuple(found)


def _expected(spec: GraphSpec, s: int, kind: str) -> dict[str, tuple[float, float]] | None:
    """Exponent and shift of every parameter around a node set; None where the gauge below could not follow."""
    nodes = spec.node_sets[s]
    if nodes.role != "hidden" or any(feature.shared for feature in nodes.features):
        return None
    turn = math.pi / abs(nodes.activation.omega) if kind == "phase" and nodes.activation.omega else 0.0
    found: dict[str, tuple[float, float]] = {}
    for name in nodes.parameters:
        found[name] = (0.0, turn) if kind == "phase" else (1.0, 0.0)
    for block in spec.blocks:
        if s not in (block.source, block.target):
            continue
        # A node set is brought into its gauge after those that it reads.
        if block.parameter is None or block.copy_of is not None or block.source >= block.target:
            return None
        if block.target == s:
            entry = (0.0, 0.0) if kind == "phase" else (1.0, 0.0)
        else:
            entry = (-1.0, 0.0) if kind == "scale" else (1.0, 0.0)
        if block.parameter in found:
            return None
        found[block.parameter] = entry
    return {name: entry for name, entry in found.items() if entry != (0.0, 0.0)}


def _same(given: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]]) -> bool:
    return given.keys() == expected.keys() and all(
        math.isclose(a, b, abs_tol=1e-12) for name in given for a, b in zip(given[name], expected[name], strict=True)
    )


@dataclass(frozen=True, eq=False)
class Gauge:
    """A batch of networks in their gauge, and the way back.

    ``graph`` holds the weights and biases. ``scales[s]`` ``[B, n]`` are the norms that scale units were divided by (what
    multiplies like the neuron's value is ``scales`` times what does not), ``flips[s]`` ``[B, n]`` the signs that phases put
    on the neuron's value; None where there are none.
    """

    graph: NeuralGraph
    scales: tuple[Tensor | None, ...]
    flips: tuple[Tensor | None, ...]

    def nodes(self, s: int, x: Tensor) -> Tensor:
        """Embeddings ``[B, n, F]`` in the gauge -> such that multiply with the neurons' scales."""
        scale = self.scales[s]
        return x if scale is None else x * scale.unsqueeze(-1)

    def values(self, s: int, z: Tensor) -> Tensor:
        """What the neurons of the given network hand on, ``[B, n, K]`` -> what those in the gauge do."""
        return z if (factor := self._inverse(s)) is None else z * factor.unsqueeze(-1)

    def edges(self, block: Block, e: Tensor, reverse: bool = False) -> Tensor:
        """Embeddings ``[B, n_out, n_in / groups, F]`` in the gauge -> such that multiply like the weights, or, in
        ``reverse``, with the sender's and receiver's scales exchanged."""
        target, source = self.scales[block.target], self.scales[block.source]
        if reverse:
            target, source = _reciprocal(target), _reciprocal(source)
        factor = _over_sources(_reciprocal(source), block, e)
        flip = _over_sources(self.flips[block.source], block, e)
        for part in (factor, flip, None if target is None else target[:, :, None, None]):
            e = e if part is None else e * part
        return e

    def _inverse(self, s: int) -> Tensor | None:
        scale, flip = _reciprocal(self.scales[s]), self.flips[s]
        return flip if scale is None else scale if flip is None else scale * flip


def fix_gauge(graph: NeuralGraph) -> Gauge:
    """Networks that compute the same, with one choice of scales and phases.

    Frequencies of sines are absorbed into weights and biases (w <- omega w, b <- omega b); phases folded (see ``fold``).
    Every scale unit is divided by the norm of its incoming weights and bias, and its outgoing weights are multiplied by it;
    a unit without any input is 0 whatever its outgoing weights are, and these become 0. Layer by layer from the inputs, all
    networks at once, differentiable. Exact: networks that differ by scales and phases have the same gauge.
    """
    spec, found = graph.spec, units(graph.spec)
    edges, nodes = list(graph.edges), list(graph.nodes)
    scales: list[Tensor | None] = [None] * len(nodes)
    flips: list[Tensor | None] = [None] * len(nodes)
    for s, node_set in enumerate(spec.node_sets):
        into = [(k, block) for k, block in enumerate(spec.blocks) if block.target == s and block.features]
        omega = node_set.activation.omega if node_set.activation.kind == "sine" else 1.0
        nodes[s] = nodes[s] * omega if omega != 1 else nodes[s]
        for k, block in into:
            for factor in (scales[block.source], flips[block.source]):
                spread = _over_sources(factor, block, edges[k])
                edges[k] = edges[k] if spread is None else edges[k] * spread
            edges[k] = edges[k] * omega if omega != 1 else edges[k]
        if found[s].phase:
            nodes[s], flip = fold(nodes[s])
            flips[s] = flip[..., 0]
        if found[s].scale:
            square = sum((edges[k].square().sum((-2, -1)) for k, _ in into), nodes[s].square().sum(-1))
            dead = square == 0
            norm = square.masked_fill(dead, 1).sqrt().masked_fill(dead, 0)
            inverse = _reciprocal(norm)
            assert inverse is not None
            for k, _ in into:
                edges[k] = edges[k] * inverse[:, :, None, None]
            nodes[s] = nodes[s] * inverse[:, :, None]
            scales[s] = norm
    return Gauge(replace(graph, nodes=tuple(nodes), edges=tuple(edges)), tuple(scales), tuple(flips))


def _reciprocal(x: Tensor | None) -> Tensor | None:
    """1 / x, and 0 for 0."""
    return None if x is None else (x == 0).logical_not() / x.masked_fill(x == 0, 1)


def _over_sources(factor: Tensor | None, block: Block, edges: Tensor) -> Tensor | None:
    """``[B, n_source]`` -> what multiplies edges ``[B, n_out, n_in / groups, f]`` from these sources."""
    if factor is None:
        return None
    if block.groups == 1:
        return factor[:, None, :, None]
    by_group = factor.unflatten(1, (block.groups, edges.shape[2]))
    return by_group.repeat_interleave(edges.shape[1] // block.groups, 1).unsqueeze(-1)
