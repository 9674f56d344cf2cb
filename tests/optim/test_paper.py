"""The paper's update rules: what they read, equivariance, meta-gradients, and that they learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import neural_graphs as ng
from neural_graphs.errors import UserError
from neural_graphs.optim import UpdateRule, Wiring, create_rule
from neural_graphs.optim._config import MetaConfig, list_meta_presets, load_meta_config, meta_preset_text
from neural_graphs.optim._families import HELD_OUT, cnn, mlp
from neural_graphs.optim._paper import BETAS, log_and_sign
from neural_graphs.optim._task import InnerTask
from neural_graphs.optim._unroll import Slot

SMALL = {
    "paper-ff": {"hidden": 8},
    "paper-lstm": {"hidden": 8},
    "paper-ng-gnn": {"hidden": 8, "layers": 2},
    "paper-ng-t": {"hidden": 8, "heads": 2},
}
CNN = InnerTask("small", cnn((4, 6)), side=8, data="digits", batch_size=16)
MLP = InnerTask("small", mlp(8, (6, 5)), side=8, data="digits", batch_size=16)

Params = dict[str, Tensor]


def made(name: str, seed: int = 0) -> UpdateRule:
    return create_rule(name, **SMALL[name], seed=seed).double()


def drawn(like: Params, seed: int, scale: float = 1.0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in like.items()}


def two_steps(rule: UpdateRule, wiring: Wiring, params: Params, first: Params, second: Params) -> Params:
    """Updates of the second step, when momenta are not gradients any more."""
    state = rule.new_state(params)
    rule.propose(wiring, params, first, state, dict.fromkeys(params, 1))
    return rule.propose(wiring, params, second, state, dict.fromkeys(params, 2)).updates


def scalar_feature(x: float) -> list[float]:
    """Andrychowicz et al. 2016, appendix A, with p = 10."""
    if abs(x) >= math.exp(-10):
        return [math.log(abs(x)) / 10, math.copysign(1.0, x)]
    return [-1.0, math.exp(10) * x]


def test_logarithm_and_sign_of_every_magnitude() -> None:
    values = [0.0, 1.0, -1.0, 3.5, -120.0, 1e-3, -2e-5, 1e-5, -1e-7, 4.54e-5, -4.53e-5, 1e8]
    found = log_and_sign(torch.tensor(values, dtype=torch.float64))
    expected = [number for x in values for number in scalar_feature(x)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_feed_forward_rule_is_its_equations_number_by_number() -> None:
    rule, wiring = made("paper-ff"), Wiring.of(MLP.spec)
    params = drawn(MLP.new_params([1, 2]), 0)
    first, second = drawn(params, 1), drawn(params, 2, 1e-3)
    updates = two_steps(rule, wiring, params, first, second)
    for name, network, place in (("seq.0.weight", 1, (3, 17)), ("seq.1.bias", 0, (2,)), ("seq.2.weight", 1, (9, 4))):
        at = (network, *place)
        w, g1, g2 = (float(values[name][at]) for values in (params, first, second))
        read = [w, g2, *(beta * g1 + g2 for beta in BETAS)]
        x = torch.tensor([number for value in read for number in scalar_feature(value)], dtype=torch.float64)
        for layer in (rule.first, rule.second):
            x = torch.relu(layer.weight @ x + layer.bias)
        s, m = (rule.out.weight @ x + rule.out.bias).tolist()
        assert float(updates[name][at]) == pytest.approx(-0.01 * s * math.exp(0.01 * m), abs=1e-14)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("task", [CNN, MLP], ids=["cnn", "mlp"])
def test_permuting_hidden_neurons_permutes_the_step(name: str, task: InnerTask) -> None:
    rule, wiring = made(name), Wiring.of(task.spec)
    params = drawn(task.new_params([1, 2]), 0)
    first, second = drawn(params, 1), drawn(params, 2, 1e-2)
    element = task.spec.symmetries.sample(3)
    permuted = [task.spec.symmetries.apply(values, element, batched=True) for values in (params, first, second)]
    assert not torch.equal(permuted[0]["seq.1.weight"], params["seq.1.weight"])
    expected = task.spec.symmetries.apply(two_steps(rule, wiring, params, first, second), element, batched=True)
    found = two_steps(rule, wiring, *permuted)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_networks_do_not_depend_on_their_batch_mates(name: str) -> None:
    rule, wiring = made(name), Wiring.of(CNN.spec)
    params = drawn(CNN.new_params([1, 2, 3]), 0)
    values = [params, drawn(params, 1), drawn(params, 2, 1e-2)]
    together = two_steps(rule, wiring, *values)
    alone = two_steps(rule, wiring, *({k: v[1:2] for k, v in part.items()} for part in values))
    for key, value in alone.items():
        torch.testing.assert_close(together[key][1:2], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["paper-ng-gnn", "paper-ng-t", "paper-lstm"])
def test_a_step_depends_on_other_layers_gradients(name: str) -> None:
    rule, wiring = made(name), Wiring.of(CNN.spec)
    params = drawn(CNN.new_params([1]), 0)
    first, second = drawn(params, 1), drawn(params, 2)
    changed = {**second, "seq.0.bias": second["seq.0.bias"] + 1}
    before, after = (two_steps(rule, wiring, params, first, grads)["seq.1.weight"] for grads in (second, changed))
    assert float((before - after).abs().max()) > 1e-7


@pytest.mark.parametrize("name", SMALL)
def test_meta_weights_of_each_network_and_their_gradient(name: str) -> None:
    """Per-network weights are those of rules of their own; gradients are those of finite differences."""
    rules, wiring = [made(name, seed) for seed in (0, 1)], Wiring.of(CNN.spec)
    params = drawn(CNN.new_params([1, 2]), 0)
    grads, direction = drawn(params, 1), drawn(params, 2)
    own = [dict(rule.named_parameters()) for rule in rules]
    weights = {k: torch.stack([named[k].detach() for named in own]).requires_grad_() for k in own[0]}

    def objective(weights: Params) -> Tensor:
        steps = dict.fromkeys(params, 1)
        updates = rules[0].propose(wiring, params, grads, rules[0].new_state(params), steps, weights).updates
        return torch.stack([(updates[k] * direction[k]).flatten(1).sum(1) for k in updates]).sum(0)

    found = objective(weights)
    for p, rule in enumerate(rules):
        part = {k: v[p : p + 1] for k, v in params.items()}
        grad = {k: v[p : p + 1] for k, v in grads.items()}
        updates = rule.propose(wiring, part, grad, rule.new_state(part), dict.fromkeys(part, 1)).updates
        value = sum(float((updates[k][0] * direction[k][p]).sum()) for k in updates)
        assert float(found[p].detach()) == pytest.approx(value, rel=1e-10)
        assert not any(update.requires_grad for update in updates.values())
    gradients = torch.autograd.grad(found.sum(), list(weights.values()), allow_unused=True)
    used = {k: g for k, g in zip(weights, gradients, strict=True) if g is not None}
    assert len(used) >= len(weights) - 2  # the embeddings of single inputs and outputs, of which there are none
    step = drawn(used, 6, 1e-8)  # so short because of kinks: logarithms of small values, minima, maxima
    with torch.no_grad():
        there, back = (
            objective({k: w + sign * step[k] if k in step else w for k, w in weights.items()}) for sign in (1, -1)
        )
    expected = sum(float((g * step[k]).sum()) for k, g in used.items())
    assert float((there - back).sum() / 2) == pytest.approx(expected, rel=1e-5, abs=1e-15)


def test_remembered_vectors_are_used_and_made_where_there_are_none() -> None:
    rule, wiring = made("paper-ng-gnn"), Wiring.of(CNN.spec)
    params = drawn(CNN.new_params([1]), 0)
    grads, steps, memory = drawn(params, 1), dict.fromkeys(params, 1), {}
    plain = rule.propose(wiring, params, grads, rule.new_state(params), steps).updates
    first = rule.propose(wiring, params, grads, rule.new_state(params), steps, memory=memory).updates
    assert all(torch.equal(plain[k], first[k]) for k in plain)
    memory["vectors"] = [torch.zeros_like(vector) for vector in memory["vectors"]]
    second = rule.propose(wiring, params, grads, rule.new_state(params), steps, memory=memory).updates
    assert not torch.equal(plain["seq.0.weight"], second["seq.0.weight"])


def test_entries_that_are_not_finite_stay_and_are_counted() -> None:
    rule, wiring = made("paper-ff"), Wiring.of(MLP.spec)
    params = drawn(MLP.new_params([1, 2]), 0)
    grads = drawn(params, 1)
    grads["seq.0.weight"][1, 2, 3] = math.nan
    proposal = rule.propose(wiring, params, grads, rule.new_state(params), dict.fromkeys(params, 1))
    assert float(proposal.updates["seq.0.weight"][1, 2, 3]) == 0
    assert proposal.summary["replaced"].sum(1).tolist() == [0, 1]
    assert bool(proposal.summary["step"].isfinite().all())


@pytest.mark.parametrize("name", ["paper-ng-gnn", "paper-ng-t"])
def test_networks_with_norms_groups_and_attention_are_read(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.GroupNorm(2, 4)
            self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.out = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.conv(x)))
            return self.out(torch.relu(self.deep(x)).mean((2, 3)))

    module = Net().double()
    spec = ng.trace(module, torch.zeros(1, 1, 8, 8, dtype=torch.float64)).spec
    params = {k: v.detach().unsqueeze(0) for k, v in module.named_parameters()}
    wiring = Wiring.of(spec, set(params))
    rule = made(name)
    updates = two_steps(rule, wiring, params, drawn(params, 1), drawn(params, 2))
    assert set(updates) == set(params)
    assert all(bool((update != 0).all()) for update in updates.values())


def test_kernels_that_are_too_large_are_refused() -> None:
    task = InnerTask("wide", mlp(8, (6,)), side=8)
    rule = create_rule("paper-ng-gnn", hidden=8, layers=1, kernel=[1, 1])
    params = CNN.new_params([1])
    with pytest.raises(UserError, match="larger kernel"):
        rule.propose(Wiring.of(CNN.spec), params, params, rule.new_state(params), dict.fromkeys(params, 1))
    params = task.new_params([1])  # weights without taps are fine
    rule.propose(Wiring.of(task.spec), params, params, rule.new_state(params), dict.fromkeys(params, 1))


class Repeated(Slot):
    """The same network on the same minibatches, again and again."""

    def _start(self) -> None:
        self.task, self.step, self.run = MLP.with_steps(20), 0, 7
        self.params = self.task.new_params([7])
        self.state = self.rule.new_state(self.params)
        self.wiring = Wiring.of(self.task.spec, set(self.params))
        self.path = torch.zeros(1, 1)
        self.drawn = 1


@pytest.mark.parametrize(("name", "meta_steps"), [("paper-ff", 10), ("paper-ng-gnn", 5)])
def test_greedy_meta_training_lowers_the_loss(name: str, meta_steps: int) -> None:
    config = MetaConfig(
        rule={"name": name, **SMALL[name]}, family="mlp", augment=False, horizon=[20, 20], lr=1.0, schedule="constant",
        method="backprop", slots=1, pairs=1, truncation=1, accumulate=20, late=0.0,
    )  # fmt: skip
    rule = create_rule(**config.rule)
    slot = Repeated(config, rule, 0)
    theta = nn.utils.parameters_to_vector(rule.parameters()).detach()
    leaf = theta.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], 2e-2)
    losses = []
    for number in range(meta_steps):
        leaf.grad, loss = slot.advance(leaf.detach(), number)
        adam.step()
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.05, losses


@pytest.mark.parametrize("name", ["gnn", "t", "ff", "lstm"])
def test_presets_are_the_papers_budget_with_every_key(name: str) -> None:
    import yaml

    preset = f"optimizer-paper-{name}"
    assert preset in list_meta_presets()
    assert set(yaml.safe_load(meta_preset_text(preset))) == set(MetaConfig.__dataclass_fields__)
    config = load_meta_config(preset)
    assert (config.family, config.method, config.truncation, config.accumulate) == ("paper-fashion", "backprop", 1, 100)
    assert (config.steps, config.optimizer_lr, config.lr, config.schedule) == (1000, 3e-4, 1.0, "constant")
    assert config.horizon == [100, 100] and config.slots == config.pairs == 1
    assert HELD_OUT[config.family][0].num_parameters == 14_378
    assert sum(p.numel() for p in create_rule(**config.rule).parameters()) == {
        "gnn": 667_586, "t": 82_146, "ff": 5_250, "lstm": 8_770,
    }[name]  # fmt: skip
