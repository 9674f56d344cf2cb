"""What every model of networks has: an encoder, a head, fit, evaluation on anything that holds networks, files."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from neural_graphs import __version__
from neural_graphs.errors import UserError
from neural_graphs.graph import Architecture, GraphBatch, NeuralGraph, architecture_from_json
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

T = TypeVar("T")

EVAL_BATCH = 128

_OF_RUNS = {"task", "zoo", "out", "label", "loss", "bounds", "optimizer", "encoder", "head", "augment", "log"}
_OF_RUNS |= {"limit_train", "views", "where", "hold_out", "edits", "copies", "targets"}
"""Fields of ``TrainConfig`` that ``fit`` has no option for: the model, or the split that it is given, says them."""


class Model(nn.Module, ABC):
    """An encoder, and a head that reads its embeddings; what comes out, and what it means, is up to subclasses.

    Args:
        encoder: from ``create_encoder``.
        head: reads the encoding.
        outputs: number of output neurons of the networks it reads.
        architectures: those it was trained on.
    """

    task: ClassVar[str]
    noun: ClassVar[str]
    bounds: tuple[float, float] | None = None
    """Between which the numbers of its label column must lie; None where they are classes."""

    labelled: ClassVar[bool] = True
    """Whether it learns from a column of the zoo's table."""

    def __init__(
        self, encoder: Encoder, head: nn.Module, outputs: int, architectures: Sequence[Architecture] = ()
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.outputs = encoder, head, outputs
        self.architectures = tuple(architectures)

    @abstractmethod
    def code(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph]) -> Any:
        """What is computed once per network, whatever is then read from it."""

    @abstractmethod
    def read(self, code: Any, *conditions: Any) -> Tensor:
        """``forward``'s result from ``code``."""

    def forward(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph], *conditions: Any) -> Tensor:
        """``[B, ...]`` in the batch's order."""
        return self.read(self.code(batch), *conditions)

    # -- training -----------------------------------------------------------------------------------------------------

    def _fit(
        self,
        train: ZooSplit,
        val: ZooSplit | None,
        augment: Mapping[str, Any] | None,
        quiet: bool,
        options: Mapping[str, Any],
        **fixed: Any,
    ) -> None:
        """``fit`` of subclasses; ``fixed`` are fields of ``TrainConfig`` that the model determines."""
        from neural_graphs.tasks._fit import fit

        optimizer = {f.name for f in dataclasses.fields(OptimConfig)}
        own = {f.name for f in dataclasses.fields(TrainConfig)} - _OF_RUNS
        if unknown := set(options) - optimizer - own:
            raise UserError(f"unknown option {min(unknown)}: valid are {', '.join(sorted(optimizer | own))}")
        config = TrainConfig(
            task=self.task,  # type: ignore[arg-type]
            encoder=self.encoder.config,
            optimizer=OptimConfig(**{k: v for k, v in options.items() if k in optimizer}),
            augment=AugmentConfig(**(augment or {})),
            **fixed,
            **{k: v for k, v in options.items() if k in own},
        )
        self.prepare(train, config.label)
        fit(self, train, val, config, quiet=quiet)

    def prepare(self, train: ZooSplit, label: str) -> None:
        """Take the normalisation statistics and the architectures of the training networks; check that all are readable."""
        from neural_graphs.zoo._loader import Loader

        self.architectures = tuple(train.architectures.values())
        loader = Loader(train, EVAL_BATCH, label=label if self.labelled else None, bounds=self.bounds, shuffle=False)
        first: dict[Any, NeuralGraph] = {}
        for graph in loader.graphs():
            first.setdefault(graph.spec, graph)
        for graph in first.values():
            self.check_readable(graph)
        self.encoder.fit_normalization(loader.graphs())

    def calibrate(self, train: ZooSplit, val: ZooSplit | None, seed: int) -> None:
        """Measure, once training is over, what the model says beside its answers."""

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when this model cannot read networks like ``graph``."""
        self.encoder.check_readable(graph)

    # -- use ----------------------------------------------------------------------------------------------------------

    def logits(self, x: Any) -> Tensor:
        """``forward`` for all networks of ``x`` (CPU), in evaluation mode and computed in float32.

        ``x`` is a ``ZooSplit``, ``GraphBatch``, ``NeuralGraph``, a sequence of graphs, or the state dict of one network.

        Raises:
            UserError: the model cannot read these networks, or they hold NaN or infinite weights.
        """
        return self.evaluated(self, x)

    def evaluated(self, function: Callable[[GraphBatch], Tensor], x: Any) -> Tensor:
        """``function`` of batches on the model's device, joined on the CPU; ``x`` as in ``logits``."""
        return torch.cat([found.cpu() for found in self.each_batch(function, x)])

    @torch.inference_mode()
    def each_batch(self, function: Callable[[GraphBatch], T], x: Any) -> list[T]:
        """``function`` of batches on the model's device, in evaluation mode and float32; ``x`` as in ``logits``."""
        device = next(self.parameters()).device
        training, edge_dtype = self.training, self.encoder.edge_dtype
        products = torch.get_float32_matmul_precision()
        self.eval()
        self.encoder.edge_dtype = None
        torch.set_float32_matmul_precision("highest")
        try:
            return [function(batch.to(device)) for batch in self._batches(x)]
        finally:
            self.train(training)
            self.encoder.edge_dtype = edge_dtype
            torch.set_float32_matmul_precision(products)

    def _batches(self, x: Any) -> Iterator[GraphBatch]:
        if hasattr(x, "state_dicts"):
            for first in range(0, len(x), EVAL_BATCH):
                yield x.batch(torch.arange(first, min(first + EVAL_BATCH, len(x))))
            return
        if isinstance(x, Mapping):
            state = {name: value.float() for name, value in x.items()}
            x = recognise(state, self.architectures).graph({name: value.unsqueeze(0) for name, value in state.items()})
        batch = GraphBatch.of(x)
        for graph in batch.buckets:
            check_finite(graph.to_state_dict(batched=True))
        yield batch.to(torch.float32)

    # -- files --------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: everything but the tensors."""
        return {
            "format": FORMAT,
            "task": self.task,
            "version": __version__,
            "encoder": self.encoder.config,
            "state": self.encoder.extra_state(),
            **self._facts(),
            "outputs": self.outputs,
            "architectures": [stack.to_json() for stack in self.architectures],
        }

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """JSON-able arguments of the subclass."""

    @classmethod
    @abstractmethod
    def _build(cls, encoder: Encoder, config: Mapping[str, Any], **arguments: Any) -> Self:
        """The model that ``config`` describes; ``arguments`` are ``outputs`` and ``architectures``."""

    def save(self, folder: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; an older model there stays whole until the new one is.

        Raises ``RunError`` when the disk is full or not writable.
        """
        write_model(Path(folder), self, self.config(), metadata)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], revision: str | None = None) -> Self:
        """Read a model back from ``save``, from the folder of a training run, or from the Hugging Face Hub:
        ``"owner/name"``, or ``"hf:owner/name"`` where a folder may have the same name.

        Only ``config.json`` and ``model.safetensors`` are downloaded, at ``revision`` (a branch, tag or commit), and neither
        is executed. The token is the one that ``huggingface_hub`` knows (``HF_TOKEN``, ``hf auth login``).

        Raises:
            UserError: there is no such model, a file is missing, broken or truncated, or was written by a newer version.
            RunError: the Hub cannot be reached.
        """
        return cls._load(*read_model_config(source, revision, {cls.task: cls.noun}))

    @classmethod
    def _load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        import neural_graphs.zoo  # noqa: F401 - registers the architectures that are modules

        with broken_config(folder):
            model = cls._build(
                build_encoder(config),
                config,
                outputs=config["outputs"],
                architectures=[architecture_from_json(entry) for entry in config["architectures"]],
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


class GraphModel(Model):
    """Networks in, ``targets`` numbers per network out, from neurons' embeddings pooled to one vector (``GraphHead``).

    Args:
        targets: size of ``forward``'s result.
        head: further arguments of ``GraphHead``, JSON-able.
    """

    head: GraphHead

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        targets: int,
        architectures: Sequence[Architecture],
        head: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(encoder, _head(encoder, outputs, targets, head or {}), outputs, architectures)
        self.head_config, self.targets = dict(head or {}), targets

    def code(self, batch: GraphBatch | NeuralGraph | Sequence[NeuralGraph]) -> Tensor:
        """What the last linear map reads, ``[B, hidden]``."""
        return self.head.code(self.encoder(batch, reads=self.head.reads))

    def read(self, code: Tensor, *conditions: Any) -> Tensor:
        """``[B, targets]``."""
        return self.head.mlp[-1](code)

    def check_readable(self, graph: NeuralGraph) -> None:
        """Raise ``UserError`` with one line when this model cannot read networks like ``graph``."""
        super().check_readable(graph)
        if self.encoder.vectors and graph.spec.num_outputs != self.outputs:
            raise UserError(
                f"this model reads networks of {self.outputs} outputs, this one has {graph.spec.num_outputs}"
            )
        if not self.encoder.vectors:
            self.head.check_readable(graph)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "head": self.head_config}


def load_model(source: str | os.PathLike[str], revision: str | None = None) -> Model:
    """A ``Classifier``, ``Regressor``, ``Editor`` or ``Adapter``, whichever ``source`` holds; see ``from_pretrained``."""
    from neural_graphs.tasks._adapter import Adapter
    from neural_graphs.tasks._classifier import Classifier
    from neural_graphs.tasks._editor import Editor
    from neural_graphs.tasks._regressor import Regressor

    kinds: dict[str, type[Model]] = {kind.task: kind for kind in (Classifier, Regressor, Editor, Adapter)}
    folder, config = read_model_config(source, revision, {task: "model" for task in kinds})
    return kinds[config["task"]]._load(folder, config)


def _head(encoder: Encoder, outputs: int, targets: int, arguments: Mapping[str, Any]) -> GraphHead:
    try:
        head = GraphHead(encoder.width, 1 if encoder.vectors else outputs, targets, **arguments)
    except TypeError as error:
        raise UserError(f"head: {error}") from None
    if encoder.vectors:
        head.check_vectors()
    return head
