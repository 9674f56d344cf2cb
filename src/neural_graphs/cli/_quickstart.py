"""`neural-graphs quickstart`: from images to answers in a few minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_graphs.cli._parser import add_json, add_threads, add_verb, load, positive, print_json, use_threads

if TYPE_CHECKING:
    from neural_graphs.explore import Outcome

BAR = 40  # characters of 100 %


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "quickstart",
        "from images to answers: fit networks, learn to read them, see the result",
        "neural-graphs quickstart",
        run,
        "Fits small networks to images of digits (bundled with scikit-learn), trains a graph network to tell which digit\n"
        "a network draws, and tests it on networks of images never seen, beside a plain network on raw weights.\n"
        "Writes an HTML report, the trained models and results.json. Interrupted, it goes on where it was.",
    )
    parser.add_argument("-o", "--out", default="runs/quickstart", metavar="DIR", help="(default: runs/quickstart)")
    parser.add_argument("--force", action="store_true", help="start anew where it has run before")
    parser.add_argument("--size", type=positive, metavar="N", help="number of images (default: all 1,797)")
    parser.add_argument("--views", type=positive, metavar="N", help="networks per image (default: 4)")
    parser.add_argument("--steps", type=positive, metavar="N", help="optimiser steps per network (default: 300)")
    parser.add_argument("--epochs", type=positive, metavar="N", help="training epochs of both methods (default: 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    threads = use_threads(options)
    load("neural_graphs.explore", "neural_graphs.bench")
    from neural_graphs.explore import Settings, quickstart

    asked = {name: getattr(options, name) for name in ("size", "views", "steps", "epochs", "seed")}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    # With --json, stdout is for the program that reads it.
    steps = sys.stderr if options.json else sys.stdout
    try:
        outcome = quickstart(
            Path(options.out), settings, threads, options.force, lambda line: print(line, file=steps, flush=True)
        )
    except KeyboardInterrupt:  # the phase that was interrupted has advice on itself alone
        raise KeyboardInterrupt("interrupted: nothing is lost, run the same command again to go on") from None
    results = outcome.folder / "results.json"
    if not results.is_file():
        _write_results(outcome, results, options.command)
    if options.json:
        print_json(
            {
                "accuracy": outcome.accuracy,
                "seconds": outcome.seconds,
                "report": str(outcome.report),
                "results": str(results),
            }
        )
    else:
        _print(outcome, results)
    return 0


def _write_results(outcome: Outcome, path: Path, command: str) -> None:
    from neural_graphs.bench import row, write_results
    from neural_graphs.explore._quickstart import ENCODERS

    settings = outcome.settings
    dataset = {
        "zoo": "digits",
        **outcome.networks,
        "recipe": "dws",
        "architecture": outcome.example["architecture"],
        "steps": settings.steps,
        "views": settings.views,
        "split": "by image",
    }
    rows = [row("chance", "test_accuracy", outcome.chance), row("quickstart", "seconds", round(outcome.seconds, 1))]
    for method, accuracy in outcome.accuracy.items():
        probes = ENCODERS[method].get("probes")
        rows.append(
            row(
                method,
                "test_accuracy",
                accuracy,
                f"probes={probes}" if probes else "",
                parameters=outcome.parameters[method],
                seconds=round(outcome.train_seconds[method], 1),
                epochs=settings.epochs,
            )
        )
    write_results(path, "quickstart", command, dataset, rows, threads=outcome.threads)


def _print(outcome: Outcome, results: Path) -> None:
    from neural_graphs.explore import next_commands
    from neural_graphs.explore._quickstart import TITLES

    images = outcome.networks["test"] // outcome.settings.views
    print(f"\naccuracy on {outcome.networks['test']:,} networks of {images:,} images never seen")
    shares = {TITLES[name]: share for name, share in outcome.accuracy.items()} | {"chance": outcome.chance}
    for name, share in shares.items():
        print(f"  {name:<8} {_bar(share):<{BAR}} {share:6.1%}")
    print(f"\nreport   {outcome.report}\nresults  {results}\nnext")
    for command, what in next_commands(outcome):
        print(f"  {command}\n      {what}")


def _bar(share: float) -> str:
    whole = round(share * BAR)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return ("█" if unicode else "#") * max(1, whole)
