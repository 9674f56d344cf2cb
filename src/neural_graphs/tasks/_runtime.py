"""What surrounds the training loop: threads, device, precision, Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neural_graphs._threads import default_threads
from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.nn import Encoder
    from neural_graphs.tasks._config import TrainConfig


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block on ``count`` CPU threads; 0: ``default_threads()``."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or default_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def accelerator(device: str) -> Iterator[Any]:
    """An ``accelerate.Accelerator``: one process on the CPU or a GPU, or as many as `accelerate launch` started."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState

    ours = not PartialState._shared_state
    cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        # What is not read of an encoding is not computed, so some parameters may have no gradient.
        yield Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    finally:
        # accelerate keeps its choice of device for the whole process; the next run may choose another one.
        if ours and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def precision(encoder: Encoder, config: TrainConfig, device: Any) -> Iterator[None]:
    """Edge embeddings in bfloat16 (nodes, parameters and sums stay float32) or all in float32, for training only."""
    before, products = encoder.edge_dtype, torch.get_float32_matmul_precision()
    encoder.edge_dtype = torch.bfloat16 if config.precision == "bf16" else None
    if config.precision != "fp32" and device.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        encoder.edge_dtype = before
        torch.set_float32_matmul_precision(products)


def compiled(model: nn.Module, device: torch.device) -> Any:
    """``model`` through ``torch.compile``, with the same parameters. Raises ``UserError`` where that cannot work."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(4, device=device))
    except Exception as error:  # no C++ compiler, no Triton, an unsupported platform or Python
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"torch.compile does not work here: set compile=false ({reason})") from None
    return torch.compile(model)


class Interrupted(Exception):
    """Ctrl-C, raised between two steps."""


class _Stop:
    requested = False

    def check(self) -> None:
        if self.requested:
            raise Interrupted


@contextlib.contextmanager
def interruptible() -> Iterator[_Stop]:
    """Turn the first Ctrl-C into a request that ``check`` answers at a safe moment; the second one breaks off at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(_signal: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
