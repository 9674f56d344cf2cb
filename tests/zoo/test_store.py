"""Zoos on disk: reading back exactly what was written, and one clear line for everything that can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import Zoo, ZooWriter

SMALL = Stack.mlp((2, 4, 1), "sine:30", shift=0.5)
DEEP = Stack.mlp((2, 3, 5, 1), "relu")
META = {"name": "test", "request": {"seed": 0}}


def random_networks(stack: Stack, count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in stack.parameter_shapes().items()}


def columns(networks: list[int]) -> dict[str, np.ndarray]:
    numbers = np.array(networks)
    return {
        "network": numbers,
        "split": np.array([("train", "val", "train", "test")[i % 4] for i in networks], dtype=object),
        "label": numbers % 3,
        "accuracy": numbers / 10,
    }


def write(path: Path) -> tuple[Zoo, dict[int, dict[str, Tensor]]]:
    """A zoo of 12 networks of two architectures in three shards, and every network's state dict."""
    placed = {("a0", 0): [0, 2, 4, 6], ("a1", 0): [1, 3, 5], ("a0", 1): [7, 8, 9, 10, 11]}
    expected: dict[int, dict[str, Tensor]] = {}
    with ZooWriter(path, {"a0": SMALL, "a1": DEEP}, META) as writer:
        for seed, ((architecture, number), networks) in enumerate(placed.items()):
            tensors = random_networks(writer.architectures[architecture], len(networks), seed)
            writer.append(architecture, number, tensors, columns(networks))
            for row, network in enumerate(networks):
                expected[network] = {name: value[row] for name, value in tensors.items()}
        return writer.finish(), expected


def test_round_trip(tmp_path: Path) -> None:
    zoo, expected = write(tmp_path / "zoo")
    zoo = Zoo.load(tmp_path / "zoo")
    assert len(zoo) == 12 and zoo.complete
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [6, 3, 3]
    assert zoo.architectures == {"a0": SMALL, "a1": DEEP}
    assert zoo.all.column("network").tolist() == list(range(12))
    for network, state in expected.items():
        ((_, places, values),) = zoo.all.state_dicts([network])
        assert places.tolist() == [0]
        assert all(torch.equal(values[name][0], value) for name, value in state.items())


@pytest.mark.parametrize("indices", [[11, 1, 0, 7, 3, 2], [5, 5, 0, 5], [], [8]], ids=str)
def test_batches_in_any_order_with_repeats(tmp_path: Path, indices: list[int]) -> None:
    zoo, expected = write(tmp_path / "zoo")
    for given in (indices, np.array(indices), torch.tensor(indices, dtype=torch.int64)):
        seen = []
        for architecture, places, values in zoo.all.state_dicts(given):
            for position, place in enumerate(places.tolist()):
                state = expected[indices[place]]
                assert list(values) == list(zoo.architectures[architecture].parameter_shapes()) == list(state)
                assert all(torch.equal(values[name][position], value) for name, value in state.items())
                seen.append(place)
        assert sorted(seen) == list(range(len(indices)))


def test_batch_is_a_graph_batch_that_restores_the_order(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    batch = zoo.all.batch([5, 0, 3, 8])
    assert len(batch) == 4 and {graph.stack for graph in batch.buckets} == {SMALL, DEEP}
    first_bias = [graph.to_state_dict(batched=True)["seq.0.bias"][:, 0] for graph in batch.buckets]
    alone = [zoo.all.batch([i]).buckets[0].to_state_dict()["seq.0.bias"][0] for i in (5, 0, 3, 8)]
    assert torch.equal(batch.restore(first_bias), torch.stack(alone))
    assert len(zoo.all.batch([])) == 0


def test_select_keeps_labels_and_weights_together(tmp_path: Path) -> None:
    zoo, expected = write(tmp_path / "zoo")
    chosen = zoo.train.select([4, 0, 2]).select(slice(1, None))
    assert chosen.column("network").tolist() == [0, 4]
    assert chosen.labels().tolist() == [0, 1]
    assert chosen.sole_architecture == SMALL
    assert torch.equal(chosen.state_dicts()[0][2]["seq.0.weight"][1], expected[4]["seq.0.weight"])


def test_weights_are_mapped_not_read(tmp_path: Path) -> None:
    """Opening a zoo, and reading its table, must not touch the weights."""
    zoo, _ = write(tmp_path / "zoo")
    zoo = Zoo.load(tmp_path / "zoo")
    assert zoo.all.labels().tolist() and not zoo._shards
    zoo.all.state_dicts([1])
    assert list(zoo._shards) == ["a1-00000.safetensors"]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no zoo: it has no zoo\.json"):
        Zoo.load(tmp_path)
    (tmp_path / "zoo.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        Zoo.load(tmp_path)
    (tmp_path / "zoo.json").write_text("[]")
    with pytest.raises(UserError, match="not the description of a zoo"):
        Zoo.load(tmp_path)
    (tmp_path / "zoo.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="does not describe its architectures"):
        Zoo.load(tmp_path)
    (tmp_path / "zoo.json").write_text(json.dumps({"format": 1, "architectures": {}}))
    with pytest.raises(UserError, match=r"no networks\.parquet"):
        Zoo.load(tmp_path)


def test_zoo_of_a_newer_version(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    (zoo.path / "zoo.json").write_text(json.dumps(zoo.meta | {"format": 2}))
    with pytest.raises(UserError, match=r"newer version.*format 2.*upgrade") as caught:
        Zoo.load(zoo.path)
    assert "\n" not in str(caught.value)


def test_missing_shard(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    (zoo.path / "weights" / "a1-00000.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks the shard weights/a1-00000\.safetensors"):
        Zoo.load(zoo.path)
    with pytest.raises(UserError, match="is missing"):  # vanished after the zoo was opened
        zoo.all.state_dicts([1])


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard(tmp_path: Path, keep: int) -> None:
    zoo, _ = write(tmp_path / "zoo")
    shard = zoo.path / "weights" / "a1-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a1-00000\.safetensors is broken or truncated") as caught:
        Zoo.load(zoo.path).all.batch([1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_truncated_table(tmp_path: Path, keep: int) -> None:
    zoo, _ = write(tmp_path / "zoo")
    table = zoo.path / "networks.parquet"
    table.write_bytes(table.read_bytes()[:keep])
    with pytest.raises(UserError, match="may be truncated") as caught:
        Zoo.load(zoo.path)
    assert "\n" not in str(caught.value)


def test_shard_with_other_tensors(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    shard = zoo.path / "weights" / "a1-00000.safetensors"
    tensors = load_file(shard)
    save_file(tensors | {"seq.1.bias": torch.zeros(3, 6)}, shard)
    with pytest.raises(UserError, match=r"no tensor seq\.1\.bias of shape \[n, 5\]"):
        Zoo.load(zoo.path).all.batch([1])
    save_file({name: value.double() for name, value in tensors.items()}, shard)
    with pytest.raises(UserError, match="expected float32"):
        Zoo.load(zoo.path).all.batch([1])
    save_file({name: value[:2] for name, value in tensors.items()}, shard)
    with pytest.raises(UserError, match="behind the end"):
        Zoo.load(zoo.path).all.batch([5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_network(tmp_path: Path, value: float) -> None:
    zoo, _ = write(tmp_path / "zoo")
    shard = zoo.path / "weights" / "a1-00000.safetensors"
    tensors = load_file(shard)
    tensors["seq.1.bias"][2, 0] = value
    save_file(tensors, shard)
    zoo = Zoo.load(zoo.path)
    zoo.all.batch([0, 1, 3])  # the others are fine
    with pytest.raises(UserError, match=r"network 5 has NaN.*seq\.1\.bias.*row 2 of .*a1-00000\.safetensors"):
        zoo.all.batch([0, 5, 1])


def test_wrong_columns(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    with pytest.raises(UserError, match=r"no column 'digit'.*network.*label.*accuracy"):
        zoo.train.labels("digit")
    with pytest.raises(UserError, match="no class numbers"):
        zoo.train.labels("accuracy")
    with pytest.raises(UserError, match="unknown split"):
        zoo.split("training")
    with pytest.raises(UserError, match="one architecture.*holds 2"):
        zoo.all.sole_architecture  # noqa: B018
    pq.write_table(zoo.table.drop_columns(["row"]), zoo.path / "networks.parquet")
    with pytest.raises(UserError, match="lacks the columns row"):
        Zoo.load(zoo.path)


def test_writer_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    other = META | {"request": {"seed": 1}}
    with pytest.raises(UserError, match="seed is 0 there and 1 here"), ZooWriter(zoo.path, {"a0": SMALL}, other):
        pass
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and holds no zoo"), ZooWriter(tmp_path / "thesis", {}, META):
        pass
    with pytest.raises(UserError, match="is a file"), ZooWriter(tmp_path / "thesis" / "chapter1.tex", {}, META):
        pass
    assert sorted(os.listdir(tmp_path / "thesis")) == ["chapter1.tex"]


def test_two_writers_at_once(tmp_path: Path) -> None:
    first, second = (ZooWriter(tmp_path / "zoo", {"a0": SMALL}, META) for _ in range(2))
    with first, pytest.raises(UserError, match="another process"):
        second.__enter__()
    with ZooWriter(tmp_path / "zoo", {"a0": SMALL}, META):  # free again
        pass


def test_resume_drops_damaged_shards_and_leftovers(tmp_path: Path) -> None:
    zoo, _ = write(tmp_path / "zoo")
    shard = zoo.path / "weights" / "a0-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    (zoo.path / "weights" / ".a0-00002.abc.tmp.safetensors").write_bytes(b"half")
    with ZooWriter(zoo.path, {"a0": SMALL, "a1": DEEP}, META) as writer:
        assert writer.done == {"a0-00000.safetensors", "a1-00000.safetensors"} and len(writer) == 7
        assert not list(zoo.path.glob("weights/.*"))
        writer.append("a0", 1, random_networks(SMALL, 5, 9), columns([7, 8, 9, 10, 11]))
        again = writer.finish()
    assert again.table.equals(zoo.table) and len(again.all.batch()) == 12


def test_reading_while_it_is_being_made(tmp_path: Path) -> None:
    with ZooWriter(tmp_path / "zoo", {"a0": SMALL}, META) as writer:
        for number in range(3):
            tensors = random_networks(SMALL, 2, number)
            writer.append("a0", number, tensors, columns([2 * number, 2 * number + 1]))
            zoo = Zoo.load(tmp_path / "zoo")
            assert len(zoo) == 2 * number + 2 and not zoo.complete
            assert torch.equal(zoo.all.state_dicts([2 * number])[0][2]["seq.0.bias"][0], tensors["seq.0.bias"][0])
        assert writer.finish().table.equals(zoo.table)
    assert sorted(file.suffix for file in tmp_path.glob("zoo/**/*.*")) == [".json", ".parquet", *[".safetensors"] * 3]


def test_tables_of_shards_with_other_columns(tmp_path: Path) -> None:
    with ZooWriter(tmp_path / "zoo", {"a0": SMALL}, META) as writer:
        writer.append("a0", 0, random_networks(SMALL, 1, 0), columns([0]))
        writer.append("a0", 1, random_networks(SMALL, 1, 1), columns([1]) | {"label": np.array(["cat"], dtype=object)})
        with pytest.raises(UserError, match="different columns"):
            writer.finish()


def test_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with ZooWriter(tmp_path / "zoo", {"a0": SMALL}, META) as writer:
        writer.append("a0", 0, random_networks(SMALL, 2, 0), columns([0, 1]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(RunError, match=r"a0-00001\.safetensors: No space left on device"):
                writer.append("a0", 1, random_networks(SMALL, 2, 1), columns([2, 3]))
    zoo = Zoo.load(tmp_path / "zoo")
    assert len(zoo) == 2 and not zoo.complete
    assert len(zoo.all.batch()) == 2
    assert not list(zoo.path.glob("**/.*tmp*"))
