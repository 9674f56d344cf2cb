"""Slots of a meta-training run, in this process or shared out over several."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from neural_graphs._memory import keep_buffers
from neural_graphs._threads import default_threads
from neural_graphs.errors import RunError
from neural_graphs.optim._config import MetaConfig
from neural_graphs.optim._rule import create_rule
from neural_graphs.optim._unroll import Slot


class Slots:
    """Those of ``config`` with these numbers."""

    def __init__(self, config: MetaConfig, numbers: range) -> None:
        rule = create_rule(**config.rule)
        self.slots = {number: Slot(config, rule, number) for number in numbers}

    def advance(self, theta: Tensor, number: int) -> dict[int, tuple[Tensor, float]]:
        """See ``Slot.advance``, by the slot's number."""
        return {key: slot.advance(theta, number) for key, slot in self.slots.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Of all slots, for ``restore``."""
        return {
            f"slot{key}.{name}": value for key, slot in self.slots.items() for name, value in slot.tensors().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for key, slot in self.slots.items():
            prefix = f"slot{key}."
            slot.restore({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})

    def close(self) -> None:
        """Nothing to end here."""


class Workers:
    """As ``Slots``, in ``count`` processes of one thread each. What they compute does not depend on ``count``.

    Raises:
        RunError: a process ended or failed.
    """

    def __init__(self, config: MetaConfig, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection]] = []
        kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        os.environ.update(dict.fromkeys(kept, "1"))  # read by the libraries when the processes start
        try:
            for first in range(count):
                here, there = context.Pipe()
                numbers = range(first, config.slots, count)
                process = context.Process(target=_serve, args=(there, config, numbers), daemon=True)
                process.start()
                there.close()
                self._workers.append((process, here))
        finally:
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value

    def advance(self, theta: Tensor, number: int) -> dict[int, tuple[Tensor, float]]:
        found: dict[int, tuple[Tensor, float]] = {}
        for part in self._ask("advance", theta.numpy(), number):
            found |= {key: (torch.from_numpy(gradient), loss) for key, (gradient, loss) in part.items()}
        return found

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for part in self._ask("tensors") for name, value in part.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._ask("restore", {name: value.numpy() for name, value in tensors.items() if name.startswith("slot")})

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()

    def _ask(self, *request: Any) -> list[Any]:
        for _, connection in self._workers:
            connection.send(request)
        answers = []
        for _, connection in self._workers:
            try:
                kind, value = connection.recv()
            except (EOFError, OSError):
                raise RunError("a worker process ended: out of memory? Use fewer workers, slots or pairs") from None
            if kind == "error":
                raise RunError(f"a worker process failed: {value}")
            answers.append(value)
        return answers


def _serve(connection: Connection, config: MetaConfig, numbers: range) -> None:
    """What a worker process does: answer until the other end is closed."""
    torch.set_num_threads(1)
    keep_buffers()
    slots = Slots(config, numbers)
    while True:
        try:
            name, *arguments = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send(("value", _answer(slots, name, arguments)))
        except KeyboardInterrupt:
            return
        except Exception as error:
            connection.send(("error", "".join(traceback.format_exception_only(error)).strip()))


def _answer(slots: Slots, name: str, arguments: list[Any]) -> Any:
    """Arrays instead of tensors: torch would share memory between the processes through files."""
    if name == "advance":
        theta, number = arguments
        found = slots.advance(torch.from_numpy(theta), number)
        return {key: (gradient.numpy(), loss) for key, (gradient, loss) in found.items()}
    if name == "tensors":
        return {key: value.numpy() for key, value in slots.tensors().items()}
    return slots.restore({key: torch.from_numpy(value) for key, value in arguments[0].items()})


def slots_of(config: MetaConfig) -> Slots | Workers:
    """All slots of a run, on ``config.workers`` processes."""
    count = min(config.workers or default_threads(), config.slots)
    return Slots(config, range(config.slots)) if count == 1 else Workers(config, count)
