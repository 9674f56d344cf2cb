"""An editor of networks: reads their weights and writes changed ones, whose images are edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, GraphBatch, NeuralGraph, average_networks, render
from neural_graphs.nn import Encoder, Encoding, delta_head
from neural_graphs.tasks._model import Model

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit


class Editor(Model):
    """Networks in, edited networks out: every parameter plus a change that is read off the network's own weights
    (Kofinas et al. 2024, INR style editing).

    The change is equivariant for encoders that are: a network whose neurons are reordered is edited to the same network with
    its neurons reordered. ``forward`` renders the edited networks of images, ``[B, H, W, C]``.

    Args:
        encoder: from ``create_encoder``; one that embeds edges, or a baseline that gives one vector per network.
        outputs: number of output neurons of the networks it edits; the colours of an image.
        edits: names of what it learns, one or several; which one is wanted is then said by name.
        copies: changed networks per network, whose outputs are averaged (output ensemble, OCE, arXiv 2602.01083).
        size: height and width of the images that it learns from; None: the networks are no images.
        pixel_range: what the networks say for black and white.
        architectures: those it was trained on (``fit`` sets them); they tell which network a bare state dict is.

    Raises:
        UserError: the encoder embeds no edges; no or repeated edits; sizes that are none.
    """

    task = "edit"
    noun = "editor"
    labelled = False

    def __init__(
        self,
        encoder: Encoder,
        outputs: int = 1,
        *,
        edits: Sequence[str] = ("dilate",),
        copies: int = 1,
        size: Sequence[int] | None = (28, 28),
        pixel_range: Sequence[float] = (0.0, 1.0),
        architectures: Sequence[Architecture] = (),
    ) -> None:
        if not edits or len(set(edits)) != len(edits):
            raise UserError(f"edits are {list(edits)}: name at least one, and each once")
        if copies < 1 or (size is not None and (len(size) != 2 or min(size) < 1)):
            raise UserError(
                f"an editor needs at least 1 copy and a size of positive height and width, not {copies}, {size}"
            )
        if len(pixel_range) != 2 or not pixel_range[0] < pixel_range[1]:
            raise UserError(f"pixel_range is {list(pixel_range)}: give two numbers, that of black first")
        head = delta_head(encoder, copies=copies, styles=len(edits) if len(edits) > 1 else 0)
        super().__init__(encoder, head, outputs, architectures)
        self.edits, self.copies = tuple(edits), copies
        self.size = (int(size[0]), int(size[1])) if size is not None else None
        self.pixel_range = (float(pixel_range[0]), float(pixel_range[1]))

    # -- the change ---------------------------------------------------------------------------------------------------

    def code(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph]) -> Encoding:
        """The embeddings that any edit is read from."""
        return self.encoder(batch, reads="edges")

    def edited(self, code: Encoding, style: Tensor | None = None, strength: float = 1.0) -> tuple[NeuralGraph, ...]:
        """The edited networks of every bucket of the batch.

        With k ``copies`` each bucket holds ``k * B_k`` networks, copy j of network b in row ``j * B_k + b``. ``style``
        (int64 ``[B]``, in the batch's order) says which of ``edits``, where there are several; ``strength`` multiplies the
        change.
        """
        graphs: tuple[NeuralGraph, ...] = self.head(code, style, strength)
        return graphs

    def outputs_of(self, code: Encoding, x: Tensor, style: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """What the edited networks say of inputs ``[K, ...]``: ``[B, K, out]``, the mean over copies."""
        return code.batch.restore([self._mean(graph.run(x)) for graph in self.edited(code, style, strength)])

    def read(self, code: Encoding, *conditions: Any) -> Tensor:
        """Images ``[B, H, W, C]`` of the edited networks at the editor's size, black 0 and white 1, not clipped.

        ``conditions`` are ``style``, as in ``edited``.
        """
        return self._draw(code, *self._size(), *conditions)

    def _draw(
        self, code: Encoding, height: int, width: int, style: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        graphs = self.edited(code, style, strength)
        return code.batch.restore([self._mean(render(graph, height, width, self.pixel_range)) for graph in graphs])

    def _mean(self, values: Tensor) -> Tensor:
        return values if self.copies == 1 else values.unflatten(0, (self.copies, -1)).mean(0)

    def _size(self) -> tuple[int, int]:
        if self.size is None:
            raise UserError("this editor edits networks that are no images: there is nothing to render")
        return self.size

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: ZooSplit,
        val: ZooSplit | None = None,
        *,
        targets: str = "image",
        augment: Mapping[str, Any] | None = None,
        quiet: bool = False,
        **options: Any,
    ) -> Editor:
        """Train in memory and keep the weights of the smallest error on ``val`` (without it, the last).

        The error is the mean square between the edited networks' renderings and the edited images: those that the networks
        were fitted to, or with ``targets="render"`` those that they draw. ``options`` and ``augment`` as in
        ``Classifier.fit``; of the latter only ``symmetry`` leaves a network's image as it is.

        Raises:
            UserError: an unknown option or edit; the images are not at hand; networks that cannot be edited.
        """
        fixed = {"edits": list(self.edits), "copies": self.copies, "targets": targets}
        self._fit(train, val, augment, quiet, options, **fixed)
        return self

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when networks like ``graph`` cannot be edited."""
        spec = graph.spec
        if self.size is not None and (spec.num_inputs != 2 or spec.num_outputs != self.outputs):
            raise UserError(
                f"this editor edits images, networks of 2 inputs and {self.outputs} outputs; this one has {spec.num_inputs} "
                f"and {spec.num_outputs}"
            )
        super().check_readable(graph)
        self.head.check_readable(graph)  # type: ignore[operator]

    # -- use ----------------------------------------------------------------------------------------------------------

    def style_of(self, edit: str | None = None) -> int:
        """The number of an edit; None is the only one there is. Raises ``UserError`` for one it was not trained on."""
        if edit is None and len(self.edits) == 1:
            return 0
        if edit not in self.edits:
            asked = f"it does not know {edit!r}" if edit is not None else "say which one is wanted"
            raise UserError(f"this editor was trained on {', '.join(self.edits)}: {asked}")
        return self.edits.index(edit)

    def edit(self, x: Any, edit: str | None = None, strength: float = 1.0) -> GraphBatch:
        """The edited networks, in the order of ``x`` (as in ``logits``), float32 on the CPU.

        Several copies become one network that computes their mean, a wider one. ``strength`` from 0, no change, to 1.

        Raises:
            UserError: an edit it was not trained on, a strength out of range, networks that it cannot edit.
        """
        style = self.check_edit(edit, strength)

        def answer(batch: GraphBatch) -> GraphBatch:
            for graph in batch.buckets:
                self.check_readable(graph)
            graphs = self.edited(self.code(batch), self._all(style, batch), strength)
            return GraphBatch(tuple(average_networks(graph, self.copies).to("cpu") for graph in graphs), batch.index)

        return GraphBatch.cat(self.each_batch(answer, x))

    predict = edit

    def render(
        self,
        x: Any,
        edit: str | None = None,
        strength: float = 1.0,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Images ``[B, H, W, C]`` of the edited networks, black 0 and white 1, not clipped; by default at the editor's size.

        Arguments and errors as those of ``edit``.
        """
        style = self.check_edit(edit, strength)
        own = self._size()
        size = (height or own[0], width or own[1])
        return self.evaluated(lambda batch: self._draw(self.code(batch), *size, self._all(style, batch), strength), x)

    def score(self, split: ZooSplit, edit: str | None = None, targets: str = "image") -> float:
        """Mean squared error against the edited images of a split, over pixels and networks, white being 1."""
        from neural_graphs.tasks._targets import edit_targets

        name = self.edits[self.style_of(edit)]
        wanted = edit_targets(split, [name], targets)[0]
        return float((self.render(split, name) - wanted).double().square().mean())

    def check_edit(self, edit: str | None, strength: float) -> int:
        """The number of an edit. Raises ``UserError`` for one it was not trained on, and a strength outside 0 to 1."""
        if not 0 <= strength <= 1:
            raise UserError(f"the strength of an edit is from 0 to 1, not {strength}")
        return self.style_of(edit)

    def _all(self, style: int, batch: GraphBatch) -> Tensor | None:
        """``style`` for every network, where there are several to choose from."""
        device = next(self.parameters()).device
        return torch.full((len(batch),), style, device=device) if len(self.edits) > 1 else None

    # -- files --------------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        size = list(self.size) if self.size is not None else None
        return {"edits": list(self.edits), "copies": self.copies, "size": size, "pixel_range": list(self.pixel_range)}

    @classmethod
    def _build(cls, encoder: Encoder, config: Mapping[str, Any], **arguments: Any) -> Self:
        own = {key: config[key] for key in ("edits", "copies", "size", "pixel_range")}
        return cls(encoder, **own, **arguments)
