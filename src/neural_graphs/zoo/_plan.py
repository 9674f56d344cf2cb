"""Which image becomes which network of a zoo: splits by image, class-balanced, in an order whose every prefix is a zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neural_graphs.errors import UserError
from neural_graphs.zoo.images import ImageSet, load_images

LARGEST_DEFAULT_VAL = 5000  # the published splits of MNIST, Fashion-MNIST and CIFAR-10 hold out this many


@dataclass(frozen=True)
class Plan:
    """One entry per network, in network order.

    ``sources`` are the image sets; ``source[i]`` says which of them network i's image ``image[i]`` belongs to.
    """

    sources: tuple[ImageSet, ...]
    source: np.ndarray
    image: np.ndarray
    label: np.ndarray
    split: np.ndarray
    view: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def pixels(self, networks: np.ndarray) -> np.ndarray:
        """Images of these networks, float32 ``[n, H, W, C]`` in [0, 1]."""
        first = self.sources[0]
        out = np.empty((len(networks), *first.image_shape), np.float32)
        for number, images in enumerate(self.sources):
            mine = np.flatnonzero(self.source[networks] == number)
            if len(mine):
                picked = images.images[self.image[networks[mine]]]
                out[mine] = picked.reshape(len(mine), *first.image_shape).astype(np.float32) / images.max_value
        return out

    def columns(self, networks: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the table of networks."""
        names = np.array([images.split for images in self.sources], dtype=object)
        return {
            "network": networks,
            "split": self.split[networks],
            "label": self.label[networks],
            "image": self.image[networks],
            "source_split": names[self.source[networks]],
            "view": self.view[networks],
        }


def make_plan(
    images: str | ImageSet,
    size: int | None,
    splits: Sequence[float],
    views: int,
    seed: int,
    data_dir: str | None = None,
) -> Plan:
    """Choose images, split them and order them.

    Test images come from the source's own test set and the others from its training set; an ``ImageSet`` given directly
    has all three held out from it. ``splits`` are three shares (of ``size`` images, all by default) or three whole
    numbers of images. Within each split, classes are as balanced as the images allow. All views of an image stand in its
    split; networks go through all images before the second view begins.
    """
    if views < 1:
        raise UserError(f"views {views}: give at least 1")
    if isinstance(images, str):
        sources: tuple[ImageSet, ...] = (load_images(images, "train", data_dir), load_images(images, "test", data_dir))
    else:
        sources = (images,)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    own_test = len(sources) == 2
    pool = np.arange(len(sources[0]))
    counts = _counts(len(pool), len(sources[1]) if own_test else None, size, splits)
    labels = [source.labels for source in sources]
    if own_test:
        test = _balanced(labels[1], np.arange(len(labels[1])), counts[2], rng)
    else:
        test = _balanced(labels[0], pool, counts[2], rng)
        pool = np.setdiff1d(pool, test)
    val = _balanced(labels[0], pool, counts[1], rng)
    train = _balanced(labels[0], np.setdiff1d(pool, val), counts[0], rng)

    source = np.repeat([0, 0, int(own_test)], counts)
    image = np.concatenate([train, val, test])
    split = np.repeat(np.array(["train", "val", "test"], dtype=object), counts)
    label = np.concatenate([labels[0][train], labels[0][val], labels[int(own_test)][test]])
    order = _spread(np.repeat([0, 1, 2], counts) * (label.max(initial=0) + 1) + label, rng)
    tile = {"source": source, "image": image, "label": label, "split": split}
    tiled = {name: np.tile(value[order], views) for name, value in tile.items()}
    return Plan(sources, view=np.repeat(np.arange(views), len(order)), **tiled)


def _counts(pool: int, own_test: int | None, size: int | None, splits: Sequence[float]) -> tuple[int, int, int]:
    """Images of each split: (train, val, test)."""
    if len(splits) != 3 or min(splits) < 0:
        raise UserError(f"splits {tuple(splits)}: give three shares such as 0.8,0.1,0.1 or three numbers of images")
    total = pool + (own_test or 0)
    if all(float(part).is_integer() for part in splits) and sum(splits) > 1:
        train, val, test = (int(part) for part in splits)
        if size is not None and size != train + val + test:
            raise UserError(f"splits {train},{val},{test} make {train + val + test} images, not the size {size}")
        if own_test is not None and (test > own_test or train + val > pool):
            raise UserError(f"splits {train},{val},{test}: the source has {pool} training and {own_test} test images")
        if train + val + test > total:
            raise UserError(f"splits {train},{val},{test}: the source has only {total} images")
        return train, val, test
    if abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"splits {tuple(splits)}: the three shares must add up to 1")
    if size is not None and not 0 < size <= total:
        raise UserError(f"size {size}: give 1 to {total}, the number of images there are")
    if size is None and own_test is not None:
        val = min(LARGEST_DEFAULT_VAL, round(pool * splits[1]))
        return pool - val, val, own_test
    size = size or total
    test = round(size * splits[2])
    if own_test is not None:
        test = max(min(test, own_test), size - pool)
    val = min(round(size * splits[1]), size - test)
    return size - val - test, val, test


def _balanced(labels: np.ndarray, pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` members of ``pool``, as many of each class as possible where there are enough."""
    classes = np.unique(labels[pool])
    members = [rng.permutation(pool[labels[pool] == kind]) for kind in classes]
    if count >= len(pool):
        return np.concatenate(members) if members else pool
    # The largest common quota that does not exceed count; what is missing comes one by one from classes chosen at random.
    quota = np.zeros(len(members), int)
    sizes = np.array([len(member) for member in members])
    while (left := count - quota.sum()) > 0:
        open_classes = np.flatnonzero(quota < sizes)
        if left < len(open_classes):
            quota[rng.permutation(open_classes)[:left]] += 1
        else:
            step = min(left // len(open_classes), int((sizes - quota)[open_classes].min()))
            quota[open_classes] += step
    return np.concatenate([member[:take] for member, take in zip(members, quota, strict=True)])


def _spread(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order in which every stretch holds each group in its share."""
    keys = np.empty(len(group))
    for kind in np.unique(group):
        members = np.flatnonzero(group == kind)
        keys[members] = (rng.permutation(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(keys, kind="stable")
