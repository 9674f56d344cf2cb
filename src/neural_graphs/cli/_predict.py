"""`neural-graphs predict RUN DIR|FILE...`: what a trained model says about networks."""

from __future__ import annotations

import argparse
import csv
import sys
from typing import Any

from neural_graphs.cli._parser import add_model, add_threads, add_verb, load, print_json, print_table, use_threads
from neural_graphs.errors import UserError

COLUMNS = (
    "rank",
    "file",
    "network",
    "predicted",
    "low",
    "high",
    "architecture",
    "outside",
    "reason",
    "novelty",
    "duplicate_of",
    "error",
)


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "predict",
        "classify or rank networks with a trained model",
        "neural-graphs predict runs/quickstart/ng-gnn runs/quickstart/example.safetensors",
        run,
        "A model that predicts numbers, such as the test accuracy, ranks the networks, best first, with an interval that\n"
        "holds nine of ten true values, and says which are unlike those it was trained on.\n"
        "A file that cannot be read is reported and the others are judged all the same; the exit code is then 2.",
    )
    add_model(parser)
    parser.add_argument(
        "files",
        metavar="DIR|FILE",
        nargs="+",
        help="network files (.safetensors, .pt, .pth, .bin or .ckpt), folders of them at any depth, or zoos",
    )
    parser.add_argument(
        "--activation", metavar="NAME", help="hidden non-linearity, such as sine:30, where the shapes do not tell it"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON for scripts")
    output.add_argument("--csv", action="store_true", help="print the ranking as CSV")
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    load("neural_graphs.tasks._regressor", "neural_graphs.tasks._classifier")
    from neural_graphs.tasks import Classifier, Regressor, load_model, predict, rank

    model = load_model(options.run_dir)
    if isinstance(model, Regressor):
        results = rank(model, options.files, activation=options.activation, quiet=False)
    elif not isinstance(model, Classifier):
        raise UserError(
            f"{options.run_dir} is an {model.noun}, which predicts nothing of a network: use `neural-graphs edit`"
        )
    elif options.csv:
        raise UserError(f"{options.run_dir} is a classifier, which ranks nothing for a CSV: use --json")
    else:
        results = predict(model, options.files, activation=options.activation, quiet=False)
    failed = [result for result in results if "error" in result]
    if options.json:
        print_json(results)
    elif options.csv:
        _print_csv(results)
    elif len(failed) == len(results):
        pass
    elif isinstance(model, Regressor):
        _print_ranking(model, [result for result in results if "error" not in result])
    else:
        rows = [
            (_name(r), r["label"], f"{max(r['probabilities']):.1%}", r["architecture"])
            for r in results
            if "error" not in r
        ]
        print_table(("file", "class", "probability", "architecture"), rows, right=(1, 2))
    return print_failures(results, options.activation)


def print_failures(results: list[dict[str, Any]], activation: str | None) -> int:
    """A line on stderr for every network that nothing could be done with; the exit code."""
    sys.stdout.flush()
    failed = [result for result in results if "error" in result]
    for result in failed:
        message = result["error"]
        if "non-linearity" in message and not activation:
            message += ": add --activation"
        print(f"error: {message if result['file'] in message else _name(result) + ': ' + message}", file=sys.stderr)
    return 2 if failed else 0


def _name(result: dict[str, Any]) -> str:
    from neural_graphs.tasks._predict import name_of

    return name_of(result)


def _print_csv(results: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {key: value for key, value in result.items() if value is not None}
        if "outside" in row:
            row["outside"] = str(row["outside"]).lower()
        writer.writerow(row)


def _print_ranking(model: Any, results: list[dict[str, Any]]) -> None:
    percent = "accuracy" in model.target and model.bounds == (0.0, 1.0)

    def write(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    rows: list[tuple[Any, ...]] = []
    for r in results:
        copy = f"same weights as {r['duplicate_of']}" if r["duplicate_of"] else ""
        interval = f"{write(r['low'])} - {write(r['high'])}"
        outside = f"yes: {r['reason']}" if r["outside"] else "no"
        rows.append((r["rank"], _name(r), write(r["predicted"]), interval, r["architecture"], outside, copy))
    head: tuple[str, ...] = ("rank", "file", model.target, "interval", "architecture", "outside", "duplicate")
    if not any(r["duplicate_of"] for r in results):
        head, rows = head[:-1], [row[:-1] for row in rows]
    print_table(head, rows, right=(0, 2, 3))
