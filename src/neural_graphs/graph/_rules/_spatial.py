"""Pooling and interpolation: positions are fixed, channels pass through."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from neural_graphs.graph._rules._registry import Axes, Call, Unsupported, rule
from neural_graphs.graph._space import fixed, freeze, mix


def _pooled(call: Call, count: int) -> Any:
    x = call.input
    spatial = list(range(len(x) - count, len(x)))
    mix(x, spatial)
    freeze([x[d] for d in spatial])
    values = [call.value] if isinstance(call.value, Tensor) else list(call.value)
    found = [[*x[:-count], *(fixed(int(n)) for n in v.shape[-count:])] for v in values]
    return found[0] if isinstance(call.value, Tensor) else found


def _register(names: tuple[str, ...], count: int) -> None:
    @rule(*names)
    def pooling(call: Call) -> Any:
        return _pooled(call, count)


for _count in (1, 2, 3):
    _register(
        tuple(f"{kind}_pool{_count}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp"))
        + (f"max_pool{_count}d_with_indices", f"_adaptive_avg_pool{_count}d", f"upsample_nearest{_count}d")
        + (f"_upsample_nearest_exact{_count}d", f"reflection_pad{_count}d", f"replication_pad{_count}d")
        + {
            1: ("upsample_linear1d",),
            2: ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
            3: ("upsample_trilinear3d",),
        }[_count],  # fmt: skip
        _count,
    )


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call) -> Axes:
    raise Unsupported
