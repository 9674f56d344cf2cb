"""The folder of one training run: what is written when, and what may be continued or overwritten.

config.yaml    the configuration
log.jsonl      one line per validation; those of pre-training say "phase": "pretrain"
model/         the model that was best on validation: config.json, model.safetensors
last/          state.safetensors: weights, optimizer, position, history; one file, so it is always of one moment
metrics.json   the result; a run that has it is finished
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neural_graphs._io import atomic_write, write_json
from neural_graphs.errors import UserError
from neural_graphs.tasks._config import TrainConfig, from_dict, to_dict, to_yaml

if TYPE_CHECKING:
    from neural_graphs.tasks._model import Model

FORMAT = 1
MAY_CHANGE = ("threads", "patience", "log", "zoo", "out")
"""What does not change the course of a run (the zoo's path: it may have been moved), so resuming accepts another value."""


class RunFolder:
    """Opens ``config.out`` for a run, new or resumed.

    Of several processes that train together only one may be ``main``: the others read the folder once it is open, and leave
    it as it is.

    Raises:
        UserError: the folder holds something else, a finished run of another configuration, or an unfinished run while
            ``resume`` is off; ``resume`` is on and the configuration differs.
    """

    def __init__(self, config: TrainConfig, resume: bool, main: bool = True) -> None:
        self.path = Path(config.out)
        self.config = config
        self.main = main
        self._board: Any = None
        if not main:
            return
        self._guard(resume)
        if config.log == "tensorboard":
            self._open_board()
        if not (resume and self.state_file.is_file()):
            self._clear()
        with atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")

    @property
    def state_file(self) -> Path:
        return self.path / "last" / "state.safetensors"

    def _guard(self, resume: bool) -> None:
        if not (self.path / "config.yaml").is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path} exists and is no training run: choose another out")
            return
        differing = _differences(read_config(self.path), self.config)
        finished = (self.path / "metrics.json").is_file()
        if resume and differing:
            raise UserError(
                f"{self.path} was begun with another configuration ({', '.join(differing)}): resume with the same, "
                "or choose another out"
            )
        if not resume and finished and differing:
            raise UserError(
                f"{self.path} holds a finished run of another configuration ({', '.join(differing)}): choose another out, "
                "or delete it"
            )
        if not resume and not finished and self.state_file.is_file():
            raise UserError(
                f"{self.path} holds an unfinished run: continue it with --resume, choose another out, or delete it"
            )

    def _clear(self) -> None:
        for name in ("metrics.json", "log.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("last", "model", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _open_board(self) -> None:
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise UserError(
                "log is tensorboard, which is not installed: pip install tensorboard, or set log=jsonl"
            ) from None
        self._board = board.SummaryWriter(str(self.path / "tensorboard"))

    # -- writing ------------------------------------------------------------------------------------------------------

    def save_best(self, model: Model, facts: Mapping[str, Any]) -> None:
        model.save(self.path / "model", {"training": json.dumps(dict(facts))})

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Everything that resuming needs, in one atomic file."""
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps({"format": FORMAT, **facts})
        with atomic_write(self.state_file) as temporary:
            save_file(kept, temporary, {"state": text})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What ``save_state`` wrote, or None where nothing was. Also drops log lines later than that."""
        if not self.state_file.is_file():
            return None
        try:
            with safe_open(self.state_file, framework="pt") as file:
                facts = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.state_file} is broken ({error}): the run cannot be resumed, delete it") from None
        if facts.get("format") != FORMAT:
            raise UserError(f"{self.state_file} was written by another version of neural-graphs and cannot be resumed")
        if self.main:
            self.rewrite_log([*facts.get("earlier", ()), *facts["history"]])
        return tensors, facts

    def rewrite_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with atomic_write(self.path / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            prefix = f"{row['phase']}/" if "phase" in row else ""
            for key, value in row.items():
                if key not in ("step", "epoch", "phase") and value is not None:
                    self._board.add_scalar(prefix + key, value, row["step"])
            self._board.flush()

    def finish(self, metrics: Mapping[str, Any]) -> None:
        if not self.main:
            return
        write_json(self.path / "metrics.json", dict(metrics))
        if self._board is not None:
            self._board.close()


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run; ``UserError`` when the folder holds none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no training run: it has no config.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no valid configuration")
    return from_dict(values)


def _differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Keys whose values differ and matter."""
    old, new = _flat(to_dict(before)), _flat(to_dict(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    # More epochs of the same course are a continuation, unless the learning rate is scheduled to end with the last one.
    if now.optimizer.schedule == "constant" and before.optimizer.epochs <= now.optimizer.epochs:
        keys = [key for key in keys if key != "optimizer.epochs"]
    return [key for key in keys if key not in MAY_CHANGE]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out
