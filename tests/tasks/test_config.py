"""Configurations: presets, files, overrides, and one line for everything wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neural_graphs.errors import UserError
from neural_graphs.tasks import TrainConfig, list_presets, load_config, preset_text
from neural_graphs.tasks._config import from_dict, to_dict, to_yaml


def test_presets_load_and_comment_every_key() -> None:
    regress = ["generalisation", "generalisation-paper", "generalisation-statnn"]
    edit = ["edit", "edit-paper"]
    tasks = dict.fromkeys(regress, "regress") | dict.fromkeys(edit, "edit") | {"adapt": "adapt"}
    classify = ["inr-cpu", "inr-cpu-probes", "inr-mlp", "inr-paper", "inr-paper-probes", "inr-probing"]
    assert list_presets() == ["adapt", *edit, *regress, *classify]
    for name in list_presets():
        config = load_config(name, ["zoo=somewhere"])
        assert config.task == tasks.get(name, "classify")
        assert config.zoo == "somewhere" and config.out == str(Path("runs") / name)
        lines = preset_text(name).splitlines()
        assert all("#" in line for line in lines), name
        keys = yaml.safe_load(preset_text(name))
        defaults = to_dict(TrainConfig())
        assert keys.keys() == defaults.keys()
        assert all(keys[part].keys() == defaults[part].keys() for part in ("optimizer", "augment", "pretrain"))


def test_paper_preset_is_the_paper() -> None:
    config = load_config("inr-paper-probes")
    assert config.encoder["width"] == 64 and config.encoder["layers"] == 4 and config.encoder["probes"] == 64
    assert config.encoder["reverse_edges"] is True and config.encoder["dropout"] == 0.2
    optimizer, augment = config.optimizer, config.augment
    assert (optimizer.epochs, optimizer.batch_size, optimizer.lr, optimizer.weight_decay) == (200, 128, 1e-3, 5e-4)
    assert (optimizer.amsgrad, optimizer.warmup_steps, optimizer.schedule, optimizer.clip) == (
        True,
        1000,
        "constant",
        10,
    )
    assert (augment.translation, augment.rotation, augment.scaling) == (0.25, 45, 0.2)
    assert (augment.noise, augment.dropout, augment.exact_translation) == (0.1, 0.01, False)
    assert (config.eval_every, config.eval_unit) == (1000, "steps")


def test_paper_preset_of_generalisation_is_the_paper() -> None:
    config = load_config("generalisation-paper")
    optimizer, augment, encoder = config.optimizer, config.augment, config.encoder
    assert (encoder["name"], encoder["width"], encoder["layers"], encoder["sigma"]) == ("ng-gnn", 256, 4, 3.0)
    assert (optimizer.epochs, optimizer.batch_size, optimizer.lr, optimizer.weight_decay) == (300, 128, 1e-3, 5e-4)
    assert (optimizer.amsgrad, optimizer.warmup_steps, optimizer.schedule, optimizer.clip) == (True, 0, "constant", 10)
    assert (augment.noise, augment.dropout, augment.translation) == (0.1, 0.01, 0)
    assert (config.loss, config.label, config.bounds) == ("mse", "test_accuracy", [0, 1])
    assert (config.eval_every, config.eval_unit) == (100, "steps")


def test_paper_preset_of_editing_is_the_paper() -> None:
    config = load_config("edit-paper")
    optimizer, encoder = config.optimizer, config.encoder
    assert (encoder["name"], encoder["width"], encoder["layers"], encoder["probes"]) == ("ng-gnn", 128, 4, 64)
    assert (encoder["reverse_edges"], encoder["dropout"]) == (True, 0.2)
    assert (optimizer.epochs, optimizer.batch_size, optimizer.lr, optimizer.weight_decay) == (200, 128, 1e-3, 5e-4)
    assert (optimizer.amsgrad, optimizer.warmup_steps, optimizer.schedule, optimizer.clip) == (
        True,
        10000,
        "constant",
        1,
    )
    assert (config.edits, config.copies, config.targets) == (["dilate"], 1, "image")
    assert not any(vars(config.augment).values())


def test_overrides() -> None:
    overrides = ["optimizer.lr=3e-4", "encoder.width=16", "limit_train=100", "augment.noise=0", "encoder.kernel=[3, 3]"]
    config = load_config("inr-cpu", [*overrides, "limit_train=null", "optimizer.clip=1"])
    assert config.optimizer.lr == 3e-4 and isinstance(config.optimizer.lr, float)
    assert config.encoder["width"] == 16 and config.encoder["kernel"] == [3, 3]
    assert config.limit_train is None and config.augment.noise == 0.0 and config.optimizer.clip == 1.0


def test_lists() -> None:
    assert load_config("inr-cpu", ["hold_out=[2-8-1 sine:30, 2-4-4-1 relu,tanh]"]).hold_out == [
        "2-8-1 sine:30",
        "2-4-4-1 relu",
        "tanh",
    ]
    names = ["2-8-1 sine:30", "2-4-4-1 relu,tanh"]
    assert load_config("inr-cpu", [f'hold_out=["{names[0]}", "{names[1]}"]']).hold_out == names
    assert load_config("inr-cpu", [f"hold_out={names[1]}"]).hold_out == names[1:]
    assert load_config("inr-cpu", ["hold_out="]).hold_out == []


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config("inr-cpu-probes", ["zoo=a", "out=b", "optimizer.lr=1e-5", "seed=3", "hold_out=[2-8-1 relu]"])
    (tmp_path / "own.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "own.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "unknown key optimiser: valid are task, zoo, .*optimizer"),
        (
            "optimizer.learning_rate=1",
            "unknown key optimizer.learning_rate: valid are optimizer.epochs, .*optimizer.lr",
        ),
        ("optimizer.lr=fast", "optimizer.lr is 'fast', expected a number"),
        ("optimizer.lr=0", "optimizer.lr must be positive"),
        ("optimizer.epochs=2.5", "optimizer.epochs is 2.5, expected a whole number"),
        ("optimizer.epochs=true", "optimizer.epochs is True, expected a whole number"),
        ("optimizer=3", "optimizer must hold keys"),
        ("optimizer.ema=1", "optimizer.ema must be at least 0 and below 1"),
        ("seed.x=3", "seed is a single value"),
        ("precision=fp8", "precision is 'fp8', expected one of auto, fp32, bf16"),
        ("pretrain.epochs=-1", "pretrain.epochs and reconstruction must not be negative"),
        ("pretrain.lr=0", "pretrain.lr must be positive"),
        ("pretrain.side=0", "pretrain.side and width must be at least 1"),
        ("views=-1", "patience and views must not be negative"),
        ("augment.mixup=-0.2", "augment: strengths must not be negative"),
        ("augment.symmetry=1", "augment.symmetry is 1, expected true or false"),
        ("hold_out=[3]", "hold_out is 3, expected text"),
        ("limit_train=0", "limit_train must be at least 1"),
        ("augment.dropout=1", "dropout must be below 1"),
        ("task=cluster", "task is 'cluster', expected one of classify, regress"),
        ("bounds=[1, 0]", "bounds must be two numbers, the smaller one first"),
        ("loss=mae", "loss is 'mae', expected one of mse, bce, ranking"),
        ("encoder={width: 3}", "encoder.name is missing"),
        ("fast", "'fast' is no override: write key=value"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("inr-cpu", [override])
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a preset; presets: .*inr-cpu"):
        load_config("inr-gpu")
    (tmp_path / "bad.yaml").write_text("optimizer: [\n")
    with pytest.raises(UserError, match="no valid YAML") as caught:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="holds no configuration"):
        load_config(tmp_path / "list.yaml")


def test_empty_sections_are_defaults() -> None:
    assert from_dict({"optimizer": None, "augment": {}}) == TrainConfig()
