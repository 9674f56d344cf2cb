"""Which networks of a zoo a run trains on, validates with and is tested on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture
from neural_graphs.tasks._config import TrainConfig
from neural_graphs.zoo._loader import CACHE_BYTES
from neural_graphs.zoo._store import Zoo, ZooSplit

CHUNK = 4096
"""Networks whose weights are compared at a time."""


def training_networks(config: TrainConfig, zoo: Zoo) -> tuple[ZooSplit, ZooSplit]:
    """The networks of ``zoo`` to train on and to validate with.

    Those that ``config.where`` does not name and those of the architectures ``config.hold_out`` are left out of both; then
    ``config.views`` and ``config.limit_train`` say how many to train on.

    Raises:
        UserError: nothing is left; ``hold_out`` names an architecture that the zoo does not hold; networks of one image or
            of one training run stand in several splits, or the same network does; ``views`` is given and the zoo does not
            say which image a network is of.
    """
    check_splits(zoo)
    splits = [having(split, config.where) for split in (zoo.train, zoo.val, zoo.test)]
    check_distinct(splits)
    train, val = (without(split, config.hold_out) for split in splits[:2])
    for name, split in (("train", train), ("val", val)):
        if not len(split):
            where = (
                f" with {', '.join(f'{key} = {value}' for key, value in config.where.items())}" if config.where else ""
            )
            other = " of other architectures than those in hold_out" if config.hold_out else ""
            raise UserError(f"{config.zoo} has no {name} networks{where}{other}")
    return subset(limit_views(train, config.views), config.limit_train, config.seed), val


def having(split: ZooSplit, where: Mapping[str, Any]) -> ZooSplit:
    """The networks of ``split`` whose columns have these values.

    Raises ``UserError`` when there is no such column, or a value is not of its kind.
    """
    for name, value in where.items():
        column = split.column(name)
        if column.dtype == object:
            found = column.astype(str) == str(value)
        else:
            try:
                found = column == np.asarray(value).astype(column.dtype)  # 0.001 in float32 is not 0.001
            except (ValueError, TypeError):
                raise UserError(f"where: {name} is {value!r}, but the column holds {column.dtype}") from None
        split = split.select(np.flatnonzero(found))
    return split


def check_splits(zoo: Zoo) -> None:
    """Raise ``UserError`` when networks of one image or of one training run stand in different splits, so that a test would
    not be one.

    Zoos that do not say which image or run a network is of pass.
    """
    whole = zoo.all
    if "image" in zoo.table.column_names:
        _hold_apart(whole, images(whole), "image")
    if "run" in zoo.table.column_names:
        _hold_apart(whole, whole.column("run"), "run")


def _hold_apart(whole: ZooSplit, key: np.ndarray, what: str) -> None:
    split = whole.column("split").astype(str)
    key = np.unique(key, return_inverse=True)[1]
    pairs = len(np.unique(np.stack([key, np.unique(split, return_inverse=True)[1]]), axis=1).T)
    if pairs == len(np.unique(key)):
        return
    numbers = whole.column("network")
    first: dict[int, int] = {}
    for row, number in enumerate(key.tolist()):
        other = first.setdefault(number, row)
        if split[other] != split[row]:
            raise UserError(
                f"{whole.zoo.path}: networks {numbers[other]} ({split[other]}) and {numbers[row]} ({split[row]}) are of one"
                f" {what}, so a test would not be on unseen ones: make the zoo again with splits by {what}"
            )


def check_distinct(splits: Sequence[ZooSplit]) -> None:
    """Raise ``UserError`` when two splits hold a network with exactly the same weights.

    Zoos too large to be held in memory are not looked through.
    """
    stacks = {name: stack for split in splits for name, stack in split.architectures.items()}
    counts = [np.unique(split.column("architecture").astype(str), return_counts=True) for split in splits]
    size = sum(4 * stacks[name].num_parameters * int(n) for found in counts for name, n in zip(*found, strict=True))
    if size > CACHE_BYTES:
        return
    seen: dict[tuple[str, int], tuple[ZooSplit, int]] = {}
    for split in splits:
        for first in range(0, len(split), CHUNK):
            for name, places, values in split.state_dicts(slice(first, first + CHUNK)):
                for place, key in zip((places + first).tolist(), fingerprints(values).tolist(), strict=True):
                    other, there = seen.setdefault((name, key), (split, place))
                    if other is not split and _equal(other, there, split, place):
                        a, b = other.column("network")[there], split.column("network")[place]
                        raise UserError(
                            f"{split.zoo.path}: networks {a} ({other.name}) and {b} ({split.name}) have the same weights, so"
                            " a test would not be on unseen ones: make the zoo again without duplicates"
                        )


def fingerprints(values: Mapping[str, Tensor]) -> Tensor:
    """A number (int64) per network of stacked float32 tensors, equal for equal weights and hardly ever else."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(next(iter(values.values()))), dtype=torch.int64)
    for value in values.values():
        bits = value.flatten(1).contiguous().view(torch.int32).to(torch.int64)
        total += (bits * torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator)).sum(1)  # modulo 2**64
    return total


def _equal(first: ZooSplit, i: int, second: ZooSplit, j: int) -> bool:
    (_, _, a), (_, _, b) = first.state_dicts([i])[0], second.state_dicts([j])[0]
    return all(torch.equal(a[name], b[name]) for name in a)


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


def by_architecture(
    split: ZooSplit, figures: Callable[[np.ndarray], dict[str, Any]], trained_on: Collection[Architecture]
) -> dict[str, dict[str, Any]]:
    """For every architecture of ``split`` the ``figures`` of its networks (bool ``[len(split)]``), their number ``n``, and
    whether it is one of ``trained_on`` (``seen``)."""
    names, seen = architecture_names(split), set(map(str, trained_on))
    return {
        name: {**figures(names == name), "n": int((names == name).sum()), "seen": name in seen}
        for name in dict.fromkeys(map(str, split.architectures.values()))
    }
