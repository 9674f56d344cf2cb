"""Bulk fitting equals the obvious loop over torch modules; initial weights depend on nothing but seed and number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo._inr import FitOptions, chunk_size, fit_networks, initial_parameters, pixel_grid


def fit_one_by_one(
    stack: Stack, params: dict[str, Tensor], coords: Tensor, targets: Tensor, steps: int, lr: float
) -> dict[str, Tensor]:
    """What bulk fitting must equal: one module, one optimiser and one loop per network."""
    fitted = []
    for index in range(len(targets)):
        module = stack.module().to(coords.dtype)
        module.load_state_dict({name: value[index] for name, value in params.items()})
        optimizer = torch.optim.Adam(module.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            ((module(coords).T - targets[index]) ** 2).mean().backward()
            optimizer.step()
        fitted.append({name: value.detach() for name, value in module.state_dict().items()})
    return {name: torch.stack([one[name] for one in fitted]) for name in params}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "stack",
    [
        Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5),
        Stack.mlp((2, 7, 3), "sine:20"),
        Stack.mlp((2, 6, 9, 5, 8, 3), ["sine:30", "relu", "tanh", "sigmoid"]),
        Stack.mlp((2, 8, 8, 8, 1), ["silu", "gelu", "leaky_relu"], shift=-0.25),
    ],
    ids=str,
)
def test_equals_a_loop_over_modules(stack: Stack, compile: bool) -> None:
    torch.manual_seed(0)
    coords = pixel_grid(5, 6, torch.float64)
    targets = torch.rand(5, stack.widths[-1], 30, dtype=torch.float64)
    params = {name: value.double() for name, value in initial_parameters(stack, "siren", 3, range(5)).items()}
    options = FitOptions(steps=20, lr=1e-3, threads=2, chunk=2, compile=compile)
    fitted, errors = fit_networks(stack, params, coords, targets, options)
    expected = fit_one_by_one(stack, params, coords, targets, steps=20, lr=1e-3)
    for name, value in expected.items():
        torch.testing.assert_close(fitted[name], value, rtol=1e-7, atol=1e-9)
        assert not torch.equal(value, params[name]), "the loop moved this tensor"
    outputs = stack.forward(expected, coords).transpose(1, 2)
    torch.testing.assert_close(errors, ((outputs - targets) ** 2).mean((1, 2)), rtol=1e-6, atol=1e-9)


def test_float32_stays_close_to_float64() -> None:
    stack = Stack.mlp((2, 16, 16, 1), "sine:30", shift=0.5)
    params = initial_parameters(stack, "dws", 0, range(3))
    targets = torch.rand(3, 1, 64, generator=torch.Generator().manual_seed(1))
    single, _ = fit_networks(stack, params, pixel_grid(8, 8), targets, FitOptions(steps=50, threads=1))
    double = {name: value.double() for name, value in params.items()}
    exact, _ = fit_networks(stack, double, pixel_grid(8, 8, torch.float64), targets.double(), FitOptions(steps=50))
    for name, value in exact.items():
        torch.testing.assert_close(single[name].double(), value, rtol=1e-3, atol=1e-4)


def test_pixel_order_is_column_row_and_row_by_row() -> None:
    grid = pixel_grid(3, 2)
    assert grid.tolist() == [[-1, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [1, 1]]


@pytest.mark.parametrize("init", ["dws", "siren"])
def test_initial_weights_depend_on_seed_and_number_only(init: str) -> None:
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    every = initial_parameters(stack, init, 7, range(20))
    some = initial_parameters(stack, init, 7, np.array([13, 4]))
    other = initial_parameters(stack, init, 8, range(20))
    for name, value in every.items():
        assert torch.equal(some[name], value[[13, 4]])
        if value.any():
            assert not torch.equal(other[name], value)
            assert not torch.equal(value[0], value[1])


def test_initial_distributions() -> None:
    stack = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)
    dws = initial_parameters(stack, "dws", 0, range(400))
    siren = initial_parameters(stack, "siren", 0, range(400))

    def largest(values: dict[str, Tensor]) -> list[float]:
        return [values[name].abs().max().item() for name in stack.parameter_shapes()]

    third, inner, outer = 3**0.5 / 30, (6 / 32) ** 0.5 / 30, 32**-0.5
    np.testing.assert_allclose(largest(dws), [third, 0, inner, 0, outer, outer], rtol=0.01)
    np.testing.assert_allclose(largest(siren), [0.5, 2**-0.5, inner, outer, inner, outer], rtol=0.01)
    assert abs(dws["seq.1.weight"].mean()) < 1e-4
    assert dws["seq.1.weight"].std() / inner == pytest.approx(3**-0.5, rel=0.01)  # uniform


def test_same_networks_whatever_the_number_of_threads() -> None:
    stack = Stack.mlp((2, 16, 16, 1), "sine:30", shift=0.5)
    params = initial_parameters(stack, "dws", 0, range(12))
    targets = torch.rand(12, 1, 64, generator=torch.Generator().manual_seed(1))
    found = [
        fit_networks(stack, params, pixel_grid(8, 8), targets, FitOptions(steps=30, threads=threads, chunk=3))[0]
        for threads in (1, 3)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in params)


def test_threads_of_the_caller_are_left_alone() -> None:
    stack = Stack.mlp((2, 4, 1), "sine:30")
    before = torch.get_num_threads()
    params = initial_parameters(stack, "dws", 0, range(2))
    fit_networks(stack, params, pixel_grid(4, 4), torch.rand(2, 1, 16), FitOptions(steps=1, threads=2, chunk=1))
    assert torch.get_num_threads() == before


def test_progress_counts_every_network_once() -> None:
    stack = Stack.mlp((2, 4, 1), "sine:30")
    params = initial_parameters(stack, "dws", 0, range(7))
    seen: list[int] = []
    options = FitOptions(steps=1, threads=2, chunk=3)
    fit_networks(stack, params, pixel_grid(4, 4), torch.rand(7, 1, 16), options, seen.append)
    assert sorted(seen) == [1, 3, 3]


def test_an_error_in_one_chunk_stops_all() -> None:
    stack = Stack.mlp((2, 4, 1), "sine:30")
    params = initial_parameters(stack, "dws", 0, range(6))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    options = FitOptions(steps=2, threads=1, chunk=1)
    with pytest.raises(KeyboardInterrupt):
        fit_networks(stack, params, pixel_grid(4, 4), torch.rand(6, 1, 16), options, interrupt)


def test_chunks_fit_the_cache_and_share_evenly() -> None:
    stack = Stack.mlp((2, 32, 32, 1), "sine:30")
    assert chunk_size(stack, 64, 512) == 64  # an eighth
    assert chunk_size(stack, 64, 100_000) > chunk_size(stack, 784, 100_000) > chunk_size(stack, 10**6, 100_000) >= 4


@pytest.mark.parametrize(
    "stack",
    [
        Stack.mlp((2, 4, 1), "sine:30", bias=False),
        Stack.mlp((2, 4, 1), "none"),
        Stack.mlp((2, 4, 1), "sine:30", output_activation="tanh"),
    ],
    ids=["no bias", "linear hidden layer", "output activation"],
)
def test_refuses_what_it_cannot_fit(stack: Stack) -> None:
    shapes = stack.parameter_shapes()
    params = {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
    with pytest.raises(UserError, match="cannot fit"):
        fit_networks(stack, params, pixel_grid(2, 2), torch.zeros(1, 1, 4))


def test_unknown_initialisation() -> None:
    with pytest.raises(UserError, match="dws, siren"):
        initial_parameters(Stack.mlp((2, 4, 1), "sine:30"), "he", 0, [0])
