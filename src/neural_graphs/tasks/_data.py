"""Which networks of a zoo a run trains on, validates with and is tested on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.zoo._store import Zoo, ZooSplit


def training_networks(config: TrainConfig, zoo: Zoo) -> tuple[ZooSplit, ZooSplit]:
    """The networks of ``zoo`` to train on and to validate with.

    Those of the architectures ``config.hold_out`` are left out of both; then ``config.views`` and ``config.limit_train``
    say how many to train on.

    Raises:
        UserError: nothing is left; ``hold_out`` names an architecture that the zoo does not hold; networks of one image
            stand in several splits; ``views`` is given and the zoo does not say which image a network is of.
    """
    check_splits(zoo)
    train, val = (without(split, config.hold_out) for split in (zoo.train, zoo.val))
    for name, split in (("train", train), ("val", val)):
        if not len(split):
            other = " of other architectures than those in hold_out" if config.hold_out else ""
            raise UserError(f"{config.zoo} has no {name} networks{other}")
    return subset(limit_views(train, config.views), config.limit_train, config.seed), val


def check_splits(zoo: Zoo) -> None:
    """Raise ``UserError`` when networks of one image stand in different splits, so that a test would not be one.

    Zoos that do not say which image a network is of pass.
    """
    if "image" not in zoo.table.column_names:
        return
    whole = zoo.all
    image, split = images(whole), whole.column("split").astype(str)
    pairs = len(np.unique(np.stack([image, np.unique(split, return_inverse=True)[1]]), axis=1).T)
    if pairs == len(np.unique(image)):
        return
    numbers = whole.column("network")
    first: dict[int, int] = {}
    for row, number in enumerate(image.tolist()):
        other = first.setdefault(number, row)
        if split[other] != split[row]:
            raise UserError(
                f"{zoo.path}: networks {numbers[other]} ({split[other]}) and {numbers[row]} ({split[row]}) are of one image,"
                " so a test would not be on unseen ones: make the zoo again with splits by image"
            )


def limit_views(split: ZooSplit, views: int) -> ZooSplit:
    """The first ``views`` networks of every image of ``split``; 0: all. A larger number contains a smaller one."""
    if not views:
        return split
    if "image" not in split.zoo.table.column_names:
        raise UserError(f"views: {split.zoo.path} does not say which image a network is of, it has no column image")
    image = images(split)
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(image[order]) != 0]) if len(image) else np.empty(0, np.int64)
    rank = np.empty(len(image), np.int64)
    rank[order] = np.arange(len(image)) - np.repeat(starts, np.diff(np.r_[starts, len(image)]))
    return split.select(np.flatnonzero(rank < views))


def images(split: ZooSplit) -> np.ndarray:
    """A number per network of ``split``, the same for networks of the same image of the same image source."""
    image = split.column("image").astype(np.int64)
    if "source_split" not in split.zoo.table.column_names:
        return image
    return (
        image + (image.max(initial=0) + 1) * np.unique(split.column("source_split").astype(str), return_inverse=True)[1]
    )


def without(split: ZooSplit, names: Sequence[str]) -> ZooSplit:
    """``split`` without the networks of the architectures ``names``, written as ``str(stack)`` prints them.

    Raises ``UserError``, listing the architectures, when the zoo holds none of such a name.
    """
    if not names:
        return split
    known = list(dict.fromkeys(map(str, split.zoo.architectures.values())))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"hold_out: this zoo holds no architecture {unknown[0]!r}, it holds {'; '.join(known)}")
    return split.select(np.flatnonzero(~np.isin(architecture_names(split), list(names))))


def subset(split: ZooSplit, limit: int | None, seed: int) -> ZooSplit:
    """``limit`` networks of ``split``, chosen by ``seed``, in the split's order; a larger limit contains a smaller one."""
    if limit is None or limit >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(seed).permutation(len(split))[:limit]))


def architecture_names(split: ZooSplit) -> np.ndarray:
    """What ``str(stack)`` prints for every network of ``split``."""
    ids, inverse = np.unique(split.column("architecture").astype(str), return_inverse=True)
    return np.array([str(split.zoo.architectures[name]) for name in ids], dtype=object)[inverse]


def by_architecture(split: ZooSplit, right: Tensor, trained_on: Collection[Stack]) -> dict[str, dict[str, Any]]:
    """For every architecture of ``split`` the accuracy, the number of networks ``n``, and whether it is one of
    ``trained_on`` (``seen``); ``right`` is bool ``[len(split)]``."""
    names, hits, seen = architecture_names(split), right.numpy(), set(map(str, trained_on))
    return {
        name: {"accuracy": float(hits[names == name].mean()), "n": int((names == name).sum()), "seen": name in seen}
        for name in dict.fromkeys(map(str, split.architectures.values()))
    }
