"""Editors: exact equivariance of the whole edit, training that lowers the error, files, resume, and clear errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neural_graphs as ng
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, render
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import AugmentConfig, Editor, OptimConfig, TrainConfig, evaluate, load_model, train
from neural_graphs.tasks._editing import Editing
from neural_graphs.tasks._loop import Loop
from neural_graphs.tasks._targets import edit_targets
from neural_graphs.testing import assert_equivariant
from neural_graphs.zoo import Zoo

STACK = Stack.mlp((2, 6, 5, 1), "sine:30", shift=0.5)
ENCODERS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"width": 8, "layers": 2},
    "ng-gnn forward": {"width": 8, "layers": 2, "reverse_edges": False, "probes": 3, "inputs": 2},
    "ng-t": {"width": 8, "layers": 2, "heads": 2, "probes": 3, "inputs": 2},
    "scale-gmn": {"width": 8, "layers": 2, "bidirectional": True},
}
TINY: dict[str, Any] = {"name": "ng-gnn", "width": 8, "layers": 2, "probes": 4, "inputs": 2}


def networks(stack: Stack = STACK, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> NeuralGraph:
    generator = torch.Generator().manual_seed(seed)
    shapes = stack.parameter_shapes()
    return stack.graph({k: 0.2 * torch.randn(count, *s, generator=generator, dtype=dtype) for k, s in shapes.items()})


def editor(encoder: str | dict[str, Any] = "ng-gnn", size: tuple[int, int] = (7, 5), **arguments: Any) -> Editor:
    """An untrained editor, its changes large enough to see."""
    torch.manual_seed(0)
    given = {"name": encoder.split()[0], **ENCODERS[encoder]} if isinstance(encoder, str) else encoder
    made = Editor(create_encoder(**given), size=size, **arguments)
    with torch.no_grad():
        for scale in (*made.head.weight_scale.values(), *made.head.bias_scale.values()):  # type: ignore[operator, union-attr]
            scale.fill_(0.5)
    return made


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """72 networks of digits, fitted a little."""
    return ng.make_zoo(
        tmp_path_factory.mktemp("digits") / "zoo",
        "digits",
        size=72,
        widths=(8, 8),
        steps=60,
        lr=3e-3,
        splits=(48, 12, 12),
    )


def config(zoo: Zoo, out: Path, epochs: int = 3, **changes: Any) -> TrainConfig:
    optimizer = OptimConfig(epochs=epochs, batch_size=16, lr=1e-2, warmup_steps=2)
    settings = {"encoder": dict(TINY), "optimizer": optimizer, "threads": 1, **changes}
    return TrainConfig(task="edit", zoo=str(zoo.path), out=str(out), **settings)


# -- equivariance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_edit_of_a_permuted_network_is_the_permuted_edit(name: str, copies: int) -> None:
    model = editor(name, copies=copies, edits=("dilate", "erode")).double()
    style = torch.tensor([0, 1, 1, 0])

    def edit(batch: GraphBatch, copy: int) -> NeuralGraph:
        (graph,) = model.edited(model.code(batch), style)
        rows = torch.arange(len(batch)) + copy * len(batch)
        return graph[rows]

    for copy in range(copies):  # biases included: all tensors of the networks are compared, and a control must move
        assert (
            assert_equivariant(lambda batch, c=copy: edit(batch, c), networks(), tolerance=1e-10, values="networks")
            < 1e-10
        )


@pytest.mark.parametrize("name", ENCODERS)
def test_images_of_edited_networks_do_not_depend_on_the_order_of_neurons(name: str) -> None:
    model, graph = editor(name, copies=2).double().eval(), networks()
    element = graph.symmetries.sample(torch.Generator().manual_seed(3))
    state = graph.to_state_dict(batched=True)
    permuted = STACK.graph(graph.symmetries.apply(state, element, batched=True))
    assert any(not torch.equal(a, b) for a, b in zip(graph.edges, permuted.edges, strict=True))
    with torch.no_grad():
        before, after = (model(GraphBatch.of(x)) for x in (graph, permuted))
        plain = render(graph, 7, 5)
    assert torch.allclose(before, after, atol=1e-10, rtol=0)
    assert (before - plain).abs().max() > 1e-2  # it was an edit


def test_networks_of_one_batch_are_edited_alone() -> None:
    """Whatever stands beside a network, of its architecture or another."""
    model = editor("ng-gnn forward").eval()
    graph, other = networks(dtype=torch.float32), networks(Stack.mlp((2, 4, 1), "sine:30"), 3, dtype=torch.float32)
    together = model.edit([other, graph[:2], graph[2:]])
    parts = {str(bucket.stack): bucket for bucket in together.buckets}
    for number in range(4):
        alone = model.edit(graph[number : number + 1]).buckets[0]
        for a, b in zip(parts[str(STACK)].edges, alone.edges, strict=True):
            assert torch.allclose(a[number : number + 1], b, atol=1e-5)
    assert torch.allclose(model.render([other, graph])[3:], model.render(graph), atol=1e-5)


# -- use -------------------------------------------------------------------------------------------------------------------


def test_edited_networks_draw_what_is_rendered_also_where_copies_are_merged() -> None:
    for copies in (1, 4):
        model = editor(copies=copies)
        graph = networks(dtype=torch.float32)
        edited = model.edit(graph).buckets[0]
        assert edited.stack is not None and edited.stack.widths == (2, 6 * copies, 5 * copies, 1)
        drawn = render(edited, 7, 5)
        assert torch.allclose(drawn, model.render(graph), atol=1e-4)
        assert torch.allclose(drawn, model.predict(graph).buckets[0].run(_grid(7, 5)).view(4, 7, 5, 1), atol=1e-4)


def _grid(height: int, width: int) -> torch.Tensor:
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return torch.from_numpy(np.stack([columns.ravel(), rows.ravel()], 1)).float()


def test_strength_goes_from_nothing_to_the_whole_edit() -> None:
    model, graph = editor(), networks(dtype=torch.float32)
    none, half, whole = (model.edit(graph, strength=s).buckets[0] for s in (0.0, 0.5, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(none.edges, graph.edges, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(none.nodes, graph.nodes, strict=True))
    for a, h, b in zip(none.edges, half.edges, whole.edges, strict=True):
        assert torch.allclose(h, (a + b) / 2, atol=1e-6)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="strength of an edit is from 0 to 1"):
            model.edit(graph, strength=wrong)


def test_an_edit_is_chosen_by_name() -> None:
    one, two = editor(), editor(edits=("dilate", "blur"))
    graph = networks(dtype=torch.float32)
    with torch.no_grad():
        torch.nn.init.normal_(two.head.edge.style.weight) if hasattr(two.head.edge, "style") else None  # type: ignore[union-attr]
    assert one.style_of() == one.style_of("dilate") == 0 and two.style_of("blur") == 1
    assert torch.equal(one.render(graph), one.render(graph, "dilate"))
    for model, name in ((one, "blur"), (two, "erode")):
        with pytest.raises(UserError, match=f"trained on dilate.*does not know '{name}'"):
            model.edit(graph, name)
    with pytest.raises(UserError, match="say which one is wanted"):
        two.edit(graph)


def test_any_resolution() -> None:
    model, graph = editor(), networks(dtype=torch.float32)
    fine = model.render(graph, height=13, width=9)
    assert fine.shape == (4, 13, 9, 1)
    assert torch.allclose(fine[:, ::2, ::2], model.render(graph), atol=1e-5)  # every second one is a coarse pixel


def test_save_and_load(tmp_path: Path) -> None:
    model = editor("ng-gnn forward", copies=2, edits=("dilate", "blur"), pixel_range=(-1, 1), architectures=[STACK])
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Editor) and loaded.architectures == (STACK,) and loaded.edits == ("dilate", "blur")
    assert (loaded.copies, loaded.size, loaded.pixel_range) == (2, (7, 5), (-1.0, 1.0))
    graph = networks(dtype=torch.float32)
    assert torch.equal(loaded.render(graph, "blur"), model.render(graph, "blur"))
    state = {name: value[1] for name, value in graph.to_state_dict(batched=True).items()}
    single = loaded.edit(state, "dilate").buckets[0]
    assert torch.allclose(single.edges[0], loaded.edit(graph, "dilate").buckets[0].edges[0][1:2], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edits": ()}, "name at least one"),
        ({"edits": ("blur", "blur")}, "each once"),
        ({"copies": 0}, "at least 1 copy"),
        ({"size": (0, 5)}, "size of positive height"),
        ({"pixel_range": (1, 0)}, "that of black first"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Editor(create_encoder(**TINY), **arguments)


def test_networks_that_cannot_be_edited() -> None:
    model = editor()
    classifier = Stack.mlp((64, 8, 10), "relu")
    colour = Stack.mlp((2, 8, 3), "sine:30")
    for stack in (classifier, colour):
        with pytest.raises(UserError, match="edits images, networks of 2 inputs and 1 outputs; this one has"):
            model.edit(networks(stack, dtype=torch.float32))
    bad = networks(dtype=torch.float32)
    bad.edges[0][1, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        model.edit(bad)
    flat = editor({"name": "mlp", "parameters": STACK.num_parameters})
    with pytest.raises(UserError, match="parameters"):
        flat.edit(networks(Stack.mlp((2, 9, 1), "sine:30"), dtype=torch.float32))


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    [TINY, {"name": "mlp", "width": 32}, {"name": "scale-gmn", "width": 8, "layers": 2}],
    ids=lambda e: e["name"],
)
def test_training_lowers_the_error_below_that_of_no_edit(digits: Zoo, tmp_path: Path, encoder: dict[str, Any]) -> None:
    result = train(config(digits, tmp_path / "run", epochs=8, encoder=encoder, copies=2), quiet=True)
    metrics = result.metrics
    assert metrics["per_edit"]["dilate"]["no_edit"]["mse"] > 1.1 * metrics["test_mse"] > 0
    assert result.history[-1]["val_mse"] < result.history[0]["val_mse"]
    assert result.test_mse == metrics["test_mse"]
    best = min(row["val_mse"] for row in result.history)
    assert metrics["val_mse"] == pytest.approx(best, rel=1e-4)  # the smallest error is kept, not the last
    model = Editor.from_pretrained(result.run_dir)
    assert model.score(digits.test) == pytest.approx(metrics["test_mse"], rel=1e-4)
    found = evaluate(result.run_dir, refit=False)
    assert found["mse"] == pytest.approx(metrics["test_mse"], rel=1e-4) and found["edits"] == ["dilate"]


def test_several_edits_in_one_model(digits: Zoo) -> None:
    torch.manual_seed(0)
    model = Editor(create_encoder(**TINY), edits=("dilate", "erode"), size=(8, 8), copies=4)
    model.fit(digits.train, digits.val, epochs=40, batch_size=16, lr=1e-2, warmup_steps=2, quiet=True)
    own, crossed = {}, {}
    for name, other in (("dilate", "erode"), ("erode", "dilate")):
        wanted = edit_targets(digits.test, [name])[0]
        own[name] = model.score(digits.test, name)
        crossed[name] = float((model.render(digits.test, other) - wanted).square().mean())
    assert own["dilate"] < 0.5 * crossed["dilate"] and own["erode"] < 0.5 * crossed["erode"], (own, crossed)


def test_resumed_training_is_the_same_to_the_bit(digits: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"edits": ["dilate", "blur"], "augment": AugmentConfig(symmetry=True)}
    straight = train(config(digits, tmp_path / "a", **changes), quiet=True)
    original = Loop._step

    def press(loop: Any, sample: Any) -> None:
        original(loop, sample)
        if loop.course.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_step", press)
    with pytest.raises(KeyboardInterrupt):
        train(config(digits, tmp_path / "b", **changes), quiet=True)
    monkeypatch.undo()
    resumed = train(config(digits, tmp_path / "b", **changes), resume=True, quiet=True)
    skipped = ("seconds", "peak_memory_mb", "val_seconds_per_network", "test_seconds_per_network")
    left, right = ({k: v for k, v in r.metrics.items() if k not in skipped} for r in (straight, resumed))
    left.pop("per_edit"), right.pop("per_edit")
    assert left == right
    a, b = (Editor.from_pretrained(r.run_dir).state_dict() for r in (straight, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_is_the_mean_square_over_pixels(digits: Zoo, tmp_path: Path) -> None:
    """Beside the plain formula, on the networks of the first step."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Watched(Editing):
        def loss(self, changed: Any, labels: Any, logits: Any) -> Any:
            found = super().loss(changed, labels, logits)
            seen.append((labels.clone(), logits.detach().clone(), found[0].detach()))
            return found

    import neural_graphs.tasks._fit as fit

    tasks = dict(fit.TASKS)
    try:
        fit.TASKS["edit"] = Watched
        train(config(digits, tmp_path / "run", epochs=1), quiet=True)
    finally:
        fit.TASKS.update(tasks)
    wanted = edit_targets(digits.train, ["dilate"])[0]
    labels, images, loss = seen[0]
    slow = sum(float((image - wanted[int(i)]).square().mean()) for i, image in zip(labels, images, strict=True))
    assert float(loss) == pytest.approx(slow, rel=1e-5)


def test_training_refuses(digits: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"augment.rotation changes what a network draws"):
        train(config(digits, out, augment=AugmentConfig(rotation=10)), quiet=True)
    with pytest.raises(UserError, match="unknown edit 'melt'"):
        train(config(digits, out / "2", edits=["melt"]), quiet=True)
    with pytest.raises(UserError, match="learns no reconstruction"):
        config(digits, out, reconstruction=0.1)
    with pytest.raises(UserError, match="copies must be at least 1"):
        config(digits, out, copies=0)
    with pytest.raises(UserError, match="at least one edit"):
        replace(config(digits, out), edits=[])
    probing = {"name": "probing", "probes": 4}
    with pytest.raises(UserError, match="edge|parameters"):
        train(config(digits, out / "3", encoder=probing), quiet=True)
