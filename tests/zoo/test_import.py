"""Importing foreign zoos: exact, and without running or believing what is in the files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import Zoo, ZooWriter, import_zoo

STACK = Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)


def random_state(seed: int, count: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if count is None else (count,)
    return {name: torch.randn(*lead, *shape, generator=generator) for name, shape in STACK.parameter_shapes().items()}


def weights(zoo: Zoo) -> dict[str, Tensor]:
    ((_, _, values),) = zoo.all.state_dicts()
    return values


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


# -- stacked tensors ----------------------------------------------------------------------------------------------


def write_stacked(folder: Path, count: int = 10, **changes: Any) -> dict[str, Tensor]:
    folder.mkdir()
    state = random_state(0, count)
    save_file(state, folder / "weights.safetensors")
    table = {
        "row": list(range(count)),
        "label": [i % 3 for i in range(count)],
        "split": ["train", "train", "val", "test", "test"] * (count // 5),
        "image_source": ["train", "train", "train", "test", "test"] * (count // 5),
        "image_index": [100 + i for i in range(count)],
        "psnr_db": [20.0 + i for i in range(count)],
    } | changes
    pq.write_table(
        pa.table({name: value for name, value in table.items() if value is not None}), folder / "networks.parquet"
    )
    return state


def test_stacked(tmp_path: Path) -> None:
    state = write_stacked(tmp_path / "mnist-inr")
    zoo = import_zoo(tmp_path / "mnist-inr", tmp_path / "zoo")
    assert zoo.all.sole_architecture == STACK
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [4, 2, 4]
    assert all(torch.equal(weights(zoo)[name], value) for name, value in state.items())
    assert zoo.all.labels().tolist() == [i % 3 for i in range(10)]
    assert zoo.all.column("image").tolist() == list(range(100, 110))
    assert set(zoo.test.column("source_split")) == {"test"}
    assert zoo.meta["source"]["images"] == "mnist" and zoo.meta["skipped"] == 0


def test_stacked_in_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_graphs.zoo._imports._write.SHARD", 4)
    order = [3, 1, 0, 2, *range(4, 10)]  # the table lists its rows in any order
    state = write_stacked(tmp_path / "nets", row=order)
    zoo = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert len(list((tmp_path / "zoo" / "weights").iterdir())) == 3
    assert all(torch.equal(weights(zoo)[name], value) for name, value in state.items())
    assert zoo.all.column("psnr_db")[:4].tolist() == [22, 21, 23, 20]
    assert zoo.meta["source"].get("images") is None


def test_other_activation_and_images(tmp_path: Path) -> None:
    write_stacked(tmp_path / "nets")
    zoo = import_zoo(tmp_path / "nets", tmp_path / "zoo", activation="relu", shift=0.0, images="cifar10-gs")
    assert zoo.all.sole_architecture == Stack.mlp((2, 32, 32, 1), "relu")
    assert zoo.meta["source"]["height"] == 32


def test_stacked_with_nan_skips_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_stacked(tmp_path / "nets")
    state["seq.1.bias"][3, 7] = float("nan")
    save_file(state, tmp_path / "nets" / "weights.safetensors")
    zoo = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert len(zoo) == 9 and zoo.meta["skipped"] == 1
    assert zoo.all.column("network").tolist() == list(range(9))
    assert torch.equal(weights(zoo)["seq.0.bias"], state["seq.0.bias"][[0, 1, 2, *range(4, 10)]])
    assert zoo.all.column("image").tolist() == [100, 101, 102, *range(104, 110)]
    assert capsys.readouterr().err.count("skipped: row 3 of") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": None}, "needs a column split"),
        ({"split": ["training"] * 10}, "train, val or test"),
        ({"row": [0] * 10}, "does not number"),
    ],
    ids=["no split", "other words", "rows"],
)
def test_stacked_with_a_wrong_table(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_stacked(tmp_path / "nets", **changes)
    with pytest.raises(UserError, match=said):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_stacked_truncated(tmp_path: Path) -> None:
    write_stacked(tmp_path / "nets")
    file = tmp_path / "nets" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="broken or truncated"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")
    save_file(random_state(0, 9), file)
    with pytest.raises(UserError, match="10 rows, but .* holds 9 networks"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")
    (tmp_path / "nets" / "networks.parquet").unlink()
    with pytest.raises(UserError, match=r"has no networks\.parquet"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")


def test_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no zoo to import"):
        import_zoo(tmp_path, tmp_path / "zoo")
    with pytest.raises(UserError, match="is no folder"):
        import_zoo(tmp_path / "missing", tmp_path / "zoo")
    with pytest.raises(UserError, match="unknown kind"):
        import_zoo(tmp_path, tmp_path / "zoo", kind="zip")


# -- one checkpoint per network -----------------------------------------------------------------------------------


def write_mnist(folder: Path, count: int = 24) -> dict[tuple[str, int], dict[str, Tensor]]:
    """The layout of the published MNIST INRs; returns the state dicts by (split, image)."""
    written = {}
    for number in range(count):
        split = "testing" if number % 4 == 3 else "training"
        state = random_state(number)
        place = folder / "mnist-inrs" / f"mnist_png_{split}_{number % 10}_{number}" / "checkpoints"
        place.mkdir(parents=True)
        torch.save(state, place / "model_final.pth")
        written["test" if split == "testing" else "train", number] = state
    return written


def test_published_mnist_layout(tmp_path: Path) -> None:
    written = write_mnist(tmp_path / "data")
    zoo = import_zoo(tmp_path / "data", tmp_path / "zoo")
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [17, 1, 6]
    assert zoo.all.sole_architecture == STACK and zoo.meta["source"]["images"] == "mnist"
    assert (zoo.all.labels() == torch.from_numpy(zoo.all.column("image")) % 10).all()
    for position, key in enumerate(zip(zoo.all.column("source_split"), zoo.all.column("image"), strict=True)):
        assert all(torch.equal(weights(zoo)[name][position], value) for name, value in written[key].items())


def test_published_fashion_layout(tmp_path: Path) -> None:
    for split, count in (("train", 13), ("test", 4)):
        (tmp_path / "fmnist_inrs" / split).mkdir(parents=True)
        for number in range(count):
            label: Any = number % 7 if number % 2 else torch.tensor(number % 7)
            state = random_state(number + 100 * (split == "test"))
            content = {f"model.{name}": value for name, value in state.items()} | {"label": label}
            torch.save(content, tmp_path / "fmnist_inrs" / split / f"model_{number}.pth")
    zoo = import_zoo(tmp_path / "fmnist_inrs", tmp_path / "zoo")
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [12, 1, 4]
    assert zoo.meta["source"]["images"] == "fashion-mnist"
    assert (zoo.all.labels() == torch.from_numpy(zoo.all.column("image")) % 7).all()
    assert np.array_equal(weights(zoo)["seq.0.bias"][-1], random_state(103)["seq.0.bias"])


def test_bad_checkpoints_are_skipped_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "data")
    bad = {number: next((tmp_path / "data").glob(f"*/*_{number}/checkpoints/*.pth")) for number in range(8)}
    harm = tmp_path / "harm"
    torch.save(random_state(0) | {"extra": Hostile(harm)}, bad[0])
    bad[1].write_bytes(pickle.dumps(Hostile(harm)))
    bad[2].write_bytes(bad[2].read_bytes()[:-2000])
    bad[3].write_bytes(b"")
    torch.save({name: value[..., :5] for name, value in random_state(0).items()}, bad[4])
    torch.save([1, 2, 3], bad[5])
    torch.save(random_state(0) | {"seq.2.bias": torch.tensor([float("inf")])}, bad[6])
    torch.save(random_state(0) | {"seq.2.bias": "none"}, bad[7])
    zoo = import_zoo(tmp_path / "data", tmp_path / "zoo")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert not harm.exists()
    assert len(zoo) == 16 and zoo.meta["skipped"] == 8 and len(lines) == 8
    for number, reason in {
        0: "more than tensors",
        1: "more than tensors",
        2: "cannot read",
        3: "cannot read",
        4: "another architecture",
        5: "no state dict",
        6: "NaN or infinite",
        7: "no dense tensor",
    }.items():
        assert sum(str(bad[number]) in line and reason in line for line in lines) == 1, reason
    assert sorted(zoo.all.column("image")) == list(range(8, 24))


def test_not_one_readable_checkpoint(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data", 4)
    for file in (tmp_path / "data").glob("*/*/checkpoints/*.pth"):
        torch.save({"a": Hostile(tmp_path / "harm")}, file)
    with pytest.raises(UserError, match="none of 4 checkpoints can be read; the first: .*more than tensors") as caught:
        import_zoo(tmp_path / "data", tmp_path / "zoo")
    assert "\n" not in str(caught.value) and not (tmp_path / "harm").exists() and not (tmp_path / "zoo").exists()


def test_unfinished_import_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = write_stacked(tmp_path / "nets")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ZooWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert not Zoo.load(tmp_path / "zoo").complete
    for _ in range(2):  # the second time, it is opened as it is
        zoo = import_zoo(tmp_path / "nets", tmp_path / "zoo")
        assert zoo.complete and len(zoo) == 10
        assert all(torch.equal(weights(zoo)[name], value) for name, value in state.items())
