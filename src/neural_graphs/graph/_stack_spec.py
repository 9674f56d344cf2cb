"""The neural graph of a plain stack, read off its layers: what the tracer finds on its module, without recording it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from neural_graphs.graph._activation import Activation
from neural_graphs.graph._axis import Axis, Factor
from neural_graphs.graph._layout import Cut, Layout
from neural_graphs.graph._rescaling import Rescaling, Term
from neural_graphs.graph._spec import PermutationSpec
from neural_graphs.graph._stack import Layer, Stack
from neural_graphs.graph._structure import Block, BlockKind, GraphSpec, NodeFeature, NodeSet, Role


class Segment(NamedTuple):
    """Neurons ``start:stop`` of a layer, which form one node set, and their symmetry class (None: they stay)."""

    start: int
    stop: int
    symmetry: str | None

    @property
    def size(self) -> int:
        return self.stop - self.start


@lru_cache(maxsize=4096)
def spec_of_stack(stack: Stack) -> GraphSpec:
    """Node sets, blocks, symmetry classes and rescalings of a plain stack.

    A residual ties the channels that it adds to those that it adds them to: one permutation moves both. A layer of which
    only some channels are tied is several node sets, cut such that tied node sets meet whole and in order; they are joined
    by ``"identity"`` blocks, which have no parameter (Kofinas et al. 2024, section 2).
    """
    layers = stack.layers
    segments = segments_of_stack(stack)
    before = [Segment(0, layers[0].inputs, None)]
    sets = [NodeSet("input", layers[0].inputs, "input", 0)]
    first = [0]  # the number of the first node set of what each layer reads, and at last of the output
    blocks: list[Block] = []
    axes: list[tuple[str, tuple[Axis, ...]]] = []
    for depth, (layer, own) in enumerate(zip(layers, segments, strict=True), start=1):
        start = len(sets)
        role: Role = "hidden" if depth < len(layers) else "output"
        kind: BlockKind = "conv" if layer.kernel else "linear"
        features = layer.positions * math.prod(layer.kernel)
        for number, segment in enumerate(own):
            bias = (NodeFeature(layer.bias_name, layout=_bias_layout(layer, segment)),) if layer.bias_name else ()
            name = f"{layer.name}.{number}" if len(own) > 1 else layer.name
            axis = Axis.of(segment.symmetry, segment.size)
            sets.append(NodeSet(name, segment.size, role, depth, layer.activation, bias, axis))
            for other, source in enumerate(before):
                layout = _weight_layout(layer, segment, source)
                ends = first[-1] + other, start + number
                blocks.append(
                    Block(*ends, layer.weight, layer.weight_shape, layer.kernel, features, kind, layout=layout)
                )
        axis = _axis(own)
        axes.append((layer.weight, (axis, _axis(before, layer.positions), *(Axis.fixed(k) for k in layer.kernel))))
        if layer.bias_name:
            axes.append((layer.bias_name, (axis,)))
        before = own
        first.append(start)
    for number, layer in enumerate(layers):
        if layer.residual >= 0:
            shared = min(layer.outputs, layers[layer.residual].outputs)
            for place, segment in enumerate(segments[number]):
                if segment.start < shared:
                    ends = first[layer.residual + 1] + place, first[number + 1] + place
                    blocks.append(Block(*ends, None, features=0, kind="identity", groups=segment.size))
    members = _members(layers, segments)
    rescalings = [r for name, numbers in members.items() for r in _rescalings(name, numbers, layers, segments)]
    activations = tuple((name, _activation(numbers, layers)) for name, numbers in members.items())
    return GraphSpec(tuple(sets), tuple(blocks), PermutationSpec(tuple(axes), activations, (), tuple(rescalings)))


def segments_of_stack(stack: Stack) -> list[list[Segment]]:
    """The node sets of every layer. All residuals tie first channels to first channels, so equal positions are tied."""
    layers = stack.layers
    cuts = [{0, layer.outputs} for layer in layers]
    ties = [(layer.residual, k) for k, layer in enumerate(layers) if layer.residual >= 0]
    for r, k in ties:
        shared = min(layers[r].outputs, layers[k].outputs)
        cuts[r].add(shared)
        cuts[k].add(shared)
    changed = bool(ties)
    while changed:
        changed = False
        for r, k in ties:
            shared = min(layers[r].outputs, layers[k].outputs)
            both = {cut for cut in cuts[r] | cuts[k] if cut < shared}
            changed |= not both <= cuts[r] & cuts[k]
            cuts[r] |= both
            cuts[k] |= both
    owners: list[dict[int, int]] = [{} for _ in layers]  # layer -> start of a segment -> the layer that stands for it
    for k in range(len(layers)):
        owners[k] = dict.fromkeys(cuts[k], k)
    for _ in ties:  # each round hands the earliest layer one tie further
        for r, k in ties:
            for start in cuts[r] & cuts[k]:
                if start < min(layers[r].outputs, layers[k].outputs):
                    owners[r][start] = owners[k][start] = min(owners[r][start], owners[k][start])
    last = len(layers) - 1
    still = {(owners[last][start], start) for start in cuts[last]}
    names: dict[tuple[int, int], str] = {}
    found = []
    for k in range(len(layers)):
        ends = sorted(cuts[k])
        own = []
        for start, stop in itertools.pairwise(ends):
            key = owners[k][start], start
            symmetry = None if key in still else names.setdefault(key, f"P{len(names)}")
            own.append(Segment(start, stop, symmetry))
        found.append(own)
    return found


def _axis(segments: Sequence[Segment], positions: int = 1) -> Axis:
    """Segments side by side; neighbours that stay are one piece."""
    if len(segments) == 1:
        return Axis.of(segments[0].symmetry, segments[0].size, positions)
    parts: list[tuple[Factor, ...]] = []
    still = 0
    for segment in segments:
        if segment.symmetry is None:
            still += segment.size * positions
            continue
        if still:
            parts.append(((None, still),))
            still = 0
        parts += Axis.of(segment.symmetry, segment.size, positions).parts
    if still:
        parts.append(((None, still),))
    return Axis(tuple(parts))


def _bias_layout(layer: Layer, segment: Segment) -> Layout | None:
    if segment.size == layer.outputs:
        return None
    return _layout(((0, segment.start, segment.stop),), (segment.size,), 0)


def _weight_layout(layer: Layer, target: Segment, source: Segment) -> Layout | None:
    """Rows and columns of the weight; None where it is all of it."""
    cuts: list[Cut] = []
    if target.size != layer.outputs:
        cuts.append((0, target.start, target.stop))
    if source.size != layer.inputs:
        cuts.append((1, source.start * layer.positions, source.stop * layer.positions))
    if not cuts:
        return None
    return _layout(tuple(cuts), (target.size, source.size, layer.positions, *layer.kernel), 1)


def _layout(cuts: tuple[Cut, ...], sizes: tuple[int, ...], sources: int) -> Layout:
    """The first size is the target, the second the source if there are ``sources``; those of 1 are left out."""
    kept = [place for place, size in enumerate(sizes) if size > 1]
    target = tuple(number for number, place in enumerate(kept) if place == 0)
    source = tuple(number for number, place in enumerate(kept) if place == 1 and sources)
    return Layout(cuts, tuple(sizes[place] for place in kept), target, source)


def _members(layers: Sequence[Layer], segments: Sequence[Sequence[Segment]]) -> dict[str, list[int]]:
    """The layers in which each class stands, both in order."""
    found: dict[str, list[int]] = {}
    for number in range(len(layers)):
        for segment in segments[number]:
            if segment.symmetry:
                found.setdefault(segment.symmetry, []).append(number)
    return found


def _activation(numbers: Sequence[int], layers: Sequence[Layer]) -> Activation:
    """The first non-linearity behind a class."""
    kinds = [layers[number].activation for number in numbers]
    return next((kind for kind in kinds if kind.kind != "none"), kinds[0])


def _rescalings(
    symmetry: str, numbers: Sequence[int], layers: Sequence[Layer], segments: Sequence[Sequence[Segment]]
) -> list[Rescaling]:
    """What the units of one class allow beside permutations: those that the tracer finds, in its order.

    Tied layers must all hand the factor on, as they add each other's values. Averages over positions pass on every factor,
    a maximum positive ones only: max(-x) is not -max(x).
    """
    found = []
    members = [layers[number] for number in numbers]
    if all(layer.activation.scale for layer in members):
        found.append(Rescaling("scale", symmetry, _terms(numbers, layers, -1.0)))
    if all(layer.activation.sign and not layer.pool.startswith("max") for layer in members):
        only = members[0]
        alone = len(members) == 1  # else it would need the signs of other layers
        if alone and only.activation.phase and only.activation.omega and only.bias_name:
            shift = Term(only.bias_name, 0, shift=math.pi / abs(only.activation.omega))
            found.append(Rescaling("phase", symmetry, (shift, Term(layers[numbers[0] + 1].weight, 1, 1.0))))
        found.append(Rescaling("sign", symmetry, _terms(numbers, layers, 1.0)))
    return found


def _terms(numbers: Sequence[int], layers: Sequence[Layer], outgoing: float) -> tuple[Term, ...]:
    """A factor on the rows of every layer of the class, undone (or met by itself) on the columns of the next."""
    terms = []
    for number, layer in enumerate(layers):
        if number in numbers:
            terms.append(Term(layer.weight, 0, 1.0))
        if number - 1 in numbers:
            terms.append(Term(layer.weight, 1, outgoing))
        if number in numbers and layer.bias_name:
            terms.append(Term(layer.bias_name, 0, 1.0))
    return tuple(terms)
