"""The table of architectures on the page of results: one line per architecture, from the rows of ``bench trace``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from neural_graphs.bench._results import Row

HEAD = (
    *("Architecture", "Parameters", "Trace", "Memory", "Group", "Elements", "Moved"),
    *("Error, float64", "Error, float32", "Control", "Rescalings", "Frozen, notes"),
)
_SETS = {"small": "Small networks", "vision": "Vision (timm)", "language": "Language and audio (transformers)"}
_LONGEST = 48  # characters of a group


def lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """The cells of the table, under ``HEAD``; a line with the set's name before the first of each set."""
    by_name: dict[str, dict[str, Row]] = {}
    for entry in rows:
        by_name.setdefault(entry["method"], {})[entry["metric"]] = entry
    found: list[tuple[str, ...]] = []
    for key, title in _SETS.items():
        members = {name: metrics for name, metrics in by_name.items() if _main(metrics)["set"] == key}
        if members:
            found.append((f"**{title}**", *("" for _ in HEAD[1:])))
        found += [_line(name, metrics) for name, metrics in members.items()]
    return found


def summary(rows: Iterable[Row]) -> str:
    """How many architectures were traced and refused, and the largest errors, in a sentence."""
    rows = list(rows)
    refused = [entry["method"] for entry in rows if entry["metric"] == "refused"]
    traced = [entry["method"] for entry in rows if entry["metric"] == "relative_error"]
    text = f"{len(traced)} architectures traced"
    for metric, name in (("relative_error", "float64"), ("relative_error_fp32", "float32")):
        if values := [entry["mean"] for entry in rows if entry["metric"] == metric]:
            text += f", largest error {max(values):.1e} in {name}"
    if values := [entry["mean"] for entry in rows if entry["metric"] == "control_error"]:
        text += f", smallest control {min(values):.1e}"
    return text + (f"; refused: {', '.join(refused)}." if refused else "; none refused.")


def short(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """For the README: (method, measure, value)."""
    rows = list(rows)
    errors = [entry["mean"] for entry in rows if entry["metric"] == "relative_error"]
    refused = sum(entry["metric"] == "refused" for entry in rows)
    found = [("trace", "architectures traced, refused", f"{len(errors)}, {refused}")]
    if errors:
        found.append(("trace", "largest error under group elements, float64", f"{max(errors):.1e}"))
    return found


def _main(metrics: Mapping[str, Row]) -> Row:
    return metrics["refused"] if "refused" in metrics else metrics["seconds"]


def _line(name: str, metrics: Mapping[str, Row]) -> tuple[str, ...]:
    about = _main(metrics)
    parameters = f"{about['parameters']:,}"
    if "refused" in metrics:
        return (name, parameters, *("" for _ in HEAD[3:]), f"refused: {_cell(about['reason'])}")

    def error(metric: str) -> str:
        return f"{metrics[metric]['mean']:.1e}" if metric in metrics else "–"

    return (
        *(
            name,
            parameters,
            f"{about['mean']:.2f} s",
            _memory(metrics),
            _group(about),
            f"10^{about['log10_order']:,.0f}",
        ),
        f"{100 * metrics['share_moved']['mean']:.1f} %",
        *(error("relative_error"), error("relative_error_fp32"), error("control_error")),
        *(_rescalings(metrics.get("rescaling_error")), _notes(about, metrics.get("control_error"))),
    )


def _memory(metrics: Mapping[str, Row]) -> str:
    return f"{metrics['memory_ratio']['mean']:.2f}x" if "memory_ratio" in metrics else "–"


def _group(about: Mapping[str, Any]) -> str:
    group, classes = str(about["group"]), about["classes"]
    if len(group) <= _LONGEST:
        return group
    terms = group.split(" × ")
    while len(terms) > 1 and len(" × ".join(terms)) > _LONGEST:
        terms.pop()
    return " × ".join([*(term for term in terms if term[0] != "…"), f"… ({classes} classes)"])


def _rescalings(entry: Row | None) -> str:
    if entry is None:
        return "none"
    kinds = ", ".join(f"{count} {kind}" for kind, count in entry["kinds"].items())
    return f"{kinds}: {entry['mean']:.1e}"


def _notes(about: Mapping[str, Any], control: Row | None) -> str:
    parts = [f"`{operator}` {count}×" for operator, count in about["frozen"].items()]
    if about["route"] != "export":
        parts.append(f"by {about['route']}")
    if control is not None and control["inert"]:
        count = len(control["inert"])
        parts.append(f"{count} tensor{'s' * (count > 1)} without effect")
    return ", ".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
