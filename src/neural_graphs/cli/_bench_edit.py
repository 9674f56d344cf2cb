"""`neural-graphs bench edit`: editing networks, with every method and several seeds."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._bench_output import show
from neural_graphs.cli._parser import add_json, add_verb, integers, load, positive


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "edit",
        "train editors of a zoo's INRs with every method and several seeds: the table of errors after the edit",
        "neural-graphs bench edit runs/quickstart/zoo optimizer.epochs=2 --methods mlp --seeds 0 --out edit.json",
        _edit,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    parser.add_argument("zoo", metavar="ZOO", help="folder of a zoo of INRs")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override in all runs")
    parser.add_argument("--methods", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time, one thread each")
    parser.add_argument("--transfer", metavar="ZOO,ZOO", help="test on these other zoos as well")
    name = "edit-dilate-mnist"
    parser.add_argument("--out", default=f"results/{name}.json", metavar="FILE", help=f"(default: results/{name}.json)")
    parser.add_argument("--runs", default=f"runs/{name}", metavar="DIR", help=f"run folders (default: runs/{name})")
    add_json(parser)


def _edit(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import editing

    options.resume_hint = "finished runs are kept, run the same command again to go on"
    chosen = {"methods": options.methods.split(",")} if options.methods else {}
    transfer = options.transfer.split(",") if options.transfer else ()
    keys = ("seeds", "out", "runs", "overrides", "jobs", "command")
    return show(
        editing(options.zoo, transfer=transfer, **chosen, **{key: getattr(options, key) for key in keys}), options
    )
