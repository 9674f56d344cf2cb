"""An editor of classifiers: reads weights that were trained on clean images, writes weights for corrupted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, NeuralGraph
from neural_graphs.nn import Encoder, Encoding
from neural_graphs.tasks._adapt_images import check_corruptions
from neural_graphs.tasks._editor import Editor
from neural_graphs.zoo._store import ZooSplit


class Adapter(Editor):
    """Classifiers in, classifiers for another domain out, with no image of either: what it knows of the corruption it has
    learned from other classifiers.

    ``forward`` is told images and gives the adapted networks' logits.

    Args:
        encoder: from ``create_encoder``; see ``Editor``.
        outputs: classes of the networks.
        edits: the corruptions: names of ``neural_graphs.zoo.edits``, or ``"clean"`` for images as they are.
        copies: changed networks per network, whose logits are averaged.
        architectures: those it was trained on.

    Raises:
        UserError: as ``Editor``.
    """

    task = "adapt"
    noun = "adapter"

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        *,
        edits: Sequence[str] = ("noise",),
        copies: int = 1,
        architectures: Sequence[Architecture] = (),
    ) -> None:
        super().__init__(encoder, outputs, edits=edits, copies=copies, size=None, architectures=architectures)

    def read(self, code: Encoding, *conditions: Any) -> Tensor:
        """Logits ``[B, K, classes]`` of the adapted networks on images ``[K, c, h, w]``; ``conditions`` are the images and,
        where there are several edits, ``style`` as in ``edited``."""
        return self.outputs_of(code, *conditions)

    def fit(self, train: ZooSplit, val: ZooSplit | None = None, **options: Any) -> Adapter:
        """Train in memory and keep the weights of the largest accuracy on ``val`` (without it, the last): of its adapted
        networks, on corrupted images that were not trained on. ``options`` as in ``Classifier.fit``.

        Raises:
            UserError: an unknown option or edit; the images of the zoo are not at hand; networks that cannot be edited.
        """
        check_corruptions(self.edits)
        augment, quiet = options.pop("augment", None), options.pop("quiet", False)
        self._fit(train, val, augment, quiet, options, edits=list(self.edits), copies=self.copies)
        return self

    def score(self, split: ZooSplit, edit: str | None = None, targets: str = "image") -> float:
        """Mean accuracy of the adapted networks of ``split`` on corrupted images that nothing was learned from."""
        from neural_graphs.tasks._adapt_report import adapt_report

        name = self.edits[self.style_of(edit)]
        return float(adapt_report(self, split, [name])["accuracy"])

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when this model cannot edit networks like ``graph``."""
        if graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this adapter edits classifiers of {self.outputs} classes, this network has {graph.spec.num_outputs} "
                "outputs"
            )
        super().check_readable(graph)

    def _facts(self) -> dict[str, Any]:
        return {"edits": list(self.edits), "copies": self.copies}

    @classmethod
    def _build(cls, encoder: Encoder, config: Mapping[str, Any], **arguments: Any) -> Self:
        return cls(encoder, edits=config["edits"], copies=config["copies"], **arguments)


def losses(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy ``[B]``, means over K images, of logits ``[B, K, classes]`` and answers ``[K]``."""
    own = F.cross_entropy(logits.flatten(0, 1), answers.repeat(len(logits)), reduction="none")
    right = (logits.argmax(2) == answers).to(logits.dtype)
    return own.unflatten(0, logits.shape[:2]).mean(1), right.mean(1)
