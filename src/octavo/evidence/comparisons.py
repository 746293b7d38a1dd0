"""Two cells at equal something: tokens, model FLOPs, parameters, device-hours, money.

For each pair and axis, by seed: how their losses differ at the end of the range that both cover, and what each needed
for the same loss, which is the higher of the two losses there, so that both have reached it. Where one run is longer on
an axis it is read before its end, while its learning rate is still high; that makes it look worse than a run planned
for that length, and the note says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.evidence.grid import Grid, Pair, Resource
from octavo.records import Axis, Comparison, Estimate, Losses
from octavo.statistics import Interval, bootstrap_interval, t_interval

AXES: dict[Axis, Resource] = {
    "tokens": "tokens",
    "model_flops": "model_flops",
    "active_parameters": "tokens",
    "total_parameters": "tokens",
    "device_hours": "device_hours",
    "cost": "cost",
}
"""An axis and the resource that its curves run over."""

EQUAL = 1e-3
"""Runs are on equally many tokens if they are no further apart than this share."""
EARLY = 0.95
"""A run that is read before this share of its length is said to be."""


@dataclass(frozen=True)
class Paired:
    """What the seeds of a pair show on one resource."""

    loss: np.ndarray
    """Relative difference of the losses at the end of the common range, %."""
    ratio: np.ndarray
    """Logarithm of the ratio of what was spent at equal loss; NaN where a curve began below that loss."""
    share: tuple[float, float]
    """How far into its run each cell was read, at the end of the common range; mean over seeds."""
    losses: Losses
    """Which losses `loss` is the difference of."""


def paired(grid: Grid, pair: Pair, resource: Resource) -> Paired | None:
    """Differences by seed; None where the resource is not known or the curves do not overlap."""
    key = (pair.cell.name, pair.against.name, resource)
    if key not in grid.paired:
        grid.paired[key] = _paired(grid, pair, resource)
    return grid.paired[key]


def _paired(grid: Grid, pair: Pair, resource: Resource) -> Paired | None:
    losses, ratios, shares = [], [], []
    kinds: set[Losses] = set()
    for seed in pair.seeds:
        loss = final_difference(pair, seed) if resource == "tokens" else None
        kinds.add(_losses(grid, pair) if loss is None else final_losses(pair, seed))
        one, other = (grid.curve(name, seed, resource) for name in (pair.cell.name, pair.against.name))
        if one is None or other is None or min(one.end, other.end) < max(one.start, other.start):
            if loss is None:
                return None
            losses.append(loss)
            ratios.append(np.nan)
            continue
        end = min(one.end, other.end)
        ours, theirs = one.at(end), other.at(end)
        losses.append(100 * (ours / theirs - 1) if loss is None else loss)
        target = max(ours, theirs) * (1 + 1e-12)  # a curve's end is at its own last loss, but for rounding
        needed = [curve.reaches(target) for curve in (one, other)]
        ratios.append(np.log(needed[0] / needed[1]) if needed[0] and needed[1] else np.nan)
        shares.append((end / one.end, end / other.end))
    if not losses:
        return None
    mean = np.mean(shares, axis=0) if shares else np.ones(2)
    kind = kinds.pop() if len(kinds) == 1 else "validation and training"
    return Paired(np.array(losses), np.array(ratios), (float(mean[0]), float(mean[1])), kind)


def final_difference(pair: Pair, seed: int) -> float | None:
    """Relative difference of the final losses, %, of two runs on equally many tokens; None if they are not that."""
    one, other = pair.cell.runs.loc[seed], pair.against.runs.loc[seed]
    if not (abs(one["tokens"] - other["tokens"]) <= EQUAL * other["tokens"]):
        return None
    column = f"{final_losses(pair, seed)}_loss"
    difference = float(100 * (one[column] / other[column] - 1))
    return difference if np.isfinite(difference) else None


def final_losses(pair: Pair, seed: int) -> Losses:
    """Which final losses of two runs are compared: training losses only where one has no validation loss."""
    both = (cell.runs.loc[seed, "validation_loss"] for cell in (pair.cell, pair.against))
    return "validation" if all(np.isfinite(loss) for loss in both) else "training"


def _losses(grid: Grid, pair: Pair) -> Losses:
    """Which losses the curves of a pair go through."""
    kinds: set[Losses] = {
        "training" if cell.name in grid.from_training else "validation" for cell in (pair.cell, pair.against)
    }
    return kinds.pop() if len(kinds) == 1 else "validation and training"


def estimate(values: np.ndarray, unit: str, confidence: float = 0.95) -> Estimate:
    """Mean and intervals of differences by seed; those of a ratio are logarithms."""
    interval, resampled = t_interval(values, confidence), bootstrap_interval(values, confidence)

    def scale(value: float | None) -> float | None:
        return value if value is None or unit != "ratio" else float(np.exp(value))

    empty = Interval(0.0, None, None, confidence, 0)
    return Estimate(
        value=float(np.exp(interval.estimate)) if unit == "ratio" else interval.estimate,
        low=scale(interval.low),
        high=scale(interval.high),
        bootstrap_low=scale((resampled or empty).low),
        bootstrap_high=scale((resampled or empty).high),
        confidence=confidence,
        n=interval.n,
        unit=unit,
    )


def all_comparisons(grid: Grid) -> list[Comparison]:
    """Every pair on every axis that its cells agree in."""
    pairs = [pair for kind in ("architecture", "precision", "ablation") for pair in grid.pairs(kind)]
    return [compare(grid, pair, axis) for pair in pairs for axis in AXES if _agrees(pair, axis)]


def compare(grid: Grid, pair: Pair, axis: Axis) -> Comparison:
    """One pair on one axis."""
    found = paired(grid, pair, AXES[axis])
    mismatch = pair.mismatch(axis) if axis in ("active_parameters", "total_parameters") else None
    notes = [f"a run of seed {', '.join(map(str, pair.diverged))} diverged: left out"] if pair.diverged else []
    common: dict[str, Any] = {
        "axis": axis, "cell": pair.cell.name, "against": pair.against.name, "kind": pair.kind
    }  # fmt: skip
    emulated = pair.emulated and axis in ("device_hours", "cost")
    if found is None:
        why = "no seed is complete for both" if not pair.seeds else _why_not(grid, pair, axis)
        return Comparison(
            **common, loss_difference=None, resource_ratio=None, mismatch=mismatch, emulated=emulated,
            censored=len(pair.diverged), note="; ".join([*notes, why]),
        )  # fmt: skip
    if emulated:
        notes.append("times are those of an emulation and say nothing about FP8")
    for cell, share in zip((pair.cell, pair.against), found.share, strict=True):
        if share < EARLY:
            notes.append(
                f"{cell.label} is read at {100 * share:.0f} % of its run, where its learning rate may still be high"
            )
    if any(cell.name in grid.from_training for cell in (pair.cell, pair.against)):
        notes.append("too few validations for a curve: training losses, averaged, take their place")
    unknown = int(np.isnan(found.ratio).sum())
    if unknown and not _curves(grid, pair, axis):
        notes.append(_why_not(grid, pair, axis))
    elif unknown:
        notes.append(f"in {unknown} of {len(found.ratio)} seeds a curve begins below the loss of the other's end")
    return Comparison(
        **common,
        loss_difference=estimate(found.loss, "%"),
        losses=found.losses,
        loss_differences=found.loss.tolist(),
        resource_ratio=None if unknown else estimate(found.ratio, "ratio"),
        resource_ratios=[] if unknown else np.exp(found.ratio).tolist(),
        censored=unknown + len(pair.diverged),
        mismatch=mismatch,
        emulated=emulated,
        note="; ".join(notes) or None,
    )


def _curves(grid: Grid, pair: Pair, axis: Axis) -> bool:
    """Whether all runs of a pair have a curve on an axis."""
    names = (pair.cell.name, pair.against.name)
    return all(grid.curve(name, seed, AXES[axis]) for name in names for seed in pair.seeds)


def _why_not(grid: Grid, pair: Pair, axis: Axis) -> str:
    if _curves(grid, pair, axis):
        return "the curves of the two do not overlap"
    return f"the runs do not say their {words(AXES[axis])}, or have too few losses for a curve"


def words(axis: Axis) -> str:
    """`device_hours` -> `device-hours`."""
    return {"device_hours": "device-hours", "model_flops": "model FLOPs"}.get(axis, axis.replace("_", " "))


def _agrees(pair: Pair, axis: Axis) -> bool:
    return axis not in ("active_parameters", "total_parameters") or pair.agrees(axis)
