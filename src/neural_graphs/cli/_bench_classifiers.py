"""`neural-graphs bench bulk | generalisation`: classifiers trained at once, and their accuracy predicted from weights."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs._threads import default_threads
from neural_graphs.cli._bench_output import add_speed, show
from neural_graphs.cli._parser import add_json, add_verb, integers, load, positive


def add(inner: Any) -> None:
    bulk = add_verb(
        inner,
        "bulk",
        "time training classifiers in bulk against training them one by one",
        "neural-graphs bench bulk --networks 8 --rounds 1 --out bulk.json",
        _bulk,
    )
    add_speed(bulk, "results/bulk.json")
    bulk.add_argument("--recipe", default="small-cnn-zoo", help="small-cnn-zoo (default) or wild-park")
    bulk.add_argument("--networks", type=positive, default=32, metavar="N", help="(default: 32)")
    bulk.add_argument("--steps", type=positive, default=20, metavar="N", help="optimiser steps (default: 20)")
    bulk.add_argument("--side", type=positive, default=32, metavar="N", help="pixels per side (default: 32)")

    parser = add_verb(
        inner,
        "generalisation",
        "predict the accuracy of a zoo's classifiers with every method and several seeds: the table of Kendall's tau",
        "neural-graphs bench generalisation zoos/digits-park optimizer.epochs=2 --methods statnn --seeds 0 --out tau.json",
        _generalisation,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    parser.add_argument("zoo", metavar="ZOO", help="folder of a zoo of classifiers")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override in all runs")
    parser.add_argument("--methods", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time, one thread each")
    parser.add_argument("--transfer", metavar="ZOO", help="test on this other zoo as well")
    parser.add_argument("--wider", action="store_true", help="train on the narrower half of the architectures alone")
    parser.add_argument(
        "--probe-side", type=int, default=0, metavar="N", help="size of probe images (default: the zoo's)"
    )
    name = "generalisation-cifar10-gs"
    parser.add_argument("--out", default=f"results/{name}.json", metavar="FILE", help=f"(default: results/{name}.json)")
    parser.add_argument("--runs", default=f"runs/{name}", metavar="DIR", help=f"run folders (default: runs/{name})")
    add_json(parser)


def _bulk(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import bulk

    rows = bulk(
        options.out,
        recipe=options.recipe,
        networks=options.networks,
        steps=options.steps,
        side=options.side,
        rounds=options.rounds,
        thread_count=options.threads or default_threads(),
        seed=options.seed,
        command=options.command,
    )
    return show(rows, options)


def _generalisation(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import generalisation

    options.resume_hint = "finished runs are kept, run the same command again to go on"
    chosen = {"methods": options.methods.split(",")} if options.methods else {}
    keys = ("seeds", "out", "runs", "overrides", "jobs", "transfer", "wider", "probe_side", "command")
    return show(generalisation(options.zoo, **chosen, **{key: getattr(options, key) for key in keys}), options)
