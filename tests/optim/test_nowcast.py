"""Forecasts of weights: what they are untrained, their symmetry, and the history that they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_graphs.optim._nowcast_net as net_module
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import trace
from neural_graphs.optim._nowcast import Nowcaster
from neural_graphs.optim._nowcast_history import Subject, Trajectory
from neural_graphs.zoo._transformers import VisionTransformer


def mlp(width: int = 7) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))


class Block(nn.Module):
    """Grouped convolutions, normalisation with running statistics, a residual, and a parameter of no neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.head = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.grouped(torch.relu(self.depthwise(x)))
        return self.head(x.mean((2, 3))) * self.temperature


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.mid = nn.Linear(4, 4)
        self.out = nn.Linear(4, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mid(self.embed(x))))


def vit() -> nn.Module:
    return VisionTransformer(1, 4, 4, 3, patch=2, features=8, heads=2, blocks=1, hidden=12)


MODULES: dict[str, Any] = {
    "mlp": (mlp, None),
    "block": (Block, torch.rand(2, 2, 5, 5)),
    "tied": (Tied, torch.arange(6)[None]),
    "vit": (vit, torch.rand(2, 1, 4, 4)),
}


def walk(module: nn.Module, count: int = 6, seed: int = 0) -> list[dict[str, Tensor]]:
    """Copies of the module's state, drifting and jittering from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    moving = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tied = {id(value): torch.randn(value.shape, generator=generator) for value in module.parameters()}
    drift = {name: tied[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}
    states = []
    for _ in range(count):
        noise = {key: torch.randn(value.shape, generator=generator) for key, value in tied.items()}
        own = {n: noise[id(v)] for n, v in module.named_parameters(remove_duplicate=False)}
        for name in moving:
            state[name] = state[name] + (0.01 * drift[name] + 0.005 * own[name]).to(state[name].dtype)
        states.append({name: value.clone() for name, value in state.items()})
    return states


def trained(past: int = 5, horizon: int = 40, seed: int = 0, **sizes: Any) -> Nowcaster:
    """A nowcaster with random weights everywhere, so that nothing of it is switched off."""
    torch.manual_seed(seed)
    nowcaster = Nowcaster(past, horizon, width=8, **sizes)
    for value in nowcaster.parameters():
        nn.init.normal_(value, std=0.3)
    return nowcaster


# -- forecasts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_untrained_nothing_changes(name: str) -> None:
    make, example = MODULES[name]
    module = make()
    history = walk(module)
    found = Nowcaster().predict(module, history, 40, example_input=example)
    assert found.keys() == history[-1].keys()
    assert all(torch.equal(found[key], value) for key, value in history[-1].items())


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_and_nothing_else_moves(name: str) -> None:
    make, example = MODULES[name]
    module = make()
    history = walk(module)
    found = trained().predict(module, history, 7, example_input=example)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for key, value in history[-1].items():
        assert found[key].shape == value.shape and found[key].dtype == value.dtype
        assert torch.equal(found[key], value) != (key in parameters), key
    if name == "tied":
        assert torch.equal(found["embed.weight"], found["out.weight"])
    module.load_state_dict(found)


@pytest.mark.parametrize("name", MODULES)
def test_neurons_in_another_order_get_the_same_forecast(name: str) -> None:
    make, example = MODULES[name]
    module = make().double()
    example = example.double() if example is not None and example.is_floating_point() else example
    graph, history = trace(module, example), walk(module)
    nowcaster = trained().double()
    element = graph.symmetries.sample(1)
    moved = [graph.symmetries.apply(state, element) for state in history]
    assert any(not torch.equal(moved[0][name], value) for name, value in history[0].items())
    expected = graph.symmetries.apply(nowcaster.predict(graph, history, 11), element)
    found = nowcaster.predict(graph, moved, 11)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-10), key
    size = max(float((expected[k] - moved[-1][k]).abs().max()) for k in expected)
    assert size > 1e-3  # what is compared is no forecast of nothing


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_scales_of_tensors_do_not_matter(factor: float) -> None:
    module, nowcaster = mlp().double(), trained().double()
    history = walk(module)
    scaled = [{k: v * factor if k == "2.weight" else v for k, v in state.items()} for state in history]
    expected, found = nowcaster.predict(module, history, 9), nowcaster.predict(module, scaled, 9)
    assert torch.allclose(found["2.weight"], expected["2.weight"] * factor, rtol=1e-9, atol=0)
    assert torch.allclose(found["0.weight"], expected["0.weight"], rtol=1e-9, atol=0)


def test_networks_do_not_see_their_batch_mates() -> None:
    module, nowcaster = mlp(), trained()
    subject = Subject.of(module)
    histories = [walk(module, seed=seed) for seed in range(3)]
    together = {n: torch.cat([subject.stack(h, 5)[n] for h in histories], 1) for n in subject.names}
    with torch.no_grad():
        found = nowcaster(subject, together, [1, 40])
    assert found["0.weight"].shape == (2, 3, 7, 5)
    for number, history in enumerate(histories):
        alone = nowcaster.predict(module, history, 40)
        for name in subject.names:
            assert torch.allclose(found[name][1, number], alone[name], atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_rows_at_a_time_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, example = MODULES[name]
    module = make().double()
    example = example.double() if example is not None and example.is_floating_point() else example
    history, nowcaster = walk(module), trained().double()
    whole = nowcaster.predict(module, history, 3, example_input=example)
    monkeypatch.setattr(net_module, "CHUNK", 100)
    parts = nowcaster.predict(module, history, 3, example_input=example)
    assert all(torch.allclose(parts[key], value, rtol=0, atol=1e-12) for key, value in whole.items())


def test_a_tensor_that_stands_still_stays() -> None:
    module = mlp()
    history = [{k: v.clone() if k == "0.weight" else w for k, w in s.items()} for s in walk(module)
               for v in [module.state_dict()["0.weight"]]]  # fmt: skip
    found = trained().predict(module, history, 40)
    assert torch.equal(found["0.weight"], history[-1]["0.weight"])
    assert not torch.equal(found["2.weight"], history[-1]["2.weight"])


def test_frozen_parameters_stay() -> None:
    module = mlp()
    module.get_parameter("0.weight").requires_grad_(False)
    history = walk(module)
    found = trained().predict(module, history, 40)
    assert torch.equal(found["0.weight"], history[-1]["0.weight"])


def test_narrow_weights_are_read_in_float32() -> None:
    module = mlp().bfloat16()
    history = walk(module)
    found = trained().predict(module, history, 5)
    wide = trained().predict(mlp(), [{k: v.float() for k, v in s.items()} for s in history], 5)
    assert found["0.weight"].dtype == torch.bfloat16
    assert torch.equal(found["0.weight"], wide["0.weight"].bfloat16())


# -- history ---------------------------------------------------------------------------------------------------------------


def test_bad_histories_are_refused() -> None:
    module, nowcaster = mlp(), trained()
    history = walk(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def refused(states: Any, message: str, ahead: Any = 3, network: Any = module) -> None:
        with pytest.raises(UserError, match=message) as error:
            nowcaster.jump(network, states, ahead)
        assert "\n" not in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    refused(history[:4], "has 4 states, this nowcaster reads 5")
    refused(history[0], "list of state dicts")
    refused(walk(mlp(8)), r"state 1 of the history is of another network: 0.weight has shape \(8, 5\)")
    refused(walk(nn.Sequential(nn.Linear(5, 7))), "another network: it has no tensor 2.weight")
    refused(walk(nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(3, 3))), "has no tensor 6.weight")
    refused([module.state_dict() for _ in range(5)], "share the memory of 0.weight")
    refused(
        [*history[:-1], {**history[-1], "4.bias": torch.tensor([0.0, float("nan"), 0.0])}],
        "state 5 .*infinite.* 4.bias",
    )
    refused([*history[:-1], {**history[-1], "4.bias": torch.zeros(3, dtype=torch.int64)}], "no floating point")
    refused([*history[:-1], 3], "give state dicts")
    for ahead in (0, 41, 1.5, True):
        refused(history, "1 to 40 intervals ahead", ahead)
    refused(history, "no trainable parameters", network=mlp().requires_grad_(False))
    refused([{"0.weight": torch.zeros(3)}] * 5, "with an example input", network=Block())
    for wrong in ({"past": 1}, {"horizon": 0}, {"width": 0}, {"rounds": -1}, {"interval": 0}):
        with pytest.raises(UserError, match="a nowcaster needs"):
            Nowcaster(**wrong)


def test_a_forecast_that_is_not_finite_changes_nothing() -> None:
    module, nowcaster = mlp(), trained()
    history = walk(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        nowcaster.net.out.bias.fill_(float("inf"))
    with pytest.raises(RunError, match="not finite"):
        nowcaster.jump(module, history, 1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_jump_sets_the_module_in_place() -> None:
    module, nowcaster = Tied(), trained()
    history, example = walk(module), torch.arange(6)[None]
    memory = {name: value.data_ptr() for name, value in module.named_parameters()}
    expected = nowcaster.predict(module, history, 4, example_input=example)
    nowcaster.jump(module, history, 4, example_input=example)
    assert memory == {name: value.data_ptr() for name, value in module.named_parameters()}
    assert module.out.weight is module.embed.weight
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


# -- files -----------------------------------------------------------------------------------------------------------------


def test_saved_and_read_back_it_forecasts_the_same(tmp_path: Path) -> None:
    module, nowcaster = mlp(), trained(past=4, horizon=9, rounds=1, interval=3)
    nowcaster.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = Nowcaster.from_pretrained(tmp_path / "model")
    assert again.config() == nowcaster.config() and again.interval == 3
    history = walk(module)
    first, second = nowcaster.predict(module, history, 9), again.predict(module, history, 9)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trained().save(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"past": 5', '"past": 6'))
    with pytest.raises(UserError, match="does not belong to config.json"):
        Nowcaster.from_pretrained(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"past": 6', '"past": null'))
    with pytest.raises(UserError, match="config.json is broken"):
        Nowcaster.from_pretrained(folder)
    (folder / "config.json").write_text('{"format": 1, "task": "classify"}')
    with pytest.raises(UserError, match="describes no nowcaster"):
        Nowcaster.from_pretrained(folder)


# -- trajectories ----------------------------------------------------------------------------------------------------------


def test_trajectories_are_made_from_state_dicts() -> None:
    module = Block()
    runs = [walk(module, 9, seed) for seed in (0, 1)]
    made = Trajectory.of(module, *runs, example_input=torch.rand(2, 2, 5, 5), interval=2)
    assert (made.times, made.runs) == (5, 2)
    assert "norm.running_mean" not in made.states and "temperature" in made.states
    assert torch.equal(made.states["norm.weight"][3, 1], runs[1][6]["norm.weight"])
    window = made.at(torch.tensor([[0, 1], [2, 3]]), torch.tensor([1, 0]))["head.weight"]
    assert torch.equal(window[1, 0], runs[1][4]["head.weight"]) and torch.equal(window[0, 1], runs[0][2]["head.weight"])
    with pytest.raises(UserError, match="equally many"):
        Trajectory.of(module, runs[0], runs[1][:3], example_input=torch.rand(2, 2, 5, 5))
    with pytest.raises(UserError, match="norm.weight is missing"):
        Trajectory(made.subject, {k: v for k, v in made.states.items() if k != "norm.weight"})
    with pytest.raises(UserError, match="diverged"):
        Trajectory(made.subject, {k: v / 0 for k, v in made.states.items()})
