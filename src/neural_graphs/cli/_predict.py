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
    parser.add_argument(
        "run_dir",
        metavar="RUN",
        help="folder of a training run or of a saved model, or hf:OWNER/NAME of a model on the Hugging Face Hub",
    )
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
        rows = [
            (r["file"], r["label"], f"{max(r['probabilities']):.1%}", r["architecture"])
            for r in results
            if "error" not in r
        ]
        print_table(("file", "class", "probability", "architecture"), rows, right=(1, 2))
    sys.stdout.flush()
    for result in failed:
        message = result["error"]
        print(f"error: {message if result['file'] in message else result['file'] + ': ' + message}", file=sys.stderr)
    return 2 if failed else 0
