"""Predicting accuracy from weights: every method on one zoo of classifiers, subsets of it, and networks of other kinds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_graphs._io import read_json, write_json
from neural_graphs.bench._ablation import GNN, SCALE, TRANSFORMER, Entry, configured, select
from neural_graphs.bench._classification import Method, about_runs, run_methods
from neural_graphs.bench._results import Row, row
from neural_graphs.graph import Stack
from neural_graphs.tasks import TrainConfig, evaluate
from neural_graphs.tasks._ranking import kendall_tau
from neural_graphs.tasks._trees import BoostedTrees
from neural_graphs.zoo import Zoo, ZooSplit

PRESET = "generalisation"

_PROBING: Mapping[str, Any] = {"name": "probing", "probes": 32}
_PROBES: Mapping[str, Any] = {"probes": 32}
_KINDS: Mapping[str, Any] = {"activations": "auto"}
STATNN: Mapping[str, Any] = {"name": "statnn", "width": 256}

GENERALISATION: dict[str, Entry] = {
    "statnn": Entry("statnn", "", STATNN, ("optimizer.lr=1e-3", "optimizer.epochs=60")),
    "ng-gnn": Entry("ng-gnn", "probes=0", {**GNN, **_KINDS}),
    "ng-gnn-plain": Entry("ng-gnn", "probes=0, no activation embedding", GNN),
    "ng-gnn-32": Entry("ng-gnn", "probes=32", {**GNN, **_KINDS, **_PROBES}),
    "ng-t": Entry("ng-t", "probes=0", {**TRANSFORMER, **_KINDS}),
    "ng-t-plain": Entry("ng-t", "probes=0, no activation embedding", TRANSFORMER),
    "ng-t-32": Entry("ng-t", "probes=32", {**TRANSFORMER, **_KINDS, **_PROBES}),
    "scale-gmn": Entry("scale-gmn", "forward", SCALE),
    "probing": Entry("probing", "outputs, 32 probes", _PROBING),
    "combined": Entry("combined", "ng-gnn probes=0 and probing", {
        "name": "combined", "parts": [{**GNN, **_KINDS}, _PROBING]}),
}  # fmt: skip
"""Methods by name; their own settings go before those given for all. ``probe_shape`` is filled in from the zoo's images."""

TREES = "boosted-trees"

FEWEST = 50
"""Networks of one non-linearity that a tau of their own is given for."""


def generalisation(
    zoo: str | os.PathLike[str],
    methods: Sequence[str] = (TREES, *GENERALISATION),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/generalisation-cifar10-gs.json",
    runs: str | os.PathLike[str] = "runs/generalisation-cifar10-gs",
    overrides: Sequence[str] = (),
    jobs: int = 1,
    transfer: str | os.PathLike[str] | None = None,
    wider: bool = False,
    probe_side: int = 0,
    command: str = "",
) -> list[Row]:
    """Train every method of ``methods`` (``boosted-trees``, or names of ``GENERALISATION``) with every seed to predict the
    test accuracies of ``zoo``'s networks, and write Kendall's tau on its test runs to ``out``.

    Metric ``kendall_tau`` on all test networks (``val_kendall_tau`` and ``r2`` beside it); where
    there are several, also on the networks of each non-linearity and on those of the last epoch alone, by the same models.
    With ``transfer`` also on the test networks of that other zoo; with ``wider`` nothing is trained on architectures with
    more than the median number of hidden channels, and tau is given for test networks of these and of the others.
    ``probe_side`` is the size of probe images (0: that of the zoo's images). Other arguments and errors as those of
    ``encoder_ablation``.
    """
    loaded = Zoo.load(zoo)
    _true(loaded.test)  # a zoo without accuracies is refused before anything is trained
    shape = probe_shape(loaded, probe_side)
    held_out = wide_architectures(loaded) if wider else []
    plan = []
    for name, entry in select([m for m in methods if m != TREES], GENERALISATION).items():
        settings = ["threads=1", *overrides, *entry.settings, f"zoo={os.fspath(zoo)}"]
        entry = replace(entry, encoder=_with_probes(entry.encoder, shape))
        plan.append(configured(name, entry, seeds, runs, PRESET, settings, held_out))
    masks = subsets(loaded.test, held_out)
    further = _trees(loaded, seeds, masks, held_out, transfer) if TREES in methods else []

    def rows_of(method: Method, found: Mapping[str, dict[str, Any]]) -> list[Row]:
        return _rows(method, found, masks, transfer)

    return run_methods(zoo, plan, out, Path(out).stem, command, jobs, rows_of, further)


def probe_shape(zoo: Zoo, side: int = 0) -> list[int]:
    """Channels, height and width of probe images for the networks of ``zoo``."""
    source = zoo.meta["source"]
    return [source["channels"], side or source["height"], side or source["width"]]


def wide_architectures(zoo: Zoo) -> list[str]:
    """Names of the architectures with more hidden channels than half of the networks have."""
    sizes = {name: sum(s.widths[1:-1]) for name, s in zoo.architectures.items() if isinstance(s, Stack)}
    median = float(np.median([sizes[name] for name in zoo.all.column("architecture")]))
    return list(dict.fromkeys(str(zoo.architectures[name]) for name, size in sizes.items() if size > median))


def subsets(split: ZooSplit, held_out: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Which networks of a test split belong to each part that tau is given for; the whole is ``""``."""
    found = {"": np.ones(len(split), bool)}
    columns = split.zoo.table.column_names
    if "activation" in columns:
        kinds = split.column("activation")
        for kind in sorted(set(kinds) - {"mixed"}) if len(set(kinds)) > 1 else []:
            if (kinds == kind).sum() >= FEWEST:
                found[f"{kind} networks"] = kinds == kind
    if "epoch" in columns and len(set(split.column("epoch"))) > 1:
        found["last epoch"] = split.column("epoch") == split.column("epoch").max()
    if held_out:
        names = {name: str(architecture) for name, architecture in split.zoo.architectures.items()}
        wide = np.isin([names[name] for name in split.column("architecture")], list(held_out))
        found |= {"narrow networks, trained on": ~wide, "wide networks, never seen": wide}
    return found


def _with_probes(encoder: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    found = dict(encoder)
    if found.get("probes"):
        found["probe_shape"] = list(shape)
    if "parts" in found:
        found["parts"] = [_with_probes(part, shape) for part in found["parts"]]
    return found


def _rows(
    method: Method,
    found: Mapping[str, dict[str, Any]],
    masks: Mapping[str, np.ndarray],
    transfer: str | os.PathLike[str] | None,
) -> list[Row]:
    finished = [config for config in method.configs if config.out in found]
    if not finished:
        return []
    metrics = [found[config.out] for config in finished]
    about = about_runs(finished, metrics)
    rows = [
        row(method.name, name, [m[source] for m in metrics], method.variant, **about)
        for name, source in (("val_kendall_tau", "val_kendall_tau"), ("r2", "test_r2"))
    ]
    tables = [_predictions(config, None) for config in finished]
    rows = [*_taus(method.name, method.variant, tables, masks, about), *rows]
    if transfer is not None:
        others = [_predictions(config, transfer) for config in finished]
        whole = {Path(transfer).name: np.ones(len(others[0][0]), bool)}
        rows += _taus(method.name, method.variant, others, whole, about)
    return rows


Table = tuple[np.ndarray, np.ndarray]
"""True and predicted numbers."""


def _taus(
    name: str, variant: str, tables: Sequence[Table], masks: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> list[Row]:
    return [
        row(
            name,
            "kendall_tau",
            [kendall_tau(true[mask], predicted[mask]) for true, predicted in tables],
            ", ".join(filter(None, (variant, part))),
            networks=int(mask.sum()),
            part=part,
            **about,
        )
        for part, mask in masks.items()
        if mask.sum() > 1
    ]


def _predictions(config: TrainConfig, zoo: str | os.PathLike[str] | None) -> Table:
    """What a finished run says of its zoo's test networks, or of all test networks of another; kept beside the run."""
    name = "test" if zoo is None else f"test-{Path(zoo).name}"
    file = Path(config.out) / f"predictions-{name}.json"
    if not file.is_file():
        found = evaluate(config.out, zoo=zoo if zoo is not None else config.zoo)
        write_json(file, {"true": found["true"], "predicted": found["predicted"]})
    kept = read_json(file)
    return np.asarray(kept["true"]), np.asarray(kept["predicted"])


def _trees(
    zoo: Zoo,
    seeds: Sequence[int],
    masks: Mapping[str, np.ndarray],
    held_out: Sequence[str],
    transfer: str | os.PathLike[str] | None,
) -> list[Row]:
    names = {name: str(architecture) for name, architecture in zoo.architectures.items()}

    def kept(split: ZooSplit) -> ZooSplit:
        return split.select(np.flatnonzero(~np.isin([names[a] for a in split.column("architecture")], list(held_out))))

    other = Zoo.load(transfer).test if transfer is not None else None
    tables, others, val, seconds = [], [], [], []
    for seed in seeds:
        begun = time.perf_counter()
        model = BoostedTrees(seed=seed).fit(kept(zoo.train), kept(zoo.val))
        seconds.append(time.perf_counter() - begun)
        val.append(model.score(kept(zoo.val)))
        tables.append((_true(zoo.test), model.predict(zoo.test)))
        if other is not None:
            others.append((_true(other), model.predict(other)))
    about: dict[str, Any] = {"seconds": sum(seconds) / len(seconds), "seeds": list(seeds)}
    rows = [*_taus(TREES, "", tables, masks, about), row(TREES, "val_kendall_tau", val, **about)]
    if other is not None:
        rows += _taus(TREES, "", others, {Path(str(transfer)).name: np.ones(len(others[0][0]), bool)}, about)
    return rows


def _true(split: ZooSplit) -> np.ndarray:
    values: np.ndarray = split.targets("test_accuracy", (0.0, 1.0)).double().numpy()
    return values
