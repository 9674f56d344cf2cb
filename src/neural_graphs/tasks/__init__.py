"""Learning from zoos: classification and regression, training and use. Names resolve on first use, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neural_graphs.tasks._adapter import Adapter as Adapter
    from neural_graphs.tasks._classifier import Classifier as Classifier
    from neural_graphs.tasks._config import AugmentConfig as AugmentConfig
    from neural_graphs.tasks._config import OptimConfig as OptimConfig
    from neural_graphs.tasks._config import PretrainConfig as PretrainConfig
    from neural_graphs.tasks._config import TrainConfig as TrainConfig
    from neural_graphs.tasks._config import list_presets as list_presets
    from neural_graphs.tasks._config import load_config as load_config
    from neural_graphs.tasks._config import preset_text as preset_text
    from neural_graphs.tasks._edit_files import edit_files as edit_files
    from neural_graphs.tasks._editor import Editor as Editor
    from neural_graphs.tasks._model import load_model as load_model
    from neural_graphs.tasks._predict import predict as predict
    from neural_graphs.tasks._rank import rank as rank
    from neural_graphs.tasks._regressor import Regressor as Regressor
    from neural_graphs.tasks._train import TrainResult as TrainResult
    from neural_graphs.tasks._train import evaluate as evaluate
    from neural_graphs.tasks._train import train as train
    from neural_graphs.tasks._trees import BoostedTrees as BoostedTrees

_NAMES = {
    "Adapter": "_adapter",
    "AugmentConfig": "_config",
    "BoostedTrees": "_trees",
    "Classifier": "_classifier",
    "OptimConfig": "_config",
    "Editor": "_editor",
    "Regressor": "_regressor",
    "PretrainConfig": "_config",
    "TrainConfig": "_config",
    "TrainResult": "_train",
    "edit_files": "_edit_files",
    "evaluate": "_train",
    "list_presets": "_config",
    "load_model": "_model",
    "load_config": "_config",
    "predict": "_predict",
    "preset_text": "_config",
    "rank": "_rank",
    "train": "_train",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_NAMES)
