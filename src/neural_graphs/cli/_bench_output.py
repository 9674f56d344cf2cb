"""What the verbs of `bench` share: options of speed measurements, and how rows are shown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from neural_graphs.cli._parser import Parser, add_json, add_threads, positive, print_json, print_table


def add_speed(parser: Parser, out: str) -> None:
    parser.add_argument("--out", default=out, metavar="FILE", help=f"results file (default: {out})")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="measured in turn (default: 7)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_json(parser)
    add_threads(parser)


def show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    if options.json:
        print_json(list(rows))
        return 0
    cells = [
        (row["method"], row["variant"], row["metric"], f"{row['mean']:.4g}", f"{row['std']:.2g}", len(row["values"]))
        for row in rows
    ]
    print_table(("method", "variant", "metric", "mean", "std", "n"), cells, right=(3, 4, 5))
    print(f"\nresults: {options.out}")
    return 0
