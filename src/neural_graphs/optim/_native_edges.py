"""The walks over all parameters by compiled functions, and the choice between them and torch.

``_rule_kernel.cpp`` is compiled when it is first needed. Where there is no compiler, on other devices and for other dtypes,
``_torch_edges.py`` computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.graph._native import native_function
from neural_graphs.optim._modulated import BETAS, CONTEXT, SCALES, STATISTICS, TIMES, Walk
from neural_graphs.optim._places import STATIC, Places
from neural_graphs.optim._plain_adam import BETA2, EPSILON
from neural_graphs.optim._torch_edges import TorchEdges
from neural_graphs.optim._wiring import Piece, Wiring

if TYPE_CHECKING:
    from neural_graphs.optim._rule import State

_LARGEST = 1 << 16
"""Parameters per tile; larger pieces are split, so that threads share them."""

_PER_THREAD = 1 << 18
"""Parameters from which on another thread is worth its start."""


class _Task(ctypes.Structure):
    """As the source has it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("particles", "tiles", "pieces", "places", "sums", "hidden", "threads")),
        *((name, ctypes.c_void_p) for name in ("tile", "strides")),
        *((name, ctypes.c_void_p) for name in ("weight", "gradient", "momenta", "square", "update")),
        ("decay", ctypes.c_double * 4),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("statistics", "square_sums", "scales", "factor", "vectors", "matrix")),
        *((name, ctypes.c_void_p) for name in ("heads", "offsets", "message_sums", "summary")),
        *((name, ctypes.c_int64) for name in ("neurons", "context", "fixed", "ages")),
        *((name, ctypes.c_void_p) for name in ("extra", "piece", "side", "neuron", "slot")),
        *((name, ctypes.c_void_p) for name in ("summed", "collected", "numel", "statics", "corrections", "age_values")),
        *((name, ctypes.c_void_p) for name in ("described", "known", "factors", "profile", "told", "ends", "spoken")),
        *((name, ctypes.c_void_p) for name in ("spread_out", "neuron_means", "piece_means")),
    )


@cache
def _function(name: str) -> Any:
    return native_function(Path(__file__).with_name("_rule_kernel.cpp"), name, (ctypes.POINTER(_Task),))


def edges_of(
    wiring: Wiring,
    at: Places,
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: State,
    differentiable: bool = False,
) -> TorchEdges | NativeEdges:
    """The compiled walks where they can be taken: on the CPU in float32, with nothing to differentiate."""
    first = state[wiring.pieces[0].parameter]["square"]
    if first.device.type == "cpu" and first.dtype == torch.float32 and not differentiable:
        tiles = _tiles(wiring, at, tuple([params[name].shape[1:] for name in wiring.parameters]))
        if tiles is not None and _function("measure") is not None:
            return NativeEdges(wiring, at, params, grads, state, tiles)
    return TorchEdges(wiring, at, params, grads, state)


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The source's tiles ``[T, 12]``; which piece each belongs to; where column sums of split pieces are added.

    ``task`` is what the source is told that no step changes.
    """

    table: np.ndarray
    piece: Tensor
    sums: int
    extra: Tensor | None
    entries: int
    at: Places

    @cached_property
    def task(self) -> _Task:
        at, tiles = self.at, self
        return _Task(
            tiles=len(tiles.table),
            pieces=len(at.targets),
            places=at.count,
            sums=tiles.sums,
            tile=tiles.table.ctypes.data,
            neurons=at.neurons,
            context=CONTEXT,
            fixed=STATIC,
            ages=len(TIMES),
            extra=None if tiles.extra is None else tiles.extra.data_ptr(),
            piece=at.piece.data_ptr(),
            side=at.side.data_ptr(),
            neuron=at.neuron.data_ptr(),
            slot=at.slot.data_ptr(),
            summed=at.summed.data_ptr(),
            collected=at.collected.data_ptr(),
            numel=at.numel.data_ptr(),
            statics=at.static.data_ptr(),
            decay=(ctypes.c_double * 4)(*BETAS, BETA2),
            epsilon=EPSILON,
        )


@lru_cache(maxsize=256)
def _tiles(wiring: Wiring, at: Places, shapes: tuple[tuple[int, ...], ...]) -> _Tiles | None:
    """None where some piece is no view of its tensor."""
    numbers = {
        name: (number, shape) for number, (name, shape) in enumerate(zip(wiring.parameters, shapes, strict=True))
    }
    rows: list[tuple[int, ...]] = []
    extra: list[Tensor] = []
    beyond = at.count
    for number, piece in enumerate(wiring.pieces):
        tensor, shape = numbers[piece.parameter]
        strides = _strides(piece, shape)
        if strides is None:
            return None
        offset, (by_target, by_source, by_tap) = strides
        n_target, n_source, taps = piece.sizes
        n_target //= piece.groups
        target_at, source_at, _ = at.spans(number)
        # Rows are walked one after another, along vectors: the longer and the adjacent axis should be within rows.
        turn = by_target < by_source * (n_source > 1) or (n_source * taps < 8 and n_target > n_source * taps)
        for group in range(piece.groups):
            begin = offset + group * n_target * by_target
            ends = target_at + group * n_target, source_at + group * n_source
            sides = ((n_target, by_target, ends[0]), (n_source, by_source, ends[1]))
            (n_rows, by_row, row_at), (columns, by_column, column_at) = sides[::-1] if turn else sides
            length = max(1, _LARGEST // (columns * taps))
            for first in range(0, n_rows, length):
                count = min(length, n_rows - first)
                column_out = column_at
                if count < n_rows:
                    column_out, beyond = beyond, beyond + columns
                    extra.append(torch.arange(column_at, column_at + columns))
                start = begin + first * by_row
                where = (row_at + first, column_at, column_out)
                rows.append((tensor, number, start, count, columns, taps, by_row, by_column, by_tap, *where))
    table = np.array(rows, np.int64)
    added = torch.cat(extra) if extra else None
    entries = sum(piece.numel for piece in wiring.pieces)
    return _Tiles(table, torch.from_numpy(table[:, 1].copy()), beyond, added, entries, at)


def _strides(piece: Piece, shape: tuple[int, ...]) -> tuple[int, tuple[int, int, int]] | None:
    """Offset and strides of the piece in a contiguous tensor of that shape, or None if it is no view."""
    whole = torch.empty(1, *shape)
    view = piece.read(whole)
    if view.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    _, by_target, by_source, by_tap = view.stride()
    return int(view.storage_offset()), (by_target, by_source, by_tap)


class NativeEdges:
    """As ``TorchEdges``, compiled; a walk is shared by as many threads as torch has, and does not depend on their number."""

    def __init__(
        self,
        wiring: Wiring,
        at: Places,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        tiles: _Tiles,
    ) -> None:
        names = wiring.parameters
        self.at, self.tiles, self.names = at, tiles, names
        self._params = [_dense(params[name]) for name in names]
        self._grads = [_dense(grads[name]) for name in names]
        self._momenta = [state[name]["momenta"] for name in names]
        self._squares = [state[name]["square"] for name in names]
        self.networks = len(self._params[0])
        self.task = _Task.from_buffer_copy(tiles.task)
        self.task.particles = self.networks
        self.task.threads = max(1, min(torch.get_num_threads(), self.networks * tiles.entries // _PER_THREAD))
        self._strides = np.zeros((len(names), 6), np.int64)
        self._strides[:, 5] = [value.stride(0) for value in self._momenta]
        self._pointers: list[np.ndarray] = []
        self._point(0, "weight", self._params)
        self._point(1, "gradient", self._grads)
        self._point(2, "momenta", self._momenta, axis=1)
        self._point(3, "square", self._squares)
        self.task.strides = self._strides.ctypes.data

    def _point(self, column: int, field: str, tensors: list[Tensor], axis: int = 0) -> None:
        table = np.array([value.data_ptr() for value in tensors], np.uint64)
        self._pointers.append(table)
        self._strides[:, column] = [value.stride(axis) for value in tensors]
        setattr(self.task, field, table.ctypes.data)

    def _run(self, name: str, **arguments: Tensor) -> None:
        held = {key: value.contiguous() for key, value in arguments.items()}
        for key, value in held.items():
            setattr(self.task, key, value.data_ptr())
        _function(name)(ctypes.byref(self.task))

    def measure(self, corrections: Tensor, ages: Tensor) -> tuple[Walk, Tensor, Tensor]:
        networks, pieces, count = self.networks, self.task.pieces, self.at.count
        scales, known = torch.empty(networks, pieces, SCALES), torch.empty(networks, pieces, CONTEXT)
        factor, profile = torch.empty(2, networks, count).unbind()
        statistics = torch.empty(networks, self.task.tiles, STATISTICS)
        squares = self._sums(1).squeeze(2)
        clock = {"corrections": corrections, "age_values": ages}
        out = {"described": scales, "known": known, "factors": factor, "profile": profile}
        self._run("measure", statistics=statistics, square_sums=squares, **clock, **out)
        return Walk(scales, factor), known, profile

    def spread(self, told: Tensor, ends: Tensor, profile: Tensor, spoken: Tensor | None = None) -> Tensor:
        vectors = torch.empty(self.networks, self.at.count, told.shape[2])
        self.task.hidden = told.shape[2]
        ends = ends.expand(self.networks, -1, -1)
        self.task.spoken = None
        heard = {} if spoken is None else {"spoken": spoken}
        self._run("spread", told=told, ends=ends, profile=profile, spread_out=vectors, **heard)
        return vectors

    def message_means(self, matrix: Tensor, vectors: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        networks, width = self.networks, vectors.shape[2]
        sums = self._sums(width)
        of_neurons = torch.empty(networks, self.at.neurons, 3 * width)
        of_pieces = torch.empty(networks, self.task.pieces, 2 * width)
        out = {"message_sums": sums, "neuron_means": of_neurons, "piece_means": of_pieces}
        self._walk("message_means", matrix, vectors, walk, **out)
        return of_neurons, of_pieces

    def updates(
        self, matrix: Tensor, vectors: Tensor, walk: Walk, heads: Tensor, offsets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        updates = [torch.empty_like(value) for value in self._squares]
        summary = torch.empty(self.networks, self.task.tiles, 4)
        heads = heads.expand(self.networks, -1, -1)
        self._point(4, "update", updates)
        self._walk("updates", matrix, vectors, walk, heads=heads, offsets=offsets, summary=summary)
        return dict(zip(self.names, updates, strict=True)), self._by_piece(summary)

    def _walk(self, name: str, matrix: Tensor, vectors: Tensor, walk: Walk, **arguments: Tensor) -> None:
        self.task.hidden = vectors.shape[2]
        matrix = matrix.expand(self.networks, -1, -1)
        self._run(name, scales=walk.scales, factor=walk.factor, vectors=vectors, matrix=matrix, **arguments)

    def _sums(self, width: int) -> Tensor:
        """Room for sums at all places; those of split pieces are added up, and start from 0."""
        made = torch.empty if self.tiles.extra is None else torch.zeros
        return made(self.networks, self.task.sums, width)

    def _by_piece(self, values: Tensor) -> Tensor:
        if self.task.tiles == self.task.pieces:
            return values
        return values.new_zeros(len(values), self.task.pieces, values.shape[2]).index_add_(1, self.tiles.piece, values)


def _dense(value: Tensor) -> Tensor:
    """In float32, every network's numbers in order."""
    if value.requires_grad:
        value = value.detach()
    if value.dtype != torch.float32:
        value = value.float()
    return value if value.is_contiguous() or value[0].is_contiguous() else value.contiguous()
