"""A user's own model by name: `pkg.module:factory` or `file.py:factory`. This imports and runs the code that it names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from neural_graphs.errors import UserError


def make_module(model: Any, arguments: Mapping[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """The module that ``model`` names or makes.

    ``model`` is a module, a class or function that returns one, or the name of such an object: ``"pkg.module:factory"``
    (the current directory is importable, as with ``python -m``) or ``"path/file.py:factory"``. ``arguments`` are the keyword
    arguments of the call. Random initial weights depend on ``seed`` alone; the caller's random state stays as it was.

    Raises:
        UserError: there is no such object, importing or calling it raised, or what it gave is no ``nn.Module``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(model, str):
            return _call(model, getattr(model, "__name__", type(model).__name__), arguments)
        origin, _, name = model.rpartition(":")
        if not origin or not name:
            raise UserError(f"model {model!r}: write it as package.module:factory or file.py:factory")
        with _importable(Path(origin).parent if origin.endswith(".py") else Path.cwd()):
            found = _find(_import(origin, model), name, model)
            torch.manual_seed(seed)  # again: the first import of a file may have drawn numbers
            return _call(found, model, arguments)


def _find(module: ModuleType, name: str, model: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [key for key in vars(found) if not key.startswith("_")], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"model {model}: {model.rpartition(':')[0]} has no {name}{hint}")
        found = getattr(found, part)
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


def _import(origin: str, model: str) -> ModuleType:
    if not origin.endswith(".py"):
        with _clear_failure(f"model {model}: importing {origin} failed"):
            importlib.invalidate_caches()  # the file may be younger than what Python remembers of the folder
            return importlib.import_module(origin)
    if not Path(origin).is_file():
        raise UserError(f"model {model}: there is no file {origin}")
    # A name of its own: the file may be called like a module that is in use. Dataclasses and the like look it up there.
    name = f"_neural_graphs_model_{Path(origin).stem}"
    found = importlib.util.spec_from_file_location(name, origin)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with _clear_failure(f"model {model}: importing {origin} failed"):
        found.loader.exec_module(module)
    return module


def _call(found: Any, model: str, arguments: Mapping[str, Any] | None) -> nn.Module:
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UserError(
                f"model {model} is of type {type(found).__name__}, neither a module nor a function that makes one"
            )
        with _clear_failure(f"model {model}: calling it failed"):
            found = found(**(arguments or {}))
    elif arguments:
        raise UserError(f"model {model} is a finished module: it takes no arguments")
    if not isinstance(found, nn.Module):
        raise UserError(f"model {model} gave an object of type {type(found).__name__}, not an nn.Module")
    return found


@contextmanager
def _clear_failure(what: str) -> Iterator[None]:
    """Whatever the user's code raises is said in one line; only Ctrl-C passes."""
    try:
        yield
    except (Exception, SystemExit) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{what}: {type(error).__name__}{': ' + detail if detail else ''}") from error
