"""`neural-graphs check CKPT`: permute the real network, run it, compare."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._network import add_network, load_network
from neural_graphs.cli._parser import add_json, add_threads, add_verb, positive, print_json, use_threads
from neural_graphs.errors import UserError


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "check",
        "verify the symmetries of a network numerically; exit code 1 if they do not hold",
        "neural-graphs check runs/quickstart/example.safetensors",
        run,
        "Draws group elements, permutes the network with them, reruns it in float64 and reports the largest change of\n"
        "its output, beside that of a negative control in which one tensor is left as it was.",
    )
    add_network(parser)
    parser.add_argument("--samples", type=positive, default=4, metavar="N", help="group elements to draw (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--input", type=_shape, metavar="SHAPE", help="one input, as in 3x32x32: for convolutions")
    add_json(parser)
    add_threads(parser)


def _shape(value: str) -> tuple[int, ...]:
    return tuple(int(part) for part in value.split("x"))


_shape.__name__ = "shape such as 3x32x32"


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    from dataclasses import asdict

    import torch

    graph = load_network(options)
    inputs = None
    if options.input:
        generator = torch.Generator().manual_seed(options.seed)
        inputs = torch.rand(8, *options.input, generator=generator, dtype=torch.float64)
    elif graph.spec.blocks[0].kernel:
        raise UserError(f"{options.checkpoint} is a convolutional network: give the shape of an image, --input 3x32x32")
    try:
        report = graph.check(inputs=inputs, samples=options.samples, seed=options.seed)
    except RuntimeError as error:
        raise UserError(f"the network does not run on this input: {error}") from error
    if options.json:
        print_json({"file": options.checkpoint, **asdict(report), "passed": report.passed})
    else:
        print(f"{options.checkpoint}: {report}")
    return 0 if report.passed else 1
