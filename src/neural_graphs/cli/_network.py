"""The argument CKPT of the verbs that read one network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from neural_graphs.cli._parser import Parser, load
from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from neural_graphs.graph import NeuralGraph


def add_network(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="file of one network: .safetensors, .pt, .pth, .bin or .ckpt"
    )
    parser.add_argument(
        "--activation",
        metavar="NAME",
        help="hidden non-linearity where the file does not state it: relu, tanh, gelu, sine:30, ...; "
        "one for all hidden layers or a list such as relu,tanh",
    )


def load_network(options: argparse.Namespace) -> NeuralGraph:
    load("neural_graphs.explore")
    from neural_graphs import explore

    kinds = options.activation.split(",") if options.activation else None
    try:
        return explore.load_network(options.checkpoint, kinds[0] if kinds and len(kinds) == 1 else kinds)
    except UserError as error:
        if kinds is None and "non-linearity" in str(error):
            raise UserError(
                f"{options.checkpoint} does not say its non-linearity: add --activation, such as sine:30 or relu"
            ) from None
        raise
