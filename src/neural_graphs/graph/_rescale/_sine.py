"""Sine units: sin(z + π) = -sin(z), so half a period in the bias is a change of sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from neural_graphs.graph._capture import Captured
from neural_graphs.graph._rescale._moves import VIEWS, moved
from neural_graphs.graph._rescale._pass import Pass, shape_of
from neural_graphs.graph._rules import rule_name

_PRODUCTS = {"linear": "bias", "addmm": "self", "conv1d": "bias", "conv2d": "bias", "conv3d": "bias"}
_PASSING = ("clone", "contiguous", "alias", "to", "_to_copy")


@dataclass(frozen=True)
class Shift:
    """A bias that only sine (or cosine) units of one frequency read: ``shift`` turns their sign. ``product`` is the
    operator that adds the bias, ``path`` what stands between it and the sine."""

    bias: Node
    product: Node
    path: tuple[Node, ...]
    shift: float


def find_shifts(captured: Captured) -> tuple[Shift, ...]:
    """Every parameter that is used once, as the bias of a product whose result, times numbers, nothing but sines read."""
    found = []
    for node in captured.graph.nodes:
        if node.op != "call_function" or rule_name(node.target) not in ("sin", "cos"):
            continue
        factor, at = 1.0, node.args[0]
        path: list[Node] = []
        while isinstance(at, Node) and at.op == "call_function" and len(at.users) == 1:
            name = rule_name(at.target)
            if name in _PRODUCTS or name in ("add", "sub"):
                bias = _bias(at, name, captured)
                if bias is not None and factor and math.isfinite(factor):
                    found.append(Shift(bias, at, tuple(path), math.pi / abs(factor)))
                break
            if name in ("mul", "multiply", "div", "divide", "true_divide"):
                number = _number(at)
                if number is None or number == 0:
                    break
                factor = factor * number if name.startswith("mul") else factor / number
            elif name not in VIEWS and name not in (*_PASSING, "neg"):
                break
            path.append(at)
            at = _carried(at)
    return tuple(found)


def _carried(node: Node) -> Any:
    return node.args[0] if isinstance(node.args[0], Node) else node.args[1]


def _number(node: Node) -> float | None:
    if node.kwargs.get("rounding_mode") is not None:
        return None
    a, b = node.args[:2]
    if isinstance(a, (int, float)) and rule_name(node.target).startswith("mul"):
        return float(a)
    return float(b) if isinstance(b, (int, float)) and isinstance(a, Node) else None


def _bias(node: Node, name: str, captured: Captured) -> Node | None:
    if name in ("add", "sub"):
        if node.kwargs.get("alpha", 1) != 1:
            return None
        candidates = [n for n in node.args[:2] if isinstance(n, Node)]
        if len(set(candidates)) != 2:
            return None
        candidates = [n for n in candidates if _is_parameter(n, captured) and len(n.users) == 1]
        return candidates[-1] if candidates else None
    place = {"linear": 2, "addmm": 0}.get(name, 2)
    bias: Any = node.args[place] if len(node.args) > place else node.kwargs.get(_PRODUCTS[name])
    if name == "addmm" and (node.kwargs.get("beta", 1) != 1):
        return None
    usable = isinstance(bias, Node) and _is_parameter(bias, captured) and len(bias.users) == 1
    return bias if usable else None


def _is_parameter(node: Node, captured: Captured) -> bool:
    return node.op == "placeholder" and captured.sources[node.name][0] == "parameter"


def hand_on(p: Pass, node: Node) -> None:
    """What stands between a shifted bias and its sines moves the phases along."""
    before = _carried(node)
    value = p.phases.get(before, {})
    if value and rule_name(node.target) in VIEWS:
        found = moved(p, p.places.call(node), value, shape_of(before))
        p.phases[node] = found if isinstance(found, dict) else {}
    elif value:
        p.phases[node] = value
