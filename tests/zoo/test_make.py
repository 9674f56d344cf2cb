"""Making zoos: splits by image, the same networks whatever interrupts the work, clear refusals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import Stack
from neural_graphs.zoo import ImageSet, Zoo, make_zoo, zoo_info
from neural_graphs.zoo._make import _assign, _shards
from neural_graphs.zoo._plan import _balanced, make_plan

TINY: dict[str, Any] = {"images": "digits", "size": 40, "steps": 3, "shard_size": 16, "workers": 1, "widths": (5, 4)}


def weights(zoo: Zoo) -> dict[str, torch.Tensor]:
    ((_, _, values),) = zoo.all.state_dicts()
    return values


def assert_same_networks(zoo: Zoo, other: Zoo) -> None:
    assert zoo.table.drop_columns(["shard", "row"]).equals(other.table.drop_columns(["shard", "row"]))
    for name, value in weights(zoo).items():
        assert torch.equal(value, weights(other)[name])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "weights").iterdir())}


def random_images(count: int = 30, channels: int = 1) -> ImageSet:
    rng = np.random.default_rng(0)
    shape = (count, 4, 6) if channels == 1 else (count, 4, 6, channels)
    images = rng.integers(0, 256, shape).astype(np.uint8)
    return ImageSet(images, np.arange(count) % 3, "random", "all", ("a", "b", "c"), "test")


def test_what_is_in_it(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", **TINY)
    assert len(zoo) == 40 and zoo.complete
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [32, 4, 4]
    assert zoo.all.sole_architecture == Stack.mlp((2, 5, 4, 1), "sine:30", shift=0.5)
    assert zoo.all.column("network").tolist() == list(range(40))
    assert sorted(file.name for file in (tmp_path / "zoo").iterdir()) == ["networks.parquet", "weights", "zoo.json"]
    assert len(list((tmp_path / "zoo" / "weights").iterdir())) == 3


def test_stored_quality_is_that_of_the_stored_network(tmp_path: Path) -> None:
    """psnr_db, the image index and the pixel order all fit together: recomputed from the images themselves."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    zoo = make_zoo(tmp_path / "zoo", **(TINY | {"steps": 60, "widths": (16,), "lr": 3e-3}))
    grid = np.linspace(-1, 1, 8)
    coords = torch.tensor([(column, row) for row in grid for column in grid], dtype=torch.float32)
    rendered = zoo.all.sole_architecture.forward(weights(zoo), coords).reshape(-1, 8, 8).numpy()
    # Which digits image a network shows, looked up from scratch: every fifth of a class is the source's test set.
    rank = np.array([(digits.target[:i] == label).sum() for i, label in enumerate(digits.target)])
    order = {"train": np.flatnonzero(rank % 5 != 4), "test": np.flatnonzero(rank % 5 == 4)}
    splits, images = zoo.all.column("source_split"), zoo.all.column("image")
    shown = np.array([order[split][image] for split, image in zip(splits, images, strict=True)])
    assert zoo.all.labels().tolist() == digits.target[shown].tolist()
    mse = ((rendered - digits.images[shown] / 16) ** 2).mean((1, 2))
    np.testing.assert_allclose(zoo.all.column("psnr_db"), -10 * np.log10(mse), rtol=1e-3)
    shuffled = ((rendered - digits.images[shown[::-1]] / 16) ** 2).mean((1, 2))
    assert mse.mean() < 0.7 * shuffled.mean(), "the networks show their own images"


def test_views_of_an_image_share_its_split(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", **(TINY | {"views": 3}))
    assert len(zoo) == 120
    place = [f"{a}:{b}" for a, b in zip(zoo.all.column("source_split"), zoo.all.column("image"), strict=True)]
    splits: dict[str, set[str]] = {}
    for image, split in zip(place, zoo.all.column("split"), strict=True):
        splits.setdefault(image, set()).add(split)
    assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
    assert np.bincount(zoo.all.column("view")).tolist() == [40, 40, 40]
    first = weights(zoo)["seq.0.weight"]
    assert not torch.equal(first[0], first[40]), "views start from different weights"


def test_test_networks_show_test_images() -> None:
    plan = make_plan("digits", None, (0.8, 0.1, 0.1), 2, 0)
    names = np.array([source.split for source in plan.sources])[plan.source]
    assert len(plan) == 2 * 1797
    assert set(names[plan.split == "test"]) == {"test"} and set(names[plan.split != "test"]) == {"train"}
    assert len({*zip(plan.source, plan.image, strict=True)}) == 1797


def test_every_prefix_is_balanced() -> None:
    plan = make_plan("digits", 1000, (0.8, 0.1, 0.1), 1, 0)
    for stop in (100, 250, 500, 1000):
        classes = np.bincount(plan.label[:stop], minlength=10)
        assert abs(classes - stop / 10).max() <= 4
        assert abs((plan.split[:stop] == "train").mean() - 0.8) < 0.04
    other = make_plan("digits", 1000, (0.8, 0.1, 0.1), 1, 1)
    assert not np.array_equal(plan.image, other.image)


def test_balanced_choice_takes_all_of_a_rare_class() -> None:
    labels = np.repeat([0, 1, 2], [3, 50, 50])
    rng = np.random.default_rng(0)
    for count in (0, 1, 9, 30, 61, 103, 200):
        chosen = _balanced(labels, np.arange(103), count, rng)
        sizes = np.bincount(labels[chosen], minlength=3)
        assert len(set(chosen)) == len(chosen) == min(count, 103)
        assert abs(int(sizes[1]) - int(sizes[2])) <= 1 and sizes[0] >= min(3, count // 3)


def test_images_of_your_own_are_held_out(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", random_images(), splits=(20, 4, 6), steps=2, widths=(4,), workers=1)
    assert [len(zoo.train), len(zoo.val), len(zoo.test)] == [20, 4, 6]
    assert sorted(zoo.all.column("image")) == list(range(30))
    assert np.bincount(zoo.test.labels()).tolist() == [2, 2, 2]


def test_colours_and_the_nfn_recipe(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", random_images(10, 3), "nfn", steps=150, widths=(24, 24), lr=2e-3, workers=1)
    assert zoo.all.sole_architecture == Stack.mlp((2, 24, 24, 3), "sine:30")
    assert zoo.meta["recipe"]["pixel_range"] == [-1.0, 1.0]
    # Random pixels have a standard deviation of 0.29 (11 dB): more is only possible by fitting every colour.
    assert zoo.all.column("psnr_db").mean() > 14


def test_mixed_architectures(tmp_path: Path) -> None:
    options = {"images": "digits", "size": 100, "steps": 2, "workers": 1, "diverse": True}
    zoo = make_zoo(tmp_path / "zoo", shard_size=4, **options)
    assert len(zoo.all.architectures) > 10
    assert {stack.widths[-1] for stack in zoo.architectures.values()} == {1}
    larger = make_zoo(tmp_path / "larger", shard_size=50, **options)
    assert zoo.table["architecture"].equals(larger.table["architecture"])
    batch = zoo.all.batch()
    assert len(batch) == 100 and len(batch.buckets) == len(zoo.all.architectures)


def test_initial_weights_and_images_do_not_depend_on_the_shard_size(tmp_path: Path) -> None:
    zoos = [make_zoo(tmp_path / str(n), **(TINY | {"steps": 0, "shard_size": n})) for n in (7, 16, 100)]
    for zoo in zoos[1:]:
        assert_same_networks(zoos[0], zoo)
    other = make_zoo(tmp_path / "seed", **(TINY | {"steps": 0, "seed": 1}))
    assert not torch.equal(weights(other)["seq.0.weight"], weights(zoos[0])["seq.0.weight"])


def test_same_call_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make_zoo(tmp_path / "one", **TINY)
    make_zoo(tmp_path / "two", **(TINY | {"workers": 2}))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_finished_zoo_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_zoo(tmp_path / "zoo", **TINY)
    monkeypatch.setattr("neural_graphs.zoo._make.fit_networks", None)
    assert_same_networks(make_zoo(tmp_path / "zoo", **TINY), made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "seed is 0 there and 5 here"),
        ({"steps": 4}, "recipe is"),
        ({"views": 2}, "views is 1 there and 2 here"),
        ({"shard_size": 8}, "shard_size is 16 there and 8 here"),
    ],
)
def test_another_command_on_the_same_folder(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    make_zoo(tmp_path / "zoo", **TINY)
    before = files(tmp_path / "zoo")
    with pytest.raises(UserError, match=said):
        make_zoo(tmp_path / "zoo", **(TINY | change))
    assert files(tmp_path / "zoo") == before


def test_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_zoo(tmp_path / "whole", **TINY)
    from neural_graphs.zoo import _make

    real, calls = _make.fit_networks, []

    def second_shard_interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_make, "fit_networks", second_shard_interrupted)
        with pytest.raises(KeyboardInterrupt, match="16 of 40 networks are safe in .*zoo; run the same command again"):
            make_zoo(tmp_path / "zoo", **TINY)
    assert not Zoo.load(tmp_path / "zoo").complete
    assert_same_networks(make_zoo(tmp_path / "zoo", **TINY), whole)


def test_full_disk_then_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_zoo(tmp_path / "whole", **TINY)
    from neural_graphs.zoo import _writer

    real, calls = _writer.save_file, []

    def disk_fills_up(tensors: Any, path: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            Path(path).write_bytes(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(_writer, "save_file", disk_fills_up)
        with pytest.raises(RunError, match="cannot write .*: No space left on device"):
            make_zoo(tmp_path / "zoo", **TINY)
    assert len(Zoo.load(tmp_path / "zoo")) == 16
    assert_same_networks(make_zoo(tmp_path / "zoo", **TINY), whole)


SCRIPT = """
import sys
from neural_graphs.zoo import make_zoo
make_zoo(sys.argv[1], images="digits", size=60, steps=int(sys.argv[2]), shard_size=6, workers=1, widths=(16, 16))
"""


def test_kill_in_the_middle_then_resume(tmp_path: Path) -> None:
    """SIGKILL at some moment, again and again; what is on disk always opens, and the end result has the same bytes."""
    environment = os.environ | {"NEURAL_GRAPHS_NO_PROGRESS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), "400"]
    weights_folder, kills = tmp_path / "killed" / "weights", 0
    for wanted in (2, 5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if weights_folder.is_dir() and len(list(weights_folder.glob("a0-*.safetensors"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
        process.communicate()
        zoo = Zoo.load(tmp_path / "killed")
        assert len(zoo) >= 6 * (wanted - 1), "at most the shard in work is lost"
        assert len(zoo.all.batch()) == len(zoo)
    assert kills == 2, "the work was killed while it was going on"
    assert not Zoo.load(tmp_path / "killed").complete
    options: dict[str, Any] = {"images": "digits", "size": 60, "steps": 400, "shard_size": 6, "workers": 1}
    resumed = make_zoo(tmp_path / "killed", widths=(16, 16), **options)
    whole = make_zoo(tmp_path / "whole", widths=(16, 16), **options)
    assert resumed.complete and files(tmp_path / "killed") == files(tmp_path / "whole")
    assert_same_networks(resumed, whole)


def test_half_written_files_of_a_killed_run_do_not_disturb_reading(tmp_path: Path) -> None:
    make_zoo(tmp_path / "zoo", **TINY)
    before = zoo_info(Zoo.load(tmp_path / "zoo"))
    for name in (".a0-00000.0123456789ab.tmp.parquet", ".a0-00000.0123456789ab.tmp.safetensors"):
        (tmp_path / "zoo" / "weights" / name).write_bytes(b"half")
    assert zoo_info(Zoo.load(tmp_path / "zoo")) == before


def test_diverged_fit_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="diverged"):
        make_zoo(tmp_path / "zoo", **(TINY | {"lr": 1e38, "steps": 5}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "siren"}, "choose one of dws, nfn"),
        ({"images": "letters"}, "unknown images"),
        ({"size": 5000}, "1 to 1797"),
        ({"size": 0}, "1 to 1797"),
        ({"views": 0}, "at least 1"),
        ({"seed": -1}, "seed -1"),
        ({"shard_size": 0}, "positive"),
        ({"splits": (0.8, 0.1)}, "three shares"),
        ({"splits": (0.8, 0.3, 0.1)}, "add up to 1"),
        ({"splits": (2000, 10, 10), "size": None}, "1442 training and 355 test"),
        ({"splits": (20, 10, 11)}, "not the size 40"),
        ({"activation": "swish"}, "unknown activation"),
        ({"activation": "none"}, "cannot fit"),
        ({"widths": ()}, "hidden layers' sizes"),
        ({"diverse": True}, "leave them out"),
        ({"device": "gpu"}, "unknown device"),
        ({"lr": 0.0}, "must be positive"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_arguments_leave_no_folder(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make_zoo(tmp_path / "zoo", **(TINY | change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "zoo").exists()


def test_shards_cover_every_network_once() -> None:
    kinds = _assign(4, 50, 0)
    found = list(_shards(kinds, 8))
    assert sorted(np.concatenate([networks for _, _, networks in found])) == list(range(50))
    assert all(len(networks) <= 8 and len({kinds[i] for i in networks}) == 1 for _, _, networks in found)
    assert len({(architecture, number) for architecture, number, _ in found}) == len(found)
