"""Errors under a group, on networks whose groups are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.bench._randomise import randomise, settle
from neural_graphs.bench._symmetry_error import Network, cast, negative_control, permutation_error, rescaling_errors
from neural_graphs.graph import Axis, PermutationSpec
from neural_graphs.graph._rescaling import Rescaling, Term


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))).eval()


def group(*rescalings: Rescaling, out: str | None = None) -> PermutationSpec:
    hidden, inputs, outputs = Axis.of("h", 6), Axis.fixed(3), Axis.of(out, 2)
    axes = {"0.weight": (hidden, inputs), "0.bias": (hidden,), "2.weight": (outputs, hidden), "2.bias": (outputs,)}
    return PermutationSpec(tuple(axes.items()), rescalings=rescalings)


def test_a_right_group_changes_nothing() -> None:
    network = cast(mlp(), torch.randn(5, 3), torch.float64)
    assert permutation_error(network, group(), samples=3) < 1e-14
    control = negative_control(network, group())
    assert control.error > 1e-3 and control.tensor in network.state and control.tried == 3 and control.inert == ()
    assert rescaling_errors(network, group(), samples=1) == {}


def test_single_precision_shows() -> None:
    network = cast(mlp(), torch.randn(5, 3), torch.float32)
    assert 1e-9 < permutation_error(network, group(), samples=3) < 1e-5


def test_a_wrong_group_is_seen() -> None:
    network = cast(mlp(), torch.randn(5, 3), torch.float64)
    assert permutation_error(network, group(out="o"), samples=4) > 1e-2


def test_scale_of_relu_units() -> None:
    terms = (Term("0.weight", 0, 1.0), Term("0.bias", 0, 1.0), Term("2.weight", 1, -1.0))
    network = cast(mlp(), torch.randn(5, 3), torch.float64)
    assert rescaling_errors(network, group(Rescaling("scale", "h", terms)), samples=2)["scale"] < 1e-13
    assert rescaling_errors(network, group(Rescaling("scale", "h", terms[:2])), samples=2)["scale"] > 1e-2


def test_nan_is_an_infinite_change() -> None:
    network = cast(mlp(), torch.randn(5, 3), torch.float64)
    state = {**network.state, "2.bias": torch.full((2,), float("nan"), dtype=torch.float64)}
    assert network.change(state) == float("inf")


def test_tensors_without_effect_are_no_control() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(4, affine=True)  # takes out the mean of every channel, and with it the bias before
    module = randomise(nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.ReLU(), nn.Conv1d(4, 1, 1))).eval()
    c, one = Axis.of("c", 4), Axis.fixed(1)
    axes = {
        **{"0.weight": (c, Axis.fixed(2), Axis.fixed(3)), "0.bias": (c,), "1.weight": (c,), "1.bias": (c,)},
        **{"3.weight": (one, c, one), "3.bias": (one,)},
    }
    spec = PermutationSpec(tuple(axes.items()))
    network = cast(module, torch.randn(2, 2, 9), torch.float64)
    assert permutation_error(network, spec, samples=2) < 1e-13
    control = negative_control(network, spec)
    assert control.inert == ("0.bias",) and control.tried == 5 and control.error > 1e-3
    assert negative_control(network, spec, tensors=2).tried == 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(x).tanh()
        return {"logits": self.head(hidden), "chosen": self.head(hidden).argmax(-1)}


def test_tied_weights_keyword_arguments_and_dictionaries() -> None:
    network = cast(Tied(), {"x": torch.tensor([[0, 3, 2]])}, torch.float64)
    axes = (Axis.fixed(5), Axis.of("d", 4))
    spec = PermutationSpec((("embed.weight", axes), ("head.weight", axes)))
    assert list(network.state) == ["embed.weight"] and len(network.output) == 1
    assert permutation_error(network, spec, samples=2) < 1e-14


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
    network = Network(module, images)
    assert not module.training and 0.1 < float(network.output[0].std()) < 10
    assert not any(norm._forward_pre_hooks for norm in module)


def test_networks_of_the_table_are_the_same_every_time() -> None:
    from neural_graphs.bench._trace_nets import SMALL

    for name in ("resnet-batchnorm", "llama-like", "decoder"):
        (one, first), (two, second) = SMALL[name](), SMALL[name]()
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
        assert all(map(torch.equal, first, second)) if isinstance(first, tuple) else torch.equal(first, second)


@pytest.mark.parametrize("part", range(4))
def test_small_networks_depend_on_their_weights(part: int) -> None:
    """Rolled by one place, all weights but those without effect change the output: the table would show an error."""
    from neural_graphs.bench._trace_nets import SMALL

    unseen = {"down.bias", "shortcut.bias", "0.bias", "tokens.2.bias"}  # before a normalisation, or one value alone
    for name in list(SMALL)[part::4]:
        network = cast(*SMALL[name](), torch.float64)
        assert all(bool(out.isfinite().all()) and float(out.std()) > 1e-2 for out in network.output), name
        for key, value in network.state.items():
            rolled = value.roll(1, 0 if value.shape[:1] != (1,) else -1) if value.dim() else value
            if value.is_floating_point() and not torch.equal(rolled, value) and key not in unseen:
                assert network.change({**network.state, key: rolled}) > 1e-6, f"{name}: {key}"
