"""Gradient-boosted trees on weight statistics, measured like a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neural_graphs.tasks._ranking import scores
from neural_graphs.tasks._train import peak_memory_mb
from neural_graphs.tasks._trees import BoostedTrees
from neural_graphs.zoo._store import Zoo, ZooSplit


def boosted_trees(
    zoo: str | os.PathLike[str],
    target: str = "test_accuracy",
    seeds: Sequence[int] = (0, 1, 2),
    where: Mapping[str, Any] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> list[dict[str, Any]]:
    """For every seed what ``metrics.json`` of a regression holds: ``test_kendall_tau``, ``val_kendall_tau``, other scores,
    ``seconds`` (of fitting), ``parameters`` (0: trees have none), ``networks``, ``peak_memory_mb``; and what was ``chosen``.

    ``where`` leaves out networks whose columns have other values, in every split.
    """
    loaded = Zoo.load(zoo)
    train, val, test = (_only(split, where or {}) for split in (loaded.train, loaded.val, loaded.test))
    found = []
    for seed in seeds:
        begun = time.perf_counter()
        model = BoostedTrees(target, bounds, seed).fit(train, val)
        seconds = time.perf_counter() - begun
        metrics: dict[str, Any] = {}
        for name, split in (("val", val), ("test", test)):
            true = split.targets(target, bounds).double().numpy()
            metrics |= {f"{name}_{key}": value for key, value in scores(true, model.predict(split)).items()}
        found.append(
            metrics
            | {
                "seed": seed,
                "chosen": model.chosen,
                "networks": {"train": len(train), "val": len(val), "test": len(test)},
                "parameters": 0,
                "seconds": round(seconds, 3),
                "peak_memory_mb": peak_memory_mb(),
            }
        )
    return found


def _only(split: ZooSplit, where: Mapping[str, Any]) -> ZooSplit:
    keep = np.ones(len(split), dtype=bool)
    for name, value in where.items():
        keep &= split.column(name) == value
    return split.select(np.flatnonzero(keep))
