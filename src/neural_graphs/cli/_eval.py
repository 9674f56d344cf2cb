"""`neural-graphs eval RUN`: how good a trained model is on a split of its zoo, or of another."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._parser import add_json, add_threads, add_verb, print_json, print_table, use_threads


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "eval",
        "evaluate a trained model on held-out networks",
        "neural-graphs eval runs/quickstart/ng-gnn",
        run,
    )
    parser.add_argument("run_dir", metavar="RUN", help="folder of a training run")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="(default: test)")
    parser.add_argument("--zoo", metavar="DIR", help="evaluate on this zoo instead of the run's own")
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    from neural_graphs.tasks import evaluate

    found = evaluate(options.run_dir, split=options.split, zoo=options.zoo)
    if options.json:
        print_json(found)
        return 0
    print(
        f"{options.run_dir}: {found['accuracy']:.2%} of {found['n']:,} {options.split} networks, loss {found['loss']:.4f}\n"
    )
    names, confusion = found["class_names"], found["confusion"]
    rows = []
    for number, counts in enumerate(confusion):
        total, right = sum(counts), counts[number]
        wrong = [0 if column == number else count for column, count in enumerate(counts)]
        mistake = f"{names[wrong.index(max(wrong))]} ({max(wrong)})" if any(wrong) else "-"
        rows.append((names[number], total, f"{right / total:.1%}" if total else "-", mistake))
    print_table(("class", "networks", "right", "most often taken for"), rows, right=(1, 2))
    if len(found["per_architecture"]) > 1:
        print()
        kinds = [
            (name, entry["n"], f"{entry['accuracy']:.2%}", "yes" if entry["seen"] else "no")
            for name, entry in found["per_architecture"].items()
        ]
        print_table(("architecture", "networks", "right", "trained on"), kinds, right=(1, 2))
    return 0
