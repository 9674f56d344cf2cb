"""Probe features: learned inputs run through every network, read at every neuron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph


class ProbeFeatures(nn.Module):
    """K learned inputs; each neuron's K responses become a node feature (Kofinas et al. 2024, section on probe features).

    The networks run on their raw weights. Responses go through ``Linear(K, F)`` and ``LayerNorm``, one pair each for
    inputs, hidden neurons and outputs, so that any depth can be read. Networks of one batch may differ in everything but
    their number of inputs. Traced modules are probed too, if they read vectors ``[K, inputs]``.
    """

    def __init__(self, probes: int, inputs: int, width: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(probes, inputs) * 2 - 1)
        self.projections = nn.ModuleDict(
            {
                role: nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width))
                for role in ("input", "hidden", "output")
            }
        )

    def forward(self, graph: NeuralGraph) -> list[Tensor]:
        """Features per node set, ``[B, n, F]``."""
        if graph.spec.num_inputs != self.points.shape[1]:
            raise UserError(
                f"this model's probes have {self.points.shape[1]} inputs, the network has {graph.spec.num_inputs}"
            )
        points = self.points.to(graph.dtype)
        found = []
        for node_set, value in zip(graph.spec.node_sets, graph.responses(points), strict=True):
            if value is None:  # a traced module that never holds the values of these neurons
                value = points.new_zeros(graph.batch_size, len(points), node_set.size)
            found.append(self.projections[node_set.role](value.transpose(1, 2)))
        return found
