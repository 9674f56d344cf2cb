"""Vision transformers: many at once compute what each computes, the tracer reads them whole, runs follow from the seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from neural_graphs.errors import UserError
from neural_graphs.graph import ModuleArchitecture
from neural_graphs.nn import create_encoder
from neural_graphs.tasks import Regressor
from neural_graphs.zoo._bulk import Course, Hyper, Run, TrainingImages, train_chunk
from neural_graphs.zoo._transformers import (
    VITS,
    VisionTransformer,
    initial_transformer,
    transformer_runs,
    vit_architectures,
    vit_forward,
)

TINY: dict[str, Any] = {
    "channels": 2, "height": 4, "width": 6, "classes": 3, "patch": 2, "features": 6, "heads": 3, "blocks": 2, "hidden": 5,
    "activation": "relu",
}  # fmt: skip


def vit(**changes: Any) -> ModuleArchitecture:
    return ModuleArchitecture("vit", tuple({**TINY, **changes}.items()))


def random_networks(module: VisionTransformer, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(count, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("changes", [{}, {"blocks": 1, "heads": 2, "activation": "gelu"}, {"patch": 1, "blocks": 3}])
def test_many_at_once_is_each_alone(changes: dict[str, Any]) -> None:
    architecture = vit(**changes)
    module = VisionTransformer(**{**TINY, **changes}).double()
    params = random_networks(module, 3)
    x = torch.randn(4, 2, 4, 6, dtype=torch.float64)

    def loss_of_one(state: dict[str, Tensor]) -> Tensor:
        return functional_call(module, state, (x,)).sin().sum()

    each_its_own = torch.stack([x, 2 * x, -x])
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
        expected = vmap(lambda state: functional_call(module, state, (x,)))(params)
        own = vmap(lambda state, images: functional_call(module, state, (images,)))(params, each_its_own)
        slopes = vmap(grad(loss_of_one))(params)
    torch.testing.assert_close(architecture.forward(params, x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(architecture.forward(params, each_its_own), own, rtol=1e-10, atol=1e-10)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(architecture.forward(leaves, x).sin().sum(), list(leaves.values()))
    for name, slope in zip(leaves, found, strict=True):
        torch.testing.assert_close(slope, slopes[name], rtol=1e-9, atol=1e-9)


def test_dropout_has_its_places() -> None:
    module = VisionTransformer(**TINY).double()
    params, x = random_networks(module, 2), torch.randn(4, 2, 4, 6, dtype=torch.float64)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def keep(place: int, h: Tensor) -> Tensor:
        seen.append((place, tuple(h.shape)))
        return h

    whole = module.forward_many(params, x)
    torch.testing.assert_close(vit(**{}).forward(params, x, keep), whole, rtol=0, atol=0)
    # 7 tokens; of the last block the class token alone
    assert seen == [
        (1, (2, 28, 6)), (2, (2, 28, 5)), (3, (2, 28, 6)), (4, (2, 4, 6)), (5, (2, 4, 5)), (6, (2, 4, 6)),
    ]  # fmt: skip
    # All that blocks add dropped: the class token at its position is what the head reads.
    nothing = module.forward_many(params, x, lambda place, h: h * (place % 3 == 2))
    for b in range(2):
        one = {name: value[b] for name, value in params.items()}
        token = one["class_token"][0] + one["positions"][0, :1]
        normed = torch.nn.functional.layer_norm(token, (6,), one["norm.weight"], one["norm.bias"])
        expected = (normed @ one["head.weight"].T + one["head.bias"]).expand(4, -1)
        torch.testing.assert_close(nothing[b], expected)


def test_the_tracer_reads_all_of_it() -> None:
    architecture = vit()
    module = VisionTransformer(**TINY).double()
    params = random_networks(module, 2)
    module.load_state_dict({name: value[0] for name, value in params.items()})
    graph = architecture.graph(params)
    assert graph.trace is not None and not graph.trace.frozen and not graph.spec.rest
    report = graph.check(module, torch.randn(2, 2, 4, 6))
    assert report.passed and report.error < 1e-10
    # the residual stream; and per block heads, keys, values, perceptron
    assert str(graph.symmetries) == "S6" + 2 * " × S3 × S2^3 × S2^3 × S5"
    kinds = {block.kind for block in graph.spec.blocks}
    assert kinds == {"conv", "position", "query", "key", "value", "attention", "identity", "linear"}
    assert architecture.num_parameters == sum(value[0].numel() for value in params.values())
    assert architecture.input_shape == (2, 4, 6) and architecture.num_outputs == 3
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(graph.run(x), architecture.forward(params, x), rtol=1e-10, atol=1e-10)
    again = graph.to_state_dict()
    assert all(torch.equal(again[name], value) for name, value in params.items())


def test_impossible_arguments() -> None:
    for changes, message in (
        ({"patch": 4}, "patches of 4x4"),
        ({"heads": 4}, "shared out to 4 heads"),
        ({"activation": "sine"}, "unknown activation 'sine'"),
        ({"depth": 3}, "depth"),
    ):
        with pytest.raises(UserError, match=message):
            vit(**changes).module()
    with pytest.raises(UserError, match="cannot be cut"):
        vit_architectures((1, 1, 1), 10)


def test_runs_follow_from_seed_and_number() -> None:
    runs = transformer_runs(3, 40, (1, 28, 28), 10)
    assert transformer_runs(3, 10, (1, 28, 28), 10) == runs[:10]
    assert transformer_runs(4, 10, (1, 28, 28), 10) != runs[:10]
    assert len({run.architecture for run in runs}) == len(VITS)
    assert {run.hyper.optimizer for run in runs} == {"adam", "adamw", "sgd"}
    for run in runs:
        low, high = (1e-2, 0.5) if run.hyper.optimizer == "sgd" else (2e-4, 2e-2)
        assert low <= run.hyper.learning_rate <= high and 0 <= run.hyper.dropout < 1


@pytest.mark.parametrize(
    ("shape", "patches"),
    [((1, 28, 28), {7, 4}), ((3, 32, 32), {8, 4}), ((1, 16, 16), {4, 2}), ((1, 8, 8), {2, 1})],
)
def test_architectures_fit_the_bundled_images(shape: tuple[int, int, int], patches: set[int]) -> None:
    architectures = vit_architectures(shape, 10)
    assert {dict(architecture.arguments)["patch"] for architecture in architectures} == patches
    for architecture in architectures:
        assert architecture.module()(torch.zeros(2, *shape)).shape == (2, 10)


def run_of(number: int, **changes: Any) -> Run:
    settings: dict[str, Any] = {"optimizer": "adam", "learning_rate": 1e-2, "init": "glorot"} | changes
    return Run(number, vit(), Hyper(**settings))


def test_initial_weights() -> None:
    first = initial_transformer(run_of(5), seed=1)
    again = initial_transformer(run_of(5, learning_rate=2e-2), seed=1)
    assert list(first) == list(vit().parameter_shapes())
    for name, value in first.items():
        assert value.dtype == torch.float32 and tuple(value.shape) == vit().parameter_shapes()[name]
        assert torch.equal(value, again[name])
    qkv = "blocks.0.qkv.weight"
    assert not torch.equal(first[qkv], initial_transformer(run_of(6), seed=1)[qkv])
    assert not torch.equal(first[qkv], initial_transformer(run_of(5), seed=2)[qkv])
    doubled = initial_transformer(run_of(5, init_scale=2.0), seed=1)
    torch.testing.assert_close(doubled[qkv], 2 * first[qkv])
    assert torch.equal(doubled["positions"], first["positions"])
    ratio = initial_transformer(run_of(5, init="he"), seed=1)[qkv] / first[qkv]
    torch.testing.assert_close(ratio, torch.full_like(ratio, ((18 + 6) / 6) ** 0.5))
    assert bool((first["norm.weight"] == 1).all()) and not bool(first["blocks.1.norm2.bias"].any())
    with pytest.raises(UserError, match="unknown initialisation 'zeros'"):
        initial_transformer(run_of(5, init="zeros"), seed=1)


def test_bulk_training() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (96,), generator=generator)
    pictures = torch.randn(96, 2, 4, 6, generator=generator) * 0.3 + labels.view(-1, 1, 1, 1)
    images = TrainingImages(pictures, labels, pictures[:48], labels[:48])
    runs = [run_of(0), run_of(1, dropout=0.5), run_of(2)]
    course = Course(epochs=3, checkpoints=(3,), batch_size=16)

    def train(chosen: list[Run]) -> dict[str, np.ndarray]:
        start = [initial_transformer(run, 0) for run in chosen]
        stacked = {name: torch.stack([one[name] for one in start]) for name in start[0]}
        (checkpoint,) = train_chunk(chosen, stacked, images, course)
        return checkpoint.columns

    together = train(runs)
    assert together["test_accuracy"].min() > 0.6
    alone = train(runs[1:2])
    np.testing.assert_allclose(together["test_loss"][1], alone["test_loss"][0], rtol=1e-3)
    without = train([run_of(1)])
    assert abs(without["test_loss"][0] / alone["test_loss"][0] - 1) > 0.02


def test_one_block_is_found_whatever_the_number() -> None:
    module = VisionTransformer(**{**TINY, "blocks": 12}).double()
    params, x = random_networks(module, 1), torch.randn(2, 2, 4, 6, dtype=torch.float64)
    module.load_state_dict({name: value[0] for name, value in params.items()})
    torch.testing.assert_close(vit_forward(params, x, heads=3, activation="relu")[0], module(x))


def test_a_model_of_transformers_loads_where_no_zoo_was_opened(tmp_path: Path) -> None:
    model = Regressor(create_encoder("statnn", width=4), architectures=[vit()])
    model.save(tmp_path / "model")
    code = "import sys, neural_graphs as ng; print(*ng.Regressor.from_pretrained(sys.argv[1]).architectures)"
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True)
    assert found.stdout.strip() == str(vit()), found.stderr
