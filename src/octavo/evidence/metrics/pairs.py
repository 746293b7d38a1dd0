"""Metrics of pairs of cells: how far one's loss is from another's, and what the same loss or a token takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from octavo.configuration import Section
from octavo.evidence.comparisons import AXES, paired, words
from octavo.evidence.grid import Cell, Grid, Kind, Pair
from octavo.evidence.metrics.base import Expectation, Measurement, Phrase, Sample, divergence
from octavo.records import Axis, Estimate


class CellFilter(Section):
    """Selects the cells that a claim is about: those that agree with every key that is given."""

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
    cell: CellFilter = CellFilter()
    against: CellFilter = CellFilter()
    """Which side of a pair is which. For ablations either the ablation or its baseline may be `cell`."""
    axis: Axis = "tokens"
    """What is held equal, or for ratios what is spent."""
    equal: Literal["active_parameters", "total_parameters"] | None = None
    """What the two cells must agree in besides."""


def selected_pairs(grid: Grid, parameters: Pairs) -> list[Pair]:
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
    expectation: Expectation,
    unit: str,
    values: Callable[[Pair], np.ndarray | None],
    phrase: Callable[[Pair], Phrase],
    *,
    timed: bool = False,
) -> Measurement:
    """A sample for each pair asked for; `values` are None where the runs do not say what it takes."""
    samples: list[Sample] = []
    untested: dict[str, str] = {}
    incomplete = False
    for pair in selected_pairs(grid, parameters):
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
                label=label, values=measured, unit=unit, relation=expectation.relation,
                margin=float(np.log(expectation.margin)) if unit == "ratio" else expectation.margin,
                phrase=phrase(pair), cells=(pair.cell, pair.against), runs=pair.run_names, diverged=lost,
            )
        )  # fmt: skip
    return Measurement(
        samples,
        untested,
        incomplete,
        missing=None if samples or untested else "a pair of cells that differ in this and agree in the rest",
        data={"margin": expectation.margin},
    )


def loss_difference(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
    """How far a cell's loss is from another's at the end of the range that both cover on an axis, %."""

    def values(pair: Pair) -> np.ndarray | None:
        found = paired(grid, pair, AXES[parameters.axis])
        return None if found is None else found.loss

    timed = parameters.axis in ("device_hours", "cost")
    return _samples_of_pairs(grid, parameters, expectation, "%", values, _ends, timed=timed)


def _ends(pair: Pair) -> Phrase:
    def phrase(effect: Estimate) -> str:
        way = "above" if effect.value > 0 else "below"
        return f"{pair.cell.label} ends {abs(effect.value):.2f} % {way} the loss of {pair.against.label}"

    return phrase


def resource_ratio(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
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
    return _samples_of_pairs(grid, parameters, expectation, "ratio", values, phrase, timed=timed)


def time_per_token(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
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

    measurement = _samples_of_pairs(grid, parameters, expectation, "ratio", values, phrase, timed=True)
    # that a run diverges says nothing of its speed, whichever way the claim goes
    return replace(measurement, samples=[_of_no_loss(sample) for sample in measurement.samples])


def _of_no_loss(sample: Sample) -> Sample:
    return replace(sample, diverged=sample.diverged and replace(sample.diverged, p_worse=1.0))
