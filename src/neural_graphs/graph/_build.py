"""From a captured module and its symmetries to a neural graph: node sets, blocks, and where every tensor stands in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._capture import Captured
from neural_graphs.graph._graph import NeuralGraph
from neural_graphs.graph._neurons import Join, Ledger, Placement, Reader, Sets, join_queries_and_keys, make_sets
from neural_graphs.graph._neurons._labels import NOBODY
from neural_graphs.graph._structure import Block, GraphSpec, NodeSet, Role

if TYPE_CHECKING:
    from neural_graphs.graph._propagate import Propagation


@dataclass(frozen=True, eq=False)
class Response:
    """Where a traced module holds the responses of a node set: ``axis`` of the value of node ``node`` of the captured
    graph (None: it has one neuron, and no axis), of which the neurons are ``positions`` (None: all)."""

    node: str
    axis: int | None
    positions: tuple[int, ...] | None = None


def build(captured: Captured, propagation: Propagation) -> tuple[NeuralGraph, dict[int, Response]]:
    """The neural graph of a captured module (one network, weights by reference), and where its node sets respond.

    Every floating-point tensor of the state dict is in exactly one place in blocks and node features; further uses of a
    shared one are copies. Node sets of which the module keeps no responses are missing from the second result.
    """
    weights = {
        name: axes
        for name, axes in propagation.spec.axes
        if name not in captured.tied and captured.state[name].is_floating_point()
    }
    ledger = Ledger(weights, dict(propagation.spec.over))
    Reader(captured, ledger).read()
    sets = make_sets(ledger)
    join_queries_and_keys(ledger, sets)
    placement = Placement(ledger, sets)
    for use in ledger.uses:
        placement.place(use)
    for name in weights:
        placement.complete(name)
    for name, target in ledger.strays:
        for source in placement.homes(name):
            placement.join(Join(source.ids, target, "other", aligned=False))
    for join in ledger.joins:
        placement.join(join)
    spec, order = _structure(captured, placement, propagation)
    state = {name: value.unsqueeze(0) for name, value in captured.state.items() if name not in captured.tied}
    return NeuralGraph.pack(spec, state), _responses(ledger, sets, order)


def _structure(captured: Captured, placement: Placement, propagation: Propagation) -> tuple[GraphSpec, list[int]]:
    """The structure, and the draft behind each of its node sets."""
    ledger, sets = placement.ledger, placement.sets
    drafts = sets.drafts
    used = {end for block in placement.blocks for end in (block.source, block.target)} | set(placement.features)
    outputs = {number for ids in ledger.outputs for number in sets.among(ids)}
    order = sorted(
        (number for number, draft in enumerate(drafts) if number in used and draft.kind != "gone"),
        key=lambda number: drafts[number].rank,
    )
    if not outputs & set(order):
        layers = [number for number in order if drafts[number].kind == "layer"]
        outputs = set(layers[-1:])
    depths = _depths(placement.blocks, order)
    activations: dict[int, Activation] = {}
    for ids, activation, _ in ledger.activations:
        for number in sets.among(ids[ids != NOBODY]):
            activations.setdefault(number, activation)
    names: dict[str, int] = {}
    node_sets = []
    for number in order:
        draft = drafts[number]
        role: Role = "input" if draft.kind == "input" else "output" if number in outputs else "hidden"
        node_sets.append(
            NodeSet(
                _unique(_name(draft.names), names),
                draft.size,
                role,
                depths[number],
                activations.get(number, Activation()),
                tuple(placement.features[number]),
                draft.axis,
            )
        )
    new = {number: place for place, number in enumerate(order)}
    blocks = tuple(replace(block, source=new[block.source], target=new[block.target]) for block in placement.blocks)
    rest = tuple(
        (name, tuple(value.shape))
        for name, value in captured.state.items()
        if name not in ledger.parameters and name not in captured.tied
    )
    tied = tuple(captured.tied.items())
    return GraphSpec(tuple(node_sets), blocks, propagation.spec, rest, tied), order


def _depths(blocks: Sequence[Block], order: Sequence[int]) -> dict[int, int]:
    """The longest way from the inputs, in layers; blocks without parameters do not count, cycles are cut."""
    incoming: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for block in blocks:
        if block.source != block.target and block.kind != "recurrent":
            incoming[block.target].append((block.source, int(block.parameter is not None)))
    depths: dict[int, int] = {}
    for start in order:
        stack: list[tuple[int, bool]] = [(start, False)]
        open_: set[int] = set()
        while stack:
            number, ready = stack.pop()
            if ready:
                known = [(depths[s] + step) for s, step in incoming[number] if s in depths]
                depths[number] = max(known, default=0)
                open_.discard(number)
            elif number not in depths and number not in open_:
                open_.add(number)
                stack.append((number, True))
                stack += [(s, False) for s, _ in incoming[number] if s not in depths and s not in open_]
    return depths


def _name(names: Sequence[str]) -> str:
    """One name for what was put together: ``attn.q_proj`` and ``attn.k_proj`` are ``attn.q_proj+k_proj``."""
    names = list(dict.fromkeys(names))
    first = names[0].rpartition(".")[0]
    return "+".join([names[0], *(name.removeprefix(f"{first}.") if first else name for name in names[1:])])


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else _unique(f"{name}#{taken[name]}", taken)


def _responses(ledger: Ledger, sets: Sets, order: Sequence[int]) -> dict[int, Response]:
    found: dict[int, Response] = {}
    for place, number in enumerate(order):
        draft = sets.drafts[number]
        where = draft.site.response if draft.site is not None else None
        positions = tuple(draft.stretch.positions.tolist()) if draft.stretch is not None else None
        for ids, _, response in ledger.activations:
            among = torch.isin(ids, draft.ids).nonzero().flatten() if response is not None else ids[:0]
            if torch.equal(ids[among], draft.ids) and len(among):
                where, positions = response, None if len(among) == len(ids) else tuple(among.tolist())
                break
        if where is not None:
            found[place] = Response(where[0], where[1] if where[1] >= 0 else None, positions)
    return found
