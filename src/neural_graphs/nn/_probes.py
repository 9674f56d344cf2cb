"""Probe features: learned inputs run through every network, read at every neuron or at the outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, Stack
from neural_graphs.graph._convolution import map_sizes
from neural_graphs.graph._responses import recorded_shapes

ProbeGenerator = Literal["points", "deep-linear"]
"""Where probes come from: free points, or a deep linear generator."""

ProbeReads = Literal["neurons", "outputs"]
"""Whose responses are read: every neuron's, or only those of the output neurons."""

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


class LearnedProbes(nn.Module):
    """K free points, initially uniform in [-1, 1]; ``points`` is ``[K, inputs]``."""

    def __init__(self, probes: int, inputs: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(probes, inputs) * 2 - 1)


class DeepLinearProbes(nn.Module):
    """K learned latents ``[K, latent]`` through a chain of linear maps without activations (ProbeGen, Kahana et al. 2025).

    The generator can express nothing that free points could not; what it changes is how they move: together, along the few
    directions that the shared maps favour. Initially ``points`` are uniform in [-1, 1], as free points are (up to the rank
    of the generator, when networks have more inputs than there are latent dimensions).

    ``depth`` counts linear maps: latent -> latent -> ... -> inputs.
    """

    def __init__(self, probes: int, inputs: int, depth: int = 2, latent: int = 32) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"a probe generator has at least one linear map, not {depth}")
        sizes = [latent] * depth + [inputs]
        self.maps = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
        whole = torch.eye(latent)
        for linear in self.maps:
            assert isinstance(linear, nn.Linear)
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)
            whole = linear.weight.detach() @ whole
        # Of all latents that give the wanted points, those nearest to random ones: rows of `whole` are orthonormal.
        wanted, start = torch.rand(probes, inputs) * 2 - 1, torch.randn(probes, latent)
        if inputs > latent:
            wanted = wanted * math.sqrt(inputs / latent)  # what the projection onto the generator's range takes away
        self.latents = nn.Parameter(start + (wanted - start @ whole.T) @ torch.linalg.pinv(whole).T)

    @property
    def points(self) -> Tensor:
        return self.maps(self.latents)


class LearnedImages(nn.Module):
    """K free images, initially smooth and of standard deviation 1; ``points`` is ``[K, c, h, w]``."""

    def __init__(self, probes: int, shape: Shape) -> None:
        super().__init__()
        self.points = nn.Parameter(smooth_images(probes, shape))


class DeepLinearImages(nn.Module):
    """K learned latents ``[K, latent]`` through transposed convolutions without activations, and a last tanh (ProbeGen).

    ``points`` is ``[K, c, h, w]`` between -2 and 2, about where normalised images lie; images start smooth. The first map
    writes a small image, each of the others doubles its sides and halves its channels, and what is too much is cut off.
    """

    def __init__(self, probes: int, shape: Shape, depth: int = 4, latent: int = 32) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"a probe generator has at least one linear map, not {depth}")
        channels, *self.sides = shape
        first = [-(-side // 2 ** (depth - 1)) for side in self.sides]
        widths = [latent, *(16 * 2**k for k in reversed(range(depth - 1))), channels]
        maps = [nn.ConvTranspose2d(widths[0], widths[1], (first[0], first[1]))]
        maps += [nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths[1:])]
        self.maps = nn.Sequential(*maps)
        self.latents = nn.Parameter(torch.randn(probes, latent))
        with torch.no_grad():
            doubling = torch.tensor([0.25, 0.75, 0.75, 0.25])  # linear interpolation
            smooth = torch.outer(doubling, doubling)
            for number, layer in enumerate(maps):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                if number:
                    mixed = torch.randn(*layer.weight.shape[:2], 1, 1) * smooth + 0.1 * torch.randn(layer.weight.shape)
                    layer.weight.copy_(mixed)
                else:
                    layer.weight.copy_(smooth_images(latent, (widths[1], first[0], first[1])))
                layer.weight /= self.maps[: number + 1](self._seeds()).std().clamp_min(1e-6)

    def _seeds(self) -> Tensor:
        return self.latents.unsqueeze(-1).unsqueeze(-1)

    @property
    def points(self) -> Tensor:
        images = self.maps(self._seeds())[:, :, : self.sides[0], : self.sides[1]]
        return 2 * torch.tanh(images)


def smooth_images(count: int, shape: Shape) -> Tensor:
    """Random images ``[count, c, h, w]`` with equal power in every octave, as natural ones have; standard deviation 1."""
    channels, height, width = shape
    images = torch.zeros(count, channels, height, width)
    for octave in range(max(1, (min(height, width) - 1).bit_length())):
        coarse = torch.randn(count, channels, min(2**octave, height), min(2**octave, width))
        images += F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return images / images.square().mean().sqrt()


Source = LearnedProbes | DeepLinearProbes | LearnedImages | DeepLinearImages


def probe_source(generator: str, probes: int, inputs: int, depth: int = 0, shape: Sequence[int] = ()) -> Source:
    """The module whose ``points`` are the current probes: vectors of ``inputs`` numbers, or images of ``shape``.

    ``depth`` counts the maps of a deep linear generator; 0 makes it 2 for vectors and 4 for images.
    """
    if generator not in get_args(ProbeGenerator):
        raise UserError(
            f"unknown generator of probes {generator!r}: choose one of {', '.join(get_args(ProbeGenerator))}"
        )
    if not shape:
        return LearnedProbes(probes, inputs) if generator == "points" else DeepLinearProbes(probes, inputs, depth or 2)
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"probe_shape is channels, height and width of an image, not {list(shape)}")
    image = (int(shape[0]), int(shape[1]), int(shape[2]))
    return LearnedImages(probes, image) if generator == "points" else DeepLinearImages(probes, image, depth or 4)


def check_probed(graph: NeuralGraph, inputs: int, shape: Sequence[int] = ()) -> None:
    """Raise ``UserError`` when probes of ``inputs`` values, or images of ``shape``, cannot be run through networks like
    ``graph``."""
    if not shape and graph.spec.num_inputs != inputs:
        raise UserError(f"this model probes networks of {inputs} inputs, this one has {graph.spec.num_inputs}")
    if graph.stack is not None:
        if shape:
            _check_images(graph.stack, (shape[0], shape[1], shape[2]))
        elif graph.stack.layers[0].kernel:
            raise UserError(
                "this model probes networks with vectors, and this one reads images: create the encoder with "
                f"probe_shape=[{inputs}, height, width]"
            )
    elif graph.trace is not None:
        wanted = tuple(shape) or (inputs,)
        recorded = recorded_shapes(graph.trace)
        if len(recorded) != 1 or recorded[0][1:] != wanted:
            own = " and ".join("x".join(map(str, one[1:])) for one in recorded)
            raise UserError(
                f"this model probes networks with inputs of {'x'.join(map(str, wanted))}, this one reads {own or 'none'}"
            )
    else:
        raise UserError("this model probes networks, and this graph holds no executable architecture")


def _check_images(stack: Stack, shape: Shape) -> None:
    try:
        map_sizes(stack, shape)
    except UserError as error:
        raise UserError(f"this model probes networks with images, and {error}") from None


class ProbeFeatures(nn.Module):
    """K learned inputs; each neuron's K responses become a node feature (Kofinas et al. 2024, section on probe features).

    Inputs are vectors, or (beyond the paper) images, to which a channel responds with its mean over positions behind the
    activation. The networks run on their raw weights. Responses go through ``Linear(K, F)`` and ``LayerNorm``, one pair each
    for inputs, hidden neurons and outputs, so that any depth can be read. Networks of one batch may differ in everything but
    what inputs they read. Traced modules are probed too, if they were recorded on such inputs.

    Args:
        probes: K.
        inputs: number of inputs of every network.
        width: F.
        generator: "points" (free), or "deep-linear" (see ``DeepLinearProbes`` and ``DeepLinearImages``).
        reads: "neurons", or "outputs": only output neurons get a feature.
        shape: ``(c, h, w)``: probes are images; ``()``: vectors of ``inputs`` numbers.
    """

    def __init__(
        self,
        probes: int,
        inputs: int,
        width: int,
        generator: str = "points",
        reads: str = "neurons",
        shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if reads not in get_args(ProbeReads):
            raise UserError(f"probes cannot read {reads!r}: choose one of {', '.join(get_args(ProbeReads))}")
        self.inputs, self.width, self.shape = inputs, width, tuple(shape)
        self.source = probe_source(generator, probes, inputs, shape=self.shape)
        roles = ("input", "hidden", "output") if reads == "neurons" else ("output",)
        self.projections = nn.ModuleDict(
            {role: nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width)) for role in roles}
        )

    @property
    def points(self) -> Tensor:
        """The current probes ``[K, inputs]`` or ``[K, c, h, w]``."""
        return self.source.points

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` when networks like ``graph`` cannot be probed."""
        check_probed(graph, self.inputs, self.shape)

    def forward(self, graph: NeuralGraph) -> list[Tensor | None]:
        """Features per node set, ``[B, n, F]``; None for sets that are not read."""
        return self.of_all([graph])[0]

    def of_all(self, graphs: Sequence[NeuralGraph]) -> list[list[Tensor | None]]:
        """``forward`` of each: probes are generated once, and all responses of a role projected at once."""
        points = self.points
        found: list[list[Tensor | None]] = []
        places: dict[str, list[tuple[int, int, Tensor]]] = {role: [] for role in self.projections}
        for g, graph in enumerate(graphs):
            self.check_readable(graph)
            found.append([None] * len(graph.spec.node_sets))
            for s, (node_set, value) in enumerate(zip(graph.spec.node_sets, responses(graph, points), strict=True)):
                if node_set.role in places:
                    places[node_set.role].append((g, s, value.transpose(1, 2)))
        for role, held in places.items():
            if held:
                rows = torch.cat([value.flatten(0, 1) for _, _, value in held])
                parts = self.projections[role](rows).split([value.shape[0] * value.shape[1] for _, _, value in held])
                for (g, s, value), part in zip(held, parts, strict=True):
                    found[g][s] = part.view(*value.shape[:2], self.width)
        return found


def responses(graph: NeuralGraph, points: Tensor) -> list[Tensor]:
    """``[B, K, n]`` per node set; zeros where a traced module never holds the values."""
    points = points.to(graph.dtype)
    return [
        points.new_zeros(graph.batch_size, len(points), nodes.size) if value is None else value
        for nodes, value in zip(graph.spec.node_sets, graph.responses(points), strict=True)
    ]
