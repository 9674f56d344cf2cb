"""Steps whose parameters are changed, cut, shared or combined before they meet the values."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from neural_graphs.testing._steps import Buffer, Draw, Saved, Step, step


@step("weights")
def raw_matrix(draw: Draw, x: Tensor, saved: Saved) -> Step:
    return Step(lambda own, x, saved: x @ own.weight, weight=draw.parameter(x.shape[-1], draw.width()))


@step("weights")
def changed_matrix(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A square matrix after one operator or two: many of them tell rows or columns apart."""
    n = x.shape[-1]
    mask = Buffer((draw.constant(n, n) > 0).double(), persistent=draw.maybe())
    changes: dict[str, Any] = {
        "t": lambda own, w: w.t(),
        "symmetric": lambda own, w: w + w.t(),
        "antisymmetric": lambda own, w: w - w.T,
        "square": lambda own, w: w @ w,
        "gram": lambda own, w: w.t() @ w,
        "softmax": lambda own, w: w.softmax(0),
        "positive": lambda own, w: F.softplus(w),
        "unit rows": lambda own, w: w / w.norm(dim=1, keepdim=True),
        "roll": lambda own, w: w.roll(1, 0),
        "flip": lambda own, w: w.flip(1),
        "triangle": lambda own, w: w.tril(),
        "masked": lambda own, w: w * own.mask.to(w.dtype),
        "centred": lambda own, w: w - w.mean(0),
        "plus one": lambda own, w: w + torch.eye(n, dtype=w.dtype),
        "reshaped": lambda own, w: w.reshape(n // 2, 2, n).transpose(0, 1).reshape(n, n),
        "halves": lambda own, w: torch.cat(w.split([n // 2, n - n // 2], 1)[::-1], 1),
        "sliced": lambda own, w: torch.cat([w[:1], w[1:] * 2]),
        "cumulated": lambda own, w: w.cumsum(1),
        "by a column": lambda own, w: w * w[:, :1],
        "by a diagonal": lambda own, w: w * w.diagonal(),
        "sorted": lambda own, w: w.sort(0).values,
    }
    chosen = [draw.choice(list(changes)) for _ in range(draw.choice((1, 1, 2)))]

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        w = own.weight
        for name in chosen:
            w = changes[name](own, w)
        return F.linear(x, w)

    built = Step(forward, weight=draw.parameter(n, n), mask=mask)
    built.extra_repr = lambda: ", ".join(chosen)  # type: ignore[method-assign]
    return built


@step("weights")
def cut_matrix(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Part of a larger matrix, as when the width is chosen at run time; the rest may be used elsewhere."""
    n, outputs, more = x.shape[-1], draw.width(), draw.choice((1, 2))
    way, both = draw.randrange(5), draw.maybe()

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        w = own.weight
        y = F.linear(x, (w[:outputs, :n], w[more:, more:], w[-outputs:, :n], w[:outputs, -n:], w[:-more, more:])[way])
        return y + F.linear(x, w[-outputs:, -n:]) if both else y

    return Step(forward, weight=draw.parameter(outputs + more, n + more))


@step("weights")
def packed_layers(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Several layers in one parameter: stacked, or one after the other."""
    n, hidden, stacked, way = x.shape[-1], draw.choice((3, 4)), draw.maybe(), draw.randrange(3)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        first, second = own.weight.unbind(0) if stacked else own.weight.split(hidden, 0)
        a, b = F.linear(x, first), F.linear(x, second)
        return (a * torch.sigmoid(b), torch.relu(a) @ second, torch.cat([a, b.tanh()], -1))[way]

    return Step(forward, weight=draw.parameter(2, hidden, n) if stacked else draw.parameter(2 * hidden, n))


@step("weights")
def low_rank(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A matrix plus a product of two thin ones."""
    n, rank, outputs = x.shape[-1], draw.choice((2, 3)), draw.width()
    return Step(
        lambda own, x, saved: F.linear(x, own.weight + own.up @ own.down),
        weight=draw.parameter(outputs, n),
        up=draw.parameter(outputs, rank),
        down=draw.parameter(rank, n),
    )


@step("weights")
def product_of_vectors(draw: Draw, x: Tensor, saved: Saved) -> Step:
    n, outputs, way = x.shape[-1], draw.width(), draw.randrange(3)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        rows, columns = own.rows.exp(), own.columns
        weight = (torch.outer(rows, columns), rows[:, None] + columns, torch.kron(columns[None], rows[:, None]))[way]
        return F.linear(x, weight.sin())

    return Step(forward, rows=draw.parameter(outputs), columns=draw.parameter(n))


@step("weights")
def weight_norm(draw: Draw, x: Tensor, saved: Saved) -> Step:
    layer, dim = nn.Linear(x.shape[-1], draw.width()), draw.choice((0, 1, None))
    layer = parametrizations.weight_norm(layer, dim=dim)  # type: ignore[arg-type]  # None is the norm of all
    return Step(lambda own, x, saved: own.layer(x), layer=layer)


@step("weights")
def elementwise_parameter(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Along some axes, in some places repeated."""
    chosen = [draw.maybe(0.6) for _ in x.shape[1:]]
    shape = [n if one else 1 for n, one in zip(x.shape[1:], chosen, strict=True)]
    way = draw.randrange(5)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        p = own.value
        return (x * p, x + p, x / (1 + p * p), torch.where(x > p, x, p), torch.maximum(x, p))[way]

    return Step(forward, value=draw.parameter(*shape))


@step("weights")
def repeated_parameter(draw: Draw, x: Tensor, saved: Saved) -> Step:
    n = x.shape[-1]
    few = draw.divisor(n)
    way = draw.randrange(4)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        p, k = own.value, n // few
        scale = (p.repeat(k), p.repeat_interleave(k), p[:, None].expand(few, k).reshape(n), torch.cat([p] * k))[way]
        return x * scale

    return Step(forward, value=draw.parameter(few))


@step("weights")
def parameter_of_a_slice(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """One entry of a vector, or its sum or sorted form, meets all values."""
    n, way = x.shape[-1], draw.randrange(6)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        p = own.value
        if way == 0:
            return x * p[0] + p[1:].sum()
        if way == 1:
            return x * p.sum() + p
        if way == 2:
            return x + p.softmax(0) * p.max()
        if way == 3:
            return x * p.sort().values
        if way == 4:
            return torch.cat([x[..., :1] * p[0], x[..., 1:] * p[1:]], -1)
        return x * p[torch.arange(n - 1, -1, -1)]

    return Step(forward, value=draw.parameter(n))


@step("weights")
def prelu(draw: Draw, x: Tensor, saved: Saved) -> Step:
    return Step(lambda own, x, saved: own.layer(x), layer=nn.PReLU(draw.choice((1, x.shape[1]))))


@step("weights")
def contraction(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """An einsum of a parameter with a random choice of the axes; summed, kept and new ones."""
    letters = "bcdef"[: x.ndim]
    kinds = [draw.choice(("sum", "keep", "meet")) for _ in letters[1:]]
    if "sum" not in kinds:
        raise ValueError
    size = dict(zip(letters, x.shape, strict=True)) | {"o": draw.width()}
    own_letters = [c for c, kind in zip(letters[1:], kinds, strict=True) if kind != "keep"]
    own_letters.insert(draw.randint(0, len(own_letters)), "o")
    if draw.maybe(0.3):
        draw.shuffle(own_letters)
    out = [c for c, kind in zip(letters[1:], kinds, strict=True) if kind != "sum"]
    out.insert(len(out) if draw.maybe(0.6) else draw.randint(0, len(out)), "o")
    equation = f"{letters},{''.join(own_letters)}->b{''.join(out)}"
    weight = draw.parameter(*(size[c] for c in own_letters))
    built = Step(lambda own, x, saved: torch.einsum(equation, x, own.weight), weight=weight)
    built.extra_repr = lambda: equation  # type: ignore[method-assign]
    return built


@step("weights")
def matrix_for_each(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A matrix of its own for every position of the axis before the last."""
    if x.ndim < 3:
        raise ValueError
    n, outputs, way = x.shape[-1], draw.width(), draw.randrange(3)
    weight = draw.parameter(x.shape[-2], n, outputs)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return (x.unsqueeze(-2) @ own.weight).squeeze(-2)
        if way == 1:
            return torch.einsum("...tn,tno->...to", x, own.weight)
        return torch.stack([x[..., t, :] @ own.weight[t] for t in range(x.shape[-2])], -2)

    return Step(forward, weight=weight)


@step("weights")
def block_diagonal(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """The last axis in groups, with a matrix for each; groups outermost or innermost."""
    n = x.shape[-1]
    groups = draw.divisor(n)
    inner, outputs, outermost = n // groups, draw.choice((2, 3)), draw.maybe()

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        if outermost:
            y = torch.einsum("...gi,gio->...go", x.unflatten(-1, (groups, inner)), own.weight)
        else:
            y = torch.einsum("...ig,gio->...og", x.unflatten(-1, (inner, groups)), own.weight)
        return y.flatten(-2)

    return Step(forward, weight=draw.parameter(groups, inner, outputs))


@step("weights")
def weight_from_values(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A hyper-network: the values give the matrix that they then meet."""
    n, outputs, rows_first = x.shape[-1], draw.choice((2, 3)), draw.maybe()

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        sizes = (outputs, n) if rows_first else (n, outputs)
        weight = own.layer(torch.tanh(x)).unflatten(-1, sizes)
        return torch.einsum("...on,...n->...o" if rows_first else "...no,...n->...o", weight, x)

    return Step(forward, layer=nn.Linear(n, n * outputs))


@step("weights")
def buffers(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A constant or counted buffer; in some, the forward pass updates it."""
    n, way = x.shape[-1], draw.randrange(4)
    own: dict[str, Any] = {"value": Buffer(draw.constant(n), persistent=draw.maybe(0.7))}
    if way == 3:
        own["count"] = Buffer(torch.zeros((), dtype=torch.long))

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x * own.value
        if way == 1:
            return x + own.value.cumsum(0)
        y = x - own.value
        if way == 2:
            own.value.mul_(0.9).add_(0.1 * x.reshape(-1, n).mean(0))
        else:
            own.count.add_(1)
        return y

    return Step(forward, **own)


@step("weights")
def table_by_constants(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Rows of a parameter chosen by constant indices, repeated and in any order."""
    n, rows = x.shape[-1], draw.width()
    chosen = torch.tensor([draw.randrange(rows) for _ in range(n)])
    way = draw.randrange(3)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        if way == 0:
            return x * own.table[chosen, 0]
        if way == 1:
            return x + own.table.index_select(0, chosen).sum(1)
        return x @ own.table[chosen]

    return Step(forward, table=draw.parameter(rows, draw.width()))


@step("weights")
def kernels_over_parameters(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """Distances to centres, as in radial basis functions."""
    n, count = x.shape[-1], draw.width()
    way = draw.randrange(2)

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        squares = (
            (x.unsqueeze(-2) - own.centres).square().sum(-1)
            if way
            else x.square().sum(-1, keepdim=True) - 2 * x @ own.centres.t() + own.centres.square().sum(-1)
        )
        return torch.exp(-squares * own.widths.exp() / n)

    return Step(forward, centres=draw.parameter(count, n), widths=draw.parameter(count))


@step("weights")
def list_of_scales(draw: Draw, x: Tensor, saved: Saved) -> Step:
    """A mixture with softmax weights of several branches, each a power of the values."""
    count = draw.choice((2, 3))

    def forward(own: Any, x: Tensor, saved: Saved) -> Tensor:
        weights = own.mix.softmax(0)
        powers = itertools.accumulate([x.tanh()] * count, lambda a, b: a * b)
        return torch.stack([w * p for w, p in zip(weights, powers, strict=True)]).sum(0)

    return Step(forward, mix=draw.parameter(count))
