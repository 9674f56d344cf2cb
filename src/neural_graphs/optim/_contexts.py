"""What tells a parameter of its surroundings: nothing but its tensor (ff), the layers in order (lstm), the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.optim._modulated import CONTEXT, FEATURES, ModulatedAdam, Walk, Weights, linear
from neural_graphs.optim._rule import register_rule


@register_rule("ff")
class FeedForwardRule(ModulatedAdam):
    """Every parameter on its own, but for what is known of its tensor."""

    def __init__(
        self, hidden: int = 60, width: int = 16, magnitude: bool = True, whiten: bool = False, seed: int = 0
    ) -> None:
        super().__init__(hidden, magnitude, whiten, seed)
        self.tensor = self._new(width, CONTEXT)
        self.tensor_bias = nn.Parameter(torch.zeros(width))
        self._outputs(width)

    def _outputs(self, width: int) -> None:
        self.inform = self._new(self.hidden, width)
        self.inform_bias = nn.Parameter(torch.zeros(self.hidden))
        outputs = len(self.offset)
        self.gain = nn.Parameter(torch.zeros(outputs, width))
        # Straight from what is known, so that what grows with a size does so beyond the sizes seen.
        self.known_gain = nn.Parameter(torch.zeros(outputs, CONTEXT))

    def _told(self, weights: Weights, known: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """From what is known of pieces and what was made of it, ``[P, B, width]``: what hidden units hear, and offsets."""
        offsets = linear(pieces, weights["gain"], weights["offset"]) + linear(known, weights["known_gain"])
        return linear(pieces, weights["inform"], weights["inform_bias"]), offsets

    def context(
        self, weights: Weights, known: Tensor, edges: Any, walk: Walk, profile: Tensor
    ) -> tuple[Tensor, Tensor]:
        told, offsets = self._told(weights, known, self.pieces(weights, known))
        return edges.spread(told, weights["profile"], profile), offsets

    def pieces(self, weights: Weights, known: Tensor) -> Tensor:
        """What is made of what is known of the pieces, ``[P, B, width]``."""
        return torch.relu(linear(known, weights["tensor"], weights["tensor_bias"]))


@register_rule("lstm")
class LayerLSTMRule(FeedForwardRule):
    """An LSTM runs over the tensors, from inputs to outputs (Metz et al., "Tasks, stability, architecture, and compute",
    2020, have one per tensor over time; Kofinas et al. 2024 one over layers)."""

    def __init__(
        self, hidden: int = 30, width: int = 12, magnitude: bool = True, whiten: bool = False, seed: int = 0
    ) -> None:
        super().__init__(hidden, width, magnitude, whiten, seed)
        self.recurrent = self._new(4 * width, width)
        self.entry = self._new(4 * width, width)
        self.gates_bias = nn.Parameter(torch.zeros(4 * width))

    def pieces(self, weights: Weights, known: Tensor) -> Tensor:
        pieces = super().pieces(weights, known)
        entries = linear(pieces, weights["entry"], weights["gates_bias"])
        state = cell = entries.new_zeros(len(entries), 1, entries.shape[2] // 4)
        found = []
        for number in range(entries.shape[1]):
            gates = entries[:, number : number + 1] + linear(state, weights["recurrent"])
            enter, keep, leave, new = gates.chunk(4, 2)
            cell = torch.sigmoid(keep + 1) * cell + torch.sigmoid(enter) * torch.tanh(new)
            state = torch.sigmoid(leave) * torch.tanh(cell)
            found.append(state)
        return pieces + torch.cat(found, 1)


@register_rule("graph")
class GraphRule(FeedForwardRule):
    """One round of messages along the edges of the neural graph.

    Parameters send messages to the neurons at their ends, which keep the means of what enters, leaves and is their own, and
    to their tensor and the whole network; each parameter then hears from both ends and its tensor. No neuron has a
    position, and all is a mean: widths transfer.
    """

    def __init__(
        self,
        hidden: int = 12,
        messages: int = 12,
        width: int = 16,
        magnitude: bool = True,
        whiten: bool = False,
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden, width, magnitude, whiten, seed)
        self.shuffled = shuffled
        self.message_matrix = self._new(messages, FEATURES)
        self.message_profile = self._new(2, messages, fan_in=2)
        self.message_inform = self._new(messages, CONTEXT)
        self.message_bias = nn.Parameter(torch.zeros(messages))
        self.neuron = self._new(messages, 3 * messages)
        self.neuron_bias = nn.Parameter(torch.zeros(messages))
        self.pooled = self._new(width, 2 * messages)
        self.to_target = self._new(hidden, messages)
        self.to_source = self._new(hidden, messages)

    def context(
        self, weights: Weights, known: Tensor, edges: Any, walk: Walk, profile: Tensor
    ) -> tuple[Tensor, Tensor]:
        told = linear(known, weights["message_inform"], weights["message_bias"])
        vectors = edges.spread(told, weights["message_profile"], profile)
        means, pooled = edges.message_means(weights["message_matrix"], vectors, walk)
        neurons = torch.relu(linear(means, weights["neuron"], weights["neuron_bias"]))
        pieces = linear(known, weights["tensor"], weights["tensor_bias"]) + linear(pooled, weights["pooled"])
        told, offsets = self._told(weights, known, torch.relu(pieces))
        spoken = torch.cat([linear(neurons, weights[name]) for name in ("to_target", "to_source")], 1)
        return edges.spread(told, weights["profile"], profile, spoken), offsets


@register_rule("adam")
class AdamRule(FeedForwardRule):
    """The nominal step alone: heads without weights to learn. For comparison and tests."""

    def __init__(self) -> None:
        super().__init__(hidden=1, width=1)
        self.requires_grad_(False)
