"""The table of optimizers on the page of results: a line per task and method, from the rows of ``bench optimiser``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from neural_graphs.bench._results import Row

HEAD = (
    *("Task", "Method", "Training loss", "to tuned Adam", "to the best tuned", "Test accuracy", "to tuned Adam"),
    *("Steps to Adam's loss", "Time over Adam's", "Setting, by loss"),
)
_ALL = "all tasks"
_LESSER = ("sgd", "adam", "adamw", "nadamw")
"""Baselines that the README leaves to the page of results."""


def is_one(rows: Iterable[Row]) -> bool:
    """Whether these are rows of ``bench optimiser``."""
    return any("minus_adam" in entry for entry in rows)


def lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """The cells of the table, under ``HEAD``: those over all tasks last."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for entry in rows:
        found.setdefault((entry["part"], entry["method"], entry["variant"]), {})[entry["metric"]] = entry
    parts = sorted(dict.fromkeys(part for part, _, _ in found), key=lambda part: part == _ALL)
    ordered = [(key, metrics) for part in parts for key, metrics in found.items() if key[0] == part]
    cells, before = [], ""
    for (part, method, variant), metrics in ordered:
        task = f"**{part}**" if part != before else ""
        name = f"{method}, {variant}" if variant else method
        cells.append((task, name, *(_over_tasks(metrics) if part == _ALL else _of_task(metrics))))
        before = part
    return cells


def short(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """For the README: (method, measure, value) of learned rules and Muon over all tasks, and accuracies of a single task."""
    found = []
    kept = [entry for entry in rows if not entry["variant"] and entry["method"] not in _LESSER]
    for entry in kept:
        if entry["part"] == _ALL and entry["metric"] == "train_loss_minus_adam":
            share = next(e for e in kept if e["method"] == entry["method"] and e["metric"] == "at_or_below_adam_share")
            count = f"{round(share['mean'] * share['tasks'])} of {share['tasks']} tasks at or below"
            value = f"{_difference(entry['interval'])} ({count})"
            name = "muon, tuned" if entry["method"] == "muon" else entry["method"]
            found.append((name, "training loss less tuned Adam's", value))
    if len({entry["part"] for entry in kept} - {_ALL}) == 1:
        for entry in rows:
            if entry["metric"] == "test_accuracy" and entry["part"] != _ALL and not entry["variant"]:
                value = f"{100 * entry['mean']:.1f} ± {100 * entry['std']:.1f} %"
                name = "adam, tuned" if entry["method"] == "adam" else entry["method"]
                found.append((name, "test accuracy", value))
    return found


def _of_task(metrics: Mapping[str, Row]) -> tuple[str, ...]:
    loss, accuracy, steps = metrics["train_loss"], metrics["test_accuracy"], metrics["steps_to_adam_share"]
    spread = f"{loss['mean']:.4f} ± {loss['std']:.4f}"
    failed = f", {loss['diverged']} diverged" if loss["diverged"] else ""
    reached = f"{100 * steps['mean']:.0f} %" if steps["reached"] else "never"
    if 0 < steps["reached"] < len(steps["values"]):
        reached += f" ({steps['reached']} of {len(steps['values'])} reach it)"
    time = metrics.get("time_over_adam")
    return (
        spread + failed,
        _difference(loss["minus_adam"]),
        f"{_difference(loss['minus_best'])} ({loss['best']})",
        f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['std']:.2f} %",
        _difference(accuracy["minus_adam"], 100),
        reached,
        f"{time['mean']:.2f}" if time else "",
        loss["setting"],
    )


def _over_tasks(metrics: Mapping[str, Row]) -> tuple[str, ...]:
    loss, accuracy, share = (
        metrics[name] for name in ("train_loss_minus_adam", "test_accuracy_minus_adam", "at_or_below_adam_share")
    )
    count = round(share["mean"] * share["tasks"])
    return (
        f"at or below Adam's on {count} of {share['tasks']}",
        _difference(loss["interval"]),
        _difference(loss["minus_best"]),
        "",
        _difference(accuracy["interval"], 100),
        "",
        "",
        "",
    )


def _difference(pair: Any, factor: float = 1) -> str:
    mean, half = pair
    digits = 2 if factor == 100 else 4
    text = f"{factor * mean:+.{digits}f}"
    return text if half is None else f"{text} ± {factor * half:.{digits}f}"
