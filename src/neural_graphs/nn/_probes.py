"""Probe features: learned inputs run through every network, read at every neuron or at the outputs."""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph

ProbeGenerator = Literal["points", "deep-linear"]
"""Where probes come from: free points, or a deep linear generator."""

ProbeReads = Literal["neurons", "outputs"]
"""Whose responses are read: every neuron's, or only those of the output neurons."""


class LearnedProbes(nn.Module):
    """K free points, initially uniform in [-1, 1]; ``points`` is ``[K, inputs]``."""

    def __init__(self, probes: int, inputs: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(probes, inputs) * 2 - 1)


class DeepLinearProbes(nn.Module):
    """K learned latents ``[K, latent]`` through a chain of linear maps without activations (ProbeGen, Kahana et al. 2025).

    The generator can express nothing that free points could not; what it changes is how they move: together, along the few
    directions that the shared maps favour. Initially ``points`` are uniform in [-1, 1], as free points are (up to the rank
    of the generator, when networks have more inputs than there are latent dimensions).

    ``depth`` counts linear maps: latent -> latent -> ... -> inputs.
    """

    def __init__(self, probes: int, inputs: int, depth: int = 2, latent: int = 32) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"a probe generator has at least one linear map, not {depth}")
        sizes = [latent] * depth + [inputs]
        self.maps = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
        whole = torch.eye(latent)
        for linear in self.maps:
            assert isinstance(linear, nn.Linear)
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)
            whole = linear.weight.detach() @ whole
        # Of all latents that give the wanted points, those nearest to random ones: rows of `whole` are orthonormal.
        wanted, start = torch.rand(probes, inputs) * 2 - 1, torch.randn(probes, latent)
        if inputs > latent:
            wanted = wanted * math.sqrt(inputs / latent)  # what the projection onto the generator's range takes away
        self.latents = nn.Parameter(start + (wanted - start @ whole.T) @ torch.linalg.pinv(whole).T)

    @property
    def points(self) -> Tensor:
        return self.maps(self.latents)


def probe_source(generator: str, probes: int, inputs: int, depth: int = 2) -> LearnedProbes | DeepLinearProbes:
    """The module whose ``points`` are the current probes; ``depth`` is that of a deep linear generator."""
    if generator == "points":
        return LearnedProbes(probes, inputs)
    if generator == "deep-linear":
        return DeepLinearProbes(probes, inputs, depth)
    raise UserError(f"unknown generator of probes {generator!r}: choose one of {', '.join(get_args(ProbeGenerator))}")


def check_probed(graph: NeuralGraph, inputs: int) -> None:
    """Raise ``UserError`` when probes of ``inputs`` values cannot be run through networks like ``graph``."""
    if graph.spec.num_inputs != inputs:
        raise UserError(f"this model probes networks of {inputs} inputs, this one has {graph.spec.num_inputs}")
    if graph.stack is None and graph.trace is None:
        raise UserError("this model probes networks, and this graph holds no executable architecture")


class ProbeFeatures(nn.Module):
    """K learned inputs; each neuron's K responses become a node feature (Kofinas et al. 2024, section on probe features).

    The networks run on their raw weights. Responses go through ``Linear(K, F)`` and ``LayerNorm``, one pair each for
    inputs, hidden neurons and outputs, so that any depth can be read. Networks of one batch may differ in everything but
    their number of inputs. Traced modules are probed too, if they read vectors ``[K, inputs]``.

    Args:
        probes: K.
        inputs: number of inputs of every network.
        width: F.
        generator: "points" (free), or "deep-linear" (see ``DeepLinearProbes``).
        reads: "neurons", or "outputs": only output neurons get a feature.
    """

    def __init__(
        self, probes: int, inputs: int, width: int, generator: str = "points", reads: str = "neurons", depth: int = 2
    ) -> None:
        super().__init__()
        if reads not in get_args(ProbeReads):
            raise UserError(f"probes cannot read {reads!r}: choose one of {', '.join(get_args(ProbeReads))}")
        self.inputs, self.width = inputs, width
        self.source = probe_source(generator, probes, inputs, depth)
        roles = ("input", "hidden", "output") if reads == "neurons" else ("output",)
        self.projections = nn.ModuleDict(
            {role: nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width)) for role in roles}
        )

    @property
    def points(self) -> Tensor:
        """The current probes ``[K, inputs]``."""
        return self.source.points

    def forward(self, graph: NeuralGraph) -> list[Tensor | None]:
        """Features per node set, ``[B, n, F]``; None for sets that are not read."""
        check_probed(graph, self.inputs)
        points = self.points.to(graph.dtype)
        found: list[Tensor | None] = []
        for node_set, value in zip(graph.spec.node_sets, graph.responses(points), strict=True):
            if node_set.role not in self.projections:
                found.append(None)
                continue
            if value is None:  # a traced module that never holds the values of these neurons
                value = points.new_zeros(graph.batch_size, len(points), node_set.size)
            found.append(self.projections[node_set.role](value.transpose(1, 2)))
        return found
