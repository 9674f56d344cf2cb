"""Orthogonalised momenta in update rules: what they are, that they respect symmetries, and that Adam is where all starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import neural_graphs as ng
from neural_graphs.optim import UpdateRule, Wiring, create_rule
from neural_graphs.optim._whitening import Whitening

NETS = {
    "mlp": (nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)), None),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
        ),
        torch.rand(2, 2, 6, 6),
    ),
}


def random_rule(name: str, **arguments: object) -> UpdateRule:
    rule = create_rule(name, whiten=True, **arguments)
    with torch.no_grad():
        for value in rule.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return rule


def steps_of(
    rule: UpdateRule, graph: ng.NeuralGraph, params: dict[str, Tensor], grads: list[dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    wiring = Wiring.of(graph.spec, set(params))
    state = rule.new_state(params)
    return [
        rule.propose(wiring, params, grad, state, dict.fromkeys(params, number + 1)).updates
        for number, grad in enumerate(grads)
    ]


def drawn(net: nn.Module, count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            n: torch.randn((1, *p.shape), generator=generator, dtype=torch.float64).to(dtype)
            for n, p in net.named_parameters()
        }
        for _ in range(count)
    ]


def test_singular_values_are_near_one_and_vectors_those_of_the_momentum() -> None:
    net, _ = NETS["mlp"]
    graph = ng.trace(net)
    params, grads = drawn(net, 2)
    rule = create_rule("graph", whiten=True)
    wiring = Wiring.of(graph.spec, set(params))
    state = rule.new_state(params)
    rule.propose(wiring, params, grads, state, dict.fromkeys(params, 1))
    piece = next(piece for piece in wiring.pieces if piece.sizes[:2] == (9, 6))
    found = Whitening(wiring, grads, state, dict.fromkeys(params, 1)).direction(piece)[0, :, :, 0]
    values = torch.linalg.svdvals(found / (0.5 * 9**0.5))
    assert values.min() > 0.6 and values.max() < 1.3
    momentum = 0.9 * state[piece.parameter]["momenta"][1, 0] + 0.1 * grads[piece.parameter][0]
    expected = torch.linalg.svd(momentum, full_matrices=False)
    # The same singular spaces: O = f(M) for an odd f, so M^T O is symmetric.
    product = momentum.T @ found
    torch.testing.assert_close(product, product.T, rtol=1e-8, atol=1e-10)
    assert expected.S.max() / expected.S.min() > 2  # the momentum itself was far from orthogonal


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["graph", "ff", "lstm"])
def test_permuting_neurons_commutes_with_steps(name: str, net: str) -> None:
    module, example = NETS[net]
    graph = ng.trace(module, example)
    params, *grads = drawn(module, 4)
    rule = random_rule(name)
    element = graph.symmetries.sample(generator=torch.Generator().manual_seed(1))

    def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return graph.symmetries.apply(values, element, batched=True)

    plain = steps_of(rule, graph, params, grads)
    other = steps_of(rule, graph, moved(params), [moved(grad) for grad in grads])
    for one, two in zip(plain, other, strict=True):
        for key, value in moved(one).items():
            torch.testing.assert_close(two[key], value, rtol=1e-10, atol=1e-10)
    assert any(not torch.allclose(value, plain[-1][key]) for key, value in other[-1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_untrained_it_is_adam(dtype: torch.dtype) -> None:
    module, example = NETS["cnn"]
    graph = ng.trace(module, example)
    params, *grads = drawn(module, 6, dtype)
    leaves = {name: nn.Parameter(value.clone()) for name, value in params.items()}
    adam = torch.optim.Adam(leaves.values(), lr=1.0)
    for grad, update in zip(grads, steps_of(create_rule("graph", whiten=True), graph, params, grads), strict=True):
        before = {name: value.detach().clone() for name, value in leaves.items()}
        for name, value in leaves.items():
            value.grad = grad[name]
        adam.step()
        for name, value in leaves.items():
            torch.testing.assert_close(before[name] - value, update[name], rtol=1e-5, atol=1e-5)


def test_figures_are_those_of_the_whole_update() -> None:
    module, example = NETS["cnn"]
    graph = ng.trace(module, example)
    params, *grads = drawn(module, 3)
    wiring, rule = Wiring.of(graph.spec, set(params)), random_rule("graph")
    plain = create_rule("adam")
    states = rule.new_state(params), plain.new_state(params)
    for number, grad in enumerate(grads):
        steps = dict.fromkeys(params, number + 1)
        found = rule.propose(wiring, params, grad, states[0], steps)
        adam = plain.propose(wiring, params, grad, states[1], steps)
    for number, piece in enumerate(wiring.pieces):
        update, nominal = (piece.read(given.updates[piece.parameter]).flatten() for given in (found, adam))
        assert float(found.summary["step"][0, number]) == pytest.approx(float(update.square().mean().sqrt()))
        assert float(found.summary["nominal"][0, number]) == pytest.approx(float(nominal.square().mean().sqrt()))
        cosine = torch.nn.functional.cosine_similarity(update, nominal, 0)
        assert float(found.summary["cosine"][0, number]) == pytest.approx(float(cosine), abs=1e-9)


@pytest.mark.parametrize("figures", [True, False])
def test_a_direction_has_the_size_of_adams_step_whatever_figures_are_wanted(figures: bool) -> None:
    module, example = NETS["cnn"]
    graph = ng.trace(module, example)
    params, *grads = drawn(module, 3)
    wiring, rule, plain = Wiring.of(graph.spec, set(params)), random_rule("graph", magnitude=False), create_rule("adam")
    rule.figures = figures
    states = rule.new_state(params), plain.new_state(params)
    for number, grad in enumerate(grads):
        steps = dict.fromkeys(params, number + 1)
        found = rule.propose(wiring, params, grad, states[0], steps)
        adam = plain.propose(wiring, params, grad, states[1], steps)
        for piece in wiring.pieces:
            one, two = (piece.read(given.updates[piece.parameter]).square().mean() for given in (found, adam))
            assert float(one) == pytest.approx(float(two), rel=1e-9)


def test_without_gradients_nothing_is_added() -> None:
    module, example = NETS["mlp"]
    graph = ng.trace(module, example)
    params = drawn(module, 1)[0]
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    wiring, rule = Wiring.of(graph.spec, set(params)), random_rule("graph")
    state = rule.new_state(params)
    rule.propose(wiring, params, zeros, state, dict.fromkeys(params, 1))
    whitening = Whitening(wiring, zeros, state, dict.fromkeys(params, 1))
    assert all(not whitening.direction(piece).any() for piece in wiring.pieces if piece.source is not None)


def test_directions_are_kept_in_a_memory_until_it_is_cleared() -> None:
    module, example = NETS["mlp"]
    graph = ng.trace(module, example)
    params, *grads = drawn(module, 4)
    wiring, rule = Wiring.of(graph.spec, set(params)), random_rule("ff")
    state, memory = rule.new_state(params), {}
    kept = []
    for number, grad in enumerate(grads):
        if number == 2:
            memory.clear()
        rule.propose(wiring, params, grad, state, dict.fromkeys(params, number + 1), None, memory)
        kept.append({key: value.clone() for key, value in memory.items() if key.startswith("direction")})
    assert len(kept[0]) == 3 and all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    assert not any(torch.equal(kept[1][key], kept[2][key]) for key in kept[0])


def test_resuming_between_two_readings_of_the_graph_changes_nothing(tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, ng.LearnedOptimizer]:
        net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
        with torch.no_grad():
            for value in net.parameters():
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
        return net, ng.LearnedOptimizer(net, random_rule("graph"), lr=0.01, every=3)

    def train(net: nn.Module, optimizer: ng.LearnedOptimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            net(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()

    whole, optimizer = made()
    train(whole, optimizer, range(9))
    cut, optimizer = made()
    train(cut, optimizer, range(4))
    torch.save({"net": cut.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    again, optimizer = made()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    train(again, optimizer, range(4, 9))
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
