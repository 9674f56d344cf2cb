"""Parse the command line, run one verb, turn whatever happens into an exit code and at most one line.

Exit codes: 0 done, 1 failed, 2 wrong usage or wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from neural_graphs import __version__
from neural_graphs.cli import _bench, _check, _edit, _eval, _graph, _predict, _quickstart, _train, _zoo
from neural_graphs.cli._parser import Parser
from neural_graphs.errors import RunError, UserError

_VERBS = (_quickstart, _graph, _check, _zoo, _train, _eval, _predict, _edit, _bench)


def build_parser() -> Parser:
    parser = Parser(
        prog="neural-graphs",
        description="Neural networks as data: turn networks into graphs, collect them in zoos, learn from them.",
        example="neural-graphs quickstart      # from images to answers in a few minutes, start here",
    )
    parser.add_argument("--version", action="version", version=f"neural-graphs {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parse(arguments)
    except SystemExit as stop:  # argparse has printed the help, the version or the mistake
        return int(stop.code or 0)
    # Threads that wait for work spin for some microseconds, then sleep. By default they spin for milliseconds, and where
    # other processes want the cores too, a training step of tiny networks takes up to 50 times as long; sleeping at once
    # costs a quarter on a quiet machine. Read by GNU OpenMP when torch is imported; OMP_WAIT_POLICY goes before.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output (`| head`) has enough. Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        hint = str(stop) or f"interrupted: {getattr(options, 'resume_hint', 'run the same command again')}"
        print(f"\n{_one_line(hint)}", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    options.command = shlex.join(["neural-graphs", *arguments])  # results files say how they were made
    # argparse gives a verb's list of key=value only those before its first option.
    if rest and hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _explain(error: Exception) -> str:
    if isinstance(error, (UserError, RunError)):
        return _one_line(str(error))
    if isinstance(error, OSError) and error.strerror:  # disk full, permission denied, ...
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: use a smaller batch, fewer networks or a machine with more memory"
    detail = _one_line(str(error))
    return f"unexpected {type(error).__name__}{': ' + detail if detail else ''} (--debug shows where)"


def _one_line(message: str) -> str:
    return " ".join(message.split())
