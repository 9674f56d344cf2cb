"""Scale, sign and phase found on recorded networks: which terms, and that the network itself agrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from neural_graphs.bench._randomise import randomise
from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.graph import PermutationSpec
from neural_graphs.graph._capture import capture
from neural_graphs.graph._propagate import propagate
from neural_graphs.graph._rescale import find_rescalings
from neural_graphs.graph._rescale._system import System
from neural_graphs.graph._rescaling import Rescaling, Term
from neural_graphs.testing import random_module

D = torch.float64


def found(module: nn.Module, x: Any) -> PermutationSpec:
    captured = capture(module.double().eval(), x)
    propagation = propagate(captured)
    return replace(propagation.spec, rescalings=find_rescalings(captured, propagation))


def words(spec: PermutationSpec) -> list[str]:
    return [f"{r.kind} {r.symmetry}: {' '.join(map(term_words, r.terms))}" for r in spec.rescalings]


def term_words(term: Term) -> str:
    extra = (f"(+{term.offset:g})" if term.offset else "") + (f"{{{term.shift:.6f}}}" if term.shift else "")
    return f"{term}@{term.axis}{term.exponent:+g}{extra}"


def outputs(module: nn.Module, x: Any, state: dict[str, Tensor]) -> Tensor:
    """All outputs as one vector. Buffers are copies each time, since some modules write to them."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    own = {name: state.get(name, value).detach().clone() for name, value in own.items()}
    with torch.no_grad():
        leaves = tree_leaves(functional_call(module, own, x if isinstance(x, tuple) else (x,)))
    return torch.cat([value.flatten() for value in leaves if isinstance(value, Tensor) and value.is_floating_point()])


def error(module: nn.Module, x: Any, spec: PermutationSpec, rescaling: Rescaling, seed: int = 0) -> float:
    """The relative change of the output under this rescaling alone, scales up to 1000."""
    state = module.state_dict()
    alone = replace(spec, rescalings=(rescaling,))
    moved = alone.apply(state, alone.sample(seed, kinds=("scale", "sign", "phase"), spread=1e3))
    before, after = outputs(module, x, state), outputs(module, x, moved)
    return float((after - before).abs().max() / before.abs().max())


def agree(module: nn.Module, x: Any, expected: list[str] | None = None, inert: tuple[str, ...] = ()) -> PermutationSpec:
    """The claims are the expected ones, each of them holds, and none of them holds any more without one of its terms
    (but for tensors that make no difference at all)."""
    randomise(module, 0)
    spec = found(module, x)
    if expected is not None:
        assert words(spec) == expected
    for rescaling in spec.rescalings:
        assert error(module, x, spec, rescaling) < 1e-10, rescaling
        for k, term in enumerate(rescaling.terms if len(rescaling.terms) > 1 else ()):
            others = replace(rescaling, terms=rescaling.terms[:k] + rescaling.terms[k + 1 :])
            assert term.parameter in inert or max(error(module, x, spec, others, seed) for seed in (0, 1)) > 1e-7, term
    return spec


def vectors(width: int = 4) -> Tensor:
    return torch.randn(3, width, dtype=D, generator=torch.Generator().manual_seed(1))


def images(channels: int = 2, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size, dtype=D, generator=torch.Generator().manual_seed(1))


def tokens(width: int = 5) -> Tensor:
    return torch.randn(2, 6, width, dtype=D, generator=torch.Generator().manual_seed(1))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2))


def both(kind: str) -> list[str]:
    minus = "-1" if kind == "scale" else "+1"
    return [
        f"{kind} P0: 0.weight@0+1 0.bias@0+1 2.weight@1{minus}",
        f"{kind} P1: 2.weight@0+1 2.bias@0+1 4.weight@1{minus}",
    ]


class Lambda(nn.Module):
    """Parameters by name, and what is done with them."""

    def __init__(self, compute: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.randn(part)))

    def forward(self, *x: Tensor) -> Any:
        return self.compute(self, *x)


POINTWISE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, "scale"),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), "scale"),
    "clamp from zero": (lambda x: x.clamp(min=0), "scale"),
    "relu by comparison": (lambda x: x * (x > 0), "scale"),
    "relu by where": (lambda x: torch.where(x > 0, x, 0.3 * x), "scale"),
    "relu by a mask": (lambda x: x.masked_fill(x < 0, 0), "scale"),
    "maximum of homogeneous": (lambda x: torch.maximum(x, 0.5 * x), "scale"),
    "threshold": (lambda x: F.threshold(x, 0.0, 0.0), "scale"),
    "tanh": (torch.tanh, "sign"),
    "erf": (torch.erf, "sign"),
    "arctan": (torch.atan, "sign"),
    "asinh": (torch.asinh, "sign"),
    "sinh": (lambda x: torch.sinh(x / 4), "sign"),
    "hardtanh": (F.hardtanh, "sign"),
    "clamp about zero": (lambda x: x.clamp(-0.7, 0.7), "sign"),
    "softsign": (F.softsign, "sign"),
    "tanhshrink": (F.tanhshrink, "sign"),
    "softshrink": (lambda x: F.softshrink(x, 0.1), "sign"),
    "odd of even": (lambda x: x * torch.cosh(x / 3), "sign"),
    "sign and size": (lambda x: torch.sign(x) * x.abs().add(1).log(), "sign"),
    "gelu": (F.gelu, ""),
    "silu": (F.silu, ""),
    "sigmoid": (torch.sigmoid, ""),
    "elu": (F.elu, ""),
    "softplus": (F.softplus, ""),
    "relu6": (F.relu6, ""),
    "hardswish": (F.hardswish, ""),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), ""),
    "shifted relu": (lambda x: F.relu(x + 0.1), ""),
    "exp": (lambda x: (x / 4).exp(), ""),
    "rounded down": (torch.floor, ""),
    "integers": (lambda x: x.long().double(), ""),
    "threshold elsewhere": (lambda x: F.threshold(x, 0.1, 0.0), ""),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_units(name: str) -> None:
    activation, kind = POINTWISE[name]
    agree(mlp(Lambda(lambda own, x: activation(x))), vectors(), both(kind) if kind else [])


def test_powers_of_the_scale() -> None:
    """What a unit does with the scale is told by exponents, which may be fractions."""
    relu_squared = Lambda(lambda own, x: F.relu(x) ** 2)
    agree(
        nn.Sequential(nn.Linear(4, 6), relu_squared, nn.Linear(6, 2)),
        vectors(),
        ["scale P0: 0.weight@0+1 0.bias@0+1 2.weight@1-2"],
    )
    root = Lambda(lambda own, x: F.relu(x).sqrt())
    agree(
        nn.Sequential(nn.Linear(4, 6), root, nn.Linear(6, 2)),
        vectors(),
        ["scale P0: 0.weight@0+1 0.bias@0+1 2.weight@1-0.5"],
    )
    squared = Lambda(lambda own, x: x.square())
    agree(
        nn.Sequential(nn.Linear(4, 6), squared, nn.Linear(6, 2)),
        vectors(),
        ["scale P0: 0.weight@0+1 0.bias@0+1 2.weight@1-2", "sign P0: 0.weight@0+1 0.bias@0+1"],
    )


class Siren(nn.Module):
    def __init__(self, first: float, second: float, function: Callable[[Tensor], Tensor] = torch.sin) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 6), nn.Linear(6, 5), nn.Linear(5, 1)
        self.first, self.second, self.function = first, second, function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.b(self.function(self.first * self.a(x))) / self.second))


def test_sine_units_have_sign_and_phase() -> None:
    pi30, pi10 = f"{math.pi / 30:.6f}", f"{math.pi * 10:.6f}"
    agree(
        Siren(30.0, 10.0),
        vectors(2) / 10,
        [
            f"phase P0: a.bias@0+0{{{pi30}}} b.weight@1+1",
            "sign P0: a.weight@0+1 a.bias@0+1 b.weight@1+1",
            f"phase P1: b.bias@0+0{{{pi10}}} c.weight@1+1",
            "sign P1: b.weight@0+1 b.bias@0+1 c.weight@1+1",
        ],
    )
    agree(
        Siren(30.0, 10.0, torch.cos),
        vectors(2) / 10,
        [
            f"phase P0: a.bias@0+0{{{pi30}}} b.weight@1+1",
            "sign P0: a.weight@0+1 a.bias@0+1",
            f"phase P1: b.bias@0+0{{{pi10}}} c.weight@1+1",
            "sign P1: b.weight@0+1 b.bias@0+1",
        ],
    )


def test_phases_of_other_makes() -> None:
    """Convolutions, biases added on their own, views between; and what must not be claimed."""
    spec = agree(
        Lambda(
            lambda own, x: own.c(torch.sin(-3.0 * (x @ own.a + own.shift).unflatten(-1, (2, 3))).flatten(1)),
            **{"a": (4, 6), "shift": (6,), "c": nn.Linear(6, 2)},
        ),
        vectors(),
    )
    assert [r.kind for r in spec.rescalings] == ["phase", "sign"] * (len(spec.rescalings) // 2) != []
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3), Lambda(lambda own, x: torch.sin(x * 5)), nn.Conv2d(4, 1, 1))
    assert [r.kind for r in agree(convolution, images()).rescalings] == ["phase", "sign"]
    read_twice = Lambda(
        lambda own, x: own.b(torch.sin(own.a(x)) + torch.tanh(own.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    assert [r.kind for r in agree(read_twice, vectors()).rescalings] == ["sign"]
    doubled = Lambda(
        lambda own, x: own.b(torch.sin(own.bias + own.bias) * own.a(x)), a=nn.Linear(4, 6), bias=(6,), b=nn.Linear(6, 2)
    )
    assert "phase" not in [r.kind for r in agree(doubled, vectors()).rescalings]


def test_nothing_at_the_ends() -> None:
    """Inputs and outputs keep their scale."""
    agree(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), vectors(), [])


# -- convolutions -----------------------------------------------------------------------------------------------------------


def test_batch_norm_takes_the_scale_away() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    agree(
        net,
        images(),
        [
            "scale P0: 0.weight@0+1 0.bias@0+1 1.running_mean@0+1 1.running_var@0+2(+0.1)",
            "scale P0: 1.weight@0+1 1.bias@0+1 3.weight@1-1",
            "sign P0: 0.weight@0+1 0.bias@0+1 1.weight@0+1 1.running_mean@0+1",
        ],
    )


def test_statistics_used_in_two_ways_stay() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.norm(self.a(x)) + self.a(x) / self.norm.running_var))

    assert not any("running_var" in line for line in words(agree(Reused(), vectors())))


def test_maps() -> None:
    """Pooling, interpolation, padding and flattening hand the scale on; signs do not pass a maximum."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2)),
        *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(36, 3)),
    )
    agree(net, images(), ["scale P0: 0.weight@0+1 0.bias@0+1 7.weight@1-1"])
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1))
    agree(net, images(), ["sign P0: 0.weight@0+1 0.bias@0+1 3.weight@1+1"])
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    agree(net, images(), [])
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConstantPad2d(1, 0.5), nn.ReLU(), nn.Conv2d(4, 2, 1))
    agree(net, images(), [])


def test_depthwise_and_grouped() -> None:
    depthwise = nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    agree(
        depthwise,
        images(),
        [
            "scale P0: 0.weight@0+1 0.bias@0+1 2.bias@0+1 4.weight@1-1",
            "scale P0: 2.weight@0+1 2.bias@0+1 4.weight@1-1",
        ],
    )
    grouped = nn.Sequential(
        *(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    spec = agree(grouped, images())
    assert len(spec.rescalings) == 2 and all(spec.shapes[r.symmetry][0] == 2 for r in spec.rescalings)
    transposed = nn.Sequential(
        *(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    assert len(agree(transposed, images()).rescalings) == 2


def test_unet_and_residual_stream() -> None:
    module, x = SMALL["unet"]()
    spec = agree(module, x.double())
    assert sum(r.kind == "scale" for r in spec.rescalings) == 5
    stream = Lambda(
        lambda own, x: own.out((h := own.enter(x)) + own.back(F.relu(own.there(h)))),
        **{"enter": nn.Linear(4, 6), "there": nn.Linear(6, 5), "back": nn.Linear(5, 6), "out": nn.Linear(6, 2)},
    )
    spec = agree(stream, vectors())
    (plain,) = {r.symmetry for r in spec.rescalings if r.kind == "sign"}
    assert sorted(t.parameter for r in spec.rescalings if r.kind == "sign" for t in r.terms) == [
        *("back.bias", "back.weight", "enter.bias", "enter.weight", "out.weight", "there.weight")
    ]
    assert plain == "P0"
    nonlinear = Lambda(
        lambda own, x: own.out(F.gelu(h := own.enter(x)) + h), enter=nn.Linear(4, 6), out=nn.Linear(6, 2)
    )
    agree(nonlinear, vectors(), [])


# -- attention and normalisation --------------------------------------------------------------------------------------------


def test_gates() -> None:
    for gate in (F.silu, torch.sigmoid, F.gelu):
        net = Lambda(
            lambda own, x, gate=gate: own.down(gate(own.gate(x)) * own.up(x)),
            **{"gate": nn.Linear(4, 6), "up": nn.Linear(4, 6), "down": nn.Linear(6, 2)},
        )
        agree(
            net,
            vectors(),
            [
                "scale P0: up.weight@0+1 up.bias@0+1 down.weight@1-1",
                "sign P0: up.weight@0+1 up.bias@0+1 down.weight@1+1",
            ],
        )
    agree(
        nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 2)),
        vectors(),
        [
            "scale P0: 0.weight[0]@0+1 0.bias[0]@0+1 2.weight@1-1",
            "sign P0: 0.weight[0]@0+1 0.bias[0]@0+1 2.weight@1+1",
        ],
    )


class Attention(nn.Module):
    def __init__(self, packed: bool, fused: bool) -> None:
        super().__init__()
        self.packed, self.fused = packed, fused
        if packed:
            self.qkv = nn.Linear(5, 24)
        else:
            self.q, self.k, self.v = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if self.packed else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        fused = F.scaled_dot_product_attention
        mixed = fused(q, k, v) if self.fused else (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_attention(packed: bool, fused: bool) -> None:
    """Per head and inner dimension, queries against keys and values against the output projection; that includes the
    heads as wholes, which are not told again."""
    spec = agree(Attention(packed, fused), tokens(), inert=("k.bias", "qkv.bias"))
    if packed:
        expected = [
            "scale P1: qkv.weight[0]@0+1 qkv.weight[1]@0-1 qkv.bias[0]@0+1 qkv.bias[1]@0-1",
            "sign P1: qkv.weight@0+1 qkv.bias@0+1",
            "scale P2: qkv.weight@0+1 qkv.bias@0+1 out.weight@1-1",
            "sign P2: qkv.weight@0+1 qkv.bias@0+1 out.weight@1+1",
        ]
    else:
        expected = [
            "scale P1: q.weight@0+1 q.bias@0+1 k.weight@0-1 k.bias@0-1",
            "sign P1: q.weight@0+1 q.bias@0+1 k.weight@0+1 k.bias@0+1",
            "scale P2: v.weight@0+1 v.bias@0+1 out.weight@1-1",
            "sign P2: v.weight@0+1 v.bias@0+1 out.weight@1+1",
        ]
    assert words(spec) == expected
    assert spec.shapes["P1"] == spec.shapes["P2"] == (2, 4)


def test_norms() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    agree(
        net,
        vectors(),
        ["scale P0: 1.weight@0+1 1.bias@0+1 2.weight@1-1", "sign P0: 1.weight@0+1 1.bias@0+1 2.weight@1+1"],
    )
    net = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2))
    agree(
        net,
        vectors(),
        [
            "scale P0: 1.weight@0+1 2.weight@1-1",
            "sign P0: 0.weight@0+1 0.bias@0+1 2.weight@1+1",
            "sign P0: 1.weight@0+1 2.weight@1+1",
        ],
    )
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    agree(
        net,
        images(),
        ["scale P0: 1.weight@0+1 1.bias@0+1 3.weight@1-1", "sign P0: 0.weight@0+1 0.bias@0+1 1.weight@0+1"],
        inert=("0.bias",),
    )
    written_out = Lambda(
        lambda own, x: own.b((h := own.a(x)) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * own.weight),
        **{"a": nn.Linear(4, 6), "weight": (6,), "b": nn.Linear(6, 2)},
    )
    assert sorted(r.kind for r in agree(written_out, vectors()).rescalings) == ["scale", "sign", "sign"]
    weight_norm = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    spec = agree(weight_norm, vectors())
    assert [r.kind for r in spec.rescalings] == ["scale", "scale", "sign"]


def test_llama_like_residual_signs() -> None:
    """RMSNorm sees no signs, so that every channel of the whole residual stream may change its own."""
    module, x = SMALL["llama-like"]()
    spec = agree(module, x)
    stream = max((r for r in spec.rescalings if r.kind == "sign"), key=lambda r: len(r.terms))
    assert len(stream.terms) >= 7 and not any(r.kind == "scale" and r.terms == stream.terms for r in spec.rescalings)


# -- shared and recurrent ---------------------------------------------------------------------------------------------------


def test_tied_weights() -> None:
    module, x = SMALL["autoencoder-tied"]()
    agree(
        module,
        x.double(),
        [
            "sign P0: bias1@0+1 first.weight@0+1 first.bias@0+1 second.weight@1+1",
            "sign P1: second.weight@0+1 second.bias@0+1",
        ],
    )
    module, x = SMALL["shared-layer"]()
    agree(
        module,
        x.double(),
        ["sign P0: enter.weight@0+1 enter.bias@0+1 layer.weight@0+1 layer.weight@1+1 layer.bias@0+1 out.weight@1+1"],
    )


def test_aliases_change_with_their_tensor() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    module.extra = module[0].weight  # type: ignore[assignment]
    spec = found(module, vectors())
    assert {t.parameter for t in spec.rescalings[0].terms} >= {"extra", "0.weight"}
    state = module.state_dict()
    moved = spec.apply(state, spec.sample(0, kinds=("sign",)))
    assert torch.equal(moved["extra"], moved["0.weight"]) and not torch.equal(moved["extra"], state["extra"])


@pytest.mark.parametrize("name", ["rnn", "gru", "gru-2-layers", "lstm-2-layers", "lstm-bidirectional"])
def test_recurrent_units_have_signs(name: str) -> None:
    module, x = SMALL[name]()
    spec = agree(module, x)
    assert [r.kind for r in spec.rescalings] == ["sign"] * len(spec.classes)


def test_recurrent_units_with_relu_have_scales() -> None:
    module = nn.Sequential(
        nn.RNN(5, 6, nonlinearity="relu", batch_first=True), Lambda(lambda own, x: x[0]), nn.Linear(6, 2)
    )
    agree(
        module,
        tokens(),
        [
            "scale P0: 0.weight_ih_l0@0+1 0.weight_hh_l0@0+1 0.weight_hh_l0@1-1 0.bias_ih_l0@0+1 0.bias_hh_l0@0+1 "
            "2.weight@1-1"
        ],
    )


def test_a_given_state_keeps_its_sign() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor, start: Tensor) -> Tensor:
            return self.out(self.cell(x, start)[0])

    agree(Given(), (tokens(), torch.ones(1, 2, 6, dtype=D)), [])


# -- equations --------------------------------------------------------------------------------------------------------------

EQUATIONS = st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), max_size=6)


@given(rows=EQUATIONS, signs=st.booleans())
def test_solutions_are_all_there_are(rows: list[list[int]], signs: bool) -> None:
    system = System(signs)
    unknowns = [system.unknown() for _ in range(5)]
    new = [system.require(dict(zip(unknowns, row, strict=True))) for row in rows]
    solutions = system.solutions(5)
    vectors = [[solution.get(unknown, 0) for unknown in unknowns] for solution in solutions]
    assert len(vectors) == 5 - sum(new)
    for vector in vectors:
        for row in rows:
            total = sum(a * x for a, x in zip(row, vector, strict=True))
            assert (total % 2 if signs else total) == 0
    if signs:  # count them all
        holds = [
            bits
            for bits in product((0, 1), repeat=5)
            if all(sum(a * x for a, x in zip(row, bits, strict=True)) % 2 == 0 for row in rows)
        ]
        assert len(holds) == 2 ** len(vectors)
    elif rows:
        rank = int(torch.linalg.matrix_rank(torch.tensor(rows, dtype=D)))
        assert len(vectors) == 5 - rank


def test_told_by_the_earliest_unknowns() -> None:
    system = System(signs=False)
    a, b, c = (system.unknown() for _ in range(3))
    system.require({a: 1, b: -1})
    system.require({b: 2, c: 1})
    assert system.solutions(3) == [{a: 1, b: 1, c: -2}]
    assert system.combine([(a, 2), (c, 1)]) == system.combine([(c, 1), (a, 2)])
    assert system.combine([(a, 1), (b, 0)]) == a and system.combine([]) == 0


# -- everything -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_small_nets(name: str) -> None:
    module, x = SMALL[name]()
    module = module.double()
    x = tuple(v.double() if v.is_floating_point() else v for v in (x if isinstance(x, tuple) else (x,)))
    spec = found(module, x)
    for rescaling in spec.rescalings:
        assert error(module, x, spec, rescaling) < 1e-10, rescaling


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6))
def test_any_module_keeps_its_function(seed: int) -> None:
    module, x = random_module(seed)
    spec = found(module, x)
    for kind in ("scale", "sign", "phase"):
        state = module.state_dict()
        moved = spec.apply(state, spec.sample(seed, kinds=(kind,)))
        before, after = outputs(module, x, state), outputs(module, x, moved)
        assert (after - before).abs().max() <= 1e-8 * before.abs().max(), kind
