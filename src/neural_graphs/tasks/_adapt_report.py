"""What is said of an adapter: accuracy on corrupted images, beside no edit and beside clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch, NeuralGraph
from neural_graphs.tasks._adapt_images import CLEAN, adapt_images
from neural_graphs.tasks._adapter import Adapter, losses
from neural_graphs.tasks._data import by_architecture
from neural_graphs.zoo._store import ZooSplit

AT_ONCE = (16, 128)
"""So many networks read so many images at once: more are not faster, and their feature maps are large."""

QUARTERS = ("best quarter", "second quarter", "third quarter", "last quarter")

Asked = tuple[str | None, str]
"""An edit of the networks (None: none), and the corruption of the images that they then read."""


def adapt_report(
    adapter: Adapter,
    split: ZooSplit,
    corruptions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Figures of the adapted networks of ``split`` on images that nothing was learned from: those of the test set for test
    networks, else held-out ones of the training set.

    ``corruptions`` are the adapter's own by default. An adapter of a single edit can be measured on other corruptions than
    it was trained on.

    Returns ``accuracy`` and ``loss``, means over networks, images and corruptions; of the same networks without edit
    ``no_edit_accuracy`` on the same images and ``clean_accuracy`` on clean ones; ``edited_clean_accuracy``, of the adapted
    networks on clean images; ``gain``, ``accuracy`` less ``no_edit_accuracy``. The same in ``per_edit`` for each corruption
    (with ``best_quarter_gain``), in ``per_architecture``, and in ``per_quarter`` for the networks sorted by their clean
    accuracy, with ``n`` each.

    Raises:
        UserError: the images are not at hand; networks that the adapter cannot edit; a corruption that it was not trained
            on, where it has several edits.
    """
    images = adapt_images(split.zoo).of(split.name)
    names = list(adapter.edits if corruptions is None else corruptions)
    edits = [name if len(adapter.edits) > 1 else adapter.edits[0] for name in names]
    for edit in edits:
        adapter.style_of(edit)
    asked: list[Asked] = [(None, CLEAN)]
    for edit, name in zip(edits, names, strict=True):
        asked += [(edit, name), (None, name), (edit, CLEAN)]
    corrupted = {name: images.corrupted(name) for name in dict.fromkeys((CLEAN, *names))}
    found = measure(adapter, split, asked, corrupted, images.labels).numpy()

    def figures(mask: np.ndarray, chosen: Sequence[int] = range(len(names))) -> dict[str, float]:
        loss, right = found[mask].mean(0).T
        after, before, clean = (float(np.mean([right[1 + 3 * k + i] for k in chosen])) for i in range(3))
        return {
            "accuracy": after,
            "loss": float(np.mean([loss[1 + 3 * k] for k in chosen])),
            "no_edit_accuracy": before,
            "clean_accuracy": float(right[0]),
            "edited_clean_accuracy": clean,
            "gain": after - before,
        }

    whole = np.ones(len(split), bool)
    rank = np.argsort(np.argsort(-found[:, 0, 1], kind="stable"))
    quarters = {name: rank * len(QUARTERS) // len(split) == k for k, name in enumerate(QUARTERS)}
    return {
        **figures(whole),
        "per_edit": {
            name: {**figures(whole, [k]), "best_quarter_gain": figures(quarters[QUARTERS[0]], [k])["gain"]}
            for k, name in enumerate(names)
        },
        "per_architecture": by_architecture(split, figures, adapter.architectures),
        "per_quarter": {name: {**figures(mask), "n": int(mask.sum())} for name, mask in quarters.items() if mask.any()},
        "images": len(images),
    }


def measure(adapter: Adapter, x: Any, asked: Sequence[Asked], images: Mapping[str, Tensor], answers: Tensor) -> Tensor:
    """Loss and accuracy ``[B, len(asked), 2]`` (float64, CPU) of the networks of ``x`` (as in ``Model.logits``), in its
    order. ``images`` are ``[N, c, h, w]`` by corruption, ``answers`` their classes ``[N]``."""
    device, several = next(adapter.parameters()).device, len(adapter.edits) > 1

    def each(batch: GraphBatch) -> Tensor:
        for graph in batch.buckets:
            adapter.check_readable(graph)
        code, found = adapter.code(batch), []
        for edit, corruption in asked:
            if edit is None:
                graphs, copies = batch.buckets, 1
            else:
                style = torch.full((len(batch),), adapter.style_of(edit), device=device) if several else None
                graphs, copies = adapter.edited(code, style), adapter.copies
            found.append(batch.restore([answered(graph, copies, images[corruption], answers) for graph in graphs]))
        return torch.stack(found, 1).cpu()

    return torch.cat(adapter.each_batch(each, x))


def answered(graph: NeuralGraph, copies: int, images: Tensor, answers: Tensor) -> Tensor:
    """Mean loss and accuracy ``[B, 2]`` of B networks, each the mean of ``copies`` (copy-major)."""
    count, (networks, step) = graph.batch_size // copies, AT_ONCE
    sums = torch.zeros(count, 2, dtype=torch.float64, device=graph.device)
    for first in range(0, len(images), step):
        x, wanted = (part[first : first + step].to(graph.device) for part in (images, answers))
        for start in range(0, count, networks):
            here = torch.arange(start, min(start + networks, count))
            rows = (here + count * torch.arange(copies)[:, None]).flatten().to(graph.device)
            logits = graph[rows].run(x).unflatten(0, (copies, -1)).mean(0)
            sums[here] += torch.stack(losses(logits, wanted), 1).double() * len(x)
    return sums / len(images)
