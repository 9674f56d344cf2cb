"""Editing networks: every method on one zoo, other zoos, finer renderings, and fitting anew as the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from neural_graphs._io import read_json, write_json
from neural_graphs.bench._ablation import GNN, TRANSFORMER, Entry, configured, select
from neural_graphs.bench._classification import Method, about_runs, run_methods
from neural_graphs.bench._results import Row, row
from neural_graphs.errors import UserError
from neural_graphs.tasks import Editor, TrainConfig, evaluate, load_config
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.zoo import Zoo, ZooSplit

PRESET = "edit"
FINER = 4
"""So many times finer are edited networks rendered."""

DRAWN_FINER = 256
"""So many test networks."""

_PROBES: Mapping[str, Any] = {"probes": 64}


def _copies(count: int) -> tuple[str, ...]:
    return (f"copies={count}",)


EDITORS: dict[str, Entry] = {
    "mlp": Entry("mlp", "", {"name": "mlp"}, (*_copies(1), "optimizer.lr=1e-3")),
    "ng-gnn": Entry("ng-gnn", "probes=0", GNN, _copies(1)),
    "ng-gnn-64": Entry("ng-gnn", "probes=64", {**GNN, **_PROBES}, _copies(1)),
    "ng-gnn-64-k4": Entry("ng-gnn", "probes=64, 4 copies", {**GNN, **_PROBES}, _copies(4)),
    "ng-gnn-64-k8": Entry("ng-gnn", "probes=64, 8 copies", {**GNN, **_PROBES}, _copies(8)),
    "ng-t-64": Entry("ng-t", "probes=64", {**TRANSFORMER, **_PROBES, "edge_width": 32}, _copies(1)),
    "ng-t-64-k8": Entry("ng-t", "probes=64, 8 copies", {**TRANSFORMER, **_PROBES, "edge_width": 32}, _copies(8)),
}
"""Methods by name; their own settings go before those given for all."""


def editing(
    zoo: str | os.PathLike[str],
    methods: Sequence[str] = tuple(EDITORS),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "results/edit-dilate-mnist.json",
    runs: str | os.PathLike[str] = "runs/edit-dilate-mnist",
    overrides: Sequence[str] = (),
    jobs: int = 1,
    transfer: Sequence[str | os.PathLike[str]] = (),
    command: str = "",
) -> list[Row]:
    """Train every method of ``methods`` (names of ``EDITORS``) with every seed to edit the images of ``zoo``'s networks, and
    write what is wrong with the images of its edited test networks to ``out``.

    Metrics: ``test_mse`` against the edited image, the mean over pixels, networks and edits; ``test_psnr`` (dB),
    ``test_ssim``, ``val_mse``; ``seconds_per_network``, of editing. Method ``no edit`` is the network as it is, method
    ``refit`` fits it to the edited image instead: for as long as an editor takes, and until it is as good (with the
    ``seconds_per_network`` that this takes). Variants "... rendered 4 times finer" compare with the target interpolated
    between its pixels. With ``transfer`` the test networks of those zoos too, trained on nothing of them. Other arguments
    and errors as those of ``encoder_ablation``.
    """
    first = load_config(PRESET, [*overrides, f"zoo={os.fspath(zoo)}"])
    edit_targets(
        Zoo.load(zoo).test.select(slice(0, 1)), first.edits, first.targets
    )  # refused before anything is trained
    plan = []
    for name, entry in select(methods, EDITORS).items():
        settings = ["threads=1", *overrides, *entry.settings, f"zoo={os.fspath(zoo)}"]
        plan.append(configured(name, entry, seeds, runs, PRESET, settings))

    def rows_of(method: Method, found: Mapping[str, dict[str, Any]]) -> list[Row]:
        return _rows(method, found, transfer)

    return run_methods(zoo, plan, out, Path(out).stem, command, jobs, rows_of)


def _rows(method: Method, found: Mapping[str, dict[str, Any]], transfer: Sequence[str | os.PathLike[str]]) -> list[Row]:
    finished = [config for config in method.configs if config.out in found]
    if not finished:
        return []
    metrics = [found[config.out] for config in finished]
    about = about_runs(finished, metrics) | {"copies": finished[0].copies}
    reports = [_report(config, None) for config in finished]
    rows = _quality(method, reports, "", about)
    rows.append(row(method.name, "val_mse", [m["val_mse"] for m in metrics], method.variant, **about))
    rows.append(
        row(method.name, "seconds_per_network", [r["seconds_per_network"] for r in reports], method.variant, **about)
    )
    rows += _references(reports, "")
    title = " ".join(filter(None, (method.name, method.variant)))
    for key, what in (("refit", f"for as long as {title}"), ("reach", f"until as good as {title}")):
        fitted = [entry[key] for entry in reports[0]["per_edit"].values() if entry.get(key)]
        if fitted:
            about_it = {"steps": _mean(fitted, "steps")}
            rows.append(row("refit", "seconds_per_network", _mean(fitted, "seconds"), what, **about_it))
            if key == "refit":
                rows.append(row("refit", "test_mse", _mean(fitted, "mse"), what, networks=fitted[0]["n"], **about_it))
    finer = f"rendered {FINER} times finer"
    rows.append(_finer_row(method, [r["finer"] for r in reports], finer, about))
    rows.append(row("no edit", "test_mse", reports[0]["finer"]["no_edit"], finer, part=finer))
    for other in transfer:
        name = Path(other).name
        if not _readable(finished[0], other):
            continue
        theirs = [_report(config, other) for config in finished]
        rows += _quality(method, theirs, name, about) + _references(theirs, name)
    return rows


def _readable(config: TrainConfig, zoo: str | os.PathLike[str]) -> bool:
    """Whether a finished run's editor can edit the networks of another zoo: the MLP reads one architecture alone."""
    try:
        Editor.from_pretrained(config.out).check_readable(Zoo.load(zoo).test.batch([0]).buckets[0])
    except UserError:
        return False
    return True


def _quality(method: Method, reports: Sequence[dict[str, Any]], part: str, about: Mapping[str, Any]) -> list[Row]:
    variant = ", ".join(filter(None, (method.variant, part)))
    return [
        row(
            method.name, f"test_{key}", [r[key] for r in reports], variant, networks=reports[0]["n"], part=part, **about
        )
        for key in ("mse", "psnr", "ssim")
    ]


def _references(reports: Sequence[dict[str, Any]], part: str) -> list[Row]:
    left = [entry["no_edit"] for entry in reports[0]["per_edit"].values()]
    return [row("no edit", f"test_{key}", _mean(left, key), part, part=part) for key in ("mse", "psnr", "ssim")]


def _finer_row(method: Method, finer: Sequence[dict[str, Any]], part: str, about: Mapping[str, Any]) -> Row:
    variant = ", ".join(filter(None, (method.variant, part)))
    return row(method.name, "test_mse", [entry["mse"] for entry in finer], variant, part=part, **about)


def _mean(entries: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(float(entry[key]) for entry in entries)) / len(entries)


def _report(config: TrainConfig, zoo: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What ``evaluate`` says of a finished run on its own zoo's test networks or another's; kept beside the run."""
    name = "test" if zoo is None else f"test-{Path(zoo).name}"
    file = Path(config.out) / f"report-{name}.json"
    if not file.is_file():
        path = os.fspath(zoo) if zoo is not None else config.zoo
        found = evaluate(config.out, zoo=path, refit=zoo is None)
        kept = {
            key: found[key]
            for key in ("mse", "psnr", "ssim", "n", "per_edit", "per_architecture", "seconds_per_network")
        }
        write_json(file, kept | ({"finer": _finer(config, Zoo.load(path).test)} if zoo is None else {}))
    return dict(read_json(file))


def _finer(config: TrainConfig, split: ZooSplit) -> dict[str, float]:
    """Errors of images ``FINER`` times finer: they hold the places of all pixels; the target between is linear."""
    model, split = Editor.from_pretrained(config.out), split.select(slice(0, DRAWN_FINER))
    assert model.size is not None
    sides = [FINER * (side - 1) + 1 for side in model.size]
    sums = {"mse": 0.0, "no_edit": 0.0}
    for first in range(0, len(split), 128):
        part = split.select(slice(first, first + 128))
        wanted = edit_targets(part, model.edits, config.targets)
        for style, edit in enumerate(model.edits):
            target = wanted[style].movedim(3, 1)
            target = F.interpolate(target, sides, mode="bilinear", align_corners=True).movedim(1, 3)
            for key, strength in (("mse", 1.0), ("no_edit", 0.0)):
                images = model.render(part, edit, strength, *sides)
                sums[key] += float((images - target).double().square().flatten(1).mean(1).sum())
    return {key: value / (len(split) * len(model.edits)) for key, value in sums.items()}
