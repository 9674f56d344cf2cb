"""Baselines for many networks at once against torch's optimizers on one at a time."""

from __future__ import annotations

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.optim._baselines import (
    BASELINES,
    GRIDS,
    FlatParameters,
    Muon,
    Setting,
    orthogonalised,
    schedule_factor,
)

STEPS = 20
SHAPES = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (4, 5, 3, 3), "c.weight": (2, 7), "token": (1, 1, 4)}


def torch_sgd(params, s):
    return torch.optim.SGD(params, s.lr, momentum=0.9, nesterov=True, weight_decay=s.weight_decay)


def torch_adam(params, s):
    return torch.optim.Adam(params, s.lr)


def torch_adamw(params, s):
    return torch.optim.AdamW(params, s.lr, weight_decay=s.weight_decay)


def torch_nadamw(params, s):
    return torch.optim.NAdam(params, s.lr, weight_decay=s.weight_decay, decoupled_weight_decay=True)


def run(name, settings, dtype=torch.float64):
    """Both sides on the same made-up gradients, which depend on the weights."""
    generator = torch.Generator().manual_seed(0)
    count = len(settings)
    start = {key: torch.randn(count, *shape, generator=generator, dtype=dtype) for key, shape in SHAPES.items()}
    target = {key: torch.randn(shape, generator=generator, dtype=dtype) for key, shape in SHAPES.items()}
    ours = FlatParameters(start)
    baseline = BASELINES[name](ours, settings, STEPS)
    for _ in range(STEPS):
        baseline.step({key: torch.tanh(value - target[key]) for key, value in ours.views.items()})
    return ours.views, start, target


def theirs(make, setting, start, target, particle):
    params = {key: value[particle].clone() for key, value in start.items()}
    optimizer = make(list(params.values()), setting)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * schedule_factor(setting.schedule, step, STEPS)
        for key, value in params.items():
            value.grad = torch.tanh(value - target[key])
        optimizer.step()
    return params


@pytest.mark.parametrize(
    ("name", "make"), [("sgd", torch_sgd), ("adam", torch_adam), ("adamw", torch_adamw), ("nadamw", torch_nadamw)]
)
def test_each_network_goes_where_torch_takes_it(name, make):
    decay = 0.0 if name == "adam" else 0.1
    settings = [
        Setting(name, 0.03, "constant"),
        Setting(name, 0.1, "linear", decay),
        Setting(name, 0.05, "cosine", decay),
    ]
    views, start, target = run(name, settings)
    for particle, setting in enumerate(settings):
        wanted = theirs(make, setting, start, target, particle)
        for key in SHAPES:
            assert not torch.allclose(views[key][particle], start[key][particle], atol=1e-2)
            exact = 1e-7 if name == "nadamw" else 1e-9  # torch keeps the product of NAdam's momenta in float32
            torch.testing.assert_close(views[key][particle], wanted[key], rtol=exact, atol=exact / 10)


def test_muon_is_torchs_on_matrices_and_adamw_on_the_rest():
    settings = [Setting("muon", 0.01, "constant", 0.1), Setting("muon", 0.02, "linear")]
    views, start, target = run("muon", settings)

    def make(keys, kind, **others):
        def build(params, s):
            chosen = [value for key, value in zip(SHAPES, params, strict=True) if key in keys]
            return kind(chosen, s.lr, weight_decay=s.weight_decay, **others)

        return build

    flat = {**start, "b.weight": start["b.weight"].flatten(2)}
    flat_target = {**target, "b.weight": target["b.weight"].flatten(1)}
    matrices = ("a.weight", "b.weight", "c.weight")
    for particle, setting in enumerate(settings):
        muon = make(matrices, torch.optim.Muon, adjust_lr_fn="match_rms_adamw", momentum=Muon.momentum)
        wanted = theirs(muon, setting, flat, flat_target, particle)
        for key in matrices:  # torch's iterates in bfloat16
            found = views[key][particle].reshape(wanted[key].shape)
            moved = (wanted[key] - flat[key][particle]).norm()
            assert (found - wanted[key]).norm() < 0.03 * moved
        others = [key for key in SHAPES if key not in matrices]
        wanted = theirs(make(others, torch.optim.AdamW), setting, start, target, particle)
        for key in others:
            torch.testing.assert_close(views[key][particle], wanted[key], rtol=1e-9, atol=1e-11)


def test_orthogonalised_has_the_singular_vectors_and_values_near_one():
    g = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for matrices in (g, g.transpose(1, 2)):
        found = orthogonalised(matrices, Muon.coefficients, Muon.rounds)
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        core = u.transpose(1, 2) @ found @ vh.transpose(1, 2)
        diagonal = torch.diagonal(core, dim1=1, dim2=2)
        assert (core - torch.diag_embed(diagonal)).abs().max() < 1e-10
        assert float(diagonal.min()) > 0.5 and float(diagonal.max()) < 1.3


def test_networks_do_not_depend_on_those_beside_them():
    settings = [Setting("muon", 0.01), Setting("muon", 0.3)]
    both, _, _ = run("muon", settings)
    changed, _, _ = run("muon", [settings[0], Setting("muon", 0.02, "cosine")])
    for key in SHAPES:
        torch.testing.assert_close(both[key][0], changed[key][0], rtol=1e-12, atol=1e-14)


def test_schedules():
    linear = [schedule_factor("linear", step, 4) for step in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
    cosine = [schedule_factor("cosine", step, 100) for step in range(100)]
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine[5] == 1.0 and cosine[-1] < 1e-3 and cosine[52] == pytest.approx(0.5, abs=0.02)
    assert sorted(cosine[5:], reverse=True) == cosine[5:]
    with pytest.raises(UserError, match="unknown schedule"):
        schedule_factor("steps", 0, 4)


def test_grids_have_at_least_twenty_settings_with_schedules():
    for name, grid in GRIDS.items():
        assert len(set(grid)) == len(grid) >= 20 and {s.optimizer for s in grid} == {name}
        assert {s.schedule for s in grid} == {"constant", "linear", "cosine"}


def test_as_many_settings_as_networks():
    with pytest.raises(UserError, match="2 networks need as many settings"):
        BASELINES["adam"](FlatParameters({"a": torch.zeros(2, 3)}), [Setting("adam", 0.1)], 5)
