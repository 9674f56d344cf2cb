"""Draw docs/figure.svg, the README's figure, from a real network: python docs/make_figure.py [QUICKSTART [FILE]]

QUICKSTART is the folder of a finished `neural-graphs quickstart` (default: runs/quickstart). Its held-out example network
is drawn as what it is on disk, as a neural graph, and as what the trained graph network says about it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from neural_graphs._io import atomic_write, read_json
from neural_graphs.explore import load_network
from neural_graphs.explore._draw import draw_bars, draw_graph, png, text
from neural_graphs.graph import NeuralGraph
from neural_graphs.tasks import predict
from neural_graphs.zoo._inr import pixel_grid

WIDTH, HEIGHT, TOP = 1120, 400, 62
COLOURS = {
    "paper": "#ffffff",
    "ink": "#1d2330",
    "dim": "#6d7382",
    "line": "#e3e3de",
    "pos": "#d9622b",
    "neg": "#2f6fb5",
}
COLOURS |= {"accent": "#12805c", "bad": "#c43d4b"}


def main(quickstart: Path, out: Path) -> None:
    file = quickstart / "example.safetensors"
    graph = load_network(file)
    (prediction,) = predict(quickstart / "ng-gnn", [file])
    truth = read_json(quickstart / "quickstart.json")["outcome"]["example"]["truth"]
    parts = [
        _title(30, "a network", "a file of weights"),
        _matrices(graph),
        _arrow(182),
        _title(236, "its neural graph", f"neurons and weights, symmetries {graph.symmetries}"),
        _place(draw_graph(graph, 560, 340), 216, TOP - 8, 560, 340),
        _arrow(790),
        _title(846, "what it is", "an answer of NG-GNN"),
        _place(draw_bars(prediction["probabilities"], list("0123456789"), truth, 250), 836, TOP + 4, 250, 238),
        _picture(graph, 996, HEIGHT - 108),
    ]
    variables = ";".join(f"--{name}:{value}" for name, value in COLOURS.items())
    style = (
        f"svg{{{variables};font:13px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}}text{{fill:var(--ink)}}"
        ".dim{fill:var(--dim)}.strong{font-weight:600}.head{font-weight:600;font-size:17px}.pixels{image-rendering:pixelated}"
    )
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="A network, its neural graph, and a prediction"><style>{style}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" style="fill:var(--paper)"/>{"".join(parts)}</svg>\n'
    )
    with atomic_write(out) as temporary:
        temporary.write_text(drawing, encoding="utf-8")
    print(f"{out}: {len(drawing) / 1000:.0f} kB, {file} is read as {prediction['label']} and draws a {truth}")


def _title(x: float, title: str, subtitle: str) -> str:
    return text(x, 30, title, "start", "head") + text(x, 50, subtitle, "start", "dim")


def _arrow(x: float) -> str:
    y = HEIGHT / 2 + 6
    return (
        f'<path d="M{x} {y}h26m-9 -8l9 8l-9 8" fill="none" stroke-linecap="round" stroke-linejoin="round" '
        'style="stroke:var(--dim);stroke-width:2.2"/>'
    )


def _place(drawing: str, x: float, y: float, width: float, height: float) -> str:
    return drawing.replace("<svg ", f'<svg x="{x}" y="{y}" width="{width}" height="{height}" ', 1)


def _matrices(graph: NeuralGraph) -> str:
    """The state dict as it lies on disk: every tensor a block of coloured cells, 6 units each."""
    parts, y = [], float(TOP + 6)
    for name, value in graph.to_state_dict().items():
        matrix = value.numpy() if value.dim() == 2 else value.numpy()[None]
        matrix = matrix.T if matrix.shape[0] > 2 * matrix.shape[1] else matrix
        rows, columns = (6.0 * n for n in matrix.shape)
        parts.append(text(30, y + 9, name, "start", "dim"))
        parts.append(_image(_diverging(matrix), 30, y + 16, columns, rows))
        y += rows + 31
    return "".join(parts)


def _diverging(matrix: np.ndarray) -> np.ndarray:
    """White at 0, the colours of the edges at the largest value."""
    strength = np.clip(np.abs(matrix) / np.quantile(np.abs(matrix), 0.98), 0, 1)[..., None]
    positive, negative = (np.array([int(COLOURS[c][i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in ("pos", "neg"))
    return 1 - strength * (1 - np.where(matrix[..., None] > 0, positive, negative))


def _image(image: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<image href="{png(image)}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="pixels" '
        f'preserveAspectRatio="none"/><rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" '
        'style="stroke:var(--line)"/>'
    )


def _picture(graph: NeuralGraph, x: float, y: float) -> str:
    picture = graph.run(pixel_grid(64, 64))[0, :, 0].unflatten(0, (64, 64)).numpy()
    caption = text(x - 14, y + 44, "and what", "end", "dim") + text(x - 14, y + 62, "it draws", "end", "dim")
    return _image(picture, x, y, 88, 88) + caption


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        Path(arguments[0] if arguments else "runs/quickstart"),
        Path(arguments[1]) if len(arguments) > 1 else Path(__file__).with_name("figure.svg"),
    )
