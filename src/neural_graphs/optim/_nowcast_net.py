"""The network behind ``Nowcaster``: changes of all parameters, from their past, by messages between neurons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.optim._wiring import KINDS, Piece, Wiring

CHUNK = 2**21
"""Numbers of a piece's hidden layer that are held at a time where nothing is recorded for a gradient."""

WAVES = 8
"""Numbers that describe an entry's course over the times ahead."""

NOWHERE = -1
"""The target of parameters that stand in no node set."""

_CONTEXT = 7 + len(KINDS)


@dataclass(frozen=True, eq=False)
class Past:
    """One piece of P networks at c times, and the scales in which it is read.

    ``values`` are ``[c, P, n_t, n_s, taps]``, oldest first; ``center``, ``width`` (mean and standard deviation over entries
    and times) and ``pace`` (root mean square of the differences between successive times) ``[P, 1, 1, 1]``.
    """

    piece: Piece
    values: Tensor
    center: Tensor
    width: Tensor
    pace: Tensor

    @classmethod
    def of(cls, piece: Piece, states: Tensor) -> Past:
        """From the parameter ``[c, P, *shape]``, at least in float32: differences of narrower numbers would round away."""
        times, networks = states.shape[:2]
        values = piece.read(states.flatten(0, 1)).unflatten(0, (times, networks))
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        width, center = torch.std_mean(values, (0, 2, 3, 4), correction=0, keepdim=True)
        pace = values.diff(dim=0).square().mean((0, 2, 3, 4), keepdim=True).sqrt()
        return cls(piece, values, center[0], width[0], pace[0])

    def features(self, rows: slice) -> Tensor:
        """``[P, rows, n_s, taps, 2 c - 1]``: standardised states, and their differences over ``pace``."""
        held = self.values[:, :, rows]
        states = (held - self.center) * inverse(self.width)
        return torch.cat([states, held.diff(dim=0) * inverse(self.pace)]).movedim(0, -1)

    def context(self, wiring: Wiring) -> Tensor:
        """``[P, _CONTEXT]``: how fast, how straight and how steadily the piece moves, its shape, place and kind."""
        whole = (self.values[-1] - self.values[0]).square().mean((1, 2, 3)).sqrt()
        last = (self.values[-1] - self.values[-2]).square().mean((1, 2, 3)).sqrt()
        pace, width = self.pace.flatten(), self.width.flatten()
        relative = (pace * inverse(width)).clamp(1e-6, 1e2).log10() / 3
        moving = [relative, whole * inverse(pace) / (len(self.values) - 1), last * inverse(pace)]
        placed = self.piece.target != NOWHERE and wiring.depth > 0
        depth = wiring.depths[self.piece.target] / wiring.depth if placed else 0.0
        facts = [math.log2(self.piece.fan_in) / 8, math.log2(self.piece.sizes[0]) / 8, depth, float(depth == 1)]
        facts += [float(kind == self.piece.kind) for kind in KINDS]
        fixed = pace.new_tensor(facts).expand(len(pace), -1)
        return torch.cat([torch.stack(moving, 1), fixed], 1)


def inverse(scale: Tensor) -> Tensor:
    """``1 / scale``, 0 where nothing moves or varies."""
    return torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)


class NowcastNet(nn.Module):
    """Changes of parameters from c past states, equivariant to permutations of neurons.

    An entry ``p`` of a tensor is an edge between a source neuron j and a target i (several for the taps of a kernel)::

        u_p   = SiLU(A f_p + C k)                                     f: features, k: context of the tensor (``Past``)
        m_p   = SiLU(E u_p + S x_j + T x_i)                           in every round
        x_n  <- x_n + W_2 SiLU(W_1 [x_n, mean of m_p into n, mean of m_p out of n])
        out_p = R SiLU(D u_p + S' x_j + T' x_i + C' k) + M(x_i, k) d_p        in units of pace * sqrt(intervals ahead)

    ``out`` are the factors of waves in the logarithm of the intervals ahead: neighbouring times share what is learned.

    ``d`` are the differences among the features, and M a matrix for every neuron: a mean of past states, or a line through
    them, is such a product.

    Neurons start as the mean of ``u`` over their own values (biases, normalisation). R and M are 0 at first. All means, so
    that width transfers; no neuron is told from others by its number.

    Args:
        past: c, states read.
        horizon: K, the most intervals ahead.
        width: size of ``u`` and ``x``.
        rounds: of messages; 0 reads every entry by itself.
    """

    def __init__(self, past: int, horizon: int, width: int, rounds: int) -> None:
        super().__init__()
        features = 2 * past - 1
        self.embed = nn.Linear(features, width)
        self.context = nn.Linear(_CONTEXT, width, bias=False)
        self.rounds = nn.ModuleList(Round(width) for _ in range(rounds))
        self.edge = nn.Linear(width, width)
        self.ends = nn.Linear(width, 2 * width, bias=False)
        self.read_context = nn.Linear(_CONTEXT, width, bias=False)
        waves = min(WAVES, horizon)
        self.out = nn.Linear(width, waves)
        self.steps = past - 1
        last = nn.Linear(width, self.steps * waves)
        self.mix = nn.Sequential(nn.Linear(width + _CONTEXT, width), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        times = torch.arange(1, horizon + 1, dtype=torch.float64)
        angle = math.pi * torch.arange(waves)[:, None] * times.log() / max(math.log(horizon), 1.0)
        self.waves: Tensor
        self.register_buffer("waves", (angle.cos() * times.sqrt()).float(), persistent=False)

    def forward(self, wiring: Wiring, past: Sequence[Past], ahead: Tensor) -> list[Tensor]:
        """``[P, n_t, n_s, taps, H]`` for every piece: changes from the last state to ``ahead`` (int64 ``[H]``, from 1)
        intervals later, in units of the piece's ``pace``."""
        read = [_Read(p, p.context(wiring).to(self.embed.weight)) for p in past]
        nodes = self._nodes(wiring, read) if read else []
        return [self._changes(r, nodes, ahead) for r in read]

    # -- neurons --------------------------------------------------------------------------------------------------------

    def _nodes(self, wiring: Wiring, read: Sequence[_Read]) -> list[Tensor]:
        """Embeddings ``[P, n_s, width]`` of all node sets."""
        width = self.embed.out_features
        own = _Means(wiring.sizes, self.embed.weight.new_zeros(read[0].networks, 0, width))
        for r in read:
            if r.piece.source is None and r.piece.target != NOWHERE:
                rows = [self._embedded(r, rows)[0].mean((2, 3)) for rows in r.rows(width)]
                own.add(r.piece.target, torch.cat(rows, 1))
        nodes = own.means()
        for layer in self.rounds if any(r.piece.source is not None for r in read) else ():
            assert isinstance(layer, Round)
            into, out = (_Means(wiring.sizes, nodes[0][:, :0]) for _ in range(2))
            for r in read:
                if r.piece.source is not None:
                    received, sent = self._messages(layer, r, nodes)
                    into.add(r.piece.target, received)
                    out.add(r.piece.source, sent)
            joined = torch.cat([torch.cat(parts, 1) for parts in (nodes, into.means(), out.means())], -1)
            nodes = list((torch.cat(nodes, 1) + layer.node(joined)).split(list(wiring.sizes), 1))
        return nodes

    def _messages(self, layer: Round, read: _Read, nodes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Means of a piece's messages at its targets ``[P, n_t, width]`` and at its sources ``[P, n_s, width]``."""
        piece = read.piece
        near, far = _ends(layer.ends, piece, nodes)
        assert far is not None
        received, sent = [], torch.zeros_like(far)
        for rows in read.rows(self.embed.out_features):
            u, _ = self._embedded(read, rows)
            group = read.groups(rows)
            message = F.silu(layer.edge(u) + _spread(near, far, rows, group)).mean(3)
            received.append(message.mean(2))
            sent = sent + message.sum(1, True) if piece.groups == 1 else sent.index_add(1, group, message)
        return torch.cat(received, 1), (sent * (piece.groups / piece.sizes[0])).flatten(1, 2)

    # -- entries --------------------------------------------------------------------------------------------------------

    def _embedded(self, read: _Read, rows: slice) -> tuple[Tensor, Tensor]:
        """``u`` ``[P, rows, n_s, taps, width]`` and the features; kept where the piece is read as a whole."""
        if read.kept is not None:
            return read.kept
        features = read.past.features(rows).to(self.embed.weight)
        u = F.silu(self.embed(features) + self.context(read.context)[:, None, None, None])
        if rows == slice(0, read.piece.sizes[0]):
            read.kept = u, features
        return u, features

    def _changes(self, read: _Read, nodes: Sequence[Tensor], ahead: Tensor) -> Tensor:
        waves = self.waves[:, ahead - 1]
        shared = self.read_context(read.context)[:, None, None, None]
        ends = _ends(self.ends, read.piece, nodes) if read.piece.target != NOWHERE else None
        here = nodes[read.piece.target] if ends is not None else shared.new_zeros(read.networks, 1, shared.shape[-1])
        mix = self.mix(torch.cat([here, read.context[:, None].expand(-1, here.shape[1], -1)], -1))
        mix = mix.unflatten(-1, (self.steps, -1))
        found = []
        for rows in read.rows(self.embed.out_features + len(ahead)):
            u, features = self._embedded(read, rows)
            z = self.edge(u) + shared
            if ends is not None:
                z = z + _spread(*ends, rows, read.groups(rows))
            factors = mix[:, rows] if ends is not None else mix.expand(-1, rows.stop - rows.start, -1, -1)
            mixed = (features[..., -self.steps :].flatten(2, 3) @ factors).view(*features.shape[:-1], -1)
            found.append((self.out(F.silu(z)) + mixed) @ waves)
        read.kept = None
        return found[0] if len(found) == 1 else torch.cat(found, 1)


class Round(nn.Module):
    """The maps of one round of messages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Linear(width, width)
        self.ends = nn.Linear(width, 2 * width, bias=False)
        self.node = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, width))


class _Means:
    """Means over what is added for each node set, 0 where nothing was."""

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        self.sizes, self.like = sizes, like
        self.found: dict[int, list[Tensor]] = {}

    def add(self, node_set: int, value: Tensor) -> None:
        self.found.setdefault(node_set, []).append(value)

    def means(self) -> list[Tensor]:
        found = self.found
        return [
            torch.stack(found[s]).mean(0) if s in found else self.like.new_zeros(len(self.like), n, self.like.shape[2])
            for s, n in enumerate(self.sizes)
        ]


class _Read:
    """A piece as it is read in one pass."""

    def __init__(self, past: Past, context: Tensor) -> None:
        self.past, self.context, self.piece = past, context, past.piece
        self.kept: tuple[Tensor, Tensor] | None = None
        self.networks = past.values.shape[1]

    def rows(self, hidden: int) -> Iterator[slice]:
        """Target neurons: all at once where a gradient is wanted, else as many as ``CHUNK`` allows."""
        targets, sources, taps = self.piece.sizes
        step = targets
        if not torch.is_grad_enabled() and self.kept is None:
            step = max(1, CHUNK // max(1, self.networks * sources * taps * hidden))
        for first in range(0, targets, max(1, step)):
            yield slice(first, min(targets, first + step))

    def groups(self, rows: slice) -> Tensor:
        """The group of every one of ``rows``, int64."""
        numbers = torch.arange(rows.start, rows.stop, device=self.context.device)
        return numbers // (self.piece.sizes[0] // self.piece.groups)


def _ends(maps: nn.Linear, piece: Piece, nodes: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """What targets ``[P, n_t, width]`` and sources ``[P, groups, n_s / groups, width]`` add to their edges."""
    near, far = maps.weight.chunk(2)
    targets = F.linear(nodes[piece.target], near)
    if piece.source is None:
        return targets, None
    return targets, F.linear(nodes[piece.source], far).unflatten(1, (piece.groups, -1))


def _spread(near: Tensor, far: Tensor | None, rows: slice, group: Tensor) -> Tensor:
    """The sum of both ends' parts at the edges of ``rows``, ``[P, rows, n_s / groups or 1, 1, width]``."""
    targets = near[:, rows, None, None]
    if far is None:
        return targets
    return targets + (far if far.shape[1] == 1 else far[:, group])[:, :, :, None]


def moved(states: Mapping[str, Tensor], past: Sequence[Past], changes: Sequence[Tensor]) -> dict[str, Tensor]:
    """The last of ``states`` plus ``changes`` (see ``NowcastNet``), ``{name: [H, P, *shape]}`` in the states' dtype."""
    found: dict[str, Tensor] = {}
    for p, change in zip(past, changes, strict=True):
        name, ahead = p.piece.parameter, change.shape[-1]
        last = states[name][-1]
        wide = p.values.dtype
        if name not in found:
            found[name] = last.to(wide).expand(ahead, *last.shape).flatten(0, 1).clone()
        p.piece.write(found[name], (p.values[-1] + change.movedim(-1, 0).to(wide) * p.pace).flatten(0, 1))
    return {
        name: value.unflatten(0, (-1, len(states[name][-1]))).to(states[name].dtype) for name, value in found.items()
    }


def loose_pieces(states: Mapping[str, Tensor], wiring: Wiring) -> list[Piece]:
    """Parameters ``[c, P, *shape]`` that stand in no part of the graph: each entry is read by itself."""
    return [
        Piece(name, "bias", None, NOWHERE, 1, None, (math.prod(value.shape[2:]), 1, 1))
        for name, value in states.items()
        if name not in wiring.parameters
    ]
