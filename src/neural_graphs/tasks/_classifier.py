"""A classifier of networks: any encoder and a head, with fit, predict, score, save and from_pretrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture
from neural_graphs.nn import Encoder
from neural_graphs.tasks._model import GraphModel

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit


class Classifier(GraphModel):
    """Networks in, one of ``num_classes`` classes out: ``forward`` gives logits ``[B, num_classes]``.

    Args:
        encoder: from ``create_encoder``.
        num_classes: classes are 0..num_classes-1.
        outputs: number of output neurons of the networks it reads.
        class_names: one per class, for people; numbers by default.
        architectures: those it was trained on (``fit`` sets them); they tell which network a bare state dict is.
        head: further arguments of ``GraphHead``, JSON-able.
    """

    task = "classify"
    noun = "classifier"

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        outputs: int = 1,
        *,
        class_names: Sequence[str] | None = None,
        architectures: Sequence[Architecture] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
        if num_classes < 1 or len(names) != num_classes:
            raise UserError(f"{num_classes} classes and {len(names)} class names do not fit together")
        super().__init__(encoder, outputs, num_classes, architectures, head)
        self.num_classes, self.class_names = num_classes, names

    def fit(
        self,
        train: ZooSplit,
        val: ZooSplit | None = None,
        *,
        label: str = "label",
        augment: Mapping[str, Any] | None = None,
        quiet: bool = False,
        **options: Any,
    ) -> Classifier:
        """Train in memory and keep the weights that were best on ``val`` (without it, the last).

        ``options`` are fields of ``OptimConfig`` (``epochs``, ``batch_size``, ``lr``, ...) and of ``TrainConfig``
        (``seed``, ``threads``, ``precision``, ``patience``, ...); ``augment`` those of ``AugmentConfig``. The normalisation
        statistics are those of ``train``. Training that is recorded, resumable and reported is ``tasks.train``.

        Raises:
            UserError: an unknown option, an unusable label column, networks that the encoder cannot read.
        """
        self._fit(train, val, augment, quiet, options, label=label)
        return self

    def predict_proba(self, x: Any) -> Tensor:
        """Probabilities ``[B, num_classes]`` (float32, CPU); ``x`` as in ``logits``."""
        return self.logits(x).softmax(1)

    def predict(self, x: Any) -> Tensor:
        """Classes ``[B]`` (int64, CPU); ``x`` as in ``logits``."""
        return self.logits(x).argmax(1)

    def score(self, split: ZooSplit, label: str = "label") -> float:
        """Accuracy on a split of a zoo."""
        return float((self.predict(split) == split.labels(label)).double().mean())

    def _facts(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "class_names": list(self.class_names)}

    @classmethod
    def _build(cls, encoder: Encoder, config: Mapping[str, Any], **arguments: Any) -> Self:
        return cls(
            encoder, config["num_classes"], class_names=config["class_names"], head=config.get("head"), **arguments
        )
