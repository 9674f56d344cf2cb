"""Encoders by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from neural_graphs.errors import UserError
from neural_graphs.nn._encoder import Encoder

_ENCODERS: dict[str, type[Encoder]] = {}

E = TypeVar("E", bound=type[Encoder])


def register_encoder(name: str) -> Callable[[E], E]:
    """Class decorator: makes an encoder available by name, and gives it the project's test battery."""

    def register(cls: E) -> E:
        if name in _ENCODERS:
            raise UserError(f"an encoder named {name!r} is registered already")
        _ENCODERS[name] = cls
        return cls

    return register


def create_encoder(name: str, **kwargs: Any) -> Encoder:
    """Build a registered encoder; ``kwargs`` are its constructor's. Raises ``UserError`` for unknown names or arguments."""
    if name not in _ENCODERS:
        raise UserError(f"unknown encoder {name!r}: choose one of {', '.join(list_encoders())}")
    valid = inspect.signature(_ENCODERS[name]).parameters
    if unknown := sorted(set(kwargs) - set(valid)):
        raise UserError(f"encoder {name} has no argument {unknown[0]!r}: it has {', '.join(valid)}")
    try:
        encoder = _ENCODERS[name](**kwargs)
    except TypeError as error:
        raise UserError(f"encoder {name}: {error}") from None
    encoder.config = {"name": name, **kwargs}
    return encoder


def list_encoders() -> list[str]:
    """Names of all registered encoders, sorted."""
    return sorted(_ENCODERS)
