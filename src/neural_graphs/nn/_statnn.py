"""The baseline that looks at the distribution of the weights: seven statistics of every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, GraphSpec, NeuralGraph
from neural_graphs.nn._encoder import Encoder, Encoding, Reads
from neural_graphs.nn._registry import register_encoder

STATISTICS = ("mean", "variance", "quantile 0", "quantile .25", "quantile .5", "quantile .75", "quantile 1")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
PER_LAYER = 2 * len(STATISTICS)
"""Of the weight, then of the bias."""


def statistics(batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], slots: int | None = None) -> Tensor:
    """Mean, variance and the quantiles 0, .25, .5, .75 and 1 of every layer's weight and bias, ``[B, 14 * slots]``.

    After Unterthiner et al. (2020). Per slot seven numbers of the weight, then seven of the bias. Layers stand in the slots
    in order, the last layer in the last slot; what a network does not have is 0. The variance is that of the population,
    quantiles are interpolated linearly. A layer begins with each tensor that is not the bias of the one before, in
    state-dict order. ``slots`` is the largest number of layers in the batch by default.

    Raises:
        UserError: a network has more layers than slots.
    """
    batch = GraphBatch.of(batch)
    wanted = slots or max((depth(graph.spec) for graph in batch.buckets), default=1)
    if not batch.buckets:
        return torch.zeros(0, PER_LAYER * wanted)
    return batch.restore([_features(graph, wanted) for graph in batch.buckets])


def depth(spec: GraphSpec) -> int:
    """The number of layers, in the sense of ``statistics``."""
    return len(_layers(spec))


@register_encoder("statnn")
class StatNN(Encoder):
    """Seven statistics of every layer's weight and bias (``statistics``) through a perceptron -> ``[B, width]``.

    After Unterthiner et al. (2020), with the padding that Kofinas et al. (2024) give it for mixed architectures: a slot per
    layer from the first on, the last layer in a slot of its own, zeros and a mark where a network has nothing. Neither
    depth nor widths are told. Statistics are standardised with the training networks' moments (``fit_normalization``),
    which are taken over the networks that have the tensor.

    Args:
        width: of the perceptron and the vector.
        layers: of the perceptron; the three of ``GraphHead`` follow.
        max_layers: slots; deeper networks raise ``UserError``.
        dropout: after every layer of the perceptron.
    """

    vectors = True

    def __init__(self, width: int = 512, layers: int = 1, max_layers: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if min(width, layers, max_layers) < 1:
            raise UserError("statnn: width, layers and max_layers must be positive")
        self.width, self.max_layers = width, max_layers
        steps: list[nn.Module] = []
        for before in [(PER_LAYER + 2) * max_layers] + [width] * (layers - 1):
            steps += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*steps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(PER_LAYER * max_layers))
        self.register_buffer("std", torch.ones(PER_LAYER * max_layers))

    def check_readable(self, graph: NeuralGraph) -> None:
        _check_depth(graph.spec, self.max_layers, "this model's encoder")

    def fit_normalization(self, graphs: Iterable[NeuralGraph]) -> None:
        features, present = [], []
        for graph in graphs:
            features.append(_features(graph, self.max_layers).double())
            present.append(_present(graph, self.max_layers).repeat_interleave(len(STATISTICS), 1))
        if not sum(map(len, features)):
            raise UserError("there are no networks to measure weight statistics on")
        x, mask = torch.cat(features), torch.cat(present).double()
        if not bool(x.isfinite().all()):
            raise UserError("the zoo holds weights that are NaN or infinite, so no statistics can be taken")
        count = mask.sum(0).clamp(min=1)
        mean = (x * mask).sum(0) / count
        std = (((x - mean) * mask).square().sum(0) / count).sqrt()
        # What is the same in all networks, up to rounding, stays 0.
        constant = std <= 1e-7 * (x * mask).abs().amax(0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(constant, 1.0, std))

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], reads: Reads = "edges") -> Encoding:
        batch = GraphBatch.of(batch)
        if not batch.buckets:
            return Encoding(batch, vector=self.net(self.mean.new_zeros(0, (PER_LAYER + 2) * self.max_layers)))
        x = batch.restore([self._input(graph) for graph in batch.buckets])
        return Encoding(batch, vector=self.net(x))

    def _input(self, graph: NeuralGraph) -> Tensor:
        features = _features(graph, self.max_layers)
        present = _present(graph, self.max_layers)
        mask = present.repeat_interleave(len(STATISTICS), 1)
        return torch.cat([(features - self.mean) / self.std * mask, present.to(features.dtype)], 1)


def _layers(spec: GraphSpec) -> tuple[tuple[str | None, str | None], ...]:
    """Weight and bias of every layer, in state-dict order; a tensor that is no bias begins a layer."""
    kinds = {feature.parameter: feature.kind for nodes in spec.node_sets for feature in nodes.features}
    found: list[list[str | None]] = []
    for name in spec.shapes:
        if name not in spec.places:
            continue  # an alias, or no part of the graph
        bias = spec.places[name][0].where == "nodes" and kinds[name] == "bias"
        if bias and found and found[-1][1] is None:
            found[-1][1] = name
        else:
            found.append([None, name] if bias else [name, None])
    return tuple((weight, bias) for weight, bias in found)


def _slots(spec: GraphSpec, slots: int) -> list[tuple[int, str]]:
    """The tensors and their places among ``2 * slots``."""
    layers = _layers(spec)
    _check_depth(spec, slots, "this table of statistics")
    places = [*range(len(layers) - 1), slots - 1]
    return [
        (2 * place + kind, name)
        for place, layer in zip(places, layers, strict=True)
        for kind, name in enumerate(layer)
        if name is not None
    ]


def _check_depth(spec: GraphSpec, slots: int, reader: str) -> None:
    if depth(spec) > slots:
        raise UserError(
            f"{reader} has room for networks of {slots} layers, this one has {depth(spec)}: raise max_layers"
        )


def _features(graph: NeuralGraph, slots: int) -> Tensor:
    """``[B, 14 * slots]``."""
    state = graph.to_state_dict(batched=True)
    nothing = torch.zeros(graph.batch_size, len(STATISTICS), dtype=graph.dtype, device=graph.device)
    columns = [nothing] * (2 * slots)
    for place, name in _slots(graph.spec, slots):
        columns[place] = _seven(state[name].flatten(1).to(graph.dtype))
    return torch.stack(columns, 1).flatten(1)


def _present(graph: NeuralGraph, slots: int) -> Tensor:
    """bool ``[B, 2 * slots]``: which tensors there are."""
    mask = torch.zeros(2 * slots, dtype=torch.bool)
    mask[[place for place, _ in _slots(graph.spec, slots)]] = True
    return mask.to(graph.device).expand(graph.batch_size, -1)


def _seven(values: Tensor) -> Tensor:
    """The statistics of each row of ``[B, n]``."""
    ordered = _ordered(values)
    mean = ordered.mean(1, keepdim=True)
    variance = (ordered - mean).square().mean(1, keepdim=True)
    low, high, share = _places(values.shape[1])
    picked = torch.lerp(
        ordered[:, low], ordered[:, high], torch.tensor(share, dtype=values.dtype, device=values.device)
    )
    return torch.cat([mean, variance, picked], 1)


def _ordered(values: Tensor) -> Tensor:
    """Each row sorted; on the CPU by numpy, which takes a fifteenth of the time, where no gradient is needed."""
    if values.device.type == "cpu" and not values.requires_grad and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(1).values


@lru_cache(maxsize=4096)
def _places(n: int) -> tuple[list[int], list[int], list[float]]:
    """Of n sorted values those below and above each quantile, and the share of the one above: numpy's "linear"."""
    exact = [quantile * (n - 1) for quantile in QUANTILES]
    low = [int(place) for place in exact]
    return low, [min(k + 1, n - 1) for k in low], [place - k for place, k in zip(exact, low, strict=True)]
