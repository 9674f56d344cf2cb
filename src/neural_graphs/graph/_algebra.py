"""Composition and inversion of group elements, and which classes may depend on which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._action import Element, Over, align


def check_over(over: Iterable[tuple[str, tuple[str, ...]]], sizes: Mapping[str, int]) -> None:
    """Raises ``UserError`` unless the dependencies name known classes, without cycles, and are closed: what a class depends
    on depends on nothing that the class does not depend on too (else composing two elements would leave the group)."""
    table = dict(over)
    for name, outer in table.items():
        for needed in (name, *outer):
            if needed not in sizes:
                raise UserError(f"class {name} depends on {', '.join(outer)}, but no axis holds {needed}")
        if len(set(outer)) != len(outer):
            raise UserError(f"class {name} depends on the same class twice: {', '.join(outer)}")
        if name in outer or any(name in table.get(needed, ()) for needed in outer):
            raise UserError(f"class {name} depends on itself")
        for needed in outer:
            if missing := [further for further in table.get(needed, ()) if further not in outer]:
                raise UserError(f"class {name} depends on {needed}, so it must depend on {', '.join(missing)} too")


def compose(second: Element, first: Element, over: Over, rescaled: Mapping[str, str]) -> Element:
    """First ``first``, then ``second``: sigma[p, q] = sigma1[pi2[p], sigma2[p, q]], and s[p] = s2[p] s1[pi2[p]]."""
    _refuse_phases(second.keys() | first.keys(), rescaled)
    found = {}
    for key in [*first, *(key for key in second if key not in first)]:
        name = rescaled.get(key, key)
        if key not in first:
            found[key] = second[key]
            continue
        found[key] = _pull(first[key], (*over.get(name, ()), name), second, over)
        if key in rescaled and key in second:
            found[key] = found[key] * second[key]
    return found


def invert(element: Element, over: Over, rescaled: Mapping[str, str]) -> Element:
    _refuse_phases(element.keys(), rescaled)
    found: Element = {}
    # What a class depends on comes first, since its inverse tells where each of the class's permutations goes.
    for name in sorted(element.keys() - rescaled.keys(), key=lambda name: len(over.get(name, ()))):
        found[name] = _pull(element[name].argsort(-1), (*over.get(name, ()), name), found, over)
    for key, name in rescaled.items():
        if key in element:
            found[key] = _pull(1 / element[key], (*over.get(name, ()), name), found, over)
    return {key: found[key] for key in element}


def _refuse_phases(keys: Iterable[str], rescaled: Mapping[str, str]) -> None:
    if any(key.startswith("phase:") and key not in rescaled for key in keys):
        raise UserError("phases cannot be composed or inverted; apply one element after the other instead")


def _pull(table: Tensor, labels: tuple[str, ...], element: Element, over: Over) -> Tensor:
    """``table`` ([B?, one axis per label]) read at the places that the element's action takes its entries from."""
    if not any(label in element for label in labels):
        return table
    lead = table.dim() - len(labels)
    digits, batches = [], list(table.shape[:lead])
    for place, label in enumerate(labels):
        where = [labels.index(outer) for outer in (*over.get(label, ()), label)]
        if label in element:
            digit = element[label].to(table.device)
            batches += digit.shape[: digit.dim() - len(where)]
        else:
            digit, where = torch.arange(table.shape[lead + place], device=table.device), [place]
        digits.append((digit, where))
    batched = bool(batches)
    indices = [align(digit, where, len(labels), batched) for digit, where in digits]
    if batched:
        networks = torch.arange(batches[0], device=table.device).reshape(-1, *(1 for _ in labels))
        table = table.expand(batches[0], *table.shape[lead:])
        indices = [networks, *indices]
    return table[tuple(indices)]
