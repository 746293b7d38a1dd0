"""What a claim can be held against: one function per metric, found by the name that a claim file gives.

A metric reads the grid and answers with samples, one per comparison that the claim rests on: a number for each seed,
and what the claim says of their mean. Whether that is enough for a verdict is not decided here (`octavo.evidence.
verdicts`). A metric that needs something which the experiment does not have answers with what that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from octavo.configuration import Section
from octavo.evidence.comparisons import AXES, EQUAL, final_difference, paired, words
from octavo.evidence.grid import Cell, Grid, Kind, Pair
from octavo.evidence.statistics import Expectation, p_diverges_more
from octavo.records import Axis, Estimate, Part

Phrase = Callable[[Estimate], str]
"""Words for what was measured; the interval is added to them."""


@dataclass(frozen=True)
class Divergence:
    """Runs of a comparison that diverged: they have no loss, and no loss is worse than any."""

    words: str
    """`2 of 3 runs of MoE FP8 blockwise diverged`."""
    p_worse: float = 1.0
    """P value that chance alone makes the cell diverge so much more often than what it is held against."""


@dataclass(frozen=True)
class Sample:
    """One comparison that a claim rests on."""

    label: str
    values: np.ndarray
    """One number per seed; logarithms where `unit` is ratio. None at all where a run of every seed diverged."""
    unit: str
    says: Expectation
    margin: float
    """On the scale of `values`."""
    phrase: Phrase
    cells: tuple[Cell, ...]
    runs: list[str]
    p_at_least: float = 0.0
    """A further test (a permutation's, say) must support the claim too: its p value."""
    diverged: Divergence | None = None

    @property
    def blocked(self) -> bool:
        """Whether runs that diverged keep the claim from being supported: always, unless it says that the cell is
        worse and it is the cell's runs alone that diverged."""
        return self.diverged is not None and (self.says != "above" or self.diverged.p_worse == 1)


@dataclass(frozen=True)
class Answer:
    """What an experiment has to say about a claim."""

    samples: list[Sample] = field(default_factory=list)
    untested: dict[str, str] = field(default_factory=dict)
    """Comparisons that the experiment has but cannot test, and why."""
    incomplete: bool = False
    """Among those is one that the claim is about, so that it cannot be supported by the others alone."""
    decides: bool = True
    """Whether the samples reach as far as the claim does; where not, it is not testable and they are but told."""
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


def divergence(cell: Cell, against: Cell) -> Divergence | None:
    """What diverged of two cells, among the seeds that ended for both; None where nothing did."""
    ended = [one.diverged | set(one.runs.index) for one in (cell, against)]
    both = ended[0] & ended[1]
    counts = [len(one.diverged & both) for one in (cell, against)]
    if not any(counts):
        return None
    told = [
        f"{count} of {len(both)} run{'s' * (len(both) > 1)} of {one.label} diverged"
        for one, count in zip((cell, against), counts, strict=True)
        if count
    ]
    worse = 1.0 if counts[1] else p_diverges_more(counts[0], counts[1], len(both))
    return Divergence(" and ".join(told), worse)


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
    incomplete = False
    for pair in asked(grid, parameters):
        label, equal = pair_label(pair), parameters.equal
        if equal and not pair.agrees(equal):
            mismatch = pair.mismatch(equal)
            apart = "are not known" if mismatch is None else f"are {100 * mismatch:.0f} % apart"
            untested[label] = f"its {words(equal)} {apart}"
            continue
        lost = divergence(pair.cell, pair.against)
        measured = values(pair) if pair.seeds else np.empty(0)
        why = None
        if timed and pair.emulated:
            why = "its FP8 is emulated on this device, so its times say nothing about FP8"
        elif not pair.seeds and lost is None:
            why, incomplete = "no seed is complete for both cells", True
        elif measured is None or np.isnan(measured).any():
            why = "the runs do not say what the comparison needs, or their curves do not meet"
        if why is not None or measured is None:
            untested[label] = f"{why}; {lost.words}" if lost else str(why)
            incomplete |= lost is not None
            continue
        samples.append(
            Sample(
                label=label, values=measured, unit=unit, says=said.says,
                margin=float(np.log(said.margin)) if unit == "ratio" else said.margin,
                phrase=phrase(pair), cells=(pair.cell, pair.against), runs=pair.run_names, diverged=lost,
            )
        )  # fmt: skip
    return Answer(
        samples,
        untested,
        incomplete,
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

    answer = _samples_of_pairs(grid, parameters, said, "ratio", values, phrase, timed=True)
    # that a run diverges says nothing of its speed, whichever way the claim goes
    return replace(answer, samples=[_of_no_loss(sample) for sample in answer.samples])


def _of_no_loss(sample: Sample) -> Sample:
    return replace(sample, diverged=sample.diverged and replace(sample.diverged, p_worse=1.0))


# --- sums in 32 bits ------------------------------------------------------------------------------------------------


class Accumulation(Section):
    """Nothing to choose."""


@metric("accumulation", Accumulation, "%")
def accumulation(grid: Grid, parameters: Accumulation, said: Said) -> Answer:
    """FP8's loss error against BF16 with sums kept in FP32 (which must be good enough) and in about 14 bits (which must
    not be). Products promoted to FP32 every 128 elements count as the first kind."""
    del parameters
    samples: list[Sample] = []
    untested: dict[str, str] = {}
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
        lost = divergence(cell, pair.against)
        if not len(values) and lost is None:
            untested[cell.label] = "no seed is complete for it and for BF16 on equally many tokens"
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
                diverged=lost,
            )
        )  # fmt: skip
    kinds = {sample.says for sample in samples}
    if len(kinds) < 2:
        return Answer(missing="complete runs of FP8 with sums in FP32 and in 14 bits, and of BF16")
    return Answer(samples, untested, incomplete=bool(untested), data=rows)


def _sums_alone(cell: Cell, grid: Grid) -> bool:
    """Whether a cell is a baseline, or an ablation of how products are summed and of nothing else we know of."""
    base = grid.cells.get(cell.baseline)
    return cell.ablation is None or (base is not None and cell.accumulation != base.accumulation)


def _with_sums(pair: Pair, sums: str) -> Phrase:
    architecture = pair.cell.label.partition(",")[0]
    return lambda effect: f"{architecture} with {sums} ends {effect.value:+.2f} % from {pair.against.label}"


# --- many small experts ---------------------------------------------------------------------------------------------


class ExpertCount(Section):
    """How many experts are many."""

    many: PositiveInt
    """The claim is about so many experts and more: with fewer it is not testable."""


@metric("expert_count", ExpertCount, "% per doubling")
def expert_count(grid: Grid, parameters: ExpertCount, said: Said) -> Answer:
    """Change of the loss with every doubling of the number of experts, which grow smaller, at equal active parameters
    and equal tokens: the slope of a straight line through log loss over log2 experts, by seed. Training losses are
    compared where not every run has a validation loss."""
    samples: list[Sample] = []
    untested: dict[str, str] = {}
    incomplete = False
    rows: dict[str, list[Any]] = {"cell": [], "experts": [], "expert_size": [], "seed": [], "loss": []}
    for base in [cell for cell in grid.cells.values() if cell.mixture and cell.experts and not cell.ablation]:
        others = [one for one in grid.cells.values() if one.ablation and one.baseline == base.name]
        others = [one for one in others if one.experts not in (None, 0, base.experts)]
        apart = {one.label: why for one in others if (why := _not_finer(one, base))}
        untested |= apart
        arms = sorted([base, *(one for one in others if one.label not in apart)], key=lambda cell: cell.experts or 0)
        if len(arms) < 2:
            continue
        kept, lost = [arm for arm in arms if len(arm.runs)], _lost_arms(arms)
        seeds = sorted(set.intersection(*(set(arm.runs.index) for arm in kept))) if len(kept) > 1 else []
        losses, why = _losses_of_arms(kept, seeds)
        if lost is None and (why or len(kept) < len(arms)):
            untested[base.label] = why or "not every arm has a complete run"
            incomplete = True
            continue
        for arm, of_arm in zip(kept, losses, strict=False):
            for seed, loss in zip(seeds, of_arm, strict=True):
                for column, value in zip(
                    rows, (arm.name, arm.experts, arm.expert_size, seed, float(loss)), strict=True
                ):
                    rows[column].append(value)
        doublings = np.log2([arm.experts or 1 for arm in kept])
        samples.append(
            Sample(
                label=base.label, values=100 * np.polyfit(doublings, np.log(losses), 1)[0] if seeds else np.empty(0),
                unit="% per doubling", says=said.says, margin=said.margin,
                phrase=_per_doubling(base, kept), cells=tuple(arms),
                runs=[f"{arm.name}/seed-{seed}" for arm in kept for seed in seeds], diverged=lost,
            )
        )  # fmt: skip
    if not samples and not untested:
        return Answer(missing="ablations that change the number of experts at equal active parameters")
    far = [sample for sample in samples if _most(sample) >= parameters.many]
    for sample in samples:
        if _most(sample) < parameters.many:
            label = f"{parameters.many} experts and more in {sample.label}"
            untested[label] = f"the runs go up to {_most(sample)} experts"
    return Answer(far or samples, untested, incomplete, decides=bool(far), data=rows)


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
            f"{amount(total)} against {amount(alone)} {unit}"
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


def amount(value: float) -> str:
    """Money or hours: two decimals, or two significant digits of less than one."""
    digits = 2 if value >= 1 or value == 0 else 1 - int(np.floor(np.log10(abs(value))))
    return f"{value:,.{digits}f}"


def cost_of_a_seed(cells: Mapping[str, Cell]) -> float | None:
    """What one more seed of some cells would cost, as theirs did so far; None where that is not known."""
    costs = [cell.runs["cost_all_in"].mean() for cell in cells.values()]
    return float(sum(costs)) if costs and np.isfinite(costs).all() else None
