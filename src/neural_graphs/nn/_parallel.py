"""Pieces of work side by side: on the CPU a thread for each piece instead of all threads for each of its operations."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")


def workers(pieces: int, device: torch.device) -> int:
    """How many threads ``each`` has work for."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return 1
    return max(1, min(pieces, torch.get_num_threads()))


def each(function: Callable[[int, T], None], pieces: Sequence[T], count: int) -> None:
    """``function(worker, piece)`` for all pieces, without gradients, on ``count`` threads (see ``workers``).

    Piece i is always worker ``i % count``'s, and each worker has its pieces in order: sums that a worker keeps are the same
    in every run. Operations of torch's that would be split among threads run on one inside.

    Operations on a chunk that fits a cache are too short to be split: with two threads they would take about as long.
    """
    if count == 1:
        for piece in pieces:
            function(0, piece)
        return
    inference = torch.is_inference_mode_enabled()

    def run(worker: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for piece in pieces[worker::count]:
                function(worker, piece)

    for future in [_pool(os.getpid(), torch.get_num_threads()).submit(run, worker) for worker in range(count)]:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """Threads on which torch's operations are not split; of this process, as a forked one has none of its parent's."""
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # sets the calling thread's number, once, to what all have
        torch.set_num_threads(1)  # the calling thread's, and that of threads that start later
        started.wait()

    pool = ThreadPoolExecutor(count, "neural-graphs", start)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(count)
    return pool
