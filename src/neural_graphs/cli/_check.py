"""`neural-graphs check CKPT`: permute the real network, run it, compare."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._network import DETAILS, Network, add_network, read_network
from neural_graphs.cli._parser import add_json, add_threads, add_verb, positive, print_json, use_threads
from neural_graphs.errors import UserError


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "check",
        "verify the symmetries of a network numerically; exit code 1 if they do not hold",
        "neural-graphs check runs/quickstart/example.safetensors\n"
        "  neural-graphs check resnet.pt --model mynets.resnet:resnet18 --input 3x224x224",
        run,
        "Draws group elements, permutes the network with them, reruns it and reports the largest change of its output,\n"
        f"beside that of a negative control in which one tensor is left as it was.\n\n{DETAILS}",
    )
    add_network(parser)
    parser.add_argument("--samples", type=positive, default=4, metavar="N", help="group elements to draw (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of elements and inputs (default: 0)")
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="to compute in (default: float64)"
    )
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    from dataclasses import asdict

    import torch

    from neural_graphs._progress import track

    network = read_network(options)
    inputs = network.inputs if network.module is not None else _points(options, network)
    kinds = dict.fromkeys(["permutation", *(entry.kind for entry in network.graph.symmetries.rescalings)])
    reports = {}
    try:
        for kind in track(kinds, "checking"):
            reports[kind] = network.graph.check(
                network.module,
                inputs,
                samples=options.samples,
                seed=options.seed,
                kinds=(kind,),
                dtype=getattr(torch, options.dtype),
            )
    except RuntimeError as error:
        raise UserError(f"the network does not run on this input: {error}") from error
    passed = all(report.passed for report in reports.values())
    if options.json:
        rescalings = {kind: asdict(report) | {"passed": report.passed} for kind, report in reports.items()}
        found = asdict(reports["permutation"]) | {"passed": passed}
        del rescalings["permutation"]
        print_json({"file": network.name, **network.facts, **found, "rescalings": rescalings})
    else:
        for report in reports.values():
            print(f"{network.name}: {report}")
        if network.facts.get("lossy"):
            print(f"lossy: {network.facts['lossy']}")
    return 0 if passed else 1


def _points(options: argparse.Namespace, network: Network) -> Any:
    """Inputs of a plain stack: several points or images, None where the check draws its own."""
    import torch

    if options.input:
        shape, *others = options.input
        if others or shape.ids or shape.name:
            raise UserError(f"{network.name} is a plain stack: give the shape of its one input, --input 3x32x32")
        generator = torch.Generator().manual_seed(options.seed)
        return torch.rand(8, *shape.shape, generator=generator, dtype=torch.float64)
    if network.graph.spec.blocks[0].kernel:
        raise UserError(f"{network.name} is a convolutional network: give the shape of an image, --input 3x32x32")
    return None
