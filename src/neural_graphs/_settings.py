"""Reading configurations: YAML files, dotted overrides, and dataclasses checked field by field. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from neural_graphs.errors import UserError

T = TypeVar("T")


def preset_names(package: str) -> list[str]:
    """Names of the configurations in ``package``'s folder ``_presets``, sorted."""
    folder = resources.files(package) / "_presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_of(package: str, name: str) -> str:
    """The commented YAML of a preset."""
    return (resources.files(package) / "_presets" / f"{name}.yaml").read_text(encoding="utf-8")


def read_source(package: str, source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a YAML file or of one of ``package``'s presets, changed by overrides (see ``read_settings``).

    Raises:
        UserError: no such file or preset, broken YAML, or an override that is none.
    """
    name, presets = os.fspath(source), preset_names(package)
    if name in presets:
        text = preset_of(package, name)
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    else:
        raise UserError(f"{name} is neither a file nor a preset; presets: {', '.join(presets)}")
    return read_settings(text, name, overrides)


def read_settings(text: str, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of YAML ``text``, which came from ``name``, changed by overrides like ``optimizer.lr=3e-4``.

    Raises:
        UserError: broken YAML, or an override that is none.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} holds no configuration: expected keys such as zoo, encoder and optimizer")
    for override in overrides:
        _override(values, override)
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as text; here it is a number, as everyone expects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is no override: write key=value, as in optimizer.lr=3e-4")
    *path, leaf = key.strip().split(".")
    place = values
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {part} is a single value, it has no keys")
        place = inner
    try:
        place[leaf] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        place[leaf] = text


def build(cls: type[T], values: Any, prefix: str = "") -> T:
    """A dataclass from a mapping; raises ``UserError`` for unknown keys and wrong types. ``prefix`` goes before keys."""
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} must hold keys, found {values!r}")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise UserError(f"unknown key {prefix}{key}: valid are {', '.join(prefix + name for name in hints)}")
    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, f"{key}.")  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{key} is {value!r}, expected one of {', '.join(arguments)}")
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, key)
    if origin is list:
        entries = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return [_convert(arguments[0], entry, key) for entry in entries]
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is str and value is None:
        return ""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UserError(f"{key} is {value!r}, expected {kinds.get(hint, 'keys')}")
