"""Pooling and interpolation: positions are fixed, channels pass through."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from neural_graphs.graph._axes import mix
from neural_graphs.graph._rules._registry import Call, rule
from neural_graphs.graph._space import freeze
from neural_graphs.graph._var import fixed


def _pooled(call: Call, count: int) -> Any:
    x = call.input
    spatial = list(range(len(x) - count, len(x)))
    mix(x, spatial)
    freeze([x[d] for d in spatial])
    values = [call.value] if isinstance(call.value, Tensor) else list(call.value)
    found = [[*x[:-count], *(fixed(int(n)) for n in v.shape[-count:])] for v in values]
    return found[0] if isinstance(call.value, Tensor) else found


POOLING = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
           "_upsample_nearest_exact", "reflection_pad", "replication_pad")  # fmt: skip
NAMES = {
    1: ("max_pool1d_with_indices", "upsample_linear1d"),
    2: ("max_pool2d_with_indices", "_adaptive_avg_pool2d", "upsample_bilinear2d", "upsample_bicubic2d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    3: ("max_pool3d_with_indices", "_adaptive_avg_pool3d", "upsample_trilinear3d"),
}  # fmt: skip
"""Operators by their number of spatial axes."""

for _count, _names in NAMES.items():
    rule(*_names, *(f"{name}{_count}d" for name in POOLING))(partial(_pooled, count=_count))
