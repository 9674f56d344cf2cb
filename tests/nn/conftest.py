from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.graph import NeuralGraph, Stack, trace
from neural_graphs.nn import Encoder, GraphHead, create_encoder, list_encoders
from neural_graphs.nn import _registry as registry
from neural_graphs.nn._slots import extent_of, single_inputs, slots_of
from neural_graphs.testing import random_graph

STACK = Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5)


def variants() -> list[str]:
    """Every encoder, and with probes where they are an option: "ng-gnn", "ng-gnn probes", ..."""
    found = []
    for name in list_encoders():
        found.append(name)
        probes = inspect.signature(registry._ENCODERS[name]).parameters.get("probes")
        if probes is not None and probes.default == 0:
            found.append(f"{name} probes")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``encoder_variant`` is each of these, ``encoder_with_probes`` each that has no larger one with probes;
    ``architecture`` is each name of a traced one."""
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(TRACED))
    found = variants()
    if "encoder_variant" in metafunc.fixturenames:
        metafunc.parametrize("encoder_variant", found)
    if "encoder_with_probes" in metafunc.fixturenames:
        metafunc.parametrize("encoder_with_probes", [name for name in found if f"{name} probes" not in found])


@pytest.fixture
def stack() -> Stack:
    return STACK


@pytest.fixture
def build() -> Callable[..., Encoder]:
    """A small encoder by name, its statistics measured, in evaluation mode; arguments that it does not take are left out."""

    def make(name: str, dtype: torch.dtype = torch.float64, **arguments: Any) -> Encoder:
        torch.manual_seed(0)
        name, _, probes = name.partition(" ")
        if probes:
            arguments = {"probes": 8, **arguments}
        wanted = {"width": 12, "layers": 3, "parameters": STACK.num_parameters, **arguments}
        known = inspect.signature(registry._ENCODERS[name]).parameters
        encoder = create_encoder(name, **{key: value for key, value in wanted.items() if key in known})
        encoder.fit_normalization([random_graph(STACK, 4, dtype, seed=9)])
        return encoder.to(dtype).eval()

    return make


class Model(torch.nn.Module):
    """Encoder and graph head."""

    def __init__(self, encoder: Encoder, targets: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = GraphHead(encoder.width, outputs, targets)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.head(self.encoder(batch, reads=self.head.reads))


@pytest.fixture
def with_head() -> Callable[..., torch.nn.Module]:
    def make(encoder: Encoder, **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(1)
        dtype = next(encoder.parameters()).dtype
        return Model(encoder, **arguments).to(dtype).train(encoder.training)

    return make


@pytest.fixture(autouse=True)
def same_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- small networks that are no plain stacks ------------------------------------------------------------------------------


class WildPark(nn.Module):
    """Kernels of three sizes, an activation per layer; what the first layer gives is added to a part of the third's."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 5, 5, padding=2)
        self.c = nn.Conv2d(5, 6, 7, padding=3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        c = self.c(self.b(a).tanh())
        c = F.gelu(torch.cat([c[:, :4] + a, c[:, 4:]], 1))
        return self.head(c.mean((2, 3)))


class Normed(nn.Module):
    """BatchNorm, GroupNorm, strides."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, stride=2)
        self.an = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 6, 3, stride=2)
        self.bn = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.b(self.an(self.a(x)).relu())).relu().mean((2, 3)))


class Flattening(nn.Module):
    """A map of 2 x 3 places flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3)
        self.c, self.d = nn.Linear(5 * 6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.d(self.c(x.flatten(1)).relu())


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, packed: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        maps = [nn.Linear(width, 3 * width)] if packed else [nn.Linear(width, width) for _ in range(3)]
        self.maps = nn.ModuleList(maps)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 6), nn.Linear(6, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        z = self.first(x)
        packed = torch.cat([m(z) for m in self.maps], -1)
        q, k, v = packed.view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(batch, count, width)
        x = x + self.out(a)
        return x + self.down(F.gelu(self.up(self.second(x))))


class ViT(nn.Module):
    def __init__(self, width: int = 4, heads: int = 2, layers: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, False, True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Text(nn.Module):
    """A vocabulary of 23 tokens, more than encoders have rows for inputs; ``tied`` reads its output off the same table."""

    def __init__(self, width: int = 4, causal: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(23, width), nn.Embedding(7, width)
        self.block, self.norm = TransformerBlock(width, 2, causal, False), nn.LayerNorm(width)
        self.head = nn.Linear(width, 23 if tied else 2, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.tokens(x) + self.places(torch.arange(x.shape[1])))
        return self.head(self.norm(x)[:, -1])


TRACED: dict[str, Any] = {
    "wild-park": (WildPark, torch.zeros(1, 3, 8, 8)),
    "normed": (Normed, torch.zeros(1, 1, 9, 9)),
    "flattening": (Flattening, torch.zeros(1, 1, 6, 7)),
    "vit": (ViT, torch.zeros(1, 1, 8, 8)),
    "causal text": (Text, torch.zeros(1, 7, dtype=torch.int64)),
    "text": (lambda: Text(causal=False), torch.zeros(1, 7, dtype=torch.int64)),
    "tied text": (lambda: Text(tied=True), torch.zeros(1, 7, dtype=torch.int64)),
}


def traced_networks(name: str, batch: int = 3) -> NeuralGraph:
    """Networks of one architecture, every tensor of theirs drawn at random (variances positive), float64."""
    make, example = TRACED[name]
    torch.manual_seed(0)
    graph = trace(make().eval(), example).to(torch.float64)
    state = {}
    for key, value in graph.to_state_dict(batched=True).items():
        drawn = torch.randn(batch, *value.shape[1:], dtype=torch.float64)
        state[key] = drawn.square() + 0.1 if "running_var" in key else drawn
        if not value.is_floating_point():
            state[key] = value.expand(batch, *value.shape[1:])
    aliases = graph.spec.canonical
    return graph.like({key: state[aliases.get(key, key)] for key in state}, batched=True)


def needed_arguments(graphs: Sequence[NeuralGraph]) -> dict[str, Any]:
    """Arguments with which an encoder reads all of these, and tells all apart that it can."""
    specs = [graph.spec for graph in graphs]
    extents = [extent_of(block.features, block.kernel) for spec in specs for block in spec.blocks if block.features]
    hidden = [nodes for spec in specs for nodes in spec.node_sets if nodes.role == "hidden"]
    return {
        "node_features": list(dict.fromkeys(slot for s in specs for nodes in s.node_sets for slot in slots_of(nodes))),
        "block_kinds": sorted({block.kind for spec in specs for block in spec.blocks}),
        "activations": sorted({nodes.activation.kind for nodes in hidden}),
        "kernel": [max(column) for column in zip(*extents, strict=True)],
        "max_io": max(max(single_inputs(spec), spec.num_outputs) for spec in specs),
    }


@pytest.fixture
def traced() -> Callable[..., NeuralGraph]:
    return traced_networks


@pytest.fixture
def needed() -> Callable[..., dict[str, Any]]:
    return needed_arguments


@pytest.fixture
def architectures() -> list[str]:
    """Names of all traced architectures."""
    return list(TRACED)
