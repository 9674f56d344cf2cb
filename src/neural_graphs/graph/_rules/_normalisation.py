"""Normalisation layers and softmax."""

from __future__ import annotations

from torch import Tensor

from neural_graphs.graph._axes import close, mix, narrow
from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule, unify_all
from neural_graphs.graph._space import split
from neural_graphs.graph._var import fixed, space_size


@rule(
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "instance_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
)
def batch_norm(call: Call) -> Axes | list[Axes]:
    x = call.axes("input")
    if call.get("training"):  # all of a channel is averaged, and the channels differ
        mix(x, [d for d in range(len(x)) if d != 1])
    elif call.name == "instance_norm":
        mix(x, range(2, len(x)))
    unify_all(
        (call.axes(name)[0], x[1]) for name in ("weight", "bias", "running_mean", "running_var") if call.has(name)
    )
    return x if isinstance(call.value, Tensor) else _with_statistics(call, x)


def _with_statistics(call: Call, x: Axes) -> list[Axes]:
    """The decomposed forms also return the mean and deviation that were used."""
    found = [x]
    for value in list(call.value)[1:]:
        sizes = [int(n) for n in value.shape]
        if sizes == [space_size(x[1])]:
            found.append([x[1]])
        elif len(sizes) == len(x):
            found.append([s if space_size(s) == n else ((),) for s, n in zip(x, sizes, strict=True)])
        elif sizes == [0]:
            found.append([fixed(0)])
        else:
            raise Unsupported
    return found


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Axes | list[Axes]:
    x = call.axes("input")
    count = len(call["normalized_shape"])
    unify_all(
        pair for name in ("weight", "bias") if call.has(name) for pair in zip(call.axes(name), x[-count:], strict=True)
    )
    mix(x, range(len(x) - count, len(x)))
    return x if isinstance(call.value, Tensor) else _with_statistics(call, x)


@rule("group_norm")
def group_norm(call: Call) -> Axes:
    x, groups = call.axes("input"), call.integer("num_groups")
    channels = space_size(x[1])
    unify_all((call.axes(name)[0], x[1]) for name in ("weight", "bias") if call.has(name))
    apart = [x[0], *split(x[1], groups, channels // groups), *x[2:]]
    close(apart)
    mix(apart, range(2, len(apart)))
    return x


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def softmax(call: Call) -> Axes:
    x = call.input
    if x:
        mix(x, [call.integer("dim")])
    return x


@rule("glu")
def glu(call: Call) -> Axes:
    x = call.input
    dim = call.integer("dim") % len(x)
    half = space_size(x[dim]) // 2
    first, second = narrow(x, dim, 0, half), narrow(x, dim, half, 2 * half)
    unify_all(zip(first, second, strict=True))
    return first


@rule("renorm")
def renorm(call: Call) -> Axes:
    """Every slice along ``dim`` is divided by its own norm."""
    x = call.input
    dim = call.integer("dim") % len(x)
    mix(x, [d for d in range(len(x)) if d != dim])
    return x
