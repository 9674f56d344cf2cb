"""`neural-graphs eval optimizer`: a learned optimizer beside tuned ones on held-out tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

from neural_graphs.cli._bench_optimizer import show
from neural_graphs.cli._parser import load, use_threads
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
    from neural_graphs.bench import learned_optimizers

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
    return show(rows, out, options.json)
