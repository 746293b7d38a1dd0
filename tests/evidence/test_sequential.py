"""Seeds until decided: boundaries are those of the literature, and looking after each seed keeps the error rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special
from scipy.stats import ttest_1samp

from octavo.evidence.sequential import ALPHAS, Looks, nominal_levels, spent_by
from octavo.evidence.verdicts import read_claims, undecided_cells
from octavo.report.inputs import load_inputs
from octavo.report.sections.small_print import seeds_not_planned
from octavo.statistics import ALPHA
from octavo.statistics import test as hold
from tests.evidence.conftest import Judged
from tests.synthetic import Truth


def at_level(alpha: float, by_alpha: np.ndarray) -> float:
    """The value at a level between ALPHAS."""
    return float(np.exp(np.interp(np.log(alpha), np.log(ALPHAS), np.log(by_alpha))))


def test_spending_is_lan_and_demets() -> None:
    """Five equal looks at a one-sided 2.5 %, gsDesign 3, sfLDOF: all is spent at the end; the first boundary, where
    nothing was spent before, is 4.8769."""
    assert at_level(0.025, spent_by(1.0)) == pytest.approx(0.025, rel=1e-9)
    assert -special.ndtri(at_level(0.025, spent_by(0.2))) == pytest.approx(4.8769, abs=3e-3)


@pytest.mark.parametrize(("first", "last"), [(2, 8), (3, 8), (3, 12)])
def test_t_statistics_of_normal_differences_cross_as_often_as_is_spent(first: int, last: int) -> None:
    """At each look, of 100,000 simulated experiments; by 4 standard errors of the simulation."""
    differences = np.random.default_rng(last).normal(size=(100_000, last))
    levels = nominal_levels(first, last)
    for alpha in (0.5, 0.05, 0.01):
        crossed = np.zeros(len(differences), bool)
        for level, size in zip(levels, range(first, last + 1), strict=True):
            crossed |= ttest_1samp(differences[:, :size], 0.0, axis=1, alternative="greater").pvalue <= at_level(
                alpha, level
            )
            spent = at_level(alpha, spent_by(size / last))
            assert abs(crossed.mean() - spent) <= 4 * np.sqrt(spent / len(differences)) + 1e-5


def test_a_single_look_is_the_plain_test() -> None:
    assert nominal_levels(8, 8)[0] == pytest.approx(ALPHAS, rel=0.01)


def test_a_boundary_at_a_higher_level_is_a_lower_one() -> None:
    """So that a sequential p value is the smallest level at which one is crossed."""
    for first, last in ((2, 8), (3, 8), (2, 12)):
        levels = nominal_levels(first, last)
        assert (levels > 0).all()
        assert (np.diff(levels, axis=1) > 0).all()


def rising(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Normal, with a standard deviation that grows to 3 times that of the first seed."""
    return np.linspace(1, 3, shape[1]) * rng.normal(size=shape)


def unequal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Normal, with a variance of 1 or 9, drawn for each difference."""
    return rng.choice([1.0, 3.0], shape) * rng.normal(size=shape)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(3, shape)


@pytest.mark.parametrize("noise", [rising, unequal, heavy_tailed])
def test_differences_that_are_not_of_one_normal_law_are_not_wrong_more_often(
    noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray],
) -> None:
    """At the level of a claim of three on one side, 5 % / 6."""
    differences, crossed = noise(np.random.default_rng(11), (100_000, 8)), np.zeros(100_000, bool)
    alpha = ALPHA / 6
    for level, size in zip(nominal_levels(3, 8), range(3, 9), strict=True):
        p_values = ttest_1samp(differences[:, :size], 0.0, axis=1, alternative="greater").pvalue
        crossed |= p_values <= at_level(alpha, level)
    assert crossed.mean() <= alpha + 3 * np.sqrt(alpha / len(differences))


def test_what_was_decided_stays_decided() -> None:
    looks, rng = Looks(3, 8), np.random.default_rng(0)
    differences = rng.normal(1.0, 0.3, 8)
    values = []
    for seeds in range(2, 9):
        found = hold(differences[:seeds], "above", 0.0, looked=looks)
        assert found is not None
        values.append(found.supports)
    assert values[0] == 1.0  # no look before the third seed
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("first", [2, 3])
def test_looking_after_each_seed_is_wrong_in_at_most_5_of_100_at_the_margin(first: int) -> None:
    """Normal differences; at the margin itself either verdict is one too many."""
    runs, looks = 2000, Looks(first, 8)
    wrong = 0
    for differences in np.random.default_rng(first).normal(size=(runs, 8)):
        found = hold(differences, "below", 0.0, looked=looks)
        wrong += found is not None and found.p_value <= ALPHA
    assert wrong / runs <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert wrong / runs >= 0.03  # and not by never deciding


def test_looking_as_often_with_a_fixed_test_is_wrong_more_often() -> None:
    """What the design is for."""
    runs, wrong = 1000, 0
    for differences in np.random.default_rng(1).normal(size=(runs, 8)):
        tests = [hold(differences[:seeds], "below", 0.0) for seeds in range(3, 9)]
        wrong += any(found is not None and found.p_value <= ALPHA for found in tests)
    assert wrong / runs > 0.09


# --- a whole experiment ---------------------------------------------------------------------------------------------

DESIGN = {"seeds": {"from": 3, "to": 5}}


def test_a_look_asks_for_the_cells_of_undecided_comparisons_alone(judged: Callable[..., Judged]) -> None:
    """The mixture in FP8 is on the margin of 0.25 %, the dense model is BF16's equal: that pair needs no more."""
    truth = Truth(offsets={"moe-fp8_blockwise": 0.0025}, run_sd=0.0002)
    found = judged(only=["02-fp8-loss-error"], ablations={}, changes=DESIGN, truth=truth)
    claim = found.claims[2]
    assert claim.verdict == "inconclusive"
    assert "Not decided after 3 of at most 5 seeds." in claim.sentence
    assert claim.seeds_needed is None
    experiment = found.grid.experiment
    assert experiment is not None
    assert undecided_cells(found.grid, read_claims(found.configs, experiment)) == ["moe-bf16", "moe-fp8_blockwise"]


def test_before_the_first_look_a_clear_interval_is_no_verdict_and_says_when_there_is_one(
    judged: Callable[..., Judged],
) -> None:
    """FP8 is worse by 3 %, with hardly any spread: three seeds are clear by themselves, and the first look is at
    four. The cells have another seed to come."""
    truth = Truth(offsets={"fp8_blockwise": 0.03}, run_sd=0.0001)
    design = {"seeds": {"from": 4, "to": 6}}
    cells = [f"{model}-{precision}" for model in ("dense", "moe") for precision in ("bf16", "fp8_blockwise")]
    found = judged(
        only=["02-fp8-loss-error"], ablations={}, changes=design, truth=truth,
        unfinished={(cell, 4): 50 for cell in cells},
    )  # fmt: skip
    claim = found.claims[2]
    assert claim.verdict == "inconclusive"
    assert claim.reason == "no verdict before 4 seeds"
    assert "No verdict is reached before 4 seeds; these are 3." in claim.sentence
    assert "alone (p" not in claim.sentence
    assert undecided_cells(found.grid, read_claims(found.configs, found.grid.experiment)) == cells


def test_a_decided_experiment_asks_for_nothing(judged: Callable[..., Judged]) -> None:
    truth = Truth(offsets={"fp8_blockwise": 0.03}, run_sd=0.0001)
    found = judged(only=["02-fp8-loss-error"], ablations={}, changes=DESIGN, truth=truth)
    assert found.claims[2].verdict == "refuted"
    assert undecided_cells(found.grid, read_claims(found.configs, found.grid.experiment)) == []


def test_more_seeds_are_not_asked_for_where_a_planned_run_is_what_it_lacks(judged: Callable[..., Judged]) -> None:
    truth = Truth(token_advantage={"moe": 1.3}, decay_worth=0.05)
    found = judged(only=["01-moe-saves-device-hours"], ablations={}, changes=DESIGN, truth=truth, precisions=("bf16",))
    assert found.claims[1].reason == "needs a run planned for this length"
    assert undecided_cells(found.grid, read_claims(found.configs, found.grid.experiment)) == []


def test_seeds_added_after_a_verdict_was_seen_are_said_to_lose_the_error_rate(judged: Callable[..., Judged]) -> None:
    """Three seeds, then two more; and then the plan of three again, with the results of five in the folder."""
    arguments: dict[str, Any] = {"only": ["02-fp8-loss-error"], "ablations": {}}
    lost = "their error rates no longer hold"
    first = judged(**arguments)
    assert seeds_not_planned(load_inputs(first.folder)) is None
    added = seeds_not_planned(load_inputs(judged(**arguments, seeds=(1, 2, 3, 4, 5)).folder))
    assert added is not None
    assert "reached before with seeds 1, 2 and 3." in added
    assert lost in added
    back = seeds_not_planned(load_inputs(judged(**arguments).folder))
    assert back is not None
    assert "does not ask for: 4 and 5." in back
