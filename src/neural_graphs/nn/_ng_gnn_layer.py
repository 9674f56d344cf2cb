"""The parameters of one layer of NG-GNN."""

from __future__ import annotations

import torch
from torch import nn

NEIGHBOUR_GAIN = 0.2
"""Initial weights on neighbours' statistics, relative to the default initialisation."""


class NGGNNLayer(nn.Module):
    """One message-passing layer; for a message from j to i (Kofinas et al. 2024, PNA with FiLM)::

        [s, t] = W_e e_ji + b_e           m_ji = s * W_m [x_i, x_j] + t
        a_i    = [mean, min, max, std] of m_ji over j, once plain and once times log(degree + 1) / average
        x_i    <- W_2 W_1 [x_i, a_i]
        e_ji   <- V_2 SiLU(V_1 e_ji + V_s x_j + V_t x_i)      (not in the last layer)

    Edge embeddings stay in the hidden form ``z`` before ``V_2``: consecutive linear maps on edges are composed.
    """

    def __init__(self, width: int, edge_mlp: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.message = nn.Linear(2 * width, width)
        self.combine = nn.Linear(9 * width, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if edge_mlp else None
        self.edge_mlp = EdgeMLP(width) if edge_mlp else None
        # Without residual connections, a default start mixes a neuron's own state with 8F statistics of its neighbours and
        # hides it for hundreds of steps. Starting W_2 W_1 near the identity on x_i lets it through from the first step.
        with torch.no_grad():
            self.combine.weight[:, width:] *= NEIGHBOUR_GAIN
            self.combine.weight[:, :width] = torch.eye(width)
            self.mix.weight.copy_(torch.eye(width))


class EdgeMLP(nn.Module):
    """The four maps of the edge update: ``edge`` V_1, ``sender`` V_s, ``receiver`` V_t and ``out`` V_2 of `NGGNNLayer`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Linear(width, width)
        self.sender = nn.Linear(width, width)
        self.receiver = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
