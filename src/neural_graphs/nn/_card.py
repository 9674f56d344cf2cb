"""The page of a model on the Hub: what it does, what it is made of, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from neural_graphs.graph import architecture_from_json

_TASKS = {
    "classify": "Classifies neural networks by their weights",
    "regress": "Predicts a number for neural networks, such as their accuracy, by their weights",
    "encode": "Encodes neural networks by their weights: an embedding of every neuron and connection, or of the network",
}
_EXAMPLES = {
    "classify": (
        "from neural_graphs import Classifier",
        'model = Classifier.from_pretrained("{repo}")',
        "model.predict_proba(network.state_dict())",
    ),
    "regress": (
        "from neural_graphs import Regressor",
        'model = Regressor.from_pretrained("{repo}")',
        "model.predict(network.state_dict()), model.predict_interval(network.state_dict())",
    ),
    "encode": (
        "from neural_graphs.nn import Encoder",
        'encoder = Encoder.from_pretrained("{repo}")',
        "encoding = encoder(graph)  # a NeuralGraph, a list of them or a GraphBatch",
    ),
}


def model_card(
    repo: str, config: Mapping[str, Any], parameters: int, metrics: Mapping[str, Any], versions: Mapping[str, str]
) -> str:
    """Markdown with the metadata block that the Hub reads; ``config`` is that of the model.

    Names that come from a zoo stand in JSON only, so that they cannot change the page.
    """
    task, encoder = config["task"], config["encoder"]["name"]
    head = {"library_name": "neural-graphs", "tags": ["neural-graphs", "weight-space-learning", encoder]}
    facts = {"task": task, "encoder": encoder, "parameters": f"{parameters:,}", **versions}
    if stacks := config.get("architectures"):
        known = [str(architecture_from_json(entry)) for entry in stacks]
        facts["trained on"] = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    shown = {key: value for key, value in config.items() if key not in ("state", "architectures")}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {repo.partition('/')[2]}",
        f"{_TASKS[task]}.",
        "```python\n" + "\n".join(_EXAMPLES[task]).format(repo=repo) + "\n```",
        "## Model",
        _table(("", ""), facts),
    ]
    if metrics:
        parts += ["## Metrics", _table(("metric", "value"), metrics)]
    parts += ["## Configuration", f"```json\n{json.dumps(shown, indent=2)}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(names: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {names[0]} | {names[1]} |", "|---|---|"]
    for key, value in rows.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| {_cell(key)} | {_cell(text)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
