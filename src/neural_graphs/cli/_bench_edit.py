"""`neural-graphs bench edit | adapt`: editing INRs and adapting classifiers, with every method and several seeds."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._bench_output import show
from neural_graphs.cli._parser import Parser, add_json, add_verb, integers, load, positive


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "edit",
        "train editors of a zoo's INRs with every method and several seeds: the table of errors after the edit",
        "neural-graphs bench edit runs/quickstart/zoo optimizer.epochs=2 --methods mlp --seeds 0 --out edit.json",
        _edit,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    parser.add_argument("--transfer", metavar="ZOO,ZOO", help="test on these other zoos as well")
    _add_runs(parser, "INRs", "edit-dilate-mnist")
    adapt = add_verb(
        inner,
        "adapt",
        "train editors that adapt a zoo's classifiers to corrupted images, with several seeds: the table of accuracies",
        "neural-graphs bench adapt zoos/digits-park optimizer.epochs=2 --methods scales --seeds 0 --out adapt.json",
        _adapt,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    _add_runs(adapt, "classifiers", "edit-adapt")


def _add_runs(parser: Parser, networks: str, name: str) -> None:
    parser.add_argument("zoo", metavar="ZOO", help=f"folder of a zoo of {networks}")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override in all runs")
    parser.add_argument("--methods", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time, one thread each")
    parser.add_argument("--out", default=f"results/{name}.json", metavar="FILE", help=f"(default: results/{name}.json)")
    parser.add_argument("--runs", default=f"runs/{name}", metavar="DIR", help=f"run folders (default: runs/{name})")
    add_json(parser)


def _edit(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import editing

    transfer = options.transfer.split(",") if options.transfer else ()
    return show(editing(options.zoo, transfer=transfer, **_runs(options)), options)


def _adapt(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import adaptation

    return show(adaptation(options.zoo, **_runs(options)), options)


def _runs(options: argparse.Namespace) -> dict[str, Any]:
    options.resume_hint = "finished runs are kept, run the same command again to go on"
    chosen = {"methods": options.methods.split(",")} if options.methods else {}
    return {
        **chosen,
        **{key: getattr(options, key) for key in ("seeds", "out", "runs", "overrides", "jobs", "command")},
    }
