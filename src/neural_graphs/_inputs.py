"""What the inputs of a network look like, from a short text: `3x224x224`, `ids:16`, `input_ids=ids:16,mask=16`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from neural_graphs.errors import UserError

_ONE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<ids>ids:)?(?P<shape>\d+(?:x\d+)*)(?::(?P<bound>\d+))?")


@dataclass(frozen=True)
class InputSpec:
    """One input without its batch axis: real numbers, or whole numbers from 0 to below ``bound`` where ``ids``. ``name`` is
    the keyword argument that takes it."""

    shape: tuple[int, ...]
    name: str | None = None
    ids: bool = False
    bound: int | None = None


def parse_inputs(text: str) -> tuple[InputSpec, ...]:
    """Read ``SHAPE,SHAPE...``, each ``[NAME=]3x224x224`` or ``[NAME=]ids:16[:50257]`` (ids below 50257).

    Raises:
        UserError: the text is nothing like that, or only some inputs have a name.
    """
    found = []
    for part in text.split(","):
        match = _ONE.fullmatch(part.strip())
        shape = tuple(int(size) for size in match["shape"].split("x")) if match else ()
        if match is None or 0 in shape or (match["bound"] and not match["ids"]) or match["bound"] == "0":
            raise UserError(
                f"input {part!r} is no shape: write 3x224x224 for real numbers, ids:16 or ids:16:50257 for 16 token ids "
                "(below 50257), NAME=SHAPE for a keyword argument, commas between inputs"
            )
        bound = int(match["bound"]) if match["bound"] else None
        found.append(InputSpec(shape, match["name"], bool(match["ids"]), bound))
    if len({spec.name is None for spec in found}) > 1:
        raise UserError(f"input {text!r}: give every input a name or none")
    if len({spec.name for spec in found}) < len(found) and found[0].name is not None:
        raise UserError(f"input {text!r}: a name occurs twice")
    return tuple(found)


def batch_size(numel: int, ids: bool = False) -> int:
    """How many examples of ``numel`` numbers to draw: more of small ones, so that few units stay silent on all of them.

    Never one alone, because an axis of size 1 broadcasts.
    """
    return 2 if ids else max(2, min(16, 4096 // max(1, numel)))
