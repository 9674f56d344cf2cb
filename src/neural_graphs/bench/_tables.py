"""Tables for docs and README, from results files alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_graphs._io import atomic_write
from neural_graphs.bench import _optimizer_table, _trace_table
from neural_graphs.bench._captions import BARS, NOTES, TITLES
from neural_graphs.bench._results import Row, read_results
from neural_graphs.errors import UserError

START, END = "<!-- results -->", "<!-- /results -->"

_SHARES = ("accuracy", "share")

_ACCURACIES = ("inr-", "encoders-", "options-", "architectures", "generalisation-", "edit-")
"""Experiments (how their names start) that compare methods by one figure, a line per method and part of the test set."""

_HEADLINES = {"test_accuracy": "val_accuracy", "kendall_tau": "val_kendall_tau", "test_mse": "val_mse"}
"""That figure, and the same on validation."""

_LONG = ("encoders-", "options-")
"""Experiments that the README leaves to the page of results."""


def tables(results: str | os.PathLike[str] = "results") -> str:
    """The page of measured results: one section per ``results/*.json``. Raises ``UserError`` for a broken file."""
    parts = [
        "# Measured results\n",
        "Generated from the files in `results/` by `neural-graphs bench tables`; not edited by hand. Each file was "
        "written by the command named with it.\n",
    ]
    found = _load(results)
    if not found:
        parts.append("Nothing has been measured yet.\n")
    return "\n".join([*parts, *(_section(result) for result in found)])


def readme_table(results: str | os.PathLike[str] = "results") -> str:
    """The short table of the README: accuracies, and ratios of the speed benchmarks."""
    lines = []
    for result in _load(results):
        if result["experiment"] == "trace":
            lines += [(TITLES["trace"], *entry) for entry in _trace_table.short(result["rows"])]
            continue
        if _optimizer_table.is_one(result["rows"]):
            title = TITLES.get(result["experiment"], result["experiment"])
            lines += [(title, *entry) for entry in _optimizer_table.short(result["rows"])]
            continue
        if result["experiment"].startswith(_LONG):
            continue
        shown = (*_HEADLINES, "speedup", "memory_ratio") if result["experiment"] != "fit" else ("speedup",)
        rows = [r for r in result["rows"] if r["metric"] in shown]
        if result["experiment"] == "architectures":
            rows = [r for r in rows if r["variant"].endswith(("trained on", "architectures never seen"))]
        if result["experiment"].startswith(("generalisation-", "edit-")):
            rows = [r for r in rows if not r.get("part")]
        title = TITLES.get(result["experiment"], result["experiment"])
        for entry in rows:
            name = " ".join(filter(None, (entry["method"], entry["variant"])))
            lines.append((title, name, _metric_name(entry["metric"]), _value(entry)))
    return _table(("Experiment", "Method", "Measure", "Value"), lines) if lines else "Nothing has been measured yet.\n"


def update_readme_table(
    readme: str | os.PathLike[str] = "README.md", results: str | os.PathLike[str] = "results"
) -> None:
    """Fill the part of ``readme`` between ``<!-- results -->`` and ``<!-- /results -->``; ``UserError`` without them."""
    try:
        text = Path(readme).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {readme}: {error.strerror}") from None
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"{readme} has no part between {START} and {END}")
    _write(readme, f"{before}{start}\n{readme_table(results)}{end}{after}")


def write_tables(
    results: str | os.PathLike[str] = "results",
    docs: str | os.PathLike[str] = "docs/results.md",
    readme: str | os.PathLike[str] | None = "README.md",
) -> None:
    """Write the page of results, and the README's table unless ``readme`` is None."""
    _write(docs, tables(results))
    if readme is not None:
        update_readme_table(readme, results)


def _write(path: str | os.PathLike[str], text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _load(results: str | os.PathLike[str]) -> list[dict[str, Any]]:
    order = list(TITLES)
    found = [read_results(path) for path in sorted(Path(results).glob("*.json"))]
    return sorted(
        found, key=lambda r: (order.index(r["experiment"]) if r["experiment"] in order else 99, r["experiment"])
    )


def _section(result: Mapping[str, Any]) -> str:
    name = result["experiment"]
    dataset = ", ".join(f"{key} {value}" for key, value in result["dataset"].items() if value not in ("", None))
    facts = (
        f"`{result['command']}`, commit {result['commit']}, {result['created'][:10]}, torch {result['torch']}, "
        f"{result['device']}, {result['threads']} threads. Data: {dataset}."
    )
    if name == "trace":
        facts += f"\n\n{_trace_table.summary(result['rows'])}"
        return _titled(name, facts, _trace_table.HEAD, _trace_table.lines(result["rows"]))
    if _optimizer_table.is_one(result["rows"]):
        return _titled(name, facts, _optimizer_table.HEAD, _optimizer_table.lines(result["rows"]))
    if name.startswith(_ACCURACIES):
        return _titled(name, facts, _ACCURACY_HEAD, _accuracy_lines(result["rows"]))
    rows = [
        (
            entry["method"],
            entry["variant"],
            _metric_name(entry["metric"]),
            _value(entry),
            str(len(entry["values"])),
            BARS.get((name, entry["metric"]), ""),
            _about(entry),
        )
        for entry in result["rows"]
    ]
    return _titled(name, facts, ("Method", "Variant", "Measure", "Value", "n", "Bar", "More"), rows)


_ACCURACY_HEAD = (
    "Method", "Variant", "Test", "Validation", "Seeds", "Epochs", "Parameters", "s per epoch", "Peak MB", "More"
)  # fmt: skip


def _accuracy_lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    found = {(r["method"], r["variant"], r["metric"]): r for r in rows}
    lines: list[tuple[str, ...]] = []
    for (method, variant, metric), test in found.items():
        if metric not in _HEADLINES:
            continue
        val = found.get((method, variant, _HEADLINES[metric]))
        per_epoch = test["seconds"] / test["epochs"] if {"seconds", "epochs"} <= set(test) else None
        more = [f"{test['networks']} networks"] if "networks" in test else []
        for other, write in _BESIDE.items():
            beside = found.get((method, variant, other))
            more += [write(beside["mean"])] if beside else []
        more += [f"{test['steps']:,.0f} steps"] if "steps" in test else []
        more += [f"commit {test['commit']}"] if "commit" in test else []
        lines.append(
            (
                method,
                variant,
                _value(test),
                _value(val) if val else "",
                str(len(test["values"])),
                str(test.get("epochs", "")),
                f"{test['parameters']:,}" if "parameters" in test else "",
                f"{per_epoch:.1f}" if per_epoch is not None else "",
                f"{test['peak_memory_mb']:,.0f}" if "peak_memory_mb" in test else "",
                ", ".join(more),
            )
        )
    return lines


_BESIDE: Mapping[str, Callable[[float], str]] = {
    "test_psnr": lambda value: f"PSNR {value:.1f} dB",
    "test_ssim": lambda value: f"SSIM {value:.3f}",
    "seconds_per_network": lambda value: f"{1000 * value:.2f} ms per network",
    "accuracy_gain": lambda value: f"{100 * value:+.1f} points against no edit",
    "best_quarter_gain": lambda value: f"{100 * value:+.1f} in the best quarter",
    "edited_clean_accuracy": lambda value: f"clean images {100 * value:.1f} %",
}
"""What is said of edited networks beside their error or accuracy."""


def _titled(name: str, facts: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(
        [f"## {TITLES.get(name, name)}\n", f"{NOTES.get(name, '')}\n".lstrip("\n"), facts + "\n", _table(head, rows)]
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _metric_name(metric: str) -> str:
    return metric.replace("_", " ")


def _value(entry: Row) -> str:
    """Mean ± standard deviation, in per cent for accuracies and shares, with an "x" for speedups."""
    mean, std = entry["mean"], entry["std"]
    spread = len(entry["values"]) > 1
    if entry["metric"].endswith(_SHARES):
        return f"{100 * mean:.1f} ± {100 * std:.1f} %" if spread else f"{100 * mean:.1f} %"
    if entry["metric"].endswith("mse"):
        return f"{100 * mean:.3f} ± {100 * std:.3f} x1e-2" if spread else f"{100 * mean:.3f} x1e-2"
    if entry["metric"].startswith("speedup"):
        low, high = min(entry["values"]), max(entry["values"])
        return f"{entry.get('median', mean):.1f}x" + (f" ({low:.1f} to {high:.1f})" if spread else "")
    return f"{_number(mean)} ± {_number(std)}" if spread else _number(mean)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _about(entry: Row) -> str:
    parts = []
    if "parameters" in entry:
        parts.append(f"{entry['parameters']:,} parameters")
    if "epochs" in entry:
        parts.append(f"{entry['epochs']} epochs")
    if "seconds" in entry:
        parts.append(f"{entry['seconds']:,.0f} s")
    if "peak_memory_mb" in entry:
        parts.append(f"{entry['peak_memory_mb']:,.0f} MB peak")
    if "matmul_gflops" in entry:
        parts.append(f"matmul rate {entry['matmul_gflops']:.0f} GFLOP/s")
    if "commit" in entry:
        parts.append(f"commit {entry['commit']}")
    return ", ".join(parts)
