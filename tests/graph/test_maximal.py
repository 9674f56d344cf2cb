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
