"""Neural networks as data: neural graphs, permutation-equivariant encoders and zoos of networks.

Every public name is resolved on first use, so that `import neural_graphs` (and the command's `--help`) does
not pay for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neural_graphs import graph as graph
    from neural_graphs import nn as nn
    from neural_graphs import optim as optim
    from neural_graphs import tasks as tasks
    from neural_graphs import testing as testing
    from neural_graphs import zoo as zoo
    from neural_graphs.graph import GraphBatch as GraphBatch
    from neural_graphs.graph import NeuralGraph as NeuralGraph
    from neural_graphs.graph import PermutationSpec as PermutationSpec
    from neural_graphs.graph import Stack as Stack
    from neural_graphs.graph import trace as trace
    from neural_graphs.nn import create_encoder as create_encoder
    from neural_graphs.nn import list_encoders as list_encoders
    from neural_graphs.optim import LearnedOptimizer as LearnedOptimizer
    from neural_graphs.optim import Nowcaster as Nowcaster
    from neural_graphs.tasks import Classifier as Classifier
    from neural_graphs.tasks import Editor as Editor
    from neural_graphs.tasks import Regressor as Regressor
    from neural_graphs.zoo import Zoo as Zoo
    from neural_graphs.zoo import import_zoo as import_zoo
    from neural_graphs.zoo import make_cnn_zoo as make_cnn_zoo
    from neural_graphs.zoo import make_zoo as make_zoo

__version__ = "0.1.0"

# Public name -> the subpackage that defines it.
_NAMES = {
    "NeuralGraph": "graph",
    "GraphBatch": "graph",
    "PermutationSpec": "graph",
    "Stack": "graph",
    "trace": "graph",
    "create_encoder": "nn",
    "list_encoders": "nn",
    "Zoo": "zoo",
    "make_cnn_zoo": "zoo",
    "make_zoo": "zoo",
    "import_zoo": "zoo",
    "Classifier": "tasks",
    "Editor": "tasks",
    "Regressor": "tasks",
    "LearnedOptimizer": "optim",
    "Nowcaster": "optim",
}
_SUBMODULES = ("graph", "nn", "zoo", "tasks", "optim", "testing")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_NAMES, *_SUBMODULES, "__version__"])
