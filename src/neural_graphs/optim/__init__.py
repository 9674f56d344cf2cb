"""Learning to optimise and to forecast training: optimizers that read a network as a graph. Names resolve on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neural_graphs.optim._config import MetaConfig as MetaConfig
    from neural_graphs.optim._config import load_meta_config as load_meta_config
    from neural_graphs.optim._families import held_out as held_out
    from neural_graphs.optim._families import sample_task as sample_task
    from neural_graphs.optim._meta import MetaResult as MetaResult
    from neural_graphs.optim._meta import train_rule as train_rule
    from neural_graphs.optim._nowcast import Nowcaster as Nowcaster
    from neural_graphs.optim._nowcast_history import Trajectory as Trajectory
    from neural_graphs.optim._nowcast_jumper import Jumper as Jumper
    from neural_graphs.optim._optimizer import LearnedOptimizer as LearnedOptimizer
    from neural_graphs.optim._rule import UpdateRule as UpdateRule
    from neural_graphs.optim._rule import create_rule as create_rule
    from neural_graphs.optim._rule import list_rules as list_rules
    from neural_graphs.optim._task import InnerTask as InnerTask
    from neural_graphs.optim._weights import list_weights as list_weights
    from neural_graphs.optim._weights import load_rule as load_rule
    from neural_graphs.optim._weights import save_rule as save_rule
    from neural_graphs.optim._wiring import Wiring as Wiring

_NAMES = {
    "save_rule": "_weights",
    "load_rule": "_weights",
    "list_weights": "_weights",
    "LearnedOptimizer": "_optimizer",
    "InnerTask": "_task",
    "Jumper": "_nowcast_jumper",
    "MetaConfig": "_config",
    "MetaResult": "_meta",
    "Nowcaster": "_nowcast",
    "Trajectory": "_nowcast_history",
    "held_out": "_families",
    "load_meta_config": "_config",
    "sample_task": "_families",
    "train_rule": "_meta",
    "UpdateRule": "_rule",
    "Wiring": "_wiring",
    "create_rule": "_rule",
    "list_rules": "_rule",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_NAMES)
