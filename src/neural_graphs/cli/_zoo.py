"""`neural-graphs zoo make inr | make cnn | import | info`: collections of networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from neural_graphs._threads import default_threads
from neural_graphs.cli import _zoo_cnn, _zoo_import
from neural_graphs.cli._parser import (
    add_json,
    add_threads,
    add_verb,
    integers,
    load,
    numbers,
    positive,
    print_json,
)


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "zoo",
        "make, import and inspect collections of networks",
        "neural-graphs zoo make inr --images digits --size 200 -o zoos/digits",
        None,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    kinds = add_verb(
        inner,
        "make",
        "make a zoo",
        "neural-graphs zoo make inr --images digits --size 200 -o zoos/digits",
        None,
    ).add_subparsers(title="kinds of networks", metavar="KIND", required=True)
    _add_inr(kinds)
    _zoo_cnn.add(kinds)
    _zoo_import.add(inner)
    _add_info(inner)


def _add_inr(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "inr",
        "fit implicit neural representations (INRs) to images, one or more per image",
        "neural-graphs zoo make inr --images digits --size 200 -o zoos/digits",
        _make,
        "Interrupt it whenever you like: the same command goes on, and loses at most one shard.",
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the new zoo")
    parser.add_argument(
        "--images", default="digits", metavar="NAME",
        help="digits (default), mnist, fashion-mnist, cifar10, svhn; cifar10-gs and svhn-gs in grey",
    )  # fmt: skip
    parser.add_argument("--recipe", default="dws", help="dws (default; Navon et al. 2023) or nfn (Zhou et al. 2023)")
    parser.add_argument("--size", type=positive, metavar="N", help="number of images (default: all)")
    parser.add_argument("--views", type=positive, default=1, metavar="N", help="networks per image (default: 1)")
    parser.add_argument("--splits", type=numbers, default=(0.8, 0.1, 0.1), metavar="T,V,T",
                        help="shares or numbers of training, validation and test images (default: 0.8,0.1,0.1)")  # fmt: skip
    shape = parser.add_argument_group("architecture")
    shape.add_argument("--widths", type=integers, metavar="N,N", help="hidden layers (default: the recipe's 32,32)")
    shape.add_argument("--activation", metavar="NAME", help="such as sine:30 (the recipe's) or relu")
    shape.add_argument("--diverse", action="store_true", help="draw depth, widths and non-linearity per network")
    fit = parser.add_argument_group("fitting")
    fit.add_argument("--steps", type=positive, metavar="N", help="optimiser steps (default: the recipe's 1000)")
    fit.add_argument("--lr", type=float, metavar="X", help="learning rate of Adam (default: the recipe's 1e-3)")
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    fit.add_argument("--shard-size", type=positive, default=512, metavar="N", help="networks per file (default: 512)")
    fit.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--data-dir", metavar="DIR", help="look for image files here first (see NEURAL_GRAPHS_DATA)")
    add_threads(parser)


def _make(options: argparse.Namespace) -> int:
    load("neural_graphs.zoo")
    from neural_graphs.zoo import make_zoo

    zoo = make_zoo(
        options.out,
        images=options.images,
        recipe=options.recipe,
        size=options.size,
        views=options.views,
        seed=options.seed,
        shard_size=options.shard_size,
        widths=options.widths,
        activation=options.activation,
        diverse=options.diverse,
        splits=options.splits,
        data_dir=options.data_dir,
        workers=options.threads or default_threads(),
        device=options.device,
        steps=options.steps,
        lr=options.lr,
    )
    print(zoo)
    print(f"next: neural-graphs zoo info {options.out}")
    return 0


def _add_info(inner: Any) -> None:
    parser = add_verb(
        inner,
        "info",
        "describe a zoo and draw a contact sheet of its networks",
        "neural-graphs zoo info runs/quickstart/zoo",
        _info,
        "Weight statistics stand beside the published ones where the recipe and images have some.",
    )
    parser.add_argument("zoo", metavar="DIR", help="folder of a zoo")
    parser.add_argument("--sheet", metavar="FILE", help="where to write the contact sheet (default: DIR/sheet.png)")
    parser.add_argument("--no-sheet", action="store_true", help="draw no contact sheet")
    add_json(parser)


def _info(options: argparse.Namespace) -> int:
    from neural_graphs.zoo import Zoo, contact_sheet, print_zoo_info, zoo_info

    zoo = Zoo.load(options.zoo)
    info = zoo_info(zoo)
    drawn = None
    if not options.no_sheet and all(stack.input_shape == (2,) for stack in zoo.architectures.values()):
        drawn = str(contact_sheet(zoo, options.sheet or Path(options.zoo) / "sheet.png"))
    if options.json:
        print_json({**info, "sheet": drawn})
        return 0
    print_zoo_info(info)
    if drawn:
        print(f"contact sheet: {drawn}")
    return 0
