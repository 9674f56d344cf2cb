"""Progress on stderr: a bar with time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

T = TypeVar("T")
_LINE_EVERY = 10.0  # seconds between lines where stderr is no terminal
_live: RichProgress | None = None  # the bars on the screen; nested calls add a bar to it


class Progress(Protocol):
    """What `progress` yields."""

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more units as done."""

    def describe(self, description: str) -> None:
        """Change the text beside the bar."""


def track(iterable: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate over `iterable` and show how far it is. `total` is its length where that is not given."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total) as bar:
        for item in iterable:
            yield item
            bar.advance()


@contextlib.contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Progress]:
    """Show one bar while the block runs. Silent with `NEURAL_GRAPHS_NO_PROGRESS=1`. `total` None: unknown."""
    global _live
    if os.environ.get("NEURAL_GRAPHS_NO_PROGRESS") == "1":
        yield _Silent()
    elif not sys.stderr.isatty():
        lines = _Lines(description, total)
        yield lines
        lines.finish()
    elif _live is not None:
        task = _live.add_task(description, total=total)
        try:
            yield _Bar(_live, task)
        finally:
            _live.remove_task(task)
    else:
        with _screen() as _live:
            try:
                yield _Bar(_live, _live.add_task(description, total=total))
            finally:
                _live = None


def _screen() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Silent:
    def advance(self, amount: float = 1) -> None:
        pass

    def describe(self, description: str) -> None:
        pass


class _Bar:
    def __init__(self, screen: RichProgress, task: TaskID) -> None:
        self.screen, self.task = screen, task

    def advance(self, amount: float = 1) -> None:
        self.screen.advance(self.task, amount)

    def describe(self, description: str) -> None:
        self.screen.update(self.task, description=description)


class _Lines:
    """For logs: nothing for work shorter than `_LINE_EVERY`, then a line per period and one at the end."""

    def __init__(self, description: str, total: float | None) -> None:
        self.description, self.total, self.done = description, total, 0.0
        self.start = self.last = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last >= _LINE_EVERY:
            self.last = now
            self._print(now - self.start)

    def describe(self, description: str) -> None:
        self.description = description

    def finish(self) -> None:
        if self.last > self.start:
            self._write(f"done in {_clock(time.monotonic() - self.start)}")

    def _print(self, elapsed: float) -> None:
        text = f"{self.done:.0f}"
        if self.total:
            left = elapsed * (self.total - self.done) / self.done if self.done else 0.0
            text += f"/{self.total:.0f} ({self.done / self.total:.0%}), {_clock(left)} left"
        self._write(f"{text}, {_clock(elapsed)} elapsed")

    def _write(self, text: str) -> None:
        print(f"{self.description}: {text}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
