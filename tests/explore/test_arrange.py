"""The layered drawing: everything has its place, nothing covers anything, edges end at their boxes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from neural_graphs.explore._arrange import Arrangement, Box, arrange
from neural_graphs.graph import Block, GraphSpec, NeuralGraph, NodeSet, Stack
from neural_graphs.graph._spec import PermutationSpec


def structure(count: int, edges: list[tuple[int, int]], inputs: int = 1, depths: list[int] | None = None) -> GraphSpec:
    """Node sets of size 2 joined by parameter-free blocks."""
    sets = tuple(
        NodeSet(f"n{i}", 2, "input" if i < inputs else "hidden", depths[i] if depths else i) for i in range(count)
    )
    blocks = tuple(Block(a, b, None, features=0, kind="attention", groups=2) for a, b in edges)
    return GraphSpec(sets, blocks, PermutationSpec(()))


def apart(a: Box, b: Box) -> bool:
    return abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2


def check(spec: GraphSpec, drawing: Arrangement) -> None:
    assert len(drawing.boxes) == len(spec.node_sets) and len(drawing.paths) == len(spec.blocks)
    for a, b in itertools.combinations(drawing.boxes, 2):
        assert apart(a, b), (a, b)
    for box in drawing.boxes:
        assert box.x - box.width / 2 >= 0 and box.x + box.width / 2 <= drawing.width
        assert box.y - box.height / 2 >= 0 and box.y + box.height / 2 <= drawing.height
    for block, path in zip(spec.blocks, drawing.paths, strict=True):
        source, target = drawing.boxes[block.source], drawing.boxes[block.target]
        assert len(path) % 3 == 1
        assert path[0][1] == pytest.approx(source.y + source.height / 2)
        assert path[-1][1] == pytest.approx(target.y - target.height / 2)
        assert abs(path[0][0] - source.x) < source.width / 2
        assert abs(path[-1][0] - target.x) < target.width / 2 + 2
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in path)


@pytest.mark.parametrize("name", ["resnet", "transformer", "deep"])
@pytest.mark.parametrize("folded", [True, False])
def test_everything_has_its_place(name: str, folded: bool, request: pytest.FixtureRequest) -> None:
    spec = request.getfixturevalue(name).spec
    drawing = arrange(spec, folded)
    check(spec, drawing)
    assert drawing == arrange(spec, folded)


def test_rows_go_down_along_every_edge(transformer: NeuralGraph) -> None:
    drawing = arrange(transformer.spec, folded=False)
    for block in transformer.spec.blocks:
        assert drawing.boxes[block.source].y < drawing.boxes[block.target].y
    places = {nodes.name: box for nodes, box in zip(transformer.spec.node_sets, drawing.boxes, strict=True)}
    assert places["h.0.query"].y == places["h.0.key"].y == places["h.0.value"].y


def test_a_stack_is_one_straight_line() -> None:
    stack = Stack.mlp((2, 5, 5, 1), "tanh")
    graph = NeuralGraph.from_state_dict(stack.module().state_dict(), stack=stack)
    drawing = arrange(graph.spec)
    assert len({box.x for box in drawing.boxes}) == 1
    steps = {b.y - a.y for a, b in itertools.pairwise(drawing.boxes)}
    assert len(steps) == 1
    assert all(x == drawing.boxes[0].x for path in drawing.paths for x, _ in path)


def test_a_residual_runs_straight(resnet: NeuralGraph) -> None:
    drawing = arrange(resnet.spec, folded=False)
    ways = [path for block, path in zip(resnet.spec.blocks, drawing.paths, strict=True) if block.kind == "identity"]
    assert len(ways) == 2
    for path in ways:
        assert max(x for x, _ in path) - min(x for x, _ in path) < 3


def test_paths_keep_clear_of_boxes_that_they_pass(deep: NeuralGraph) -> None:
    drawing = arrange(deep.spec)
    for block, path in zip(deep.spec.blocks, drawing.paths, strict=True):
        for number, box in enumerate(drawing.boxes):
            if number not in (block.source, block.target):
                inside = [
                    (x, y) for x, y in path if abs(x - box.x) < box.width / 2 and abs(y - box.y) < box.height / 2 - 0.1
                ]
                assert not inside


def test_tall_drawings_are_folded(deep: NeuralGraph) -> None:
    folded, tall = arrange(deep.spec), arrange(deep.spec, folded=False)
    assert tall.height > 10 * tall.width
    assert 0.8 < folded.width / folded.height < 2.5
    assert folded.column < folded.width / 3


def test_crossings_that_can_be_avoided_are_avoided() -> None:
    drawing = arrange(structure(6, [(0, 5), (1, 4), (2, 3)], inputs=3, depths=[0, 0, 0, 1, 1, 1]))
    x = [box.x for box in drawing.boxes]
    order = sorted(range(3), key=lambda i: x[i])
    assert sorted(range(3), key=lambda i: x[5 - i]) == order


def test_cycles_and_loops_have_an_edge_on_the_side() -> None:
    spec = structure(3, [(0, 1), (1, 1), (1, 2), (2, 1)])
    drawing = arrange(spec)
    box = drawing.boxes[1]
    assert drawing.boxes[0].y < box.y < drawing.boxes[2].y
    for k in (1, 3):
        assert drawing.paths[k][-1] == pytest.approx((box.x + box.width / 2, box.y - box.height / 5))
        assert max(x for x, _ in drawing.paths[k]) <= drawing.width


def test_node_sets_that_nothing_leads_to_stay_at_their_depth() -> None:
    drawing = arrange(structure(4, [(0, 1), (2, 3)]))
    ys = [box.y for box in drawing.boxes]
    assert ys == sorted(ys) and len(set(ys)) == 4


def test_an_input_stands_above_its_first_reader() -> None:
    drawing = arrange(structure(5, [(0, 2), (2, 3), (3, 4), (1, 4)], inputs=2))
    assert drawing.boxes[1].y == drawing.boxes[3].y


def test_long_names_keep_their_ends() -> None:
    spec = structure(2, [(0, 1)])
    name = "encoder.layers.11.self_attention.output.dense"
    spec = replace(spec, node_sets=(spec.node_sets[0], replace(spec.node_sets[1], name=name)))
    box = arrange(spec).boxes[1]
    assert box.title.startswith("…") and name.endswith(box.title[1:]) and len(box.title) <= 20
    assert box.width > 100
