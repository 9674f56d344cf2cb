"""State dicts into node and edge tensors and back, exactly and by reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._layout import Layout
from neural_graphs.graph._structure import GraphSpec, NodeFeature

Narrow = tuple[tuple[str, torch.dtype], ...]
"""Node features whose own dtype is narrower than that of the tensor of their node set."""


def check_state_dict(
    spec: GraphSpec, state_dict: Mapping[str, Any], *, strict: bool = True, batched: bool = False
) -> None:
    """Whether ``state_dict`` holds the tensors of ``spec``; raises ``UserError`` naming the first one that is wrong.

    Refuses missing tensors (of a tied group one name is enough), wrong shapes, entries that are no dense tensors, weights
    that are not floating point, tied names that hold different values, and, when ``strict``, names that the network does
    not have. Dtypes may differ between tensors. With ``batched`` each tensor has a leading network axis.
    """
    for name, shape in spec.shapes.items():
        if name not in state_dict:
            if _find(spec, state_dict, name) is None:
                raise UserError(f"the network has no tensor {name}: its tensors are {_some(list(state_dict))}")
            continue
        value = state_dict[name]
        if not isinstance(value, Tensor):
            raise UserError(f"{name} is no tensor but a {type(value).__name__}: give a state dict")
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{name} is a sparse or quantised tensor: only dense ones are read")
        found = tuple(value.shape[1:] if batched else value.shape)
        if found != shape or value.dim() < int(batched):
            raise UserError(f"{name} has shape {found}, expected {shape}")
        if not value.is_floating_point() and spec.canonical.get(name, name) in spec.places:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{name} holds {kind} values, but weights must be floating point")
        canonical = spec.canonical.get(name)
        if canonical is not None and canonical in state_dict and not _equal(value, state_dict[canonical]):
            raise UserError(f"{name} and {canonical} are one tensor in this network, but their values differ")
    if strict and (extra := [name for name in state_dict if name not in spec.shapes]):
        raise UserError(f"{extra[0]} is no tensor of this network: its tensors are {_some(list(spec.shapes))}")


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


def _equal(first: Tensor, second: Any) -> bool:
    if not isinstance(second, Tensor) or first.shape != second.shape or first.dtype != second.dtype:
        return False
    if same_memory(first, second) or first.is_meta:
        return True
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _find(spec: GraphSpec, state_dict: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The tensor under its name or, tied, under any of its names."""
    name = spec.canonical.get(name, name)
    for key in (name, *(alias for alias, canonical in spec.tied if canonical == name)):
        if key in state_dict:
            return state_dict[key]
    return None


def same_memory(first: Tensor, second: Tensor) -> bool:
    """The two are views of the same entries in the same order."""
    return (
        first.untyped_storage()._cdata == second.untyped_storage()._cdata
        and first.storage_offset() == second.storage_offset()
        and first.shape == second.shape
        and all(a == b for n, a, b in zip(first.shape, first.stride(), second.stride(), strict=True) if n > 1)
    )


# -- in -------------------------------------------------------------------------------------------------------------------


def pack(
    spec: GraphSpec, state_dict: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], Narrow]:
    """Node, edge and rest tensors and narrow dtypes from checked tensors ``[B, *shape]``.

    Edges are views. So are the nodes of a set with one feature; those of a set with several are joined, in the widest of
    their dtypes.
    """

    def tensor(name: str) -> Tensor:
        value = _find(spec, state_dict, name)
        assert value is not None
        return value

    given = [tensor(name) for name in spec.shapes]
    if len({value.shape[0] for value in given}) > 1:
        raise UserError("the stacked tensors hold different numbers of networks")
    batch = given[0].shape[0] if given else 1
    weights = [tensor(name) for name in spec.places]
    like = weights[0] if weights else torch.zeros(0)

    edges = [
        like.new_zeros(batch, *spec.edge_shape(k))
        if block.parameter is None
        else read(spec, k, tensor(block.parameter))
        for k, block in enumerate(spec.blocks)
    ]
    nodes, narrow = [], []
    for node_set in spec.node_sets:
        columns = [read_feature(feature, tensor(feature.parameter)) for feature in node_set.features]
        if not columns:
            nodes.append(like.new_zeros(batch, node_set.size, 0))
            continue
        nodes.append(columns[0] if len(columns) == 1 else torch.cat(columns, -1))
        narrow += [
            (feature.parameter, value.dtype)
            for feature, value in zip(node_set.features, columns, strict=True)
            if value.dtype != nodes[-1].dtype and not feature.shared
        ]
    return tuple(nodes), tuple(edges), tuple(tensor(name) for name, _ in spec.rest), tuple(narrow)


def read_feature(feature: NodeFeature, value: Tensor) -> Tensor:
    """The columns ``[B, n, c]`` of a node feature in its parameter ``[B, *shape]``."""
    return value.unsqueeze(-1) if feature.layout is None else feature.layout.read(value).squeeze(2)


def read(spec: GraphSpec, index: int, value: Tensor) -> Tensor:
    """The edges of block number ``index`` in its parameter ``[B, *shape]``."""
    layout = spec.blocks[index].layout
    return value.reshape(value.shape[0], *spec.edge_shape(index)) if layout is None else layout.read(value)


def follow(
    spec: GraphSpec, nodes: Sequence[Tensor], edges: Sequence[Tensor], narrow: Mapping[str, torch.dtype]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Nodes and edges in which every further use of a shared parameter holds what its owner holds, as a view."""
    whole: dict[str, Tensor] = {}

    def tensor(name: str) -> Tensor:
        name = spec.canonical.get(name, name)
        if name not in whole:
            whole[name] = unpack(spec, name, nodes, edges, narrow)
        return whole[name]

    out_nodes, out_edges = list(nodes), list(edges)
    for k, block in enumerate(spec.blocks):
        if block.copy_of is not None and block.parameter is not None:
            out_edges[k] = read(spec, k, tensor(block.parameter))
    for s, node_set in enumerate(spec.node_sets):
        if any(feature.shared for feature in node_set.features):
            columns = nodes[s].split([feature.columns for feature in node_set.features], -1)
            columns = tuple(
                read_feature(feature, tensor(feature.parameter)) if feature.shared else own
                for feature, own in zip(node_set.features, columns, strict=True)
            )
            out_nodes[s] = columns[0] if len(columns) == 1 else torch.cat(columns, -1).to(nodes[s].dtype)
    return tuple(out_nodes), tuple(out_edges)


# -- out ------------------------------------------------------------------------------------------------------------------


def unpack(
    spec: GraphSpec, name: str, nodes: Sequence[Tensor], edges: Sequence[Tensor], narrow: Mapping[str, torch.dtype]
) -> Tensor:
    """The tensor ``name`` ``[B, *shape]`` again; a view of the graph's memory whenever its parts still lie there."""
    shape = spec.shapes[name]
    pieces: list[tuple[Layout | None, Tensor]] = []
    for place in spec.places[name]:
        held = edges[place.number] if place.where == "edges" else nodes[place.number][..., place.start : place.stop]
        if name in narrow:
            held = held.to(narrow[name])
        if place.where == "nodes" and place.layout is not None:
            held = held.unsqueeze(2)
        pieces.append((place.layout, held))
    layout, held = pieces[0]
    if layout is None:
        return held.reshape(held.shape[0], *shape)
    if not layout.part and not layout.pick:
        return layout.whole(held, shape)
    view = _shared(shape, pieces)
    return _joined(shape, pieces) if view is None else view


def _shared(shape: tuple[int, ...], pieces: Sequence[tuple[Layout | None, Tensor]]) -> Tensor | None:
    """The whole tensor as a view, if the pieces are still slices of one, as they are in a freshly packed graph."""
    if any(held.requires_grad for _, held in pieces):
        return None  # a view of the first piece's memory would carry the first piece's gradient only
    first, held = pieces[0]
    assert first is not None
    try:
        whole = first.surround(held, shape)
    except NotImplementedError:  # inside torch.func transforms no tensor shows its memory
        return None
    if whole is None:
        return None
    for layout, held in pieces:
        assert layout is not None
        if not same_memory(layout.read(whole), held):
            return None
    return whole


def _joined(shape: tuple[int, ...], pieces: Sequence[tuple[Layout | None, Tensor]]) -> Tensor:
    out = pieces[0][1].new_empty(pieces[0][1].shape[0], *shape)
    for layout, held in pieces:
        assert layout is not None
        layout.write(out, held)
    return out
