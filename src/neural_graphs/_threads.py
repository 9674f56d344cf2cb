"""How many threads heavy work should use. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """One thread per physical core that this process may use.

    Small networks run several times slower when more threads than cores share the work, so hardware threads, the cores
    that the scheduler withholds and the quota of a container all count.
    """
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in usable}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return max(1, min(len(cores), round(int(quota) / int(period))))
    return max(1, len(cores))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
