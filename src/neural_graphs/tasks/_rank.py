"""Ranking networks by what a regressor expects of them, with its doubts."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.nn._gauge import fix_gauge
from neural_graphs.nn._scale_gmn import ScaleGMN
from neural_graphs.tasks._networks import find
from neural_graphs.tasks._predict import Network, answer_all, name_of
from neural_graphs.tasks._regressor import Regressor

FAR = 10.0
"""Times the training networks' spread from which on, and down to whose inverse, a network's weights count as far off."""


def rank(
    run: str | os.PathLike[str] | Regressor,
    paths: Sequence[str | os.PathLike[str]],
    activation: str | None = None,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """The networks in ``paths``, best first, by what a regressor predicts from their weights alone.

    ``paths`` are files (``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``), folders, read at any depth, and zoos.
    Each result has

    - ``rank`` (1 is best: the largest value, or the smallest where the target is a loss or an error) and ``file``; for a
      network of a zoo that is the zoo's folder, and ``network`` its number;
    - ``predicted``, and ``low`` and ``high``, between which the true value lies for nine of ten networks like those in
      training;
    - ``architecture``;
    - ``outside``: whether it is unlike what the model was trained on, so that the prediction deserves less trust;
      ``reason`` says why (empty where it is not), ``novelty`` how far it is (above 1: further than 99 % of validation
      networks);
    - ``duplicate_of``: the first network with the same weights, or None.

    Networks that cannot be read or judged come last and have ``file`` (and ``network``) and ``error`` only; they stop none
    of the others. Memory does not grow with the number of networks but for the results. ``activation`` (``"relu"``) is
    needed where a file does not state its non-linearity and the model knows several. ``quiet`` shows no progress.

    Raises:
        UserError: ``run`` is no regressor.
    """
    model = run if isinstance(run, Regressor) else Regressor.from_pretrained(run)
    seen_architectures = set(map(str, model.architectures))
    first: dict[bytes, str] = {}

    def answer(members: Sequence[Network], batch: GraphBatch) -> list[dict[str, Any]]:
        said = torch.stack(model.assess(batch), 1).tolist()
        far = [""] * len(members)
        for graph, places in zip(batch.buckets, batch.index, strict=True):
            for place, reason in zip(places.tolist(), far_weights(model, graph), strict=True):
                far[place] = reason
        rows = []
        for member, (value, low, high, distance), weights in zip(members, said, far, strict=True):
            if not all(map(math.isfinite, (value, low, high, distance))):
                raise UserError("the model's answer is not a number: the network's weights are too large for it")
            kind = str(member.architecture)
            reasons = [
                "an architecture never trained on" if kind not in seen_architectures else "",
                weights,
                f"unlike the training networks (novelty {distance:.2f})" if distance > 1 else "",
            ]
            original = first.setdefault(_digest(member), member.name)
            rows.append(
                {
                    "predicted": value,
                    "low": low,
                    "high": high,
                    "architecture": kind,
                    "outside": any(reasons),
                    "reason": next(filter(None, reasons), ""),
                    "novelty": distance,
                    "duplicate_of": original if original != member.name else None,
                }
            )
        return rows

    results = answer_all(model, list(find(paths)), answer, activation, quiet)
    good = [result for result in results if "error" not in result]
    sign = 1 if lower_is_better(model.target) else -1
    good.sort(key=lambda result: (sign * result["predicted"], name_of(result)))
    return [
        *({"rank": place, **result} for place, result in enumerate(good, 1)),
        *(result for result in results if "error" in result),
    ]


def lower_is_better(target: str) -> bool:
    """Whether the best network is the one with the smallest ``target``: a loss, an error, a gap."""
    return any(word in target for word in ("loss", "error", "gap"))


def far_weights(model: Regressor, graph: NeuralGraph) -> list[str]:
    """Per network of ``graph`` why its weights are of another size than the training networks' (empty: they are not).

    Compared layer by layer, at the layer where they are largest, as multiples of their spread in training. An encoder
    that does not measure it says nothing.
    """
    if isinstance(model.encoder, ScaleGMN):  # its statistics are of networks in their standard scale
        graph = fix_gauge(graph).graph
    normalization = model.encoder.normalization
    if not normalization.weight:
        return [""] * graph.batch_size
    names = [block.parameter for block in graph.spec.blocks if block.features]
    sizes = torch.stack(
        [
            weights.double().flatten(1).square().mean(1).sqrt()
            for block, weights in zip(graph.spec.blocks, normalization.weights(graph), strict=True)
            if block.features
        ],
        1,
    )
    reasons = []
    for size, layer in zip(*(found.tolist() for found in sizes.max(1)), strict=True):
        if size > FAR:
            reasons.append(f"{names[layer]} is {size:.0f} times as large as in training")
        elif size < 1 / FAR:
            reasons.append(f"its weights are at most {max(size, 0.001):.1g} times as large as in training")
        else:
            reasons.append("")
    return reasons


def _digest(member: Network) -> bytes:
    """The same for networks of one architecture with the same weights in float32."""
    digest = hashlib.blake2b(str(member.architecture).encode(), digest_size=16)
    for name in sorted(member.state):
        digest.update(member.state[name].contiguous().numpy().tobytes())
    return digest.digest()
