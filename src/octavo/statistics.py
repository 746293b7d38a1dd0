"""Intervals, tests and sample sizes for a handful of paired differences.

A difference is taken seed by seed (same data order, same initial values where shapes agree), so what seeds have in
common cancels. Student's t is exact for normal differences at any n >= 2; resampling is not: an interval from
resampling three values cannot reach beyond them, so the bootstrap is given from BOOTSTRAP_FROM seeds on.

Sources: equivalence by two one-sided tests, Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657; the expanded
percentile bootstrap, Hesterberg (2015), Am. Stat. 69:371, section 3.3; Holm (1979), Scand. J. Stat. 6:65, and that it
controls wrong directions too, Shaffer (1980), Ann. Stat. 8:1342; power of t tests by the noncentral t distribution;
runs that diverge by Fisher's exact test (Fisher 1935, J. R. Stat. Soc. 98:39).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

ALPHA = 0.05
"""Chance of a false verdict, over all claims together."""
POWER = 0.8
BOOTSTRAP_FROM = 8
BOOTSTRAP_TO = 200
"""With more seeds than this the mean is as good as normal, and the t interval says the same."""
RESAMPLES = 10_000
MOST_SEEDS = 1000

Relation = Literal["below", "above", "within"]
"""What a claim says of an effect: below the margin, above it, or between -margin and +margin."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; the ends are None where one value alone tells nothing of the spread."""

    estimate: float
    low: float | None
    high: float | None
    confidence: float
    n: int


@dataclass(frozen=True)
class Test:
    """One-sided p values of the two null hypotheses: that the claim is false (`supports`), that it is true (`refutes`).

    Each is the probability, under its null hypothesis, of data at least as far on the other side as those found.
    """

    supports: float
    refutes: float

    @property
    def p_value(self) -> float:
        """Of the verdict that the evidence leans to."""
        return min(self.supports, self.refutes)


def confidence_for(relation: Relation) -> float:
    """The interval that shows what the test decides: 1 - 2 alpha for equivalence (TOST), 1 - alpha for a direction."""
    return 1 - 2 * ALPHA if relation == "within" else 1 - ALPHA


def t_interval(differences: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of paired differences."""
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return Interval(mean, None, None, confidence, n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * np.std(differences, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, confidence, n)


def bootstrap_interval(differences: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """The expanded percentile bootstrap interval of the mean; None outside BOOTSTRAP_FROM to BOOTSTRAP_TO differences.

    The percentiles are moved outwards to Phi(-sqrt(n / (n - 1)) t), which undoes the plain percentile interval's
    narrowness in small samples.
    """
    n = len(differences)
    if not BOOTSTRAP_FROM <= n <= BOOTSTRAP_TO:
        return None
    chosen = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    means = np.asarray(differences)[chosen].mean(1)
    tail = special.ndtr(-np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 + confidence) / 2))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean(differences)), float(low), float(high), confidence, n)


Looked = Callable[[Callable[[np.ndarray], float], np.ndarray], float]
"""The p value of a one-sided test of differences, given how it is looked at: once, or after each seed."""


def once(p_value: Callable[[np.ndarray], float], differences: np.ndarray) -> float:
    """Looked at once, when all seeds are there."""
    return p_value(differences)


def test(
    differences: np.ndarray,
    relation: Relation,
    margin: float,
    bias: int = 0,  # noqa: PT028  # no test of pytest's
    looked: Looked = once,  # noqa: PT028
) -> Test | None:
    """Hold the mean difference against a claim; None for a single difference.

    `bias` is the sign of a systematic error of the differences: where they are too high (1) nothing shows that the mean
    lies above a bound, where they are too low (-1) nothing shows that it lies below one.

    A direction is tested on both sides (each p value doubled), so that a verdict at level alpha agrees with the
    1 - alpha interval. Equivalence is tested by two one-sided tests, and refuted when the mean is beyond a margin:
    it may seem to be beyond either, so that p value is doubled too.
    """
    if len(differences) < 2:
        return None

    def p_below(bound: float) -> float:
        return 1.0 if bias < 0 else looked(lambda some: _p_below(some, bound), differences)

    def p_above(bound: float) -> float:
        return 1.0 if bias > 0 else looked(lambda some: _p_above(some, bound), differences)

    if relation == "within":
        return Test(max(p_above(-margin), p_below(margin)), min(1.0, 2 * min(p_above(margin), p_below(-margin))))
    below, above = min(1.0, 2 * p_below(margin)), min(1.0, 2 * p_above(margin))
    return Test(below, above) if relation == "below" else Test(above, below)


def test_of_draws(draws: np.ndarray, relation: Relation, margin: float) -> Test:
    """Hold an effect of which a bootstrap gave draws against a claim of a direction.

    The p value of each side is the share of draws beyond the margin, none counted as less than one (Davison and Hinkley
    1997, section 4.4), and doubled, so that a verdict agrees with the interval of the draws' percentiles.
    """
    n = len(draws)
    below, above = (min(1.0, 2 * (1 + int(beyond.sum())) / (n + 1)) for beyond in (draws >= margin, draws <= margin))
    return Test(below, above) if relation == "below" else Test(above, below)


def _p_below(differences: np.ndarray, bound: float) -> float:
    """P value for a mean below `bound`: small when the differences lie clearly below."""
    n, distance = len(differences), float(np.mean(differences)) - bound
    error = float(np.std(differences, ddof=1)) / np.sqrt(n)
    if error == 0:
        return 0.0 if distance < 0 else 1.0
    return float(special.stdtr(n - 1, distance / error))


def _p_above(differences: np.ndarray, bound: float) -> float:
    return _p_below(-np.asarray(differences), -bound)


def p_diverges_more(diverged: int, of_other: int, seeds: int) -> float:
    """P value that chance alone makes so many more of a cell's runs diverge than of the other's, of `seeds` each.

    Fisher's exact test, one-sided; pairing by seed makes it err on the safe side.
    """
    both = diverged + of_other
    ways = sum(math.comb(seeds, k) * math.comb(seeds, both - k) for k in range(diverged, min(seeds, both) + 1))
    return ways / math.comb(2 * seeds, both)


def all_of(tests: Sequence[Test]) -> Test:
    """One claim about several pairs: supported when every pair supports it, refuted when any pair refutes it.

    The first is an intersection-union test, which needs no adjustment (Berger 1982, Technometrics 24:295); the second
    is adjusted by Bonferroni.
    """
    return Test(max(one.supports for one in tests), min(1.0, len(tests) * min(one.refutes for one in tests)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that all claims together are wrong with the chance that one would be."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def required_seeds(differences: np.ndarray, relation: Relation, margin: float, *, claims: int = 1) -> int | None:
    """Seeds with which the verdict that these differences lean to would be reached with chance POWER.

    Takes mean and standard deviation as they were measured, and the level of the strictest of `claims` (Holm's first
    step). None where more than MOST_SEEDS would be needed: the mean lies on the margin, as far as one can tell.
    """
    n = np.arange(2, MOST_SEEDS + 1)
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    bounds = (-margin, margin) if relation == "within" and abs(mean) < margin else _nearest(mean, relation, margin)
    level = ALPHA / claims / (1 if len(bounds) == 2 else 2)
    critical = -special.stdtrit(n - 1, level)
    missed = np.zeros(len(n))
    for bound in bounds:
        if spread == 0:
            missed += float(mean == bound)
        else:
            missed += special.nctdtr(n - 1, abs(mean - bound) / spread * np.sqrt(n), critical)
    enough = np.flatnonzero(1 - missed >= POWER)
    return int(n[enough[0]]) if len(enough) else None


def _nearest(mean: float, relation: Relation, margin: float) -> tuple[float, ...]:
    return (margin if mean >= 0 else -margin,) if relation == "within" else (margin,)
