"""What all verbs share: the parser, common options, thread counts, plain tables and JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from neural_graphs._threads import default_threads

Run = Callable[[argparse.Namespace], int]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that shows an example under its options and says mistakes in one line."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        kwargs.setdefault("epilog", f"example:\n  {example}" if example else None)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        # Before or after the verb: only the outermost parser sets a default, so that none undoes what another one read.
        default = argparse.SUPPRESS if " " in self.prog else False
        self.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def add_verb(verbs: Any, name: str, summary: str, example: str, run: Run | None, details: str = "") -> Parser:
    """Add a verb to the parser's subcommands; `run` receives the parsed options and returns an exit code."""
    description = summary[0].upper() + summary[1:] + "." + (f"\n\n{details}" if details else "")
    parser: Parser = verbs.add_parser(name, help=summary, description=description, example=example)
    if run is not None:
        parser.set_defaults(run=run, parser=parser)
    return parser


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "run_dir",
        metavar="RUN",
        help="folder of a training run or of a saved model, or hf:OWNER/NAME of a model on the Hugging Face Hub",
    )


def add_threads(parser: Parser) -> None:
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="processor threads (default: OMP_NUM_THREADS, else the physical cores this process may use)",
    )


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return number


positive.__name__ = "positive number"  # argparse names the type in its message


def integers(value: str) -> tuple[int, ...]:
    return tuple(int(part) for part in value.split(","))


integers.__name__ = "list such as 32,32"


def numbers(value: str) -> tuple[float, ...]:
    return tuple(float(part) for part in value.split(","))


numbers.__name__ = "list such as 0.8,0.1,0.1"


def load(*modules: str) -> None:
    """Import what a verb needs, holding Ctrl-C back meanwhile: an import of torch that is broken off can be swallowed and
    leave torch half made, so that the verb fails later with an error that means nothing."""
    held = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if held else set()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        if held:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def use_threads(options: argparse.Namespace) -> int:
    """Set torch's thread count from `--threads` and return it."""
    load("torch")
    import torch

    threads: int = options.threads or default_threads()
    torch.set_num_threads(threads)
    return threads


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> None:
    """Columns two spaces apart under a head line; columns in `right` are right-aligned. Not cut at the window's width."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = set(right)
    for number, line in enumerate(lines):
        cells = (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        row = "  ".join(cells).rstrip()
        print(f"\033[2m{row}\033[0m" if number == 0 and sys.stdout.isatty() else row)
