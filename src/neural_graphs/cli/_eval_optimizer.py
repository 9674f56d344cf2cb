"""`neural-graphs eval optimizer`: a learned optimizer beside tuned ones on held-out tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

from neural_graphs.cli._parser import load, print_json, print_table, use_threads
from neural_graphs.errors import UserError


def run(options: argparse.Namespace) -> int:
    if options.zoo or options.report or options.split != "test":
        raise UserError("--zoo, --report and --split are for models of networks: a learned optimizer takes --groups")
    shipped = options.run_dir == "optimizer"
    source = "ng-small" if shipped else options.run_dir
    out = Path("runs/optimizer-eval") if shipped else Path(options.run_dir) / "eval"
    options.resume_hint = "what is done is kept, run the same command again to go on"
    use_threads(options)
    load("neural_graphs.bench")
    from neural_graphs.bench import _optimizer_table, learned_optimizers

    rows = learned_optimizers(
        {"learned": [source]},
        groups=(options.groups or "in-distribution").split(","),
        seeds=options.seeds or (1, 2, 3, 4, 5),
        steps=options.steps,
        out=out,
        runs="runs/optimiser",
        timing=True,
        command=options.command,
    )
    if options.json:
        print_json(rows)
        return 0
    for group in dict.fromkeys(entry["group"] for entry in rows):
        lines = _optimizer_table.lines(entry for entry in rows if entry["group"] == group)
        print(f"\n{group}\n")
        print_table(_optimizer_table.HEAD, [[cell.replace("**", "") for cell in line] for line in lines])
    print(f"\nresults: {out}")
    return 0
