"""Every rule has its test, and reads only arguments that its operators have."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import torch

from neural_graphs.graph._rules import RULES

HERE = Path(__file__).parent


def test_every_rule_has_a_test() -> None:
    covered: set[str] = set()
    for path in sorted(HERE.glob("test_*.py")):
        if path.name != Path(__file__).name:
            cases = runpy.run_path(str(path)).get("CASES", {})
            covered |= {name.partition("/")[0] for name in cases}
    assert covered >= set(RULES), sorted(set(RULES) - covered)
    assert set(RULES) >= covered, sorted(covered - set(RULES))


def overloads(name: str) -> list[torch.FunctionSchema]:
    packets = [getattr(torch.ops.aten, full, None) for full in (name, f"{name}_")]
    return [
        getattr(packet, overload)._schema for packet in packets if packet is not None for overload in packet.overloads()
    ]


def test_rules_are_named_after_operators() -> None:
    assert [name for name in RULES if not overloads(name)] == []


def test_rules_read_arguments_that_exist() -> None:
    """For every rule, each argument it names belongs to an overload of one of its operators."""
    names: dict[str, set[str]] = {}
    for name, rule in RULES.items():
        function = getattr(rule, "func", rule)
        source = inspect.getsource(function)
        known = names.setdefault(source, set())
        known |= {argument.name for schema in overloads(name) for argument in schema.arguments}
    assert len(names) > 50
    for source, known in names.items():
        read = set(re.findall(r"call(?:\[|\.(?:get|has|axes|integer)\()\"(\w+)\"", source))
        assert read <= known, (source.splitlines()[:2], read - known)
