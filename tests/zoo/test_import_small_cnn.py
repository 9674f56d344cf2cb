"""The Small CNN Zoo, on files in exactly its layout, written from networks whose outputs are known."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neural_graphs.cli import main
from neural_graphs.errors import UserError
from neural_graphs.zoo import Zoo, ZooWriter, import_zoo

LAYOUT = [  # the published order: biases before kernels
    ("sequential/conv2d/bias:0", (16,)),
    ("sequential/conv2d/kernel:0", (3, 3, 1, 16)),
    ("sequential/conv2d_1/bias:0", (16,)),
    ("sequential/conv2d_1/kernel:0", (3, 3, 16, 16)),
    ("sequential/conv2d_2/bias:0", (16,)),
    ("sequential/conv2d_2/kernel:0", (3, 3, 16, 16)),
    ("sequential/dense/bias:0", (10,)),
    ("sequential/dense/kernel:0", (16, 10)),
]
COLUMNS = 4970
STEPS = (0, 40, 86)


def write_layout(folder: Path, layout: list[tuple[str, tuple[int, ...]]] = LAYOUT, shift: int = 0) -> None:
    lines, start = [",varname,start_idx,end_idx,shape"], 0
    for i, (name, shape) in enumerate(layout):
        stop = start + int(np.prod(shape))
        lines.append(f'{i},{name},{start},{stop + shift},"{shape}"')
        start = stop
    (folder / "layout.csv").write_text("\n".join(lines) + "\n")


def write_zoo(folder: Path, runs: int = 10, **changes: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """``runs`` runs with three checkpoints each, rows shuffled; returns the matrix and the rows of metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    matrix = (0.2 * rng.standard_normal((3 * runs, COLUMNS))).astype(np.float32)
    rows = [
        {
            "config.activation": ("relu", "tanh")[run % 2],
            "config.dataset": "cifar10",
            "config.dropout": 0.1 * run,
            "config.init_std": 0.05,
            "config.l2reg": 1e-4,
            "config.learning_rate": 1e-3 * (run + 1),
            "config.optimizer": ("adam", "sgd")[run % 2],
            "config.random_seed": 42,
            "config.train_fraction": 0.25,
            "config.w_init": "he_normal",
            "modeldir": f"/published/place/{run}",
            "step": step,
            "test_accuracy": 0.1 + 0.01 * run + 0.001 * step,
            "test_loss": 2.0,
            "train_accuracy": 0.2,
            "train_loss": 1.5,
        }
        | changes
        for run in range(runs)
        for step in STEPS
    ]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    save(folder, matrix, rows)
    write_layout(folder)
    return matrix, rows


def save(folder: Path, matrix: np.ndarray, rows: list[dict[str, Any]]) -> None:
    np.save(folder / "weights.npy", matrix)
    text = "," + ",".join(rows[0]) + "\n"  # pandas writes its index as a column without a name
    text += "".join(f"{i}," + ",".join(map(str, row.values())) + "\n" for i, row in enumerate(rows))
    (folder / "metrics.csv.gz").write_bytes(gzip.compress(text.encode()))


def keras(flat: np.ndarray, activation: str, images: np.ndarray) -> np.ndarray:
    """The published network written out: valid convolutions of stride 2 over NHWC images with HWIO kernels."""
    values, start = {}, 0
    for name, shape in LAYOUT:
        size = int(np.prod(shape))
        values[name.removeprefix("sequential/")] = flat[start : start + size].reshape(shape).astype(np.float64)
        start += size
    h = images.astype(np.float64)
    for layer in ("conv2d", "conv2d_1", "conv2d_2"):
        kernel = values[f"{layer}/kernel:0"]
        side = (h.shape[1] - 3) // 2 + 1
        out = np.zeros((len(h), side, side, 16))
        for y in range(side):
            for x in range(side):
                patch = h[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                out[:, y, x] = np.einsum("nhwi,hwio->no", patch, kernel)
        out += values[f"{layer}/bias:0"]
        h = np.maximum(out, 0) if activation == "relu" else np.tanh(out)
    return h.mean((1, 2)) @ values["dense/kernel:0"] + values["dense/bias:0"]


def in_order(zoo: Zoo) -> list[dict[str, Tensor]]:
    """Every network's tensors, in the order of the table."""
    found: dict[int, dict[str, Tensor]] = {}
    for _, places, values in zoo.all.state_dicts():
        for i, place in enumerate(places.tolist()):
            found[place] = {name: value[i] for name, value in values.items()}
    return [found[i] for i in range(len(zoo))]


def test_networks_compute_what_keras_computes(tmp_path: Path) -> None:
    matrix, rows = write_zoo(tmp_path / "cifar10")
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    final = [i for i, row in enumerate(rows) if row["step"] == 86]
    assert len(zoo) == len(final) == 10
    images = np.random.default_rng(1).random((4, 32, 32, 1))
    for place, state in enumerate(in_order(zoo)):
        row = rows[final[place]]
        stack = zoo.architectures[zoo.table["architecture"][place].as_py()]
        params = {name: value[None].double() for name, value in state.items()}
        found = stack.forward(params, torch.from_numpy(images).permute(0, 3, 1, 2))[0]
        assert np.abs(found.numpy() - keras(matrix[final[place]], row["config.activation"], images)).max() < 1e-10
    assert {str(stack).rpartition(" ")[2] for stack in zoo.architectures.values()} == {"relu", "tanh"}
    assert all(stack.num_parameters == COLUMNS for stack in zoo.architectures.values())


def test_columns(tmp_path: Path) -> None:
    _, rows = write_zoo(tmp_path / "cifar10")
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", steps="all")
    assert len(zoo) == 30
    for name, source in {"test_accuracy": "test_accuracy", "epoch": "step", "weight_decay": "config.l2reg"}.items():
        assert zoo.all.column(name).dtype == np.float32
        assert np.allclose(zoo.all.column(name), [row[source] for row in rows])
    assert np.allclose(zoo.all.column("learning_rate"), [row["config.learning_rate"] for row in rows])
    assert zoo.all.column("optimizer").tolist() == [row["config.optimizer"] for row in rows]
    assert zoo.all.column("activation").tolist() == [row["config.activation"] for row in rows]
    assert set(zoo.all.column("images")) == {"cifar10-gs"} and set(zoo.all.column("init")) == {"he_normal"}
    assert zoo.meta["source"]["images"] == "cifar10-gs" and zoo.meta["source"]["channels"] == 1
    assert zoo.meta["recipe"] == {"name": "small-cnn-zoo"}


def test_runs_stay_together(tmp_path: Path) -> None:
    _, rows = write_zoo(tmp_path / "cifar10", runs=20)
    kinds: dict[str, Any] = {"kind": "small-cnn-zoo", "steps": "all"}
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "zoo", **kinds)
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [48, 6, 6]
    names = [row["modeldir"] for row in rows]
    of_name = {name: set(zoo.all.column("run")[[i for i, n in enumerate(names) if n == name]]) for name in set(names)}
    assert all(len(found) == 1 for found in of_name.values()) and len(set.union(*of_name.values())) == 20
    for run in set(zoo.all.column("run")):
        assert len(set(zoo.all.column("split")[zoo.all.column("run") == run])) == 1
    other = import_zoo(tmp_path / "cifar10", tmp_path / "zoo1", seed=1, **kinds)
    assert zoo.all.column("split").tolist() != other.all.column("split").tolist()


def published(order: list[int], steps: list[int]) -> dict[str, list[int]]:
    """NFN's splits, as its data set makes them."""
    rows = [row for row in order if steps[row] == 86]
    half = int(0.5 * len(rows))
    first = list(range(half))
    random.Random(0).shuffle(first)
    cut = int(0.8 * half)
    chosen = {"train": first[:cut], "val": first[cut:], "test": range(half, len(rows))}
    return {split: [rows[i] for i in places] for split, places in chosen.items()}


@pytest.mark.parametrize("header_is_final", [False, True])
@pytest.mark.parametrize("split_order", ["published", "clean"])
def test_published_order(tmp_path: Path, split_order: str, header_is_final: bool) -> None:
    matrix, rows = write_zoo(tmp_path / "cifar10", runs=41)
    first = next(i for i, row in enumerate(rows) if (row["step"] == 86) == header_is_final)
    rows[0], rows[first] = rows[first], rows[0]
    save(tmp_path / "cifar10", matrix, rows)
    order = np.random.default_rng(5).permutation(len(rows)).tolist()
    (tmp_path / "split.csv").write_text("\n".join(map(str, [0, *order])) + "\n")
    zoo = import_zoo(
        tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", split_file=tmp_path / "split.csv",
        split_order=split_order,
    )  # fmt: skip
    steps = [row["step"] for row in rows]
    expected = published([0, *order] if split_order == "published" else order, steps)
    rows_of = {tuple(values): i for i, values in enumerate(matrix[:, :16].tolist())}
    states = in_order(zoo)
    twice = split_order == "published" and header_is_final
    seen: set[int] = set()
    for split in ("train", "val", "test"):
        found = [rows_of[tuple(states[i]["conv0.bias"].tolist())] for i in zoo.split(split).rows]
        wanted = [row for row in expected[split] if not (row in seen or seen.add(row))]  # type: ignore[func-returns-value]
        assert found == wanted
    assert zoo.meta["copies"] == int(twice)  # the network that the header names twice is held once


def test_earlier_steps_follow_the_published_split(tmp_path: Path) -> None:
    _, rows = write_zoo(tmp_path / "cifar10")
    (tmp_path / "split.csv").write_text("\n".join(map(str, [0, *range(len(rows))])))
    arguments: dict[str, Any] = {"kind": "small-cnn-zoo", "split_file": tmp_path / "split.csv"}
    last = import_zoo(tmp_path / "cifar10", tmp_path / "last", **arguments)
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "all", steps="all", **arguments)
    assert len(zoo) == 3 * len(last) == 30
    split_of = dict(zip(last.all.column("run"), last.all.column("split"), strict=True))
    assert [split_of[run] for run in zoo.all.column("run")] == zoo.all.column("split").tolist()


def test_split_files_that_do_not_fit(tmp_path: Path) -> None:
    write_zoo(tmp_path / "cifar10")
    for text, said in {
        "0\n1\n999\n": "names row 999, but there are 30",
        "0\n1\n1\n": "names rows twice",
        "a\nb\n": "no list of row numbers",
    }.items():
        (tmp_path / "split.csv").write_text(text)
        with pytest.raises(UserError, match=said):
            import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", split_file=tmp_path / "split.csv")
    with pytest.raises(UserError, match="there is no file"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", split_file=tmp_path / "none.csv")


def test_nan_copies_and_accuracies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix, rows = write_zoo(tmp_path / "cifar10", runs=20)
    final = [i for i, row in enumerate(rows) if row["step"] == 86]
    matrix[final[0], 4000] = np.nan
    matrix[final[1]] = matrix[final[7]]
    rows[final[1]]["config.activation"] = rows[final[7]]["config.activation"]
    rows[final[2]]["test_accuracy"] = 54.0
    rows[final[3]]["test_accuracy"] = ""
    rows[final[4]]["test_accuracy"] = -0.5
    rows[final[5]]["train_accuracy"] = ""
    save(tmp_path / "cifar10", matrix, rows)
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    lines = capsys.readouterr().err.splitlines()
    assert len(zoo) == 15 and zoo.meta["skipped"] == 4 and zoo.meta["copies"] == 1
    for row, said in {
        final[0]: "has NaN or infinite weights",
        final[7]: f"is an exact copy of row {final[1]}",
        final[2]: "test_accuracy 54, which is not in [0, 1]; if it is a percentage, divide it by 100",
        final[3]: "has no test_accuracy",
        final[4]: "test_accuracy -0.5, which is not in [0, 1]",
    }.items():
        assert sum(line.startswith(f"skipped: row {row} of ") and said in line for line in lines) == 1
    assert (tmp_path / "zoo" / "skipped.txt").read_text().count("\n") == 5
    assert not np.isfinite(zoo.all.column("train_accuracy")).all()
    assert zoo.all.column("network").tolist() == list(range(15))


def test_the_same_weights_under_another_activation_are_no_copy(tmp_path: Path) -> None:
    matrix, rows = write_zoo(tmp_path / "cifar10", runs=2)
    matrix[:] = matrix[0]
    save(tmp_path / "cifar10", matrix, rows)
    zoo = import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", steps="all")
    assert len(zoo) == 2 and zoo.meta["copies"] == 4


def test_percentages_are_told_apart(tmp_path: Path) -> None:
    write_zoo(tmp_path / "cifar10", test_accuracy=43.5)
    with pytest.raises(UserError, match=r"test_accuracy is given in percent \(up to 43.5\).*divide it by 100"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("layout", "shift", "said"),
    [
        (LAYOUT, 1, "does not fill"),
        (LAYOUT[:-1], 0, "do not fill the 4970 columns"),
        ([*LAYOUT[:1], ("sequential/conv2d/kernel:0", (16, 1, 3, 3)), *LAYOUT[2:]], 0, "TensorFlow's order"),
        ([*LAYOUT[:3], ("sequential/conv2d_1/kernel:0", (8, 18, 16, 1)), *LAYOUT[4:]], 0, "TensorFlow's order"),
        ([*LAYOUT[:2], ("sequential/conv2d_1/gamma:0", (16,)), *LAYOUT[3:]], 0, "neither a kernel nor a bias"),
        ([*LAYOUT[:-1], ("sequential/dense/kernel:0", (10, 16))], 0, "TensorFlow's order"),
    ],
    ids=["overlap", "too few", "OIHW", "chain", "batch norm", "dense"],
)
def test_mixed_up_layouts(tmp_path: Path, layout: list[Any], shift: int, said: str) -> None:
    write_zoo(tmp_path / "cifar10", runs=2)
    write_layout(tmp_path / "cifar10", layout, shift)
    with pytest.raises(UserError, match=said) as caught:
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    assert "\n" not in str(caught.value) and not (tmp_path / "zoo").exists()


def test_missing_columns_and_rows(tmp_path: Path) -> None:
    matrix, rows = write_zoo(tmp_path / "cifar10", runs=2)
    for column in ("modeldir", "test_accuracy", "config.activation"):
        save(tmp_path / "cifar10", matrix, [{k: v for k, v in row.items() if k != column} for row in rows])
        with pytest.raises(UserError, match=f"has no column {column}: its columns are"):
            import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    save(tmp_path / "cifar10", matrix, rows[:-1])
    with pytest.raises(UserError, match="5 rows, but .* holds 6 networks"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    save(tmp_path / "cifar10", matrix, [row | {"config.activation": "swoosh"} for row in rows])
    with pytest.raises(UserError, match="unknown activation 'swoosh'"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")


def test_matrices_that_are_none(tmp_path: Path) -> None:
    write_zoo(tmp_path / "cifar10", runs=2)
    path = tmp_path / "cifar10" / "weights.npy"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot read .*weights.npy"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    np.save(path, np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read .*weights.npy"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    np.save(path, np.zeros(7, np.float32))
    with pytest.raises(UserError, match="no matrix of numbers"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    path.unlink()
    with pytest.raises(UserError, match="there is no file"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")


def test_streams_in_small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "cifar10", runs=11)
    arguments: dict[str, Any] = {"kind": "small-cnn-zoo", "steps": "all"}
    whole = import_zoo(tmp_path / "cifar10", tmp_path / "whole", **arguments)
    monkeypatch.setattr("neural_graphs.zoo._imports._write.SHARD", 4)
    parts = import_zoo(tmp_path / "cifar10", tmp_path / "parts", **arguments)
    assert len(list((tmp_path / "parts" / "weights").iterdir())) >= 6
    for one, other in zip(in_order(whole), in_order(parts), strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert whole.all.column("test_accuracy").tolist() == parts.all.column("test_accuracy").tolist()


def test_interrupted_import_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "cifar10", runs=4)
    append = ZooWriter.append

    def interrupted(self: ZooWriter, architecture: str, *arguments: Any) -> None:
        append(self, architecture, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ZooWriter, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")
    assert not Zoo.load(tmp_path / "zoo").complete
    for _ in range(2):
        assert len(import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo")) == 4
    with pytest.raises(UserError, match="holds another zoo"):
        import_zoo(tmp_path / "cifar10", tmp_path / "zoo", kind="small-cnn-zoo", seed=1)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_zoo(tmp_path / "cifar10", runs=4)
    source = str(tmp_path / "cifar10")
    assert main(["zoo", "import", "small-cnn-zoo", source, "-o", str(tmp_path / "a"), "--steps", "all"]) == 0
    assert "12 networks" in capsys.readouterr().out
    assert main(["zoo", "import", "-o", str(tmp_path / "b"), source, "--kind", "small-cnn-zoo"]) == 0
    assert len(Zoo.load(tmp_path / "b")) == 4
    assert main(["zoo", "import", "small-cnn-zoo", source, "-o", str(tmp_path / "c"), "--recipe", "dws"]) == 2
    assert "recipe means nothing for small-cnn-zoo" in capsys.readouterr().err
    assert main(["zoo", "import", "wild-park", source, "-o", str(tmp_path / "c")]) == 2
    assert "holds no wild park" in capsys.readouterr().err
