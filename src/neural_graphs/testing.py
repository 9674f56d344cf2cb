"""Hold your own models to their symmetries: random networks, and assertions of invariance and equivariance.

    from neural_graphs.testing import assert_invariant, random_graph, random_stack
    assert_invariant(model, random_graph(random_stack(seed=0), batch=4))

Every assertion permutes each network of the batch by its own random group element, compares what the model says before
and after, and has a negative control, so that it cannot pass because the model looks at nothing. Errors are the largest
absolute difference relative to the largest absolute value; the tolerance is ``TOLERANCE[dtype]``: 1e-10 in float64, where
only a wrong model fails, and 2e-5 in float32, where the order of summation shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Block, GraphBatch, GraphSpec, Layer, NeuralGraph, PermutationSpec, Stack
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._spec import Element
from neural_graphs.nn import Encoding

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}

Networks = NeuralGraph | GraphBatch | Sequence[NeuralGraph]
Kind = Literal["mlp", "siren", "cnn"]

_HIDDEN = ("relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu")


# -- random networks ----------------------------------------------------------------------------------------------------


def random_stack(seed: int = 0, kind: Kind | None = None) -> Stack:
    """A small random architecture: 1 to 4 hidden layers of 2 to 8 neurons, any activations, with or without biases.

    ``kind`` is ``"mlp"``, ``"siren"`` or ``"cnn"`` (1 to 3 convolutions, pooled globally or flattened, then a linear
    layer); None draws one of them. The same seed gives the same stack.
    """
    rng = random.Random(f"{seed}-{kind}")
    kind = kind or rng.choice(("mlp", "siren", "cnn"))
    bias = rng.random() < 0.8
    if kind == "cnn":
        return _random_cnn(rng, bias)
    hidden = [rng.randint(2, 8) for _ in range(rng.randint(1, 4))]
    widths = (rng.randint(1, 3), *hidden, rng.randint(1, 4))
    if kind == "siren":
        return Stack.mlp(widths, f"sine:{rng.choice((1, 10, 30))}", shift=0.5, bias=bias)
    return Stack.mlp(widths, [rng.choice(_HIDDEN) for _ in hidden], prefix="layers.{}", bias=bias)


def _random_cnn(rng: random.Random, bias: bool) -> Stack:
    channels = [rng.randint(1, 3)] + [rng.randint(2, 6) for _ in range(rng.randint(1, 3))]
    side = 4 * rng.choice((1, 2))
    layers = []
    flatten = rng.random() < 0.5
    for index, (before, after) in enumerate(pairwise(channels)):
        kernel = rng.choice((1, 3))
        last = index == len(channels) - 2
        pool = "" if last and flatten else "global" if last else rng.choice(("", "max:2")) if side > 2 else ""
        side = side // 2 if pool == "max:2" else side
        activation = Activation.parse(rng.choice(_HIDDEN))
        size = (kernel, kernel)
        layers.append(Layer(f"conv{index}", before, after, size, 1, bias, activation, padding=kernel // 2, pool=pool))
    layers.append(Layer("head", channels[-1], rng.randint(1, 4), (), side * side if flatten else 1, bias))
    return Stack(tuple(layers))


def random_graph(stack: Stack, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> NeuralGraph:
    """``batch`` networks of this architecture with random weights and biases, uniform at the usual initial scale."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for index, layer in enumerate(stack.layers):
        scale = (3 / layer.fan_in) ** 0.5 / (layer.activation.omega if index else 1.0)
        shapes = {layer.weight: layer.weight_shape}
        if layer.bias_name:
            shapes[layer.bias_name] = (layer.outputs,)
        for name, shape in shapes.items():
            value = torch.rand(batch, *shape, generator=generator, dtype=torch.float64) * 2 - 1
            state[name] = (value * scale).to(dtype)
    return NeuralGraph.from_state_dict(state, stack=stack, batched=True)


def random_inputs(stack: Stack, count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Inputs for networks of this architecture, ``[count, d]`` or ``[count, c, h, w]``, uniform in [-1, 1]."""
    shape: tuple[int, ...] = (count, stack.layers[0].inputs)
    if stack.layers[0].kernel:
        positions = max(layer.positions for layer in stack.layers)
        side = round(positions**0.5) if positions > 1 else 4
        for layer in stack.layers:
            side *= 2 if layer.pool == "max:2" else 1
        shape += (side, side)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 - 1


# -- assertions -----------------------------------------------------------------------------------------------------------


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
            moved = NeuralGraph.pack(bucket.spec, state, bucket.stack)
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
