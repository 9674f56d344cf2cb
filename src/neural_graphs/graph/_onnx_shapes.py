"""The ONNX operators that move, cut, look up, reduce and resize, each written with torch's own functions."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F

from neural_graphs.errors import UserError
from neural_graphs.graph._onnx_operators import Call, Value, handles


@handles("Shape", "Size")
def _shape(call: Call) -> Value:
    shape = list(call[0].shape)
    if call.kind == "Size":
        return Value(torch.tensor(math.prod(shape)), None)
    return Value(torch.tensor(shape[call.attribute("start", 0) : call.attribute("end", None)], dtype=torch.int64), None)


@handles("Reshape")
def _reshape(call: Call) -> Value:
    sizes = call.ints(1, "shape") or []
    if not call.attribute("allowzero", 0):
        sizes = [call[0].shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return call.emit(torch.reshape, call[0], sizes)


@handles("Flatten")
def _flatten(call: Call) -> Value:
    shape = call[0].shape
    axis = call.attribute("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if axis == 1:  # said in this way, the trace sees a plain flattening
        return call.emit(torch.flatten, call[0], 1) if len(shape) > 1 else call.emit(torch.unsqueeze, call[0], 1)
    return call.emit(torch.reshape, call[0], [math.prod(shape[:axis]), math.prod(shape[axis:])])


@handles("Transpose")
def _transpose(call: Call) -> Value:
    return call.emit(torch.permute, call[0], list(call.attribute("perm", range(call[0].value.dim())[::-1])))


@handles("Squeeze", "Unsqueeze")
def _squeeze(call: Call) -> Value:
    axes, rank = call.ints(1, "axes"), call[0].value.dim()
    if call.kind == "Squeeze":
        return call.emit(torch.squeeze, call[0], tuple(i for i, n in enumerate(call[0].shape) if n == 1) if axes is None
                         else tuple(axes))  # fmt: skip
    found = call[0]
    for axis in sorted(axis % (rank + len(axes or ())) for axis in axes or ()):
        found = call.emit(torch.unsqueeze, found, axis)
    return found


@handles("Expand")
def _expand(call: Call) -> Value:
    sizes = torch.broadcast_shapes(call[0].shape, tuple(call.ints(1, "shape") or ()))
    return call.emit(torch.broadcast_to, call[0], list(sizes))


@handles("Concat")
def _concat(call: Call) -> Value:
    parts = [call[place] for place in range(len(call.inputs))]
    parts = [part for part in parts if part.shape != (0,)]  # exporters append empty lists of sizes
    return call.emit(torch.cat, parts, call.attributes["axis"]) if parts else call[0]


@handles("Split")
def _split(call: Call) -> list[Value]:
    axis = call.attribute("axis", 0)
    sizes = call.ints(1, "split")
    if sizes is None:
        total, count = call[0].shape[axis], call.attribute("num_outputs", len(call.outputs))
        step = math.ceil(total / count)
        sizes = [min(step, total - step * place) for place in range(count)]
    found = call.emit(torch.split, call[0], sizes, axis)
    return [call.emit(operator.getitem, found, place) for place in range(len(sizes))]


@handles("Slice")
def _slice(call: Call) -> Value:
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4, "steps") or [1] * len(starts)
    index = [slice(None)] * call[0].value.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise UserError("slices that run backwards are not supported")
        index[axis] = slice(start, end, step)
    return call.emit(operator.getitem, call[0], tuple(index))


@handles("Gather")
def _gather(call: Call) -> Value:
    table, places, axis = call[0], call[1], call.attribute("axis", 0) % call[0].value.dim()
    if places.node is not None:
        if axis == 0 and table.value.dim() == 2 and not places.value.is_floating_point():
            return call.emit(F.embedding, places, table)
        raise UserError("places that depend on the network's input data are supported for tables of embeddings only")
    wanted = places.value % table.shape[axis]  # negative ones count from the end
    if wanted.dim() == 0:
        return call.emit(torch.select, table, axis, int(wanted))
    flat = wanted.flatten()
    first, count = int(flat[0]) if flat.numel() else 0, flat.numel()
    if torch.equal(flat, torch.arange(first, first + count)):
        found = call.emit(torch.narrow, table, axis, first, count)
    else:
        found = call.emit(torch.index_select, table, axis, Value(flat, None))
    shape = [*table.shape[:axis], *wanted.shape, *table.shape[axis + 1 :]]
    return found if wanted.dim() == 1 else call.emit(torch.reshape, found, shape)


@handles("Pad")
def _pad(call: Call) -> Value:
    pads, fill, rank = call.ints(1, "pads") or [], call.static(2), call[0].value.dim()
    axes = call.ints(3, "axes") or list(range(rank))
    per_axis = {axis % rank: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    mode = {"edge": "replicate"}.get(call.attribute("mode", "constant"), call.attribute("mode", "constant"))
    outer = min((axis for axis, pad in per_axis.items() if pad != (0, 0)), default=rank)
    flat = [size for axis in reversed(range(outer, rank)) for size in per_axis.get(axis, (0, 0))]
    if not flat:
        return call[0]
    if mode == "constant":
        return call.emit(F.pad, call[0], flat, mode, 0.0 if fill is None else fill.item())
    return call.emit(F.pad, call[0], flat, mode)


@handles("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    from onnx import numpy_helper

    filled = (
        torch.from_numpy(numpy_helper.to_array(call.attributes["value"]).copy()) if call.attributes else torch.zeros(1)
    )
    return Value(filled.reshape(()).repeat(call.ints(0, "shape") or []), None)


@handles("Range")
def _range(call: Call) -> Value:
    start, end, step = (value for value in map(call.static, range(3)) if value is not None)
    return Value(torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype), None)


@handles("Trilu")
def _trilu(call: Call) -> Value:
    offset = call.static(1)
    function = torch.triu if call.attribute("upper", 1) else torch.tril
    return call.emit(function, call[0], 0 if offset is None else int(offset))


@handles("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
def _reduce(call: Call) -> Value:
    x, keep = call[0], bool(call.attribute("keepdims", 1))
    axes = call.ints(1, "axes")
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return x
    axes = axes or list(range(x.value.dim()))
    if call.kind in ("ReduceL2", "ReduceSumSquare"):
        x = call.emit(torch.mul, x, x)
    function: Any = {"ReduceMean": torch.mean, "ReduceMax": torch.amax, "ReduceMin": torch.amin}.get(
        call.kind, torch.sum
    )
    found = call.emit(function, x, axes, keep)
    return call.emit(torch.sqrt, found) if call.kind == "ReduceL2" else found


@handles("DepthToSpace")
def _depth_to_space(call: Call) -> Value:
    size = call.attributes["blocksize"]
    if call.attribute("mode", "DCR") == "CRD":
        return call.emit(F.pixel_shuffle, call[0], size)
    n, c, h, w = call[0].shape
    split = call.emit(torch.reshape, call[0], [n, size, size, c // size**2, h, w])
    return call.emit(
        torch.reshape,
        call.emit(torch.permute, split, [0, 3, 4, 1, 5, 2]),
        [n, c // size**2, h * size, w * size],
    )


@handles("Resize")
def _resize(call: Call) -> Value:
    x, scales, sizes = call[0], call.static(2), call.static(3)
    if sizes is None and scales is not None:
        wanted = [math.floor(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    else:
        wanted = [int(n) for n in sizes.tolist()] if sizes is not None else list(x.shape)
    if wanted[:2] != list(x.shape[:2]) or "axes" in call.attributes:
        raise UserError("only the axes behind batch and channels can be resized")
    place = call.attribute("coordinate_transformation_mode", "half_pixel")
    mode = call.attribute("mode", "nearest")
    if mode == "nearest" and place == "asymmetric" and call.attribute("nearest_mode", "round_prefer_floor") == "floor":
        return call.emit(F.interpolate, x, wanted[2:], None, "nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.value.dim()]
        return call.emit(F.interpolate, x, wanted[2:], None, linear, place == "align_corners")
    raise UserError(f"the mode {mode} with {place} is not supported")
