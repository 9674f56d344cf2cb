"""`neural-graphs zoo import KIND PATH`: copy networks made elsewhere into a zoo."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs.cli._parser import add_verb, load, numbers

_DETAILS = """\
kinds:
  small-cnn-zoo  weights.npy, metrics.csv.gz, layout.csv (Unterthiner et al. 2020)
  wild-park      RUN/checkpoint_STEP/checkpoint.pt (Kofinas et al. 2024)
  model-zoos     RUN/params.json, result.json, checkpoint_EPOCH/checkpoints (Schuerholt et al. 2022)
  folder         checkpoints and a CSV file with columns file and test_accuracy; also split, run, activation
  dws, nfn       the INR corpora of Navon et al. 2023 and of Zhou et al. 2023, extracted
  stacked        weights.safetensors and networks.parquet
Nothing in the files is executed. Networks that cannot be used, and copies, are left out; DIR/skipped.txt says why."""


def add(inner: Any) -> None:
    parser = add_verb(
        inner,
        "import",
        "copy networks made elsewhere into a zoo",
        "neural-graphs zoo import folder checkpoints --activation relu -o zoos/mine",
        _import,
        _DETAILS,
    )
    parser.add_argument(
        "words", metavar="[KIND] PATH", nargs="+", help="what it is, and the folder to read (or CSV file)"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the new zoo")
    parser.add_argument("--kind", metavar="KIND", help="in place of KIND; without either: stacked or dws")
    parser.add_argument("--images", metavar="NAME", help="what the networks see or show (default: guessed)")
    parser.add_argument("--activation", metavar="NAME", help="hidden non-linearity, where the files do not say it")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of validation and test networks"
    )
    splits = parser.add_argument_group("classifiers")
    splits.add_argument(
        "--steps", metavar="WHICH", help="checkpoints of a run: last or all (default: all of wild-park)"
    )
    splits.add_argument("--splits", type=numbers, metavar="T,V,T",
                        help="shares of runs for training, validation and test (default: 0.8,0.1,0.1)")  # fmt: skip
    splits.add_argument("--split-file", metavar="FILE", help="published splits: NFN's list of indices, or a JSON file")
    splits.add_argument("--split-order", metavar="WHICH",
                        help="published (default), or clean: NFN's header is no index")  # fmt: skip
    inrs = parser.add_argument_group("implicit neural representations")
    inrs.add_argument("--recipe", help="how they were fitted: dws or nfn (default: that of the kind)")
    inrs.add_argument("--shift", type=float, metavar="X", help="constant added to the output (default: the recipe's)")


def _import(options: argparse.Namespace) -> int:
    if len(options.words) > 2:
        options.parser.error(f"unrecognized arguments: {' '.join(options.words[2:])}")
    if len(options.words) == 2 and options.kind:
        options.parser.error("give KIND or --kind, not both")
    kind = options.words[0] if len(options.words) == 2 else options.kind or "auto"
    load("neural_graphs.zoo")
    from neural_graphs.zoo import import_zoo

    zoo = import_zoo(
        options.words[-1],
        options.out,
        kind=kind,
        recipe=options.recipe,
        activation=options.activation,
        shift=options.shift,
        images=options.images,
        seed=options.seed,
        steps=options.steps,
        splits=options.splits,
        split_file=options.split_file,
        split_order=options.split_order,
    )
    if skipped := zoo.meta.get("skipped"):
        print(f"{skipped} network{'s were' if skipped > 1 else ' was'} skipped")
    if copies := zoo.meta.get("copies"):
        print(f"{copies} exact cop{'ies were' if copies > 1 else 'y was'} left out")
    print(zoo)
    print(f"next: neural-graphs zoo info {options.out}")
    return 0
