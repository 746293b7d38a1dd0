"""Metrics of pairs of cells: how far one's loss is from another's, and what the same loss or a token takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from octavo.configuration import Section
from octavo.evidence.comparisons import (
    AXES,
    EQUAL,
    NO_COMMON_POINT,
    Paired,
    biased_words,
    paired,
    read_early,
    refusal,
    unlike_devices_words,
    words,
)
from octavo.evidence.grid import Cell, Grid, Kind, Pair
from octavo.evidence.metrics.base import Expectation, Measurement, Phrase, Sample, divergence, number_like, times
from octavo.evidence.metrics.leverage import AXES as LEVERAGE_AXES
from octavo.evidence.metrics.leverage import ladder_ratio
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


TIMED_AXES: tuple[Axis, ...] = ("device_hours", "cost")
"""On these axes a comparison rests on the times of the machine at hand."""


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
    measure: Callable[[Pair], Measured | str],
    *,
    timed: bool = False,
    of_losses: bool = True,
) -> Measurement:
    """A sample for each pair asked for; `measure` says why where the runs do not say what it takes."""
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
        lost = divergence(pair.cell, pair.against) if of_losses else None
        seeds = pair.seeds if of_losses else pair.ended
        measured = measure(pair) if seeds else Measured(np.empty(0), _no_words)
        why = measured if isinstance(measured, str) else None
        if same := grid.same_numbers(pair):
            why, incomplete = same, True
        elif timed and pair.emulated:
            why = "its FP8 is emulated on this device, so its times say nothing about FP8"
        elif timed and (unlike := grid.unlike_devices(pair)):
            why = unlike_devices_words(unlike)
        elif not seeds and lost is None:
            why, incomplete = "no seed is complete for both cells", True
        if why is not None or isinstance(measured, str):
            untested[label] = f"{why}; {lost.words}" if lost else str(why)
            incomplete |= lost is not None
            continue
        samples.append(
            Sample(
                label=label, values=measured.values, unit=unit, relation=expectation.relation,
                margin=float(np.log(expectation.margin)) if unit == "ratio" else expectation.margin,
                phrase=measured.phrase, cells=(pair.cell, pair.against), diverged=lost,
                runs=[*pair.names_of(seeds), *measured.shorter_runs],
                bias=measured.bias, early=measured.early, of_losses=of_losses,
            )
        )  # fmt: skip
    return Measurement(
        samples,
        untested,
        incomplete,
        missing=None if samples or untested else "a pair of cells that differ in this and agree in the rest",
        data={"margin": expectation.margin},
    )


@dataclass(frozen=True)
class Measured:
    """What a pair shows: a number a seed, and its words."""

    values: np.ndarray
    phrase: Phrase
    shorter_runs: list[str] = field(default_factory=list)
    """Those of shorter horizons that it rests on, too."""
    bias: int = 0
    early: str | None = None


def _no_words(effect: Estimate) -> str:
    raise AssertionError(f"no seed was measured, and yet there is {effect}")


NOT_SAID = "the runs do not say what the comparison needs, or their curves do not meet"


def loss_difference(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
    """How far a cell's loss is from another's at the end of the range that both cover on an axis, %."""

    def measure(pair: Pair) -> Measured | str:
        found = paired(grid, pair, AXES[parameters.axis])
        if found is None:
            return refusal(grid, pair) or NOT_SAID
        if np.isnan(found.loss).any():
            return NO_COMMON_POINT
        early = "; ".join(read_early(grid, pair, found))
        in_curves = found.planned and AXES[parameters.axis] != "tokens"
        shorter = grid.shorter_runs(pair, pair.seeds) if in_curves else []
        phrase = _ends(pair, found, early, parameters.axis)
        return Measured(found.loss, phrase, shorter, found.loss_bias.sign, early)

    timed = parameters.axis in TIMED_AXES
    return _samples_of_pairs(grid, parameters, expectation, "%", measure, timed=timed)


def _ends(pair: Pair, found: Paired, early: str, axis: Axis) -> Phrase:
    in_final = AXES[axis] == "tokens"

    def phrase(effect: Estimate) -> str:
        in_bits = found.losses == "bits per byte"
        by = number_like(abs(effect.value), effect)
        away = f"{by} % {'above' if effect.value > 0 else 'below'}" if float(by) else "at"
        verb = "ends" if found.ends else "is"
        said = f"{pair.cell.label} {verb} {away} the {'bits per byte' if in_bits else 'loss'} of {pair.against.label}"
        alike = abs(found.share[1] - found.share[0]) < EQUAL and not found.loss_bias.sign
        where = f"after {100 * found.share[0]:.0f} % of the runs" if alike else early
        if found.planned and not in_final:
            return f"{said}, both planned for equal {words(axis)}"
        return said if found.ends else f"{said} where the two can be compared ({where})"

    return phrase


def resource_ratio(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
    """What a cell spends for the same loss, over what another spends; of architectures on a ladder, by its fit."""
    if parameters.pairs == "architecture" and grid.ladder is not None and parameters.axis in LEVERAGE_AXES:
        return ladder_ratio(grid, LEVERAGE_AXES[parameters.axis], expectation)
    spent = words(parameters.axis)

    def measure(pair: Pair) -> Measured | str:
        found = paired(grid, pair, AXES[parameters.axis])
        if found is None or np.isnan(found.ratio).any():
            return refusal(grid, pair) or NOT_SAID

        def phrase(effect: Estimate) -> str:
            planned = ", both planned for the length that it takes" if found.planned else ""
            return (
                f"{pair.cell.label} needs {times(effect)} times the {spent} of {pair.against.label} for the same loss"
                f"{planned}"
            )

        bias = found.ratio_bias
        shorter = grid.shorter_runs(pair, pair.seeds) if found.planned else []
        return Measured(found.ratio, phrase, shorter, bias.sign, biased_words(grid, pair, bias) if bias.sign else None)

    timed = parameters.axis in TIMED_AXES
    return _samples_of_pairs(grid, parameters, expectation, "ratio", measure, timed=timed)


def time_per_token(grid: Grid, parameters: Pairs, expectation: Expectation) -> Measurement:
    """Device-seconds of the median training step per token, over another cell's. That a run diverged says nothing of
    its speed, so the steps that it made count."""

    def measure(pair: Pair) -> Measured | str:
        one, other = (grid.seconds_per_token(cell.name, pair.ended) for cell in (pair.cell, pair.against))
        if not ((one > 0) & (other > 0)).all():
            return NOT_SAID

        counts = [
            sorted({int(grid.devices[cell.name, seed]) for seed in pair.ended}) for cell in (pair.cell, pair.against)
        ]

        def phrase(effect: Estimate) -> str:
            ours, theirs = pair.cell.label, pair.against.label
            if counts[0] != counts[1]:
                ours, theirs = (
                    f"{label} ({' or '.join(map(str, count))} devices)"
                    for label, count in zip((ours, theirs), counts, strict=True)
                )
                return (
                    f"a training step of {ours} takes {times(effect)} times the device-seconds per token of one of "
                    f"{theirs}"
                )
            return f"a training step of {ours} takes {times(effect)} times as long per token as one of {theirs}"

        return Measured(np.log(one / other), phrase)

    return _samples_of_pairs(grid, parameters, expectation, "ratio", measure, timed=True, of_losses=False)
