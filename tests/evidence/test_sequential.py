"""Seeds until decided: boundaries are those of the literature, and looking after each seed keeps the error rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from octavo.evidence.sequential import ALPHAS, Looks, nominal_levels
from octavo.statistics import ALPHA
from octavo.statistics import test as hold


def test_boundaries_are_lan_and_demets() -> None:
    """Five equal looks at a one-sided 2.5 %: 4.8769, 3.3569, 2.6803, 2.2898, 2.0310 (gsDesign 3, sfLDOF)."""
    levels = nominal_levels(1, 5)
    found = [-special.ndtri(np.exp(np.interp(np.log(0.025), np.log(ALPHAS), np.log(level)))) for level in levels]
    assert found == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=3e-3)


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
