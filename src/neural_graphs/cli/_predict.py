"""`neural-graphs predict RUN CKPT...`: what a trained model says about network files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from neural_graphs.cli._parser import add_json, add_threads, add_verb, print_json, print_table, use_threads


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "predict",
        "classify network files with a trained model",
        "neural-graphs predict runs/quickstart/ng-gnn runs/quickstart/example.safetensors",
        run,
        "A file that cannot be read is reported and the others are classified all the same; the exit code is then 2.",
    )
    parser.add_argument("run_dir", metavar="RUN", help="folder of a training run or of a saved model")
    parser.add_argument(
        "files", metavar="CKPT", nargs="+", help="network files: .safetensors, .pt, .pth, .bin or .ckpt"
    )
    parser.add_argument(
        "--activation", metavar="NAME", help="hidden non-linearity, such as sine:30, where the shapes do not tell it"
    )
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    from neural_graphs.tasks import predict

    results = predict(options.run_dir, options.files, activation=options.activation)
    failed = [result for result in results if "error" in result]
    if options.json:
        print_json(results)
    elif len(failed) < len(results):
        rows = [(r["file"], r["label"], *_top(r["probabilities"])) for r in results if "error" not in r]
        print_table(("file", "class", "probability", "next best"), rows, right=(1, 2, 3))
    sys.stdout.flush()
    for result in failed:
        message = result["error"]
        print(f"error: {message if result['file'] in message else result['file'] + ': ' + message}", file=sys.stderr)
    return 2 if failed else 0


def _top(probabilities: list[float]) -> tuple[str, str]:
    ranked = sorted(enumerate(probabilities), key=lambda item: -item[1])
    following = f"{ranked[1][0]} ({ranked[1][1]:.1%})" if len(ranked) > 1 else "-"
    return f"{ranked[0][1]:.1%}", following
