from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from neural_graphs.graph import Stack
from neural_graphs.nn import Encoder, GraphHead, create_encoder, list_encoders
from neural_graphs.nn import _registry as registry
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
    """``encoder_variant`` is each of these, ``encoder_with_probes`` each that has no larger one with probes."""
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
