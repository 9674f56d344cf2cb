"""Steps that move entries: reshapes, permutations, slices, joins, rolls, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.testing._steps import Draw, Saved, Step, step


@step("moves")
def permute(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dims = list(range(x.ndim))
    draw.shuffle(dims)
    dims = dims if draw.maybe(0.1) else [0, *(d for d in dims if d)]
    return Step(lambda own, x, saved: x.permute(dims))


@step("moves")
def merge_axes(draw: Draw, x: Tensor, saved: Saved) -> Step:
    first = draw.randrange(1, x.ndim - 1)
    return Step(lambda own, x, saved: x.flatten(first, first + 1))


@step("moves")
def split_axis(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim = draw.dim(x)
    outer = draw.divisor(x.shape[dim], least=2)
    if x.ndim > 4:
        raise ValueError
    return Step(lambda own, x, saved: x.unflatten(dim, (outer, -1)))


@step("moves")
def regroup(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Any other shape with as many entries: axes meet across their old bounds."""
    sizes = list(x.shape[1:])
    draw.shuffle(sizes)
    shape = (x.shape[0], *sizes) if draw.maybe() else (x.shape[0], draw.divisor(x[0].numel(), least=2), -1)
    return Step(lambda own, x, saved: x.reshape(shape))


@step("moves")
def shuffle_groups(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Channel shuffle: split, transpose, merge."""
    dim = draw.randrange(1, x.ndim)
    outer = draw.divisor(x.shape[dim], least=2)
    return Step(lambda own, x, saved: x.unflatten(dim, (outer, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1))


@step("moves")
def roll(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim, shift = draw.dim(x), draw.choice((1, 2, -1))
    return Step(lambda own, x, saved: x.roll(shift, dim))


@step("moves")
def flip(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim, add = draw.dim(x), draw.maybe()
    return Step(lambda own, x, saved: x + x.flip(dim) if add else x.flip(dim))


@step("moves")
def pad(draw: Draw, x: Tensor, saved: Saved) -> Step:
    before, after = draw.choice(((1, 0), (0, 2), (1, 1), (-1, 1), (0, -1)))
    mode = draw.choice(("constant", "constant", "constant", "reflect", "replicate", "circular"))
    value = draw.choice((0.0, 0.5)) if mode == "constant" else None
    dim = draw.randrange(1, x.ndim) if mode == "constant" else x.ndim - 1
    sizes = [0, 0] * (x.ndim - 1 - dim) + [before, after]
    return Step(lambda own, x, saved: F.pad(x, sizes, mode, value))


@step("moves")
def slice_(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim, n = draw.randrange(1, x.ndim), 0
    n = x.shape[dim]
    chosen = draw.choice((slice(1, None), slice(None, -1), slice(0, None, 2), slice(1, None, 2), slice(n // 2, None)))
    index = (slice(None),) * dim + (chosen,)
    return Step(lambda own, x, saved: x[index])


@step("moves")
def constant_indices(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Entries by number: another order, some left out, some twice."""
    dim = draw.randrange(1, x.ndim)
    n, way = x.shape[dim], draw.randrange(3)
    chosen = torch.tensor(
        [draw.randrange(n) for _ in range(n)] if draw.maybe() else draw.sample(range(n), max(2, n - 1))
    )
    index = (slice(None),) * dim + (chosen,)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x[index]
        if way == 1:
            return x.index_select(dim, chosen)
        shape = [1] * x.ndim
        shape[dim] = len(chosen)
        wide = chosen.view(shape).expand(*x.shape[:dim], -1, *x.shape[dim + 1 :])
        return x.gather(dim, wide)

    return Step(forward)


@step("moves")
def select(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim < 3:
        raise ValueError
    dim = draw.randrange(1, x.ndim)
    index = draw.choice((0, -1, x.shape[dim] // 2))
    return Step(lambda own, x, saved: x.select(dim, index))


@step("moves")
def recombine(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Cut into parts and put together again, some of them changed."""
    dim = draw.dim(x)
    n = x.shape[dim]
    at = draw.randrange(1, n)
    way = draw.randrange(7)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            a, b = x.split([at, n - at], dim)
            return torch.cat([b, a], dim)
        if way == 1:
            a, b = x.split([at, n - at], dim)
            return torch.cat([a.tanh(), b], dim)
        if way == 2:
            return torch.cat([x, x.relu()], dim)
        a, b = x.chunk(2, dim)
        if way == 3:
            return a * b.sigmoid()
        if way == 4:
            return torch.cat([a + b, a - b], dim)
        if way == 5:
            return torch.stack([a, b], dim).flatten(-2) if dim in (-1, x.ndim - 1) else torch.cat([b, a], dim)
        return torch.cat([a, torch.zeros_like(a), b], dim)

    return Step(forward)


@step("moves")
def unbound(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """All slices along an axis, folded into one or taken pairwise."""
    if x.ndim < 3:
        raise ValueError
    dim, way = draw.randrange(1, x.ndim), draw.randrange(3)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        parts = list(x.unbind(dim))
        if way == 0:
            return torch.stack([*parts[1:], parts[0]], dim)
        if way == 1:
            found = parts[0]
            for part in parts[1:]:
                found = found.tanh() + part
            return found
        return torch.stack([a * b for a, b in zip(parts, parts[::-1], strict=True)], 1)

    return Step(forward)


@step("moves")
def repeat(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim, way = draw.randrange(1, x.ndim), draw.randrange(4)
    times = [1] * x.ndim
    times[dim] = 2

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x.repeat(times)
        if way == 1:
            return x.repeat_interleave(2, dim)
        if way == 2:
            return x.unsqueeze(dim).expand(*x.shape[:dim], 3, *x.shape[dim:])
        return torch.cat([x, x], dim)

    return Step(forward)


@step("moves")
def pixel_shuffle(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim != 4:
        raise ValueError
    down = draw.maybe()
    return Step(lambda own, x, saved: F.pixel_unshuffle(x, 2) if down else F.pixel_shuffle(x, 2))


@step("moves")
def windows(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Overlapping pieces along the last axis."""
    size, way = draw.choice((1, 2)), draw.randrange(2)
    return Step(lambda own, x, saved: x.unfold(-1, size, 1).flatten(-2) if way else x.unfold(1, size, size).mean(-1))


@step("moves")
def resample(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim not in (3, 4):
        raise ValueError
    how = draw.choice(("up", "max", "avg", "adaptive", "linear"))
    two = x.ndim == 4
    ways = {
        "up": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        "linear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear" if two else "linear"),
        "max": lambda x: (F.max_pool2d if two else F.max_pool1d)(x, 2, 1),
        "avg": lambda x: (F.avg_pool2d if two else F.avg_pool1d)(x, 2),
        "adaptive": lambda x: (F.adaptive_avg_pool2d if two else F.adaptive_max_pool1d)(x, 2),
    }
    return Step(lambda own, x, saved: ways[how](x))
