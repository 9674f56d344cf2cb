"""Networks that cast to float32 on the way, run in float64 all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DoublePrecision(TorchDispatchMode):
    """While it is on, every operator asked for float32 gives float64.

    Many language models compute their norms, softmaxes and rotary angles in float32 whatever their weights are; a check
    "in float64" would then measure the rounding of those steps. Inside this context the same network computes in float64
    throughout, and rounding cannot be taken for a small error of the group.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)
