"""Intervals cover what they promise, and verdicts are false no more often than they may be.

Every simulation draws normal differences from a seeded generator; that is what the procedures assume.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from octavo.evidence.verdicts import adjusted_p_values, verdict_of
from octavo.statistics import (
    ALPHA,
    POWER,
    all_of,
    bootstrap_interval,
    holm,
    p_diverges_more,
    required_seeds,
    t_interval,
)
from octavo.statistics import Test as PValues
from octavo.statistics import test as hold

RUNS = 4000
SLACK = 3 * np.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # three standard errors of a simulated rate of 5 %


def verdict(values: np.ndarray, says: str, margin: float) -> str:
    tested = hold(values, says, margin)  # type: ignore[arg-type]
    return verdict_of(tested, tested and tested.p_value)


def rate(verdicts: list[str], wrong: str) -> float:
    return sum(one == wrong for one in verdicts) / len(verdicts)


# --- against arithmetic and a reference -----------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "seeds"), [(3, 0, 3), (5, 0, 5), (4, 1, 5), (2, 2, 3), (0, 4, 6), (7, 2, 8)])
def test_divergences_are_compared_by_fishers_exact_test(one: int, other: int, seeds: int) -> None:
    expected = stats.fisher_exact([[one, seeds - one], [other, seeds - other]], alternative="greater").pvalue
    assert p_diverges_more(one, other, seeds) == pytest.approx(expected)


def test_the_t_interval_is_scipys() -> None:
    values = np.array([0.3, -0.1, 0.4, 0.25])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = t_interval(values, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 4


def test_one_value_has_no_interval_and_no_test() -> None:
    found = t_interval(np.array([0.3]))
    assert (found.estimate, found.low, found.high) == (0.3, None, None)
    assert hold(np.array([0.3]), "below", 0.0) is None


def test_a_direction_is_tested_on_both_sides_as_scipy_does() -> None:
    values = np.array([-0.3, -0.1, -0.4, 0.05])
    both_sides = stats.ttest_1samp(values, 0.1).pvalue
    tested = hold(values, "below", 0.1)
    assert tested is not None
    assert tested.supports == pytest.approx(both_sides)
    assert tested.refutes == 1.0
    assert hold(values, "above", 0.1) == PValues(tested.refutes, tested.supports)


def test_equivalence_is_two_one_sided_tests() -> None:
    values = np.array([0.05, -0.1, 0.12, 0.02])
    sides = [
        stats.ttest_1samp(values, -0.25, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.25, alternative="less").pvalue,
    ]
    tested = hold(values, "within", 0.25)
    assert tested is not None
    assert tested.supports == pytest.approx(max(sides))


def test_holms_example() -> None:
    """0.01, 0.04, 0.03 in order are 0.01, 0.03, 0.04: times 3, 2 and 1 they are 0.03, 0.06, 0.04, and no adjusted
    value falls below the one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_every_pair_must_support_and_any_may_refute() -> None:
    found = all_of([PValues(0.01, 0.9), PValues(0.2, 0.03)])
    assert (found.supports, found.refutes) == (0.2, 0.06)


def test_the_bootstrap_is_not_given_for_few_seeds() -> None:
    assert bootstrap_interval(np.arange(7.0)) is None
    assert bootstrap_interval(np.arange(8.0)) is not None


# --- error rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_t_interval_covers_the_truth_in_95_of_100(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.3, 1.0, (RUNS, seeds))
    found = [t_interval(one) for one in draws]
    covered = np.mean([one.low <= 0.3 <= one.high for one in found if one.low is not None and one.high is not None])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("seeds", [8, 20])
def test_a_bootstrap_interval_covers_the_truth_in_95_of_100(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.3, 1.0, (1500, seeds))
    found = [bootstrap_interval(one) for one in draws]
    covered = np.mean([one is not None and one.low <= 0.3 <= one.high for one in found])  # type: ignore[operator]
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_claim_of_a_direction_is_wrong_in_5_of_100_at_the_margin(seeds: int) -> None:
    """At the margin itself either verdict is one too many: together they are at most 5 %."""
    draws = np.random.default_rng(seeds).normal(0.2, 1.0, (RUNS, seeds))
    verdicts = [verdict(one, "below", 0.2) for one in draws]
    assert 1 - rate(verdicts, "inconclusive") <= ALPHA + SLACK


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.5])
def test_equivalence_is_wrong_in_5_of_100_at_the_margin(seeds: int, spread: float) -> None:
    draws = np.random.default_rng(seeds).normal(0.0, spread, (RUNS, seeds))
    outside, inside = ([verdict(one + shift, "within", 0.25) for one in draws] for shift in (0.2501, 0.2499))
    assert rate(outside, "supported") <= ALPHA + SLACK
    assert rate(inside, "refuted") <= ALPHA + SLACK


def test_equivalence_within_a_margin_far_below_the_spread_is_refuted_wrongly_in_at_most_5_of_100() -> None:
    """The mean may seem to be beyond either margin."""
    draws = np.random.default_rng(3).normal(0.0, 1.0, (RUNS, 4))
    refuted = rate([verdict(one, "within", 0.001) for one in draws], "refuted")
    assert 0.5 * ALPHA <= refuted <= ALPHA + SLACK


def test_a_claim_about_two_pairs_is_wrong_in_5_of_100() -> None:
    """Wrongly supported: one pair is out of bounds, the other well within. Wrongly refuted: both just within."""
    draws = np.random.default_rng(0).normal(0.0, 0.1, (RUNS, 2, 3))
    wrong = {"supported": 0, "refuted": 0}
    for one, other in draws:
        for key, shifts in (("supported", (0.2501, 0.0)), ("refuted", (0.2499, 0.2499))):
            tests = [hold(values + shift, "within", 0.25) for values, shift in zip((one, other), shifts, strict=True)]
            whole = all_of([found for found in tests if found is not None])
            wrong[key] += verdict_of(whole, whole.p_value) == key
    assert wrong["supported"] / RUNS <= ALPHA + SLACK
    assert wrong["refuted"] / RUNS <= ALPHA + SLACK


def test_eight_claims_together_are_wrong_in_5_of_100() -> None:
    """Seven claims whose effect is on the margin and one that is clearly true: any verdict on the seven is false."""
    draws = np.random.default_rng(1).normal(0.0, 1.0, (RUNS, 8, 4))
    wrong = 0
    for draw in draws:
        tests = [hold(values + 40 * (index == 7), "above", 0.0) for index, values in enumerate(draw)]
        verdicts = [verdict_of(*both) for both in zip(tests, adjusted_p_values(tests), strict=True)]
        wrong += any(one != "inconclusive" for one in verdicts[:7])
    assert wrong / RUNS <= ALPHA + SLACK


@pytest.mark.parametrize(
    ("says", "margin", "mean"), [("below", 0.0, -0.8), ("within", 0.25, 0.05), ("above", 1.0, 0.4)]
)
def test_the_seeds_asked_for_reach_a_verdict_in_80_of_100(says: str, margin: float, mean: float) -> None:
    spread = 0.15 if says == "within" else 0.7
    pilot = np.array([-1.0, 0.0, 1.0])  # mean 0 and standard deviation 1
    needed = required_seeds(mean + spread * pilot, says, margin)  # type: ignore[arg-type]
    assert needed is not None
    draws = np.random.default_rng(2).normal(mean, spread, (RUNS, needed))
    decided = 1 - rate([verdict(one, says, margin) for one in draws], "inconclusive")
    fewer = 1 - rate([verdict(one[:-1], says, margin) for one in draws], "inconclusive") if needed > 2 else 0.0
    assert decided >= POWER - SLACK
    assert fewer < POWER + SLACK


def test_no_number_of_seeds_tells_a_mean_on_the_margin() -> None:
    assert required_seeds(np.array([-1.0, 0.0, 1.0]), "below", 0.0) is None
