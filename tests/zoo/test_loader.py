"""The loader: every network once an epoch, the same order whatever the storage, resumable at any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, Stack
from neural_graphs.zoo import Zoo, ZooWriter
from neural_graphs.zoo._loader import Loader

STACKS = {"a0": Stack.mlp((2, 3, 1), "sine:30"), "a1": Stack.mlp((2, 4, 4, 1), "relu")}


def write(path: Path, shard: int, count: int = 50) -> Zoo:
    """Networks that carry their own number in the output's bias, two architectures in turn."""
    numbers = np.arange(count)
    with ZooWriter(path, STACKS, {"name": "test"}) as writer:
        for k, (name, stack) in enumerate(STACKS.items()):
            mine = numbers[numbers % 2 == k]
            for number, first in enumerate(range(0, len(mine), shard)):
                part = mine[first : first + shard]
                values = {n: torch.zeros(len(part), *shape) for n, shape in stack.parameter_shapes().items()}
                values[f"{stack.layers[-1].name}.bias"] += torch.from_numpy(part).float()[:, None]
                columns = {"network": part, "split": np.full(len(part), "train", dtype=object), "label": part % 7}
                writer.append(name, number, values, columns)
        return writer.finish()


def numbers(batch: GraphBatch) -> Tensor:
    return batch.restore([graph.nodes[-1][:, 0, 0] for graph in batch.buckets]).long()


def test_an_epoch_shows_every_network_once_with_its_label(tmp_path: Path) -> None:
    loader = Loader(write(tmp_path / "zoo", 10).train, 8, seed=3)
    epochs = []
    for epoch in (0, 1):
        samples = list(loader.epoch(epoch))
        assert [len(sample.batch) for sample in samples] == [8] * 6 + [2] and len(loader) == 7
        for sample in samples:
            assert torch.equal(numbers(sample.batch), sample.positions)
            assert torch.equal(sample.labels, sample.positions % 7)
        epochs.append(torch.cat([sample.positions for sample in samples]))
        assert epochs[-1].sort().values.tolist() == list(range(50))
    assert not torch.equal(*epochs)
    assert torch.equal(torch.cat([s.positions for s in loader.epoch(1, start=3)]), epochs[1][24:])
    assert not torch.equal(Loader(loader.split, 8, seed=4).order(0), epochs[0])


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0], ids=["cached", "mapped"])
def test_order_and_batches_do_not_depend_on_storage(tmp_path: Path, cache_bytes: int) -> None:
    reference = list(Loader(write(tmp_path / "a", 10).train, 8).epoch(0))
    for sample, expected in zip(
        Loader(write(tmp_path / "b", 7).train, 8, cache_bytes=cache_bytes).epoch(0), reference, strict=True
    ):
        assert torch.equal(sample.positions, expected.positions)
        for graph, other, index, places in zip(
            sample.batch.buckets, expected.batch.buckets, sample.batch.index, expected.batch.index, strict=True
        ):
            assert graph.spec == other.spec and torch.equal(index, places)
            assert all(map(torch.equal, (*graph.nodes, *graph.edges), (*other.nodes, *other.edges)))


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0], ids=["cached", "mapped"])
def test_graphs_cover_the_split(tmp_path: Path, cache_bytes: int) -> None:
    loader = Loader(write(tmp_path / "zoo", 10).train, 8, cache_bytes=cache_bytes)
    seen = torch.cat([graph.nodes[-1].flatten() for graph in loader.graphs(chunk=20)])
    assert seen.sort().values.tolist() == list(range(50))


def test_processes_share_every_batch(tmp_path: Path) -> None:
    loader = Loader(write(tmp_path / "zoo", 10).train, 9)
    whole = list(loader.epoch(2))
    shares = [list(loader.epoch(2, process=k, processes=4)) for k in range(4)]
    for number, sample in enumerate(whole):
        parts = [share[number] for share in shares]
        assert {part.total for part in parts} == {sample.total} == {len(sample.batch)}
        assert sorted(torch.cat([p.positions for p in parts]).tolist()) == sorted(sample.positions.tolist())


def test_a_selection_in_its_own_order(tmp_path: Path) -> None:
    split = write(tmp_path / "zoo", 10).train.select([9, 3, 40, 2])
    (sample,) = Loader(split, 8, shuffle=False).epoch(0)
    assert numbers(sample.batch).tolist() == [9, 3, 40, 2] and sample.labels.tolist() == [2, 3, 5, 2]


def test_refusals(tmp_path: Path) -> None:
    zoo = write(tmp_path / "zoo", 10)
    with pytest.raises(UserError, match="no networks"):
        Loader(zoo.val, 8)
    with pytest.raises(UserError, match="no column 'digit'"):
        Loader(zoo.train, 8, label="digit")
    with pytest.raises(UserError, match="at least 1"):
        Loader(zoo.train, 0)
