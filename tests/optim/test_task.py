"""Inner tasks: losses and gradients of many networks against autograd on each module, minibatches, scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.optim import _families
from neural_graphs.optim._families import FAMILIES, HELD_OUT, cnn, held_out, mlp, paper_cnn, sample_task, vit
from neural_graphs.optim._task import InnerTask

pytestmark = pytest.mark.filterwarnings("ignore:tasks are drawn on digits")  # where there is no Fashion-MNIST

ARCHITECTURES = {
    "relu": mlp(8, (12, 8)),
    "tanh": mlp(8, (12, 8), "tanh"),
    "gelu": mlp(8, (12,), "gelu"),
    "silu": mlp(8, (8, 8, 8, 8), "silu"),
    "leaky": mlp(8, (9,), "leaky_relu"),
    "sigmoid": mlp(8, (9, 4), "sigmoid"),
    "linear": mlp(8, ()),
    "no bias": Stack.mlp((64, 12, 10), "relu", bias=False),
    "cnn": cnn((16, 32), padding=0),
    "padded": cnn((8, 12), first_stride=2, activation="gelu"),
    "transformer": vit(8, 4, 16, 2, 2),
}


def task_of(architecture, **settings):
    return InnerTask("test", architecture, data="digits", **settings)


def twin(task, params, x, y):
    """One network at a time, by autograd on the module."""
    losses, grads = [], {name: [] for name in params}
    for particle in range(len(y) if y.dim() == 2 else len(next(iter(params.values())))):
        module = task.architecture.module().to(x.dtype).eval()
        own = {name: value[particle].clone().requires_grad_() for name, value in params.items()}
        inputs, labels = (x[particle], y[particle]) if y.dim() == 2 else (x, y)
        loss = F.cross_entropy(torch.func.functional_call(module, own, (inputs,)), labels)
        for name, g in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            grads[name].append(g)
        losses.append(loss.detach())
    return torch.stack(losses), {name: torch.stack(parts) for name, parts in grads.items()}


def double(params):
    return {name: value.double() for name, value in params.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shared", [True, False])
def test_losses_and_gradients_are_those_of_each_module(name, shared):
    task = task_of(ARCHITECTURES[name], batch_size=12)
    params = double(task.new_params([0, 1, 2]))
    batches = [task.batch(4, step) for step in range(3)]
    x, y = batches[0] if shared else map(torch.stack, zip(*batches, strict=True))
    losses, grads = task.losses_and_grads(params, x.double(), y)
    wanted, wanted_grads = twin(task, params, x.double(), y)
    torch.testing.assert_close(losses, wanted, rtol=1e-11, atol=1e-12)
    assert list(grads) == list(params)
    for key in params:
        torch.testing.assert_close(grads[key], wanted_grads[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "cnn", "padded"])
def test_views_of_one_buffer_will_do(name):
    """float32, which compiled steps take; parameters that lie side by side in one tensor."""
    task = task_of(ARCHITECTURES[name], batch_size=16)
    params = task.new_params([0, 1, 2])
    flat = torch.cat([value.flatten(1) for value in params.values()], 1)
    parts = flat.split([value[0].numel() for value in params.values()], 1)
    views = {
        name: part.unflatten(1, value.shape[1:]) for (name, value), part in zip(params.items(), parts, strict=True)
    }
    x, y = task.batch(0, 0)
    losses, grads = task.losses_and_grads(views, x, y)
    wanted, wanted_grads = twin(task, params, x, y)
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)
    for key in params:
        torch.testing.assert_close(grads[key], wanted_grads[key], rtol=1e-4, atol=1e-6)


def test_equal_seeds_give_equal_networks_as_torch_draws_them():
    task = task_of(ARCHITECTURES["relu"])
    before = torch.random.get_rng_state()
    params = task.new_params([5, 6, 5])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    wanted = dict(task.architecture.module().named_parameters())
    assert list(params) == list(wanted)
    for name, value in params.items():
        assert torch.equal(value[0], value[2])
        assert not torch.equal(value[0], value[1])
        assert torch.equal(value[0], wanted[name])
    larger = task_of(ARCHITECTURES["relu"], init_scale=2.0).new_params([5])
    assert torch.equal(larger["seq.0.weight"][0], 2 * wanted["seq.0.weight"])
    assert torch.equal(larger["seq.0.bias"][0], wanted["seq.0.bias"])


def test_an_epoch_takes_every_image_once():
    task = task_of(ARCHITECTURES["relu"], batch_size=32)
    steps = len(task.images) // 32
    seen = torch.cat([task.batch(3, step)[0] for step in range(steps)])
    assert len(seen) == 32 * steps
    index = [int((task.images.pixels["train"].flatten(1) == x).all(1).nonzero()[0]) for x in seen]
    doubles = len(task.images) - len(torch.unique(task.images.pixels["train"].flatten(1), dim=0))
    assert len(index) - len(set(index)) <= doubles
    assert not torch.equal(task.batch(3, 0)[0], task.batch(3, steps)[0])


def test_minibatches_depend_on_seed_and_step_alone():
    task = task_of(ARCHITECTURES["relu"])
    first = task.batch(1, 7)
    for seed in range(200):  # more than are kept
        task.batch(seed, 3)
    again = task_of(ARCHITECTURES["relu"]).batch(1, 7)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], task.batch(2, 7)[0])


def test_augmentation():
    plain, order = task_of(ARCHITECTURES["relu"]), (3, 4, 5, 6, 7, 8, 9, 0, 1, 2)
    changed = task_of(ARCHITECTURES["relu"], input_scale=2.0, label_order=order)
    (x, y), (x2, y2) = plain.batch(0, 0), changed.batch(0, 0)
    assert torch.equal(x2, 2 * x)
    assert torch.equal(y2, (y + 3) % 10)
    with pytest.raises(UserError, match="no permutation"):
        task_of(ARCHITECTURES["relu"], label_order=(0, 0)).batch(0, 0)


@pytest.mark.parametrize("name", ["relu", "padded", "transformer"])
def test_scores_are_means_over_the_split(name):
    task = task_of(ARCHITECTURES[name])
    params = task.new_params([0, 1])
    loss, accuracy = task.score(params, "val")
    x, y = task.images.take("val", slice(None))
    for particle in range(2):
        module = task.architecture.module().eval()
        with torch.no_grad():
            inputs = x.flatten(1) if name == "relu" else x
            found = torch.func.functional_call(module, {k: v[particle] for k, v in params.items()}, (inputs,))
        assert float(loss[particle]) == pytest.approx(float(F.cross_entropy(found, y)), rel=1e-5)
        assert float(accuracy[particle]) == pytest.approx(float((found.argmax(1) == y).float().mean()))
    assert float(task.score(params, "val", limit=10)[1][0]) * 10 == pytest.approx(
        round(float(task.score(params, "val", limit=10)[1][0]) * 10)
    )


def test_data_are_standardised_and_split():
    data = task_of(ARCHITECTURES["relu"]).images
    x, _ = data.take("train", slice(None))
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert [len(data.labels[split]) for split in ("train", "val", "test")] == [1078, 360, 359]
    with pytest.raises(UserError, match="unknown images"):
        InnerTask("x", mlp(8, ()), data="nothing").images  # noqa: B018


def test_families_are_drawn_from_the_seed():
    assert {sample_task("mlp", seed) for seed in range(30)} == {sample_task("mlp", seed) for seed in range(30)}
    assert len({sample_task("mlp", seed).architecture for seed in range(30)}) > 20
    kinds = [str(sample_task("mixed", seed).architecture)[:3] for seed in range(200)]
    assert 5 <= kinds.count("vit") <= 40
    with pytest.raises(UserError, match="unknown family"):
        sample_task("none", 0)
    augmented = sample_task("mlp", 3, augment=True)
    assert augmented.input_scale != 1 and sorted(augmented.label_order) == list(range(10))
    assert augmented.architecture == sample_task("mlp", 3).architecture


def test_without_fashion_mnist_tasks_are_on_digits_and_one_warning_says_so(monkeypatch):
    def missing(*arguments, **others):
        raise UserError("no fashion-mnist images found")

    _families.has_fashion.cache_clear()
    monkeypatch.setattr(_families, "load_images", lambda *arguments, **others: None)  # found
    assert {sample_task("cnn", seed).data for seed in range(40)} == {"fashion-mnist", "digits"}
    _families.has_fashion.cache_clear()
    monkeypatch.setattr(_families, "load_images", missing)
    try:
        with pytest.warns(UserWarning, match="digits alone.*no fashion-mnist") as warned:
            tasks = [sample_task("mixed", seed) for seed in range(40)]
    finally:
        _families.has_fashion.cache_clear()
    assert len(warned) == 1 and {(task.data, task.side) for task in tasks} == {("digits", 8)}
    for task in tasks[:10]:
        task.losses_and_grads(task.new_params([0]), *task.batch(0, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_of_a_family_run(family):
    for seed in range(4):
        task = sample_task(family, seed)
        task = InnerTask(task.name, task.architecture, task.data, task.side, task.batch_size, task.steps)
        losses, _ = task.losses_and_grads(task.new_params([0, 1]), *task.batch(0, 0))
        assert losses.shape == (2,) and (losses - 2.3).abs().max() < 1
        assert 100 <= task.steps <= 1000 and task.spec.node_sets


def test_no_task_is_held_out_and_drawn():
    in_distribution = {task.architecture for task in HELD_OUT["in-distribution"]}
    drawn = {sample_task(family, seed).architecture for family in FAMILIES for seed in range(1000)}
    assert not in_distribution & drawn
    names = [task.name for tasks in HELD_OUT.values() for task in tasks]
    assert len(set(names)) == len(names) and len(in_distribution) >= 10


def test_the_papers_networks():
    assert (paper_cnn(16).num_parameters, paper_cnn(32, 3).num_parameters) == (14_378, 56_970)
    assert held_out("paper-fashion", steps=10)[0].steps == 10
    with pytest.raises(UserError, match="unknown group"):
        held_out("nothing")


def test_mixed_tasks_come_in_all_kinds_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_families, "has_fashion", lambda: True)
    tasks = [sample_task("mixed", seed) for seed in range(120)]
    assert {task.side for task in tasks} >= {8, 14, 28}
    flat = [task for task in tasks if isinstance(task.architecture, Stack) and not task.architecture.layers[0].kernel]
    assert all(task.architecture.layers[0].inputs == task.side**2 for task in flat)
    assert 60 < len(flat) < 110 and {task.data for task in tasks} == {"digits", "fashion-mnist"}
    assert all(task.side == 8 for task in tasks if task.data == "digits")
