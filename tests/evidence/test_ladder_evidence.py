"""A ladder of known truth: its rows, its fit, what claims say of it, and what is said of published scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octavo.evidence.ladder import findings, fitted_ladder, same_loss_for
from octavo.evidence.time_side import TimeSide, ratio_draws
from octavo.experiment.ladder import Ladder, Setting, rungs
from octavo.statistics import test_of_draws as p_values_of_draws
from tests.evidence.conftest import Judged
from tests.synthetic import Truth

RATE = {"value": 1e-3, "at": 30_000, "exponent": 0.0}
LADDER: dict[str, Any] = {
    "rungs": 4,
    "active_parameters": 30_000,
    "tokens_per_parameter": 4,
    "family": {"layers": 2, "head_size": 16, "feed_forward": 3, "multiple": 2, "experts": {"count": 8, "top_k": 2}},
    "learning_rate": {"dense": RATE, "moe": RATE, "source": "test"},
}
SIZES = [rung.size for rung in rungs(Ladder.model_validate(LADDER), Setting(257, 128, 8, 8))]
ADVANTAGE, SLOWER = 1.5, 1.2
TRUTH = Truth(
    scale=2000.0,
    seed_sd=0.001,
    token_advantage={f"moe_{size}": ADVANTAGE for size in SIZES},
    step_seconds={f"moe_{size}": SLOWER for size in SIZES},
)
"""Losses follow tokens, whatever the size: the dense model needs 1.5 times the tokens for a mixture's loss."""
CHANGES: dict[str, Any] = {
    "models": {},
    "ladder": LADDER,
    "training": {
        "global_batch_size": 8, "micro_batch_size": 8, "sequence_length": 128,
        "optimizer": {"learning_rate": 1e-3},
        "evaluation": {"interval": 40, "sequences": 16, "final_sequences": 64},
        "checkpoints": {"interval": 40},
    },
}  # fmt: skip


@pytest.fixture
def ladder(judged: Callable[..., Judged]) -> Judged:
    return judged(truth=TRUTH, ablations={}, precisions=("bf16",), changes=CHANGES)


def test_leverage_is_that_of_the_truth(ladder: Judged) -> None:
    grid = ladder.grid
    assert grid.experiment is not None
    found = fitted_ladder(grid.ends, grid.experiment)
    assert len(found.rows) == 4 * 2 * 3
    value = findings(found, None)
    lowest = min(one["loss"] for one in value["leverage"])
    here = {one["axis"]: one for one in value["leverage"] if one["loss"] == lowest}
    # tokens go with the root of the FLOPs: 1.5 times the tokens are 1.5^2 times the FLOPs of a planned run. A step is
    # of 1,024 tokens and takes 1 s, the mixture's 1.2 s: 1.5 / 1.2 times the hours, and money is hours at a price
    expected = {"flops": ADVANTAGE**2, "device_hours": ADVANTAGE / SLOWER, "cost": ADVANTAGE / SLOWER}
    for axis, ratio in expected.items():
        assert here[axis]["low"] < here[axis]["value"] < here[axis]["high"]
        assert here[axis]["value"] == pytest.approx(ratio, rel=0.08)
    near, far = value["carried_on"]
    assert near["determined"]
    assert far["low"] < near["low"] < near["high"] < far["high"]


def test_claims_are_judged_on_the_ladder(ladder: Judged) -> None:
    claims = ladder.claims
    # 1.2 / 1.5 = 0.8 times the hours: the mixture saves; and a tenth of the money it is not
    assert claims[1].verdict == "supported"
    assert claims[1].effect is not None
    assert claims[1].effect.value == pytest.approx(SLOWER / ADVANTAGE, rel=0.08)
    assert claims[12].verdict == "refuted"
    assert "On the ladder" in claims[12].sentence
    pairs = {(one.cell, one.against) for one in ladder.comparisons.comparisons}
    assert pairs == {(f"moe_{size}-bf16", f"dense_{size}-bf16") for size in SIZES}


def test_without_a_ladder_the_claim_is_not_testable(judged: Callable[..., Judged]) -> None:
    found = judged(only=["12-a-tenth-of-the-money"], ablations={}, precisions=("bf16",)).claims[12]
    assert found.verdict == "not testable here"
    assert "a ladder" in found.sentence


def test_money_at_published_scale_has_both_uncertainties(ladder: Judged) -> None:
    grid = ladder.grid
    assert grid.ladder is not None
    assert grid.ladder.fit is not None
    fit = grid.ladder.fit
    largest = math.exp(fit.curves["moe"].last)
    side = TimeSide(
        "there", "cluster", "bf16", "dense", "moe", 10 * largest, ratio=2.0, low=1.5, high=3.0, interval=0.8
    )
    found = same_loss_for(fit, side)
    alone = same_loss_for(fit, TimeSide(**{**vars(side), "low": 1.9999, "high": 2.0001}))
    # twice the time of a FLOP over the leverage in FLOPs
    assert found["value"] == pytest.approx(2 / ADVANTAGE**2, rel=0.15)
    assert found["low"] < alone["low"] < alone["high"] < found["high"]
    assert found["determined"]
    assert not same_loss_for(fit, TimeSide(**{**vars(side), "flops": 1e4 * largest}))["determined"]


def test_draws_of_a_forecast_have_its_interval() -> None:
    side = TimeSide("there", "cluster", "bf16", "dense", "moe", 1e20, ratio=2.0, low=1.5, high=3.0, interval=0.8)
    low, middle, high = np.exp(np.quantile(ratio_draws(side, 20_000), [0.1, 0.5, 0.9]))
    assert (low, middle, high) == (pytest.approx(1.5, rel=0.02), pytest.approx(2, rel=0.02), pytest.approx(3, rel=0.02))


def test_a_direction_by_draws() -> None:
    draws = np.linspace(0.1, 1.1, 999)
    # none of 999 is at or below 0: p = 2 x 1 / 1000; 100 of them are at or above 1
    found = p_values_of_draws(draws, "above", 0.0)
    assert (found.supports, found.refutes) == (pytest.approx(0.002), 1.0)
    assert p_values_of_draws(draws, "below", 1.0).supports == pytest.approx(2 * (1 + 100) / 1000, rel=0.02)
