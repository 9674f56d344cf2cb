"""The quickstart's report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_graphs.explore._draw import draw_bars, draw_confusion, draw_curves, draw_graph, png
from neural_graphs.explore._page import page, table

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph


@dataclass(frozen=True)
class Method:
    """One way to classify networks. `history` has a dict per epoch with `epoch` and `val_accuracy` (0 to 1)."""

    name: str
    reads: str
    accuracy: float
    parameters: int
    epochs: int
    seconds: float
    history: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """One network on the contact sheet: what it draws at any resolution and the image it was fitted to (floats `[H, W]`,
    0 to 1), the truth and the prediction."""

    rendered: np.ndarray
    image: np.ndarray
    truth: int
    predicted: int


@dataclass(frozen=True)
class Single:
    """The network that `predict` was run on."""

    file: str
    graph: NeuralGraph
    rendered: np.ndarray
    truth: int
    probabilities: Sequence[float]


@dataclass(frozen=True)
class Report:
    """What the page shows. The first of `methods` is the library's; `confusion[t][p]` is its matrix on the test networks."""

    architecture: str
    parameters: int
    psnr_db: float
    images: dict[str, int]
    views: int
    class_names: Sequence[str]
    methods: Sequence[Method]
    confusion: Sequence[Sequence[int]]
    examples: Sequence[Example]
    single: Single
    phases: dict[str, float]
    threads: int
    created: str
    commands: Sequence[tuple[str, str]] = field(default_factory=tuple)

    @property
    def chance(self) -> float:
        return 1 / len(self.class_names)

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def render_report(report: Report) -> str:
    """The whole page as HTML; everything it shows is inside it."""
    parts = [
        _head(report),
        _sheet(report),
        _graph(report),
        _learning(report),
        _figures(report),
        _single(report),
        _commands(report),
    ]
    return page("neural-graphs quickstart", "\n".join(parts), f"quickstart of {report.created}")


def clock(seconds: float) -> str:
    """`2 min 05 s`"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _head(report: Report) -> str:
    best, *others = report.methods
    numbers = [("best", f"{best.accuracy:.1%}", f"{best.name}, {best.reads}")]
    numbers += [("", f"{other.accuracy:.1%}", f"{other.name}, {other.reads}") for other in others]
    numbers += [
        ("", f"{report.chance:.0%}", "chance"),
        ("", clock(report.seconds), f"everything, on {_threads(report)}"),
    ]
    cells = "".join(
        f"<div class='{kind}'><b>{big}</b><span>{escape(small)}</span></div>" for kind, big, small in numbers
    )
    total = sum(report.images.values())
    return f"""<h1>Reading networks instead of images</h1>
<p class="lead">{total:,} images of digits were turned into {total * report.views:,} small neural networks,
{_per_image(report.views)}. A graph network then learned to tell which digit a network draws, from its weights
and its answers at a few learned points. It is tested on networks of {report.images["test"]:,} images it never saw.</p>
<div class="numbers">{cells}</div>
<p class="note">Accuracy on {report.images["test"] * report.views:,} held-out networks. All methods saw the same
{report.images["train"] * report.views:,} training networks for the same {best.epochs} epochs.</p>"""


def _per_image(views: int) -> str:
    return "one per image" if views == 1 else f"{views} per image from different random starts"


def _threads(report: Report) -> str:
    return f"{report.threads} thread{'s' * (report.threads != 1)}"


def _sheet(report: Report) -> str:
    cells = []
    for example in report.examples:
        truth, said = report.class_names[example.truth], report.class_names[example.predicted]
        wrong = example.truth != example.predicted
        verdict = f"<b>{escape(said)}</b>" + (f", is {escape(truth)}" if wrong else "")
        cells.append(
            f"<figure{' class=wrong' if wrong else ''}>{_picture(example.rendered, f'network that draws {truth}')}"
            f"{_picture(example.image, f'image of {truth}')}<figcaption>{verdict}</figcaption></figure>"
        )
    height, width = report.examples[0].image.shape
    return f"""<h2>Networks that draw</h2>
<p>Each network maps a point of the plane to a brightness ({escape(report.architecture)}, {report.parameters:,} parameters).
On top is what a network draws when it is asked at many points; below it the image of {width} × {height} pixels that it was
fitted to (PSNR {report.psnr_db:.0f} dB). The number is what the graph network says after reading the network. It is
never shown a picture.</p>
<div class="sheet">{"".join(cells)}</div>
<p class="note" style="margin-top:12px">Held-out networks, {len(report.examples) // len(report.class_names)} of each digit,
not chosen by result. Mistakes are red.</p>"""


def _picture(image: np.ndarray, label: str) -> str:
    smooth = "" if len(image) > 32 else " class=pixels"
    return f'<img src="{png(image)}" alt="{escape(label)}"{smooth}>'


def _graph(report: Report) -> str:
    graph = report.single.graph
    return f"""<h2>One network as a graph</h2>
<p>Neurons are nodes, weights are edges, biases sit on the nodes. Reordering the neurons of a hidden layer changes every
number of the weight matrices and nothing about the function: here {escape(str(graph.symmetries))} has
10<sup>{graph.symmetries.log10_order:.0f}</sup> elements. A model that reads the graph cannot tell these copies apart;
one that reads the list of weights meets each as something new.</p>
<figure>{draw_graph(graph)}<figcaption>{_key("pos", "positive")}{_key("neg", "negative")}The network of
{escape(report.single.file)}, which draws a {escape(report.class_names[report.single.truth])}. Stronger weights are
darker; each layer has its own scale.</figcaption></figure>"""


def _key(colour: str, meaning: str) -> str:
    return f'<i class="key" style="background:var(--{colour})"></i><span>{meaning}</span>'


def _learning(report: Report) -> str:
    series = {m.name: [(row["epoch"], row["val_accuracy"]) for row in m.history] for m in report.methods}
    colours = dict(zip(series, ("accent", "neg", "pos"), strict=False))
    curves = draw_curves(series, colours, "epoch", ("chance", report.chance))
    return f"""<div class="columns"><div><h2>Learning</h2>
<p class="note">Accuracy on validation networks, whose images are in neither of the other splits.</p>{curves}</div>
<div><h2>Confusion</h2><p class="note">{escape(report.methods[0].name)} on the test networks.</p>
{draw_confusion(report.confusion, report.class_names)}</div></div>"""


def _figures(report: Report) -> str:
    methods = [
        [m.name, m.reads, f"{m.accuracy:.1%}", f"{m.parameters:,}", str(m.epochs), f"{m.seconds:.0f}"]
        for m in report.methods
    ]
    methods.append(["chance", "", f"{report.chance:.1%}", "", "", ""])
    phases = [[name, f"{seconds:.1f}"] for name, seconds in report.phases.items()]
    phases.append(["total", f"{report.seconds:.1f}"])
    results = table(
        ["method", "reads", "test accuracy", "parameters", "epochs", "seconds"], methods, {2, 3, 4, 5}, best=0
    )
    times = table(["phase", "seconds"], phases, {1}, best=len(phases) - 1)
    return f"<h2>Figures</h2>{results}<h2>Where the time went</h2>{times}"


def _single(report: Report) -> str:
    single = report.single
    best = int(np.argmax(single.probabilities))
    said, truth = report.class_names[best], report.class_names[single.truth]
    return f"""<h2>One file, one answer</h2><div class="columns" style="margin-top:10px"><div>
<p><code>{escape(single.file)}</code> is a held-out network. Read by the graph network it is a
<b>{escape(said)}</b> ({single.probabilities[best]:.1%}); it draws a {escape(truth)}.</p>
<img src="{png(single.rendered)}" alt="what the network draws" width="192" style="border-radius:8px"></div>
<div>{draw_bars(single.probabilities, report.class_names, single.truth)}</div></div>"""


def _commands(report: Report) -> str:
    lines = "\n".join(f"{escape(command)}\n    {escape(what)}" for command, what in report.commands)
    return f"<h2>Go on</h2><pre>{lines}</pre>" if report.commands else ""
