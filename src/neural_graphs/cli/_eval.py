"""`neural-graphs eval RUN`: how good a trained model is on a split of a zoo, or a learned optimizer on held-out tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
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
from neural_graphs.errors import RunError, UserError

PER_NETWORK = ("network", "true", "predicted", "lower", "upper", "novelty", "architectures", "gallery")
MOST_LINES = 12  # of the table of architectures
RULE = "rule.safetensors"  # what a finished meta-training has in its folder


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "eval",
        "evaluate a trained model on held-out networks, or a learned optimizer on held-out tasks",
        "neural-graphs eval runs/quickstart/ng-gnn",
        run,
        "Of a model that predicts numbers it writes a page with plots of predictions and errors, of an editor one with a\n"
        "gallery; with --report also of one that tells classes apart.\n"
        "RUN may be a meta-training's folder, or `optimizer`, the weights that come with the package: they train held-out\n"
        "tasks, untuned, beside optimizers that are tuned on each task.",
    )
    parser.add_argument("run_dir", metavar="RUN", help="folder of a training run, or optimizer")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="(default: test)")
    parser.add_argument("--zoo", metavar="DIR", help="evaluate on this zoo instead of the run's own")
    parser.add_argument(
        "--report", metavar="FILE", help="HTML page to write (default: RUN/report.html, for classifiers none)"
    )
    parser.add_argument(
        "--groups", metavar="A,B", help="of a learned optimizer: groups of tasks (default: in-distribution)"
    )
    parser.add_argument("--seeds", type=integers, metavar="N,N", help="of a learned optimizer (default: 1,2,3,4,5)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of a learned optimizer: horizon of all tasks")
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    if options.run_dir == "optimizer" or (Path(options.run_dir) / RULE).is_file():
        from neural_graphs.cli._eval_optimizer import run as evaluate_optimizer

        return evaluate_optimizer(options)
    if given := [name for name in ("groups", "seeds", "steps") if getattr(options, name)]:
        raise UserError(f"--{given[0]} is for learned optimizers, and {options.run_dir} holds none")
    use_threads(options)
    load("neural_graphs.explore")
    from neural_graphs.tasks import evaluate

    found = evaluate(options.run_dir, split=options.split, zoo=options.zoo)
    page = _write_page(found, options)
    if options.json:
        print_json({key: value for key, value in found.items() if key not in PER_NETWORK} | {"report": page})
        return 0
    _SHOW[found["task"]](found, options)
    if page:
        print(f"\nreport: {page}")
    return 0


def _write_page(found: dict[str, Any], options: argparse.Namespace) -> str | None:
    from neural_graphs.explore import save_evaluation

    if options.report and found["task"] == "adapt":
        raise UserError("there is no page of adapters yet: leave out --report")
    if not options.report and found["task"] not in ("regress", "edit"):
        return None
    path = options.report or str(Path(options.run_dir) / "report.html")
    try:
        save_evaluation(found, options.run_dir, path)
    except RunError as error:
        if options.report:
            raise
        print(f"no report: {error}; --report FILE writes it elsewhere", file=sys.stderr)  # the figures were asked for
        return None
    return path


def _print_regression(found: dict[str, Any], options: argparse.Namespace) -> None:
    from neural_graphs.explore._eval_page import group_figures, groups_of, is_share
    from neural_graphs.zoo import Zoo

    percent = is_share(found)

    def exact(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:.4g}"

    where = f" of {options.zoo}" if options.zoo else ""
    print(f"{options.run_dir}: {found['target']} of {found['n']:,} {options.split} networks{where}\n")
    print_table(
        ("figure", "value", "meaning"),
        [
            ("Kendall's tau", f"{found['kendall_tau']:.4f}", "order of the networks, 1 is perfect"),
            ("R2", f"{found['r2']:.4f}", "share of the variance explained"),
            ("MAE", exact(found["mae"]), "mean absolute error"),
            ("RMSE", exact(found["rmse"]), "root mean square error"),
            ("coverage", f"{found['interval_coverage']:.1%}", "true values within their 90% interval"),
            ("width", exact(found["interval_width"]), "mean width of the intervals"),
        ],
        right=(1,),
    )
    kinds = found["per_architecture"]
    groups = groups_of(found, Zoo.load(found["zoo"]))
    if groups is not None:
        import numpy as np

        rows = [
            (row["name"], row["n"], _tau(row["kendall_tau"]), exact(row["mae"]))
            for row in group_figures(groups, np.asarray(found["true"]), np.asarray(found["predicted"]))
        ]
        print()
        print_table((groups.title, "networks", "tau", "MAE"), rows, right=(1, 2, 3))
    if 1 < len(kinds) <= MOST_LINES and any(not entry["seen"] for entry in kinds.values()):
        print()
        lines = [
            (name, entry["n"], _tau(entry["kendall_tau"]), exact(entry["mae"]), "yes" if entry["seen"] else "no")
            for name, entry in kinds.items()
        ]
        print_table(("architecture", "networks", "tau", "MAE", "trained on"), lines, right=(1, 2, 3))


def _tau(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_edits(found: dict[str, Any], options: argparse.Namespace) -> None:
    from neural_graphs.explore._edit_page import rows_of, three

    where = f" of {options.zoo}" if options.zoo else ""
    print(f"{options.run_dir}: {', '.join(found['edits'])} of {found['n']:,} {options.split} networks{where}\n")
    head = ("edit", "", "mse x1e-2", "psnr", "ssim", "time per network")
    print_table(head, rows_of(found), right=(2, 3, 4, 5))
    if len(found["per_architecture"]) > 1:
        print()
        kinds = [
            (name, entry["n"], *three(entry), "yes" if entry["seen"] else "no")
            for name, entry in found["per_architecture"].items()
        ]
        print_table(("architecture", "networks", *head[2:5], "trained on"), kinds, right=(1, 2, 3, 4))


def _print_adapted(found: dict[str, Any], options: argparse.Namespace) -> None:
    where = f" of {options.zoo}" if options.zoo else ""
    print(f"{options.run_dir}: {found['n']:,} {options.split} networks{where} adapted, mean accuracies\n")
    keys = ("accuracy", "no_edit_accuracy", "clean_accuracy")
    rows = [
        (name, *(f"{entry[key]:.2%}" for key in keys), f"{100 * entry['gain']:+.2f}")
        for name, entry in found["per_edit"].items()
    ]
    print_table(("images", "adapted", "no edit", "no edit, clean images", "points gained"), rows, right=(1, 2, 3, 4))


def _print_classification(found: dict[str, Any], options: argparse.Namespace) -> None:
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


_SHOW = {
    "classify": _print_classification,
    "regress": _print_regression,
    "edit": _print_edits,
    "adapt": _print_adapted,
}
