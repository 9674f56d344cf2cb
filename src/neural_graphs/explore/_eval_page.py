"""The report of an evaluation: one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_graphs._io import atomic_write
from neural_graphs.errors import UserError
from neural_graphs.explore._draw import draw_confusion
from neural_graphs.explore._edit_page import edit_body
from neural_graphs.explore._page import page, table
from neural_graphs.explore._plots import (
    COLOURS,
    MOST_INTERVALS,
    MOST_POINTS,
    draw_calibration,
    draw_histogram,
    draw_scatter,
)
from neural_graphs.zoo._info_classifiers import HYPER_PARAMETERS

if TYPE_CHECKING:
    from neural_graphs.zoo._store import Zoo

MOST_GROUPS = len(COLOURS)
WORST = 15  # lines of the table of errors


@dataclass(frozen=True)
class Groups:
    """Networks by kind: ``title`` says by what, ``names`` the kinds, ``of`` (whole numbers ``[n]``) each network's."""

    title: str
    names: list[str]
    of: np.ndarray


def save_evaluation(found: Mapping[str, Any], run: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write the page for what ``tasks.evaluate`` returned for ``run`` into ``path``.

    Raises ``RunError`` when it cannot be written.
    """
    from neural_graphs.zoo._store import Zoo

    zoo = Zoo.load(found["zoo"])
    html = render_evaluation(found, os.fspath(run), zoo, _other_zoo(Path(run), zoo))
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _other_zoo(run: Path, zoo: Zoo) -> str:
    """The zoo that ``run`` was trained on, and its images, where it is not ``zoo``."""
    from neural_graphs.tasks._run import read_config
    from neural_graphs.zoo._store import META, read_meta

    own = Path(read_config(run).zoo)
    if own.resolve() == zoo.path.resolve():
        return ""
    return f"{own}{_images(read_meta(own)) if (own / META).is_file() else ''}"


def render_evaluation(found: Mapping[str, Any], run: str, zoo: Zoo | None = None, trained_on: str = "") -> str:
    """The page for what ``tasks.evaluate`` returned for the model in ``run``.

    ``zoo`` is the one that was evaluated on: its columns name the networks' activations, runs and hyper-parameters.
    ``trained_on`` names the zoo the model was trained on where that is another one.
    """
    if "gallery" in found:
        body = edit_body(found, _about(found, run, zoo, trained_on))
    elif "kendall_tau" in found:
        body = _regression(found, run, zoo, trained_on)
    elif "confusion" not in found:
        raise UserError(f"there is no page for a model of task {found['task']}: use eval without --report")
    else:
        body = _classification(found, run)
    return page(f"Evaluation of {run}", body, f"evaluation of {run}")


# -- regression ------------------------------------------------------------------------------------------------------------


def _regression(found: Mapping[str, Any], run: str, zoo: Zoo | None, trained_on: str) -> str:
    true, predicted = (np.asarray(found[name], float) for name in ("true", "predicted"))
    interval = np.stack([np.asarray(found[name], float) for name in ("lower", "upper")], 1)
    columns = _columns(found, zoo)
    groups = group_networks(found, columns)
    label, percent = str(found["target"]).replace("_", " "), is_share(found)

    def write(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:.4g}"

    def exact(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    numbers = [
        ("best", f"{found['kendall_tau']:.3f}", "Kendall's tau, the order of the networks"),
        ("", f"{found['r2']:.3f}", "R², share of the variance explained"),
        ("", exact(found["mae"]), "mean absolute error"),
        ("", f"{found['interval_coverage']:.0%}", "of true values inside the 90 % intervals"),
        ("", f"{found['n']:,}", f"{found['split']} networks"),
    ]
    cells = "".join(
        f"<div class='{kind}'><b>{big}</b><span>{escape(small)}</span></div>" for kind, big, small in numbers
    )
    shown = f" {MOST_POINTS:,} of them are drawn." if len(true) > MOST_POINTS else ""
    bars = " Thin lines are the 90 % intervals." if len(true) <= MOST_INTERVALS else ""
    scatter = draw_scatter(true, predicted, label, write, groups.of if groups else None, interval)
    bins = found["calibration"]
    calibration = draw_calibration(
        [b["predicted"] for b in bins], [b["true"] for b in bins], [b["n"] for b in bins], label, write
    )
    residuals = draw_histogram(predicted - true, "predicted - true", exact, mark=0.0)
    return f"""<h1>Predicting {escape(label)} from weights alone</h1>
<p class="lead">{escape(_about(found, run, zoo, trained_on))}</p>
<div class="numbers">{cells}</div>
<p>{escape(" ".join(in_words(found)))}</p>
<h2>Predicted against true</h2>
<p class="note">One point per network; on the dashed line both are equal.{shown}{bars}</p>
<figure>{scatter}{_legend(groups)}</figure>
{_group_table(groups, true, predicted, exact)}
<div class="columns"><div><h2>Calibration</h2>
<p class="note">{len(bins)} groups of networks with similar predictions: their mean true value. On the line, predictions are
right on average.</p>{calibration}</div>
<div><h2>Errors</h2><p class="note">Right of the dashed line the model promises too much.</p>{residuals}</div></div>
<h2>Largest errors</h2>{_worst(found, true, predicted, interval, columns, exact)}"""


def is_share(found: Mapping[str, Any]) -> bool:
    """Whether the target is a share, written in percent: an accuracy."""
    return "accuracy" in str(found["target"]) and list(found["bounds"]) == [0.0, 1.0]


def _columns(found: Mapping[str, Any], zoo: Zoo | None) -> dict[str, np.ndarray]:
    """The zoo's columns for the networks that were evaluated."""
    if zoo is None:
        return {}
    numbers = zoo.all.column("network")
    rows = np.searchsorted(numbers, np.asarray(found["network"]))  # a zoo is ordered by number
    chosen = zoo.all.select(rows)
    wanted = ("run", "epoch", *HYPER_PARAMETERS)
    return {name: chosen.column(name) for name in wanted if name in zoo.table.column_names}


def groups_of(found: Mapping[str, Any], zoo: Zoo) -> Groups | None:
    """The networks of an evaluation by kind, see ``group_networks``."""
    return group_networks(found, _columns(found, zoo))


def group_networks(found: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> Groups | None:
    """The networks by activation, else by architecture, else by the number of layers: what gives a few kinds."""
    architectures = np.asarray(found["architectures"], dtype=object).astype(str)
    candidates = {"architecture": architectures, "layers": np.char.add(_layers(architectures), " layers")}
    if "activation" in columns:
        candidates = {"activation": columns["activation"].astype(str), **candidates}
    for title, labels in candidates.items():
        names, of = np.unique(labels, return_inverse=True)
        if 2 <= len(names) <= MOST_GROUPS:
            return Groups(title, names.tolist(), of)
    return None


def _layers(architectures: np.ndarray) -> np.ndarray:
    """How many layers a stack's name (``3-16k3-10 relu``) shows."""
    return np.array([str(max(1, name.split(" ")[0].count("-"))) for name in architectures])


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Sentences on what the figures mean."""

    def size(value: float) -> str:
        return f"{100 * value:.1f} points" if is_share(found) else f"{value:.4g}"

    true, predicted = (np.asarray(found[name], float) for name in ("true", "predicted"))
    tau, bias = found["kendall_tau"], float((predicted - true).mean())
    guess = float(np.abs(true - np.median(true)).mean())
    sentences = [
        f"Of two networks drawn at random, the model puts the better one first {(tau + 1) / 2:.0%} of the time "
        "(chance: 50%).",
        f"It is off by {size(found['mae'])} on average (root mean square {size(found['rmse'])}); "
        f"always saying the median would be off by {size(guess)}.",
    ]
    if abs(bias) > found["mae"] / 2 and abs(bias) > 0:
        sentences.append(f"Its predictions are too {'high' if bias > 0 else 'low'} by {size(abs(bias))} on average.")
    if abs(found["interval_coverage"] - 0.9) > max(0.03, 3 * (0.09 / len(true)) ** 0.5):
        kind = "narrow" if found["interval_coverage"] < 0.9 else "wide"
        sentences.append(
            f"Its intervals are too {kind}: they hold {found['interval_coverage']:.0%} of the true values, not 90%."
        )
    new = float((np.asarray(found["novelty"], float) > 1).mean())
    if new > 0.05:
        sentences.append(f"{new:.0%} of these networks are unlike those it was trained on.")
    return sentences


def _about(found: Mapping[str, Any], run: str, zoo: Zoo | None, trained_on: str) -> str:
    images = _images(zoo.meta) if zoo is not None else ""
    text = f"{run} on {found['n']:,} {found['split']} networks of {found['zoo']}{images}"
    return text + (f", trained on networks of {trained_on}." if trained_on else ".")


def _images(meta: Mapping[str, Any]) -> str:
    name = (meta.get("source") or {}).get("images")
    return f" ({name})" if name else ""


def _legend(groups: Groups | None) -> str:
    if groups is None:
        return ""
    keys = "".join(
        f'<i class="key" style="background:{COLOURS[k]}"></i><span>{escape(name)}</span>'
        for k, name in enumerate(groups.names)
    )
    return f"<figcaption>{keys}</figcaption>"


def group_figures(groups: Groups, true: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """``name``, ``n``, ``kendall_tau`` and ``mae`` of every group; one network has no order, so its tau is None."""
    from neural_graphs.tasks._ranking import scores

    rows = []
    for k, name in enumerate(groups.names):
        mine = groups.of == k
        found = scores(true[mine], predicted[mine])
        tau = found["kendall_tau"] if mine.sum() > 1 else None
        rows.append({"name": name, "n": int(mine.sum()), "kendall_tau": tau, "mae": found["mae"]})
    return rows


def _group_table(groups: Groups | None, true: np.ndarray, predicted: np.ndarray, exact: Any) -> str:
    if groups is None:
        return ""
    rows = [
        [
            row["name"],
            f"{row['n']:,}",
            "-" if row["kendall_tau"] is None else f"{row['kendall_tau']:.3f}",
            exact(row["mae"]),
        ]
        for row in group_figures(groups, true, predicted)
    ]
    return table([groups.title, "networks", "Kendall's tau", "mean absolute error"], rows, {1, 2, 3})


def _worst(
    found: Mapping[str, Any],
    true: np.ndarray,
    predicted: np.ndarray,
    interval: np.ndarray,
    columns: Mapping[str, np.ndarray],
    exact: Any,
) -> str:
    order = np.argsort(-np.abs(predicted - true), kind="stable")[:WORST]
    kinds = found["architectures"]
    more = [name for name in columns if len(np.unique(columns[name].astype(str))) > 1]
    head = ["network", "true", "predicted", "interval", *(name.replace("_", " ") for name in more)]
    if len(set(kinds)) > 1:
        head.append("architecture")
    rows = []
    for i in order:
        row = [str(found["network"][i]), exact(true[i]), exact(predicted[i])]
        row.append(f"{exact(interval[i, 0])} - {exact(interval[i, 1])}")
        row += [_cell(columns[name][i]) for name in more]
        rows.append(row + ([kinds[i]] if len(set(kinds)) > 1 else []))
    return table(head, rows, {0, 1, 2, 3})


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


# -- classification --------------------------------------------------------------------------------------------------------


def _classification(found: Mapping[str, Any], run: str) -> str:
    confusion, names = np.asarray(found["confusion"]), [str(name) for name in found["class_names"]]
    if len(names) > 40:
        raise UserError(f"a picture of {len(names)} classes would show nothing: use eval without --report")
    numbers = [
        ("best", f"{found['accuracy']:.1%}", "accuracy"),
        ("", f"{found['loss']:.3f}", "loss, cross-entropy in nats"),
        ("", f"{confusion.sum(1).max() / confusion.sum():.0%}", "for always saying the most frequent class"),
        ("", f"{found['n']:,}", f"{found['split']} networks"),
    ]
    cells = "".join(
        f"<div class='{kind}'><b>{big}</b><span>{escape(small)}</span></div>" for kind, big, small in numbers
    )
    wrong = confusion - np.diag(np.diag(confusion))
    words = "It makes no mistakes."
    if wrong.any():
        t, p = np.unravel_index(int(wrong.argmax()), wrong.shape)
        words = (
            f"The most frequent mistake: {names[t]} taken for {names[p]}, {wrong[t, p]:,} of {confusion[t].sum():,}."
        )
    kinds = found["per_architecture"]
    rows = [
        [name, f"{entry['n']:,}", f"{entry['accuracy']:.1%}", "yes" if entry["seen"] else "no"]
        for name, entry in kinds.items()
    ]
    by_kind = table(["architecture", "networks", "right", "trained on"], rows, {1, 2}) if 1 < len(rows) <= 40 else ""
    return f"""<h1>Which class a network is of</h1>
<p class="lead">{escape(f"{run} on {found['n']:,} {found['split']} networks of {found['zoo']}.")}</p>
<div class="numbers">{cells}</div>
<p>{escape(words)}</p>
<h2>Confusion</h2><p class="note">How many networks of a class (row) are taken for which (column).</p>
{draw_confusion(found["confusion"], names, size=max(400, 44 * len(names)) + 8 * max(map(len, names)))}
{by_kind}"""
