"""A classifier of networks: any encoder and a head, with fit, predict, score, save and from_pretrained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neural_graphs import __version__
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack
from neural_graphs.graph._files import check_finite
from neural_graphs.nn import Encoder, GraphHead
from neural_graphs.nn._hub import (
    FORMAT,
    broken_config,
    build_encoder,
    push,
    read_model_config,
    read_weights,
    write_model,
)
from neural_graphs.tasks._architecture import recognise
from neural_graphs.tasks._config import AugmentConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    from neural_graphs.zoo._store import ZooSplit

EVAL_BATCH = 128


class Classifier(nn.Module):
    """Networks in, one of ``num_classes`` classes out.

    Args:
        encoder: from ``create_encoder``.
        num_classes: classes are 0..num_classes-1.
        outputs: number of output neurons of the networks it reads.
        class_names: one per class, for people; numbers by default.
        architectures: those it was trained on (``fit`` sets them); they tell which network a bare state dict is.
        head: further arguments of ``GraphHead``, JSON-able.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        outputs: int = 1,
        *,
        class_names: Sequence[str] | None = None,
        architectures: Sequence[Stack] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
        if num_classes < 1 or len(names) != num_classes:
            raise UserError(f"{num_classes} classes and {len(names)} class names do not fit together")
        self.encoder = encoder
        self.head = _head(encoder, outputs, num_classes, head or {})
        self.head_config = dict(head or {})
        self.num_classes, self.outputs, self.class_names = num_classes, outputs, names
        self.architectures = tuple(architectures)

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph]) -> Tensor:
        """Logits ``[B, num_classes]``, in the batch's order."""
        return self.head(self.encoder(batch, reads=self.head.reads))

    # -- training -----------------------------------------------------------------------------------------------------

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
        from neural_graphs.tasks._fit import fit

        optimizer = {f.name for f in dataclasses.fields(OptimConfig)}
        own = {f.name for f in dataclasses.fields(TrainConfig)} - {
            "task",
            "zoo",
            "out",
            "optimizer",
            "encoder",
            "head",
            "log",
            "limit_train",
            "views",
            "hold_out",
        }
        if unknown := set(options) - optimizer - own:
            raise UserError(f"unknown option {min(unknown)}: valid are {', '.join(sorted(optimizer | own))}")
        config = TrainConfig(
            label=label,
            encoder=self.encoder.config,
            optimizer=OptimConfig(**{k: v for k, v in options.items() if k in optimizer}),
            augment=AugmentConfig(**(augment or {})),
            **{k: v for k, v in options.items() if k in own},
        )
        self.prepare(train, label)
        fit(self, train, val, config, quiet=quiet)
        return self

    def prepare(self, train: ZooSplit, label: str = "label") -> None:
        """Take the normalisation statistics and the architectures of the training networks; check that all are readable."""
        from neural_graphs.zoo._loader import Loader

        self.architectures = tuple(train.architectures.values())
        loader = Loader(train, EVAL_BATCH, label=label, shuffle=False)
        first: dict[Any, NeuralGraph] = {}
        for graph in loader.graphs():
            first.setdefault(graph.spec, graph)
        for graph in first.values():
            self.check_readable(graph)
        self.encoder.fit_normalization(loader.graphs())

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when this model cannot read networks like ``graph``."""
        self.encoder.check_readable(graph)
        if self.encoder.vectors and graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
            )
        if not self.encoder.vectors:
            self.head.check_readable(graph)

    # -- use ----------------------------------------------------------------------------------------------------------

    def predict_proba(self, x: Any) -> Tensor:
        """Probabilities ``[B, num_classes]`` (float32, CPU) for a ``ZooSplit``, ``GraphBatch``, ``NeuralGraph``, a sequence
        of graphs, or the state dict of one network.

        Raises:
            UserError: the model cannot read these networks, or they hold NaN or infinite weights.
        """
        return self.logits(x).softmax(1)

    def predict(self, x: Any) -> Tensor:
        """Classes ``[B]`` (int64, CPU); ``x`` as in ``predict_proba``."""
        return self.logits(x).argmax(1)

    def score(self, split: ZooSplit, label: str = "label") -> float:
        """Accuracy on a split of a zoo."""
        return float((self.predict(split) == split.labels(label)).double().mean())

    @torch.inference_mode()
    def logits(self, x: Any) -> Tensor:
        """Logits ``[B, num_classes]`` (CPU) in evaluation mode, computed in float32; ``x`` as in ``predict_proba``."""
        device = next(self.parameters()).device
        training, edge_dtype = self.training, self.encoder.edge_dtype
        products = torch.get_float32_matmul_precision()
        self.eval()
        self.encoder.edge_dtype = None
        torch.set_float32_matmul_precision("highest")
        try:
            return torch.cat([self(batch.to(device)).cpu() for batch in self._batches(x)])
        finally:
            self.train(training)
            self.encoder.edge_dtype = edge_dtype
            torch.set_float32_matmul_precision(products)

    def _batches(self, x: Any) -> Any:
        if hasattr(x, "state_dicts"):
            for first in range(0, len(x), EVAL_BATCH):
                yield x.batch(torch.arange(first, min(first + EVAL_BATCH, len(x))))
            return
        if isinstance(x, Mapping):
            state = {name: value.float() for name, value in x.items()}
            x = NeuralGraph.from_state_dict(state, stack=recognise(state, self.architectures))
        batch = GraphBatch.of(x)
        for graph in batch.buckets:
            check_finite(graph.to_state_dict(batched=True))
        yield batch.to(torch.float32)

    # -- files --------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: everything but the tensors."""
        return {
            "format": FORMAT,
            "task": "classify",
            "version": __version__,
            "encoder": self.encoder.config,
            "head": self.head_config,
            "state": self.encoder.extra_state(),
            "num_classes": self.num_classes,
            "outputs": self.outputs,
            "class_names": list(self.class_names),
            "architectures": [stack.to_json() for stack in self.architectures],
        }

    def save(self, folder: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; an older model there stays whole until the new one is.

        Raises ``RunError`` when the disk is full or not writable.
        """
        write_model(Path(folder), self, self.config(), metadata)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], revision: str | None = None) -> Classifier:
        """Read a model back from ``save``, from the folder of a training run, or from the Hugging Face Hub:
        ``"owner/name"``, or ``"hf:owner/name"`` where a folder may have the same name.

        Only ``config.json`` and ``model.safetensors`` are downloaded, at ``revision`` (a branch, tag or commit), and neither
        is executed. The token is the one that ``huggingface_hub`` knows (``HF_TOKEN``, ``hf auth login``).

        Raises:
            UserError: there is no such model, a file is missing, broken or truncated, or was written by a newer version.
            RunError: the Hub cannot be reached.
        """
        folder, config = read_model_config(source, revision, {"classify": "classifier"})
        with broken_config(folder):
            model = cls(
                build_encoder(config),
                config["num_classes"],
                config["outputs"],
                class_names=config["class_names"],
                architectures=[Stack.from_json(entry) for entry in config["architectures"]],
                head=config.get("head"),
            )
        read_weights(model, folder)
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        private: bool | None = None,
        message: str | None = None,
    ) -> str:
        """Upload to the repository ``"owner/name"`` of the Hugging Face Hub, made where there is none; its address.

        Beside the two files of ``save`` goes a README.md: task, configuration, parameters, ``metrics`` (name -> value),
        versions, and how to load it. ``message`` is the commit's; the token as in ``from_pretrained``.

        Raises:
            UserError: the name is none, or the Hub does not let you write there.
            RunError: the Hub cannot be reached.
        """
        return push(repo_id, self, self.config(), metrics, private, message)


def _head(encoder: Encoder, outputs: int, num_classes: int, arguments: Mapping[str, Any]) -> GraphHead:
    try:
        head = GraphHead(encoder.width, 1 if encoder.vectors else outputs, num_classes, **arguments)
    except TypeError as error:
        raise UserError(f"head: {error}") from None
    if encoder.vectors:
        head.check_vectors()
    return head
