"""The baseline that looks at functions: run every network on learned inputs, read the responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._embedding import DepthEmbedding
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._probes import ProbeReads, check_probed, probe_source, responses
from neural_graphs.nn._registry import register_encoder


@register_encoder("probing")
class Probing(Encoder):
    """K probes through every network, their responses through a perceptron -> one vector ``[B, width]`` per network.

    With ``probe_reads="outputs"`` this is ProbeGen (Kahana et al. 2025): it sees what networks compute, never their
    weights, so whatever leaves the function alone leaves the vector alone. ``"neurons"`` also reads inside: each hidden
    neuron is a token, its K responses, and tokens are pooled over layers (after HiddenProbe). Any mixture of architectures
    with such inputs and so many outputs is read, traced modules included. Probes are vectors or images; a channel's response
    to an image is its mean over positions.

    Args:
        width: of the perceptron and the vector.
        layers: of the perceptron. The default and the three of ``GraphHead`` are ProbeGen's six.
        probes: K.
        inputs: number of inputs of every network.
        outputs: number of outputs of every network.
        probe_generator: "deep-linear" (ProbeGen), or "points" (free, "vanilla probing").
        generator_depth: linear maps of the deep linear generator; 0: 2 for vectors, 4 for images.
        probe_reads: "outputs" or "neurons".
        dropout: after every layer of the perceptron.
        probe_shape: ``(c, h, w)``: probes are images; ``()``: vectors of ``inputs`` numbers.

    ``fit_normalization`` also measures mean and standard deviation of each output over the zoo and the probes, with which
    responses are standardised. Other numbers of inputs or outputs, and graphs that cannot be run, raise ``UserError``.
    """

    vectors = True

    def __init__(
        self,
        width: int = 256,
        layers: int = 3,
        probes: int = 128,
        inputs: int = 2,
        outputs: int = 1,
        probe_generator: str = "deep-linear",
        generator_depth: int = 0,
        probe_reads: str = "outputs",
        dropout: float = 0.0,
        probe_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if min(width, layers, probes, inputs, outputs) < 1:
            raise UserError("probing: width, layers, probes, inputs and outputs must be positive")
        if probe_reads not in get_args(ProbeReads):
            raise UserError(f"probes cannot read {probe_reads!r}: choose one of {', '.join(get_args(ProbeReads))}")
        self.width, self.inputs, self.outputs = width, inputs, outputs
        self.probe_shape = tuple(probe_shape)
        self.probes = probe_source(probe_generator, probes, inputs, generator_depth, probe_shape)
        self.neurons = NeuronPooling(probes, max(1, width // 2)) if probe_reads == "neurons" else None
        self.features = probes * outputs + (2 * self.neurons.width if self.neurons is not None else 0)
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise([self.features] + [width] * layers):
            steps += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*steps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def check_readable(self, graph: NeuralGraph) -> None:
        check_probed(graph, self.inputs, self.probe_shape)
        if graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
            )

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        sums = torch.zeros(3, self.outputs, dtype=torch.float64)

        def measured() -> Iterable[NeuralGraph]:
            for graph in graphs:
                with torch.no_grad():
                    values = self._outputs(graph, responses(graph, self.probes.points)).double().flatten(0, 1)
                sums.add_(torch.stack([torch.ones_like(values), values, values.square()]).sum(1).cpu())
                yield graph

        super().fit_normalization(measured())
        mean = sums[1] / sums[0]
        std = (sums[2] / sums[0] - mean.square()).clamp_min(0).sqrt()
        if not std.isfinite().all():
            raise UserError("some networks of the zoo answer probes with NaN or infinity: leave them out")
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        batch = GraphBatch.of(batch)
        if not batch.buckets:
            return Encoding(batch, vector=self.net(self.mean.new_zeros(0, self.features)))
        return Encoding(batch, vector=self.net(batch.restore(self._read(batch.buckets))))

    def _read(self, graphs: Sequence[NeuralGraph]) -> list[Tensor]:
        """What the perceptron reads, ``[B, features]`` per bucket."""
        points, values = self.probes.points, []
        for graph in graphs:
            self.check_readable(graph)
            values.append(responses(graph, points))
        found = [
            ((self._outputs(graph, each) - self.mean) / self.std).flatten(1)
            for graph, each in zip(graphs, values, strict=True)
        ]
        if self.neurons is None:
            return found
        inside = self.neurons([graph.spec for graph in graphs], values)
        return [torch.cat(parts, 1) for parts in zip(found, inside, strict=True)]

    def _outputs(self, graph: NeuralGraph, values: list[Tensor]) -> Tensor:
        """``[B, K, outputs]``."""
        chosen = [v for nodes, v in zip(graph.spec.node_sets, values, strict=True) if nodes.role == "output"]
        return torch.cat(chosen, 2) if len(chosen) > 1 else chosen[0]


class NeuronPooling(nn.Module):
    """Hidden neurons as tokens: their K responses and their layer's depth, through a perceptron, pooled ``[B, 2 F]``.

    Mean and maximum over the neurons of each layer, then the mean over layers: independent of the order of neurons, for any
    widths and depths.
    """

    def __init__(self, probes: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.responses = nn.Linear(probes, width)
        self.depth = DepthEmbedding(width)
        self.token = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, specs: Sequence[GraphSpec], values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """``values`` ``[B, K, n]`` per architecture and node set -> ``[B, 2 F]`` per architecture."""
        held = [
            (g, (nodes.depth, spec.depth - nodes.depth), value.transpose(1, 2))
            for g, spec in enumerate(specs)
            for nodes, value in zip(spec.node_sets, values[g], strict=True)
            if nodes.role == "hidden"
        ]
        layers: list[list[Tensor]] = [[] for _ in specs]
        if held:
            counts = [value.shape[0] * value.shape[1] for _, _, value in held]
            depths = self.depth.rows([place for _, place, _ in held])
            depths = depths.repeat_interleave(torch.tensor(counts, device=depths.device), 0, output_size=sum(counts))
            tokens = self.token(self.responses(torch.cat([value.flatten(0, 1) for _, _, value in held])) + depths)
            for (g, _, value), part in zip(held, tokens.split(counts), strict=True):
                part = part.view(*value.shape[:2], self.width)
                layers[g].append(torch.cat([part.mean(1), part.amax(1)], 1))
        return [
            torch.stack(found).mean(0) if found else values[g][0].new_zeros(len(values[g][0]), 2 * self.width)
            for g, found in enumerate(layers)
        ]
