"""Training batches as the configuration changes them: a function of (seed, step), and losses of mixed labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.graph import GraphBatch
from neural_graphs.tasks import AugmentConfig, train
from neural_graphs.tasks._changes import Changed, Changes
from neural_graphs.zoo import Zoo

POINTS = torch.rand(30, 2, generator=torch.Generator().manual_seed(5)) * 2 - 1


def flat(batch: GraphBatch) -> Tensor:
    return torch.cat([t.flatten() for graph in batch.buckets for t in (*graph.edges, *graph.nodes)])


def outputs(batch: GraphBatch) -> Tensor:
    return batch.restore([graph.run(POINTS) for graph in batch.buckets])


def test_nothing_asked_for_changes_nothing(mixed_zoo: Zoo) -> None:
    batch = mixed_zoo.train.batch(slice(0, 20))
    changed = Changes(AugmentConfig(), 0)(batch, 3)
    assert changed == Changed(batch)
    labels = torch.arange(20) % 3
    logits = torch.randn(20, 3)
    torch.testing.assert_close(
        changed.losses(logits, labels).sum(), torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    )
    assert torch.equal(changed.main_labels(labels), labels)


@pytest.mark.parametrize("change", ["rotation", "symmetry", "mixup"])
def test_changes_follow_from_seed_step_and_process(mixed_zoo: Zoo, change: str) -> None:
    config = AugmentConfig(**{change: {"rotation": 20.0, "symmetry": True, "mixup": 0.4}[change]})
    batch = mixed_zoo.train.batch(slice(0, 20))
    changes = Changes(config, 0)
    once = flat(changes(batch, 3).batch)
    others = [changes(batch, 4), changes(batch, 3, 1), Changes(config, 1)(batch, 3)]
    assert all(not torch.equal(flat(other.batch), once) for other in others)
    assert torch.equal(flat(changes(batch, 3).batch), once)


def test_symmetry_changes_no_function(mixed_zoo: Zoo) -> None:
    batch = mixed_zoo.train.batch(slice(0, 20))
    changed = Changes(AugmentConfig(symmetry=True), 0)(batch, 7).batch
    assert not torch.equal(flat(changed), flat(batch))
    torch.testing.assert_close(outputs(changed), outputs(batch), atol=2e-4, rtol=1e-4)
    # Of an augmented or mixed batch, it changes the weights and not what they compute either.
    both = {"rotation": 20.0, "noise": 0.1, "mixup": 0.4}
    plain = Changes(AugmentConfig(**both), 0)(batch, 7)
    moved = Changes(AugmentConfig(**both, symmetry=True), 0)(batch, 7)
    assert torch.equal(plain.partner, moved.partner) and torch.equal(plain.share, moved.share)
    torch.testing.assert_close(outputs(moved.batch), outputs(plain.batch), atol=2e-4, rtol=1e-4)


def test_losses_of_mixed_labels_are_cross_entropies_with_soft_ones(mixed_zoo: Zoo) -> None:
    batch = mixed_zoo.train.batch(slice(0, 20))
    changed = Changes(AugmentConfig(mixup=0.6), 0)(batch, 1)
    assert changed.partner is not None and changed.share is not None
    labels = (torch.arange(20) * 7) % 3
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    soft = torch.zeros(20, 3)
    for b in range(20):
        soft[b, labels[b]] += float(changed.share[b])
        soft[b, labels[changed.partner[b]]] += 1 - float(changed.share[b])
    expected = torch.nn.functional.cross_entropy(logits, soft, reduction="none")
    torch.testing.assert_close(changed.losses(logits, labels), expected)
    assert torch.equal(changed.main_labels(labels), soft.argmax(1))
    own = changed._replace(share=torch.ones(20))
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(own.losses(logits, labels), plain) and torch.equal(own.main_labels(labels), labels)


def test_learns_with_all_of_them(mixed_zoo: Zoo, tmp_path: Path, config: Any) -> None:
    augment = AugmentConfig(symmetry=True, mixup=0.2, noise=0.02)
    result = train(config(mixed_zoo, tmp_path / "run", epochs=12, augment=augment, ema=0.9), quiet=True)
    assert result.test_accuracy is not None and result.test_accuracy >= 0.6  # chance is a third
