"""The scale, sign and phase symmetries of a recorded network."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import torch
from torch.fx import Node

from neural_graphs.graph._capture import Captured
from neural_graphs.graph._propagate import Propagation
from neural_graphs.graph._rescale._normalisation import BATCH_NORMS
from neural_graphs.graph._rescale._pass import Pass, Value, compact
from neural_graphs.graph._rescale._places import Places
from neural_graphs.graph._rescale._sine import Shift, find_shifts, hand_on
from neural_graphs.graph._rescale._system import Row, System
from neural_graphs.graph._rescaling import Kind, Rescaling, Term
from neural_graphs.graph._rules import rule_name
from neural_graphs.graph._var import Var


def find_rescalings(captured: Captured, propagation: Propagation) -> tuple[Rescaling, ...]:
    """Every way to rescale the neurons of one class, one by one, that the network cannot notice.

    For each class two systems of linear equations are read off the recorded operators, for positive factors (exponents are
    rational) and for signs (exponents count modulo 2): a sum needs equal exponents, a product adds them, what is summed away
    must cancel, ReLU-like units hand positive factors on, odd ones signs, and whatever has no rule must not scale at all. A
    basis of the solutions is returned, told by the first parameters that are free. Sine units also give phases: half a
    period in the bias changes their sign. It is a proof like that of the permutations, and may miss what needs values of
    parameters or several classes at once: rotations, the scale of a whole layer before a normalisation.
    """
    places = Places(captured, propagation)
    shifts = find_shifts(captured)
    offsets = _offsets(captured)
    found: list[Rescaling] = []
    for v in propagation.names:
        for signs in (False, True):
            found += _of_class(places, v, signs, shifts if signs else (), offsets)
    return _told_once(places, found)


def _told_once(places: Places, found: list[Rescaling]) -> tuple[Rescaling, ...]:
    """Without what follows from the families over a class: the factor of a head is that of all its inner units."""
    dropped: set[int] = set()
    for v in places.names:
        inner = {places.names[w] for w, outer in places.outer.items() if v in outer}
        for signs in (False, True) if inner else ():
            mine = [k for k, r in enumerate(found) if (r.kind != "scale") == signs]
            numbers: dict[tuple[object, ...], int] = {}
            known = System(signs)
            for k in sorted(mine, key=lambda k: found[k].symmetry not in inner):  # the families first
                if found[k].symmetry in (*inner, places.names[v]):
                    row = {numbers.setdefault(key, len(numbers) + 1): c for key, c in _action(places, found[k]).items()}
                    if not known.require(row) and found[k].symmetry not in inner:
                        dropped.add(k)
    return tuple(r for k, r in enumerate(found) if k not in dropped)


def _action(places: Places, rescaling: Rescaling) -> dict[tuple[object, ...], Fraction]:
    """The exponent (and for phases the shift) with which each part of a parameter changes, one part for each choice of
    pieces of its axes, when all neurons of a family take the same factor."""
    found: dict[tuple[object, ...], Fraction] = {}
    for term in rescaling.terms:
        axes = places.parameters[term.parameter]
        held = [
            number
            for number, piece in enumerate(axes[term.axis].pieces)
            if any(digit.symmetry == rescaling.symmetry for digit in piece.digits)
        ]
        for cell in product(*(range(len(axis.pieces)) for axis in axes)):
            if cell[term.axis] in (term.pieces or held):
                found[term.parameter, cell] = found.get((term.parameter, cell), Fraction(0)) + Fraction(term.exponent)
                if term.shift:
                    found[term.parameter, cell, "shift"] = Fraction(1)
    return found


class _Piece(NamedTuple):
    """Some pieces of one axis of a parameter, with a common unknown exponent."""

    parameter: str
    dim: int
    piece: int
    shift: float = 0.0


def _of_class(
    places: Places, v: Var, signs: bool, shifts: tuple[Shift, ...], offsets: dict[str, float | None]
) -> Iterator[Rescaling]:
    system = System(signs)
    sources = {
        places.captured.sources[node.name][1]: node
        for node in places.visits(v)
        if node.op == "placeholder" and places.captured.sources[node.name][0] in ("parameter", "buffer")
    }
    unknowns: dict[int, _Piece] = {}
    turns: dict[Node, Value] = {}
    for shift in shifts:
        name = places.captured.sources[shift.bias.name][1]
        if name in sources:
            turns[shift.product] = _unknowns(places, v, system, name, shift.bias, unknowns, shift.shift)
    phases = set(unknowns)
    given: dict[Node, Value] = {}
    for name in places.captured.state:
        if name in sources and offsets.get(name, 0.0) is not None:
            given[sources[name]] = _unknowns(places, v, system, name, sources[name], unknowns)
    last = max(unknowns, default=0)
    p = Pass(places, v, system, given)
    p.shifts = turns
    p.after = {node: hand_on for shift in shifts for node in shift.path}
    p.run()
    for phase in phases - p.turned:
        system.require({phase: 1})
    for solution in system.solutions(last):
        kind: Kind = "scale" if not signs else "phase" if any(solution.get(k) for k in phases) else "sign"
        if terms := tuple(_terms(places, v, solution, unknowns, phases, {} if signs else offsets)):
            yield Rescaling(kind, places.names[v], terms)


def _unknowns(
    places: Places, v: Var, system: System, name: str, node: Node, unknowns: dict[int, _Piece], shift: float = 0.0
) -> Value:
    """One unknown for each piece of each axis that the class stands on."""
    axes, symmetry = places.parameters[name], places.names[v]
    found: Value = {}
    if not node.meta["val"].is_floating_point() or not places.clear(node, v):
        return found
    for dim, axis in enumerate(axes):
        array = torch.zeros(axis.size, dtype=torch.int64)
        for number, (offset, digits) in enumerate(axis.pieces):
            count = sum(digit.symmetry == symmetry for digit in digits)
            if count == 1:
                unknown = system.unknown()
                unknowns[unknown] = _Piece(name, dim, number, shift)
                array.as_strided([d.size for d in digits], [d.stride for d in digits], offset).fill_(unknown)
        if bool(array.any()):
            found[dim] = compact(array.reshape([-1 if d == dim else 1 for d in range(len(axes))]))
    return found


def _terms(
    places: Places,
    v: Var,
    solution: Row,
    unknowns: dict[int, _Piece],
    phases: set[int],
    offsets: dict[str, float | None],
) -> Iterator[Term]:
    """Terms by parameter (with all its names) and axis; pieces with the same exponent share one."""
    grouped: dict[tuple[str, int, float, float], list[int]] = {}
    turned = {(u.parameter, u.dim, u.piece): u.shift for k, u in unknowns.items() if k in phases and solution.get(k)}
    for k, (parameter, dim, piece, _) in unknowns.items():
        exponent = float(solution.get(k, 0))
        shift = turned.get((parameter, dim, piece), 0.0)
        if k not in phases and (exponent or shift):
            grouped.setdefault((parameter, dim, exponent, shift), []).append(piece)
    for (parameter, dim, exponent, shift), pieces in grouped.items():
        axis, symmetry = places.parameters[parameter][dim], places.names[v]
        held = [k for k, piece in enumerate(axis.pieces) if any(d.symmetry == symmetry for d in piece.digits)]
        chosen = () if pieces == held else tuple(pieces)
        names = [parameter, *(alias for alias, first in places.captured.tied.items() if first == parameter)]
        for name in names:
            yield Term(name, dim, exponent, offsets.get(parameter) or 0.0, shift, chosen)


def _offsets(captured: Captured) -> dict[str, float | None]:
    """Running variances, with the small number that is added to each before the root is taken; None for those that are used
    in another way too, or with two such numbers."""
    found: dict[str, set[float | None]] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function" and rule_name(node.target) in BATCH_NORMS:
            arguments = (
                dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
            )
            variance = arguments.get("running_var")
            if isinstance(variance, Node) and variance.op == "placeholder":
                uses = found.setdefault(captured.sources[variance.name][1], set())
                uses.add(float(arguments["eps"]))
                if any(_reads_otherwise(user, variance) for user in variance.users):
                    uses.add(None)
    return {name: uses.pop() if len(uses) == 1 else None for name, uses in found.items()}


def _reads_otherwise(user: Node, variance: Node) -> bool:
    names = [a.name for a in user.target._schema.arguments] if hasattr(user.target, "_schema") else []
    given = [name for name, value in zip(names, user.args, strict=False) if value is variance]
    given += [name for name, value in user.kwargs.items() if value is variance]
    return rule_name(user.target) not in BATCH_NORMS or given != ["running_var"]
