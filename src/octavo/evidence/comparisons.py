"""Two cells at equal something: tokens, model FLOPs, parameters, device-hours, money.

For each pair and axis, by seed: how their losses differ at the end of the range that both cover, and what each needed
for the same loss, which is the higher of the two losses there, so that both have reached it. Where a run is read before
its end, or before the decay of its learning rate, `octavo.evidence.schedule` says which of the two that works against.
Where runs were planned for several lengths (`octavo.evidence.lengths`) none is: curves go through their ends.
Losses of different text or tokens are not compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.evidence.curves import FEWEST_ENDS
from octavo.evidence.grid import Cell, Grid, Pair, Resource
from octavo.evidence.names import listed
from octavo.evidence.schedule import Bias
from octavo.records import Axis, Comparison, Estimate, Losses
from octavo.scaling.leverage import estimate as central
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

MIXED: Losses = "validation and training"

EQUAL = 1e-3
"""Runs are on equally many tokens if they are no further apart than this share."""
EARLY = 0.95
"""A run that is read before this share of its length is said to be."""


@dataclass(frozen=True)
class Paired:
    """What the seeds of a pair show on one resource."""

    loss: np.ndarray
    """Relative difference of the losses at the end of the common range, %; NaN where there is no common point."""
    ratio: np.ndarray
    """Logarithm of the ratio of what was spent at equal loss; NaN where a curve began below that loss."""
    share: tuple[float, float]
    """How far into its run each cell's loss was read; mean over seeds."""
    losses: Losses
    """Which losses `loss` is the difference of."""
    loss_bias: Bias
    ratio_bias: Bias
    planned: bool
    """Whether both curves go through the ends of runs planned for their lengths."""

    @property
    def ends(self) -> bool:
        """Whether the losses are those of the runs' ends."""
        return min(self.share) >= 1 - EQUAL


@dataclass(frozen=True)
class Reading:
    """The losses of two runs of a seed, read at the same point."""

    difference: float
    """Relative, %."""
    share: tuple[float, float]
    """How far into its run each was read."""
    undecayed: tuple[float, float]
    """How high the learning rate of each still goes, over its peak."""
    losses: Losses


def paired(grid: Grid, pair: Pair, resource: Resource) -> Paired | None:
    """Differences by seed; None where the resource is not known, or losses cannot be compared (`refusal`)."""
    key = (pair.cell.name, pair.against.name, resource)
    if key not in grid.paired:
        unlike = resource in ("device_hours", "cost") and grid.unlike_devices(pair)
        grid.paired[key] = None if unlike or refusal(grid, pair) else _paired(grid, pair, resource)
    return grid.paired[key]


def refusal(grid: Grid, pair: Pair) -> str | None:
    """Why losses of a pair are not compared, whatever is equal; None where they are."""
    if same := grid.same_numbers(pair):
        return same
    if not pair.unlike or not pair.seeds:
        return None
    if pair.in_bits_per_byte and _losses(grid, pair) == "validation":
        return None
    offer = (
        ""
        if pair.in_bits_per_byte
        else ": bits per byte could be, of the same validation text and known bytes per token"
    )
    return f"losses per token of different {' and '.join(pair.unlike)} are not compared{offer}"


def _paired(grid: Grid, pair: Pair, resource: Resource) -> Paired | None:
    names = (pair.cell.name, pair.against.name)
    readings: list[Reading | None] = []
    ratios: list[float] = []
    needed_at: list[tuple[float, float]] = []
    for seed in pair.seeds:
        final = equal_tokens(pair, seed) and resource == "tokens"
        reading = final_reading(grid, pair, seed) if final else None
        one, other = (grid.curve(name, seed, resource) for name in names)
        if one is None or other is None or min(one.end, other.end) < max(one.start, other.start):
            if not final:
                return None
            readings.append(reading)
            ratios.append(np.nan)
            continue
        end = min(one.end, other.end)
        scales = _scales(pair, seed)
        ours, theirs = one.at(end) * scales[0], other.at(end) * scales[1]
        if not final:
            rates = tuple(grid.undecayed_at(name, seed, resource, end) for name in names)
            share = grid.share_at(names[0], one, end), grid.share_at(names[1], other, end)
            reading = Reading(100 * (ours / theirs - 1), share, (rates[0], rates[1]), _kind(grid, pair))
        readings.append(reading)
        target = max(ours, theirs) * (1 + 1e-12)  # a curve's end is at its own last loss, but for rounding
        mine, its = (curve.reaches(target / scale) for curve, scale in zip((one, other), scales, strict=True))
        if mine and its:
            ratios.append(float(np.log(mine / its)))
            rates = [grid.undecayed_at(name, seed, resource, at) for name, at in zip(names, (mine, its), strict=True)]
            needed_at.append((rates[0], rates[1]))
        else:
            ratios.append(np.nan)
    if not readings:
        return None
    known = [one for one in readings if one is not None]
    kinds: set[Losses] = {one.losses for one in known}
    return Paired(
        loss=np.array([np.nan if one is None else one.difference for one in readings]),
        ratio=np.array(ratios),
        share=_mean([one.share for one in known], 1.0),
        losses=kinds.pop() if len(kinds) == 1 else MIXED,
        loss_bias=Bias(*_mean([one.undecayed for one in known], 0.0)),
        ratio_bias=Bias(*_mean(needed_at, 0.0)),
        planned=all(name in grid.planned for name in names),
    )


def _mean(pairs: list[tuple[float, float]], otherwise: float) -> tuple[float, float]:
    one, other = np.mean(pairs, axis=0) if pairs else (otherwise, otherwise)
    return float(one), float(other)


def equal_tokens(pair: Pair, seed: int) -> bool:
    """Whether two runs are on equally many tokens."""
    one, other = (cell.runs.loc[seed, "tokens"] for cell in (pair.cell, pair.against))
    return bool(abs(one - other) <= EQUAL * other)


def final_reading(grid: Grid, pair: Pair, seed: int) -> Reading | None:
    """The final losses of two runs on equally many tokens; None where they are not that, or have none to compare.

    Those of their last validations, where both were validated after as many tokens; otherwise those after the most
    tokens at which both were. Training losses, of the lines of the last tenth that both have, only where a run has no
    validation loss.
    """
    names = (pair.cell.name, pair.against.name)
    if not equal_tokens(pair, seed) or not all((name, seed) in grid.courses for name in names):
        return None
    one, other = (cell.runs.loc[seed] for cell in (pair.cell, pair.against))
    ours, theirs = (grid.courses[name, seed].finals for name in names)
    scales = _scales(pair, seed)
    last = one["validation_step"] / one["steps"], other["validation_step"] / other["steps"]

    def reading(losses: tuple[float, float], share: tuple[float, float], kind: Losses) -> Reading:
        at = one["tokens"] * share[0], other["tokens"] * share[1]
        rates = tuple(
            float(np.interp(tokens, points.spent["tokens"], points.undecayed)) if len(points.loss) else 0.0
            for tokens, points in zip(at, (ours, theirs), strict=True)
        )
        difference = 100 * (losses[0] * scales[0] / (losses[1] * scales[1]) - 1)
        return Reading(float(difference), share, (rates[0], rates[1]), "bits per byte" if pair.unlike else kind)

    if abs(last[0] - last[1]) <= EQUAL:
        return reading((one["validation_loss"], other["validation_loss"]), last, "validation")
    if np.isfinite(last).sum() == 1:  # one was never validated
        losses = one["training_loss"], other["training_loss"]
        return reading(losses, (1.0, 1.0), "training") if np.isfinite(losses).all() else None
    at, beside = ours.spent["tokens"], theirs.spent["tokens"]
    mine, its = np.nonzero(np.abs(at[:, None] - beside[None]) <= EQUAL * at[:, None])
    if not len(mine):
        return None
    if not np.isfinite(last).any():
        return reading((float(ours.loss[mine].mean()), float(theirs.loss[its].mean())), (1.0, 1.0), "training")
    share = float(at[mine[-1]] / one["tokens"]), float(beside[its[-1]] / other["tokens"])
    return reading((float(ours.loss[mine[-1]]), float(theirs.loss[its[-1]])), share, "validation")


def _scales(pair: Pair, seed: int) -> tuple[float, float]:
    """What losses are multiplied with before they are compared: 1, or bits per byte over nats per token."""
    if not pair.unlike:
        return 1.0, 1.0
    rows = [cell.runs.loc[seed] for cell in (pair.cell, pair.against)]
    one, other = (float(row["validation_bits_per_byte"] / row["validation_loss"]) for row in rows)
    return one, other


def _kind(grid: Grid, pair: Pair) -> Losses:
    return "bits per byte" if pair.unlike else _losses(grid, pair)


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
        if value is None:
            return None
        return float(np.exp(value)) if unit == "ratio" else value

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


def of_draws(draws: np.ndarray, unit: str, seeds: int, confidence: float = 0.95) -> Estimate:
    """Median and percentile interval of an effect's draws, without an end that is infinite; those of a ratio are
    logarithms."""
    said = central(draws, confidence)
    assert said is not None, "a sample is one that has a median"

    def scale(value: float | None) -> float | None:
        return math.exp(value) if unit == "ratio" and value is not None else value

    return Estimate(
        value=math.exp(said.value) if unit == "ratio" else said.value,
        low=scale(said.low),
        high=scale(said.high),
        confidence=confidence,
        n=seeds,
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
        "axis": axis, "cell": pair.cell.name, "against": pair.against.name, "kind": pair.kind, "mismatch": mismatch,
        "emulated": pair.emulated and axis in ("device_hours", "cost"), "unlike": listed(pair.unknown) or None,
    }  # fmt: skip
    if found is None:
        why = "no seed is complete for both" if not pair.seeds else refusal(grid, pair) or _why_not(grid, pair, axis)
        return Comparison(
            **common, loss_difference=None, resource_ratio=None, censored=len(pair.diverged),
            note="; ".join([*notes, why]),
        )  # fmt: skip
    if common["emulated"]:
        notes.append("times are those of an emulation and say nothing about FP8")
    early = read_early(grid, pair, found)
    notes += early
    if found.planned:
        notes.append("read between the ends of runs planned for their lengths")
    if any(cell.name in grid.from_training for cell in (pair.cell, pair.against)):
        notes.append("too few validations for a curve: training losses, averaged, take their place")
    if found.losses == "bits per byte":
        notes.append(f"different {' and '.join(pair.unlike)}: bits per byte are compared")
    apart = bool(np.isnan(found.loss).any())
    if apart:
        notes.append(NO_COMMON_POINT)
    unknown = int(np.isnan(found.ratio).sum())
    if unknown and not _curves(grid, pair, axis):
        notes.append(_why_not(grid, pair, axis))
    elif unknown:
        notes.append(f"in {unknown} of {len(found.ratio)} seeds a curve begins below the loss of the other's end")
    loss_sign, ratio_sign = found.loss_bias.sign, found.ratio_bias.sign
    return Comparison(
        **common,
        loss_difference=None if apart else estimate(found.loss, "%"),
        losses=found.losses,
        loss_differences=[] if apart else found.loss.tolist(),
        resource_ratio=None if unknown else estimate(found.ratio, "ratio"),
        resource_ratios=[] if unknown else np.exp(found.ratio).tolist(),
        censored=unknown + len(pair.diverged),
        ends=found.ends,
        planned_ends=found.planned,
        loss_bias=loss_sign,
        ratio_bias=ratio_sign,
        early="; ".join(early) if loss_sign else biased_words(grid, pair, found.ratio_bias) if ratio_sign else None,
        note="; ".join(notes) or None,
    )


NO_COMMON_POINT = "there is no step after which both were validated"


def read_early(grid: Grid, pair: Pair, found: Paired) -> list[str]:
    """For each cell whose loss was read before its end or its decay, in words: how far it was."""
    told = []
    both = zip((pair.cell, pair.against), found.share, (found.loss_bias.cell, found.loss_bias.against), strict=True)
    for cell, share, rate in both:
        before_its_end = share < EARLY or (share < 1 - EQUAL and found.loss_bias.sign != 0)
        if before_its_end:
            told.append(f"{cell.label} is read at {100 * share:.0f} % of its run, {_rate(grid, cell, rate)}")
        elif found.loss_bias.sign and rate == max(found.loss_bias.cell, found.loss_bias.against):
            told.append(f"{cell.label} ends {_rate(grid, cell, rate)}")
    return told


def biased_words(grid: Grid, pair: Pair, bias: Bias) -> str:
    """Which of a pair a bias works against, in words."""
    cell, rate = (pair.cell, bias.cell) if bias.sign > 0 else (pair.against, bias.against)
    return f"{cell.label} reaches that loss {_rate(grid, cell, rate)}"


def _rate(grid: Grid, cell: Cell, rate: float) -> str:
    logged = all(
        grid.courses[cell.name, seed].rate_known for seed in cell.runs.index if (cell.name, seed) in grid.courses
    )
    if not logged:
        return "and its learning rate, which was not logged, may still decay"
    return f"with its learning rate at {100 * rate:.0f} % of its peak"


def _curves(grid: Grid, pair: Pair, axis: Axis) -> bool:
    """Whether all runs of a pair have a curve on an axis."""
    names = (pair.cell.name, pair.against.name)
    return all(grid.curve(name, seed, AXES[axis]) for name in names for seed in pair.seeds)


def _why_not(grid: Grid, pair: Pair, axis: Axis) -> str:
    if axis in ("device_hours", "cost") and (unlike := grid.unlike_devices(pair)):
        return unlike_devices_words(unlike)
    if _curves(grid, pair, axis):
        return "the curves of the two do not overlap"
    if any(cell.name in grid.planned for cell in (pair.cell, pair.against)):
        return f"a run has fewer than {FEWEST_ENDS} ends of planned lengths with known {words(AXES[axis])}"
    return f"the runs do not say their {words(AXES[axis])}, or have too few losses for a curve"


def unlike_devices_words(kinds: str) -> str:
    """Why times of a pair on different kinds of device are not compared."""
    return f"the two ran on different devices ({kinds}), so their times are not compared"


def words(axis: Axis) -> str:
    """`device_hours` -> `device-hours`."""
    return {"device_hours": "device-hours", "model_flops": "model FLOPs"}.get(axis, axis.replace("_", " "))


def _agrees(pair: Pair, axis: Axis) -> bool:
    return axis not in ("active_parameters", "total_parameters") or pair.agrees(axis)
