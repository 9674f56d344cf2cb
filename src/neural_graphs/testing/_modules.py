"""Random modules: a random list of small steps, on a random kind of input."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.testing import _steps_attention, _steps_layers, _steps_moves, _steps_values, _steps_weights
from neural_graphs.testing._steps import GROUPS, STEPS, Draw, Saved, Step, fill

ModuleKind = Literal["vector", "sequence", "image", "tokens"]
Recipe = Sequence[tuple[str, int]]
"""Names of steps, each with the number from which its details are drawn."""

_PARTS = (_steps_attention, _steps_layers, _steps_moves, _steps_values, _steps_weights)  # they register their steps
_SHARES = {"layers": 7, "values": 4, "branches": 5, "moves": 4, "weights": 3, "norms": 2, "attention": 2}
_MOST = 384  # entries of a value, of each example
_HEADS = ("linear", "pooled", "flat", "tied", "none")


class RandomModule(nn.Module):
    """Steps one after the other, with all values of earlier steps at hand; ``print`` shows what they are."""

    def __init__(self, kind: str, recipe: Recipe, steps: Sequence[nn.Module], answer: str) -> None:
        super().__init__()
        self.kind, self.recipe, self.answer = kind, tuple(recipe), answer
        self.steps = nn.ModuleList(steps)

    def extra_repr(self) -> str:
        return f"{self.kind}: {' '.join(f'{name}:{number}' for name, number in self.recipe)} -> {self.answer}"

    def forward(self, x: Tensor) -> Any:
        saved: Saved = []
        for one in self.steps:
            x = one(x, saved)
            saved.append(x)
        if self.answer == "tuple":
            return x, x.square().mean()
        if self.answer == "dictionary":
            return {"first": x, "others": [saved[len(saved) // 2].square().mean(-1), saved[0].shape[-1]]}
        return x


def random_module(
    seed: int = 0, kind: ModuleKind | None = None, *, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor]:
    """A small module that is no plain stack, and an example input for it; the same seed gives the same module.

    2 to 10 random steps: layers (linear, convolutions, normalisation, attention, recurrent ones, gates, experts),
    residuals and concatenations with earlier values, reshapes and slices, reductions, sorting, writes in place, and
    parameters that are shared, cut, transposed or normalised before use; the module's ``recipe`` lists them. It is in
    evaluation mode, with random weights on which the output depends, but for a few (behind a reduction that ignores them).
    ``kind`` is that of the input, ``"vector"`` ([2, d]), ``"sequence"`` ([2, t, d]), ``"image"`` ([2, c, h, w]) or
    ``"tokens"`` ([2, t] integers, embedded first); None draws one.
    """
    rng, kinds = random.Random(f"module {seed} {kind}"), get_args(ModuleKind)
    drawn: str = kind or rng.choice(kinds)
    if drawn not in kinds:
        raise UserError(f"no kind of module {kind!r}: choose among {', '.join(kinds)}")
    recipe = []
    for _ in range(rng.randint(2, 10)):
        (group,) = rng.choices(list(_SHARES), list(_SHARES.values()))
        recipe.append((rng.choice(GROUPS[group]), rng.randrange(1000)))
    return assemble(drawn, recipe, rng.choices(_HEADS, (4, 3, 2, 2, 1))[0], _answer(rng), seed=seed, dtype=dtype)


def _answer(rng: random.Random) -> str:
    return rng.choice(("tensor", "tensor", "tensor", "tuple", "dictionary"))


def assemble(
    kind: str,
    recipe: Recipe,
    head: str = "linear",
    answer: str = "tensor",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[RandomModule, Tensor]:
    """The module of a recipe, for those who draw recipes themselves. Steps that do not fit what comes before, or make it
    infinite or too large, are left out."""
    generator = torch.Generator().manual_seed(seed)
    example = _example(kind, generator, dtype)
    x, saved, used, steps = example, list[Tensor](), list[tuple[str, int]](), list[nn.Module]()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        table = nn.Embedding(7, 6)
        if kind == "tokens":
            x = _add(Step(lambda own, x, saved: own.table(x), table=table), x, saved, steps, generator, dtype)
        for name, number in recipe:
            torch.manual_seed(number)
            try:
                x = _add(STEPS[name](Draw(f"{name} {number}"), x, saved), x, saved, steps, generator, dtype)
            except (IndexError, KeyError, ValueError, RuntimeError):
                continue
            used.append((name, number))
        if head == "none" and not any(True for one in steps[-1:] for _ in one.parameters()):
            head = "linear"  # else the answer might not depend on any parameter
        for last in _head(head, x, table if kind == "tokens" else None):
            fill(last, generator)
            x = last.to(dtype)(x, saved)
            saved.append(x)
            steps.append(last)
    return RandomModule(kind, used, steps, answer).eval(), example


def _example(kind: str, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    if kind == "tokens":
        return torch.randint(0, 7, (2, 5), generator=generator)
    shape = {"vector": (2, 5), "sequence": (2, 4, 6), "image": (2, 3, 6, 6)}[kind]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _add(
    one: Step, x: Tensor, saved: Saved, steps: list[nn.Module], generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Run a new step and keep it, if the result is good. Raises ``ValueError`` if not."""
    fill(one, generator)
    one.to(dtype).eval()
    found = one(x, saved)
    size = float(found.square().mean().sqrt()) if found.numel() else 0.0
    fits = found.ndim in range(2, 6) and found.shape[0] == 2 and 1 < found[0].numel() <= _MOST
    if not fits or found.dtype != dtype or not 1e-6 < size < 1e6 or not found.isfinite().all():
        raise ValueError("not a good value")
    if not 0.2 < size < 3:
        one.scale = float(f"{size:.1g}")
    steps.append(one)
    saved.append(found / one.scale)
    return saved[-1]


def _head(head: str, x: Tensor, table: nn.Embedding | None) -> list[Step]:
    """What turns the last value into the answer."""
    if head == "pooled" and x.ndim > 2:
        dims = list(range(1, x.ndim - 1)) if x.ndim == 3 else list(range(2, x.ndim))
        x_shape = x.mean(dims).shape
        pooled = Step(lambda own, x, saved: x.mean(dims))
        layer = nn.Linear(x_shape[-1], 3)
        return [pooled, Step(lambda own, x, saved: own.layer(x), layer=layer)]
    if head == "flat":
        layer = nn.Linear(x[0].numel(), 3)
        return [Step(lambda own, x, saved: own.layer(x.flatten(1)), layer=layer)]
    if head == "tied" and table is not None and x.shape[-1] == table.embedding_dim:
        tied = nn.Linear(table.embedding_dim, table.num_embeddings)
        tied.weight = table.weight
        return [Step(lambda own, x, saved: own.layer(x), layer=tied)]
    if head == "none":
        return []
    return [Step(lambda own, x, saved: own.layer(x), layer=nn.Linear(x.shape[-1], 3))]
