"""Architectures that registered functions build, beside plain stacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from neural_graphs.errors import UserError
from neural_graphs.graph import (
    Architecture,
    GraphBatch,
    ModuleArchitecture,
    _architecture,
    architecture_from_json,
    register_architecture,
)
from neural_graphs.testing import random_stack


class Residual(nn.Module):
    """Convolutions with batch norm, a residual, and two names for one weight."""

    def __init__(self, width: int = 6, sizes: list[int] | None = None, act: str = "relu") -> None:
        super().__init__()
        height, across = sizes or [6, 6]
        self.input_shape = (2, height, across)
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.act = {"relu": nn.ReLU(inplace=True), "tanh": nn.Tanh()}[act]
        self.head = nn.Linear(width, 4, bias=False)
        self.again = nn.Linear(width, 4, bias=False)
        self.again.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.stem(x)))
        h = self.act(h + self.conv(h)).mean((2, 3))
        return self.head(h) + self.again(h * h)


class Attentive(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.input_shape = (5, 3)
        self.read = nn.Linear(3, features)
        self.register_buffer("places", torch.linspace(-1, 1, 5)[:, None], persistent=False)
        self.layer = nn.TransformerEncoderLayer(features, 2, 16, 0.1, "gelu", batch_first=True)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.read(x) + self.places).mean(1))


class Stubborn(nn.Module):
    """Decides on its data, which ``vmap`` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.input_shape = (3,)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y if float(y.detach().sum()) > 1e9 else y.tanh()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_architecture, "_FACTORIES", {})
    _architecture._facts.cache_clear()
    for name, factory in {"residual": Residual, "attentive": Attentive, "stubborn": Stubborn}.items():
        register_architecture(name)(factory)
    yield
    _architecture._facts.cache_clear()


def networks(architecture: Architecture, batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(batch, *shape, generator=generator, dtype=torch.float64) + 0.1
        for name, shape in architecture.parameter_shapes().items()
    }


ARGUMENTS: list[tuple[str, tuple[tuple[str, Any], ...]]] = [
    ("residual", (("width", 5), ("sizes", [4, 6]), ("act", "tanh"))),
    ("residual", ()),
    ("attentive", (("features", 4),)),
    ("stubborn", ()),
]


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_networks_run_like_modules_one_by_one(name: str, arguments: Any) -> None:
    """Directly, and by the recorded operators of their graph; on shared inputs and on inputs of each their own."""
    architecture = ModuleArchitecture(name, arguments)
    params = networks(architecture)
    shape: tuple[Any, ...] = architecture.input_shape
    x = torch.rand(2, *shape, dtype=torch.float64)
    module = architecture.module().double().eval()
    right = []
    for b in range(3):
        module.load_state_dict({k: v[b] for k, v in params.items()}, strict=False)
        if name == "residual":
            module.get_parameter("again.weight").data = module.get_parameter("head.weight").data
        right.append(module(x.clone()))
    before = x.clone()
    torch.testing.assert_close(architecture.forward(params, x), torch.stack(right), rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)
    own = torch.stack([x, 2 * x, x + 1])
    first = {k: v[1:2] for k, v in params.items()}
    found = architecture.forward(params, own)
    torch.testing.assert_close(found[1:2], architecture.forward(first, own[1]), rtol=1e-9, atol=1e-9)
    graph = architecture.graph(params)
    if name != "stubborn":  # its record keeps the way that was taken
        torch.testing.assert_close(graph.run(x), torch.stack(right), rtol=1e-5, atol=1e-5)


def test_graphs_hold_the_networks_exactly() -> None:
    architecture = ModuleArchitecture("residual")
    params = networks(architecture)
    assert "again.weight" not in params and "norm.running_var" in params and "norm.num_batches_tracked" not in params
    graph = architecture.graph(params)
    state = graph.to_state_dict()
    assert all(torch.equal(state[name], value) for name, value in params.items())
    assert torch.equal(state["again.weight"], params["head.weight"])
    assert state["norm.num_batches_tracked"].tolist() == [0, 0, 0]
    assert graph.check(architecture.module(), torch.rand(2, 2, 6, 6)).passed
    batch = GraphBatch.of([graph[2], graph[0], architecture.graph(networks(architecture, 1))])
    assert len(batch.buckets) == 1 and len(batch) == 3
    assert len([s for s in graph.responses(torch.rand(2, 2, 6, 6, dtype=torch.float64)) if s is not None]) >= 3


def test_tracing_happens_once_and_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    right = torch.rand(1)
    torch.manual_seed(0)
    graph = ModuleArchitecture("residual").graph(networks(ModuleArchitecture("residual")))
    assert torch.equal(torch.rand(1), right)
    other = ModuleArchitecture.from_json(ModuleArchitecture("residual").to_json())
    assert other.graph(networks(other)).spec is graph.spec and other.graph(networks(other)).trace is graph.trace


def test_facts() -> None:
    architecture = ModuleArchitecture("residual", (("act", "tanh"), ("width", 5)))
    assert str(architecture) == "residual(act=tanh, width=5)"
    assert (architecture.num_outputs, architecture.input_shape) == (4, (2, 6, 6))
    assert architecture.activations_used == ("tanh", "none")
    assert architecture.num_parameters == sum(v[0].numel() for v in networks(architecture).values())


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_json_round_trip(name: str, arguments: Any) -> None:
    architecture = ModuleArchitecture(name, arguments)
    found = architecture_from_json(json.loads(json.dumps(architecture.to_json())))
    assert found == architecture and hash(found) == hash(architecture)
    assert ModuleArchitecture(name, tuple(reversed(arguments))) == architecture


def test_stacks_are_architectures() -> None:
    stack = random_stack(0, "wild-park")
    architecture: Architecture = architecture_from_json(stack.to_json())
    assert architecture == stack
    params = networks(architecture)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(architecture.graph(params).run(x), architecture.forward(params, x))


def test_a_name_is_registered_once() -> None:
    with pytest.raises(UserError, match="registered already"):
        register_architecture("residual")(Residual)


class Nameless(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"kind": "module", "factory": "os.system", "arguments": {}},
            "no architecture named 'os.system' is registered",
        ),
        ({"kind": "module", "factory": 3}, "is broken"),
        ({"kind": "module", "factory": "residual", "arguments": [1]}, "is broken"),
        ({"kind": "module", "factory": "residual", "arguments": {"act": {"a": 1}}}, "act is of type dict"),
        ({"kind": "graph"}, "not a plain stack"),
        (None, "not a plain stack"),
    ],
)
def test_descriptions_of_nothing_known_are_refused(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture_from_json(data)


def test_what_cannot_be_built_or_packed_is_refused() -> None:
    register_architecture("nameless")(Nameless)
    with pytest.raises(UserError, match="does not say its input_shape"):
        ModuleArchitecture("nameless").parameter_shapes()
    with pytest.raises(UserError, match=r"architecture residual\(depth=3\): .*unexpected keyword"):
        ModuleArchitecture("residual", (("depth", 3),)).num_outputs  # noqa: B018
    architecture = ModuleArchitecture("residual")
    params = networks(architecture)
    with pytest.raises(UserError, match=r"has no tensor stem\.weight"):
        architecture.graph({k: v for k, v in params.items() if k != "stem.weight"})
    with pytest.raises(UserError, match=r"conv\.bias has shape"):
        architecture.graph({**params, "conv.bias": torch.rand(3, 9)})


def test_gradients_reach_the_parameters() -> None:
    architecture = ModuleArchitecture("residual", (("act", "tanh"),))
    params = {k: v.requires_grad_("running" not in k) for k, v in networks(architecture, 2).items()}
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    architecture.forward(params, x).square().sum().backward()
    one = {k: v.detach()[1].clone().requires_grad_(v.requires_grad) for k, v in params.items()}
    module = architecture.module().double().eval()
    functional_call(module, one, (x,)).square().sum().backward()
    for name, value in one.items():
        if value.grad is not None:
            found = params[name].grad
            assert found is not None
            torch.testing.assert_close(found[1], value.grad, rtol=1e-9, atol=1e-9)
