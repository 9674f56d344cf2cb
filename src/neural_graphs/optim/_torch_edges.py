"""The walks over all parameters in torch, piece by piece: any device and dtype, and the twin of the compiled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neural_graphs.optim._modulated import BETAS, NOMINAL, Walk
from neural_graphs.optim._places import Places
from neural_graphs.optim._plain_adam import BETA2, EPSILON
from neural_graphs.optim._wiring import Piece, Wiring

if TYPE_CHECKING:
    from neural_graphs.optim._rule import State


class TorchEdges:
    """Momenta and statistics, sums of messages, and updates of P networks, in this order."""

    def __init__(
        self, wiring: Wiring, at: Places, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> None:
        self.wiring, self.at, self.params, self.grads, self.state = wiring, at, params, grads, state

    def measure(self, corrections: Tensor, ages: Tensor) -> tuple[Walk, Tensor, Tensor]:
        """Bring momenta and mean squares up to date; scales, what is known of the pieces ``[P, B, CONTEXT]``, and how the
        mean square at every place compares to its piece's, ``[P, places]`` within 1.

        ``corrections [B, 4]`` undo the bias of momenta and mean square, ``ages [B, ...]`` say how long they have been at it.
        """
        for name in self.wiring.parameters:
            held, grad = self.state[name], self.grads[name].to(self.state[name]["square"].dtype)
            for momentum, beta in zip(held["momenta"], BETAS, strict=True):
                momentum.lerp_(grad, 1 - beta)
            held["square"].mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        statistics, squares = [], []
        for piece in self.wiring.pieces:
            weight, grad, momenta, square = self._read(piece)
            pairs = [(grad, grad), (weight, weight), *((m, m) for m in momenta)]
            means = [(a * b).mean((1, 2, 3)) for a, b in pairs] + [square.mean((1, 2, 3))]
            pairs = [(grad, momenta[1]), (grad, momenta[2]), (weight, momenta[1])]
            means += [(a * b).mean((1, 2, 3)) for a, b in pairs]
            statistics.append(torch.stack(means, 1))
            squares += self._summed(piece, square.unsqueeze(4))
        return self._described(torch.stack(statistics, 1), torch.cat(squares, 1).squeeze(2), corrections, ages)

    def _described(
        self, mean: Tensor, squares: Tensor, corrections: Tensor, ages: Tensor
    ) -> tuple[Walk, Tensor, Tensor]:
        networks, at = len(mean), self.at
        rms = mean[:, :, :5].sqrt()
        unit = 1 / (rms + 1e-20)
        whole = mean[:, :, 5] * corrections[:, 3]
        deviation = whole.sqrt().unsqueeze(2)
        scales = torch.cat([unit, corrections.expand(networks, -1, -1), deviation], 2)
        noise = rms[:, :, 2:] * corrections[:, :3] / (deviation + 1e-20)
        cosines = mean[:, :, 6:] * unit[:, :, [0, 0, 1]] * unit[:, :, [3, 4, 3]]
        parts = [
            at.static.expand(networks, -1, -1),
            (rms[:, :, 1:2] + 1e-8).log10().clamp(-6, 6) / 2,
            (noise + 1e-6).log10() / 2,
            noise[:, :, 1:2].clamp(max=2.0),
            cosines.clamp(-1, 1),
            ages.expand(networks, -1, -1),
        ]
        here = squares / at.summed * corrections[:, 3].index_select(0, at.piece)
        there = whole.index_select(1, at.piece)
        factor = there.sqrt().sqrt() * (here + (1e-12 * there + 1e-30)).rsqrt()
        root, level = here.sqrt(), there.sqrt()
        return Walk(scales, factor), torch.cat(parts, 2), (root - level) / (root + level + 1e-30)

    def spread(self, told: Tensor, ends: Tensor, profile: Tensor, spoken: Tensor | None = None) -> Tensor:
        """Vectors ``[P, places, h]``: what their piece tells targets (``told [P, B, h]``) and their neuron tells targets and
        sources (``spoken [P, 2 N, h]``), and their profile times ``ends [P or 1, 2, h]``, by side."""
        at = self.at
        found = told.index_select(1, at.piece) * (1 - at.side.to(told.dtype)).unsqueeze(1)
        found = found + profile.unsqueeze(2) * ends.index_select(1, at.side)
        if spoken is None:
            return found
        silent = spoken.new_zeros(len(spoken), 1, spoken.shape[2])
        return found + torch.cat([spoken, silent], 1).index_select(1, at.neuron)

    def message_means(self, matrix: Tensor, vectors: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """Means of the messages ``relu(matrix f + vectors[target] + vectors[source])`` of all parameters: over those that
        enter, leave and belong to a neuron, ``[P, N, 3 h]`` (0 where there are none), and over pieces and the network,
        ``[P, B, 2 h]``."""
        at, found = self.at, []
        for number, piece in enumerate(self.wiring.pieces):
            hidden, _ = self._hidden(number, piece, matrix, vectors, walk)
            found += self._summed(piece, hidden)
        sums = torch.cat(found, 1)
        networks, _, width = sums.shape
        slots = sums.new_zeros(networks, len(at.collected), width).index_add(1, at.slot, sums)
        means = (slots / at.collected.unsqueeze(1))[:, :-1]
        of_neurons = means.unflatten(1, (3, at.neurons)).transpose(1, 2).flatten(2)
        entering = sums * (1 - at.side.to(sums.dtype)).unsqueeze(1)
        by_piece = sums.new_zeros(networks, len(at.numel), width).index_add(1, at.piece, entering)
        whole = by_piece.sum(1, keepdim=True) / at.numel.sum()
        return of_neurons, torch.cat([by_piece / at.numel.unsqueeze(1), whole.expand_as(by_piece)], 2)

    def updates(
        self, matrix: Tensor, vectors: Tensor, walk: Walk, heads: Tensor, offsets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """``n exp(a) + b`` with ``(a, b) = heads`` of the hidden units, ``a`` plus ``offsets [P, B]`` and within 5; and sums
        ``[P, B, 4]`` of the squares of update and nominal step, of their product, and of entries that were not finite."""
        updates = {name: torch.empty_like(self.state[name]["square"]) for name in self.wiring.parameters}
        summaries = []
        for number, piece in enumerate(self.wiring.pieces):
            hidden, nominal = self._hidden(number, piece, matrix, vectors, walk)
            outputs = torch.einsum("ptskh,poh->potsk", hidden, heads.expand(len(hidden), -1, -1))
            gain = (outputs[:, 0] + offsets[:, number, None, None, None]).clamp(-5, 5)
            update = nominal * gain.exp() + outputs[:, 1]
            finite = update.isfinite()
            update = torch.where(finite, update, nominal)
            piece.write(updates[piece.parameter], update)
            sums = [update * update, nominal * nominal, update * nominal, (~finite).to(update.dtype)]
            summaries.append(torch.stack([value.sum((1, 2, 3)) for value in sums], 1))
        return updates, torch.stack(summaries, 1)

    def _read(self, piece: Piece) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Weight, gradient, momenta and mean square, ``[P, n_target, n_source / groups, taps]``."""
        name = piece.parameter
        held = self.state[name]
        dtype = held["square"].dtype
        momenta = [piece.read(momentum) for momentum in held["momenta"]]
        weight, grad = (piece.read(values[name].to(dtype)) for values in (self.params, self.grads))
        return weight, grad, momenta, piece.read(held["square"])

    def _ends(self, number: int, piece: Piece, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``values [P, places, ...]``: targets' ``[P, n_t, 1, 1, ...]``, sources' ``[P, n_t, n_s / g, 1, ...]``."""
        target, source, after = self.at.spans(number)
        of_targets, of_sources = values[:, target:source], values[:, source:after]
        groups, n_target = piece.groups, piece.sizes[0]
        of_sources = of_sources.unflatten(1, (groups, -1)).repeat_interleave(n_target // groups, 1)
        return of_targets[:, :, None, None], of_sources.unsqueeze(3)

    def _summed(self, piece: Piece, values: Tensor) -> list[Tensor]:
        """Of ``values [P, n_t, n_s / g, taps, h]``: sums over what reaches a target, and what leaves a source."""
        by_group = values.sum(3).unflatten(1, (piece.groups, -1)).sum(2)
        return [values.sum((2, 3)), by_group.flatten(1, 2)]

    def _hidden(self, number: int, piece: Piece, matrix: Tensor, vectors: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """Hidden units ``[P, n_t, n_s / g, taps, hidden]`` and the nominal step ``[P, n_t, n_s / g, taps]``."""
        weight, grad, momenta, square = self._read(piece)
        scale = walk.scales[:, number, :, None, None, None].unbind(1)
        deviation = (square * scale[8]).sqrt()
        inverse = 1 / (deviation + EPSILON)
        steps = [momentum * scale[5 + k] * inverse for k, momentum in enumerate(momenta)]
        of_targets, of_sources = self._ends(number, piece, walk.factor)
        factor = of_targets * of_sources
        features = [
            grad * scale[0],
            weight * scale[1],
            *(momentum * scale[2 + k] for k, momentum in enumerate(momenta)),
            *steps,
            (deviation - scale[9]) / (deviation + scale[9] + 1e-30),
            momenta[NOMINAL] * scale[5 + NOMINAL] * factor,
            grad * factor,
        ]
        seen = torch.stack(features, -1).clamp(-5, 5)
        targets, sources = self._ends(number, piece, vectors)
        mixed = torch.einsum("ptskf,phf->ptskh", seen, matrix.expand(len(seen), -1, -1))
        return torch.relu(mixed + targets + sources), steps[NOMINAL]
