"""The page of an editor: figures of every edit beside its references, error against time, and a gallery."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from neural_graphs.explore._draw import png, svg, text
from neural_graphs.explore._page import table
from neural_graphs.explore._plots import _Axes
from neural_graphs.tasks._edit_report import FINER
from neural_graphs.tasks._refit import CAPS

MOST_BYTES = 3_000_000
"""Of the body; of more, fewer networks are shown."""


def edit_body(found: Mapping[str, Any], about: str) -> str:
    """The body of the page for what ``tasks.evaluate`` returned for an editor; ``about`` says which run and networks."""
    edits = found["per_edit"]
    start = f"""<h1>Editing networks: {escape(", ".join(edits))}</h1>
<p class="lead">{escape(about)}</p>
{_numbers(found)}
<p>{escape(" ".join(in_words(found)))}</p>
<h2>Figures</h2>
<p class="note">Against the edited images, means over networks. Mean squared error times 100, white being 1; PSNR in dB;
SSIM at most 1.{_about_refit(edits)}</p>
{table(["edit", "what is done", "mse x1e-2", "PSNR", "SSIM", "time per network"], rows_of(found), {2, 3, 4, 5})}
{_kinds(found)}
{_curves(found)}"""
    most = max(entry["kind"].count("best") for entry in found["gallery"].values())
    for share in range(most, 0, -1):
        body = start + "".join(_gallery(edit, entry, share) for edit, entry in found["gallery"].items())
        if len(body) <= MOST_BYTES:
            break
    return body


def seconds_in_words(seconds: float) -> str:
    """``3.2 ms``, ``1.25 s``."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
    """Edit, what is done, mean squared error times 100, PSNR, SSIM and time per network: a line for the editor and one for
    each reference, of every edit."""
    rows = []
    for edit, entry in found["per_edit"].items():
        rows.append([edit, "editor", *three(entry), seconds_in_words(found["seconds_per_network"])])
        rows.append(["", "no edit", *three(entry["no_edit"]), ""])
        if (refit := entry["refit"]) is None:
            continue
        title = f"refit, for as long: {_steps(refit['steps'])}"
        rows.append(["", title, *three(refit), seconds_in_words(refit["seconds"])])
        if (reach := entry["reach"]) is not None:
            mse = f"{100 * refit['editor_mse']:.3g}"
            title = f"refit, until as good: {_steps(reach['steps'])}"
            rows.append(["", title, mse, "", "", seconds_in_words(reach["seconds"])])
        else:
            rows.append(["", f"refit, until as good: more than {CAPS[-1]:,} steps", "", "", "", ""])
    return rows


def three(entry: Mapping[str, float]) -> list[str]:
    """Mean squared error times 100, PSNR and SSIM, as they are printed."""
    return [f"{100 * entry['mse']:.3g}", f"{entry['psnr']:.2f}", f"{entry['ssim']:.3f}"]


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count != 1)}"


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Sentences on what the figures mean."""
    share = found["mse"] / found["no_edit_mse"] if found["no_edit_mse"] else 1.0
    sentences = [
        f"Edited networks draw images with {share:.0%} of the error that the networks have as they are."
        if share < 1
        else "The edited networks are further from the edited images than the networks are as they are."
    ]
    refits = [entry for entry in found["per_edit"].values() if entry["refit"]]
    if refits:
        better = sum(entry["refit"]["editor_mse"] < entry["refit"]["mse"] for entry in refits)
        ratio = float(np.mean([entry["refit"]["mse"] / entry["refit"]["editor_mse"] for entry in refits]))
        verb = "is worse" if ratio > 1 else "is better"
        sentences.append(
            f"Fitting every network to the edited image itself, for as long as the editor takes, {verb}: "
            f"it has {ratio:.2g} times the error"
            + (f" (the editor wins {better} of {len(refits)} edits)." if len(refits) > 1 else ".")
        )
        reached = [entry["reach"]["seconds"] for entry in refits if entry["reach"]]
        if len(reached) == len(refits):
            times = float(np.mean(reached)) / found["seconds_per_network"]
            sentences.append(f"It needs {times:.2g} times as long to be as good; it must be given the edited image.")
    return sentences


def _about_refit(edits: Mapping[str, Any]) -> str:
    refits = [entry["refit"] for entry in edits.values() if entry["refit"]]
    if not refits:
        return ""
    return (
        " “Refit” is the network itself fitted to the edited image by Adam, from its own weights, many at once and on the"
        f" same threads ({refits[0]['n']:,} networks)."
    )


def _numbers(found: Mapping[str, Any]) -> str:
    numbers = [
        ("best", f"{100 * found['mse']:.3g}", "mean squared error x1e-2"),
        ("", f"{100 * found['no_edit_mse']:.3g}", "without an edit"),
        ("", f"{found['psnr']:.1f} dB", "PSNR"),
        ("", f"{found['ssim']:.3f}", "SSIM"),
        ("", seconds_in_words(found["seconds_per_network"]), "per network, in batches, without rendering"),
    ]
    cells = "".join(
        f"<div class='{kind}'><b>{big}</b><span>{escape(small)}</span></div>" for kind, big, small in numbers
    )
    return f'<div class="numbers">{cells}</div>'


def _kinds(found: Mapping[str, Any]) -> str:
    kinds = found["per_architecture"]
    if not 1 < len(kinds) <= 40:
        return ""
    rows = [[name, f"{entry['n']:,}", *three(entry), "yes" if entry["seen"] else "no"] for name, entry in kinds.items()]
    return "<h2>Architectures</h2>" + table(
        ["architecture", "networks", "mse x1e-2", "PSNR", "SSIM", "trained on"], rows, {1, 2, 3, 4}
    )


# -- error against time ----------------------------------------------------------------------------------------------------


def _curves(found: Mapping[str, Any]) -> str:
    pictures = []
    for edit, entry in found["gallery"].items():
        if entry["curve"]:
            error = found["per_edit"][edit]["refit"]["editor_mse"]
            picture = draw_curve(edit, np.array(entry["curve"]), found["seconds_per_network"], error)
            name = f"<b>{escape(edit)}</b>" if len(found["gallery"]) > 1 else ""
            pictures.append(f"<figure>{name}{picture}</figure>")
    if not pictures:
        return ""
    return (
        '<h2>Error against time</h2><p class="note">The line is fitting the network to the edited image, from where it is; '
        "the point is the editor, which does not see that image.</p>"
        f'<div class="columns">{"".join(pictures)}</div>'
    )


def draw_curve(edit: str, curve: np.ndarray, seconds: float, error: float, width: int = 440, height: int = 300) -> str:
    """Mean squared errors times 100 while fitting, ``curve`` ``[steps + 1, 2]`` of (seconds per network, error), and the
    editor's as a point at ``seconds``."""
    below = np.flatnonzero(curve[:, 1] <= error)
    reached = curve[below[0], 0] if len(below) else curve[-1, 0]
    right = 1.4 * max(seconds, reached)
    shown = curve[(curve[:, 0] <= right) & np.isfinite(curve[:, 1])]
    # A large learning rate may start by making things worse: the line then runs along the frame.
    top = 1.15 * max(curve[0, 1], error)
    axes = _Axes((0.0, 1000 * right), (0.0, 100 * top), width, height)
    points = [axes.at(1000 * t, 100 * e) for t, e in shown]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    x, y = axes.at(1000 * seconds, 100 * error)
    anchor, shift = ("end", -10) if x > width / 2 else ("start", 10)
    return svg(
        width,
        height,
        axes.frame("milliseconds per network", "mse x1e-2", lambda v: f"{v:g}", lambda v: f"{v:g}")
        + f'<path d="M{line}" fill="none" style="stroke:var(--neg);stroke-width:1.8"/>'
        + f'<circle class="editor" cx="{x:.1f}" cy="{y:.1f}" r="5" style="fill:var(--pos)"/>'
        + text(x + shift, y - 8, f"editor {100 * error:.3g}", anchor, "strong"),
        f"Error while fitting anew, and the editor's, of edit {edit}",
    )


# -- the gallery -----------------------------------------------------------------------------------------------------------


def _gallery(edit: str, entry: Mapping[str, Any], share: int) -> str:
    kinds = {
        "before": "before",
        "target": "target",
        "after": "edited",
        "refit": "refit",
        "finer": f"edited, {FINER} times finer",
    }
    shown = {key: title for key, title in kinds.items() if entry[key] is not None}
    cells = ["<span></span>", *(f"<span>{escape(title)}</span>" for title in shown.values())]
    seen: dict[str, int] = {}
    for place, (kind, number, error) in enumerate(zip(entry["kind"], entry["network"], entry["mse"], strict=True)):
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] > share:
            continue
        cells.append(f"<span><b>{kind}</b><br>network {number}<br>mse {100 * error:.3g}e-2</span>")
        for key, title in shown.items():
            label = escape(f"network {number}, {title}")
            cells.append(f'<img class="pixels" src="{_png(entry[key][place])}" alt="{label}">')
    longer = " “Refit” is after as much time as the editor took." if entry["refit"] is not None else ""
    return (
        f"<h2>Gallery: {escape(edit)}</h2>"
        f'<p class="note">Networks with the smallest, median and largest errors.{longer}</p>'
        f'<div class="scroll"><div class="gallery" style="--images:{len(shown)}">{"".join(cells)}</div></div>'
    )


def _png(image: np.ndarray) -> str:
    """Of ``[H, W, C]``; of other colours than grey and red, green, blue the first one as grey."""
    return png(image if image.shape[2] == 3 else image[..., 0])
