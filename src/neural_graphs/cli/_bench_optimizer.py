"""`neural-graphs bench optimiser`: learned optimizers beside tuned ones on tasks that were held out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from neural_graphs.cli._parser import (
    add_json,
    add_threads,
    add_verb,
    integers,
    load,
    positive,
    print_json,
    print_table,
    use_threads,
)
from neural_graphs.errors import UserError


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "optimiser",
        "train held-out tasks with learned optimizers and with tuned ones: losses, accuracies, steps, time",
        "neural-graphs bench optimiser --rule graph=runs/optimizer --groups transformer --steps 50 --seeds 1,2 --out few",
        _optimizer,
        "Groups: in-distribution, width, depth, image-size, mnist, cnn, transformer, horizon, paper-fashion, "
        "paper-cifar10.\n"
        "What was tuned and run already is not repeated; interrupted measurements go on where they were.",
    )
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="files, run folders or shipped weights, one per meta-seed; may be given several times",
    )
    parser.add_argument("--groups", metavar="A,B", help="groups of tasks (default: all but the paper's)")
    parser.add_argument("--seeds", type=integers, default=(1, 2, 3, 4, 5), metavar="N,N", help="(default: 1,2,3,4,5)")
    parser.add_argument(
        "--tuning-seeds", type=integers, default=(1001, 1002), metavar="N,N", help="(default: 1001,1002)"
    )
    parser.add_argument("--tuning-steps", type=positive, metavar="N", help="horizon of tuning (default: the tasks')")
    parser.add_argument("--steps", type=positive, metavar="N", help="horizon of all tasks (default: their own)")
    parser.add_argument("--baselines", metavar="A,B", help="(default: sgd,adam,adamw,nadamw,muon)")
    parser.add_argument("--no-knob", action="store_true", help="do not tune the rules' learning rate")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--out", default="results", metavar="DIR", help="of optimiser-<group>.json (default: results)")
    parser.add_argument("--runs", default="runs/optimiser", metavar="DIR", help="(default: runs/optimiser)")
    add_json(parser)
    add_threads(parser)


def _optimizer(options: argparse.Namespace) -> int:
    options.resume_hint = "what is done is kept, run the same command again to go on"
    rules = dict(_rule(text) for text in options.rule)
    load("neural_graphs.bench")
    use_threads(options)
    from neural_graphs.bench import learned_optimizers

    chosen = {name: getattr(options, name).split(",") for name in ("groups", "baselines") if getattr(options, name)}
    kept = {
        name: getattr(options, name)
        for name in ("seeds", "tuning_seeds", "tuning_steps", "steps", "device", "out", "runs", "command")
    }
    rows = learned_optimizers(rules, knob=not options.no_knob, **chosen, **kept)
    return show(rows, options.out, options.json)


def show(rows: Sequence[Mapping[str, Any]], out: str | os.PathLike[str], as_json: bool) -> int:
    """Print what ``learned_optimizers`` returned, a table per group."""
    from neural_graphs.bench import _optimizer_table

    if as_json:
        print_json(rows)
        return 0
    for group in dict.fromkeys(entry["group"] for entry in rows):
        own = _optimizer_table.lines(dict(entry) for entry in rows if entry["group"] == group)
        print(f"\n{group}\n")
        print_table(_optimizer_table.HEAD, [[cell.replace("**", "") for cell in line] for line in own])
    print(f"\nresults: {out}")
    return 0


def _rule(text: str) -> tuple[str, list[str]]:
    name, equals, files = text.partition("=")
    if not equals or not name or not files:
        raise UserError(f"--rule {text}: give a name and files of weights, as in --rule graph=runs/a,runs/b")
    return name, files.split(",")
