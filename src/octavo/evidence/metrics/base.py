"""What every metric takes and returns.

A metric reads the grid and returns a measurement: samples, one per comparison that the claim rests on, each with a
number for each seed and the expectation for their mean. The verdict is reached in `octavo.evidence.verdicts`. Where the
experiment lacks something that a metric needs, the measurement says what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.configuration import Section
from octavo.evidence.grid import Cell, Grid
from octavo.records import Estimate, Part
from octavo.statistics import Relation, p_diverges_more

Phrase = Callable[[Estimate], str]
"""Words for what was measured; the interval is added to them."""


LEAST_STEPS = 100
"""Runs of fewer steps decide nothing about training: their losses are those of its first moments."""


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
    relation: Relation
    margin: float
    """On the scale of `values`."""
    phrase: Phrase
    cells: tuple[Cell, ...]
    runs: list[str]
    p_at_least: float = 0.0
    """A further test (a permutation's, say) must support the claim too: its p value."""
    diverged: Divergence | None = None
    bias: int = 0
    """Sign of a systematic error of `values` (`octavo.evidence.schedule`)."""
    early: str | None = None
    """Who was read too early, where there is a bias, in words."""
    of_losses: bool = True
    """Whether it needs runs of some length, as everything that training brings forth does."""
    fitted_to: int | None = None
    """`values` are draws of the effect itself, from a fit to so many seeds; None: a number per seed."""

    @property
    def short(self) -> bool:
        """Whether runs are shorter than a verdict needs."""
        return self.of_losses and any((cell.runs["steps"] < LEAST_STEPS).any() for cell in self.cells)

    @property
    def blocked(self) -> bool:
        """Whether runs that diverged keep the claim from being supported: always, unless it says that the cell is
        worse and it is the cell's runs alone that diverged."""
        return self.diverged is not None and (self.relation != "above" or self.diverged.p_worse == 1)


@dataclass(frozen=True)
class Measurement:
    """What a metric measured on the grid, or why it could not."""

    samples: list[Sample] = field(default_factory=list)
    untested: dict[str, str] = field(default_factory=dict)
    """Comparisons that the experiment has but cannot test, and why."""
    incomplete: bool = False
    """Among those is one that the claim is about, so that it cannot be supported by the others alone."""
    decides: bool = True
    """Whether the samples can decide the claim. False: they are reported, and the claim is not testable here."""
    missing: str | None = None
    """What the experiment would need, where there is nothing to test."""
    arithmetic: list[tuple[Part, str]] = field(default_factory=list)
    """Parts that follow from figures or settings, no seeds involved, and their sentences."""
    computed_for: str = ""
    """What an arithmetic is of, where the experiment itself cannot say: `in the plan of h100-node (8 H100)`."""
    undecided: str = ""
    """What parts of an arithmetic that are inconclusive depend on, in a sentence."""
    data: dict[str, Any] = field(default_factory=dict)
    remark: str = ""
    """A further sentence, made from numbers too."""


@dataclass(frozen=True)
class Expectation:
    """What a claim file expects of the effect: its relation to a margin."""

    relation: Relation
    margin: float


@dataclass(frozen=True)
class Metric:
    """A way to measure, with the keys that a claim file may give it."""

    parameters: type[Section]
    unit: str
    """Of the effect and of the margin in a claim file; empty where claims have no margin."""
    measure: Callable[[Grid, Any, Expectation], Measurement]
    timed: bool = False
    """Whatever its parameters, it measures times, hours or money that runs took: those of the machine at hand."""


class NoParameters(Section):
    """A metric without keys in a claim file."""


def times(effect: Estimate) -> str:
    """A ratio with digits enough to see a difference from 1 and the width of its interval."""
    return number_like(effect.value, effect)


def number_like(value: float, effect: Estimate) -> str:
    """A value of an effect or of its interval, two decimals or as many as its interval needs."""
    return f"{value:.{decimals_like(effect)}f}"


def decimals_like(effect: Estimate) -> int:
    """Decimals that it takes to see an effect and the width of its interval, two to six; two where six show none."""
    away = abs(effect.value - 1) if effect.unit == "ratio" else abs(effect.value)
    width = effect.high - effect.low if effect.low is not None and effect.high is not None else 0.0
    scale = max(width, away / 10)
    return int(np.clip(np.ceil(-np.log10(scale)), 2, 6)) if scale >= 5e-7 else 2


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
