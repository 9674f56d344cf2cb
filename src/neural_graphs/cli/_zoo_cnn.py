"""`neural-graphs zoo make cnn`: image classifiers, many trained at once."""

from __future__ import annotations

import argparse
from typing import Any

from neural_graphs._threads import default_threads
from neural_graphs.cli._parser import add_threads, add_verb, integers, load, numbers, positive


def add(kinds: Any) -> None:
    parser = add_verb(
        kinds,
        "cnn",
        "train image classifiers, many at once, each with hyper-parameters of its own",
        "neural-graphs zoo make cnn --recipe wild-park --images digits --size 40 -o zoos/digits-park",
        run,
        "Keeps every network after several epochs, with its losses and accuracies on training and test images.\n"
        "Interrupt it whenever you like: the same command goes on, and loses at most the networks in training.",
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the new zoo")
    parser.add_argument(
        "--recipe", default="small-cnn-zoo",
        help="small-cnn-zoo (default; Unterthiner et al. 2020), wild-park (mixed architectures, Kofinas et al. 2024) or "
        "transformer",
    )  # fmt: skip
    parser.add_argument(
        "--images", metavar="NAME",
        help="cifar10-gs, svhn-gs, mnist, fashion-mnist, cifar10, svhn or digits (default: the recipe's)",
    )  # fmt: skip
    parser.add_argument("--size", type=positive, default=1000, metavar="N", help="number of networks (default: 1000)")
    parser.add_argument("--splits", type=numbers, default=(0.7, 0.1, 0.2), metavar="T,V,T",
                        help="shares of the networks: training, validation, test (default: 0.7,0.1,0.2)")  # fmt: skip
    fit = parser.add_argument_group("training")
    fit.add_argument("--epochs", type=positive, metavar="N", help="(default: the recipe's)")
    fit.add_argument("--checkpoints", type=integers, metavar="N,N", help="epochs after which networks are kept")
    fit.add_argument("--batch-size", type=positive, metavar="N", help="images per step (default: the recipe's 32)")
    fit.add_argument("--side", type=int, metavar="N", help="average images down to N x N; 0: as they are")
    fit.add_argument(
        "--train-images", type=positive, metavar="N", help="use the first N training images (default: all)"
    )
    fit.add_argument("--test-images", type=positive, metavar="N", help="measure accuracy on N images (default: all)")
    fit.add_argument("--chunk", type=positive, metavar="N", help="networks trained at once (default: the recipe's)")
    fit.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)")
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    fit.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--data-dir", metavar="DIR", help="look for image files here first (see NEURAL_GRAPHS_DATA)")
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    load("neural_graphs.zoo")
    from neural_graphs.zoo import make_cnn_zoo

    zoo = make_cnn_zoo(
        options.out,
        recipe=options.recipe,
        images=options.images,
        size=options.size,
        epochs=options.epochs,
        checkpoints=options.checkpoints,
        batch_size=options.batch_size,
        side=options.side,
        train_images=options.train_images,
        test_images=options.test_images,
        seed=options.seed,
        splits=options.splits,
        chunk=options.chunk,
        precision=options.precision,
        data_dir=options.data_dir,
        workers=options.threads or default_threads(),
        device=options.device,
    )
    print(zoo)
    if about := zoo.meta.get("training"):
        print(f"{about['network_epochs_per_second']} network-epochs/s of {zoo.meta['recipe']['train_images']:,} images")
    print(f"next: neural-graphs zoo info {options.out}")
    return 0
