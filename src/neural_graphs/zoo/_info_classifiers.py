"""What a zoo of classifiers holds: runs, checkpoints, how good they are, and the hyper-parameters they were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from neural_graphs.zoo._store import Zoo

ACCURACY = "test_accuracy"
HYPER_PARAMETERS = (
    "images",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "dropout",
    "init",
    "init_scale",
    "train_fraction",
    "activation",
)
BINS = 10
BAR = 40  # characters of the longest bar
MOST_WORDS = 12  # values of a text column that are counted one by one


def classifier_info(zoo: Zoo) -> dict[str, Any]:
    """Accuracy, runs and hyper-parameters of a zoo whose networks have a ``test_accuracy``, JSON-able; else empty.

    ``accuracy`` has ``min``, ``quartile_1``, ``median``, ``quartile_3``, ``max``, ``mean`` and ``missing`` (networks without
    one), ``histogram`` its ``edges`` and ``counts``. ``hyper_parameters`` has per column ``min`` and ``max`` of numbers,
    ``counts`` of words (the most frequent ones) and ``distinct``, how many values there are.
    """
    names = zoo.table.column_names
    if ACCURACY not in names or not len(zoo):
        return {}
    table = zoo.all
    info: dict[str, Any] = {"checkpoints": len(zoo)}
    if "run" in names:
        info["runs"] = len(np.unique(table.column("run")))
    if "epoch" in names and np.isfinite(epochs := table.column("epoch").astype(float)).any():
        info["epochs"] = {"min": float(np.nanmin(epochs)), "max": float(np.nanmax(epochs))}
    accuracy = table.column(ACCURACY).astype(float)
    finite = accuracy[np.isfinite(accuracy)]
    info["accuracy"] = {"missing": len(accuracy) - len(finite)}
    if len(finite):
        places = dict(zip(("min", "quartile_1", "median", "quartile_3", "max"), (0, 0.25, 0.5, 0.75, 1), strict=True))
        info["accuracy"] |= {name: float(np.quantile(finite, share)) for name, share in places.items()}
        info["accuracy"]["mean"] = float(finite.mean())
        counts, edges = np.histogram(finite, BINS)
        info["histogram"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    info["hyper_parameters"] = {
        name: found for name in HYPER_PARAMETERS if name in names and (found := _values(table.column(name)))
    }
    return info


def _values(column: np.ndarray) -> dict[str, Any]:
    if np.issubdtype(column.dtype, np.number):
        numbers = column[np.isfinite(column)]
        if not len(numbers):
            return {}
        return {"min": float(numbers.min()), "max": float(numbers.max()), "distinct": len(np.unique(numbers))}
    words, counts = np.unique(column.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_WORDS]
    return {"counts": {str(words[i]): int(counts[i]) for i in order}, "distinct": len(words)}


def summary_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of the summary table for what ``classifier_info`` returned."""
    rows = []
    if "runs" in info:
        epochs = info.get("epochs")
        span = f", epochs {epochs['min']:g} to {epochs['max']:g}" if epochs else ""
        rows.append(("runs", f"{info['runs']:,} with {info['checkpoints'] / info['runs']:.3g} checkpoints each{span}"))
    found = info["accuracy"]
    if "median" in found:
        rows.append(
            (
                "test accuracy",
                f"{found['min']:.1%} to {found['max']:.1%}, median {found['median']:.1%}, "
                f"half of them {found['quartile_1']:.1%} to {found['quartile_3']:.1%}",
            )
        )
    if found["missing"]:
        rows.append(("", f"{found['missing']:,} networks have none"))
    return rows


def print_classifiers(info: dict[str, Any], console: Console) -> None:
    """Print the distribution of accuracies as bars, and the hyper-parameters as a table."""
    from rich.table import Table

    block = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    if "histogram" in info:
        counts, edges = info["histogram"]["counts"], info["histogram"]["edges"]
        console.print("test accuracy of the networks")
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = block * (max(1, round(BAR * count / max(counts))) if count else 0)
            console.print(f"  {low:6.1%} - {high:6.1%}  {bar} {count:,}", highlight=False)
    if info["hyper_parameters"]:
        table = Table("hyper-parameter", "values")
        for name, found in info["hyper_parameters"].items():
            table.add_row(name, _text(found))
        console.print(table)


def _text(found: dict[str, Any]) -> str:
    if "counts" in found:
        words = ", ".join(f"{word} {count:,}" for word, count in found["counts"].items())
        left = found["distinct"] - len(found["counts"])
        return words + (f" and {left} others" if left else "")
    if found["distinct"] == 1:
        return f"{found['min']:.4g}"
    return f"{found['min']:.4g} to {found['max']:.4g} ({found['distinct']:,} values)"
