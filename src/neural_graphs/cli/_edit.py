"""`neural-graphs edit RUN CKPT... -o OUT`: write edited networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from neural_graphs.cli._parser import (
    add_json,
    add_model,
    add_threads,
    add_verb,
    load,
    positive,
    print_json,
    print_table,
    use_threads,
)
from neural_graphs.cli._predict import print_failures
from neural_graphs.errors import UserError


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "edit",
        "edit the images that networks draw, by changing their weights",
        "neural-graphs edit runs/edit runs/quickstart/example.safetensors -o edited.safetensors\n"
        "  (after `neural-graphs train edit zoo=runs/quickstart/zoo`)",
        run,
        "Every network is written in the format of its file, and beside it a picture: before, target (the edit of what the\n"
        "network draws) and after, with mean squared errors to the target. The input files are only read.\n"
        "A file that cannot be edited is reported and the others are edited all the same; the exit code is then 2.",
    )
    add_model(parser)
    parser.add_argument(
        "files",
        metavar="CKPT",
        nargs="+",
        help="network files (.safetensors, .pt, .pth, .bin or .ckpt) or folders of them at any depth",
    )
    parser.add_argument(
        "-o", "--out", metavar="OUT", required=True, help="file to write; of several networks or folders, the folder"
    )
    parser.add_argument("--edit", metavar="NAME", help="which edit, where the model was trained on several")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="from 0, no change, to 1, the whole edit (default: 1)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="pixels along the longer side of the picture's images (default: those that the model was trained on)",
    )
    parser.add_argument("--no-picture", action="store_true", help="write the networks alone")
    parser.add_argument(
        "--activation", metavar="NAME", help="hidden non-linearity, such as sine:30, where the shapes do not tell it"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    use_threads(options)
    load("neural_graphs.tasks._edit_files")
    from neural_graphs.tasks import Editor, edit_files, load_model

    model = load_model(options.run_dir)
    if not isinstance(model, Editor):
        raise UserError(
            f"{options.run_dir} is a {model.noun}, which edits nothing: give a run of `neural-graphs train edit`"
        )
    results = edit_files(
        model,
        options.files,
        options.out,
        edit=options.edit,
        strength=options.strength,
        activation=options.activation,
        picture=not options.no_picture,
        size=options.size,
        force=options.force,
        quiet=False,
    )
    good = [result for result in results if "error" not in result]
    if options.json:
        print_json(results)
    elif good:
        _print(good)
    return print_failures(results, options.activation)


def _print(results: list[dict[str, Any]]) -> None:
    def write(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [
        (Path(r["file"]).name, r["edit"], write(r["mse"]), write(r["no_edit_mse"]), r["architecture"], r["out"])
        for r in results
    ]
    print_table(("file", "edit", "mse", "no edit", "architecture", "out"), rows, right=(2, 3))
