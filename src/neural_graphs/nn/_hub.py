"""Models as folders of two files, here or on the Hugging Face Hub: ``config.json`` and ``model.safetensors``.

Nothing that is downloaded is executed: the config names encoders of this library, the weights are safetensors.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neural_graphs import __version__
from neural_graphs._io import atomic_write, read_json, write_json
from neural_graphs.errors import RunError, UserError
from neural_graphs.nn._card import model_card
from neural_graphs.nn._encoder import Encoder
from neural_graphs.nn._registry import create_encoder

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

Source = str | os.PathLike[str]
"""A folder, or (a string only) ``"owner/name"`` or ``"hf:owner/name"`` on the Hub."""


# -- files -----------------------------------------------------------------------------------------------------------------


def write_model(
    folder: Path, module: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write both files; an older model there stays whole until the new one is. ``RunError`` when they cannot be written."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, dict(metadata or {}))
    write_json(folder / CONFIG, dict(config))


def read_model_config(source: Source, revision: str | None, tasks: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, downloaded where ``source`` is on the Hub, and its config, of one of ``tasks`` (task -> what
    such a model is called).

    Raises:
        UserError: there is no such model, it was written by a newer version, or is of another task.
        RunError: the Hub cannot be reached.
    """
    folder = fetch(source, revision)
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():  # the folder of a training run
        folder = folder / "model"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{source} holds no model: it has no {name}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("task") not in tasks:
        raise UserError(f"{folder / CONFIG} describes no {next(iter(tasks.values()))}")
    found = config.get("format")
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(
            f"{folder} was made by a newer version of neural-graphs (format {found}, this version reads up to {FORMAT}): "
            "upgrade with `pip install --upgrade neural-graphs`"
        )
    return folder, config


def read_weights(module: nn.Module, folder: Path, prefix: str = "") -> None:
    """Load the tensors whose names begin with ``prefix``. Raises ``UserError`` when they are broken or of another model."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS} is broken or truncated ({_line(error)}): copy it again") from None
    own: dict[str, Tensor] = {
        name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
    }
    try:
        module.load_state_dict(own)
    except RuntimeError:
        raise UserError(f"{folder / WEIGHTS} does not belong to {CONFIG}: their tensors differ") from None


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """The encoder that a saved config describes, its tensors untrained. Errors of a broken config pass through."""
    encoder = create_encoder(**config["encoder"])
    encoder.load_extra_state(config["state"])
    return encoder


@contextlib.contextmanager
def broken_config(folder: Path) -> Iterator[None]:
    """What a broken config raises where it is used becomes one line."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG} is broken: {type(error).__name__}: {_line(error)}") from None


# -- encoders --------------------------------------------------------------------------------------------------------------


def encoder_config(encoder: Encoder) -> dict[str, Any]:
    """What ``config.json`` of a bare encoder holds."""
    if not hasattr(encoder, "config"):
        raise UserError("this encoder does not know its arguments: make it with create_encoder")
    return {
        "format": FORMAT,
        "task": "encode",
        "version": __version__,
        "encoder": encoder.config,
        "state": encoder.extra_state(),
    }


def load_encoder(source: Source, revision: str | None) -> Encoder:
    folder, config = read_model_config(source, revision, {"encode": "encoder", "classify": "model", "regress": "model"})
    with broken_config(folder):
        encoder = build_encoder(config)
    read_weights(encoder, folder, "" if config["task"] == "encode" else "encoder.")
    return encoder.eval()


# -- the Hub ---------------------------------------------------------------------------------------------------------------


def fetch(source: Source, revision: str | None = None) -> Path:
    """The local folder of a model: ``source`` itself, or the two files of that repository in the cache of the Hub.

    A string ``"owner/name"`` that is a folder here means that folder. A token is read from where ``huggingface_hub`` keeps
    it (``HF_TOKEN``, ``hf auth login``). Raises as ``read_model_config``.
    """
    path = Path(source)
    if isinstance(source, str) and (
        source.startswith("hf:") or (not path.exists() and _REPOSITORY.fullmatch(source) is not None)
    ):
        return _download(source, repository(source), revision)
    if not path.is_dir():
        raise UserError(f"there is no model folder {path}")
    if revision is not None:
        raise UserError(f"a revision is of a repository on the Hub, and {path} is a folder: leave it out")
    return path


def repository(text: str) -> str:
    """``"owner/name"`` without ``hf:``. Raises ``UserError`` for anything else."""
    name = text.removeprefix("hf:")
    if _REPOSITORY.fullmatch(name) is None or "--" in name or ".." in name:
        raise UserError(f"{text} is no repository of the Hub: write owner/name")
    return name


def _download(source: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[CONFIG, WEIGHTS],
                library_name="neural-graphs",
                library_version=__version__,
            )
        )
    except Exception as error:  # each version of huggingface_hub has its own network errors
        here = "" if source.startswith("hf:") else f"there is no folder {source}, and "
        _explain(error, here, repo, f"{repo} cannot be downloaded from the Hub, and is not in its cache here")


def push(
    repo_id: str,
    module: nn.Module,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    private: bool | None,
    message: str | None,
) -> str:
    """Upload a model with its card and return the address of its page; see ``Encoder.push_to_hub``."""
    from huggingface_hub import HfApi

    repo = repository(repo_id)
    parameters = sum(p.numel() for p in module.parameters())
    versions = {"neural-graphs": __version__, "torch": torch.__version__}
    card = model_card(repo, config, parameters, metrics or {}, versions)
    api = HfApi(library_name="neural-graphs", library_version=__version__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, module, config)
        (folder / CARD).write_text(card, encoding="utf-8")
        try:
            page = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                allow_patterns=[CONFIG, WEIGHTS, CARD],
                commit_message=message or f"Model of neural-graphs {__version__}",
            )
        except Exception as error:
            _explain(error, "", repo, f"the model cannot be uploaded to {repo} on the Hub")
    return str(page)


def _explain(error: Exception, here: str, repo: str, failed: str) -> NoReturn:
    """One line for what went wrong between here and the Hub; ``here`` is said first, ``failed`` where nothing is known."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    cause = error.__cause__ or error  # a failed download is said to be missing from the cache, because of ...
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        raise UserError(f"{here}{repo} has no such revision on the Hub") from None
    if isinstance(error, GatedRepoError):
        raise UserError(f"{here}{repo} is gated: ask for access on its page, then {_LOG_IN}") from None
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        raise UserError(
            f"{here}the Hub has no {repo} that you may use: check the name or, if it is private, {_LOG_IN}"
        ) from None
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        raise UserError(f"{here}the Hub does not let you do this with {repo}: {_LOG_IN}") from None
    raise RunError(f"{here}{failed} ({type(cause).__name__}: {_line(cause)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
