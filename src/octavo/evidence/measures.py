"""What a claim can be held against: one function per metric, found by the name that a claim file gives.

A metric reads the grid and answers with samples, one per comparison that the claim rests on: a number for each seed,
and what the claim says of their mean. Whether that is enough for a verdict is not decided here (`octavo.evidence.
verdicts`). A metric that needs something which the experiment does not have answers with what that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from octavo.configuration import Section
from octavo.evidence.comparisons import AXES, final_difference, paired, words
from octavo.evidence.grid import Cell, Grid, Kind, Pair
from octavo.evidence.statistics import Expectation
from octavo.records import Axis, Estimate, Part

Phrase = Callable[[Estimate], str]
"""Words for what was measured; the interval is added to them."""


@dataclass(frozen=True)
class Sample:
    """One comparison that a claim rests on."""

    label: str
    values: np.ndarray
    """One number per seed; logarithms where `unit` is ratio."""
    unit: str
    says: Expectation
    margin: float
    """On the scale of `values`."""
    phrase: Phrase
    cells: tuple[Cell, ...]
    runs: list[str]
    p_at_least: float = 0.0
    """A further test (a permutation's, say) must support the claim too: its p value."""
    diverged: int = 0
    """Seeds in which a run diverged: the claim cannot be supported then."""
    note: str | None = None


@dataclass(frozen=True)
class Answer:
    """What an experiment has to say about a claim."""

    samples: list[Sample] = field(default_factory=list)
    untested: dict[str, str] = field(default_factory=dict)
    """Comparisons that the experiment has but cannot test, and why."""
    missing: str | None = None
    """What the experiment would need, where there is nothing to test."""
    arithmetic: list[tuple[Part, str]] = field(default_factory=list)
    """Parts that follow from figures or settings, no seeds involved, and their sentences."""
    data: dict[str, Any] = field(default_factory=dict)
    remark: str = ""
    """A further sentence, made from numbers too."""


@dataclass(frozen=True)
class Said:
    """What a claim file says of the effect."""

    says: Expectation
    margin: float


@dataclass(frozen=True)
class Metric:
    """A way to measure, with the keys that a claim file may give it."""

    parameters: type[Section]
    unit: str
    """Of the effect and of the margin in a claim file; empty where claims have no margin."""
    measure: Callable[[Grid, Any, Said], Answer]


METRICS: dict[str, Metric] = {}


def metric(name: str, parameters: type[Section], unit: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function as the metric that claim files call `name`."""

    def register(measure: Callable[..., Answer]) -> Callable[..., Answer]:
        METRICS[name] = Metric(parameters, unit, measure)
        return measure

    return register


# --- pairs ----------------------------------------------------------------------------------------------------------


class Which(Section):
    """Cells that a claim is about; what is left out is not asked for."""

    architecture: str | None = None
    precision: str | None = None
    ablation: str | None = None
    accumulation: str | None = None
    shared_expert: bool | None = None

    def fits(self, cell: Cell) -> bool:
        """Whether a cell is one of them."""
        wanted = {
            "architecture": cell.architecture,
            "precision": cell.precision,
            "ablation": cell.ablation,
            "accumulation": cell.accumulation,
            "shared_expert": bool(cell.shared_expert_size),
        }
        return all(getattr(self, key) in (None, value) for key, value in wanted.items())


class Pairs(Section):
    """The pairs that a claim is about."""

    pairs: Kind
    cell: Which = Which()
    against: Which = Which()
    """An ablation is held against its baseline or its baseline against it, as these ask."""
    axis: Axis = "tokens"
    """What is held equal, or for ratios what is spent."""
    equal: Literal["active_parameters", "total_parameters"] | None = None
    """What the two cells must agree in besides."""


def asked(grid: Grid, parameters: Pairs) -> list[Pair]:
    """The pairs that a claim is about, orientation as it asks."""
    found = grid.pairs(parameters.pairs)
    if parameters.pairs == "ablation":
        found = [turned for pair in found for turned in (pair, Pair("ablation", pair.against, pair.cell))]
        if parameters.cell == parameters.against:
            found = found[::2]
    return [pair for pair in found if parameters.cell.fits(pair.cell) and parameters.against.fits(pair.against)]


def pair_label(pair: Pair) -> str:
    """What tells a pair from its sisters."""
    if (pair.kind, pair.cell.architecture, pair.against.architecture) == ("architecture", "moe", "dense"):
        return pair.cell.label.removeprefix("MoE ")
    if pair.kind == "architecture":
        return f"{pair.cell.label} against {pair.against.label}"
    return pair.cell.label


def _samples_of_pairs(
    grid: Grid,
    parameters: Pairs,
    said: Said,
    unit: str,
    values: Callable[[Pair], np.ndarray | None],
    phrase: Callable[[Pair], Phrase],
    *,
    timed: bool = False,
) -> Answer:
    """A sample for each pair asked for; `values` are None where the runs do not say what it takes."""
    samples: list[Sample] = []
    untested: dict[str, str] = {}
    for pair in asked(grid, parameters):
        label, equal = pair_label(pair), parameters.equal
        measured = values(pair) if pair.seeds else None
        if timed and pair.emulated:
            untested[label] = "its FP8 is emulated on this device, so its times say nothing about FP8"
        elif equal and not pair.agrees(equal):
            mismatch = pair.mismatch(equal)
            apart = "are not known" if mismatch is None else f"are {mismatch:.0%} apart"
            untested[label] = f"its {words(equal)} {apart}"
        elif not pair.seeds:
            untested[label] = "no seed is complete for both cells"
        elif measured is None or np.isnan(measured).any():
            untested[label] = "the runs do not say what the comparison needs, or their curves do not meet"
        else:
            samples.append(
                Sample(
                    label=label, values=measured, unit=unit, says=said.says,
                    margin=float(np.log(said.margin)) if unit == "ratio" else said.margin,
                    phrase=phrase(pair), cells=(pair.cell, pair.against), runs=pair.run_names,
                    diverged=len(pair.diverged),
                )
            )  # fmt: skip
    return Answer(
        samples,
        untested,
        missing=None if samples or untested else "a pair of cells that differ in this and agree in the rest",
        data={"margin": said.margin},
    )


@metric("loss_difference", Pairs, "%")
def loss_difference(grid: Grid, parameters: Pairs, said: Said) -> Answer:
    """How far a cell's loss is from another's at the end of the range that both cover on an axis, %."""

    def values(pair: Pair) -> np.ndarray | None:
        found = paired(grid, pair, AXES[parameters.axis])
        return None if found is None else found.loss

    timed = parameters.axis in ("device_hours", "cost")
    return _samples_of_pairs(grid, parameters, said, "%", values, _ends, timed=timed)


def _ends(pair: Pair) -> Phrase:
    def phrase(effect: Estimate) -> str:
        way = "above" if effect.value > 0 else "below"
        return f"{pair.cell.label} ends {abs(effect.value):.2f} % {way} the loss of {pair.against.label}"

    return phrase


@metric("resource_ratio", Pairs, "ratio")
def resource_ratio(grid: Grid, parameters: Pairs, said: Said) -> Answer:
    """What a cell spends for the same loss, over what another spends."""

    def values(pair: Pair) -> np.ndarray | None:
        found = paired(grid, pair, AXES[parameters.axis])
        return None if found is None else found.ratio

    def phrase(pair: Pair) -> Phrase:
        spent = words(parameters.axis)
        return lambda effect: (
            f"{pair.cell.label} needs {effect.value:.2f} times the {spent} of {pair.against.label} for the same loss"
        )

    timed = parameters.axis in ("device_hours", "cost")
    return _samples_of_pairs(grid, parameters, said, "ratio", values, phrase, timed=timed)


@metric("time_per_token", Pairs, "ratio")
def time_per_token(grid: Grid, parameters: Pairs, said: Said) -> Answer:
    """Device-seconds of training steps per token, over another cell's."""

    def values(pair: Pair) -> np.ndarray | None:
        times = [
            one.runs.loc[pair.seeds, "training_seconds"]
            * one.runs.loc[pair.seeds, "device_count"]
            / one.runs.loc[pair.seeds, "tokens"]
            for one in (pair.cell, pair.against)
        ]
        known = all((time > 0).all() for time in times)
        return np.log(times[0].to_numpy() / times[1].to_numpy()) if known else None

    def phrase(pair: Pair) -> Phrase:
        return lambda effect: (
            f"a training step of {pair.cell.label} takes {effect.value:.2f} times as long per token as one of "
            f"{pair.against.label}"
        )

    return _samples_of_pairs(grid, parameters, said, "ratio", values, phrase, timed=True)


# --- sums in 32 bits ------------------------------------------------------------------------------------------------


class Accumulation(Section):
    """Nothing to choose."""


@metric("accumulation", Accumulation, "%")
def accumulation(grid: Grid, parameters: Accumulation, said: Said) -> Answer:
    """FP8's loss error against BF16 with sums kept in FP32 (which must be good enough) and in about 14 bits (which must
    not be). Products promoted to FP32 every 128 elements count as the first kind."""
    del parameters
    samples = []
    rows: dict[str, list[Any]] = {"cell": [], "accumulation": [], "seed": [], "error": []}
    reference = {
        cell.architecture: cell for cell in grid.cells.values() if cell.precision == "bf16" and not cell.ablation
    }
    short = [cell for cell in grid.cells.values() if cell.accumulation == "fp14" and cell.architecture in reference]
    if not short:
        return Answer(missing="an ablation with precision.accumulation: fp14, and its BF16 cell")
    asked_for = {cell.baseline for cell in short}
    for cell in grid.cells.values():
        if cell.precision == "bf16" or cell.baseline not in asked_for or not _sums_alone(cell, grid):
            continue
        pair = Pair("precision", cell, reference[cell.architecture])
        errors = [(seed, final_difference(pair, seed)) for seed in pair.seeds]
        values = np.array([error for _, error in errors if error is not None])
        if not len(values):
            continue
        for seed, error in errors:
            for column, value in zip(rows, (cell.name, cell.accumulation, seed, error), strict=True):
                rows[column].append(value)
        kept = {"fp32": "sums in FP32", "fp14": "sums in 14 bits", "promoted": "sums promoted to FP32"}
        samples.append(
            Sample(
                label=f"{cell.label}, {kept[cell.accumulation]}", values=values, unit="%",
                says="above" if cell.accumulation == "fp14" else said.says, margin=said.margin,
                phrase=_with_sums(pair, kept[cell.accumulation]), cells=(cell, pair.against), runs=pair.run_names,
                diverged=0 if cell.accumulation == "fp14" else len(pair.diverged),
            )
        )  # fmt: skip
    kinds = {sample.says for sample in samples}
    if len(kinds) < 2:
        return Answer(missing="complete runs of FP8 with sums in FP32 and in 14 bits, and of BF16")
    return Answer(samples, data=rows)


def _sums_alone(cell: Cell, grid: Grid) -> bool:
    """Whether a cell is a baseline, or an ablation of how products are summed and of nothing else we know of."""
    base = grid.cells.get(cell.baseline)
    return cell.ablation is None or (base is not None and cell.accumulation != base.accumulation)


def _with_sums(pair: Pair, sums: str) -> Phrase:
    architecture = pair.cell.label.partition(",")[0]
    return lambda effect: f"{architecture} with {sums} ends {effect.value:+.2f} % from {pair.against.label}"


# --- many small experts ---------------------------------------------------------------------------------------------


class ExpertCount(Section):
    """Nothing to choose."""


@metric("expert_count", ExpertCount, "% per doubling")
def expert_count(grid: Grid, parameters: ExpertCount, said: Said) -> Answer:
    """Change of the loss with every doubling of the number of experts, which grow smaller, at equal active parameters:
    the slope of a straight line through log loss over log2 experts, by seed."""
    del parameters
    samples = []
    rows: dict[str, list[Any]] = {"cell": [], "experts": [], "expert_size": [], "seed": [], "loss": []}
    for base in [cell for cell in grid.cells.values() if cell.mixture and cell.experts and not cell.ablation]:
        arms = [base, *(one for one in grid.cells.values() if one.baseline == base.name and _finer(one, base))]
        arms.sort(key=lambda cell: cell.experts or 0)
        seeds = sorted(set.intersection(*(set(arm.runs.index) for arm in arms)))
        if len(arms) < 2 or not seeds:
            continue
        losses = np.array([arm.runs.loc[seeds, "validation_loss"].to_numpy() for arm in arms])
        if not np.isfinite(losses).all():
            continue
        doublings = np.log2([arm.experts or 1 for arm in arms])
        slopes = 100 * np.polyfit(doublings, np.log(losses), 1)[0]
        for arm, of_arm in zip(arms, losses, strict=True):
            for seed, loss in zip(seeds, of_arm, strict=True):
                for column, value in zip(
                    rows, (arm.name, arm.experts, arm.expert_size, seed, float(loss)), strict=True
                ):
                    rows[column].append(value)
        samples.append(
            Sample(
                label=base.label, values=slopes, unit="% per doubling", says=said.says, margin=said.margin,
                phrase=_per_doubling(base, arms), cells=tuple(arms),
                runs=[f"{arm.name}/seed-{seed}" for arm in arms for seed in seeds],
            )
        )  # fmt: skip
    if not samples:
        return Answer(missing="ablations that change the number of experts at equal active parameters")
    return Answer(samples, data=rows)


def _finer(cell: Cell, base: Cell) -> bool:
    """Whether a cell has more but smaller experts than another, or fewer but larger ones, and is else its equal."""
    if not (cell.ablation and cell.experts and base.experts and cell.expert_size and base.expert_size):
        return False
    more, smaller = cell.experts > base.experts, cell.expert_size < base.expert_size
    changed = cell.experts != base.experts and cell.expert_size != base.expert_size
    alike = (cell.shared_expert_size or 0, cell.accumulation) == (base.shared_expert_size or 0, base.accumulation)
    return changed and more == smaller and alike and Pair("ablation", cell, base).agrees("active_parameters")


def _per_doubling(base: Cell, arms: list[Cell]) -> Phrase:
    def phrase(effect: Estimate) -> str:
        way = "rises" if effect.value > 0 else "falls"
        return (
            f"the loss of {base.label} {way} by {abs(effect.value):.2f} % with every doubling of its experts, "
            f"from {arms[0].experts} to {arms[-1].experts}, at equal active parameters"
        )

    return phrase


# --- the books ------------------------------------------------------------------------------------------------------


class Books(Section):
    """Nothing to choose."""


@metric("all_in_cost", Books, "ratio")
def all_in_cost(grid: Grid, parameters: Books, said: Said) -> Answer:
    """Cost of all that was run (failed and repeated attempts, ablations, dropped configurations) over the cost of the
    grid's final runs, by seed; what belongs to no seed of the grid is spread evenly."""
    del parameters
    column = "cost" if grid.runs["cost_all_in"].notna().all() and grid.runs["cost_all_in"].sum() > 0 else "device_hours"
    runs, attempts = grid.runs, grid.attempts
    in_grid = runs["ablation"].isna()
    final = runs[in_grid & runs["status"].isin(("completed", "diverged"))].groupby("seed")[f"{column}_final"]
    complete = final.count() == in_grid.groupby(runs["seed"]).sum().reindex(final.count().index)
    seeds = sorted(complete.index[complete])
    if not seeds or attempts.empty:
        return Answer(missing="the attempts of complete runs, with their hours")
    known = set(zip(runs["cell"], runs["seed"], strict=True))
    listed = [(cell, seed) in known for cell, seed in zip(attempts["cell"], attempts["seed"], strict=True)]
    spent = attempts.loc[listed].groupby("seed")[column].sum()
    elsewhere = float(attempts.loc[~np.array(listed), column].sum())
    base = final.sum().loc[seeds]
    all_in = spent.reindex(seeds).fillna(0.0) + elsewhere / len(seeds)
    ratios = np.log((all_in / base).to_numpy(dtype=float))
    if not np.isfinite(ratios).all():
        return Answer(missing="the attempts of complete runs, with their hours")
    if np.all(np.abs(ratios) < 1e-9):
        return Answer(missing="something besides the final runs: here nothing failed, was repeated or was ablated")
    total, alone = float(attempts[column].sum()), float(runs.loc[in_grid, f"{column}_final"].sum())
    unit = grid.currency if column == "cost" else "device-hours"

    def phrase(effect: Estimate) -> str:
        return (
            f"all that was run cost {effect.value:.2f} times the final runs of the grid, "
            f"{_amount(total)} against {_amount(alone)} {unit}"
        )

    ablations = float(attempts.loc[listed].merge(runs[["cell", "seed", "ablation"]], on=["cell", "seed"])
                      .loc[lambda frame: frame["ablation"].notna(), column].sum())  # fmt: skip
    parts = {
        "final runs": alone,
        "failed, repeated and superseded attempts": total - ablations - elsewhere - alone,
        "ablations": ablations,
        "cells and seeds that the experiment no longer has": elsewhere,
    }
    sample = Sample(
        label="this experiment", values=ratios, unit="ratio", says=said.says,
        margin=float(np.log(said.margin)), phrase=phrase, cells=tuple(grid.cells.values()),
        runs=[f"{cell}/seed-{seed}" for cell, seed in sorted(known)],
    )  # fmt: skip
    return Answer([sample], data={"part": list(parts), "amount": list(parts.values()), "unit": [unit] * len(parts)})


def _amount(value: float) -> str:
    digits = 2 if value >= 1 or value == 0 else 1 - int(np.floor(np.log10(abs(value))))
    return f"{value:,.{digits}f}"


def cost_of_a_seed(cells: Mapping[str, Cell]) -> float | None:
    """What one more seed of some cells would cost, as theirs did so far; None where that is not known."""
    costs = [cell.runs["cost_all_in"].mean() for cell in cells.values()]
    return float(sum(costs)) if costs and np.isfinite(costs).all() else None
