"""Operators that move, join, reduce or pick entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_graphs.graph._neurons._labels import NOBODY, Label, Value, collapse, moved, without_axes
from neural_graphs.graph._neurons._pointwise import pointwise
from neural_graphs.graph._neurons._reader import Reader, rule, unknown


@rule(
    "reshape", "view", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "numpy_T", "mT", "movedim"
)
@rule("unsqueeze", "squeeze", "slice", "select", "narrow", "expand", "expand_as", "split", "split_with_sizes", "chunk")
@rule("unbind", "repeat", "tile", "repeat_interleave", "roll", "diagonal", "unfold", "pixel_shuffle", "pixel_unshuffle")
@rule(
    "channel_shuffle",
    "view_as",
    "reshape_as",
    "tensor_split",
    "swapaxes",
    "swapdims",
    "moveaxis",
    "rot90",
    "broadcast_to",
)
@rule("atleast_1d", "atleast_2d", "atleast_3d", "hsplit", "vsplit", "dsplit", "T", "adjoint", "flip")
def _move(reader: Reader, node: Node) -> Any:
    x = reader.env[node.args[0]]  # type: ignore[index]
    others = [arg for arg in node.args[1:] if isinstance(arg, Node)]
    if name_takes_tensor(reader, node, others):
        return unknown(reader, node)
    args = [torch.empty(reader.env[arg].shape) if isinstance(arg, Node) else arg for arg in node.args[1:]]
    target: Any = node.target

    def run(ids: Tensor) -> Any:
        return target(ids, *args, **node.kwargs)

    results = node.meta["val"]
    if isinstance(results, Tensor):
        return moved(x, run, results.shape)
    moves = [(label, run(label.ids.expand(x.shape))) for label in x.labels]
    found = []
    for number, result in enumerate(results):
        labels = tuple(Label(collapse(pieces[number]), label.key) for label, pieces in moves)
        found.append(Value(tuple(result.shape), labels, x.loose, x.given, x.scale, x.parameters))
    return found


def name_takes_tensor(reader: Reader, node: Node, others: Sequence[Node]) -> bool:
    """Whether a tensor among the arguments matters by its values, not its shape."""
    return bool(others) and reader.name(node) not in ("expand_as", "view_as", "reshape_as")


@rule("cat", "concat", "stack", "hstack", "vstack")
def _cat(reader: Reader, node: Node) -> Value:
    name, shape = reader.name(node), reader.shape(node)
    values = [reader.env[part] for part in node.args[0]]  # type: ignore[union-attr, index]
    dim = {"hstack": 1 if len(shape) > 1 else 0, "vstack": 0}.get(name)
    dim = (reader.arg(node, "dim", 0) if dim is None else dim) % len(shape)
    if name == "stack":
        values = [moved(v, lambda t: t.unsqueeze(dim), (*v.shape[:dim], 1, *v.shape[dim:])) for v in values]
    return concatenated(reader, values, shape, dim)


def concatenated(reader: Reader, values: list[Value], shape: tuple[int, ...], dim: int) -> Value:
    """Neurons along ``dim`` stand side by side; along the other axes the values are the same neurons."""
    ledger = reader.ledger
    along = [[label for label in ledger.neurons(value) if dim in label.axes] for value in values]
    if any(along):
        for k, value in enumerate(values):
            candidate = [label for label in value.labels if label.axes == {dim} and label.key is not None]
            if not along[k] and candidate:
                ledger.promote(candidate[0].key)  # type: ignore[arg-type]
                along[k] = candidate[:1]
    elif len({_key(reader, value) for value in values}) > 1 and all(_same_site(reader, values)):
        along = [ledger.neurons(value) for value in values]  # the halves of one layer's neurons, stacked again
    rest = []
    for value, taken in zip(values, along, strict=True):
        labels = tuple(label for label in value.labels if label not in taken and dim not in label.axes)
        rest.append(Value(value.shape, labels, value.loose, value.given, value.scale, value.parameters))
    result = reader.elementwise(rest, shape, "token")
    labels = result.labels
    if any(along):
        sizes = [value.shape[dim] for value in values]
        ids = [(taken[0].ids if taken else torch.full((1,) * len(shape), NOBODY)) for taken in along]
        common = torch.broadcast_shapes(*(tuple(1 if d == dim else n for d, n in enumerate(t.shape)) for t in ids))
        wide = [
            t.expand(*(n if d == dim else common[d] for d in range(len(shape))))
            for t, n in zip(ids, sizes, strict=True)
        ]
        labels = (Label(collapse(torch.cat(wide, dim))), *labels)
    given = any(value.given for value in values)
    return Value(shape, labels, result.loose, given, values[0].scale, result.parameters)


def _key(reader: Reader, value: Value) -> tuple[int, ...]:
    return tuple(int(label.ids.flatten()[0]) for label in reader.ledger.neurons(value))


def _same_site(reader: Reader, values: Sequence[Value]) -> list[bool]:
    found = [reader.ledger.neurons(value) for value in values]
    if not all(len(labels) == 1 for labels in found):
        return [False]
    sites = [reader.sites_of(labels[0].ids[labels[0].ids != NOBODY]).unique() for labels in found]
    return [torch.equal(site, sites[0]) for site in sites]


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
@rule("reflection_pad3d", "replication_pad3d", "zero_pad2d")
def _pad(reader: Reader, node: Node) -> Value:
    x = reader.env[node.args[0]]  # type: ignore[index]
    amounts: Any = node.args[1]
    changed = {len(x.shape) - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    labels = []
    for label in x.labels:
        if label.axes & changed:
            wide = torch.nn.functional.pad(label.ids.expand(x.shape), list(amounts), value=NOBODY)
            labels.append(Label(collapse(wide), label.key))
        else:
            labels.append(label)
    return Value(reader.shape(node), tuple(labels), x.loose, x.given, x.scale, x.parameters)


# -- reducing and picking -------------------------------------------------------------------------------------------------


def dropped(reader: Reader, x: Value, dims: Sequence[int], shape: Sequence[int], keep: bool) -> Value:
    """The value after the axes ``dims`` were summed up (``keep``: to size 1, or to another size without neurons)."""
    kept, gone = without_axes(x, dims)
    removed = sorted({dim % len(x.shape) for dim in dims}, reverse=True) if x.shape else []
    labels = []
    for label in kept:
        ids = label.ids
        for dim in removed if not keep else []:
            ids = ids.squeeze(dim)
        labels.append(Label(ids, label.key))
    loose = reader.prune(labels, (*x.loose, *reader.ledger.crowds(gone)))
    return Value(tuple(shape), tuple(labels), loose, x.given, 1.0, x.parameters)


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "prod", "any", "all", "logsumexp", "norm", "linalg_vector_norm", "std"
)
@rule("var", "var_mean", "argmax", "argmin", "median", "count_nonzero", "nansum", "nanmean", "topk", "mode", "kthvalue")
def _reduce(reader: Reader, node: Node) -> Any:
    if len(reader.operands(node)) > 1 or (
        reader.name(node) in ("max", "min") and isinstance(reader.arg(node, "other"), Node)
    ):
        return pointwise(reader, node)
    x = reader.env[node.args[0]]  # type: ignore[index]
    dims = reader.arg(node, "dim")
    dims = list(range(len(x.shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    results = node.meta["val"]
    several = isinstance(results, (tuple, list))
    found = []
    for result in results if several else [results]:
        found.append(dropped(reader, x, dims, result.shape, result.dim() == len(x.shape)))
    return found if several else found[0]


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d")
@rule(
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "lp_pool2d",
)
@rule("max_pool2d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d")
@rule("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "lp_pool1d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d", "_adaptive_avg_pool2d")
def _pool(reader: Reader, node: Node) -> Any:
    x = reader.env[node.args[0]]  # type: ignore[index]
    spatial = next((int(c) for c in reversed(reader.name(node)) if c in "123"), 2)
    results = node.meta["val"]
    several = isinstance(results, (tuple, list))
    dims = [-1 - k for k in range(spatial)]
    found = [dropped(reader, x, dims, result.shape, True) for result in (results if several else [results])]
    return found if several else found[0]


@rule("index", "index_select", "gather", "masked_select", "take_along_dim", "embedding_renorm")
def _index(reader: Reader, node: Node) -> Value:
    x = reader.env[node.args[0]]  # type: ignore[index]
    shape, name = reader.shape(node), reader.name(node)
    given = any(value.given for value in reader.operands(node))
    if name == "index":
        indices: Any = list(node.args[1])  # type: ignore[arg-type]
        dims: list[int] = []
        dim = 0
        for index in indices:
            width = 1
            if index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8):
                width = index.meta["val"].dim()
            if index is not None:
                dims += range(dim, dim + width)
            dim += width
        rank = len(shape) - (len(x.shape) - len(dims))
        together = dims == list(range(dims[0], dims[-1] + 1)) if dims else True
        place = dims[0] if together and dims else 0
        wide = shape[place : place + rank]

        def pick(ids: Tensor) -> Tensor:
            rest = [d for d in range(len(x.shape)) if d not in dims]
            ids = ids.permute(*dims, *rest).flatten(0, len(dims) - 1)[0]
            return ids.reshape(*ids.shape[:place], *(1,) * rank, *ids.shape[place:]).expand(
                *ids.shape[:place], *wide, *ids.shape[place:]
            )
    else:
        dims = [reader.arg(node, "dim") % len(x.shape)] if name != "masked_select" else list(range(len(x.shape)))

        def pick(ids: Tensor) -> Tensor:
            return (
                ids.narrow(dims[0], 0, 1).expand(shape) if name != "masked_select" else ids.flatten()[:1].expand(shape)
            )

    kept, gone = without_axes(x, dims)
    try:
        labels = tuple(Label(collapse(pick(label.ids.expand(x.shape))), label.key) for label in kept)
    except RuntimeError:  # an index that also narrows the axes it does not pick from
        return unknown(reader, node)
    loose = reader.prune(labels, (*x.loose, *reader.ledger.crowds(gone)))
    return Value(shape, labels, loose, x.given or given, x.scale, x.parameters)


@rule(
    "index_put",
    "index_add",
    "index_copy",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "slice_scatter",
    "select_scatter",
)
@rule("masked_scatter", "index_fill", "copy_")
def _write(reader: Reader, node: Node) -> Value:
    x = reader.env[node.args[0]]  # type: ignore[index]
    shape = reader.shape(node)
    name = (
        "src"
        if reader.arg(node, "src") is not None
        else "source"
        if reader.arg(node, "source") is not None
        else "values"
    )
    written = reader.value(node, name)
    values = [x]
    if written is not None:
        rank = len(written.shape)
        trailing = [
            label
            for label in written.labels
            if all(len(shape) - rank + d >= 0 and shape[len(shape) - rank + d] == written.shape[d] for d in label.axes)
        ]
        loose = (*written.loose, *reader.ledger.crowds(label for label in written.labels if label not in trailing))
        kept = []
        for label in trailing:
            ids = label.ids
            while ids.dim() > len(shape):
                ids = ids.narrow(0, 0, 1).squeeze(0)
            kept.append(Label(ids, label.key))
        values.append(Value(shape, tuple(kept), loose, written.given, parameters=written.parameters))
    return reader.elementwise(values, shape, "other")
