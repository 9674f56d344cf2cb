"""Adapting classifiers to corrupted images from their weights alone, beside no edit and what needs no editor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_graphs._io import read_json, write_json
from neural_graphs.bench._ablation import GNN, Entry, configured, select
from neural_graphs.bench._classification import Method, about_runs, run_methods
from neural_graphs.bench._results import Row, row
from neural_graphs.graph import Architecture, GraphBatch, NeuralGraph
from neural_graphs.tasks import Adapter, TrainConfig, load_config
from neural_graphs.tasks._adapt_images import AdaptImages, adapt_images
from neural_graphs.tasks._adapt_report import QUARTERS, adapt_report, answered
from neural_graphs.tasks._adaptation import draw
from neural_graphs.tasks._adapter import losses
from neural_graphs.tasks._data import having, training_networks
from neural_graphs.tasks._runtime import threads
from neural_graphs.zoo import Zoo, ZooSplit
from neural_graphs.zoo._loader import Loader

PRESET = "adapt"
SCALES, NO_EDIT = "scales", "no edit"
SCALES_LR = 2e-2

_GNN: Mapping[str, Any] = {**GNN, "activations": "auto"}

ADAPTERS: dict[str, Entry] = {
    "ng-gnn": Entry("ng-gnn", "trained on corrupted images", _GNN),
    "ng-gnn-clean": Entry("ng-gnn", "trained on clean images", _GNN, ("edits=[clean]",)),
}
"""Methods by name. The second tells how much of the gain is that the networks become better at all."""


def adaptation(
    zoo: str | os.PathLike[str],
    methods: Sequence[str] = (SCALES, *ADAPTERS),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/edit-adapt.json",
    runs: str | os.PathLike[str] = "runs/edit-adapt",
    overrides: Sequence[str] = (),
    jobs: int = 1,
    command: str = "",
) -> list[Row]:
    """Train every method (``"scales"``, or names of ``ADAPTERS``) with every seed to adapt the classifiers of ``zoo``, those
    of the last epoch, to the preset's corruptions, and write the accuracies of its test networks to ``out``.

    Metrics for each corruption, on corrupted test images: ``test_accuracy``; ``accuracy_gain``, that less the accuracy
    without edit; ``best_quarter_gain``, the same of the networks that are best on clean images; ``edited_clean_accuracy``,
    of the adapted networks on clean images. Beside them ``no edit`` on the same images and on clean ones, and ``scales``:
    one factor for every tensor and non-linearity, learned as the adapters are and the same for all networks. Other arguments
    and errors as those of ``encoder_ablation``.
    """
    loaded = Zoo.load(zoo)
    adapt_images(loaded)  # refused before anything is trained
    last = float(loaded.all.column("epoch").max())
    shared = ["threads=1", f"where={{epoch: {last:g}}}", *overrides, f"zoo={os.fspath(zoo)}"]
    corruptions = load_config(PRESET, shared).edits
    plan = [
        configured(name, entry, seeds, runs, PRESET, [*shared, *entry.settings])
        for name, entry in select([m for m in methods if m != SCALES], ADAPTERS).items()
    ]
    further = _scale_rows(loaded, corruptions, seeds, runs, shared) if SCALES in methods else []

    def rows_of(method: Method, found: Mapping[str, dict[str, Any]]) -> list[Row]:
        rows = _rows(method, found, corruptions)
        return rows if SCALES not in methods and method is plan[0] else [r for r in rows if r["method"] != NO_EDIT]

    return run_methods(zoo, plan, out, Path(out).stem, command, jobs, rows_of, further)


def _rows(method: Method, found: Mapping[str, dict[str, Any]], corruptions: Sequence[str]) -> list[Row]:
    finished = [config for config in method.configs if config.out in found]
    if not finished:
        return []
    metrics = [found[config.out] for config in finished]
    about = about_runs(finished, metrics)
    rows = [row(method.name, "val_accuracy", [m["val_accuracy"] for m in metrics], method.variant, **about)]
    for name in corruptions:
        reports = [_report(config, found[config.out], name) for config in finished]
        rows += _figures(method.name, ", ".join((method.variant, name)), reports, part=name, **about)
    return [*rows, _on_clean_images(reports)]


def _figures(method: str, variant: str, reports: Sequence[Mapping[str, Any]], part: str, **about: Any) -> list[Row]:
    """Rows of one method on one corruption, and those of no edit."""
    whole = {
        "test_accuracy": [r["accuracy"] for r in reports],
        "accuracy_gain": [r["gain"] for r in reports],
        "best_quarter_gain": [r["best_quarter_gain"] for r in reports],
        "edited_clean_accuracy": [r["edited_clean_accuracy"] for r in reports],
    }
    rows = [row(method, metric, values, variant, part=part, **about) for metric, values in whole.items()]
    return [*rows, row(NO_EDIT, "test_accuracy", reports[0]["no_edit_accuracy"], part, part=part)]


def _on_clean_images(reports: Sequence[Mapping[str, Any]]) -> Row:
    return row(NO_EDIT, "test_accuracy", reports[0]["clean_accuracy"], "clean images", part="clean")


def _report(config: TrainConfig, metrics: Mapping[str, Any], corruption: str) -> dict[str, float]:
    """Figures of a finished run on test networks and one corruption: its own ``metrics`` where it was trained on that, else
    measured, and kept beside the run."""
    if corruption in metrics["per_edit"]:
        return dict(metrics["per_edit"][corruption])
    file = Path(config.out) / f"report-{corruption}.json"
    if not file.is_file():
        split = having(Zoo.load(config.zoo).test, config.where)
        with threads(config.threads):
            found = adapt_report(Adapter.from_pretrained(config.out), split, [corruption])
        write_json(file, found["per_edit"][corruption])
    return dict(read_json(file))


# -- a change that is the same for all networks ---------------------------------------------------------------------------


class Scales(nn.Module):
    """One learned factor, 1 at the start, for every tensor name and non-linearity; networks with others stay as they are."""

    def __init__(self, architectures: Sequence[Architecture]) -> None:
        super().__init__()
        names = {_key(architecture, name) for architecture in architectures for name in architecture.parameter_shapes()}
        self.factors = nn.ParameterDict({name: torch.ones(()) for name in sorted(names)})

    def forward(self, graph: NeuralGraph) -> NeuralGraph:
        assert graph.stack is not None
        state = graph.to_state_dict(batched=True)
        keys = {name: _key(graph.stack, name) for name in state}
        return graph.like(
            {
                name: value * self.factors[keys[name]] if keys[name] in self.factors else value
                for name, value in state.items()
            },
            batched=True,
        )


def _key(architecture: Architecture, name: str) -> str:
    return "-".join([name.replace(".", "-"), *sorted(map(str, architecture.activations_used))]).replace(".", "_")


def _scale_rows(
    zoo: Zoo, corruptions: Sequence[str], seeds: Sequence[int], runs: str | os.PathLike[str], settings: Sequence[str]
) -> list[Row]:
    rows = []
    for name in corruptions:
        reports = []
        for seed in seeds:
            config = load_config(PRESET, [*settings, f"edits=[{name}]", f"seed={seed}"])
            file = Path(runs) / f"{SCALES}-{name}-seed{seed}.json"
            kept = read_json(file) if file.is_file() else {}
            if kept.get("settings") != list(settings):
                file.parent.mkdir(parents=True, exist_ok=True)
                with threads(1):
                    kept = {"settings": list(settings), "report": _scale_report(zoo, config, len(corruptions))}
                write_json(file, kept)
            reports.append(kept["report"])
        rows += _figures(SCALES, name, reports, part=name, parameters=reports[0]["parameters"], seeds=list(seeds))
    return [*rows, _on_clean_images(reports)]


def _scale_report(zoo: Zoo, config: TrainConfig, share: int) -> dict[str, float]:
    """The same figures for factors that are trained on as many networks and images per step as an adapter, in so many steps
    as an adapter has for each of its ``share`` corruptions."""
    images, corruption = adapt_images(zoo), config.edits[0]
    train = training_networks(config, zoo)[0]
    scales = fit_scales(train, images, config, share)
    split = having(zoo.test, config.where)
    found = np.zeros((4, len(split)))
    batch = split.batch()
    asked = [(True, corruption), (False, corruption), (False, "clean"), (True, "clean")]
    with torch.inference_mode():
        for k, (scaled, name) in enumerate(asked):
            x, labels = images.test.corrupted(name), images.test.labels
            graphs = [scales(graph) if scaled else graph for graph in batch.buckets]
            found[k] = batch.restore([answered(graph, 1, x, labels)[:, 1] for graph in graphs]).numpy()
    best = np.argsort(-found[2], kind="stable")[: math.ceil(len(split) / len(QUARTERS))]
    return {
        "accuracy": float(found[0].mean()),
        "no_edit_accuracy": float(found[1].mean()),
        "clean_accuracy": float(found[2].mean()),
        "edited_clean_accuracy": float(found[3].mean()),
        "gain": float((found[0] - found[1]).mean()),
        "best_quarter_gain": float((found[0] - found[1])[best].mean()),
        "parameters": sum(p.numel() for p in scales.parameters()),
    }


def fit_scales(train: ZooSplit, images: AdaptImages, config: TrainConfig, share: int = 1) -> Scales:
    """Factors that minimise the cross-entropy of ``train``'s networks on ``config.edits``, by Adam on a cosine schedule."""
    scales = Scales(list(train.architectures.values()))
    loader = Loader(train, config.optimizer.batch_size, label=None, seed=config.seed)
    steps = math.ceil(config.optimizer.epochs * len(loader) / share)
    optimizer = torch.optim.Adam(scales.parameters(), lr=SCALES_LR)
    for step, batch in zip(range(steps), _batches(loader), strict=False):
        optimizer.param_groups[0]["lr"] = SCALES_LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        _, x, answers = draw(images.train, tuple(config.edits), config.seed, step)
        parts: list[Tensor] = [losses(scales(graph).run(x), answers)[0] for graph in batch.buckets]
        torch.cat(parts).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return scales


def _batches(loader: Loader) -> Iterator[GraphBatch]:
    epoch = 0
    while True:
        for sample in loader.epoch(epoch):
            yield sample.batch
        epoch += 1
