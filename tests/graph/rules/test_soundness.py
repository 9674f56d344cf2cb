"""Ways in which a rule could claim too much: each of these was, or could have been, a group that changes the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

W = {"w": (4, 5), "v": (4, 3)}


def total(value: Any, s: Any, x: Any) -> Any:
    """What is invariant enters the output as a number."""
    return value.relu().sum() * x @ s.v


# Outer products of a tensor with itself: the rows stand on two axes, so only one permutation of the columns for all of them
# leaves the products alone.
TWICE: dict[str, Callable[[Any], Any]] = {
    "gram": lambda w: w @ w.t(),
    "linear": lambda w: F.linear(w, w),
    "einsum": lambda w: torch.einsum("hd,g->gd", w, w.sum(1)),
    "einsum-sum": lambda w: torch.einsum("hd,g->ghd", w, w.sum(1)).sum(1),
    "convolution": lambda w: F.conv1d(w[:, :, None], w[:, :, None]),
    "cosine": lambda w: F.cosine_similarity(w[None], w[:, None], dim=2),
    "pairs": lambda w: w[:, None] * w[None],
    "differences": lambda w: (w[:, None] - w[None]).relu().sum(0),
    "distances": lambda w: F.pairwise_distance(w[:, None], w[None]),
    "attention": lambda w: F.scaled_dot_product_attention(w[None], w[None], w[None]),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_rows_on_two_axes(name: str, sound: Callable[..., Any]) -> None:
    found = sound(lambda s, x: total(TWICE[name](s.w), s, x), W)
    assert str(found.spec) == "S4 × S5" and not found.frozen_ops


def test_rows_on_one_axis_keep_their_families(sound: Callable[..., Any]) -> None:
    found = sound(lambda s, x: total(s.w.square().sum(1), s, x), W)
    assert str(found.spec) == "S4 × S5^4"


def test_heads_on_two_axes(sound: Callable[..., Any]) -> None:
    found = sound(lambda s, x: total(s.w.reshape(3, 4) @ s.w.reshape(3, 4).t(), s, x), {"w": (12,), "v": (4, 3)})
    assert str(found.spec) == "S3 × S4"


def test_families_meet_over_one_axis(sound: Callable[..., Any]) -> None:
    """``a [r, d]`` and ``b [d, r]`` would be families over r on different axes."""
    found = sound(lambda s, x: total(s.a[:, :, None] * s.a.t()[None], s, x), {"a": (4, 5), "v": (4, 3)})
    assert str(found.spec) == "S4 × S5"
    sound(lambda s, x: total(s.a * s.a.t(), s, x), {"a": (4, 4), "v": (4, 3)})
    sound(lambda s, x: total(s.a[None] * s.a[:, None].mT, s, x), {"a": (4, 4), "v": (4, 3)})


def views(s: Any, x: Any) -> Any:
    """Writes through views, of views, and onto slices."""
    h = x @ s.w
    half = h.view(3, 2, 3)[:, 0]
    half.mul_(2).add_(s.b)
    h.t()[1:3] = 0.5
    h[:, 4:].copy_(h[:, :2])
    h.view(-1)[::7] += 1
    return h @ s.v


def sliced(s: Any, x: Any) -> Any:
    h = x @ s.w
    h[:, 3:] = h[:, :3].relu()
    return h @ s.v


def swapped(s: Any, x: Any) -> Any:
    h = x @ s.w
    first = h[:, :3].clone()
    h[:, :3] = h[:, 3:]
    h[:, 3:] = first
    return h.relu() @ s.v


def out(s: Any, x: Any) -> Any:
    h = x @ s.w
    found = torch.empty_like(h)
    torch.add(h, s.p, out=found)
    return found.relu() @ s.v


def diagonal(s: Any, x: Any) -> Any:
    h = (x @ s.w)[:, :3].contiguous()
    h.diagonal().mul_(2)
    return h @ s.v[:3]


def buffer(s: Any, x: Any) -> Any:
    """A buffer that is written to and read again."""
    s.memory.copy_(x[0] @ s.w)
    s.memory.add_(1)
    return (x @ s.w + s.memory).relu() @ s.v


def counted(s: Any, x: Any) -> Any:
    h = x @ s.w
    h[h > 0] = 2.0
    h[torch.tensor([0, 1]), :3] = 0.1
    return h @ s.v


MLP = {"w": (4, 6), "b": (3,), "p": (6,), "v": (6, 2)}
WRITES: dict[str, tuple[Any, str]] = {
    "views": (views, "S2"),
    "slices": (sliced, "S3 × S3"),
    "swapped": (swapped, "S3 × S3"),
    "out": (out, "S6"),
    "diagonal": (diagonal, "S3"),
    "buffer": (buffer, "S6"),
    "masked": (counted, "S3 × S3"),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str, sound: Callable[..., Any]) -> None:
    """What is written through a view is seen by every reader of the tensor."""
    function, group = WRITES[name]
    own = {**MLP, "memory": torch.zeros(6, dtype=torch.float64)} if name == "buffer" else MLP
    found = sound(function, own)
    assert str(found.spec) == group, found.spec.describe()


# Whole numbers that say where something stands distinguish positions.
POSITIONS: dict[str, Callable[..., Any]] = {
    "argmax": lambda s, x: s.p[torch.argmax(x @ s.w, -1)][:, None] * x,
    "argmax-gather": lambda s, x: torch.gather(x @ s.w, 1, torch.argmax(x @ s.w, -1, keepdim=True)),
    "topk-gather": lambda s, x: torch.gather(x @ s.w, 1, torch.topk(x @ s.w, 2).indices).relu(),
    "max-index": lambda s, x: s.p[torch.max(x @ s.w, -1).indices],
    "argsort": lambda s, x: torch.argsort(s.p)[None] + x @ s.w,
    "sorted": lambda s, x: torch.sort(x @ s.w, -1).values,
    "kth-index": lambda s, x: s.p[torch.kthvalue(x @ s.w, 2, -1).indices],
    "cummax-index": lambda s, x: torch.cummax(x @ s.w, -1).indices.double() @ s.v,
    "pool-index": lambda s, x: F.max_pool1d((x @ s.w)[None], 2, return_indices=True)[1].double(),
    "where": lambda s, x: torch.searchsorted(torch.sort(s.p).values, x @ s.w).double() @ s.v,
    "branch": lambda s, x: x @ s.w @ s.v * (2 if int(torch.argmax(s.p)) > 2 else 3),
    "nonzero": lambda s, x: torch.nonzero(s.p > 0).double().sum() * (x @ s.w @ s.v),
    "chosen": lambda s, x: torch.masked_select(s.p, s.p > 0).cumsum(0)[0] * (x @ s.w @ s.v),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_as_values(name: str, sound: Callable[..., Any]) -> None:
    sound(POSITIONS[name], MLP)


@pytest.mark.parametrize(
    "compare",
    [
        torch.equal,
        torch.Tensor.equal,
        torch.allclose,
        lambda a, b: bool((a == b).all()),
        lambda a, b: (a - b).any().item() == 0,
    ],
    ids=["equal", "method", "allclose", "all", "item"],
)
def test_decisions_on_positions(compare: Any, sound: Callable[..., Any]) -> None:
    """Which path is taken depends on the order of two tensors: both stay."""

    def forward(s: Any, x: Any) -> Any:
        same = compare(s.w.abs().argmax(1).double(), s.w.square().argmax(1).double() + 0 * s.c)
        other = compare(s.w.argmax(1).double(), s.k)
        return (x @ s.w).relu() @ s.v * (2 if same else 3) * (5 if other else 7)

    order = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).argmax(1).double()
    assert str(sound(forward, {"w": (4, 6), "v": (6, 2), "c": (4,), "k": order}).spec) == "trivial"


SHAPES: dict[str, Callable[..., Any]] = {
    "empty-slice": lambda s, x: torch.cat([(x @ s.w)[:, 3:3], x @ s.w], 1) @ s.v,
    "empty-sum": lambda s, x: (x @ s.w)[:, 6:].sum() + x @ s.w @ s.v,
    "empty-view": lambda s, x: (x @ s.w)[:0].reshape(2, 0, 3).sum() + x @ s.w @ s.v,
    "one": lambda s, x: (x @ s.w).reshape(1, 3, 1, 6).squeeze().unsqueeze(-1).expand(3, 6, 1).sum(-1) @ s.v,
    "number": lambda s, x: s.scale * (x @ s.w) @ s.v + s.scale.reshape(1) + s.scale.expand(2),
    "twice": lambda s, x: (x @ s.w + s.w.sum(0)) @ s.v + s.w.reshape(2, 2, 6)[1].sum() + s.w.t()[:2].sum(),
    "transposed": lambda s, x: (x @ s.w).relu() @ s.w.t() + x @ s.w[:, :4],
    "half-shared": lambda s, x: (x @ s.w)[:, :3] @ s.v[:3] + (x @ s.w[:, 2:5]).relu() @ s.v[1:4],
}


@pytest.mark.parametrize("name", SHAPES)
def test_awkward_shapes(name: str, sound: Callable[..., Any]) -> None:
    found = sound(SHAPES[name], {**MLP, "scale": ()})
    assert not found.frozen_ops


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: F.dropout(x @ s.w, 0.5, training=True) @ s.v,
        lambda s, x: (x @ s.w) * torch.rand_like(x @ s.w) @ s.v,
        lambda s, x: torch.bernoulli((x @ s.w).sigmoid()) @ s.v,
        lambda s, x: torch.rrelu(x @ s.w, training=True) @ s.v,
        lambda s, x: F.scaled_dot_product_attention(x @ s.w, x @ s.w, (x @ s.w).relu(), dropout_p=0.5),
    ],
    ids=["dropout", "rand_like", "bernoulli", "rrelu", "attention"],
)
def test_chance_freezes(function: Any) -> None:
    """Noise is drawn by position: with the same seed the function changes."""
    from neural_graphs.graph._capture import capture
    from neural_graphs.graph._propagate import propagate

    module = nn.Module()
    module.w, module.v = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
    module.forward = lambda x: function(module, x)
    found = propagate(capture(module, torch.randn(3, 4)))
    assert found.frozen_ops and str(found.spec) == "trivial"


def test_training_statistics_in_evaluation(sound: Callable[..., Any]) -> None:
    """Without running statistics batch normalisation averages over the batch in evaluation mode, too."""
    own = {"w": (4, 6), "n": nn.BatchNorm1d(6, affine=False, track_running_stats=False), "v": (6, 2)}
    assert str(sound(lambda s, x: s.n(x @ s.w) @ s.v, own).spec) == "S6"


@pytest.mark.parametrize("shape", [(6, 6, 6), (1, 6, 6, 6)])
def test_channel_shuffle_of_any_rank(shape: tuple[int, ...], sound: Callable[..., Any]) -> None:
    bias = (6, *[1] * (len(shape) - 2))
    found = sound(
        lambda s, x: total(F.channel_shuffle(s.w, 2) + s.b.reshape(bias), s, x), {"w": shape, "b": (6,), "v": (4, 3)}
    )
    assert "S2 × S3^2" in str(found.spec)


def test_group_norm_mixes_groups_only_at_their_own_position(sound: Callable[..., Any]) -> None:
    sound(lambda s, x: total(F.group_norm(s.w.t()[None], 2), s, x), {"w": (5, 6), "v": (4, 3)})


def test_renorm_keeps_the_slices_apart(sound: Callable[..., Any]) -> None:
    assert str(sound(lambda s, x: total(torch.renorm(s.w, 2, 1, 0.5), s, x), W).spec) == "S4 × S5"
    assert str(sound(lambda s, x: total(torch.renorm(s.w, 2, 0, 0.5), s, x), W).spec) == "S4 × S5^4"
