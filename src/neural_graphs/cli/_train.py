"""`neural-graphs train CONFIG`: train an encoder on a zoo, or an optimizer on inner tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from neural_graphs.cli._parser import add_json, add_threads, add_verb, load, print_json, use_threads
from neural_graphs.errors import UserError

_SCORES = {
    "classify": ("accuracy", ".2%", ""),
    "regress": ("kendall_tau", ".4f", "Kendall's tau on "),
    "edit": ("mse", ".5f", "mean squared error on "),
    "adapt": ("accuracy", ".2%", ""),
}
"""Per task the figure that is printed, how, and what it is called."""


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "train",
        "train an encoder on a zoo, or a learned optimizer",
        "neural-graphs train inr-cpu zoo=runs/quickstart/zoo optimizer.epochs=5 encoder.probes=16",
        run,
        "CONFIG is a YAML file or the name of a preset (`neural-graphs train --presets` lists them; --print shows one with\n"
        "its comments, a start for a file of your own). Settings are overridden as key=value, nested ones with dots.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file or preset")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override")
    parser.add_argument("--resume", action="store_true", help="go on where the run in its folder was interrupted")
    parser.add_argument("--presets", action="store_true", help="list the presets and stop")
    parser.add_argument("--print", action="store_true", help="print the configuration and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    add_json(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    from neural_graphs.optim._config import is_meta_config, list_meta_presets, meta_preset_text
    from neural_graphs.tasks import list_presets, load_config, preset_text
    from neural_graphs.tasks._config import to_yaml

    if options.presets:
        texts = {name: preset_text(name) for name in list_presets()}
        texts |= {name: meta_preset_text(name) for name in list_meta_presets()}
        for name, text in sorted(texts.items()):
            print(f"{name:<24}{text.splitlines()[0].lstrip('# ')}")
        return 0
    presets = sorted([*list_presets(), *list_meta_presets()])
    if options.config is None:
        raise UserError(f"give a configuration: a YAML file or one of the presets, {', '.join(presets)}")
    if options.config not in presets and not Path(options.config).is_file():
        raise UserError(f"{options.config} is neither a file nor a preset; presets: {', '.join(presets)}")
    if is_meta_config(options.config):
        from neural_graphs.cli._train_optimizer import run as train_optimizer

        return train_optimizer(options)
    config = load_config(options.config, options.overrides)
    if options.print:
        commented = options.config in list_presets() and not options.overrides
        print((preset_text(options.config) if commented else to_yaml(config)).rstrip())
        return 0

    from dataclasses import replace

    load("neural_graphs.tasks._train")
    from neural_graphs.tasks import train

    # The configuration's own thread count counts unless the command line says otherwise.
    options.threads = options.threads or config.threads or None
    config = replace(config, threads=use_threads(options))
    options.resume_hint = "go on with the same command and --resume"
    result = train(config, resume=options.resume, quiet=options.quiet)
    score, shown, before = _SCORES[config.task]
    val, test = (result.metrics[f"{split}_{score}"] for split in ("val", "test"))
    if options.json:
        print_json(
            {
                "run": str(result.run_dir),
                "best_epoch": result.best_epoch,
                f"val_{score}": val,
                f"test_{score}": test,
                "seconds": result.seconds,
            }
        )
        return 0
    scores = [f"{name} {value:{shown}}" for name, value in (("validation", val), ("test", test)) if value is not None]
    print(f"{result.run_dir}: {before}{', '.join(scores)} (epoch {result.best_epoch}, {result.seconds:.0f} s)")
    print(f"next: neural-graphs eval {result.run_dir}")
    return 0
