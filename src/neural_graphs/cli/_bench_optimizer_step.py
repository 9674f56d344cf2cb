"""`neural-graphs bench optimiser-step`: the cost of a learned optimizer's step over Adam's."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._bench_output import show
from neural_graphs.cli._parser import add_json, add_verb, integers, load, positive


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "optimiser-step",
        "time steps of the learned optimizer beside Adam's, on an MLP and a ResNet-18",
        "neural-graphs bench optimiser-step --networks mlp --every 1 --thread-counts 1 --out step.json",
        _run,
    )
    parser.add_argument("--networks", default="mlp,resnet18", metavar="A,B", help="(default: mlp,resnet18)")
    parser.add_argument(
        "--rules", metavar="A,B", help="rules or weights (default: graph,lstm,ff and all shipped weights)"
    )
    parser.add_argument(
        "--every",
        type=integers,
        default=(1, 2, 5, 10),
        metavar="N,N",
        help="ask the graph every N steps (default: 1,2,5,10)",
    )
    parser.add_argument("--thread-counts", type=integers, default=(1, 2), metavar="N,N", help="(default: 1,2)")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="measured in turn (default: 7)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    out = "results/optimiser-step.json"
    parser.add_argument("--out", default=out, metavar="FILE", help=f"results file (default: {out})")
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import optimizer_steps

    kept = {key: getattr(options, key) for key in ("out", "every", "rounds", "thread_counts", "seed", "command")}
    rules = options.rules.split(",") if options.rules else None
    return show(optimizer_steps(rules=rules, networks=options.networks.split(","), **kept), options)
