"""The fit of a ladder: known curves come back, and what the data leave open is left open."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from octavo.errors import OctavoError
from octavo.scaling.fit import fit
from octavo.scaling.ladder import Row, rungs


def ladder(architecture: str, coefficient: float, *, irreducible: float = 1.6, noise: float = 0.0, seeds: int = 3,
           sizes: int = 4) -> list[Row]:  # fmt: skip
    """L(C) = E + A (C / 1e18)^-0.16 with normal noise of the logarithm of the loss, seeded by the architecture."""
    rng = np.random.default_rng([ord(letter) for letter in architecture])
    flops = [1e18 * 4.0**rung for rung in range(sizes)]
    return [
        Row(architecture, c, (irreducible + coefficient * (c / 1e18) ** -0.16) * math.exp(noise * rng.normal()), seed=s)
        for c in flops
        for s in range(seeds)
    ]


def middle(values: np.ndarray) -> float:
    return float(np.median(values))


def test_a_ladder_without_noise_gives_its_curve_back_between_and_beyond_its_rungs() -> None:
    found = fit(ladder("dense", 2.0) + ladder("moe", 2.0 * 4**-0.16)).curves
    at = 1e18 * 4**1.5
    assert middle(found["dense"].loss(math.log(at))) == pytest.approx(1.6 + 2.0 * (at / 1e18) ** -0.16, rel=5e-5)
    beyond = 1e18 * 4**4.5
    assert middle(found["dense"].loss(math.log(beyond))) == pytest.approx(
        1.6 + 2.0 * (beyond / 1e18) ** -0.16, rel=5e-3
    )
    loss = 1.6 + 2.0 * 8**-0.16  # which the dense model reaches at 8e18 FLOPs and the mixture at a quarter of them
    assert middle(found["dense"].log_flops(loss) - found["moe"].log_flops(loss)) == pytest.approx(math.log(4), abs=0.01)


def test_the_order_of_rows_changes_nothing() -> None:
    rows = ladder("dense", 2.0, noise=0.003) + ladder("moe", 1.6, noise=0.003)
    mixed = random.Random(1).sample(rows, len(rows))
    one, other = fit(rows, draws=500), fit(mixed, draws=500)
    assert np.array_equal(one.curves["moe"].loss(45.0), other.curves["moe"].loss(45.0))


def test_noise_is_that_of_the_seeds() -> None:
    found = fit(ladder("dense", 2.0, noise=0.004, seeds=20))
    assert middle(found.noise) == pytest.approx(0.004, rel=0.2)  # 76 degrees of freedom: 8 % standard error


def test_one_run_far_off_counts_less_and_moves_little() -> None:
    rows = ladder("dense", 2.0, noise=0.002)
    bad = [*rows[:-1], Row("dense", rows[-1].flops, rows[-1].validation_loss * 1.15, seed=2)]
    off = fit(bad)
    assert [row.validation_loss for row in off.down_weighted] == [bad[-1].validation_loss]
    assert middle(off.curves["dense"].loss(math.log(6.4e19))) == pytest.approx(
        middle(fit(rows).curves["dense"].loss(math.log(6.4e19))), rel=0.01
    )  # 15 % of one in three is 5 % of the rung's mean


def test_sizes_with_other_tokens_per_parameter_are_fitted_in_parameters_and_tokens() -> None:
    """Three lengths of each size, L = 1.7 + 400 N^-0.34 + 410 D^-0.28: not all are on one line."""
    rows = [
        Row("dense", 6 * n * d, 1.7 + 400 * n**-0.34 + 410 * d**-0.28, active_parameters=n, tokens=d)
        for n in (1e8, 2e8, 4e8, 8e8)
        for d in (10 * n, 20 * n, 40 * n)
    ]
    found = fit(rows)
    assert found.terms == 2
    n = 1.6e9
    predicted = middle(found.curves["dense"].loss(math.log(6 * n * 40 * n)))
    assert predicted == pytest.approx(1.7 + 400 * n**-0.34 + 410 * (40 * n) ** -0.28, rel=0.01)


def test_runs_of_a_rung_differ_in_their_seed_alone() -> None:
    rows = [*ladder("dense", 2.0), Row("dense", 1e18, 3.6, tokens=1e9)]
    assert [len(rung.rows) for rung in rungs(rows, "dense")] == [3, 1, 3, 3, 3]


def test_two_rungs_are_too_few() -> None:
    with pytest.raises(OctavoError, match="dense has 2 rungs"):
        fit(ladder("dense", 2.0, sizes=2))
