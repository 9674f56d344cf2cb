"""The last guard before parameters are written: entries of an update that are not finite take Adam's step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neural_graphs.errors import RunError
from neural_graphs.optim._plain_adam import BETA1, BETA2, nominal_step
from neural_graphs.optim._rule import Proposal, State, UpdateRule


def repair(rule: UpdateRule, proposal: Proposal, state: State, steps: Mapping[str, int]) -> None:
    """Replace what is not finite in ``proposal``, and bring its figures up to date. Costs nothing where all is finite.

    Raises:
        RunError: Adam's step is not finite either, or the rule keeps no state to make it of.
    """
    if bool(proposal.summary["step"].isfinite().all()):
        return
    for number, piece in enumerate(proposal.wiring.pieces):
        name = piece.parameter
        update = proposal.updates[name]
        bad = ~piece.read(update).isfinite()
        if not bool(bad.any()):
            continue
        nominal = _nominal(rule, state[name], steps[name])
        if nominal is None or not bool(nominal[~update.isfinite()].isfinite().all()):
            raise RunError(
                f"the state of {name} gives a step that is not finite; no parameter was updated: load an earlier state"
            )
        nominal = piece.read(nominal)
        mended = torch.where(bad, nominal, piece.read(update))
        piece.write(update, mended)
        square, other, product = (
            (a * b).mean((1, 2, 3)) for a, b in ((mended, mended), (nominal, nominal), (mended, nominal))
        )
        figures = {
            "step": square.sqrt(),
            "nominal": other.sqrt(),
            "cosine": product / (square * other).sqrt().clamp_min(torch.finfo(update.dtype).tiny),
            "replaced": proposal.summary["replaced"][:, number] + bad.sum((1, 2, 3)),
        }
        for key, value in figures.items():
            proposal.summary[key][:, number] = value


def _nominal(rule: UpdateRule, held: Mapping[str, Tensor], step: int) -> Tensor | None:
    if BETA1 not in rule.betas or rule.beta2 != BETA2:
        return None
    return nominal_step(held["momenta"][rule.betas.index(BETA1)], held["square"], step)
