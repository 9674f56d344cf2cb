"""Drawings show every part of what they are given."""

from __future__ import annotations

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from neural_graphs.explore import _draw, render_graph_page
from neural_graphs.graph import NeuralGraph, Stack


def graph_of(*widths: int) -> NeuralGraph:
    torch.manual_seed(0)
    stack = Stack.mlp(widths, "tanh")
    return NeuralGraph.from_state_dict(stack.module().state_dict(), stack=stack)


def edges_of(drawing: str) -> int:
    return sum(path.count("M") for path in re.findall(r'<path d="([^"]*C[^"]*)"', drawing))


@pytest.mark.parametrize("widths", [(2, 5, 3, 1), (1, 1), (4, 6)])
def test_every_neuron_and_edge_is_drawn(widths: tuple[int, ...]) -> None:
    drawing = _draw.draw_graph(graph_of(*widths))
    ET.fromstring(drawing)
    assert drawing.count("<title>") == sum(widths)
    assert edges_of(drawing) == sum(a * b for a, b in itertools.pairwise(widths))
    for size in widths[1:-1]:
        assert f"{size} neurons" in drawing


def test_sign_and_size_of_weights_are_visible() -> None:
    graph = graph_of(2, 1)
    graph.edges[0].copy_(torch.tensor([[[[1.0], [-0.1]]]]))
    drawing = _draw.draw_graph(graph)
    opacity = {
        colour: float(value)
        for colour, value in re.findall(r"stroke:var\(--(pos|neg)\);stroke-opacity:([\d.]+)", drawing)
    }
    assert opacity["pos"] > 3 * opacity["neg"] > 0


def test_large_networks_stay_small_drawings() -> None:
    drawing = _draw.draw_graph(graph_of(3, 500, 400, 1))
    assert drawing.count("<title>") == 3 + 2 * _draw.MOST_NEURONS + 1
    assert len(drawing) < 400_000
    assert "500 neurons" in drawing  # the number there is, not the number drawn


def test_networks_of_zeros_and_convolutions_are_drawn() -> None:
    zero = graph_of(2, 3, 1).map(torch.zeros_like)
    assert edges_of(_draw.draw_graph(zero)) == 9
    state = {"0.weight": torch.randn(4, 3, 3, 3), "1.weight": torch.randn(2, 4)}
    convolution = NeuralGraph.from_state_dict(state, "relu")
    assert edges_of(_draw.draw_graph(convolution)) == 3 * 4 + 4 * 2


def test_residuals_and_groups_join_only_their_own_neurons(resnet: NeuralGraph, transformer: NeuralGraph) -> None:
    drawing = _draw.draw_graph(transformer)
    ET.fromstring(drawing)
    assert edges_of(drawing) == transformer.spec.num_edges
    block = next(block for block in resnet.spec.blocks if block.parameter == "mix.weight")
    weights, present = _draw._strongest(block, resnet.edges[resnet.spec.blocks.index(block)][0], 80)
    assert np.array_equal(present, np.eye(80, dtype=bool))
    kernel = resnet.edges[resnet.spec.blocks.index(block)][0, 5, 0]
    assert weights[5, 5] == kernel[kernel.abs().argmax()]


def test_deep_networks_fit() -> None:
    ET.fromstring(_draw.draw_graph(graph_of(2, *[4] * 30, 1)))


def test_graph_page_escapes_names() -> None:
    page = render_graph_page(graph_of(2, 3, 1), "<b>&.safetensors")
    assert "<title>&lt;b&gt;&amp;.safetensors</title>" in page
    assert "<b>&.safetensors" not in page


def test_png_holds_the_image() -> None:
    image = np.array([[0.0, 0.5], [1.0, 2.0]])
    found = Image.open(io.BytesIO(base64.b64decode(_draw.png(image).removeprefix("data:image/png;base64,"))))
    assert np.asarray(found).tolist() == [[0, 128], [255, 255]]


def test_confusion_shows_every_count() -> None:
    drawing = _draw.draw_confusion([[7, 2], [0, 11]], ["cat", "dog"])
    root = ET.fromstring(drawing)
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert [word for word in words if word and word.isdigit()] == ["7", "2", "11"]
    assert words.count("cat") == words.count("dog") == 2
    assert "rotate(-45)" not in drawing


def test_long_names_of_classes_are_tilted() -> None:
    """Upright they would run into each other; the row's names have room on the left."""
    names = ["T-shirt/top", *"abcdefghi"]
    drawing = _draw.draw_confusion(np.eye(10, dtype=int).tolist(), names)
    assert drawing.count("rotate(-45)") == 10
    (x,) = (float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end"[^>]*>T-shirt/top', drawing))
    assert x > 8 * len("T-shirt/top")


def test_curves_reach_their_ends() -> None:
    drawing = _draw.draw_curves(
        {"a": [(1, 0.0), (2, 1.0)], "b": [(1, 0.5)]}, {"a": "pos", "b": "neg"}, "epoch", ("chance", 0.1)
    )
    path = re.search(r'd="(M[\d. L]+)" fill="none" stroke-linejoin', drawing)
    assert path
    assert path[1] == "M256.0 240.0L468.0 14.0"
    labels = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start" class="strong"', drawing)]
    assert len(labels) == 3
    assert min(np.diff(sorted(labels))) > 10


def test_bars_are_as_long_as_their_shares() -> None:
    drawing = _draw.draw_bars([0.5, 0.25, 0.25], ["a", "b", "c"], right=1)
    lengths = [float(width) for width in re.findall(r'width="([\d.]+)" height', drawing)]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.01)
    assert re.findall(r"fill:var\(--(\w+)\)", drawing) == ["bad", "accent", "dim"]
