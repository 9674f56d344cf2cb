"""The network that `graph` and `check` read: its options, and the graph made from them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neural_graphs._inputs import InputSpec, parse_inputs
from neural_graphs.cli._parser import Parser, load
from neural_graphs.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from neural_graphs.graph import NeuralGraph

DETAILS = """CKPT is one of
  a file of a plain stack of linear or convolutional layers: .safetensors, .pt, .pth, .bin or .ckpt
  such a file of any other network, with --model and --input
  a Hugging Face folder: config.json beside model.safetensors or pytorch_model.bin, whole or in shards (extra: hub)
  an .onnx file, for reading only (extra: onnx)
A checkpoint alone never runs code of its own. --model imports and runs the module that it names."""


@dataclass
class Network:
    """A graph and, where it was traced from one, its module, the example input and the facts from ``load_model``."""

    graph: NeuralGraph
    name: str
    module: nn.Module | None = None
    inputs: Any = None
    facts: dict[str, Any] = field(default_factory=dict)


def add_network(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT", nargs="?", help="the network (see above); - or none: --model as it is made"
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="an nn.Module, or a class or function that makes one: package.module:name or file.py:name; "
        "the current directory is importable",
    )
    parser.add_argument(
        "--model-args", type=_arguments, metavar="JSON", help="keyword arguments for it, such as '{\"width\": 64}'"
    )
    parser.add_argument(
        "--input",
        type=_inputs,
        metavar="SHAPE",
        help="shape of one input without the batch axis: 3x224x224; ids:16 for 16 token ids, ids:16:50257 for ids below "
        "50257 (else below the smallest embedding); NAME=SHAPE for a keyword argument; commas between several",
    )
    parser.add_argument(
        "--activation",
        metavar="NAME",
        help="hidden non-linearity of a plain stack whose file does not state it: relu, tanh, gelu, sine:30, ...; "
        "one for all hidden layers or a list such as relu,tanh",
    )


def read_network(options: argparse.Namespace) -> Network:
    """The network that the options describe."""
    checkpoint = None if options.checkpoint == "-" else options.checkpoint
    if checkpoint is None and options.model is None:  # the parser lets it pass: with --model it may be left out
        raise UserError(f"give CKPT, the file of a network, or --model (see `{options.parser.prog} --help`)")
    if options.model is None and options.model_args is not None:
        raise UserError("--model-args needs --model")
    load("neural_graphs.explore")
    from neural_graphs import explore

    if checkpoint is not None and options.model is None and not explore.describes_itself(checkpoint):
        return Network(_plain_stack(options), str(checkpoint))
    if options.activation:
        raise UserError("--activation is for files of plain stacks: a module knows its own non-linearities")
    if options.model is not None and options.input is None:
        raise UserError("give the shape of an input of the model: --input 3x224x224 (an image) or ids:16 (token ids)")

    from neural_graphs._progress import progress
    from neural_graphs.graph import trace

    with progress("reading the network", 2) as bar:
        found = explore.load_model(
            checkpoint, options.model, options.input, model_args=options.model_args, seed=getattr(options, "seed", 0)
        )
        bar.advance()
        bar.describe("tracing it")
        try:
            graph = trace(found.module, found.inputs)
        except UserError as error:
            raise UserError(f"{found.facts['name']}: {error}") from None
        bar.advance()
    facts = {key: value for key, value in found.facts.items() if key != "name"}
    facts |= {"route": None, "frozen": {}}
    if graph.trace is not None:  # plain stacks are read off their layers
        facts |= {"route": graph.trace.route, "frozen": graph.trace.frozen}
        if graph.trace.route == "make_fx":
            facts["notes"].append(
                "the network decides on values of its data: only the path of the example was recorded"
            )
    return Network(graph, found.facts["name"], found.module, found.inputs, facts)


def _plain_stack(options: argparse.Namespace) -> NeuralGraph:
    from neural_graphs import explore

    kinds = options.activation.split(",") if options.activation else None
    try:
        return explore.load_network(options.checkpoint, kinds[0] if kinds and len(kinds) == 1 else kinds)
    except UserError as error:
        if kinds is None and "non-linearity" in str(error):
            raise UserError(
                f"{options.checkpoint} does not say its non-linearity: add --activation, such as sine:30 or relu (a plain "
                "stack of layers), or --model and --input (any other network)"
            ) from None
        if "plain stack" in str(error) or "state dict of Linear or Conv" in str(error):
            raise UserError(f"{error}; for any other network give --model and --input") from None
        raise


def _inputs(value: str) -> tuple[InputSpec, ...]:
    try:
        return parse_inputs(value)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _arguments(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{value!r} is no JSON object: write it like {{"width": 64}}')
    return found
