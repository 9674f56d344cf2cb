"""`neural-graphs train optimizer`: meta-train an update rule."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from neural_graphs.cli._parser import load, print_json


def run(options: argparse.Namespace) -> int:
    from neural_graphs.optim._config import list_meta_presets, load_meta_config, meta_preset_text, to_yaml

    config = load_meta_config(options.config, options.overrides)
    if options.print:
        commented = options.config in list_meta_presets() and not options.overrides
        print((meta_preset_text(options.config) if commented else to_yaml(config)).rstrip())
        return 0
    if options.threads:
        config = replace(config, workers=options.threads)
    # Inner tasks are tiny: threads inside of an operation only slow it down. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load("neural_graphs.optim._meta")
    from neural_graphs.optim import train_rule

    options.resume_hint = "go on with the same command and --resume"
    result = train_rule(config, resume=options.resume, quiet=options.quiet)
    if options.json:
        print_json(
            {
                "run": str(result.run_dir),
                "score": result.score,
                "adam": result.nominal,
                "best_step": result.best_step,
                "seconds": result.seconds,
            }
        )
        return 0
    print(
        f"{result.run_dir}: validation score {result.score:.3f}, of Adam {result.nominal:.3f} "
        f"(mean log of the final training loss; step {result.best_step}, {result.seconds:.0f} s)"
    )
    print(f"next: neural-graphs eval {result.run_dir}")
    return 0
