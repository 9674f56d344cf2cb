"""Drawings for papers: what is in them, and that the same graph gives the same file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from neural_graphs.errors import RunError, UserError
from neural_graphs.explore import save_drawing
from neural_graphs.explore._arrange import arrange, label
from neural_graphs.graph import NeuralGraph, Stack


@pytest.mark.parametrize("name", ["resnet", "transformer", "deep"])
def test_svg_holds_every_name_as_text(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    graph = request.getfixturevalue(name)
    save_drawing(graph, tmp_path / "g.svg")
    root = ET.parse(tmp_path / "g.svg").getroot()
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    for nodes in graph.spec.node_sets:
        assert set(label(nodes)) <= words
    if name != "deep":
        assert {block.kind for block in graph.spec.blocks} <= words
    text = (tmp_path / "g.svg").read_text()
    assert "<dc:date>" not in text
    assert "<image" not in text


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_the_same_graph_gives_the_same_bytes(suffix: str, transformer: NeuralGraph, tmp_path: Path) -> None:
    for number in range(2):
        save_drawing(transformer, tmp_path / f"{number}{suffix}")
    first, second = ((tmp_path / f"{number}{suffix}").read_bytes() for number in range(2))
    assert first == second


def test_png_is_in_print_quality_and_not_empty(resnet: NeuralGraph, tmp_path: Path) -> None:
    save_drawing(resnet, tmp_path / "g.PNG")
    image = Image.open(tmp_path / "g.PNG").convert("RGB")
    drawing = arrange(resnet.spec)
    assert image.info["dpi"] == pytest.approx((200, 200), abs=1)
    assert image.width == pytest.approx(drawing.width * 0.75 / 72 * 200, abs=2)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(0xD0, 0x67, 0x2B), (255, 255, 255)} <= colours  # convolutions on white paper


def test_one_kind_of_block_needs_no_legend(tmp_path: Path) -> None:
    graph = NeuralGraph.from_state_dict(Stack.mlp((2, 3, 1), "relu").module().state_dict(), "relu")
    save_drawing(graph, tmp_path / "g.svg")
    assert ">linear<" not in (tmp_path / "g.svg").read_text()


@pytest.mark.parametrize("name", ["g.jpg", "g", ".svg"])
def test_other_kinds_of_file_are_refused(name: str, resnet: NeuralGraph, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.svg, \.pdf, \.png"):
        save_drawing(resnet, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(resnet: NeuralGraph, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        save_drawing(resnet, tmp_path / "file" / "g.svg")
