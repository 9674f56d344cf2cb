"""Assertions that a model of networks is invariant or equivariant to their symmetries: permutation, scale, sign, phase."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

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
    kinds: Collection[str] = ("permutation",),
    spread: float = 4.0,
) -> float:
    """Permuting (or rescaling) the neurons of every network leaves ``model(graph)`` as it is.

    ``kinds`` and ``spread`` say which elements of the group are drawn, as in ``PermutationSpec.sample``. ``model`` maps a
    batch to a tensor ``[B, ...]`` (or an ``Encoding`` with a ``vector``); modules run in evaluation mode and without
    gradients. The negative control ``"group"`` moves all tensors but one, which makes other networks, and demands that the
    model notices; ``"networks"`` demands only that it tells the batch's networks apart, for models that are invariant to
    more than the group (statistics of weights). Returns the largest relative error; raises ``AssertionError`` with what was
    found, ``UserError`` when no network has a neuron that could move.
    """
    batch, tolerance = _prepare(graph, tolerance, kinds)
    generator = torch.Generator().manual_seed(seed)
    error, noticed = 0.0, 0.0
    with _evaluating(model):
        before = _vector(model(batch))
        size = float(before.abs().max())
        if control == "networks":
            noticed = float((before - before[:1]).abs().max()) / max(size, 1e-300)
        for sample in range(samples):
            elements = _draw(batch, generator, kinds, spread)
            error = max(error, _relative(_vector(model(_permute(batch, elements))), before))
            if control == "group":
                wrong = _permute(batch, elements, leave=sample)
                noticed = max(noticed, _relative(_vector(model(wrong)), before))
    assert error <= tolerance, (
        f"not invariant: {_doing(kinds)} neurons changes the output by {error:.1e} (tolerance {tolerance:.0e})"
    )
    what = f"a wrong {' and '.join(kinds)}" if control == "group" else "another network"
    assert noticed > tolerance, f"this proves nothing: {what} changes the output by only {noticed:.1e}"
    return error


def assert_equivariant(
    model: Callable[[GraphBatch], Any],
    graph: Networks,
    *,
    samples: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
    kinds: Collection[str] = ("permutation",),
    spread: float = 4.0,
    values: Literal["changes", "networks"] = "changes",
) -> float:
    """Whatever ``model`` says of neurons and parameters moves with them when they are permuted (or rescaled).

    ``model`` is an encoder (its ``Encoding``'s nodes and edges are compared), or an encoder and head that give a
    ``NeuralGraph`` or a stacked state dict (one value per parameter; a single architecture then). ``values`` says what
    these are: changes to be added to the parameters, to which the linear part of the group acts, or other networks of the
    same kind. The two differ for phases, which add half a period to a bias, but not to its change.

    ``kinds`` and ``spread`` are those of ``PermutationSpec.sample``. Embeddings that are ``rescaled`` (see ``Encoding``)
    must be multiplied by the factor of their neuron, edges by that of the receiver over that of the sender; a phase turns
    what goes out of a neuron, so it multiplies the edges of its outgoing weights, and no node. Values are compared after
    division by the factor, so that errors are relative to what a neuron had before. The negative control demands that
    something does move: values that are the same for all neurons of a layer prove nothing. Returns and raises as
    ``assert_invariant``.
    """
    batch, tolerance = _prepare(graph, tolerance, kinds)
    generator = torch.Generator().manual_seed(seed)
    error, moved = 0.0, 0.0
    with _evaluating(model):
        before = model(batch)
        for _ in range(samples):
            elements = _draw(batch, generator, kinds, spread)
            after = _parts(model(_permute(batch, elements)), batch, None, values)
            expected = _parts(before, batch, elements, values)
            assert len(after) == len(expected) > 0, "the model gives no embedding of neurons or parameters"
            for found, right, still in zip(after, expected, _parts(before, batch, None, values), strict=True):
                back = found.value if right.factor is None else found.value / right.factor
                difference = _relative(back, right.value)
                assert difference <= tolerance, (
                    f"not equivariant: {found.name} differs by {difference:.1e} from what the "
                    f"{' and '.join(kinds)} says (tolerance {tolerance:.0e})"
                )
                shown = right.value if right.factor is None else right.value * right.factor
                error, moved = max(error, difference), max(moved, _relative(shown, still.value))
    assert moved > tolerance, f"this proves nothing: {_doing(kinds)} moves the values by only {moved:.1e}"
    return error


# -- parts ----------------------------------------------------------------------------------------------------------------


def _doing(kinds: Collection[str]) -> str:
    words = (["permuting"] if "permutation" in kinds else []) + (["rescaling"] if set(kinds) - {"permutation"} else [])
    return " and ".join(words)


def _prepare(
    graph: Networks, tolerance: float | None, kinds: Collection[str] = ("permutation",)
) -> tuple[GraphBatch, float]:
    batch = GraphBatch.of(graph)
    symmetries = [bucket.symmetries for bucket in batch.buckets]
    permuted = "permutation" in kinds and any(size > 1 for spec in symmetries for size in spec.classes.values())
    if not permuted and not any(rescaling.kind in kinds for spec in symmetries for rescaling in spec.rescalings):
        named = ", ".join(kinds)
        raise UserError(
            f"these networks have no symmetry to test ({named}): give one with a hidden layer of two or more neurons"
        )
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


def _draw(
    batch: GraphBatch, generator: torch.Generator, kinds: Collection[str] = ("permutation",), spread: float = 4.0
) -> list[Element]:
    return [bucket.symmetries.sample(generator, bucket.batch_size, kinds, spread) for bucket in batch.buckets]


def _permute(batch: GraphBatch, elements: Sequence[Element], leave: int | None = None) -> GraphBatch:
    """The permuted batch; with ``leave`` the moved weight that many from the last stays as it was, which is wrong."""
    buckets = []
    for bucket, element in zip(batch.buckets, elements, strict=True):
        moved = bucket.permute(element)
        if leave is not None:
            state = {k: v for k, v in moved.to_state_dict(batched=True).items() if k not in bucket.spec.canonical}
            before = bucket.to_state_dict(batched=True)
            weights = [name for name, axes in bucket.symmetries.axes if len(axes) > 1 and name in state]
            movable = [name for name in weights if not torch.equal(state[name], before[name])]
            if movable:
                name = movable[-1 - leave % len(movable)]
                moved = bucket.like({**state, name: before[name]}, batched=True)
        buckets.append(moved)
    return GraphBatch(tuple(buckets), batch.index)


def _vector(found: Any) -> Tensor:
    value = found.vector if isinstance(found, Encoding) else found
    if not isinstance(value, Tensor):
        raise UserError("assert_invariant needs one tensor per batch: put a head on the encoder")
    return value


class Part(NamedTuple):
    """One tensor of an answer, permuted, and the factor (if any) with which its entries must have been multiplied."""

    name: str
    value: Tensor
    factor: Tensor | None = None


def _parts(found: Any, batch: GraphBatch, elements: Sequence[Element] | None, values: str) -> list[Part]:
    """The tensors of an answer, moved by ``elements`` where given."""
    if isinstance(found, NeuralGraph):
        found = found.to_state_dict(batched=True)
    if isinstance(found, Mapping):
        return _parameters(dict(found), batch.buckets[0], elements[0] if elements else None, values)
    if not isinstance(found, Encoding):
        raise UserError(f"assert_equivariant cannot read a {type(found).__name__}: give an Encoding or a NeuralGraph")
    parts = []
    for k, bucket in enumerate(batch.buckets):
        spec, element = bucket.spec, elements[k] if elements else None
        # kind -> factor of every neuron of every node set, [B, n]
        scale = [_factors(bucket, element, s, ("scale", "sign")) for s in range(len(spec.node_sets))]
        phase = [_factors(bucket, element, s, ("phase",)) for s in range(len(spec.node_sets))]
        for s, nodes in enumerate(found.nodes[k] if found.nodes else ()):
            if nodes is not None:
                factor = scale[s].unsqueeze(-1).to(nodes) if found.rescaled else None
                parts.append(Part(f"node set {s} of architecture {k}", _move_nodes(nodes, spec, element, s), factor))
        for d, edges in enumerate(found.edges[k] if found.edges else ()):
            if edges is not None:
                block = spec.blocks[d % len(spec.blocks)]
                factor = None
                if found.rescaled:
                    source = _spread_sources(scale[block.source], block, edges)
                    ratio = scale[block.target].unsqueeze(-1) / source
                    ratio = ratio if d < len(spec.blocks) else 1 / ratio
                    ratio = ratio * _spread_sources(phase[block.source], block, edges)
                    factor = ratio.unsqueeze(-1).to(edges)
                parts.append(Part(f"edges {d} of architecture {k}", _move_edges(edges, spec, element, block), factor))
    return parts


def _parameters(state: dict[str, Tensor], graph: NeuralGraph, element: Element | None, values: str) -> list[Part]:
    """One value per parameter. A change is divided by its factor; another network is compared as it is."""
    if element is None:
        return [Part(name, value) for name, value in state.items()]
    if values == "networks":
        return [Part(*item) for item in graph.symmetries.apply(state, element, batched=True).items()]
    linear = replace(
        graph.symmetries,
        rescalings=tuple(
            replace(r, terms=tuple(replace(term, offset=0.0, shift=0.0) for term in r.terms))
            for r in graph.symmetries.rescalings
        ),
    )
    permuted = graph.symmetries.apply(state, {c: element[c] for c in element if c in linear.classes}, batched=True)
    rescaled = {c: element[c] for c in element if c not in linear.classes}
    ones = {name: torch.ones_like(value) for name, value in state.items()}
    factors = linear.apply(ones, rescaled, batched=True)
    return [Part(name, value, factors[name] if rescaled else None) for name, value in permuted.items()]


def _factors(graph: NeuralGraph, element: Element | None, node_set: int, kinds: Collection[str]) -> Tensor:
    """The product of the factors of these kinds of each neuron of a node set, ``[B, n]``; 1 where it has none."""
    nodes = graph.spec.node_sets[node_set]
    found = torch.ones(graph.batch_size, nodes.size, dtype=torch.float64)
    for number, rescaling in enumerate(graph.symmetries.rescalings):
        key = f"{rescaling.kind}:{number}"
        if element is not None and key in element and rescaling.kind in kinds and rescaling.symmetry == nodes.symmetry:
            found = found * element[key]
    return found


def _spread_sources(factor: Tensor, block: Block, edges: Tensor) -> Tensor:
    """``[B, n_source]`` -> ``[B, n_out, n_in / groups]``."""
    by_group = factor.unflatten(1, (block.groups, edges.shape[2]))
    return by_group.repeat_interleave(edges.shape[1] // block.groups, 1)


def _neurons(spec: GraphSpec, element: Element, node_set: int, batch: int) -> Tensor:
    """Where each neuron of a node set comes from, ``[B, n]``."""
    axis, over = spec.node_sets[node_set].axis, spec.symmetries.over
    classes = dict(axis.classes)
    action = PermutationSpec((("neurons", (axis,)),), over=tuple(entry for entry in over if entry[0] in classes))
    still = {"neurons": torch.arange(axis.size).expand(batch, -1)}
    moves = {name: element[name] for name in classes if name in element}
    return action.apply(still, moves, batched=True)["neurons"]


def _move_nodes(x: Tensor, spec: GraphSpec, element: Element | None, node_set: int) -> Tensor:
    if element is None:
        return x
    return x.take_along_dim(_neurons(spec, element, node_set, len(x)).unsqueeze(-1), 1)


def _move_edges(x: Tensor, spec: GraphSpec, element: Element | None, block: Block) -> Tensor:
    """Edges ``[B, n_out, n_in / groups, F]``: a target's sources are numbered within its group."""
    if element is None:
        return x
    target, source = (_neurons(spec, element, s, len(x)) for s in (block.target, block.source))
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
