"""Fitting networks anew to other images, from their own weights: the reference that an editor is measured against."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neural_graphs._progress import progress
from neural_graphs.errors import UserError
from neural_graphs.graph import Stack, pixel_grid, render
from neural_graphs.zoo._inr import FitOptions, check_fittable, compile_pays, fit_networks
from neural_graphs.zoo._store import ZooSplit

CAPS = (64, 250, 1000)
"""Steps after which fitting is given up, tried one after the other."""

RATES = (1.0, 3.0)
"""Learning rates that are tried, times the one that the zoo was made with: on MNIST its own is best for some 20 steps, a
larger one for hundreds."""

TIMED = 20  # steps whose time is measured
REPEATS = 3


@dataclass(frozen=True)
class _Part:
    """Networks of one architecture: where they stand, and their weights ``{name: [n, *shape]}``."""

    stack: Stack
    places: Tensor
    params: dict[str, Tensor]


@dataclass(frozen=True)
class Curve:
    """What fitting came to: ``errors`` float64 ``[steps + 1]``, the mean over networks after so many steps at learning rate
    ``lr``, in units of the images (white is 1)."""

    lr: float
    errors: np.ndarray

    def steps_to(self, goal: float) -> int | None:
        """After how many steps the error is at most ``goal``; None: it never is."""
        reached = self.errors <= goal
        return int(reached.argmax()) if reached.any() else None


class Refit:
    """The networks of ``split`` under full-batch Adam on images ``[n, height, width, C]``, all at once, on torch's present
    number of threads (``zoo._inr.fit_networks``).

    Compiling kernels is left out of every time.

    Raises:
        UserError: networks that bulk fitting does not know.
    """

    def __init__(self, split: ZooSplit, height: int, width: int, device: str = "cpu") -> None:
        recipe = split.zoo.meta.get("recipe") or {}
        self.low, self.high = recipe.get("pixel_range", (0.0, 1.0))
        self.size, self.count = (height, width), len(split)
        self.parts = []
        for name, places, params in split.state_dicts():
            stack = split.zoo.architectures[name]
            if not isinstance(stack, Stack):
                raise UserError(f"cannot fit {stack}: bulk fitting knows linear layers with biases only")
            check_fittable(stack)
            self.parts.append(_Part(stack, places, params))
        self.lr = float(recipe.get("lr") or FitOptions.lr)
        pays = any(compile_pays(part.stack, height * width, len(part.places), CAPS[-1]) for part in self.parts)
        self.options = FitOptions(device=device, threads=torch.get_num_threads(), compile=pays)

    def seconds_per_step(self) -> float:
        """Seconds that a step takes per network, without what is done once per fit: the fastest of ``REPEATS``."""
        targets = torch.zeros(self.count, *self.size, self.parts[0].stack.num_outputs)
        fastest = []
        for steps in (1, 1 + TIMED):
            seconds = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                self._fit(targets, steps, self.lr)
                seconds.append(time.perf_counter() - begun)
            fastest.append(min(seconds))
        return max((fastest[1] - fastest[0]) / TIMED / self.count, 1e-9)

    def curves(self, targets: Tensor, goal: float, steps: int = 0) -> list[Curve]:
        """Errors by number of steps, a curve per learning rate: until the mean over networks is at most ``goal`` or ``CAPS``
        are used up, and for ``steps`` at least."""
        for cap in sorted({max(cap, steps) for cap in CAPS}):
            found = []
            for rate in RATES:
                trace = torch.empty(cap, self.count)
                _, last = self._fit(targets, cap, rate * self.lr, trace)
                errors = torch.cat((trace.double().mean(1), last.double().mean()[None])).numpy()
                # A network that diverges must not pass for one that is never reached by a comparison.
                found.append(Curve(rate * self.lr, np.nan_to_num(errors, nan=np.inf)))
            if any(curve.steps_to(goal) is not None for curve in found):
                break
        return found

    def images(self, targets: Tensor, steps: int, lr: float) -> np.ndarray:
        """What the networks draw after so many steps: float32 ``[n, height, width, C]``, not clipped."""
        fitted, _ = self._fit(targets, steps, lr)
        drawn = torch.empty_like(targets)
        with torch.no_grad():
            for part, params in zip(self.parts, fitted, strict=True):
                drawn[part.places] = render(part.stack.graph(params), *self.size, (self.low, self.high))
        return drawn.numpy()

    def _fit(
        self, targets: Tensor, steps: int, lr: float, trace: Tensor | None = None
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The fitted weights of every part, and the errors of all networks ``[n]``; ``trace`` as in ``fit_networks``."""
        options = replace(self.options, steps=steps, lr=lr)
        scale = (self.high - self.low) ** 2
        wanted = self.low + (self.high - self.low) * targets.permute(0, 3, 1, 2).flatten(2)
        errors, fitted = torch.empty(self.count), []
        with progress("fitting anew", self.count) as bar:
            for part in self.parts:
                own = torch.empty(steps, len(part.places)) if trace is not None else None
                grid = pixel_grid(*self.size)
                params, found = fit_networks(
                    part.stack, part.params, grid, wanted[part.places], options, bar.advance, trace=own
                )
                fitted.append(params)
                errors[part.places] = found / scale
                if trace is not None and own is not None:
                    trace[:, part.places] = own / scale
        return fitted, errors
