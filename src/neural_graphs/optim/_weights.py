"""Files of update rules: the weights that meta-training found, with a card that says how they were found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError
from neural_graphs.optim._rule import UpdateRule, create_rule

FILE = "rule.safetensors"
"""Name of the file in the folder of a meta-training."""

_FOLDER = Path(__file__).with_name("weights")
_KEY = "neural_graphs.update_rule"
_VERSION = 1


def list_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def save_rule(rule: UpdateRule, path: str | os.PathLike[str], card: Mapping[str, Any]) -> None:
    """Write a rule as one safetensors file: float32 weights; configuration, digest and ``card`` (JSON-able) as metadata.

    The card says what a user of the weights should know: ``lr`` and ``schedule`` that they were meta-trained with,
    ``tasks``, ``horizon``, ``seed``, and whatever else there is to say. ``LearnedOptimizer`` reads ``lr`` alone.

    Raises:
        RunError: the file cannot be written; an older one is then as it was.
        UserError: a weight is not finite or not float32, or the card is not JSON.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in rule.state_dict().items()}
    for name, value in state.items():
        if value.dtype != torch.float32 or not bool(value.isfinite().all()):
            raise UserError(f"{name} of the update rule is {value.dtype} or not finite: only finite float32 is kept")
    about = {"version": _VERSION, "config": rule.config, "digest": rule.digest(), "card": dict(card)}
    try:
        text = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the card of an update rule must be JSON: {error}") from None
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={_KEY: text})


def load_rule(source: str | os.PathLike[str] | UpdateRule) -> tuple[UpdateRule, dict[str, Any]]:
    """An update rule and its card.

    ``source`` is a name of ``list_weights()``, a file that ``save_rule`` wrote, the folder of a meta-training, or a rule,
    which is returned as it is, with an empty card. Nothing is downloaded, and nothing in the file is executed.

    Raises:
        UserError: there are no such weights, or the file is damaged or something else.
    """
    if isinstance(source, UpdateRule):
        return source, {}
    path = _find(source)
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if about is None:
        raise UserError(f"{path} holds no update rule: give a file that save_rule or `train optimizer` wrote")
    try:
        known = json.loads(about)
        version, config, digest, card = (known[key] for key in ("version", "config", "digest", "card"))
        if version != _VERSION:
            raise UserError(f"{path} is of version {version}, this library reads {_VERSION}: update neural-graphs")
        rule = create_rule(**config)
        rule.load_state_dict(state)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if rule.digest() != digest:
        raise UserError(f"{path} is damaged: its weights are not those that were saved")
    return rule.eval(), card


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if isinstance(source, str) and source in (names := list_weights()):
        return _FOLDER / f"{source}.safetensors"
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        names = list_weights()
        shipped = f"the names {', '.join(names)}, " if names else ""
        raise UserError(f"no weights of an update rule at {source}: give one of {shipped}a file, or an UpdateRule")
    return path
