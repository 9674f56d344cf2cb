"""`neural-graphs bench nowcast`: forecasts of training, beside extrapolation and plain Adam."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._bench_output import show
from neural_graphs.cli._parser import add_json, add_verb, integers, load, positive

OUT = "results/optimiser-nowcast.json"


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "nowcast",
        "train nowcasters, jump ahead with them in unseen training runs, and compare the losses",
        "neural-graphs bench nowcast --seeds 0 --steps 100 --runs 2 --out few.json",
        _nowcast,
        "Results are written after every seed.",
    )
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    parser.add_argument("--steps", type=positive, default=1000, metavar="N", help="of training (default: 1000)")
    parser.add_argument(
        "--runs", type=positive, default=8, metavar="N", help="training runs per architecture and data set (default: 8)"
    )
    parser.add_argument(
        "--networks", type=positive, default=3, metavar="N", help="tested per learning rate (default: 3)"
    )
    parser.add_argument("--loss-weight", type=float, default=1.0, metavar="X", help="see Nowcaster.fit (default: 1)")
    parser.add_argument("--save", metavar="DIR", help="keep the nowcasters there")
    parser.add_argument("--out", default=OUT, metavar="FILE", help=f"(default: {OUT})")
    add_json(parser)


def _nowcast(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import nowcasting

    rows = nowcasting(
        options.out,
        seeds=options.seeds,
        steps=options.steps,
        runs=options.runs,
        networks=options.networks,
        loss_weight=options.loss_weight,
        save=options.save,
        command=options.command,
    )
    return show(rows, options)
