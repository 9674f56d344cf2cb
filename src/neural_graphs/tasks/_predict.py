"""Classify network files: one at a time or many, each with a result or a one-line error of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, Stack
from neural_graphs.graph._files import check_finite, read_state_dict
from neural_graphs.tasks._architecture import recognise
from neural_graphs.tasks._classifier import EVAL_BATCH, Classifier


def predict(
    run: str | os.PathLike[str] | Classifier,
    files: Sequence[str | os.PathLike[str]],
    activation: str | None = None,
) -> list[dict[str, Any]]:
    """Classes of the networks in ``files`` (``.safetensors``, ``.pt``, ``.pth``), in their order.

    Each result has ``file``, ``class`` (int), ``label`` (its name), ``probabilities`` and ``architecture``; a file that
    cannot be read or classified has ``file`` and ``error``, and stops none of the others. ``activation`` (``"sine:30"``) is
    needed only where the model was trained on networks of several non-linearities.

    Raises:
        UserError: ``run`` is no folder of a run or model.
    """
    model = run if isinstance(run, Classifier) else Classifier.from_pretrained(run)
    results: list[dict[str, Any]] = [{"file": os.fspath(file)} for file in files]
    groups: dict[Stack, list[tuple[int, NeuralGraph]]] = {}
    for place, file in enumerate(files):
        try:
            state = {name: value.float() for name, value in read_state_dict(file).items()}
            check_finite(state)
            stack = recognise(state, model.architectures, activation)
            graph = NeuralGraph.from_state_dict(state, stack=stack)
            model.check_readable(graph)
        except UserError as error:
            results[place]["error"] = str(error)
        else:
            groups.setdefault(stack, []).append((place, graph))
    for stack, members in groups.items():
        for first in range(0, len(members), EVAL_BATCH):
            part = members[first : first + EVAL_BATCH]
            chances = model.predict_proba(NeuralGraph.cat([graph for _, graph in part]))
            for (place, _), row in zip(part, chances, strict=True):
                best = int(torch.argmax(row))
                results[place] |= {
                    "class": best,
                    "label": model.class_names[best],
                    "probabilities": row.tolist(),
                    "architecture": str(stack),
                }
    return results
