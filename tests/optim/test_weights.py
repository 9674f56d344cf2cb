"""Files of update rules: what is saved comes back, damage is told."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from neural_graphs import LearnedOptimizer
from neural_graphs.errors import UserError
from neural_graphs.optim import create_rule, list_weights, load_rule, save_rule

CARD = {"lr": 0.004, "schedule": "linear", "tasks": ["digits"], "horizon": [100, 1000], "seed": 3}


def rule_of(name="graph", **arguments):
    rule = create_rule(name, **arguments)
    with torch.no_grad():
        rule.heads.normal_(generator=torch.Generator().manual_seed(0))
    return rule


@pytest.mark.parametrize("folder", [False, True])
def test_saved_rules_come_back(tmp_path, folder):
    rule = rule_of(hidden=5, messages=4)
    path = tmp_path / "rule.safetensors"
    save_rule(rule, path, CARD)
    found, card = load_rule(tmp_path if folder else path)
    assert card == CARD and found.config == rule.config and found.digest() == rule.digest()
    optimizer = LearnedOptimizer(nn.Sequential(nn.Linear(2, 2)), path)
    assert optimizer.param_groups[0]["lr"] == 0.004 and optimizer.card == CARD


def test_a_rule_is_taken_as_it_is():
    rule = rule_of()
    assert load_rule(rule) == (rule, {})
    assert LearnedOptimizer(nn.Sequential(nn.Linear(2, 2)), rule).param_groups[0]["lr"] == 1e-3


def test_shipped_weights_load():
    for name in list_weights():
        rule, card = load_rule(name)
        assert card["lr"] > 0 and all(value.isfinite().all() for value in rule.parameters())


def test_what_is_no_rule_is_refused(tmp_path):
    with pytest.raises(UserError, match="no weights of an update rule at nowhere"):
        load_rule("nowhere")
    with pytest.raises(UserError, match="no weights of an update rule"):
        load_rule(tmp_path)
    path = tmp_path / "rule.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(UserError, match="cannot read"):
        load_rule(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no update rule"):
        load_rule(path)


def test_damage_is_told(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "rule.safetensors"
    save_rule(rule_of(), path, CARD)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    save_file({**state, "heads": state["heads"] + 1}, path, metadata)
    with pytest.raises(UserError, match="its weights are not those that were saved"):
        load_rule(path)
    state.pop("heads")
    save_file(state, path, metadata)
    with pytest.raises(UserError, match="is damaged"):
        load_rule(path)
    (key, text) = next(iter(metadata.items()))
    save_file(state, path, {key: text.replace('"version": 1', '"version": 2')})
    with pytest.raises(UserError, match="version 2, this library reads 1"):
        load_rule(path)


def test_what_cannot_be_kept_is_refused(tmp_path):
    rule = rule_of()
    with pytest.raises(UserError, match="must be JSON"):
        save_rule(rule, tmp_path / "a.safetensors", {"lr": float("nan")})
    with torch.no_grad():
        rule.heads[0, 0] = torch.inf
    with pytest.raises(UserError, match="heads of the update rule"):
        save_rule(rule, tmp_path / "a.safetensors", CARD)
    with pytest.raises(UserError, match="only finite float32"):
        save_rule(create_rule("graph").double(), tmp_path / "a.safetensors", CARD)
    assert not list(tmp_path.iterdir())
