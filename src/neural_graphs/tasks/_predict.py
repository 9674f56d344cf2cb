"""What a model says about networks that a user names: a few at a time, each with a result or a one-line error of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_graphs._progress import Progress, progress
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import GraphBatch
from neural_graphs.tasks._classifier import Classifier
from neural_graphs.tasks._model import Model
from neural_graphs.tasks._networks import Found, Reader, find, num_bytes, one_line, printable
from neural_graphs.zoo._store import Zoo

if TYPE_CHECKING:
    from neural_graphs.graph import Architecture

CHUNK = 128  # networks read before the model sees them
CHUNK_BYTES = 128 << 20  # or less, where they are large


@dataclass(frozen=True)
class Network:
    """One network that was read; ``result`` is its entry in the list of results.

    ``path`` is its file (or zoo), ``names`` what the tensors of ``state`` are called there where that is not the same.
    """

    result: dict[str, Any]
    architecture: Architecture
    state: dict[str, Tensor]
    path: str
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return name_of(self.result)


Answer = Callable[[Sequence[Network], GraphBatch], list[dict[str, Any]]]
"""From networks and their graphs, in the same order, what goes into their results."""


def predict(
    run: str | os.PathLike[str] | Classifier,
    files: Sequence[str | os.PathLike[str]],
    activation: str | None = None,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Classes of the networks in ``files`` (``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``), in their order.

    Each result has ``file``, ``class`` (int), ``label`` (its name), ``probabilities`` and ``architecture``; a file that
    cannot be read or classified has ``file`` and ``error``, and stops none of the others. A folder stands for the files in
    it, a zoo for its networks: their results have ``network``, the number, too. ``activation`` (``"sine:30"``) is needed
    only where the model was trained on networks of several non-linearities and the file states none.

    Raises:
        UserError: ``run`` is no folder of a run or model.
    """
    model = run if isinstance(run, Classifier) else Classifier.from_pretrained(run)
    found: list[Found] = []
    for file in files:
        found += find([file]) if os.path.isdir(file) else [Found(os.fspath(file))]

    def answer(members: Sequence[Network], batch: GraphBatch) -> list[dict[str, Any]]:
        rows = []
        for member, chances in zip(members, model.predict_proba(batch), strict=True):
            best = int(torch.argmax(chances))
            rows.append(
                {
                    "class": best,
                    "label": model.class_names[best],
                    "probabilities": chances.tolist(),
                    "architecture": str(member.architecture),
                }
            )
        return rows

    return answer_all(model, found, answer, activation, quiet)


def answer_all(
    model: Model, found: Sequence[Found], answer: Answer, activation: str | None, quiet: bool
) -> list[dict[str, Any]]:
    """A result per network, in the order of ``found``: ``file`` (and ``network``) with what ``answer`` says, or ``error``.

    Holds ``CHUNK`` networks at a time. Whatever goes wrong with one of them is in its own result.
    """
    results: list[dict[str, Any]] = []
    zoos: dict[str, Zoo | str] = {}
    for entry in found:
        if entry.zoo:
            try:
                zoos[entry.path] = Zoo.load(entry.path)
            except Exception as error:
                zoos[entry.path] = one_line(error)
    total = len(found) + sum(len(zoo) - 1 for zoo in zoos.values() if isinstance(zoo, Zoo))
    with contextlib.nullcontext() if quiet else progress("networks", total) as bar:
        waiting: list[Network] = []
        size = 0
        for network in _read(found, zoos, Reader(model.architectures, activation), results, bar):
            waiting.append(network)
            size += num_bytes(network.state)
            if len(waiting) >= CHUNK or size >= CHUNK_BYTES:
                _answer(model, waiting, answer)
                waiting, size = [], 0
        _answer(model, waiting, answer)
    return results


def name_of(result: dict[str, Any]) -> str:
    """What a list calls a network: its file, or its zoo and number."""
    return f"{result['file']} #{result['network']}" if "network" in result else str(result["file"])


def _read(
    found: Sequence[Found],
    zoos: dict[str, Zoo | str],
    reader: Reader,
    results: list[dict[str, Any]],
    bar: Progress | None,
) -> Iterator[Network]:
    """Readable networks one by one; all of them, readable or not, get their place in ``results``."""
    for entry in found:
        zoo = zoos.get(entry.path) if entry.zoo else None
        if isinstance(zoo, Zoo):
            for network in _read_zoo(zoo, entry.path, results):
                yield network
                if bar is not None:
                    bar.advance()
            continue
        result: dict[str, Any] = {"file": printable(entry.path)}
        results.append(result)
        if entry.error or isinstance(zoo, str):
            result["error"] = printable(entry.error or str(zoo))
        else:
            try:
                architecture, state, names = reader.read(entry.path)
            except Exception as error:  # whatever a file of unknown origin brings about, the others are read
                result["error"] = one_line(error)
            else:
                yield Network(result, architecture, state, entry.path, names)
        if bar is not None:
            bar.advance()


def _read_zoo(zoo: Zoo, path: str, results: list[dict[str, Any]]) -> Iterator[Network]:
    networks = zoo.all
    numbers = networks.column("network").tolist()
    for first in range(0, len(numbers), CHUNK):
        rows = list(range(first, min(first + CHUNK, len(numbers))))
        try:
            parts = [(rows, networks.state_dicts(rows))]
        except UserError:  # one of them has NaN weights or the shard is broken: which are good?
            parts = []
            for row in rows:
                try:
                    parts.append(([row], networks.state_dicts([row])))
                except Exception as error:
                    results.append({"file": printable(path), "network": numbers[row], "error": one_line(error)})
        for here, groups in parts:
            for name, places, values in groups:
                for k, place in enumerate(places.tolist()):
                    result = {"file": printable(path), "network": numbers[here[place]]}
                    results.append(result)
                    state = {key: value[k] for key, value in values.items()}
                    yield Network(result, zoo.architectures[name], state, path)


def _answer(model: Model, members: list[Network], answer: Answer) -> None:
    """Complete the results of ``members``."""
    if not members:
        return
    try:
        kinds: dict[Architecture, list[int]] = {}
        for place, member in enumerate(members):
            kinds.setdefault(member.architecture, []).append(place)
        graphs = []
        for architecture, places in kinds.items():
            states = [members[place].state for place in places]
            graph = architecture.graph({name: torch.stack([state[name] for state in states]) for name in states[0]})
            model.check_readable(graph)
            graphs.append(graph)
        batch = GraphBatch(tuple(graphs), tuple(torch.tensor(places) for places in kinds.values()))
        rows = answer(members, batch)
    except RunError:  # a full disk is none of a network's mistakes
        raise
    except Exception as error:  # of one network, or of one architecture: the others do not suffer
        if len(members) == 1:
            members[0].result["error"] = one_line(error)
        else:
            for member in members:
                _answer(model, [member], answer)
        return
    for member, row in zip(members, rows, strict=True):
        member.result.update(row)
