"""``LearnedOptimizer`` as a ``torch.optim.Optimizer``: Adam before training, groups, schedules, types, resuming, errors."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import neural_graphs as ng
from neural_graphs.errors import RunError, UserError
from neural_graphs.optim import create_rule
from neural_graphs.optim._optimizer import LearnedOptimizer


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def transformer():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)


NETS = {"mlp": (mlp, (6,)), "cnn": (cnn, (2, 4, 4)), "transformer": (transformer, (5, 8))}


class Odd(nn.Module):
    """A scalar, a tied weight, a frozen layer, and a complex parameter, which has no place in the graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 6)
        self.leave.weight = nn.Parameter(self.enter.weight.T.contiguous().detach())
        self.again = nn.Linear(6, 8)
        self.again.weight = self.enter.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.frozen(self.leave(torch.relu(self.scale * self.enter(x))) + self.leave(self.again(x)))


def trained_rule(name="graph"):
    """A rule with heads away from zero."""
    rule = create_rule(name)
    with torch.no_grad():
        rule.heads.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return rule


def backward(model, step=0, shape=(6,), scaler=None):
    dtype = next(model.parameters()).dtype
    x = torch.randn(10, *shape, generator=torch.Generator().manual_seed(step)).to(dtype)
    loss = F.cross_entropy(model(x).flatten(1).float(), torch.arange(10) % 3)
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


def train(model, optimizer, steps=1, first=0, shape=(6,)):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, step, shape)
        optimizer.step()


def values(model):
    return [value.detach().clone() for value in model.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def saved(optimizer):
    """Through a file, as users do."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["graph", "lstm"])
def test_untrained_it_is_adam(net, weight_decay, dtype, name):
    make, shape = NETS[net]
    ours, theirs = make().to(dtype), make().to(dtype)
    rule = create_rule(name)
    optimizer = LearnedOptimizer(ours, rule, torch.rand(2, *shape, dtype=dtype), lr=0.01, weight_decay=weight_decay)
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=weight_decay)
    for step in range(25):
        optimizer.zero_grad()
        backward(ours, step, shape)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.grad = a.grad.clone()  # training apart, a rounding error of a tiny gradient would grow
        optimizer.step()
        adam.step()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_trained_rule_is_not_adam_and_lowers_the_loss():
    model, theirs = mlp(), mlp()
    optimizer = ng.LearnedOptimizer(model, trained_rule(), lr=0.01)
    first = backward(model)
    train(model, optimizer, 40)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.01), 40)
    assert not torch.allclose(model[0].weight, theirs[0].weight, atol=1e-3)
    assert backward(model) < first


def test_groups_have_their_own_rate_and_decay():
    model, one, other = mlp(), mlp(), mlp()
    rule = trained_rule()
    groups = [{"params": model[0].parameters(), "weight_decay": 0.5}, {"params": model[2].parameters(), "lr": 0.003}]
    optimizer = LearnedOptimizer(model, rule, params=groups, lr=0.01)
    train(model, optimizer)
    train(one, LearnedOptimizer(one, rule, lr=0.01, weight_decay=0.5))
    train(other, LearnedOptimizer(other, rule, lr=0.003))
    assert equal(values(model), values(one)[:2] + values(other)[2:])


def test_add_param_group():
    model, whole = mlp(), mlp()
    optimizer = LearnedOptimizer(model, trained_rule(), params=model[0].parameters(), lr=0.01)
    before = values(model)
    train(model, optimizer)
    assert equal(values(model)[2:], before[2:]) and not equal(values(model)[:2], before[:2])
    optimizer.add_param_group({"params": list(model[2].named_parameters()) and list(model[2].parameters()), "lr": 0.1})
    train(model, optimizer)
    assert not equal(values(model)[2:], before[2:])
    named = LearnedOptimizer(whole, trained_rule(), params=whole.named_parameters())
    train(whole, named)
    assert named.state_dict()["param_groups"][0]["param_names"][0] == "0.weight"


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=False),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.PolynomialLR(o, 4)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_rate(name):
    ours, theirs = mlp(), mlp()
    optimizer = LearnedOptimizer(ours, create_rule("ff"), lr=0.05)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05)
    schedules = SCHEDULERS[name](optimizer), SCHEDULERS[name](adam)
    rates = []
    for step in range(6):
        optimizer.zero_grad()
        backward(ours, step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.grad = a.grad.clone()
        optimizer.step()
        adam.step()
        rates.append(optimizer.param_groups[0]["lr"])
        assert rates[-1] == adam.param_groups[0]["lr"]
        for schedule in schedules:
            schedule.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert len(set(rates)) > 1


def test_plateau_scheduler_and_built_in_decay():
    model, twin = mlp(), mlp()
    optimizer = LearnedOptimizer(model, trained_rule(), lr=0.01)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
    plateau.step(1.0)
    plateau.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)

    decayed = LearnedOptimizer(twin, trained_rule(), lr=0.01, total_steps=4)
    optimizer = LearnedOptimizer(model, trained_rule(), lr=0.01)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.01 * max(0, 1 - step / 4)
        train(model, optimizer, first=step)
        before = values(twin)
        train(twin, decayed, first=step)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
        assert equal(before, values(twin)) == (step >= 4)


def test_grad_scaler():
    model, plain = mlp(), mlp()
    optimizer, twin = (LearnedOptimizer(each, trained_rule(), lr=0.01) for each in (model, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        scale = scaler.get_scale()
        backward(model, step, scaler=scaler)
        before = values(model)
        if step == 1:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert equal(before, values(model)) and scaler.get_scale() == scale / 2
        else:
            train(plain, twin, first=step)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_closure_hooks_and_gradients_set_to_zero():
    model, twin = mlp(), mlp()
    optimizer, other = (LearnedOptimizer(each, trained_rule(), lr=0.01) for each in (model, twin))
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad(set_to_none=False)
        return backward(model)

    assert torch.is_tensor(optimizer.step(closure)) and calls == ["before", "after"]
    train(twin, other)
    assert equal(values(model), values(twin))
    optimizer.zero_grad(set_to_none=False)
    assert model[0].weight.grad.eq(0).all()
    optimizer.zero_grad()
    assert optimizer.step() is None and equal(values(model), values(twin))


def test_parameters_without_gradients_are_left_alone_and_count_their_own_steps():
    model, twin = mlp(), mlp()
    optimizer = LearnedOptimizer(model, create_rule("graph"), lr=0.01)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    for step in range(6):
        for each, opt in ((model, optimizer), (twin, adam)):
            opt.zero_grad()
            backward(each, step)
            if step in (0, 1, 4):
                each[2].weight.grad = None
                before = each[2].weight.clone()
            opt.step()
            assert step not in (0, 1, 4) or torch.equal(each[2].weight, before)
    assert [float(optimizer.state[p]["step"]) for p in model.parameters()] == [6, 6, 3, 6]
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_scalars_tied_frozen_and_unused_parameters():
    model = Odd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = LearnedOptimizer(model, trained_rule(), torch.rand(2, 6), lr=0.01)
    frozen, unused, scale = model.frozen.weight.clone(), model.unused.weight.clone(), model.scale.clone()
    train(model, optimizer, 3)
    assert torch.equal(model.frozen.weight, frozen) and torch.equal(model.unused.weight, unused)
    assert model.scale != scale and model.again.weight is model.enter.weight
    assert optimizer.state[model.scale]["square"].shape == ()
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_state_in_float32(dtype):
    model, twin = mlp().to(dtype), mlp().to(dtype).float()
    optimizer = LearnedOptimizer(model, trained_rule(), lr=0.01, weight_decay=0.1)
    reference = LearnedOptimizer(twin, trained_rule(), lr=0.01, weight_decay=0.1)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            b.data, b.grad = a.detach().float(), a.grad.float()
        optimizer.step()
        reference.step()
        # Computed in float32, rounded once.
        assert equal(values(model), [value.to(dtype) for value in values(twin)])
    assert all(optimizer.state[p]["square"].dtype == torch.float32 for p in model.parameters())
    other = LearnedOptimizer(mlp().to(dtype), trained_rule())
    other.load_state_dict(saved(optimizer))
    for p, q in zip(model.parameters(), other.param_groups[0]["params"], strict=True):
        for key in ("momenta", "square", "step"):
            assert torch.equal(optimizer.state[p][key], other.state[q][key])
            assert other.state[q][key].dtype == torch.float32


def test_parameters_outside_the_graph_take_adams_step(monkeypatch):
    model, twin = mlp(), mlp()
    from neural_graphs.optim import _traced

    whole = _traced.Wiring.of
    monkeypatch.setattr(_traced.Wiring, "of", lambda spec, names: whole(spec, set(names) - {"0.bias", "2.bias"}))
    with pytest.warns(UserWarning, match=r"2 parameters .* Adam's step: 0\.bias, 2\.bias") as caught:
        optimizer = LearnedOptimizer(model, create_rule("graph"), lr=0.01, weight_decay=0.1)
    assert len(caught) == 1
    adam = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(12):
        optimizer.zero_grad()
        backward(model, step)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            b.grad = a.grad.clone()
        optimizer.step()
        adam.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    rows = {row["parameter"]: row for row in optimizer.explain()}
    assert rows["0.bias"]["kind"] == "adam" and rows["0.bias"]["cosine"] == 1.0
    resumed = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="2 parameters"):
        other = LearnedOptimizer(resumed, create_rule("graph"))
    other.load_state_dict(saved(optimizer))
    for each, opt in ((model, optimizer), (resumed, other)):
        train(each, opt, 2, first=12)
    assert equal(values(model), values(resumed))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("net", NETS)
def test_resuming_is_exact(net, every):
    make, shape = NETS[net]
    example = torch.rand(2, *shape)
    straight, broken = make(), make()
    rule = trained_rule()
    options = {"lr": 0.01, "weight_decay": 0.01, "total_steps": 12, "every": every}
    optimizer = LearnedOptimizer(straight, rule, example, **options)
    train(straight, optimizer, 10, shape=shape)
    optimizer = LearnedOptimizer(broken, rule, example, **options)
    train(broken, optimizer, 5, shape=shape)
    state, weights = saved(optimizer), copy.deepcopy(broken.state_dict())
    resumed = make()
    resumed.load_state_dict(weights)
    optimizer = LearnedOptimizer(resumed, copy.deepcopy(rule), example)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, 5, first=5, shape=shape)
    assert equal(values(straight), values(resumed))


def test_asking_the_graph_every_few_steps_is_another_path():
    found = []
    for every in (1, 2):
        model = mlp()
        train(model, LearnedOptimizer(model, trained_rule(), lr=0.01, every=every), 2)
        found.append(values(model))
    assert not equal(*found)


def test_copies_and_pickles_go_on_alike():
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule(), lr=0.01, every=2)
    train(model, optimizer, 3)
    pairs = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 2, first=3)
    for other, its in pairs:
        train(other, its, 2, first=3)
        assert equal(values(model), values(other))


def test_state_that_is_replaced_or_moved_is_seen():
    model, twin = mlp(), mlp()
    optimizer, other = (LearnedOptimizer(each, trained_rule(), lr=0.01) for each in (model, twin))
    train(model, optimizer, 2)
    train(twin, other, 2)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        optimizer.state[parameter]["square"] = optimizer.state[parameter]["square"].clone()
    train(model, optimizer, 1, first=2)
    train(twin, other, 1, first=2)
    assert equal(values(model), values(twin))
    model.double()
    train(model, optimizer, 1, first=3)
    assert optimizer.state[model[0].weight]["square"].dtype == torch.float64


def test_explain():
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule(), lr=0.01)
    with pytest.raises(UserError, match="no step has been made"):
        optimizer.explain()
    before = values(model)
    train(model, optimizer)
    table = optimizer.explain()
    assert [row["parameter"] for row in table] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for row, old, new in zip(table, before, model.parameters(), strict=True):
        moved = float((new.detach() - old).square().mean().sqrt())
        assert row["step"] == pytest.approx(moved, rel=1e-4)
        assert row["adam"] == pytest.approx(0.01, rel=1e-3)  # the first step of Adam is a sign
        assert row["gain"] == pytest.approx(row["step"] / row["adam"])
        assert row["relative"] == pytest.approx(row["step"] / float(new.detach().square().mean().sqrt()), rel=1e-5)
        assert -1 <= row["cosine"] <= 1 + 1e-6 and row["replaced"] == 0
    lines = str(table).splitlines()
    assert lines[0].split()[:3] == ["parameter", "kind", "entries"] and len(lines) == 5


def refused(model, optimizer, error, match):
    """``step`` raises, and neither parameters nor state have changed."""
    before, state = values(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=match) as caught:
        optimizer.step()
    assert "\n" not in str(caught.value)
    assert equal(before, values(model))
    after = optimizer.state_dict()
    assert after["state"].keys() == state["state"].keys()
    for number, held in after["state"].items():
        assert all(torch.equal(value, state["state"][number][key]) for key, value in held.items())
    assert after["learned"]["count"] == state["learned"]["count"]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite(bad, steps):
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule())
    train(model, optimizer, steps)
    backward(model)
    model[2].weight.grad[1, 1:3] = bad
    refused(model, optimizer, RunError, r"gradient of 2\.weight is not finite in 2 of 24 entries")


def test_large_finite_gradients_are_taken():
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule())
    backward(model)
    model[0].weight.grad.fill_(1e25)
    optimizer.step()
    assert all(value.isfinite().all() for value in model.parameters())


class Failing(type(create_rule("graph"))):
    """A rule whose proposal is not finite in one entry, and that has not noticed."""

    def propose(self, wiring, *arguments):
        found = super().propose(wiring, *arguments)
        found.updates["0.weight"][0, 2, 1] = torch.nan
        found.summary["step"][0, 0] = torch.nan
        return found


def test_the_last_guard():
    model, twin, rule = mlp(), mlp(), Failing()
    rule.load_state_dict(trained_rule().state_dict())
    rule.config = trained_rule().config
    optimizer, other = LearnedOptimizer(model, rule, lr=0.01), LearnedOptimizer(twin, trained_rule(), lr=0.01)
    start = values(model)
    train(model, optimizer)
    train(twin, other)
    changed = model[0].weight != twin[0].weight
    assert changed.nonzero().tolist() == [[2, 1]]
    step = (start[0] - model[0].weight.detach())[2, 1]
    assert step.abs() == pytest.approx(0.01, rel=1e-4)  # Adam's first
    row = optimizer.explain()[0]
    assert row["replaced"] == 1 and row["step"] == pytest.approx(
        float((model[0].weight - start[0]).detach().square().mean()) ** 0.5
    )
    before = values(model)
    optimizer.state[model[0].weight]["momenta"].fill_(torch.nan)
    backward(model)
    with pytest.raises(RunError, match=r"the state of 0\.weight gives a step that is not finite"):
        optimizer.step()
    assert equal(before, values(model))


def test_a_module_that_changed():
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule())
    train(model, optimizer, 2)
    backward(model)
    held = model[2].weight.data
    model[2].weight.grad = None
    model[2].weight.data = held[:, :4]
    model[2].weight.grad = torch.ones(3, 4)
    refused(model, optimizer, UserError, r"2\.weight has shape \(3, 4\), and had \(3, 8\)")
    model[2].weight.grad = None
    model[2].weight.data = held
    train(model, optimizer)
    model[2] = nn.Linear(8, 3)
    backward(model)
    refused(model, optimizer, UserError, "^2 was replaced since the model was traced")


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))
    optimizer = LearnedOptimizer(model, trained_rule(), torch.tensor([[0, 1]]))
    model(torch.tensor([[1, 2]])).sum().backward()
    refused(model, optimizer, UserError, r"gradient of 0\.weight is sparse")


def test_parameters_of_another_module():
    model, other = mlp(), mlp()
    with pytest.raises(UserError, match=r"4 parameters are not of the traced model"):
        LearnedOptimizer(model, create_rule("graph"), params=other.parameters())
    optimizer = LearnedOptimizer(model, create_rule("graph"), params=model[0].parameters())
    with pytest.raises(UserError, match=r"2 parameters are not of the traced model \(shapes \(3, 8\), \(3,\)\)"):
        optimizer.add_param_group({"params": list(other[2].parameters())})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}])
def test_bad_options_of_a_group(options):
    with pytest.raises(UserError, match="give finite numbers from 0 on"):
        LearnedOptimizer(mlp(), create_rule("graph"), **options)


@pytest.mark.parametrize("options", [{"every": 0}, {"total_steps": 0}])
def test_bad_counts(options):
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        LearnedOptimizer(mlp(), create_rule("graph"), **options)


def test_a_module_that_needs_an_example():
    with pytest.raises(UserError, match="example input"):
        LearnedOptimizer(transformer(), create_rule("graph"))


def test_state_dicts_of_other_weights_and_other_optimizers():
    model = mlp()
    optimizer = LearnedOptimizer(model, trained_rule())
    train(model, optimizer)
    state = saved(optimizer)
    wider = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    for made, loaded, match in (
        (LearnedOptimizer(model, create_rule("graph")), state, r"other meta-weights \(graph, [0-9a-f]{8}\)"),
        (LearnedOptimizer(model, create_rule("lstm")), state, r"this optimizer's \(lstm, [0-9a-f]{8}\)"),
        (LearnedOptimizer(wider, trained_rule()), state, r"state of 0\.weight is for shape \(8, 6\), it has \(9, 6\)"),
        (optimizer, torch.optim.Adam(model.parameters()).state_dict(), "no state dict of a LearnedOptimizer"),
    ):
        before = made.state_dict()
        with pytest.raises(UserError, match=match):
            made.load_state_dict(loaded)
        assert made.state_dict()["state"].keys() == before["state"].keys()
        assert made.state_dict()["learned"] == before["learned"]
