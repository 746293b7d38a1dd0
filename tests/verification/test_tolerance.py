"""The tolerance is what seeds do: arithmetic, and how often equals pass."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.verification.tolerance import SeedSpread, seed_spread


def test_the_spread_over_seeds() -> None:
    """(0.99, 1.01) deviates by 0.01 twice, (2, 2, 2) by 0: sqrt(2 x 0.01^2 / (1 + 2))."""
    found = seed_spread([("a", 0.99), ("b", 2.0), ("b", 2.0), ("a", 1.01), ("b", 2.0), ("a", None)])
    assert found is not None
    assert (found.deviation, found.freedom) == (pytest.approx(math.sqrt(2e-4 / 3)), 3)
    assert seed_spread([("a", 1.0), ("b", 2.0)]) is None


def test_the_tolerance_is_students() -> None:
    """Tables of Student's t: 2.306 for 8 degrees of freedom at 95 %, both sides; sqrt(2) for the two of a pair."""
    spread = SeedSpread(deviation=0.01, freedom=8)
    assert spread.tolerance() == pytest.approx(2.306 * math.sqrt(2) * 0.01, rel=1e-4)
    assert spread.tolerance(pairs=3) == pytest.approx(2.306 * math.sqrt(2 / 3) * 0.01, rel=1e-4)


@pytest.mark.parametrize("pairs", [1, 3])
def test_equals_pass_nineteen_times_in_twenty(pairs: int) -> None:
    """Four cells of three seeds, and runs that differ as seeds do: 4,000 times, so 95 % +- 1.4 % (4 deviations)."""
    draw = np.random.default_rng(1)
    passed = 0
    for _ in range(4000):
        losses = 1 + 0.003 * draw.standard_normal((4, 3))
        again = 1 + 0.003 * draw.standard_normal(pairs)
        spread = seed_spread((str(cell), loss) for cell, own in enumerate(losses.tolist()) for loss in own)
        assert spread is not None
        passed += abs(np.mean(again / losses[0, :pairs] - 1)) <= spread.tolerance(pairs)
    assert passed / 4000 == pytest.approx(0.95, abs=0.014)
