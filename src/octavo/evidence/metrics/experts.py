"""The metric of many small experts: what doubling their number does to the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import PositiveInt

from octavo.configuration import Section
from octavo.evidence.comparisons import EQUAL
from octavo.evidence.grid import Cell, Grid, Pair
from octavo.evidence.metrics.base import Divergence, Expectation, Measurement, Phrase, Sample, divergence
from octavo.records import Estimate


class ExpertCount(Section):
    """How many experts are many."""

    many: PositiveInt
    """The claim is about so many experts and more: with fewer it is not testable."""


def expert_count(grid: Grid, parameters: ExpertCount, expectation: Expectation) -> Measurement:
    """Change of the loss with every doubling of the number of experts, which grow smaller, at equal active parameters
    and equal tokens: the slope of a straight line through log loss over log2 experts, by seed. Training losses are
    compared where not every run has a validation loss."""
    samples: list[Sample] = []
    untested: dict[str, str] = {}
    incomplete = False
    rows: dict[str, list[Any]] = {"cell": [], "experts": [], "expert_size": [], "seed": [], "loss": []}
    for base in [cell for cell in grid.cells.values() if cell.mixture and cell.experts and not cell.ablation]:
        arms, apart = _arms(grid, base)
        untested |= apart
        if len(arms) < 2:
            continue
        lines = _lines(arms)
        if lines.why is not None:
            untested[base.label] = lines.why
            incomplete = True
            continue
        for row in lines.rows():
            for column, value in zip(rows, row, strict=True):
                rows[column].append(value)
        samples.append(
            Sample(
                label=base.label, values=lines.slopes(), unit="% per doubling", relation=expectation.relation,
                margin=expectation.margin, phrase=_per_doubling(base, lines.arms), cells=tuple(arms),
                runs=[f"{arm.name}/seed-{seed}" for arm in lines.arms for seed in lines.seeds], diverged=lines.lost,
            )
        )  # fmt: skip
    if not samples and not untested:
        return Measurement(missing="ablations that change the number of experts at equal active parameters")
    far = [sample for sample in samples if _most(sample) >= parameters.many]
    for sample in samples:
        if _most(sample) < parameters.many:
            label = f"{parameters.many} experts and more in {sample.label}"
            untested[label] = f"the runs go up to {_most(sample)} experts"
    return Measurement(far or samples, untested, incomplete, decides=bool(far), data=rows)


@dataclass(frozen=True)
class _Lines:
    """Losses of cells that differ in the number of their experts, a line for each seed that all of them have."""

    arms: list[Cell]
    """Those with a complete run, by their number of experts."""
    seeds: list[int]
    losses: np.ndarray
    """By [arm, seed]."""
    lost: Divergence | None
    why: str | None
    """Why they tell nothing, if so."""

    def slopes(self) -> np.ndarray:
        """By seed: % of the loss with every doubling."""
        if not self.losses.size:
            return np.empty(0)
        doublings = np.log2([arm.experts or 1 for arm in self.arms])
        return 100 * np.polyfit(doublings, np.log(self.losses), 1)[0]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Name, experts, size of an expert, seed and loss of every run."""
        for arm, losses in zip(self.arms, self.losses, strict=False):
            for seed, loss in zip(self.seeds, losses, strict=True):
                yield arm.name, arm.experts, arm.expert_size, seed, float(loss)


def _arms(grid: Grid, base: Cell) -> tuple[list[Cell], dict[str, str]]:
    """A cell and its ablations with more or fewer experts, by that number; and why others are none of them."""
    others = [one for one in grid.cells.values() if one.ablation and one.baseline == base.name]
    others = [one for one in others if one.experts not in (None, 0, base.experts)]
    apart = {one.label: why for one in others if (why := _not_finer(one, base))}
    arms = [base, *(one for one in others if one.label not in apart)]
    return sorted(arms, key=lambda cell: cell.experts or 0), apart


def _lines(arms: list[Cell]) -> _Lines:
    """What was lost by divergence is a finding of its own: then runs that are missing are no reason to say nothing."""
    kept, lost = [arm for arm in arms if len(arm.runs)], _lost_arms(arms)
    seeds = sorted(set.intersection(*(set(arm.runs.index) for arm in kept))) if len(kept) > 1 else []
    losses, why = _losses_of_arms(kept, seeds)
    if why is None and len(kept) < len(arms):
        why = "not every arm has a complete run"
    return _Lines(kept, seeds, losses, lost, why if lost is None else None)


def _most(sample: Sample) -> int:
    return max(cell.experts or 0 for cell in sample.cells)


def _not_finer(cell: Cell, base: Cell) -> str | None:
    """Why a cell is not one with more but smaller experts than another (or fewer, larger ones) and else its equal."""
    if not (cell.experts and base.experts and cell.expert_size and base.expert_size):
        return "the size of its experts is not known"
    if cell.expert_size == base.expert_size or (cell.experts > base.experts) != (cell.expert_size < base.expert_size):
        return "its experts do not grow smaller where there are more of them"
    if (cell.shared_expert_size or 0, cell.accumulation) != (base.shared_expert_size or 0, base.accumulation):
        return "it changes something else besides the number of experts"
    pair = Pair("ablation", cell, base)
    mismatch = pair.mismatch("active_parameters")
    if mismatch is None:
        return "its active parameters are not known"
    return None if pair.agrees("active_parameters") else f"its active parameters are {100 * mismatch:.0f} % apart"


def _lost_arms(arms: list[Cell]) -> Divergence | None:
    """Arms that diverged; the finest against the coarsest says whether it is the small experts that do."""
    told = [
        f"{len(arm.diverged)} of {len(arm.diverged) + len(arm.runs)} runs with {arm.experts} experts diverged"
        for arm in arms
        if arm.diverged
    ]
    ends = divergence(arms[-1], arms[0])
    return Divergence(" and ".join(told), ends.p_worse if ends else 1.0) if told else None


def _losses_of_arms(arms: list[Cell], seeds: list[int]) -> tuple[np.ndarray, str | None]:
    """Losses by [arm, seed], and why they cannot be compared if so."""
    if not seeds:
        return np.empty((0, 0)), "no seed is complete for all numbers of experts"
    runs = [arm.runs.loc[seeds] for arm in arms]
    tokens = np.array([one["tokens"].to_numpy() for one in runs])
    if not (np.abs(tokens / tokens[0] - 1) <= EQUAL).all():
        return np.empty((0, 0)), "its runs are not all on equally many tokens, or do not say on how many"
    if any(Pair("ablation", arm, arms[0]).unlike for arm in arms[1:]):
        return np.empty((0, 0)), "its runs are on different text or tokens"
    at = np.array([(one["validation_step"] / one["steps"]).to_numpy() for one in runs])
    if np.isfinite(at).all() and not (np.abs(at - at[0]) <= EQUAL).all():
        return np.empty((0, 0)), "its runs were not last validated after equally many tokens"
    for column in ("validation_loss", "training_loss"):
        losses = np.array([one[column].to_numpy() for one in runs])
        if np.isfinite(losses).all():
            return losses, None
    return np.empty((0, 0)), "its runs do not all have a validation loss, nor all a training loss"


def _per_doubling(base: Cell, arms: list[Cell]) -> Phrase:
    def phrase(effect: Estimate) -> str:
        way = "rises" if effect.value > 0 else "falls"
        return (
            f"the loss of {base.label} {way} by {abs(effect.value):.2f} % with every doubling of its experts, "
            f"from {arms[0].experts} to {arms[-1].experts}, at equal active parameters and tokens"
        )

    return phrase
