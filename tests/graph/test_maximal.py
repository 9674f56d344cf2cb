"""The group found is not merely valid but the whole one: brute force on tiny networks, declared swaps on larger ones.

Brute force: on networks of a few weights, all ways to permute every axis of every tensor by an involution (itself and swaps)
are tried; those which leave the function alone must be in the group found. That needs no idea of what the group should be.
Declared swaps: on layers with too many axes for that, hand-written sets of places that belong to one unit; whichever swap of
two units leaves the function alone must be in the group found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from neural_graphs.graph import PermutationSpec
from neural_graphs.graph._trace import trace_module

State = dict[str, Tensor]
Code = tuple[tuple[float, ...], ...]


class Net(nn.Module):
    """Parameters (by shape) and layers with a forward function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.zeros(part)) if isinstance(part, tuple) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def prepared(module: nn.Module) -> nn.Module:
    """In double precision, with random weights of a size that every layer feels."""
    generator = torch.Generator().manual_seed(1)
    module = module.double().eval()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


# -- what is in the group ----------------------------------------------------------------------------------------------


def numbered(state: State) -> State:
    return {name: torch.arange(value.numel(), dtype=torch.float64).view(value.shape) for name, value in state.items()}


def code(state: State) -> Code:
    return tuple(tuple(value.flatten().tolist()) for value in state.values())


def elements(spec: PermutationSpec) -> Iterator[dict[str, Tensor]]:
    """Every element of a small group."""
    options = []
    for *outer, size in spec.shapes.values():
        one = list(itertools.permutations(range(size)))
        options.append(list(itertools.product(one, repeat=math.prod(outer))))
    for choice in itertools.product(*options):
        yield {
            name: torch.tensor(drawn).view(shape)
            for drawn, (name, shape) in zip(choice, spec.shapes.items(), strict=True)
        }


def swaps(spec: PermutationSpec) -> Iterator[dict[str, Tensor]]:
    """Every element that swaps two neurons of one class, at one index of those that it depends on."""
    for name, shape in spec.shapes.items():
        for outer in range(math.prod(shape[:-1])):
            for i, j in itertools.combinations(range(shape[-1]), 2):
                element = spec.identity()
                rows = element[name].view(-1, shape[-1])
                rows[outer, i], rows[outer, j] = j, i
                yield element


# -- brute force -------------------------------------------------------------------------------------------------------


def involutions(size: int) -> list[tuple[int, ...]]:
    return [p for p in itertools.permutations(range(size)) if all(p[p[i]] == i for i in range(size))]


def preserved(module: nn.Module, state: State, x: Tensor) -> set[Code]:
    """The codes of all permutations of axes by involutions that leave the function alone."""
    axes = [(name, dim) for name, value in state.items() for dim in range(value.dim()) if value.shape[dim] > 1]
    options = [torch.tensor(involutions(state[name].shape[dim])) for name, dim in axes]
    count = math.prod(map(len, options))
    assert count <= 40_000, f"{count} ways are too many"
    numbers = numbered(state)
    reference = module(x)

    def moved(values: State, choice: list[Tensor]) -> State:
        found = dict(values)
        for (name, dim), index in zip(axes, choice, strict=True):
            found[name] = found[name].index_select(dim, index)
        return found

    def run(choice: list[Tensor]) -> Tensor:
        found = functional_call(module, moved(state, choice), (x,))
        return (found - reference).abs().max() / reference.abs().max()

    found = set()
    ways = torch.cartesian_prod(*[torch.arange(len(o)) for o in options]).view(count, len(options))
    for part in ways.split(8192):
        choices = [option[part[:, k]] for k, option in enumerate(options)]
        with torch.no_grad():
            errors = vmap(run)(choices)
        for row in (errors < 1e-10).nonzero().flatten().tolist():
            found.add(code(moved(numbers, [choice[row] for choice in choices])))
    return found


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(own: Any, x: Tensor, heads: int) -> Tensor:
    q, k, v = (_heads(layer(x), heads) for layer in (own.q, own.k, own.v))
    scores = (3 * q @ k.transpose(-1, -2)).softmax(-1)
    return own.o((scores @ v).transpose(1, 2).flatten(2))


def _packed(own: Any, x: Tensor) -> Tensor:
    q, k, v = own.qkv(x).unflatten(-1, (3, 2, 1)).permute(2, 0, 3, 1, 4).unbind(0)
    return own.o(((3 * q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def _experts(own: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("bi,eih->beh", x, own.first).tanh()
    return torch.einsum("beh,eho,be->bo", hidden, own.second, own.gate(x).softmax(-1))


def _attention(heads: int, inner: int) -> Net:
    width = heads * inner
    return Net(
        lambda own, x: _attend(own, x, heads),
        **{name: linear(1, width) for name in "qkv"},
        o=linear(width, 1),
    )


def _two(own: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return own.a(x).tanh(), own.b(x).sigmoid()


def _shuffled(own: Any, x: Tensor) -> Tensor:
    return own.o(torch.cat(_two(own, x), -1).unflatten(-1, (2, 2)).transpose(1, 2).flatten(1))


VECTORS, WIDE, SEQUENCES = random(5, 2), random(5, 1), random(3, 4, 1)

TINY: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (nn.Sequential(linear(2, 3, True), nn.GELU(), linear(3, 1, True)), VECTORS),
    "mlp-deep": lambda: (
        nn.Sequential(linear(1, 3, True), nn.Tanh(), linear(3, 2, True), nn.GELU(), linear(2, 1)),
        WIDE,
    ),
    "mlp-softmax": lambda: (nn.Sequential(linear(2, 3, True), nn.Softmax(-1), linear(3, 1)), VECTORS),
    "mlp-two-outputs": lambda: (nn.Sequential(linear(2, 3, True), nn.GELU(), linear(3, 2)), VECTORS),
    "layer-norm": lambda: (nn.Sequential(linear(2, 3), nn.LayerNorm(3), nn.GELU(), linear(3, 1)), VECTORS),
    "batch-norm": lambda: (nn.Sequential(linear(2, 3), nn.BatchNorm1d(3), nn.GELU(), linear(3, 1)), VECTORS),
    "group-norm": lambda: (nn.Sequential(linear(1, 4), nn.GroupNorm(2, 4), nn.GELU(), linear(4, 1)), WIDE),
    "residual": lambda: (
        Net(lambda own, x: own.o((h := own.e(x)) + own.b(own.a(h).tanh())), e=linear(2, 3), a=linear(3, 2),
            b=linear(2, 3), o=linear(3, 1)), VECTORS),
    "glu": lambda: (nn.Sequential(linear(2, 4, True), nn.GLU(), linear(2, 1)), VECTORS),
    "glu-interleaved": lambda: (
        Net(lambda own, x: own.o((y := own.e(x))[:, ::2] * y[:, 1::2].sigmoid()), e=linear(2, 4), o=linear(2, 1)),
        VECTORS,
    ),
    "concatenation": lambda: (
        Net(lambda own, x: own.o(torch.cat(_two(own, x), -1)), a=linear(2, 2), b=linear(2, 2), o=linear(4, 1)),
        VECTORS,
    ),
    "product": lambda: (
        Net(lambda own, x: own.o(torch.mul(*_two(own, x))), a=linear(2, 3), b=linear(2, 3), o=linear(3, 1)), VECTORS),
    "outer-product": lambda: (
        Net(lambda own, x: own.o(((t := _two(own, x))[0][:, :, None] * t[1][:, None]).flatten(1)), a=linear(2, 2),
            b=linear(2, 2), o=linear(4, 1)), VECTORS),
    "conv-flatten": lambda: (
        nn.Sequential(nn.Conv1d(1, 2, 2), nn.GELU(), nn.Flatten(), linear(6, 1)), random(3, 1, 4)),
    "conv-pooled": lambda: (
        nn.Sequential(nn.Conv2d(1, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(3, 1)),
        random(3, 1, 4, 4)),
    "conv-grouped": lambda: (
        nn.Sequential(nn.Conv1d(1, 4, 1, bias=False), nn.GELU(), nn.Conv1d(4, 4, 1, groups=2, bias=False), nn.GELU(),
                      nn.Conv1d(4, 1, 1)), random(3, 1, 4)),
    "conv-depthwise": lambda: (
        nn.Sequential(nn.Conv1d(1, 3, 1), nn.GELU(), nn.Conv1d(3, 3, 2, groups=3), nn.GELU(), nn.Conv1d(3, 1, 1)),
        random(3, 1, 4)),
    "conv-transposed": lambda: (
        nn.Sequential(nn.ConvTranspose1d(1, 3, 2), nn.GELU(), nn.ConvTranspose1d(3, 2, 1), nn.GELU(), nn.Conv1d(2, 1, 1)),
        random(3, 1, 4)),
    "attention-1x2": lambda: (_attention(1, 2), SEQUENCES),
    "attention-2x1": lambda: (_attention(2, 1), SEQUENCES),
    "attention-2x2": lambda: (_attention(2, 2), SEQUENCES),
    "attention-packed": lambda: (Net(_packed, qkv=linear(2, 6), o=linear(2, 1)), random(3, 4, 2)),
    "experts": lambda: (Net(_experts, gate=linear(1, 2), first=(2, 1, 2), second=(2, 2, 1)), WIDE),
    "tied-embedding": lambda: (
        Net(lambda own, x: F.linear(own.m(own.e(x)).tanh(), own.e.weight), e=nn.Embedding(3, 2), m=linear(2, 2)),
        torch.arange(3)),
    "tied-autoencoder": lambda: (
        Net(lambda own, x: F.linear(own.e(x).tanh(), own.e.weight.t(), own.b), e=linear(2, 3, True), b=(2,)), VECTORS),
    "layer-used-twice": lambda: (
        Net(lambda own, x: own.o(own.m(own.m(own.e(x).tanh()).tanh())), e=linear(2, 3), m=linear(3, 3), o=linear(3, 1)),
        VECTORS),
    "transposed-use": lambda: (
        Net(lambda own, x: own.o((own.e(x).tanh() @ own.m).tanh() @ own.m.t()), e=linear(2, 3), m=(3, 2), o=linear(3, 1)),
        VECTORS),
    "einsum": lambda: (
        Net(lambda own, x: torch.einsum("bi,ij,jk,k->b", x, own.a, own.b, own.c)[:, None].tanh(), a=(2, 3), b=(3, 2),
            c=(2,)), VECTORS),
    "squeeze-excite": lambda: (
        Net(lambda own, x: own.o((y := own.e(x)).mean(1) * own.g(own.s(y.mean(1)).tanh()).sigmoid()), e=linear(1, 3),
            s=linear(3, 2), g=linear(2, 3), o=linear(3, 1)), SEQUENCES),
    "channel-shuffle": lambda: (
        Net(lambda own, x: own.o(own.e(x).unflatten(-1, (2, 2)).transpose(1, 2).flatten(1).tanh()), e=linear(2, 4, True),
            o=linear(4, 1)), VECTORS),
    "shuffled-concatenation": lambda: (Net(_shuffled, a=linear(2, 2), b=linear(2, 2), o=linear(4, 1)), VECTORS),
    "low-rank": lambda: (
        Net(lambda own, x: own.o((x @ own.down @ own.up).tanh()), down=(2, 2), up=(2, 3), o=linear(3, 1)), VECTORS),
    "radial": lambda: (
        Net(lambda own, x: own.o((-(x[:, None] - own.c).square().sum(-1)).exp()), c=(3, 2), o=linear(3, 1)), VECTORS),
    "sorted": lambda: (Net(lambda own, x: own.o(own.e(x).sort(-1).values), e=linear(2, 3), o=linear(3, 1)), VECTORS),
    "highest": lambda: (
        Net(lambda own, x: own.o(own.e(x).topk(2, -1).values), e=linear(2, 3), o=linear(2, 1)), VECTORS),
    "cumulated": lambda: (Net(lambda own, x: own.o(own.e(x).cumsum(-1)), e=linear(2, 3), o=linear(3, 1)), VECTORS),
    "maximum": lambda: (Net(lambda own, x: own.e(x).amax(-1, keepdim=True), e=linear(2, 3, True)), VECTORS),
}  # fmt: skip

SMALLER = {
    "channel-shuffle": "channels that are shuffled in groups and then read one by one are only followed as groups",
    "shuffled-concatenation": "interleaved parts of a concatenation move together",
}
"""Networks whose group is known to come out too small, and why."""


@pytest.mark.parametrize("name", TINY)
def test_brute_force_finds_no_more(name: str) -> None:
    module, x = TINY[name]()
    module = prepared(module)
    with torch.no_grad():
        spec = trace_module(module, x).symmetries
        state = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
        reference, numbers = module(x), numbered(state)
        group = set()
        for element in elements(spec):
            full = module.state_dict()
            found = functional_call(module, spec.apply(full, element), (x,))
            assert (found - reference).abs().max() <= 1e-10 * reference.abs().max(), "not a symmetry"
            moved = spec.apply(full | numbers, element)
            group.add(code({key: moved[key] for key in state}))
        more = preserved(module, state, x) - group
    if name in SMALLER:
        assert more, f"{name} is found whole now: take it off the list"
    else:
        assert not more, f"{len(more)} permutations that leave the function alone are not in {spec}"


# -- declared swaps ------------------------------------------------------------------------------------------------------

Places = dict[str, tuple[tuple[int | None, ...], ...]]
"""For each tensor, for each axis: the sizes that it is a product of, with None for the units; () for one without units."""


def swapped(state: State, places: Places, i: int, j: int) -> State:
    """The state with units i and j exchanged in all their places."""
    found = dict(state)
    for name, axes in places.items():
        for dim, sizes in enumerate(axes):
            if sizes:
                known = math.prod(n for n in sizes if n is not None)
                shape = [state[name].shape[dim] // known if n is None else n for n in sizes]
                index = torch.arange(state[name].shape[dim]).view(shape).movedim(sizes.index(None), 0).clone()
                index[[i, j]] = index[[j, i]]
                order = index.movedim(0, sizes.index(None)).flatten()
                found[name] = found[name].index_select(dim, order)
    return found


def recurrent(gates: int) -> tuple[Places, int]:
    one = (gates, None)
    return {"0.weight_ih_l0": (one, ()), "0.weight_hh_l0": (one, (None,)), "0.bias_ih_l0": (one,),
            "0.bias_hh_l0": (one,), "2.weight": ((), (None,))}, 3  # fmt: skip


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.enter, self.layer = linear(2, width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.out(self.layer(x, x, x, need_weights=False)[0])


def head_places(heads: int, inner: int) -> Places:
    """Whole heads of ``nn.MultiheadAttention``: blocks of queries, of keys and of values, and of what the output reads."""
    whole = (3, None, inner)
    return {"layer.in_proj_weight": (whole, ()), "layer.in_proj_bias": (whole,),
            "layer.out_proj.weight": ((), (None, inner))}  # fmt: skip


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True)
    return nn.Sequential(linear(2, 4), layer, linear(4, 2))


RESIDUAL: Places = {
    "0.weight": ((None,), ()), "1.self_attn.in_proj_weight": ((), (None,)), "1.self_attn.out_proj.weight": ((None,), ()),
    "1.self_attn.out_proj.bias": ((None,),), "1.linear1.weight": ((), (None,)), "1.linear2.weight": ((None,), ()),
    "1.linear2.bias": ((None,),), "1.norm1.weight": ((None,),), "1.norm1.bias": ((None,),), "1.norm2.weight": ((None,),),
    "1.norm2.bias": ((None,),), "2.weight": ((), (None,)),
}  # fmt: skip
HIDDEN: Places = {"1.linear1.weight": ((None,), ()), "1.linear1.bias": ((None,),), "1.linear2.weight": ((), (None,))}


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), linear(12, 2)
    )


CHANNELS: Places = {
    "0.weight": ((None,), (), (), ()), "0.bias": ((None,),), "1.weight": ((None,),), "1.bias": ((None,),),
    "1.running_mean": ((None,),), "1.running_var": ((None,),), "5.weight": ((), (None, 4)),
}  # fmt: skip
TIME = random(2, 4, 2)

DECLARED: dict[str, tuple[Callable[[], nn.Module], Tensor, Places, int]] = {
    "gru": (lambda: nn.Sequential(nn.GRU(2, 3, batch_first=True), First(), linear(3, 2)), TIME, *recurrent(3)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(2, 3, batch_first=True), First(), linear(3, 2)), TIME, *recurrent(4)),
    "rnn": (lambda: nn.Sequential(nn.RNN(2, 3, batch_first=True), First(), linear(3, 2)), TIME, *recurrent(1)),
    "heads": (lambda: SelfAttention(6, 3), TIME, head_places(3, 2), 3),
    "transformer-residual": (_encoder, TIME, RESIDUAL, 4),
    "transformer-hidden": (_encoder, TIME, HIDDEN, 3),
    "cnn": (_cnn, random(2, 1, 4, 4), CHANNELS, 3),
}


@pytest.mark.parametrize("name", DECLARED)
def test_declared_units_are_found(name: str) -> None:
    build, x, places, count = DECLARED[name]
    module = prepared(build())
    with torch.no_grad():
        spec = trace_module(module, x).symmetries
        state, reference = module.state_dict(), module(x)
        group = {code(spec.apply(numbered(state), element)) for element in swaps(spec)}
        for i, j in itertools.combinations(range(count), 2):
            found = functional_call(module, swapped(state, places, i, j), (x,))
            assert (found - reference).abs().max() <= 1e-10 * reference.abs().max(), "wrongly declared"
            most = {key: places[key] for key in list(places)[1:]}
            other = functional_call(module, swapped(state, most, i, j), (x,))
            assert (other - reference).abs().max() > 1e-6, "the function does not show what is swapped"
            assert code(swapped(numbered(state), places, i, j)) in group, f"{i} and {j} do not change places in {spec}"
