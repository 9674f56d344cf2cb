"""Networks of the table of architectures, and their random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from neural_graphs.bench._randomise import call, randomise, settle
from neural_graphs.bench._trace_nets import SMALL


def test_random_weights_leave_nothing_at_its_start() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LayerNorm(64))

    module = build()
    with torch.no_grad():
        module[0].weight.zero_()
    first, second = randomise(module, seed=3).state_dict(), randomise(build(), seed=3).state_dict()
    assert torch.equal(first["1.weight"], second["1.weight"]) and len(first["2.weight"].unique()) > 60
    assert first["0.weight"].square().mean().sqrt() > 0.3 / 8
    assert 0.5 <= first["1.running_var"].min() < 0.6 and first["1.running_var"].max() <= 1.5
    assert first["1.running_mean"].abs().max() > 0.1


def test_signals_keep_their_size_through_many_layers() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(30) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    module, images = randomise(nn.Sequential(*layers)), torch.randn(2, 3, 8, 8).repeat(1, 3, 1, 1)[:, :8]
    settle(module, images)
    assert not module.training and 0.1 < float(module(images).detach().std()) < 10
    assert not any(norm._forward_pre_hooks for norm in module)


def test_networks_of_the_table_are_the_same_every_time() -> None:
    for name in ("resnet-batchnorm", "llama-like", "decoder"):
        (one, first), (two, second) = SMALL[name](), SMALL[name]()
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
        assert all(map(torch.equal, first, second)) if isinstance(first, tuple) else torch.equal(first, second)


@pytest.mark.parametrize("part", range(4))
def test_small_networks_depend_on_their_weights(part: int) -> None:
    """Rolled by one place, all weights but those without effect change the output: the table would show an error."""
    unseen = {"down.bias", "shortcut.bias", "0.bias", "tokens.2.bias"}  # before a normalisation, or one value alone
    for name in list(SMALL)[part::4]:
        module, example = SMALL[name]()
        with torch.no_grad():
            output = call(module, example)
            assert output.isfinite().all() and output.std() > 1e-2, name
            for key, value in (*module.named_parameters(), *module.named_buffers()):
                rolled = value.roll(1, 0 if value.shape[:1] != (1,) else -1) if value.dim() else value
                if value.is_floating_point() and not torch.equal(rolled, value) and key not in unseen:
                    args = example if isinstance(example, tuple) else (example,)
                    change = (functional_call(module, {key: rolled}, args) - output).abs().max()
                    assert change > 1e-4 * output.abs().max(), f"{name}: {key}"
