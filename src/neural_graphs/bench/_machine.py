"""What this machine can do, and what a piece of work takes of it: matmul rate, memory bandwidth, peak memory."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import RunError

MIB = 1 << 20


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run a block on ``count`` threads (None: as torch is set), yield the number, and set the old one again."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def device_name(device: str | torch.device = "cpu") -> str:
    """``"2 x AMD EPYC (CPU)"`` or the name of the GPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} x {model} (CPU)"


def matmul_rate(
    size: int = 2048,
    repeats: int = 7,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    product: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> float:
    """FLOP/s of a square matrix product (``torch.mm``, or ``product``), the best of ``repeats``, at the threads in use."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    if product is not None:
        return 2.0 * size**3 / best_seconds(lambda: product(a, b), repeats)
    out = torch.empty_like(a)
    return 2.0 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), repeats)


def memory_bandwidth(mebibytes: int = 256, repeats: int = 7, device: str = "cpu") -> float:
    """Bytes/s of a copy (read and write counted), the best of ``repeats``; the buffer is far larger than any cache."""
    source = torch.zeros(mebibytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / best_seconds(lambda: target.copy_(source), repeats)


def best_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The shortest of ``repeats`` runs, after one that is not counted."""
    seconds(work)
    return min(seconds(work) for _ in range(repeats))


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one run, GPU work included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def alternate(ours: Callable[[], Any], twin: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn (the order switches every round), after one run each that is not counted.

    What disturbs the machine for longer than one round hits both, so that ratios taken round by round stay right.
    """
    fast, slow = in_turn((ours, twin), rounds)
    return fast, slow


def in_turn(works: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """As `alternate`, for any number of pieces of work."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    order = list(range(len(works)))
    for index in range(rounds):
        for which in order if index % 2 == 0 else order[::-1]:
            times[which].append(seconds(works[which]))
    return times


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of ``slow / fast``."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(target: str, thread_count: int | None = None, **arguments: Any) -> int:
    """Bytes that a piece of work needs at its peak, beyond what stood before it, measured in a fresh process.

    ``target`` is ``"module:function"``; called with the JSON-able ``arguments`` it prepares everything (and warms up
    libraries) and returns the work, a function of no arguments, whose peak is measured. On a GPU (``device="cuda"`` among
    the arguments) torch's own count is read, else the process's resident memory. Raises ``RunError`` when the process fails.
    """
    job = json.dumps({"target": target, "threads": thread_count, "arguments": arguments})
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", f"from {__name__} import _measure_job; _measure_job()"]
    found = subprocess.run(command, input=job, text=True, capture_output=True, env={**os.environ, "PYTHONPATH": path})
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
        raise RunError(f"measuring the memory of {target} failed: {last}")
    return int(found.stdout.strip().splitlines()[-1])


def _measure_job() -> None:
    job = json.load(sys.stdin)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    module, _, name = job["target"].partition(":")
    work = getattr(importlib.import_module(module), name)(**job["arguments"])
    if str(job["arguments"].get("device", "cpu")).startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        print(torch.cuda.max_memory_allocated() - before)
        return
    before = _resident("VmRSS")
    work()
    print(max(0, _resident("VmHWM") - before))


def _resident(field: str) -> int:
    """Bytes of resident memory now (``VmRSS``) or at most so far (``VmHWM``) of this process.

    From /proc where there is one: there ``ru_maxrss`` starts at the peak of the process that started this one. Elsewhere
    (macOS: bytes) it is all there is.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
