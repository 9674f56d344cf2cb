"""Steps without parameters: activations, reductions, order, writes in place, and what earlier values are used for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_graphs.testing._steps import Draw, Saved, Step, largest, step
from neural_graphs.testing._steps_layers import activation as some_activation


@step("values")
def activation(draw: Draw, x: Tensor, saved: Saved) -> Step:
    return Step(lambda own, x, saved: own.act(x), act=some_activation(draw))


@step("values")
def pointwise(draw: Draw, x: Tensor, saved: Saved) -> Step:
    way = draw.randrange(10)
    return Step(
        lambda own, x, saved: (
            *(torch.sin(3 * x), x.square(), x.clamp(-0.5, 0.7), x * x.sigmoid(), torch.where(x > 0.1, x, 0.2 * x)),
            *(x.exp().clamp_max(5), (x.abs() + 0.1).log(), torch.atan2(x, 1 + x * x), 1 / (1 + x.abs()), x.erf()),
        )[way]
    )


@step("values")
def reduce(draw: Draw, x: Tensor, saved: Saved) -> Step:
    if x.ndim < 3:
        raise ValueError
    dim, way = draw.randrange(1, x.ndim), draw.randrange(9)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x.mean(dim)
        if way == 1:
            return x.amax(dim)
        if way == 2:
            return x.max(dim).values
        if way == 3:
            return x.std(dim, correction=0)
        if way == 4:
            return x.logsumexp(dim)
        if way == 5:
            return x.norm(dim=dim)
        if way == 6:
            return x.tanh().prod(dim)
        if way == 7:
            return x.median(dim).values
        return x.sum(dim) - x.amin(dim)

    return Step(forward)


@step("values")
def standardise(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A reduction over an axis, or over several, spread over it again."""
    dims = tuple(d for d in range(1, x.ndim) if draw.maybe()) or (1,)
    way = draw.randrange(5)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x - x.mean(dims, keepdim=True)
        if way == 1:
            return x / (0.3 + x.std(dims, keepdim=True, correction=0))
        if way == 2:
            return x * x.amax(dims, keepdim=True).sigmoid()
        if way == 3:
            return x.softmax(dims[0])
        return x + x.log_softmax(dims[-1]).sum(dims, keepdim=True) / 10

    return Step(forward)


@step("values")
def ordered(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """What depends on the order along an axis, or on where the largest entry stands."""
    dim, way = draw.dim(x), draw.randrange(10)
    n = x.shape[dim]

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x.cumsum(dim)
        if way == 1:
            return x.sort(dim).values
        if way == 2:
            return x.topk(2, dim).values
        if way == 3:
            return x + largest(x, dim, keepdim=True)
        if way == 4:
            return x.gather(dim, x.argsort(dim))
        if way == 5:
            return x.diff(dim=dim)
        if way == 6:
            return (x - x.median(dim, keepdim=True).values).relu()
        if way == 7:
            return x.gather(dim, x.argmax(dim, keepdim=True))
        if way == 8:
            return x.maximum(x.kthvalue(max(1, n // 2), dim, keepdim=True).values)
        return x.transpose(dim, -1).cumprod(-1).transpose(dim, -1)

    return Step(forward)


@step("values")
def in_place(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Writes into a fresh tensor or a view of it."""
    dim, way, n = draw.randrange(1, x.ndim), draw.randrange(8), 0
    n = x.shape[dim]
    at = draw.randrange(n)
    mask = torch.tensor([draw.maybe() for _ in range(n)])
    shape = [1] * x.ndim
    shape[dim] = n

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        y = x * 1.5
        if way == 0:
            return y.relu_().add_(x)
        if way == 1:
            y.select(dim, at).mul_(2)
        elif way == 2:
            y.narrow(dim, 0, at + 1).add_(0.3)
        elif way == 3:
            y.select(dim, 0).copy_(y.select(dim, -1))
        elif way == 4:
            y.masked_fill_(mask.view(shape), 0.1)
        elif way == 5:
            y.transpose(1, -1).tanh_()
        elif way == 6:
            y[:, at % y.shape[1]] = 0.25
        else:
            y.index_add_(dim, torch.tensor([at]), y.narrow(dim, 0, 1).clone())
        return y

    return Step(forward)


@step("values")
def with_itself(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Products of the values with themselves."""
    way = draw.randrange(4)
    if x.ndim < 3:
        raise ValueError

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x @ x.transpose(-1, -2)
        if way == 1:
            return (x @ x.transpose(-1, -2)).softmax(-1) @ x
        if way == 2:
            return torch.einsum("b...i,b...j->bij", x, x)
        return torch.cdist(x, x + 1).square()

    return Step(forward)


# -- branches ----------------------------------------------------------------------------------------------------------


@step("branches")
def go_back(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Go on from an earlier value; later steps may take this one up again."""
    place = draw.randrange(len(saved))
    return Step(lambda own, x, saved: saved[place])


def _find(draw: Draw, saved: Saved, fits: list[bool]) -> int:
    return draw.choice([k for k, fit in enumerate(fits) if fit])


@step("branches")
def combine(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """With an earlier value of the same shape, or with one that broadcasts."""
    exact = [s.shape == x.shape for s in saved]
    place = _find(draw, saved, exact if any(exact) else [_broadcasts(s, x) for s in saved])
    way = draw.randrange(6)

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        y = saved[place]
        return (x + y, x + y, x - y, x * y, torch.maximum(x, y), torch.where(x > 0.037, x, y))[way]

    return Step(forward)


def _broadcasts(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim and all(m == n or m == 1 for m, n in zip(a.shape, b.shape, strict=True))


@step("branches")
def residual(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Back to an earlier value through a linear layer, added."""
    place = _find(draw, saved, [s.shape[:-1] == x.shape[:-1] for s in saved])
    layer = nn.Linear(x.shape[-1], saved[place].shape[-1], bias=draw.maybe())
    return Step(lambda own, x, saved: saved[place] + own.layer(x), layer=layer)


@step("branches")
def concatenate(draw: Draw, x: Tensor, saved: Saved) -> Step:
    dim = draw.randrange(1, x.ndim)
    fits = [s.ndim == x.ndim and all(s.shape[d] == x.shape[d] for d in range(x.ndim) if d != dim) for s in saved]
    place = _find(draw, saved, fits)
    order = draw.maybe()
    return Step(lambda own, x, saved: torch.cat([x, saved[place]] if order else [saved[place], x], dim))


@step("branches")
def stack(draw: Draw, x: Tensor, saved: Saved) -> Step:
    place, dim = _find(draw, saved, [s.shape == x.shape for s in saved]), draw.randrange(1, x.ndim + 1)
    return Step(lambda own, x, saved: torch.stack([x, saved[place]], dim))


@step("branches")
def multiply_matrices(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """With an earlier value, over the last axis of both."""
    if x.ndim < 3:
        raise ValueError
    fits = [s.ndim == x.ndim and s.shape[:-2] == x.shape[:-2] and s.shape[-1] == x.shape[-1] for s in saved]
    place, soft = _find(draw, saved, fits), draw.maybe()

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        y = x @ saved[place].transpose(-1, -2)
        return y.softmax(-1) @ saved[place] if soft else y

    return Step(forward)


@step("branches")
def outer_product(draw: Draw, x: Tensor, saved: Saved) -> Step:
    place = _find(draw, saved, [s.shape[:-1] == x.shape[:-1] for s in saved])
    flat = draw.maybe()

    def forward(own: Step, x: Tensor, saved: Saved) -> Tensor:
        y = x.unsqueeze(-1) * saved[place].unsqueeze(-2)
        return y.flatten(-2) if flat else y

    return Step(forward)
