"""Graphs made by hand, as a tracer would make them: a residual network, a transformer, a deep plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import Block, GraphSpec, NeuralGraph, NodeSet
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._axis import Axis
from neural_graphs.graph._layout import Layout
from neural_graphs.graph._spec import PermutationSpec
from neural_graphs.graph._structure import BlockKind, NodeFeature, Role

NORM = ("bias", "scale", "running_mean", "running_var")


class Builder:
    """Adds node sets and blocks, makes random weights for them."""

    def __init__(self) -> None:
        self.sets: list[NodeSet] = []
        self.blocks: list[Block] = []
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.state: dict[str, Tensor] = {}
        self.over: list[tuple[str, tuple[str, ...]]] = []
        self.random = torch.Generator().manual_seed(0)

    def _parameter(self, name: str, *axes: Axis) -> str:
        self.axes[name] = axes
        self.state[name] = torch.randn([axis.size for axis in axes], generator=self.random)
        return name

    def nodes(
        self,
        name: str,
        size: int,
        symmetry: str | Axis | None = None,
        role: Role = "hidden",
        kind: str = "none",
        features: tuple[str, ...] = (),
    ) -> int:
        axis = symmetry if isinstance(symmetry, Axis) else Axis.of(symmetry, size)
        found = tuple(NodeFeature(self._parameter(f"{name}.{feature}", axis), feature) for feature in features)
        depth = 0 if role == "input" else len(self.sets)
        self.sets.append(NodeSet(name, size, role, depth, Activation.parse(kind), found, axis))
        return len(self.sets) - 1

    def weight(
        self, source: int, target: int, kind: BlockKind = "linear", kernel: tuple[int, ...] = (), name: str = ""
    ) -> int:
        ends = self.sets[source], self.sets[target]
        name = name or f"{ends[1].name}.weight"
        self._parameter(name, ends[1].axis, ends[0].axis, *map(Axis.fixed, kernel))
        shape = tuple(self.state[name].shape)
        self.blocks.append(Block(source, target, name, shape, kernel, math.prod(kernel), kind))
        return len(self.blocks) - 1

    def depthwise(self, source: int, target: int, kernel: tuple[int, ...], name: str) -> None:
        nodes = self.sets[target]
        self._parameter(name, nodes.axis, *map(Axis.fixed, (1, *kernel)))
        shape = (nodes.size, 1, *kernel)
        self.blocks.append(Block(source, target, name, shape, kernel, math.prod(kernel), "conv", nodes.size))

    def tied(self, source: int, target: int, owner: int) -> None:
        """The transposed weight of another block."""
        first = self.blocks[owner]
        layout = Layout((), first.shape, (1,), (0,))
        self.blocks.append(Block(source, target, first.parameter, first.shape, layout=layout, copy_of=owner))

    def plain(self, source: int, target: int, kind: BlockKind = "identity") -> None:
        size = self.sets[target].size
        self.blocks.append(Block(source, target, None, features=0, kind=kind, groups=size))

    def graph(self) -> NeuralGraph:
        kinds = {nodes.axis.plain: nodes.activation for nodes in self.sets if nodes.axis.plain}
        symmetries = PermutationSpec(tuple(self.axes.items()), tuple(kinds.items()), tuple(self.over))
        spec = GraphSpec(tuple(self.sets), tuple(self.blocks), symmetries)
        return NeuralGraph.pack(spec, {name: value.unsqueeze(0) for name, value in self.state.items()})


@pytest.fixture
def resnet() -> NeuralGraph:
    """Three residual blocks, the second wider than the first, with batch norm's node features."""
    b = Builder()
    image = b.nodes("image", 3, role="input")
    x = b.nodes("conv1", 16, "s0", kind="relu", features=NORM)
    b.weight(image, x, "conv", (3, 3))
    for stage, width in enumerate((16, 80, 80)):
        name, stream = f"layer{stage}", "s0" if width == 16 else "s1"
        inner = b.nodes(f"{name}.conv1", width, f"{name}.inner", kind="relu", features=NORM)
        b.weight(x, inner, "conv", (3, 3))
        out = b.nodes(f"{name}.conv2", width, stream, kind="relu", features=NORM)
        b.weight(inner, out, "conv", (3, 3))
        if b.sets[x].size == width:
            b.plain(x, out)
        else:
            b.weight(x, out, "conv", (1, 1), f"{name}.shortcut.weight")
        x = out
    depthwise = b.nodes("mix", 80, "s1")
    b.depthwise(x, depthwise, (3, 3), "mix.weight")
    head = b.nodes("fc", 10, role="output", features=("bias",))
    b.weight(depthwise, head)
    return b.graph()


@pytest.fixture
def transformer() -> NeuralGraph:
    """Two layers of two heads, the output tied to the embedding."""
    b = Builder()
    width, heads, words = 8, 2, 30
    tokens, places = b.nodes("tokens", words, role="input"), b.nodes("places", 6, role="input")
    x = b.nodes("embedding", width, "stream")
    embedding = b.weight(tokens, x, "embedding")
    b.weight(places, x, "position", name="position.weight")
    for layer in range(2):
        name = f"h.{layer}"
        head = (f"{name}.heads", heads)
        qk, v = (Axis(((head, (f"{name}.{part}", width // heads)),)) for part in ("qk", "v"))
        b.over += [(f"{name}.{part}", (head[0],)) for part in ("qk", "v")]
        mixed = []
        for kind, axis in (("query", qk), ("key", qk), ("value", v)):
            mixed.append(b.nodes(f"{name}.{kind}", width, axis, features=("bias",)))
            b.weight(x, mixed[-1], kind)
        attention = b.nodes(f"{name}.attention", width, v)
        b.plain(mixed[0], attention, "attention")
        b.plain(mixed[1], attention, "attention")
        b.plain(mixed[2], attention)
        out = b.nodes(f"{name}.out", width, "stream", features=("bias", "scale"))
        b.weight(attention, out)
        b.plain(x, out)
        inner = b.nodes(f"{name}.mlp", 4 * width, f"{name}.mlp", kind="gelu", features=("bias",))
        b.weight(out, inner)
        x = b.nodes(f"{name}.stream", width, "stream", features=("bias",))
        b.weight(inner, x)
        b.plain(out, x)
    b.tied(x, b.nodes("words", words, role="output"), embedding)
    return b.graph()


@pytest.fixture
def deep() -> NeuralGraph:
    """150 node sets with a long way past every fourth."""
    b = Builder()
    seen = [b.nodes("in", 3, role="input")]
    for i in range(148):
        seen.append(b.nodes(f"body.{i}", 6, f"c{i}", kind="relu", features=("bias",)))
        b.weight(seen[-2], seen[-1])
        if i % 4 == 3:
            b.weight(seen[-4], seen[-1], name=f"skip.{i}")
    b.weight(seen[-1], b.nodes("out", 2, role="output"))
    return b.graph()
