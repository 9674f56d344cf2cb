"""Assertions that a model of networks is invariant or equivariant to the permutations of their neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphBatch, GraphSpec, NeuralGraph, PermutationSpec
from neural_graphs.graph._spec import Element
from neural_graphs.nn import Encoding

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}

Networks = NeuralGraph | GraphBatch | Sequence[NeuralGraph]


def assert_invariant(
    model: Callable[[GraphBatch], Any],
    graph: Networks,
    *,
    samples: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
    control: Literal["group", "networks"] = "group",
) -> float:
    """Permuting the neurons of every network leaves ``model(graph)`` as it is.

    ``model`` maps a batch to a tensor ``[B, ...]`` (or an ``Encoding`` with a ``vector``); modules run in evaluation mode
    and without gradients. The negative control ``"group"`` permutes all tensors but one, which makes other networks, and
    demands that the model notices; ``"networks"`` demands only that it tells the batch's networks apart, for models that
    are invariant to more than the group (statistics of weights). Returns the largest relative error; raises
    ``AssertionError`` with what was found, ``UserError`` when no network has a neuron that could move.
    """
    batch, tolerance = _prepare(graph, tolerance)
    generator = torch.Generator().manual_seed(seed)
    error, noticed = 0.0, 0.0
    with _evaluating(model):
        before = _vector(model(batch))
        size = float(before.abs().max())
        if control == "networks":
            noticed = float((before - before[:1]).abs().max()) / max(size, 1e-300)
        for sample in range(samples):
            elements = _draw(batch, generator)
            error = max(error, _relative(_vector(model(_permute(batch, elements))), before))
            if control == "group":
                wrong = _permute(batch, elements, leave=sample)
                noticed = max(noticed, _relative(_vector(model(wrong)), before))
    assert error <= tolerance, (
        f"not invariant: permuting neurons changes the output by {error:.1e} (tolerance {tolerance:.0e})"
    )
    what = "a wrong permutation" if control == "group" else "another network"
    assert noticed > tolerance, f"this proves nothing: {what} changes the output by only {noticed:.1e}"
    return error


def assert_equivariant(
    model: Callable[[GraphBatch], Any],
    graph: Networks,
    *,
    samples: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
) -> float:
    """Whatever ``model`` says of neurons and parameters moves with them when they are permuted.

    ``model`` is an encoder (its ``Encoding``'s nodes and edges are compared), or an encoder and head that give a
    ``NeuralGraph`` or a stacked state dict (one value, such as a change, per parameter; a single architecture then). The
    negative control demands that something does move: values that are the same for all neurons of a layer prove nothing.
    Returns and raises as ``assert_invariant``.
    """
    batch, tolerance = _prepare(graph, tolerance)
    generator = torch.Generator().manual_seed(seed)
    error, moved = 0.0, 0.0
    with _evaluating(model):
        before = model(batch)
        for _ in range(samples):
            elements = _draw(batch, generator)
            after = _parts(model(_permute(batch, elements)), batch)
            expected = _parts(before, batch, elements)
            assert len(after) == len(expected) > 0, "the model gives no embedding of neurons or parameters"
            for (name, found), (_, right), (_, still) in zip(after, expected, _parts(before, batch), strict=True):
                difference = _relative(found, right)
                assert difference <= tolerance, (
                    f"not equivariant: {name} differs by {difference:.1e} from what the permutation says "
                    f"(tolerance {tolerance:.0e})"
                )
                error, moved = max(error, difference), max(moved, _relative(right, still))
    assert moved > tolerance, f"this proves nothing: permuting moves the values by only {moved:.1e}"
    return error


# -- parts ----------------------------------------------------------------------------------------------------------------


def _prepare(graph: Networks, tolerance: float | None) -> tuple[GraphBatch, float]:
    batch = GraphBatch.of(graph)
    if all(size < 2 for bucket in batch.buckets for size in bucket.symmetries.classes.values()):
        raise UserError("these networks have no symmetry to test: give one with a hidden layer of two or more neurons")
    return batch, TOLERANCE[batch.buckets[0].dtype] if tolerance is None else tolerance


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _draw(batch: GraphBatch, generator: torch.Generator) -> list[Element]:
    return [bucket.symmetries.sample(generator, bucket.batch_size) for bucket in batch.buckets]


def _permute(batch: GraphBatch, elements: Sequence[Element], leave: int | None = None) -> GraphBatch:
    """The permuted batch; with ``leave`` the weight that many from the last stays as it was, which is wrong."""
    buckets = []
    for bucket, element in zip(batch.buckets, elements, strict=True):
        moved = bucket.permute(element)
        if leave is not None:
            movable = [name for name, axes in bucket.symmetries.axes if len(axes) > 1 and any(a.moves for a in axes)]
            movable = [name for name in movable if name not in bucket.spec.canonical]
            state = {k: v for k, v in moved.to_state_dict(batched=True).items() if k not in bucket.spec.canonical}
            name = movable[-1 - leave % len(movable)]
            state[name] = bucket.to_state_dict(batched=True)[name]
            moved = bucket.like(state, batched=True)
        buckets.append(moved)
    return GraphBatch(tuple(buckets), batch.index)


def _vector(found: Any) -> Tensor:
    value = found.vector if isinstance(found, Encoding) else found
    if not isinstance(value, Tensor):
        raise UserError("assert_invariant needs one tensor per batch: put a head on the encoder")
    return value


def _parts(found: Any, batch: GraphBatch, elements: Sequence[Element] | None = None) -> list[tuple[str, Tensor]]:
    """Named tensors of an answer, moved by ``elements`` where given."""
    if isinstance(found, NeuralGraph):
        found = found.to_state_dict(batched=True)
    if isinstance(found, Mapping):
        state = dict(found)
        return list(
            (batch.buckets[0].symmetries.apply(state, elements[0], batched=True) if elements else state).items()
        )
    if not isinstance(found, Encoding):
        raise UserError(f"assert_equivariant cannot read a {type(found).__name__}: give an Encoding or a NeuralGraph")
    parts = []
    for k, bucket in enumerate(batch.buckets):
        element = elements[k] if elements else None
        for s, nodes in enumerate(found.nodes[k] if found.nodes else ()):
            if nodes is not None:
                parts.append((f"node set {s} of architecture {k}", _move_nodes(nodes, bucket.spec, element, s)))
        for d, edges in enumerate(found.edges[k] if found.edges else ()):
            if edges is not None:
                block = bucket.spec.blocks[d % len(bucket.spec.blocks)]
                parts.append((f"edges {d} of architecture {k}", _move_edges(edges, bucket.spec, element, block)))
    return parts


def _neurons(spec: GraphSpec, element: Element, node_set: int) -> Tensor:
    """Where each neuron of a node set comes from, ``[B, n]``."""
    axis, over = spec.node_sets[node_set].axis, spec.symmetries.over
    classes = dict(axis.classes)
    action = PermutationSpec((("neurons", (axis,)),), over=tuple(entry for entry in over if entry[0] in classes))
    batch = next(iter(element.values())).shape[0]
    still = {"neurons": torch.arange(axis.size).expand(batch, -1)}
    return action.apply(still, {name: element[name] for name in classes}, batched=True)["neurons"]


def _move_nodes(x: Tensor, spec: GraphSpec, element: Element | None, node_set: int) -> Tensor:
    if element is None:
        return x
    return x.take_along_dim(_neurons(spec, element, node_set).unsqueeze(-1), 1)


def _move_edges(x: Tensor, spec: GraphSpec, element: Element | None, block: Block) -> Tensor:
    """Edges ``[B, n_out, n_in / groups, F]``: a target's sources are numbered within its group."""
    if element is None:
        return x
    target, source = (_neurons(spec, element, s) for s in (block.target, block.source))
    each = x.shape[2]
    inner = (source % each).unflatten(1, (block.groups, each))  # sources of one group come from one group
    inner = inner.repeat_interleave(x.shape[1] // block.groups, 1)
    x = x.take_along_dim(target[:, :, None, None], 1)
    return x.take_along_dim(inner.unsqueeze(-1), 2)


def _relative(found: Tensor, right: Tensor) -> float:
    assert found.shape == right.shape, f"the shape changes from {tuple(right.shape)} to {tuple(found.shape)}"
    if not right.numel():
        return 0.0
    difference = (found - right).abs().max() / right.abs().max().clamp_min(
        1e-300 if right.dtype == torch.float64 else 1e-30
    )
    return float("inf") if difference.isnan() else float(difference)
